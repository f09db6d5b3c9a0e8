//! Queues: what only etcd can get wrong. The rules themselves are the conformance suite's.

use std::future::Future;
use std::task::Poll;
use std::time::Duration;

use tenure_core::{ErrorKind, Item, MAX_BATCH, MAX_VALUE_BYTES, QueueHandle};
use tenure_etcd::{EtcdConfig, EtcdQueue};
use tenure_testbed::{Direction, Flow, Proxy};

use crate::common::*;

fn text(value: &[u8]) -> String {
    String::from_utf8(value.to_vec()).unwrap()
}

async fn queue(bed: &Bed, name: &str) -> QueueHandle<EtcdQueue> {
    bed.session(secs(30)).await.queue(name).unwrap()
}

/// What a request of a queue has in it.
fn pattern(bed: &Bed) -> Vec<u8> {
    format!("{}/queue/x/", bed.root()).into_bytes()
}

/// Takes and acknowledges everything that is there: values and counts.
async fn drain(queue: &QueueHandle<EtcdQueue>) -> Vec<(String, u32)> {
    let mut seen = Vec::new();
    while let Some(delivery) = queue.try_dequeue().await.unwrap() {
        seen.push((text(delivery.value()), delivery.count()));
        delivery.ack().await.unwrap();
    }
    seen
}

#[tokio::test]
async fn an_enqueue_whose_answer_is_lost_is_one_item() {
    let bed = Bed::new("enqueue").await;
    let seeing = queue(&bed, "x").await;
    for round in 0..5 {
        let proxy = Proxy::start(bed.address).unwrap();
        let store = connect(bed.through(proxy.address()).timeout(ms(400))).await;
        let producing = open(&store, secs(20)).await.queue("x").unwrap();
        producing.enqueue("before").await.unwrap();
        let dropped = proxy.when(Direction::Up, pattern(&bed), Direction::Down, Flow::Drop);
        let enqueueing = tokio::spawn(async move { producing.enqueue("lost").await });
        eventually("the request passed", SOON, async || dropped.has_fired()).await;
        // In half of the rounds others are faster than the repetition, and take the item away.
        let mut seen = Vec::new();
        if round % 2 == 0 {
            eventually("it landed", SOON, async || seeing.len().await.unwrap() == 2).await;
            seen = drain(&seeing).await;
            seeing.enqueue("after").await.unwrap();
        }
        proxy.cut();
        proxy.heal();
        within(SOON, "accepted", enqueueing).await.unwrap().unwrap();
        seen.extend(drain(&seeing).await);
        seen.retain(|(value, _)| value != "after");
        let due = [("before".to_owned(), 1), ("lost".to_owned(), 1)];
        assert_eq!(seen, due, "round {round}");
    }
}

