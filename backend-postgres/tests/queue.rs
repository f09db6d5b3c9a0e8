//! Queues on a real PostgreSQL.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor, Row};
use support::{Database, server};
use tenure_core::{
    Delivery, Effect, ErrorKind, Item, LossReason, MAX_NAME_BYTES, MAX_VALUE_BYTES, QueueHandle,
    Session, SessionOptions,
};
use tenure_postgres::{MAX_BATCH_BYTES, PostgresConfig, PostgresQueue, PostgresSession};
use tenure_testbed::{Holder, PostgresServer};

const TTL: Duration = Duration::from_secs(5);
/// For whatever should take no time on a busy machine.
const PROMPT: Duration = Duration::from_secs(10);
/// After the end of a session, until what it had is elsewhere.
const LATE: Duration = Duration::from_secs(5);

const WAITS: &str = "SELECT count(*) FROM tenure.queue_waits";
const CLAIMS: &str = "SELECT count(*) FROM tenure.queue_dealt WHERE session IS NOT NULL";
const ROWS: &str = "SELECT (SELECT count(*) FROM tenure.queue_items) \
    + (SELECT count(*) FROM tenure.queue_dealt) + (SELECT count(*) FROM tenure.queue_waits)";

type Got = tenure_core::Result<Delivery<PostgresQueue>>;

async fn within<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    tokio::time::timeout(limit, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took longer than {limit:?}"))
}

fn text(delivery: &Delivery<PostgresQueue>) -> &str {
    std::str::from_utf8(delivery.value()).unwrap()
}

async fn queue(db: &Database, ttl: Duration, name: &str) -> QueueHandle<PostgresQueue> {
    db.session(ttl).await.queue(name).unwrap()
}

/// A task that waits for an item, once it stands in line as one of `number`.
async fn waiting(
    db: &Database,
    queue: &QueueHandle<PostgresQueue>,
    number: i64,
) -> tokio::task::JoinHandle<Got> {
    let queue = queue.clone();
    let task = tokio::spawn(async move { queue.dequeue().await });
    db.until(WAITS, number).await;
    task
}

async fn next(queue: &QueueHandle<PostgresQueue>) -> Delivery<PostgresQueue> {
    within(PROMPT, "a delivery", queue.dequeue()).await.unwrap()
}

async fn expect(queue: &QueueHandle<PostgresQueue>, value: &str, count: u32) {
    let got = next(queue).await;
    assert_eq!((text(&got), got.count()), (value, count));
    got.ack().await.unwrap();
}

async fn execute(db: &Database, sql: String) {
    let mut connection = db.sql().await;
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
}

/// From now on nobody sweeps: what is found out, consumers find out.
async fn no_sweep(db: &Database) {
    let swept = "INSERT INTO tenure.sweeps (last) VALUES (clock_timestamp() + interval '1 hour') \
        ON CONFLICT (one) DO UPDATE SET last = excluded.last";
    execute(db, swept.to_owned()).await;
}

#[tokio::test]
async fn through_and_gone() {
    let db = Database::new().await;
    let (here, there) = (queue(&db, TTL, "q").await, queue(&db, TTL, "q").await);
    assert!(there.try_dequeue().await.unwrap().is_none());
    here.enqueue(Item::new("late").priority(9)).await.unwrap();
    here.enqueue(Item::new("first").priority(3)).await.unwrap();
    let batch = ["a", "b", "c"].map(|value| Item::new(value).priority(3));
    there.enqueue_many(batch).await.unwrap();
    let mut last = None;
    for value in ["first", "a", "b", "c", "late"] {
        let seen = here.peek().await.unwrap().unwrap();
        assert_eq!(seen.value, value.as_bytes());
        let got = next(&there).await;
        assert_eq!((text(&got), got.count()), (value, 1));
        assert_eq!(here.depth().await.unwrap().in_flight, 1);
        assert!(last < Some(got.token()) && got.is_valid());
        last = Some(got.token());
        got.ack().await.unwrap();
    }
    assert_eq!(db.number(ROWS).await, 0);
}

#[tokio::test]
async fn what_comes_back_stands_where_it_stood() {
    let db = Database::new().await;
    let (here, there) = (queue(&db, TTL, "q").await, queue(&db, TTL, "q").await);
    for value in ["a", "b", "c", "d"] {
        here.enqueue(value).await.unwrap();
    }
    let (a, b, c) = (next(&here).await, next(&there).await, next(&here).await);
    // The marks of both are behind c by now.
    b.nack().await.unwrap();
    expect(&here, "b", 2).await;
    a.nack().await.unwrap();
    c.nack().await.unwrap();
    // Of another priority, and more urgent.
    there.enqueue(Item::new("z").priority(1)).await.unwrap();
    for (value, count) in [("a", 2), ("c", 2), ("d", 1), ("z", 1)] {
        expect(&there, value, count).await;
    }
    assert_eq!(db.number(ROWS).await, 0);
}

