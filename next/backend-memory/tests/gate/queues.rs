//! Queues: order, delivery, return, dead letters, ids.

use std::time::Duration;

use tenure_core::backend::{Claim, EndOutcome, Item, Return, SessionEvent, TakeLimit};
use tenure_core::{ErrorKind, Kind, LossReason};
use tenure_memory::MemoryBackend;

use crate::support::{Client, TTL, kind, name, pass, soon};

rules! {
    items_come_by_priority_and_acceptance: [PriorityIgnored];
    returned_item_keeps_its_place_and_counts: [ReturnedItemLast, DeliveryNotCounted, NackLosesItem];
    item_is_with_one_consumer: [ItemToTwo];
    acknowledged_item_is_gone_for_good: [AckIgnored];
    item_of_a_dead_consumer_comes_back: [];
    item_delivered_too_often_becomes_a_dead_letter: [DeadLetterDropped];
    item_whose_consumers_crash_becomes_a_dead_letter: [CrashedItemDropped, DeadLetterDropped];
    late_acknowledgement_fails: [LateAckSucceeds];
    purge_takes_items_in_flight_too: [PurgeSkipsInFlight];
    withdrawn_take_gives_its_items_back_unseen: [WithdrawalCounts, WithdrawalLosesItems];
    delayed_item_is_invisible_until_then: [DelayIgnored];
    known_id_is_dropped_for_ten_minutes: [DuplicateAccepted];
    waiting_consumers_are_served_in_order_one_item_each: [];
    take_respects_its_limits: [];
}

fn item(value: &str) -> Item {
    Item::new(value.as_bytes())
}

fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value).unwrap()
}

fn numbered(priority: u16, value: &str) -> Item {
    let mut item = item(value);
    item.priority = priority;
    item
}

fn letters(deliveries: u32) -> TakeLimit {
    let mut limit = TakeLimit::new(1);
    limit.dead_letter = Some((deliveries, name("dead")));
    limit
}

async fn depth(client: &Client, queue: &str) -> (u64, u64, u64) {
    let depth = client.queue().depth(&name(queue)).await.unwrap();
    (depth.ready, depth.in_flight, depth.delayed)
}

async fn nack(client: &Client, claim: &Claim, delay: Duration) -> EndOutcome {
    let back = [Return::new(claim.clone(), delay)];
    client.queue().nack(client.marker(), &back).await.unwrap()[0]
}

async fn items_come_by_priority_and_acceptance(store: MemoryBackend) {
    let a = Client::open(&store).await;
    a.enqueue("q", &[numbered(1, "c"), numbered(0, "a"), numbered(1, "d")])
        .await;
    a.enqueue("q", &[numbered(0, "b"), numbered(u16::MAX, "e")]).await;
    let peeked = a.queue().peek(&name("q")).await.unwrap().unwrap();
    assert_eq!((text(&peeked.value), peeked.priority, peeked.deliveries), ("a", 0, 0));
    let (_, items) = a.take("q", &TakeLimit::new(9)).await.unwrap();
    let values: Vec<_> = items.iter().map(|item| text(&item.value)).collect();
    assert_eq!(values, ["a", "b", "c", "d", "e"]);
    assert!(items.windows(2).all(|pair| pair[0].token < pair[1].token));
    assert!(a.take("q", &TakeLimit::new(1)).await.is_none());
    assert!(a.queue().peek(&name("q")).await.unwrap().is_none());
}

async fn returned_item_keeps_its_place_and_counts(store: MemoryBackend) {
    let a = Client::open(&store).await;
    a.enqueue("q", &[item("1"), item("2")]).await;
    for deliveries in 1..4 {
        let (claim, taken) = a.take_one("q").await;
        assert_eq!((text(&taken.value), taken.deliveries), ("1", deliveries));
        assert_eq!(nack(&a, &claim, Duration::ZERO).await, EndOutcome::Ended);
        assert_eq!(nack(&a, &claim, Duration::ZERO).await, EndOutcome::NotHeld);
    }
    assert_eq!(a.queue().peek(&name("q")).await.unwrap().unwrap().deliveries, 3);
}

async fn item_is_with_one_consumer(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    a.enqueue("q", &[item("1"), item("2")]).await;
    let (_, one) = a.take_one("q").await;
    let (_, two) = b.take_one("q").await;
    assert_eq!((text(&one.value), text(&two.value)), ("1", "2"));
    assert_eq!(depth(&a, "q").await, (0, 2, 0));
}

async fn acknowledged_item_is_gone_for_good(store: MemoryBackend) {
    let a = Client::open(&store).await;
    a.enqueue("q", &[item("1")]).await;
    let (claim, _) = a.take_one("q").await;
    assert_eq!(a.ack(claim.clone()).await, EndOutcome::Ended);
    assert_eq!(a.ack(claim.clone()).await, EndOutcome::NotHeld);
    assert_eq!(nack(&a, &claim, Duration::ZERO).await, EndOutcome::NotHeld);
    assert_eq!(depth(&a, "q").await, (0, 0, 0));
    assert_eq!((store.footprint().objects, store.footprint().entries), (0, 0));
}