/// A request is held back by the network, repeated over another connection, and then arrives.
#[tokio::test]
async fn an_enqueue_that_arrives_late_is_not_a_second_item() {
    let bed = Bed::new("late-enqueue").await;
    let seeing = queue(&bed, "x").await;
    for _ in 0..5 {
        let proxies = [(); 2].map(|()| Proxy::start(bed.address).unwrap());
        let config = EtcdConfig::new(proxies.iter().map(|proxy| proxy.address().to_string()))
            .starting_at(0)
            .namespace(bed.namespace.clone())
            .timeout(ms(500));
        let producing = open(&connect(config).await, secs(30)).await;
        let producing = producing.queue("x").unwrap();
        producing.enqueue("before").await.unwrap();
        let held = proxies[0].when(Direction::Up, pattern(&bed), Direction::Up, Flow::Hold);
        within(SOON, "accepted", producing.enqueue("held"))
            .await
            .unwrap();
        assert!(held.has_fired());
        assert_eq!(drain(&seeing).await.len(), 2);
        let passed = proxies[0].bytes(Direction::Up);
        proxies[0].heal();
        eventually("what was held arrives", SOON, async || {
            proxies[0].bytes(Direction::Up) > passed
        })
        .await;
        tokio::time::sleep(ms(100)).await;
        assert_eq!(seeing.len().await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_claim_whose_answer_is_lost_is_found_or_given_back() {
    let bed = Bed::new("claim").await;
    let other = queue(&bed, "x").await;
    for round in 0..6 {
        let proxy = Proxy::start(bed.address).unwrap();
        let store = connect(bed.through(proxy.address()).timeout(ms(400))).await;
        let session = open(&store, secs(20)).await;
        let consuming = session.queue("x").unwrap();
        other.enqueue("first").await.unwrap();
        let first = within(SOON, "delivered", consuming.dequeue())
            .await
            .unwrap();
        first.ack().await.unwrap();
        other.enqueue("work").await.unwrap();
        // The view has heard of it, so that the next request is the claim.
        tokio::time::sleep(ms(50)).await;
        let dropped = proxy.when(Direction::Up, pattern(&bed), Direction::Down, Flow::Drop);
        let claims = async || other.depth().await.unwrap().in_flight == 1;
        let waiting = tokio::spawn(async move { consuming.dequeue().await });
        eventually("the request passed", SOON, async || dropped.has_fired()).await;
        eventually("it landed", SOON, claims).await;
        if round % 2 == 0 {
            waiting.abort();
            let _ = waiting.await;
            proxy.cut();
            proxy.heal();
        } else {
            proxy.cut();
            proxy.heal();
            let delivery = within(SOON, "delivered", waiting).await.unwrap().unwrap();
            assert_eq!(
                (text(delivery.value()), delivery.count()),
                ("work".into(), 1)
            );
            delivery.nack().await.unwrap();
        }
        let back = within(SOON, "given back", other.dequeue()).await.unwrap();
        let due = 1 + round % 2;
        assert_eq!((text(back.value()), back.count()), ("work".into(), due));
        back.ack().await.unwrap();
        session.close().await.unwrap();
    }
}

/// A claim is held back by the network, given back over another connection, and then arrives.
#[tokio::test]
async fn a_claim_that_arrives_late_finds_the_fence() {
    let bed = Bed::new("late-claim").await;
    let other = queue(&bed, "x").await;
    for _ in 0..6 {
        let proxies = [(); 2].map(|()| Proxy::start(bed.address).unwrap());
        let config = EtcdConfig::new(proxies.iter().map(|proxy| proxy.address().to_string()))
            .starting_at(0)
            .namespace(bed.namespace.clone())
            .timeout(ms(500));
        let session = open(&connect(config).await, secs(30)).await;
        let consuming = session.queue("x").unwrap();
        other.enqueue("first").await.unwrap();
        let first = within(SOON, "delivered", consuming.dequeue())
            .await
            .unwrap();
        first.ack().await.unwrap();
        other.enqueue("work").await.unwrap();
        tokio::time::sleep(ms(50)).await;
        let held = proxies[0].when(Direction::Up, pattern(&bed), Direction::Up, Flow::Hold);
        let waiting = tokio::spawn(async move { consuming.dequeue().await });
        eventually("the request met the fault", SOON, async || held.has_fired()).await;
        waiting.abort();
        let _ = waiting.await;
        let fence = format!("{}/queue/x/consumers/{}", bed.root(), session.id());
        let touched = async || {
            let kvs = bed
                .raw
                .kv_client()
                .get(fence.as_str(), None)
                .await
                .unwrap()
                .take_kvs();
            kvs[0].version() > 1
        };
        eventually("the fence, over the other one", SOON, touched).await;
        let passed = proxies[0].bytes(Direction::Up);
        proxies[0].heal();
        eventually("what was held arrives", SOON, async || {
            proxies[0].bytes(Direction::Up) > passed
        })
        .await;
        tokio::time::sleep(ms(100)).await;
        assert_eq!(other.depth().await.unwrap().in_flight, 0);
        assert_eq!(drain(&other).await, [("work".to_owned(), 1)]);
    }
}

#[tokio::test]
async fn a_consumer_that_waits_survives_a_cut_connection() {
    let bed = Bed::new("cut").await;
    let proxy = Proxy::start(bed.address).unwrap();
    let consuming = open(&connect(bed.through(proxy.address())).await, secs(30)).await;
    let (consuming, producing) = (consuming.queue("x").unwrap(), queue(&bed, "x").await);
    for round in 0..5 {
        let handle = consuming.clone();
        let waiting = tokio::spawn(async move { handle.dequeue().await });
        tokio::time::sleep(ms(20)).await;
        proxy.cut();
        producing.enqueue(format!("{round}")).await.unwrap();
        let delivery = within(SOON, "delivered", waiting).await.unwrap().unwrap();
        assert_eq!(text(delivery.value()), format!("{round}"));
        // Its answer may be lost with the connection that was just opened anew.
        if let Err(error) = delivery.ack().await {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
    }
}

/// More items than are read at once, and than are kept.
#[tokio::test]
async fn a_deep_queue_comes_in_order() {
    const ITEMS: usize = 3_200;
    let bed = Bed::new("deep").await;
    let (producing, consuming) = (queue(&bed, "x").await, queue(&bed, "x").await);
    let item = |number: usize| Item::new(format!("{number:05}")).priority((number % 3) as u16);
    let all: Vec<_> = (0..ITEMS).map(item).collect();
    // The first half is read, the second is heard of.
    let (first, second) = all.split_at(ITEMS / 2);
    for batch in first.chunks(MAX_BATCH) {
        producing.enqueue_many(batch.to_vec()).await.unwrap();
    }
    assert_eq!(producing.len().await.unwrap(), (ITEMS / 2) as u64);
    let head = within(SOON, "delivered", consuming.dequeue())
        .await
        .unwrap();
    head.nack().await.unwrap();
    for batch in second.chunks(MAX_BATCH) {
        producing.enqueue_many(batch.to_vec()).await.unwrap();
    }
    let mut due: Vec<_> = all
        .iter()
        .map(|item| (item.get_priority(), text(item.value())))
        .collect();
    due.sort();
    let mut seen = Vec::new();
    while seen.len() < ITEMS {
        let batch = within(SOON, "a batch", consuming.dequeue_many(MAX_BATCH))
            .await
            .unwrap();
        for delivery in &batch {
            seen.push((delivery.priority(), text(delivery.value())));
        }
        let acks = batch.into_iter().map(|delivery| delivery.ack());
        for ack in acks {
            ack.await.unwrap();
        }
    }
    assert!(seen == due, "out of order");
    assert!(consuming.try_dequeue().await.unwrap().is_none());
}

#[tokio::test]
async fn great_values_pass_and_too_great_batches_do_not() {
    let bed = Bed::new("great").await;
    let (producing, consuming) = (queue(&bed, "x").await, queue(&bed, "x").await);
    let great = || Item::new(vec![7; MAX_VALUE_BYTES]);
    let refused = producing
        .enqueue_many([great(), great()])
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge, "{refused}");
    for _ in 0..6 {
        within(SOON, "accepted", producing.enqueue(great()))
            .await
            .unwrap();
    }
    let mut seen = 0;
    while seen < 6 {
        // Together more than the client's own limit for one answer.
        for delivery in within(SOON, "delivered", consuming.dequeue_many(6))
            .await
            .unwrap()
        {
            assert_eq!(delivery.value().len(), MAX_VALUE_BYTES);
            delivery.ack().await.unwrap();
            seen += 1;
        }
    }
}

/// H1: what is remembered of an id hangs on a lease, and nothing else is left of items.
#[tokio::test]
async fn ids_are_forgotten_with_a_lease() {
    let bed = Bed::new("ids").await;
    let session = bed.session(secs(30)).await;
    let queue = session.queue("x").unwrap();
    for round in 0..3 {
        let item = Item::new("x").id(format!("order/{round}")).unwrap();
        queue.enqueue(item.clone()).await.unwrap();
        let ids = format!("{}/queue_ids/x/order%2F{round}", bed.root());
        let lease = async || {
            let kvs = bed
                .raw
                .kv_client()
                .get(ids.as_str(), None)
                .await
                .unwrap()
                .take_kvs();
            kvs[0].lease()
        };
        assert_eq!(lease().await, 0, "while it is in the queue");
        queue.dequeue().await.unwrap().ack().await.unwrap();
        assert_ne!(lease().await, 0, "after it has left");
        queue.enqueue(item).await.unwrap();
        assert_eq!(queue.len().await.unwrap(), 0);
    }
    session.close().await.unwrap();
    let left = bed.keys().await;
    let of_items = |key: &&String| !key.contains("/queue_ids/") && !key.ends_with("/layout");
    let left: Vec<_> = left.iter().filter(of_items).collect();
    let tail = format!("{}/queue/x/tail", bed.root());
    assert_eq!(
        left,
        [&tail],
        "the number of the last item, and nothing else"
    );
}

/// Delays shorter than etcd's shortest lease are kept by those who stand by.
#[tokio::test]
async fn a_short_delay_is_not_rounded_up_by_those_who_wait() {
    let bed = Bed::new("delay").await;
    let (one, other) = (queue(&bed, "x").await, queue(&bed, "x").await);
    one.enqueue("a").await.unwrap();
    let delivery = one.dequeue().await.unwrap();
    let waiting = tokio::spawn(async move { other.dequeue().await });
    tokio::time::sleep(ms(50)).await;
    let start = std::time::Instant::now();
    delivery
        .nack_after(Duration::from_millis(300))
        .await
        .unwrap();
    let back = within(SOON, "delivered", waiting).await.unwrap().unwrap();
    assert!(start.elapsed() >= ms(300), "{:?}", start.elapsed());
    assert_eq!(back.count(), 2);
    back.ack().await.unwrap();
    assert_eq!(one.len().await.unwrap(), 0);
}

/// Several clients that all put in and take out, with priorities: each item once.
#[tokio::test]
async fn clients_that_contend_lose_and_double_nothing() {
    const CLIENTS: usize = 3;
    const ITEMS: usize = 40;
    let bed = Bed::new("contended").await;
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let queue = queue(&bed, "x").await;
        let producing = queue.clone();
        tasks.spawn(async move {
            for number in 0..ITEMS {
                let item = Item::new(format!("{client}-{number}")).priority((number % 4) as u16);
                producing.enqueue(item).await.unwrap();
            }
            Vec::new()
        });
        tasks.spawn(async move {
            let mut seen = Vec::new();
            for _ in 0..ITEMS {
                let delivery = within(LATER, "delivered", queue.dequeue()).await.unwrap();
                assert_eq!(delivery.count(), 1);
                seen.push(text(delivery.value()));
                delivery.ack().await.unwrap();
            }
            seen
        });
    }
    let mut seen: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), CLIENTS * ITEMS);
    assert_eq!(queue(&bed, "x").await.len().await.unwrap(), 0);
}