#[tokio::test]
async fn more_priorities_than_marks() {
    let db = Database::new().await;
    let (here, there) = (queue(&db, TTL, "q").await, queue(&db, TTL, "q").await);
    let mut expected = Vec::new();
    for number in 0..120_u16 {
        let priority = number.wrapping_mul(7919) % 40;
        let item = Item::new(format!("{number:03}")).priority(priority);
        here.enqueue(item).await.unwrap();
        expected.push((priority, format!("{number:03}")));
        if number % 4 == 3 {
            // Whatever is the first now.
            expected.sort();
            let (priority, value) = expected.remove(0);
            let got = next(if number % 8 == 3 { &here } else { &there }).await;
            assert_eq!((text(&got), got.priority()), (&*value, priority));
            got.ack().await.unwrap();
        }
    }
    expected.sort();
    for (_, value) in expected {
        expect(&there, &value, 1).await;
    }
    assert!(here.try_dequeue().await.unwrap().is_none());
}

/// Q3, with producers at once: what one saw accepted before it put in its own comes first, whoever takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_producers_and_consumers_keep_the_order() {
    const EACH: usize = 60;
    let db = Database::new().await;
    // The stamps that are drawn before an enqueue and after it.
    let clock = Arc::new(AtomicUsize::new(0));
    let stamps = Arc::new(Mutex::new(HashMap::new()));
    let mut producing = Vec::new();
    for producer in 0..4 {
        let queue = queue(&db, TTL, "q").await;
        let (clock, stamps) = (Arc::clone(&clock), Arc::clone(&stamps));
        producing.push(tokio::spawn(async move {
            for number in 0..EACH {
                let value = format!("{producer}-{number}");
                let before = clock.fetch_add(1, Ordering::SeqCst);
                queue.enqueue(&*value).await.unwrap();
                let after = clock.fetch_add(1, Ordering::SeqCst);
                stamps.lock().unwrap().insert(value, (before, after));
            }
        }));
    }
    // One takes while they put in: what it takes may be nacked, and must then be the first again.
    let taking = queue(&db, TTL, "q").await;
    let mut order = Vec::new();
    while order.len() < 4 * EACH {
        let got = next(&taking).await;
        let value = text(&got).to_owned();
        if order.len() % 5 == 0 {
            got.nack().await.unwrap();
            let again = next(&taking).await;
            assert_eq!((text(&again), again.count()), (&*value, 2));
            again.ack().await.unwrap();
        } else {
            got.ack().await.unwrap();
        }
        order.push(value);
    }
    for task in producing {
        task.await.unwrap();
    }
    let stamps = stamps.lock().unwrap().clone();
    let mut begun_last = 0;
    for value in &order {
        let (before, after) = stamps[value];
        // Nobody before it in the order began after it had ended.
        assert!(begun_last <= after, "{value}: {order:?}");
        begun_last = begun_last.max(before);
    }
    assert_eq!(order.iter().collect::<HashSet<_>>().len(), 4 * EACH);
    assert_eq!(db.number(ROWS).await, 0);
}

/// What the next of the crowd got: as a rule the one that waits longest, but one that looks by itself may be faster.
async fn next_of(
    crowd: &mut Vec<tokio::task::JoinHandle<Got>>,
    what: &str,
) -> Delivery<PostgresQueue> {
    let ended = std::future::poll_fn(|context| {
        for (at, task) in crowd.iter_mut().enumerate() {
            if let std::task::Poll::Ready(got) = std::pin::Pin::new(task).poll(context) {
                return std::task::Poll::Ready((at, got));
            }
        }
        std::task::Poll::Pending
    });
    let (at, got) = within(PROMPT, what, ended).await;
    drop(crowd.remove(at));
    got.unwrap().unwrap()
}

/// A consumer that looks without a notification keeps its place in line.
#[tokio::test]
async fn consumers_that_look_by_themselves_keep_their_places() {
    const LOOKED: &str = "SELECT (extract(epoch FROM looked) * 1000000)::bigint FROM tenure.queues";
    const PLACES: &str = "SELECT sum(id)::bigint FROM tenure.queue_waits";
    let db = Database::new().await;
    let sessions = [db.session(TTL).await, db.session(TTL).await];
    let mut crowd = Vec::new();
    for number in 0..4 {
        let queue = sessions[number % 2].queue("q").unwrap();
        crowd.push(waiting(&db, &queue, number as i64 + 1).await);
    }
    let places = db.number(PLACES).await;
    // Looks of either session: each looks more seldom than once in two of the other's.
    let mut looks = HashSet::new();
    within(PROMPT, "the looks", async {
        while looks.len() < 6 {
            looks.insert(db.number(LOOKED).await);
        }
    })
    .await;
    assert_eq!(db.number(PLACES).await, places);
    for task in crowd {
        task.abort();
    }
    db.until(WAITS, 0).await;
}

