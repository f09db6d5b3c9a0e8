//! Queues under paused time: leases that end, delays, order, lost answers (rules Q1 to Q6).

#![allow(clippy::unwrap_used, reason = "a test ends with it")]

mod support;

use support::*;
use tenure_core::{ErrorKind, ID_MEMORY, Item, QueueHandle};
use tenure_memory::Fault;
use tokio::time::Instant;

type Queue = QueueHandle;

async fn put(queue: &Queue, values: &[&str]) {
    for value in values {
        queue.enqueue(*value).await.unwrap();
    }
}

/// Takes and acknowledges everything that is there: values and counts.
async fn drain(queue: &Queue) -> Vec<(String, u32)> {
    let mut seen = Vec::new();
    while let Some(delivery) = queue.try_dequeue().await.unwrap() {
        let value = String::from_utf8(delivery.value().to_vec()).unwrap();
        seen.push((value, delivery.count()));
        delivery.ack().await.unwrap();
    }
    seen
}

fn due(items: &[(&str, u32)]) -> Vec<(String, u32)> {
    let owned = |(value, count): &(&str, u32)| ((*value).to_owned(), *count);
    items.iter().map(owned).collect()
}

#[tokio::test(start_paused = true)]
async fn a_dead_consumers_items_reach_one_who_waits_when_the_lease_ends() {
    let store = store();
    let dead = another(&store);
    let (a, b) = (open(&dead).await, open(&store).await);
    let (here, there) = (a.queue("x").unwrap(), b.queue("x").unwrap());
    put(&there, &["first", "second"]).await;
    let taken = here.dequeue_many(5).await.unwrap();
    assert_eq!(taken.len(), 2);
    let start = Instant::now();
    dead.backend().link().silence();
    let back = there.dequeue().await.unwrap();
    assert_eq!((back.value(), back.count()), (&b"first"[..], 2));
    assert!(start.elapsed() > TTL / 2 && start.elapsed() <= TTL + secs(1));
    assert!(taken.iter().all(|delivery| !delivery.is_valid()));
    back.ack().await.unwrap();
    assert_eq!(drain(&there).await, due(&[("second", 2)]));
}

