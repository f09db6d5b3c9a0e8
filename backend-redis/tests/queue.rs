//! What the scripts of queues have to bear on a real Redis: consumers that die, scripts that are
//! forgotten, a memory that is full, more than fits into one step.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::time::{Duration, Instant};

use tenure_core::{Delivery, ErrorKind, Item, QueueHandle, Session, SessionOptions};
use tenure_redis::{MAX_BATCH_BYTES, RedisConfig, RedisQueue, RedisSession};
use tenure_testbed::RedisServer;

/// For whatever should take no time on a busy machine.
const PROMPT: Duration = Duration::from_secs(10);
const TTL: Duration = Duration::from_millis(1_500);
/// What a sweep or a timer may come later than a lease's end.
const BOUND: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(60);

async fn open(server: &RedisServer, ttl: Duration) -> Session<RedisSession> {
    let config = RedisConfig::new(server.address().to_string());
    let store = tenure_redis::connect(config).await.unwrap();
    store.open(SessionOptions::new().ttl(ttl)).await.unwrap()
}

async fn queue(server: &RedisServer, ttl: Duration, name: &str) -> QueueHandle<RedisQueue> {
    open(server, ttl).await.queue(name).unwrap()
}

async fn within<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    tokio::time::timeout(limit, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took longer than {limit:?}"))
}

fn text(delivery: &Delivery<RedisQueue>) -> &str {
    std::str::from_utf8(delivery.value()).unwrap()
}

type Waiting = tokio::task::JoinHandle<tenure_core::Result<Delivery<RedisQueue>>>;

/// A task that waits for an item, once it stands in line as number `number`.
async fn waiting(server: &RedisServer, queue: &QueueHandle<RedisQueue>, number: usize) -> Waiting {
    let (handle, name) = (queue.clone(), queue.name().to_string());
    let task = tokio::spawn(async move { handle.dequeue().await });
    until(|| in_line(server, &name) >= number).await;
    task
}