#[tokio::test]
async fn an_item_wakes_one_and_a_batch_wakes_as_many() {
    let db = Database::new().await;
    let sessions = [db.session(TTL).await, db.session(TTL).await];
    let mut crowd = Vec::new();
    for number in 0..6 {
        let queue = sessions[number % 2].queue("q").unwrap();
        crowd.push(waiting(&db, &queue, number as i64 + 1).await);
    }
    let producer = queue(&db, TTL, "q").await;
    producer.enqueue("one").await.unwrap();
    let first = next_of(&mut crowd, "the first").await;
    assert_eq!(text(&first), "one");
    drop(first);
    // Dropped, it wakes another.
    let second = next_of(&mut crowd, "the second").await;
    assert_eq!((text(&second), second.count()), ("one", 2));
    second.ack().await.unwrap();
    assert_eq!(crowd.iter().filter(|task| task.is_finished()).count(), 0);
    let batch = ["a", "b", "c", "d"].map(Item::from);
    producer.enqueue_many(batch).await.unwrap();
    let mut seen = Vec::new();
    for task in crowd {
        let got = within(PROMPT, "one of a batch", task)
            .await
            .unwrap()
            .unwrap();
        seen.push(text(&got).to_owned());
        got.ack().await.unwrap();
    }
    seen.sort();
    assert_eq!(seen, ["a", "b", "c", "d"]);
    assert_eq!(db.number(ROWS).await, 0);
}

#[tokio::test]
async fn a_terminated_consumers_items_go_to_who_waits() {
    let db = Database::new().await;
    let doomed = db.session(TTL).await;
    no_sweep(&db).await;
    let (mine, other) = (doomed.queue("q").unwrap(), queue(&db, TTL, "q").await);
    for value in ["a", "b"] {
        other.enqueue(value).await.unwrap();
    }
    let (a, _b) = (next(&mine).await, next(&mine).await);
    let task = waiting(&db, &other, 1).await;
    let at = Instant::now();
    execute(&db, format!("SELECT tenure.terminate({})", doomed.id())).await;
    let back = within(LATE, "the return", task).await.unwrap().unwrap();
    assert!(at.elapsed() < Duration::from_secs(3), "{:?}", at.elapsed());
    assert_eq!((text(&back), back.count()), ("a", 2));
    assert!(back.token() > a.token());
    assert_eq!(a.lost().await, LossReason::Revoked);
    assert_eq!(a.ack().await.unwrap_err().kind(), ErrorKind::Lost);
    back.ack().await.unwrap();
    expect(&other, "b", 2).await;
    assert_eq!(other.len().await.unwrap(), 0);
}