async fn item_of_a_dead_consumer_comes_back(store: MemoryBackend) {
    let a = Client::open(&store).await;
    a.enqueue("q", &[item("1")]).await;
    let (claim, _) = a.take_one("q").await;
    pass(5.0).await;
    let b = Client::open(&store).await;
    let waits = b.wait_in_queue("q", &TakeLimit::new(1)).await;
    let start = tokio::time::Instant::now();
    let items = b.given(&waits).await;
    assert_eq!(start.elapsed().as_secs(), 5);
    assert_eq!((items[0].deliveries, items[0].token > claim.token), (2, true));
}

async fn item_delivered_too_often_becomes_a_dead_letter(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let mut bad = numbered(4, "bad");
    bad.id = Some(name("id"));
    a.enqueue("q", &[bad, numbered(4, "good")]).await;
    let mut same = item("other with this id");
    same.id = Some(name("id"));
    b.enqueue("dead", &[same]).await;
    let first = b.take("dead", &TakeLimit::new(1)).await.unwrap();
    let waits = b.wait_in_queue("dead", &TakeLimit::new(1)).await;
    for _ in 0..2 {
        let (request, items) = a.take("q", &letters(2)).await.unwrap();
        assert_eq!(text(&items[0].value), "bad");
        nack(&a, &Claim::new(request, items[0].token), Duration::ZERO).await;
    }
    let (_, items) = a.take("q", &letters(2)).await.unwrap();
    assert_eq!(text(&items[0].value), "good");
    // The consumer of dead letters is woken, and a known id keeps no dead letter out.
    let dead = b.given(&waits).await;
    assert_eq!(
        (text(&dead[0].value), dead[0].priority, dead[0].deliveries),
        ("bad", 4, 1)
    );
    assert_eq!(dead[0].id, Some(name("id")));
    assert_eq!(text(&first.1[0].value), "other with this id");
}

async fn item_whose_consumers_crash_becomes_a_dead_letter(store: MemoryBackend) {
    let a = Client::open_for(&store, TTL * 20).await.unwrap();
    a.enqueue("q", &[item("bad")]).await;
    for _ in 0..3 {
        let crashes = Client::open(&store).await;
        assert!(crashes.take("q", &letters(3)).await.is_some());
        pass(11.0).await;
    }
    assert!(a.take("q", &letters(3)).await.is_none());
    assert_eq!((depth(&a, "q").await, depth(&a, "dead").await), ((0, 0, 0), (1, 0, 0)));
}

async fn late_acknowledgement_fails(store: MemoryBackend) {
    let (mut a, b) = (Client::open(&store).await, Client::open(&store).await);
    a.enqueue("q", &[item("1")]).await;
    let (claim, _) = a.take_one("q").await;
    assert!(store.take_away(&a.id, claim.request.nonce()));
    assert!(
        matches!(soon(a.events.recv()).await, Some(SessionEvent::RequestLost(nonce, _)) if nonce == claim.request.nonce())
    );
    let (again, _) = b.take_one("q").await;
    assert_eq!(a.ack(claim.clone()).await, EndOutcome::NotHeld);
    // Not even with the token of the other.
    assert_eq!(a.ack(Claim::new(claim.request, again.token)).await, EndOutcome::NotHeld);
    assert_eq!(b.ack(again).await, EndOutcome::Ended);
}

async fn purge_takes_items_in_flight_too(store: MemoryBackend) {
    let (a, mut b) = (Client::open(&store).await, Client::open(&store).await);
    let mut late = item("4");
    late.delay = Duration::from_secs(60);
    a.enqueue("q", &[item("1"), item("2"), item("3"), late]).await;
    let (request, items) = b.take("q", &TakeLimit::new(2)).await.unwrap();
    assert_eq!(a.queue().purge(a.marker(), &name("q")).await.unwrap(), 4);
    assert_eq!(depth(&a, "q").await, (0, 0, 0));
    let lost = SessionEvent::RequestLost(request.nonce(), LossReason::Revoked);
    assert_eq!(soon(b.events.recv()).await, Some(lost));
    assert!(b.entries().await.is_empty());
    assert_eq!(b.ack(Claim::new(request, items[0].token)).await, EndOutcome::NotHeld);
}