/// Futures that wait in a `select!` or among others are not polled while their owner is at work.
#[tokio::test]
async fn a_dequeue_that_nobody_polls_holds_up_no_other() {
    let bed = Bed::new("unpolled").await;
    let (consuming, producing) = (queue(&bed, "x").await, queue(&bed, "x").await);
    let mut first = Box::pin(consuming.dequeue());
    // The first who waits, and the only one: then left alone.
    assert!(tokio::time::timeout(ms(200), &mut first).await.is_err());
    let handle = consuming.clone();
    let second = tokio::spawn(async move { handle.dequeue().await });
    producing.enqueue("a").await.unwrap();
    producing.enqueue("b").await.unwrap();
    let second = within(SOON, "delivered", second).await.unwrap().unwrap();
    assert_eq!(text(second.value()), "b");
    let third = within(SOON, "an answer", consuming.try_dequeue()).await;
    assert!(third.unwrap().is_none());
    let first = within(SOON, "delivered", first).await.unwrap();
    assert_eq!(text(first.value()), "a");
    first.ack().await.unwrap();
    second.ack().await.unwrap();
}

#[tokio::test]
async fn an_enqueue_that_nobody_polls_holds_up_no_other() {
    let bed = Bed::new("unpolled").await;
    let queue = queue(&bed, "x").await;
    queue.enqueue("before").await.unwrap();
    let mut first = Box::pin(queue.enqueue("a"));
    let polled = std::future::poll_fn(|context| Poll::Ready(first.as_mut().poll(context)));
    assert!(polled.await.is_pending());
    within(SOON, "accepted", queue.enqueue("b")).await.unwrap();
    within(SOON, "accepted", first).await.unwrap();
    let seen: Vec<_> = drain(&queue).await.into_iter().map(|it| it.0).collect();
    assert_eq!(seen, ["before", "a", "b"]);
}