fn count(server: &RedisServer, command: &[&str]) -> usize {
    let answer = server.command(command).unwrap();
    let digits: String = answer.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

fn key(name: &str, part: &str) -> String {
    format!("{{tenure/1/default}}/queue/{name}/{part}")
}

fn in_line(server: &RedisServer, name: &str) -> usize {
    count(server, &["ZCARD", &key(name, "line")])
}

async fn until(mut holds: impl FnMut() -> bool) {
    within(PROMPT, "what was waited for", async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A client in a runtime of its own, which dies without a word.
struct Victim {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Victim {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        Self {
            runtime: Some(runtime.unwrap()),
        }
    }

    async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.as_ref().unwrap().spawn(work).await.unwrap()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

#[tokio::test]
async fn every_step_is_sent_again_to_a_redis_that_forgot_its_scripts() {
    let server = RedisServer::start_async().await.unwrap();
    let queue = queue(&server, LONG, "forgotten").await;
    let forget = || server.command(&["SCRIPT", "FLUSH"]).unwrap();
    forget();
    queue.enqueue("a").await.unwrap();
    forget();
    assert_eq!(queue.depth().await.unwrap().ready, 1);
    forget();
    let taken = queue.dequeue().await.unwrap();
    forget();
    taken.nack().await.unwrap();
    forget();
    let taken = queue.try_dequeue().await.unwrap().unwrap();
    assert_eq!(taken.count(), 2);
    forget();
    taken.ack().await.unwrap();
    forget();
    assert!(queue.peek().await.unwrap().is_none());
    queue.enqueue("b").await.unwrap();
    forget();
    assert_eq!(queue.purge().await.unwrap(), 1);
    let waiting = waiting(&server, &queue, 1).await;
    forget();
    waiting.abort();
    until(|| in_line(&server, "forgotten") == 0).await;
}

/// The one who waits behind joined when nobody had anything: it must hear that somebody has.
#[tokio::test]
async fn what_is_given_to_the_dying_comes_to_the_next() {
    let server = RedisServer::start_async().await.unwrap();
    let (victim, address) = (Victim::new(), server.address().to_string());
    let doomed = victim.run(async move {
        let store = tenure_redis::connect(RedisConfig::new(address))
            .await
            .unwrap();
        let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
        let queue = session.queue("dying").unwrap();
        let waiting = tokio::spawn(async move { queue.dequeue().await });
        (session, waiting)
    });
    let _doomed = doomed.await;
    until(|| in_line(&server, "dying") == 1).await;
    let living = queue(&server, LONG, "dying").await;
    let next = waiting(&server, &living, 2).await;
    let producer = queue(&server, LONG, "dying").await;
    drop(victim);
    let at = Instant::now();
    producer.enqueue("work").await.unwrap();
    let item = within(TTL + BOUND, "the item", next)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((text(&item), item.count()), ("work", 2));
    println!("after {:?}", at.elapsed());
    item.ack().await.unwrap();
}

/// Who keeps the time may die of it: another finds out.
#[tokio::test]
async fn a_dead_timekeeper_is_replaced() {
    let server = RedisServer::start_async().await.unwrap();
    let early = queue(&server, TTL, "time").await;
    early.enqueue("later").await.unwrap();
    let consumer = queue(&server, LONG, "time").await;
    let item = consumer.dequeue().await.unwrap();
    let first = waiting(&server, &early, 1).await;
    let (victim, address) = (Victim::new(), server.address().to_string());
    let doomed = victim.run(async move {
        let store = tenure_redis::connect(RedisConfig::new(address))
            .await
            .unwrap();
        let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
        let queue = session.queue("time").unwrap();
        let waiting = tokio::spawn(async move { queue.dequeue().await });
        (session, waiting)
    });
    let _doomed = doomed.await;
    until(|| in_line(&server, "time") == 2).await;
    drop(victim);
    // Longer than the first sleeps in any case.
    let delay = TTL * 2;
    item.nack_after(delay).await.unwrap();
    let item = within(delay + BOUND, "the delayed item", first);
    let item = item.await.unwrap().unwrap();
    assert_eq!((text(&item), item.count()), ("later", 2));
    item.ack().await.unwrap();
}

/// More than one step puts back.
#[tokio::test]
async fn much_comes_back_in_order() {
    const ITEMS: usize = 230;
    let server = RedisServer::start_async().await.unwrap();
    let queue = queue(&server, LONG, "much").await;
    let fill = async || {
        for first in (0..ITEMS).step_by(23) {
            let items = (first..first + 23).map(|number| Item::new(format!("{number:03}")));
            queue.enqueue_many(items).await.unwrap();
        }
    };
    let drain = async |count: u32| {
        let mut seen = Vec::new();
        while seen.len() < ITEMS {
            let some = within(PROMPT, "items", queue.dequeue_many(32));
            for delivery in some.await.unwrap() {
                assert_eq!(delivery.count(), count);
                seen.push(text(&delivery).to_owned());
                delivery.ack().await.unwrap();
            }
        }
        assert!(seen.is_sorted(), "{seen:?}");
        assert_eq!(queue.len().await.unwrap(), 0);
    };
    let hoard = async |session: &Session<RedisSession>| {
        let mine = session.queue("much").unwrap();
        let mut hoarded = Vec::new();
        while hoarded.len() < ITEMS {
            hoarded.extend(mine.dequeue_many(32).await.unwrap());
        }
        hoarded
    };
    // A session that is closed.
    fill().await;
    let session = open(&server, LONG).await;
    let hoarded = hoard(&session).await;
    assert_eq!(queue.depth().await.unwrap().in_flight, ITEMS as u64);
    session.close().await.unwrap();
    drain(2).await;
    drop(hoarded);
    // One that is revoked behind its back: nobody but the next consumer puts anything back.
    fill().await;
    let session = open(&server, TTL).await;
    let hoarded = hoard(&session).await;
    std::mem::forget(hoarded); // not even released
    let victim = format!("{{tenure/1/default}}/session/{}", session.id());
    std::mem::forget(session);
    server.command(&["DEL", &victim]).unwrap();
    tokio::time::sleep(TTL).await; // until when the lease would have ended
    drain(2).await;
    // A detached one: what it had means nothing without the work beside it.
    fill().await;
    let session = open(&server, LONG).await;
    let hoarded = hoard(&session).await;
    session.detach().await.unwrap();
    drain(2).await;
    drop(hoarded);
    // And one that gives each back.
    fill().await;
    let session = open(&server, LONG).await;
    drop(hoard(&session).await);
    until(|| count(&server, &["ZCARD", &key("much", "in_flight")]) == 0).await;
    drain(2).await;
    fill().await;
    assert_eq!(queue.purge().await.unwrap(), ITEMS as u64);
    session.close().await.unwrap();
    let left = server.command(&["KEYS", "*queue/*"]).unwrap();
    assert!(left.trim().is_empty(), "{left}");
}

#[tokio::test]
async fn many_wait_and_each_gets_one() {
    const WAITERS: usize = 150;
    let server = RedisServer::start_async().await.unwrap();
    let session = open(&server, LONG).await;
    let queue = session.queue("crowd").unwrap();
    let mut crowd = Vec::new();
    for _ in 0..WAITERS {
        let queue = queue.clone();
        crowd.push(tokio::spawn(async move { queue.dequeue().await }));
    }
    until(|| in_line(&server, "crowd") == WAITERS).await;
    let producer = open(&server, LONG).await.queue("crowd").unwrap();
    // All at once, beyond what one step hands out: those of a session that ends.
    let hoarder = open(&server, LONG).await;
    let elsewhere = hoarder.queue("crowd").unwrap();
    for first in (0..WAITERS).step_by(30) {
        let items = (first..first + 30).map(|number| Item::new(number.to_string()));
        producer.enqueue_many(items).await.unwrap();
    }
    let mut seen = Vec::new();
    for waiter in crowd {
        let delivery = within(PROMPT, "an item", waiter).await.unwrap().unwrap();
        seen.push(text(&delivery).parse::<usize>().unwrap());
        delivery.ack().await.unwrap();
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..WAITERS).collect::<Vec<_>>());
    assert!(elsewhere.try_dequeue().await.unwrap().is_none());
    assert_eq!(in_line(&server, "crowd"), 0);
}

#[tokio::test]
async fn a_full_memory_keeps_out_what_is_new_and_lets_the_rest_go() {
    let server = RedisServer::start_async().await.unwrap();
    let queue = queue(&server, LONG, "full").await;
    queue.enqueue("old").await.unwrap();
    queue.enqueue("older").await.unwrap();
    server
        .command(&["CONFIG", "SET", "maxmemory", "1"])
        .unwrap();
    let batch = ["new", "newer"].map(Item::from);
    let refused = within(PROMPT, "enqueue", queue.enqueue_many(batch)).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
    let item = within(PROMPT, "dequeue", queue.dequeue()).await.unwrap();
    assert_eq!(text(&item), "old");
    within(PROMPT, "ack", item.ack()).await.unwrap();
    let item = within(PROMPT, "dequeue", queue.dequeue()).await.unwrap();
    within(PROMPT, "nack", item.nack()).await.unwrap();
    assert_eq!(queue.len().await.unwrap(), 1);
    server
        .command(&["CONFIG", "SET", "maxmemory", "0"])
        .unwrap();
    queue.enqueue("new").await.unwrap();
    let item = queue.dequeue().await.unwrap();
    assert_eq!((text(&item), item.count()), ("older", 2));
    item.ack().await.unwrap();
    assert_eq!(text(&queue.dequeue().await.unwrap()), "new");
}

#[tokio::test]
async fn large_items_and_their_limits() {
    let server = RedisServer::start_async().await.unwrap();
    let queue = queue(&server, LONG, "large").await;
    let large: Vec<u8> = (0..1024 * 1024_u32).map(|at| (at % 251) as u8).collect();
    let batch = |count| (0..count).map(|_| Item::new(&large)).collect::<Vec<_>>();
    assert_eq!(MAX_BATCH_BYTES, 2 * large.len());
    let error = queue.enqueue_many(batch(3)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(queue.len().await.unwrap(), 0);
    queue.enqueue_many(batch(2)).await.unwrap();
    queue.enqueue(large.as_slice()).await.unwrap();
    queue.enqueue("small").await.unwrap();
    // No more than fits, and never none.
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let some = queue.dequeue_many(32).await.unwrap();
        let bytes: usize = some.iter().map(|item| item.value().len()).sum();
        assert!(bytes <= MAX_BATCH_BYTES);
        for item in some {
            seen.push(item.value().to_vec());
            item.ack().await.unwrap();
        }
    }
    assert_eq!(seen[..3], vec![large; 3]);
    assert_eq!(seen[3], b"small");
}

#[tokio::test]
async fn who_lost_an_item_to_an_operator_hears_of_it() {
    let server = RedisServer::start_async().await.unwrap();
    let queue = queue(&server, TTL, "watched").await;
    queue
        .enqueue_many(["a", "b"].map(Item::from))
        .await
        .unwrap();
    let (lost, kept) = (
        queue.dequeue().await.unwrap(),
        queue.dequeue().await.unwrap(),
    );
    let (hash, place) = lost.key().rsplit_once('#').unwrap();
    server.command(&["HDEL", hash, place]).unwrap();
    within(PROMPT, "the loss", lost.lost()).await;
    assert!(kept.is_valid());
    let again = within(PROMPT, "its return", queue.dequeue()).await.unwrap();
    assert_eq!((text(&again), again.count()), ("a", 2));
    assert_eq!(lost.ack().await.unwrap_err().kind(), ErrorKind::Lost);
    again.ack().await.unwrap();
    kept.ack().await.unwrap();
}

#[tokio::test]
async fn dead_letters_in_bulk_reach_those_who_wait_for_them() {
    const ITEMS: usize = 90;
    let server = RedisServer::start_async().await.unwrap();
    let session = open(&server, LONG).await;
    let plain = session.queue("tried").unwrap();
    for first in (0..ITEMS).step_by(30) {
        let items = (first..first + 30).map(|number| Item::new(format!("{number:02}")));
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
    let graves = open(&server, LONG).await.queue("graves").unwrap();
    let mourner = waiting(&server, &graves, 1).await;
    let strict = plain.clone().dead_letters(1, "graves").unwrap();
    let good = within(PROMPT, "the good one", strict.dequeue())
        .await
        .unwrap();
    assert_eq!((text(&good), good.count()), ("good", 1));
    good.ack().await.unwrap();
    let first = within(PROMPT, "a dead letter", mourner).await.unwrap();
    let first = first.unwrap();
    assert_eq!((text(&first), first.count()), ("00", 1));
    first.ack().await.unwrap();
    assert_eq!(plain.len().await.unwrap(), 0);
    for number in 1..ITEMS {
        let next = graves.dequeue().await.unwrap();
        assert_eq!(text(&next), format!("{number:02}"));
        next.ack().await.unwrap();
    }
}