async fn withdrawn_take_gives_its_items_back_unseen(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let waits = a.wait_in_queue("q", &TakeLimit::new(2)).await;
    let next = b.wait_in_queue("q", &TakeLimit::new(2)).await;
    a.enqueue("q", &[item("1")]).await;
    // The item crossed with the withdrawal.
    a.queue().leave(std::slice::from_ref(&waits)).await.unwrap();
    a.queue().leave(std::slice::from_ref(&waits)).await.unwrap();
    let items = b.given(&next).await;
    assert_eq!((text(&items[0].value), items[0].deliveries), ("1", 1));
    assert_eq!(kind(a.queue().wait(&waits).await), ErrorKind::Conflict);
    assert!(a.entries().await.is_empty());
}

async fn delayed_item_is_invisible_until_then(store: MemoryBackend) {
    let a = Client::open_for(&store, TTL * 10).await.unwrap();
    let mut late = numbered(0, "late");
    late.delay = Duration::from_secs(20);
    a.enqueue("q", &[late, numbered(1, "now")]).await;
    let (claim, taken) = a.take_one("q").await;
    assert_eq!((text(&taken.value), depth(&a, "q").await), ("now", (0, 1, 1)));
    let start = tokio::time::Instant::now();
    let waits = a.wait_in_queue("q", &TakeLimit::new(1)).await;
    let queue = a.queue();
    let given = tokio::spawn(async move { queue.wait(&waits).await.unwrap().unwrap() });
    tokio::task::yield_now().await;
    // This delay ends before the one until which the consumer sleeps.
    nack(&a, &claim, Duration::from_secs(5)).await;
    assert_eq!(text(&soon(given).await.unwrap()[0].value), "now");
    assert_eq!(start.elapsed().as_secs(), 5);
    let waits = a.wait_in_queue("q", &TakeLimit::new(1)).await;
    assert_eq!(text(&a.given(&waits).await[0].value), "late");
    assert_eq!(start.elapsed().as_secs(), 20);
}

async fn known_id_is_dropped_for_ten_minutes(store: MemoryBackend) {
    let a = Client::open_for(&store, Duration::from_secs(3600)).await.unwrap();
    let with_id = |value| {
        let mut item = item(value);
        item.id = Some(name("id"));
        item
    };
    a.enqueue("q", &[with_id("1"), with_id("2")]).await;
    a.enqueue("other", &[with_id("other")]).await;
    let (claim, taken) = a.take_one("q").await;
    assert_eq!((text(&taken.value), taken.id), ("1", Some(name("id"))));
    a.enqueue("q", &[with_id("3")]).await;
    a.ack(claim).await;
    pass(599.0).await;
    a.enqueue("q", &[with_id("4")]).await;
    assert_eq!((depth(&a, "q").await, depth(&a, "other").await), ((0, 0, 0), (1, 0, 0)));
    pass(2.0).await;
    a.enqueue("q", &[with_id("5")]).await;
    assert_eq!(text(&a.take_one("q").await.1.value), "5");
    a.queue().purge(a.marker(), &name("q")).await.unwrap();
    a.queue().purge(a.marker(), &name("other")).await.unwrap();
    assert_eq!((store.footprint().ids, store.footprint().objects), (2, 2));
    pass(601.0).await;
    assert_eq!((store.footprint().ids, store.footprint().objects), (0, 0));
}

async fn waiting_consumers_are_served_in_order_one_item_each(store: MemoryBackend) {
    let mut consumers = Vec::new();
    for _ in 0..4 {
        let client = Client::open(&store).await;
        let request = client.wait_in_queue("q", &TakeLimit::new(10)).await;
        consumers.push((client, request));
    }
    let (leaves, request) = consumers.remove(1);
    leaves.queue().leave(&[request]).await.unwrap();
    let (dies, _) = consumers.remove(0);
    dies.session.revoke().await.unwrap();
    leaves.enqueue("q", &[item("1"), item("2")]).await;
    for (number, (client, request)) in consumers.iter().enumerate() {
        let items = client.given(request).await;
        assert_eq!((items.len(), text(&items[0].value)), (1, &*(number + 1).to_string()));
    }
}

async fn take_respects_its_limits(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let big = "x".repeat(600);
    a.enqueue("q", &[item(&big), item(&big), item("small")]).await;
    let mut limit = TakeLimit::new(3);
    limit.bytes = 1000;
    let (_, items) = a.take("q", &limit).await.unwrap();
    assert_eq!(items.len(), 1);
    limit.bytes = 1;
    let (_, items) = a.take("q", &limit).await.unwrap();
    assert_eq!(items.len(), 1);
    let too_large = [item("fits"), Item::new(vec![0; (1 << 20) + 1])];
    let refused = a.queue().enqueue(a.marker(), &name("q"), &too_large).await;
    assert_eq!((kind(refused), depth(&a, "q").await), (ErrorKind::TooLarge, (1, 2, 0)));
    assert_eq!(a.entries().await.len(), 2);
    assert_eq!(a.entries().await[0].kind, Kind::Queue);
}