/// What remembers the ids of those that left is a lease that others may end.
#[tokio::test]
async fn the_lease_of_remembered_ids_may_end_early() {
    let bed = Bed::new("memory").await;
    let session = bed.session(secs(30)).await;
    let queue = session.queue("x").unwrap();
    let item = |id: &str| Item::new("x").id(id).unwrap();
    let forget = async || {
        let ids = format!("{}/queue_ids/x/first", bed.root());
        let kvs = bed.raw.kv_client().get(ids.as_str(), None).await;
        let lease = kvs.unwrap().kvs()[0].lease();
        bed.raw.lease_client().revoke(lease).await.unwrap();
    };
    queue.enqueue(item("first")).await.unwrap();
    queue.dequeue().await.unwrap().ack().await.unwrap();
    forget().await;
    queue.enqueue(item("second")).await.unwrap();
    assert_eq!(within(SOON, "purged", queue.purge()).await.unwrap(), 1);
    queue.enqueue(item("first")).await.unwrap();
    assert_eq!(within(SOON, "purged", queue.purge()).await.unwrap(), 1);
    forget().await;
    let burying = queue.clone().dead_letters(1, "graves").unwrap();
    queue.enqueue(item("third")).await.unwrap();
    burying.dequeue().await.unwrap().nack().await.unwrap();
    let buried = within(SOON, "an answer", burying.try_dequeue()).await;
    if let Err(error) = &buried {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
    let graves = session.queue("graves").unwrap();
    let waiting = tokio::spawn(async move { burying.dequeue().await.map(drop) });
    let grave = within(SOON, "buried", graves.dequeue()).await.unwrap();
    grave.ack().await.unwrap();
    waiting.abort();
}

#[tokio::test]
async fn a_delay_without_end_is_a_long_one() {
    let bed = Bed::new("endless").await;
    let queue = queue(&bed, "x").await;
    queue.enqueue("a").await.unwrap();
    let delivery = queue.dequeue().await.unwrap();
    within(SOON, "given back", delivery.nack_after(Duration::MAX))
        .await
        .unwrap();
    assert_eq!(queue.depth().await.unwrap().delayed, 1);
    assert!(queue.try_dequeue().await.unwrap().is_none());
    queue.enqueue("b").await.unwrap();
    let next = within(SOON, "delivered", queue.dequeue()).await.unwrap();
    assert_eq!(text(next.value()), "b");
    next.ack().await.unwrap();
}