/// Whoever asks without waiting finds what the dead had, too; and depth and peek do at once.
#[tokio::test]
async fn the_dead_are_seen_as_dead_by_who_only_looks() {
    let db = Database::new().await;
    let (doomed, other) = (db.session(TTL).await, queue(&db, TTL, "q").await);
    no_sweep(&db).await;
    other.enqueue("a").await.unwrap();
    let held = next(&doomed.queue("q").unwrap()).await;
    assert_eq!(other.depth().await.unwrap().in_flight, 1);
    assert!(other.peek().await.unwrap().is_none());
    execute(&db, format!("SELECT tenure.terminate({})", doomed.id())).await;
    held.lost().await;
    within(PROMPT, "the return", async {
        while other.depth().await.unwrap().ready != 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(other.peek().await.unwrap().unwrap().deliveries, 1);
        while other.try_dequeue().await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Consumers that were told of items and died of it: the others find them.
#[tokio::test]
async fn who_dies_of_being_told_loses_nothing() {
    let db = Database::new().await;
    let doomed = db.session(TTL).await;
    no_sweep(&db).await;
    let mine = doomed.queue("q").unwrap();
    let mut dying = Vec::new();
    for number in 1..=8 {
        dying.push(waiting(&db, &mine, number).await);
    }
    let other = db.session(TTL).await;
    let mut living = Vec::new();
    for number in 9..=32 {
        living.push(waiting(&db, &other.queue("q").unwrap(), number).await);
    }
    // As if they had been told, and never come.
    execute(
        &db,
        format!(
            "DELETE FROM tenure.queue_waits WHERE session = {}",
            doomed.id()
        ),
    )
    .await;
    let producer = queue(&db, TTL, "q").await;
    // Nobody is told of these.
    execute(
        &db,
        "INSERT INTO tenure.queue_items (queue, priority, value) \
         SELECT q.id, 0, 'x' FROM tenure.queues AS q, generate_series(1, 24)"
            .to_owned(),
    )
    .await;
    execute(&db, format!("SELECT tenure.terminate({})", doomed.id())).await;
    let at = Instant::now();
    // One look finds that there are some; the rest is told by one to the next.
    within(LATE, "the last item", async {
        for task in living {
            task.await.unwrap().unwrap().ack().await.unwrap();
        }
    })
    .await;
    println!("all after {:?}", at.elapsed());
    for task in dying {
        if let Ok(got) = within(PROMPT, "the end of a wait", task).await.unwrap() {
            // It looked by itself before it died.
            drop(got);
        }
    }
    drop(producer);
}

/// Who was told of an item and goes away passes that on: nobody has to wait for somebody's timer.
#[tokio::test]
async fn who_goes_away_after_being_told_tells_the_next() {
    const ROUNDS: u32 = 10;
    let db = Database::new().await;
    let (here, there) = (queue(&db, TTL, "q").await, queue(&db, TTL, "q").await);
    let mut took = Duration::ZERO;
    for _ in 0..ROUNDS {
        let told = waiting(&db, &here, 1).await;
        let next = waiting(&db, &there, 2).await;
        // As if the first had been told of an item, and had not come yet.
        let tell = "WITH told AS (DELETE FROM tenure.queue_waits WHERE id = (SELECT min(id) \
            FROM tenure.queue_waits) RETURNING queue) INSERT INTO tenure.queue_items \
            (queue, priority, value) SELECT queue, 0, 'x' FROM told";
        execute(&db, tell.to_owned()).await;
        let at = Instant::now();
        told.abort();
        let got = within(PROMPT, "the item", next).await.unwrap().unwrap();
        took += at.elapsed();
        got.ack().await.unwrap();
        db.until(ROWS, 0).await;
    }
    // By their timers it takes a second each.
    assert!(took < Duration::from_millis(400) * ROUNDS, "{took:?}");
}

#[tokio::test]
async fn ids_are_known_in_the_queue_and_for_a_while_after() {
    let db = Database::new().await;
    let (here, there) = (queue(&db, TTL, "q").await, queue(&db, TTL, "q").await);
    let hostile = "'; DROP SCHEMA tenure; -- \u{1F511} {\"\\x00, NULL";
    for id in [
        "a",
        hostile,
        &"x".repeat(MAX_NAME_BYTES),
        &"\u{1}/%".repeat(170),
        "NULL",
        "{}",
    ] {
        let item = |value: &str| Item::new(value).id(id).unwrap();
        here.enqueue(item("first")).await.unwrap();
        there
            .enqueue_many([item("again"), item("and again")])
            .await
            .unwrap();
        assert_eq!(here.len().await.unwrap(), 1);
        let got = next(&there).await;
        here.enqueue(item("delivered")).await.unwrap();
        got.ack().await.unwrap();
        here.enqueue(item("gone")).await.unwrap();
        assert_eq!(here.len().await.unwrap(), 0, "{id:?}");
        // The same id elsewhere is another.
        let other = queue(&db, TTL, "another").await;
        other.enqueue(item("elsewhere")).await.unwrap();
        assert_eq!(other.purge().await.unwrap(), 1);
    }
    // When its time is over, it is free, and swept.
    execute(
        &db,
        "UPDATE tenure.queue_names SET until = clock_timestamp() WHERE name = 'a'".to_owned(),
    )
    .await;
    here.enqueue(Item::new("new").id("a").unwrap())
        .await
        .unwrap();
    assert_eq!(here.purge().await.unwrap(), 1);
    execute(
        &db,
        "UPDATE tenure.queue_names SET until = clock_timestamp()".to_owned(),
    )
    .await;
    execute(&db, "SELECT tenure.queue_collect(0)".to_owned()).await;
    assert_eq!(
        db.number("SELECT count(*) FROM tenure.queue_names").await,
        0
    );
}

#[tokio::test]
async fn values_and_batches_at_their_limits() {
    let db = Database::new().await;
    let (here, there) = (queue(&db, TTL, "q").await, queue(&db, TTL, "q").await);
    let bytes = |size: usize| -> Vec<u8> { (0..size).map(|at| (at % 251) as u8).collect() };
    // Around what goes over the session's own connection, and up to the largest.
    let sizes = [0, 1, 8191, 8192, 8193, MAX_VALUE_BYTES];
    for size in sizes {
        here.enqueue(bytes(size)).await.unwrap();
    }
    let over = here.enqueue(bytes(MAX_VALUE_BYTES + 1)).await.unwrap_err();
    assert_eq!(
        (over.kind(), over.effect()),
        (ErrorKind::TooLarge, Effect::None)
    );
    assert_eq!(there.peek().await.unwrap().unwrap().value, b"");
    for size in sizes {
        let got = next(&there).await;
        assert!(got.value() == bytes(size), "{size} bytes");
        got.ack().await.unwrap();
    }
    let large = bytes(MAX_VALUE_BYTES);
    let batch = |count| (0..count).map(|_| Item::new(&large)).collect::<Vec<_>>();
    assert_eq!(MAX_BATCH_BYTES, 2 * large.len());
    let over = here.enqueue_many(batch(3)).await.unwrap_err();
    assert_eq!(over.kind(), ErrorKind::TooLarge);
    assert_eq!(there.len().await.unwrap(), 0);
    here.enqueue_many(batch(2)).await.unwrap();
    here.enqueue(large.as_slice()).await.unwrap();
    here.enqueue_many((0..29).map(|number| Item::new(format!("{number}"))))
        .await
        .unwrap();
    // No more than fits, and never none.
    let mut seen = 0;
    while seen < 32 {
        let some = there.dequeue_many(32).await.unwrap();
        assert!(!some.is_empty());
        assert!(some.iter().map(|item| item.value().len()).sum::<usize>() <= MAX_BATCH_BYTES);
        seen += some.len();
        for got in some {
            got.ack().await.unwrap();
        }
    }
    assert_eq!(db.number(ROWS).await, 0);
}

#[tokio::test]
async fn hostile_names_are_names() {
    let db = Database::new().await;
    let session = db.session(TTL).await;
    let names = [
        "'; DROP SCHEMA tenure; --".to_owned(),
        "a#1:2:3".to_owned(),
        "%_\\".to_owned(),
        "\u{1F511}\u{202E}".to_owned(),
        "/".repeat(MAX_NAME_BYTES),
        (0..MAX_NAME_BYTES)
            .map(|at| char::from(b"/%\x01\x02\x1f\x07\x0b\x13"[at * at / 7 % 8]))
            .collect(),
    ];
    for name in &names {
        session.queue(name).unwrap().enqueue(&**name).await.unwrap();
    }
    let other = db.session(TTL).await;
    for name in &names {
        let queue = other.queue(name).unwrap();
        let got = next(&queue).await;
        assert_eq!(text(&got), name);
        // Also as an operator names it.
        let member = got.key().rsplit_once('#').unwrap().1.to_owned();
        execute(&db, format!("SELECT tenure.evict_delivery('{member}')")).await;
        assert_eq!(got.ack().await.unwrap_err().kind(), ErrorKind::Lost);
        expect(&queue, name, 2).await;
        assert_eq!(queue.len().await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_delivery_is_checked_for_a_commit() {
    let db = Database::new().await;
    let session = db.session(TTL).await;
    let queue = session.queue("q").unwrap();
    queue.enqueue("a").await.unwrap();
    let got = next(&queue).await;
    let (path, key, token) = (
        "tenure/1/default/queue/q",
        got.key().to_owned(),
        got.token(),
    );
    let holds = async |me: &str, path: &str, key: &str, token: u64| -> bool {
        let sql = format!("SELECT tenure.holds_delivery({me}, '{path}', '{key}', {token})");
        let row = db.sql().await.fetch_one(AssertSqlSafe(sql)).await.unwrap();
        row.get(0)
    };
    let me = session.id().to_string();
    let token = token.get();
    assert!(holds(&me, path, &key, token).await);
    assert!(!holds(&me, path, &key, token + 1).await);
    assert!(!holds("1", path, &key, token).await);
    assert!(!holds(&me, "tenure/1/default/queue/p", &key, token).await);
    assert!(!holds(&me, path, &format!("{path}#1:x:2"), token).await);
    assert!(!holds(&me, path, path, token).await);
    execute(&db, format!("SELECT tenure.terminate({me})")).await;
    got.lost().await;
    assert!(!holds(&me, path, &key, token).await);
}

#[tokio::test]
async fn who_lost_an_item_to_an_operator_hears_of_it() {
    let db = Database::new().await;
    let queue = queue(&db, Duration::from_millis(1500), "q").await;
    queue
        .enqueue_many(["a", "b"].map(Item::from))
        .await
        .unwrap();
    let (lost, kept) = (next(&queue).await, next(&queue).await);
    let member = lost.key().rsplit_once('#').unwrap().1.to_owned();
    execute(&db, format!("SELECT tenure.evict_delivery('{member}')")).await;
    within(PROMPT, "the loss", lost.lost()).await;
    assert!(kept.is_valid());
    expect(&queue, "a", 2).await;
    kept.ack().await.unwrap();
}

#[tokio::test]
async fn a_delay_wakes_who_waits_and_not_before() {
    let db = Database::new().await;
    let (here, there) = (queue(&db, TTL, "q").await, queue(&db, TTL, "q").await);
    here.enqueue("a").await.unwrap();
    let got = next(&here).await;
    let task = waiting(&db, &there, 1).await;
    let delay = Duration::from_millis(700);
    let at = Instant::now();
    got.nack_after(delay).await.unwrap();
    assert_eq!(here.depth().await.unwrap().delayed, 1);
    let back = within(PROMPT, "the delayed item", task)
        .await
        .unwrap()
        .unwrap();
    let took = at.elapsed();
    assert!(took >= delay, "{took:?}");
    assert!(took < delay + Duration::from_secs(1), "{took:?}");
    assert_eq!(back.count(), 2);
    // For longer than a timestamp can say: it is not there, and does no harm.
    back.nack_after(Duration::MAX).await.unwrap();
    assert!(there.try_dequeue().await.unwrap().is_none());
    assert_eq!(here.purge().await.unwrap(), 1);
    assert_eq!(db.number(ROWS).await, 0);
}

#[tokio::test]
async fn dead_letters_in_bulk_reach_those_who_wait_for_them() {
    const ITEMS: usize = 70;
    let db = Database::new().await;
    let session = db.session(TTL).await;
    let plain = session.queue("tried").unwrap();
    for first in (0..ITEMS).step_by(14) {
        let items = (first..first + 14).map(|number| Item::new(format!("{number:02}")));
        plain.enqueue_many(items).await.unwrap();
    }
    let mut tried = Vec::new();
    while tried.len() < ITEMS {
        tried.extend(plain.dequeue_many(32).await.unwrap());
    }
    for delivery in tried {
        delivery.nack().await.unwrap();
    }
    plain.enqueue(Item::new("good").priority(1)).await.unwrap();
    let graves = queue(&db, TTL, "graves").await;
    let mourner = waiting(&db, &graves, 1).await;
    let strict = plain.clone().dead_letters(1, "graves").unwrap();
    expect(&strict, "good", 1).await;
    let first = within(PROMPT, "a dead letter", mourner)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((text(&first), first.count()), ("00", 1));
    first.ack().await.unwrap();
    for number in 1..ITEMS {
        expect(&graves, &format!("{number:02}"), 1).await;
    }
    assert_eq!(db.number(ROWS).await, 0);
}

/// Two queues that are each other's graves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_both_ways_do_not_block() {
    let db = Database::new().await;
    let mut tasks = Vec::new();
    let done = Arc::new(AtomicUsize::new(0));
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")] {
        let plain = queue(&db, TTL, from).await;
        let strict = plain.clone().dead_letters(1, to).unwrap();
        let done = Arc::clone(&done);
        tasks.push(tokio::spawn(async move {
            for round in 0..40 {
                plain.enqueue(format!("{round}")).await.unwrap();
                if let Some(got) = plain.try_dequeue().await.unwrap() {
                    got.nack().await.unwrap();
                }
                if let Some(got) = strict.try_dequeue().await.unwrap() {
                    got.ack().await.unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                }
            }
        }));
    }
    for task in tasks {
        within(Duration::from_secs(60), "the rounds", task)
            .await
            .unwrap();
    }
    let left = queue(&db, TTL, "a").await.len().await.unwrap()
        + queue(&db, TTL, "b").await.len().await.unwrap();
    assert_eq!(left as usize + done.load(Ordering::SeqCst), 160);
}

/// Polls `future` so often, then drops it. Whether it ended before.
async fn drop_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut polled = 0;
    std::future::poll_fn(move |context| {
        let poll = future.as_mut().poll(context);
        polled += 1;
        match poll {
            std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
            std::task::Poll::Pending if polled > polls => std::task::Poll::Ready(None),
            std::task::Poll::Pending => std::task::Poll::Pending,
        }
    })
    .await
}

#[tokio::test]
async fn dropped_at_any_point_nothing_is_lost() {
    let db = Database::new().await;
    let (here, there) = (queue(&db, TTL, "q").await, queue(&db, TTL, "q").await);
    let large = "x".repeat(20_000);
    there.enqueue(&*large).await.unwrap();
    let mut count = 0;
    for polls in 0..12 {
        // Also the value that is fetched by itself.
        if let Some(got) = drop_after(polls, here.dequeue()).await {
            drop(got.unwrap());
            count += 1;
        }
        let back = next(&there).await;
        count += 1;
        assert_eq!((back.value().len(), back.count()), (large.len(), count));
        back.nack().await.unwrap();
        if let Some(got) = drop_after(polls, here.try_dequeue()).await {
            count += u32::from(got.unwrap().is_some());
        }
        // An acknowledgement and a nack go on in the background.
        let got = next(&there).await;
        count += 1;
        assert_eq!(got.count(), count);
        let _ = drop_after(polls, got.nack()).await;
    }
    let got = next(&there).await;
    let _ = drop_after(1, got.ack()).await;
    db.until(ROWS, 0).await;
    // Of an empty queue.
    for polls in 0..4 {
        let limit = Duration::from_millis(20);
        let _ = tokio::time::timeout(limit, drop_after(polls, here.dequeue())).await;
        there.enqueue("a").await.unwrap();
        expect(&there, "a", 1).await;
    }
    db.until(WAITS, 0).await;
    // An enqueue that was polled is brought to its end, once.
    for polls in 0..4 {
        let _ = drop_after(polls, here.enqueue("b")).await;
        expect(&there, "b", 1).await;
    }
    db.until(ROWS, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_dropped_at_random_lose_nothing() {
    const ITEMS: usize = 150;
    let db = Database::new().await;
    let sessions = [db.session(TTL).await, db.session(TTL).await];
    let done = Arc::new(Mutex::new(HashMap::<String, u32>::new()));
    let mut tasks = Vec::new();
    for number in 0..8_u64 {
        let queue = sessions[number as usize % 2].queue("q").unwrap();
        let done = Arc::clone(&done);
        tasks.push(tokio::spawn(async move {
            let mut seed = number + 1;
            while done.lock().unwrap().len() < ITEMS {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(number);
                // From hardly any time to plenty, however busy the machine is.
                let limit = Duration::from_micros(1 << (seed >> 33 & 0xf)) * 16;
                let Ok(got) = tokio::time::timeout(limit, queue.dequeue()).await else {
                    continue;
                };
                let got = got.unwrap();
                match seed >> 50 & 3 {
                    0 => drop(got),
                    1 => got.nack().await.unwrap(),
                    _ => {
                        let value = text(&got).to_owned();
                        got.ack().await.unwrap();
                        *done.lock().unwrap().entry(value).or_default() += 1;
                    }
                }
            }
        }));
    }
    let producer = queue(&db, TTL, "q").await;
    for number in 0..ITEMS {
        producer.enqueue(format!("{number}")).await.unwrap();
    }
    for task in tasks {
        within(Duration::from_secs(60), "the consumers", task)
            .await
            .unwrap();
    }
    assert!(done.lock().unwrap().values().all(|times| *times == 1));
    db.until(ROWS, 0).await;
}

#[tokio::test]
async fn what_is_over_is_swept() {
    let db = Database::new().await;
    let session = db.session(TTL).await;
    let queue = session.queue("q").unwrap();
    queue.enqueue("a").await.unwrap();
    expect(&queue, "a", 1).await;
    let task = waiting(&db, &queue, 1).await;
    task.abort();
    db.until(WAITS, 0).await;
    let old = "UPDATE tenure.queues SET looked = looked - interval '1 hour'";
    let sweep = async || {
        execute(&db, old.to_owned()).await;
        // It begins anywhere.
        for _ in 0..20 {
            execute(&db, "SELECT tenure.queue_collect(0)".to_owned()).await;
        }
        db.number("SELECT count(*) FROM tenure.queues").await
    };
    // A consumer that lives keeps no emptied queue, and is known again in the queue that takes its name.
    assert_eq!(sweep().await, 0);
    queue.enqueue("of a consumer").await.unwrap();
    let held = next(&queue).await;
    assert_eq!(sweep().await, 1);
    let other = db.session(TTL).await;
    session.close().await.unwrap();
    assert_eq!(held.lost().await, LossReason::Closed);
    expect(&other.queue("q").unwrap(), "of a consumer", 2).await;
    assert_eq!(sweep().await, 0);
    let again = other.queue("q").unwrap();
    again.enqueue("b").await.unwrap();
    assert_eq!(sweep().await, 1);
    assert_eq!(again.purge().await.unwrap(), 1);
    assert_eq!(sweep().await, 0);
    // And it can be used again.
    again.enqueue("c").await.unwrap();
    expect(&again, "c", 1).await;
}

fn config(server: &PostgresServer) -> PostgresConfig {
    let url = server.url() + "?sslmode=disable";
    PostgresConfig::from_url(tenure_core::backend::StoreUrl::parse(&url).unwrap()).unwrap()
}

async fn open(server: &PostgresServer) -> Session<PostgresSession> {
    let store = tenure_postgres::connect(config(server)).await.unwrap();
    store.open(SessionOptions::new().ttl(TTL)).await.unwrap()
}

/// A crash of the server: items, their order, their ids and their counts are there afterwards.
#[tokio::test]
async fn items_and_ids_outlive_a_crash_of_the_server() {
    let mut server = PostgresServer::start_async().await.unwrap();
    let session = open(&server).await;
    let queue = session.queue("kept").unwrap();
    let known = || Item::new("done").id("known").unwrap();
    queue.enqueue(known()).await.unwrap();
    let got = queue.dequeue().await.unwrap();
    let last = got.token();
    got.ack().await.unwrap();
    let mut accepted = Vec::new();
    for number in 0..40_u16 {
        let value = format!("{number:02}");
        let item = Item::new(&value).priority(number % 3);
        queue.enqueue(item.id(&value).unwrap()).await.unwrap();
        accepted.push((number % 3, value));
    }
    accepted.sort();
    // One is with a consumer for long enough that the server has it on disk, and one is delayed.
    let held = queue.dequeue().await.unwrap();
    let delayed = queue.dequeue().await.unwrap();
    assert_eq!((text(&held), text(&delayed)), ("00", "03"));
    delayed.nack_after(Duration::from_secs(3600)).await.unwrap();
    accepted.remove(1);
    let counted = 1; // of `held`: written to disk before the delay was
    server.kill().unwrap();
    server.restart_async().await.unwrap();
    let session = open(&server).await;
    let queue = session.queue("kept").unwrap();
    queue.enqueue(known()).await.unwrap();
    queue
        .enqueue(Item::new("again").id("39").unwrap())
        .await
        .unwrap();
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.delayed), (39, 0, 1));
    for (priority, value) in accepted {
        let got = within(PROMPT, "an item", queue.dequeue()).await.unwrap();
        assert_eq!((text(&got), got.priority()), (&*value, priority));
        assert_eq!(got.count(), if value == "00" { counted + 1 } else { 1 });
        assert!(got.token() > last.max(held.token()));
        got.ack().await.unwrap();
    }
    assert_eq!(held.ack().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(queue.purge().await.unwrap(), 1);
    assert_eq!(queue.len().await.unwrap(), 0);
}

/// An acknowledged enqueue is there after a crash that comes right then; an acknowledged item is not.
#[tokio::test]
async fn what_was_answered_is_on_disk() {
    let mut server = PostgresServer::start_async().await.unwrap();
    for round in 0..4 {
        let session = open(&server).await;
        let queue = session.queue("kept").unwrap();
        let left: Vec<_> = within(PROMPT, "the items", async {
            let mut left = Vec::new();
            while let Some(got) = queue.try_dequeue().await.unwrap() {
                left.push(text(&got).to_owned());
                got.ack().await.unwrap();
            }
            left
        })
        .await;
        if round > 0 {
            assert_eq!(left, [format!("{}", round - 1)]);
        }
        queue.enqueue(format!("{round}")).await.unwrap();
        server.kill().unwrap();
        server.restart_async().await.unwrap();
    }
}

fn holder(db: &Database) -> Holder {
    let url = support::server().url_of(&db.name) + "?sslmode=disable";
    Holder::open(&url, Duration::from_secs(2)).unwrap()
}

/// Until a consumer has written down a delivery, and not its end.
fn at_work(file: &std::path::Path) {
    for _ in 0..1000 {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if text.lines().count() == 1 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("nobody at work");
}

/// A consumer in a process of its own, ended or stopped by a signal.
async fn without_a_word(signal: fn(&mut Holder)) {
    let db = Database::new().await;
    let queue = queue(&db, TTL, "jobs").await;
    queue.enqueue("a").await.unwrap();
    queue.enqueue("b").await.unwrap();
    let file = std::env::temp_dir().join(format!("tenure-{}-{}", std::process::id(), db.name));
    let path = file.clone();
    let mut consumer = tokio::task::spawn_blocking({
        let name = db.name.clone();
        move || {
            let mut consumer = holder(&Database { name });
            let work = Duration::from_secs(60);
            consumer.begin_consume("jobs", work, &path).unwrap();
            at_work(&path);
            consumer
        }
    })
    .await
    .unwrap();
    expect(&queue, "b", 1).await;
    let task = waiting(&db, &queue, 1).await;
    let at = Instant::now();
    signal(&mut consumer);
    // Its TTL, and what it takes to notice.
    let back = within(Duration::from_secs(2) + LATE, "the return", task);
    let back = back.await.unwrap().unwrap();
    println!("back after {:?}", at.elapsed());
    assert_eq!((text(&back), back.count()), ("a", 2));
    back.ack().await.unwrap();
    let _ = consumer.kill();
    let _ = std::fs::remove_file(file);
    db.until(CLAIMS, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_consumers_item_comes_back() {
    without_a_word(|consumer| consumer.kill().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_consumers_item_comes_back() {
    without_a_word(|consumer| consumer.pause().unwrap()).await;
}

/// After a failover to a standby that lagged, the same place may be another item's.
#[tokio::test]
async fn a_value_is_read_only_for_who_has_the_item() {
    let db = Database::new().await;
    let queue = queue(&db, TTL, "q").await;
    queue.enqueue(vec![7; 100_000]).await.unwrap();
    let delivery = next(&queue).await;
    assert_eq!(delivery.value().len(), 100_000);
    let read = async |less: u64| {
        let token = delivery.token().get() - less;
        let read = format!(
            "SELECT octet_length(tenure.queue_value(queue, priority, number, {token})) FROM tenure.queue_items"
        );
        let mut sql = db.sql().await;
        let row = sql.fetch_one(AssertSqlSafe(read)).await.unwrap();
        row.get::<Option<i32>, _>(0)
    };
    assert_eq!(read(0).await, Some(100_000));
    assert_eq!(read(1).await, None);
}

#[tokio::test]
async fn values_that_are_too_large_for_a_take_come_in_one_read() {
    let db = Database::new().await;
    let name = &db.name;
    server()
        .sql(format!("ALTER DATABASE {name} SET track_functions = 'all'"))
        .unwrap();
    let session = db.session(TTL).await;
    let queue = session.queue("q").unwrap();
    let value = |n: u8| vec![n; 1024];
    queue
        .enqueue_many((0..32).map(|n| Item::new(value(n))))
        .await
        .unwrap();
    let taken = queue.dequeue_many(32).await.unwrap();
    let values: Vec<_> = taken.iter().map(|it| it.value().to_vec()).collect();
    assert_eq!(values, (0..32).map(value).collect::<Vec<_>>());
    for delivery in taken {
        delivery.ack().await.unwrap();
    }
    session.close().await.unwrap();
    // Counted when a connection has been idle for a while.
    const READS: &str = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_user_functions WHERE funcname = 'queue_values'";
    db.until(READS, 1).await;
}