#[tokio::test(start_paused = true)]
async fn a_delay_ends_for_the_first_who_waits() {
    let store = store();
    let session = open(&store).await;
    let queue = session.queue("x").unwrap();
    put(&queue, &["a"]).await;
    let waiting: Vec<_> = {
        let delivery = queue.dequeue().await.unwrap();
        let wait = |queue: Queue| tokio::spawn(async move { queue.dequeue().await });
        let waiting = (0..3).map(|_| wait(queue.clone())).collect();
        until("all wait", || store.backend().footprint().waits == 3).await;
        delivery.nack_after(secs(100)).await.unwrap();
        waiting
    };
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.delayed), (0, 0, 1));
    assert!(queue.peek().await.unwrap().is_none());
    let start = Instant::now();
    tokio::time::sleep(secs(99)).await;
    assert!(waiting.iter().all(|task| !task.is_finished()));
    until("one is served", || {
        waiting.iter().any(|task| task.is_finished())
    })
    .await;
    assert!(start.elapsed() >= secs(100) && start.elapsed() < secs(101));
    assert_eq!(store.backend().footprint().waits, 2);
    waiting.iter().for_each(|task| task.abort());
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_served_as_they_came() {
    let store = store();
    let sessions = [open(&store).await, open(&another(&store)).await];
    let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for number in 0..6 {
        let queue = sessions[number % 2].queue("x").unwrap();
        let order = std::sync::Arc::clone(&order);
        tasks.push(tokio::spawn(async move {
            let delivery = queue.dequeue().await.unwrap();
            order
                .lock()
                .unwrap()
                .push((number, delivery.value().to_vec()));
            delivery.ack().await.unwrap();
        }));
        until("it waits", || {
            store.backend().footprint().waits == number + 1
        })
        .await;
    }
    let queue = sessions[0].queue("x").unwrap();
    for number in 0..6 {
        queue.enqueue(format!("{number}")).await.unwrap();
        until("one is served", || {
            store.backend().footprint().waits == 5 - number
        })
        .await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    let mut order = order.lock().unwrap().clone();
    order.sort();
    for (number, value) in order {
        assert_eq!(value, format!("{number}").into_bytes());
    }
    assert_eq!(store.backend().footprint().items, 0);
}

#[tokio::test(start_paused = true)]
async fn an_enqueue_is_one_item_however_its_requests_fare() {
    for fault in [Fault::AnswersLost, Fault::RequestsLost, Fault::RequestsLate] {
        let store = store();
        let away = another(&store);
        let (producing, seeing) = (open(&away).await, open(&store).await);
        let (producing, seeing) = (producing.queue("x").unwrap(), seeing.queue("x").unwrap());
        let link = away.backend().link();
        link.inject_once(fault);
        link.inject_once(Fault::AnswersLost);
        producing.enqueue("once").await.unwrap();
        assert_eq!(drain(&seeing).await, due(&[("once", 1)]), "{fault:?}");
        link.heal();
        assert_eq!(drain(&seeing).await, due(&[]), "{fault:?}, late");
        producing.enqueue("again").await.unwrap();
        assert_eq!(drain(&seeing).await, due(&[("again", 1)]), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_take_is_one_take_however_its_requests_fare() {
    for fault in [Fault::AnswersLost, Fault::RequestsLost, Fault::RequestsLate] {
        let store = store();
        let away = another(&store);
        let (consuming, other) = (open(&away).await, open(&store).await);
        let (consuming, other) = (consuming.queue("x").unwrap(), other.queue("x").unwrap());
        put(&other, &["a", "b"]).await;
        let link = away.backend().link();
        link.inject_once(fault);
        link.inject_once(Fault::AnswersLost);
        let delivery = consuming.dequeue().await.unwrap();
        assert_eq!(
            (delivery.value(), delivery.count()),
            (&b"a"[..], 1),
            "{fault:?}"
        );
        delivery.ack().await.unwrap();
        link.heal();
        assert_eq!(drain(&other).await, due(&[("b", 1)]), "{fault:?}");
        until_no_ghost(store.backend()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn ids_are_remembered_for_as_long_as_is_said() {
    let store = store();
    let session = open(&store).await;
    let queue = session.queue("x").unwrap();
    let item = || Item::new("a").id("one").unwrap();
    queue.enqueue(item()).await.unwrap();
    tokio::time::sleep(2 * ID_MEMORY).await;
    queue.enqueue(item()).await.unwrap();
    assert_eq!(drain(&queue).await, due(&[("a", 1)]));
    tokio::time::sleep(ID_MEMORY - secs(1)).await;
    queue.enqueue(item()).await.unwrap();
    assert_eq!(drain(&queue).await, due(&[]));
    tokio::time::sleep(secs(2)).await;
    queue.enqueue(item()).await.unwrap();
    assert_eq!(drain(&queue).await, due(&[("a", 1)]));
}

/// Nothing is asked of the queues that were emptied: any step of the store forgets what it may.
#[tokio::test(start_paused = true)]
async fn ids_of_emptied_queues_are_counted_and_expire_by_themselves() {
    const QUEUES: usize = 15_000;
    let store = store();
    let session = open(&store).await;
    for number in 0..QUEUES {
        let queue = session.queue(format!("emptied {number}")).unwrap();
        let item = Item::new("a").id("one").unwrap();
        queue.enqueue(item).await.unwrap();
        queue.pop().await.unwrap();
    }
    // Still in use: its id outlives the others.
    let kept = session.queue("kept").unwrap();
    let item = || Item::new("a").id("one").unwrap();
    kept.enqueue(item()).await.unwrap();
    assert_eq!(store.backend().footprint().ids, QUEUES + 1);
    tokio::time::sleep(ID_MEMORY + secs(1)).await;
    assert_eq!(store.backend().footprint().ids, 1);
    kept.enqueue(item()).await.unwrap();
    assert_eq!(drain(&kept).await, due(&[("a", 1)]));
    tokio::time::sleep(ID_MEMORY + secs(1)).await;
    assert_eq!(store.backend().footprint().ids, 0);
}

#[tokio::test(start_paused = true)]
async fn dead_letters_may_go_round_in_a_circle() {
    let store = store();
    let session = open(&store).await;
    let here = session
        .queue("here")
        .unwrap()
        .dead_letters(1, "there")
        .unwrap();
    let there = session
        .queue("there")
        .unwrap()
        .dead_letters(1, "here")
        .unwrap();
    put(&here, &["a"]).await;
    for round in 0..3 {
        here.dequeue().await.unwrap().nack().await.unwrap();
        assert!(here.try_dequeue().await.unwrap().is_none(), "round {round}");
        there.dequeue().await.unwrap().nack().await.unwrap();
        assert!(
            there.try_dequeue().await.unwrap().is_none(),
            "round {round}"
        );
    }
    assert_eq!(drain(&here).await, due(&[("a", 1)]));
    let refused = session
        .queue("here")
        .unwrap()
        .dead_letters(1, "here")
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
}

#[tokio::test(start_paused = true)]
async fn a_detached_session_gives_its_deliveries_back() {
    let store = store();
    let (leaving, other) = (open(&store).await, open(&store).await);
    let there = other.queue("x").unwrap();
    put(&there, &["a"]).await;
    let delivery = leaving.queue("x").unwrap().dequeue().await.unwrap();
    leaving.detach().await.unwrap();
    assert_eq!(drain(&there).await, due(&[("a", 2)]));
    let late = delivery.ack().await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Lost);
}

#[tokio::test(start_paused = true)]
async fn a_delay_without_end_is_a_long_one() {
    let store = store();
    let session = open(&store).await;
    let queue = session.queue("x").unwrap();
    put(&queue, &["a"]).await;
    let delivery = queue.dequeue().await.unwrap();
    delivery.nack_after(std::time::Duration::MAX).await.unwrap();
    assert_eq!(queue.depth().await.unwrap().delayed, 1);
    let waited = queue.dequeue_timeout(secs(5)).await;
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::TimedOut);
    put(&queue, &["b"]).await;
    let next = queue.dequeue().await.unwrap();
    assert_eq!((next.value(), next.count()), (&b"b"[..], 1));
    next.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_operator_sees_and_removes_items() {
    let store = store();
    let session = open(&store).await;
    let queue = session.queue("work").unwrap();
    put(&queue, &["a", "b", "c"]).await;
    let taken = queue.dequeue().await.unwrap();
    let keys = store.backend().keys();
    assert_eq!(keys.len(), 3, "{keys:?}");
    assert!(keys.contains(&taken.key().to_owned()), "{keys:?}");
    let items: Vec<_> = keys.iter().filter(|key| *key != taken.key()).collect();
    assert!(items[0].ends_with("/queue/work/item/0/2"), "{items:?}");
    assert!(store.backend().delete(items[0]));
    assert!(!store.backend().delete(items[0]), "twice");
    taken.ack().await.unwrap();
    assert_eq!(drain(&queue).await, due(&[("c", 1)]));
    assert_eq!(store.backend().keys(), Vec::<String>::new());
}
