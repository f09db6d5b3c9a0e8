//! Queues shared with Go's recipes, whose algorithms are played here by etcd's plain client.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use etcd_client::proto::PbKeyValue;
use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KvClient, SortOrder, SortTarget, Txn, TxnOp,
    WatchFilterType, WatchOptions,
};
use tenure_core::{ErrorKind, Item, QueueHandle};
use tenure_etcd::{EtcdBackend, EtcdQueue};
use tenure_testbed::{Direction, Flow, Proxy};
use tokio::task::JoinSet;

use crate::common::*;

/// Go's queues of one name.
struct Go {
    client: Client,
    name: String,
}

/// What the two recipes' consumers differ in.
#[derive(Clone, Copy, Debug)]
enum Recipe {
    Queue,
    PriorityQueue,
}

use Recipe::{PriorityQueue, Queue};

impl Go {
    async fn new(bed: &Bed, name: &str) -> Self {
        let client = Client::connect([bed.address.to_string()], None).await;
        Self {
            client: client.unwrap(),
            name: name.to_owned(),
        }
    }

    fn kv(&self) -> KvClient {
        self.client.kv_client()
    }

    /// `newUniqueKV`.
    async fn enqueue(&self, value: &str) {
        loop {
            let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
            let key = format!("{}/{now}", self.name);
            let txn = Txn::new()
                .when([Compare::version(key.as_str(), CompareOp::Equal, 0)])
                .and_then([TxnOp::put(key, value, None)]);
            if self.kv().txn(txn).await.unwrap().succeeded() {
                return;
            }
        }
    }

    /// `newSequentialKV`.
    async fn enqueue_with(&self, value: &str, priority: u16) {
        let prefix = format!("{}/{priority:05}", self.name);
        loop {
            let last = GetOptions::new()
                .with_prefix()
                .with_sort(SortTarget::Key, SortOrder::Descend)
                .with_limit(1);
            let found = self.kv().get(prefix.as_str(), Some(last)).await.unwrap();
            let number = found.kvs().first().map_or(0, |kv| {
                let last = kv.key_str().unwrap().rsplit('/').next().unwrap();
                last.parse::<u64>().unwrap() + 1
            });
            let base = format!("__{prefix}");
            let revision = found.header().unwrap().revision();
            let current = Compare::mod_revision(base.as_str(), CompareOp::Less, revision + 1);
            let txn = Txn::new().when([current]).and_then([
                TxnOp::put(base, "", None),
                TxnOp::put(format!("{prefix}/{number:016}"), value, None),
            ]);
            if self.kv().txn(txn).await.unwrap().succeeded() {
                return;
            }
        }
    }

    /// `deleteRevKey`.
    async fn delete(&self, kv: &PbKeyValue) -> bool {
        let key = kv.key.as_slice();
        let txn = Txn::new()
            .when([Compare::mod_revision(
                key,
                CompareOp::Equal,
                kv.mod_revision,
            )])
            .and_then([TxnOp::delete(key, None)]);
        self.kv().txn(txn).await.unwrap().succeeded()
    }

    /// `Dequeue`, as either recipe has it.
    async fn dequeue(&self, recipe: Recipe) -> String {
        let (prefix, target) = match recipe {
            Queue => (self.name.clone(), SortTarget::Mod),
            PriorityQueue => (format!("{}/", self.name), SortTarget::Key),
        };
        loop {
            let first = GetOptions::new()
                .with_prefix()
                .with_sort(target, SortOrder::Ascend)
                .with_limit(1);
            let answer = self.kv().get(prefix.as_str(), Some(first)).await.unwrap();
            let first = answer.0.kvs.first().cloned();
            if let Some(first) = first {
                if self.delete(&first).await {
                    return String::from_utf8(first.value).unwrap();
                }
                if answer.more() {
                    continue;
                }
            }
            let from = WatchOptions::new()
                .with_prefix()
                .with_start_revision(answer.header().unwrap().revision())
                .with_filters([WatchFilterType::NoDelete]);
            let mut watching = self.client.watch_client();
            let mut events = watching.watch(prefix.as_str(), Some(from)).await.unwrap();
            let put = loop {
                let message = events.message().await.unwrap().unwrap();
                let put = message
                    .events()
                    .iter()
                    .find_map(|event| event.kv().cloned());
                if let Some(put) = put {
                    break put.0;
                }
            };
            if self.delete(&put).await {
                return String::from_utf8(put.value).unwrap();
            }
        }
    }
}

async fn store(bed: &Bed) -> tenure_core::Store<EtcdBackend> {
    connect(bed.config().interop(true)).await
}

async fn queue(bed: &Bed, name: &str) -> QueueHandle<EtcdQueue> {
    let session = open(&store(bed).await, secs(40)).await;
    session.queue(name).unwrap()
}

async fn expect(queue: &QueueHandle<EtcdQueue>, value: &str, count: u32) {
    let delivery = within(SOON, value, queue.dequeue()).await.unwrap();
    let got = String::from_utf8_lossy(delivery.value()).into_owned();
    assert_eq!((got.as_str(), delivery.count()), (value, count));
    delivery.ack().await.unwrap();
}

async fn nothing_left(bed: &Bed, name: &str) {
    let empty = async || {
        let records = bed.list(format!("{}/queue/", bed.root())).await;
        bed.list(format!("{name}/")).await.is_empty() && records.is_empty()
    };
    eventually("nothing left", SOON, empty).await;
}

#[tokio::test]
async fn what_go_puts_in_comes_out_by_priority_and_revision() {
    let bed = Bed::new("queue-go-in").await;
    let name = format!("{}/jobs", bed.namespace);
    let go = Go::new(&bed, &name).await;
    let ours = queue(&bed, &name).await;
    go.enqueue_with("late", 40_000).await;
    go.enqueue_with("seventh", 7).await;
    go.enqueue("first").await;
    ours.enqueue(Item::new("our second")).await.unwrap();
    go.enqueue("third").await;
    ours.enqueue(Item::new("our eighth").priority(7))
        .await
        .unwrap();
    go.enqueue_with("fourth", 0).await;
    // What is no item of theirs is left alone.
    let note = format!("{name}/note");
    bed.raw
        .kv_client()
        .put(note.as_str(), "", None)
        .await
        .unwrap();
    assert_eq!(ours.len().await.unwrap(), 7);
    assert_eq!(ours.peek().await.unwrap().unwrap().value, b"first");
    for value in [
        "first",
        "our second",
        "third",
        "fourth",
        "seventh",
        "our eighth",
        "late",
    ] {
        expect(&ours, value, 1).await;
    }
    assert!(ours.try_dequeue().await.unwrap().is_none());
    bed.delete(&note).await;
    nothing_left(&bed, &name).await;
}

#[tokio::test]
async fn what_we_put_in_gos_consumers_get_in_their_order() {
    let bed = Bed::new("queue-go-out").await;
    for (recipe, order) in [
        (Queue, ["c", "a", "b", "d", "e", "f"]),
        (PriorityQueue, ["a", "b", "d", "c", "e", "f"]),
    ] {
        let name = format!("{}/{recipe:?}", bed.namespace);
        let go = Go::new(&bed, &name).await;
        let ours = queue(&bed, &name).await;
        ours.enqueue(Item::new("c").priority(3)).await.unwrap();
        ours.enqueue("a").await.unwrap();
        ours.enqueue("b").await.unwrap();
        go.enqueue_with("d", 0).await;
        ours.enqueue(Item::new("e").priority(3)).await.unwrap();
        go.enqueue_with("f", 3).await;
        for value in order {
            let got = within(SOON, value, go.dequeue(recipe)).await;
            assert_eq!(got, value, "{recipe:?}");
        }
        // And one that waits.
        let waiting = Go::new(&bed, &name).await;
        let waiting = tokio::spawn(async move { waiting.dequeue(recipe).await });
        tokio::time::sleep(ms(50)).await;
        ours.enqueue("awaited").await.unwrap();
        assert_eq!(within(SOON, "woken", waiting).await.unwrap(), "awaited");
        nothing_left(&bed, &name).await;
    }
}

#[tokio::test]
async fn a_consumer_of_ours_is_woken_by_gos_producers() {
    let bed = Bed::new("queue-go-wake").await;
    let name = format!("{}/jobs", bed.namespace);
    let go = Go::new(&bed, &name).await;
    let ours = queue(&bed, &name).await;
    for round in 0..6 {
        let (value, waiting) = (format!("{round}"), ours.clone());
        let waiting = tokio::spawn(async move { waiting.dequeue().await });
        tokio::time::sleep(ms(20)).await;
        match round % 2 {
            0 => go.enqueue(&value).await,
            _ => go.enqueue_with(&value, 9).await,
        }
        let delivery = within(SOON, "woken", waiting).await.unwrap().unwrap();
        assert_eq!(delivery.value(), value.as_bytes());
        delivery.ack().await.unwrap();
    }
}

/// Everybody at once: each item comes out once, whoever puts it in and whoever takes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_takes_from_one_queue() {
    const EACH: usize = 15;
    let bed = Bed::new("queue-go-all").await;
    let name = format!("{}/jobs", bed.namespace);
    let all = 4 * EACH;
    let (taken, left) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (out, mut got) = tokio::sync::mpsc::unbounded_channel();
    let mut consumers = JoinSet::new();
    for number in 0..6 {
        let (taken, out) = (Arc::clone(&taken), out.clone());
        if number < 2 {
            let recipe = [Queue, PriorityQueue][number];
            let go = Go::new(&bed, &name).await;
            consumers.spawn(async move {
                loop {
                    out.send(go.dequeue(recipe).await).unwrap();
                    taken.fetch_add(1, Ordering::SeqCst);
                }
            });
            continue;
        }
        let ours = queue(&bed, &name).await;
        consumers.spawn(async move {
            loop {
                let delivery = ours.dequeue().await.unwrap();
                let value = String::from_utf8(delivery.value().to_vec()).unwrap();
                if number == 3 && delivery.count() == 1 {
                    let _ = delivery.nack().await; // one of Go's may have taken it
                    continue;
                }
                match delivery.ack().await {
                    Ok(()) => {
                        out.send(value).unwrap();
                        taken.fetch_add(1, Ordering::SeqCst);
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Lost),
                }
            }
        });
    }
    let mut producers = JoinSet::new();
    for number in 0..4 {
        let go = Go::new(&bed, &name).await;
        let ours = queue(&bed, &name).await;
        let left = Arc::clone(&left);
        producers.spawn(async move {
            for at in 0..EACH {
                let value = format!("{number}-{at}");
                match number {
                    0 => go.enqueue(&value).await,
                    1 => go.enqueue_with(&value, 2).await,
                    _ => {
                        let item = Item::new(&value).priority(number + at as u16 % 2 - 1);
                        ours.enqueue(item).await.unwrap();
                    }
                }
                left.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    within(LATER, "the producers", producers.join_all()).await;
    let done = async || taken.load(Ordering::SeqCst) >= all;
    eventually("everything is taken", LATER, done).await;
    consumers.shutdown().await;
    drop(out);
    let (mut seen, mut count) = (BTreeSet::new(), 0);
    while let Some(value) = got.recv().await {
        count += 1;
        assert!(seen.insert(value.clone()), "{value} came out twice");
    }
    assert_eq!((count, left.load(Ordering::SeqCst)), (all, all));
}

#[tokio::test]
async fn what_go_takes_from_under_a_consumer_is_lost_to_it() {
    let bed = Bed::new("queue-go-under").await;
    let name = format!("{}/jobs", bed.namespace);
    let go = Go::new(&bed, &name).await;
    let ours = queue(&bed, &name).await;
    for nack in [false, true] {
        ours.enqueue("work").await.unwrap();
        let delivery = within(SOON, "ours", ours.dequeue()).await.unwrap();
        assert_eq!(go.dequeue(Queue).await, "work");
        // Another item at the very same key must not be taken for it.
        ours.enqueue("next").await.unwrap();
        let ended = match nack {
            false => delivery.ack().await,
            true => delivery.nack().await,
        };
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Lost);
        expect(&ours, "next", 1).await;
    }
    // One that went back, counted, and then went to Go.
    ours.enqueue("counted").await.unwrap();
    let delivery = within(SOON, "ours", ours.dequeue()).await.unwrap();
    delivery.nack().await.unwrap();
    assert_eq!(go.dequeue(PriorityQueue).await, "counted");
    assert!(ours.try_dequeue().await.unwrap().is_none());
    nothing_left(&bed, &name).await;
}

#[tokio::test]
async fn among_our_own_claims_hold() {
    let bed = Bed::new("queue-go-own").await;
    let name = format!("{}/jobs", bed.namespace);
    let (here, there) = (store(&bed).await, queue(&bed, &name).await);
    let session = open(&here, secs(40)).await;
    let ours = session.queue(name.as_str()).unwrap();
    let batch = ["a", "b", "c"].map(Item::from);
    ours.enqueue_many(batch).await.unwrap();
    let first = within(SOON, "a", ours.dequeue()).await.unwrap();
    let second = within(SOON, "b", there.dequeue()).await.unwrap();
    assert_eq!((first.value(), second.value()), (&b"a"[..], &b"b"[..]));
    let depth = there.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.delayed), (1, 2, 0));
    let token = first.token();
    first.nack_after(ms(300)).await.unwrap();
    let delayed = std::time::Instant::now();
    second.ack().await.unwrap();
    expect(&there, "c", 1).await;
    assert_eq!(there.depth().await.unwrap().delayed, 1);
    let again = within(SOON, "a again", there.dequeue()).await.unwrap();
    assert!(delayed.elapsed() >= ms(300));
    assert_eq!((again.value(), again.count()), (&b"a"[..], 2));
    assert!(token < again.token());
    again.nack().await.unwrap();
    // Dead letters go to another queue that Go knows, too.
    let letters = format!("{}/dead", bed.namespace);
    let strict = there.clone().dead_letters(2, &letters).unwrap();
    assert!(strict.try_dequeue().await.unwrap().is_none());
    let go = Go::new(&bed, &letters).await;
    assert_eq!(within(SOON, "the dead", go.dequeue(Queue)).await, "a");
    // A session that ends gives back; a purge spares what is with a consumer.
    ours.enqueue_many(["d", "e"].map(Item::from)).await.unwrap();
    let held = within(SOON, "d", ours.dequeue()).await.unwrap();
    assert_eq!(there.purge().await.unwrap(), 1);
    session.close().await.unwrap();
    drop(held);
    expect(&there, "d", 2).await;
    let refused = there.enqueue(Item::new("x").id("x").unwrap()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.chain().to_string().contains("Go"), "{refused}");
    nothing_left(&bed, &name).await;
}

/// Answers are lost at the enqueue and at the claim.
#[tokio::test]
async fn lost_answers_neither_double_nor_hide_an_item() {
    let bed = Bed::new("queue-go-lost").await;
    let name = format!("{}/jobs", bed.namespace);
    let there = queue(&bed, &name).await;
    for round in 0..6 {
        let proxy = Proxy::start(bed.address).unwrap();
        let config = bed.through(proxy.address()).timeout(secs(1)).interop(true);
        let session = open(&connect(config).await, secs(20)).await;
        let ours = session.queue(name.as_str()).unwrap();
        let enqueueing = round % 3 == 0;
        // Of the key that keeps producers apart, and of the fence of a claim.
        let part = if enqueueing { "__" } else { "/withdrawn/" };
        let dropped = proxy.when(Direction::Up, part.as_bytes(), Direction::Down, Flow::Drop);
        if !enqueueing {
            there.enqueue("work").await.unwrap();
        }
        let working = tokio::spawn(async move {
            match enqueueing {
                true => ours.enqueue("work").await.map(|()| None),
                false => ours.dequeue().await.map(Some),
            }
        });
        let fired = async || dropped.has_fired();
        eventually("the request passed", SOON, fired).await;
        let landed = async || {
            let depth = there.depth().await.unwrap();
            depth.total() == 1 && (enqueueing || depth.in_flight == 1)
        };
        eventually("it landed", SOON, landed).await;
        let given_up = round % 3 == 1;
        if given_up {
            working.abort();
        }
        proxy.cut();
        proxy.heal();
        let delivered = within(LATER, "an answer", working).await;
        if let Ok(delivered) = delivered {
            let delivered = delivered.unwrap();
            let count = delivered.as_ref().map(|it| it.count());
            assert_eq!(count, (!enqueueing).then_some(1), "round {round}");
            drop(delivered);
        } else {
            assert!(given_up, "round {round}");
        }
        let count = if enqueueing || given_up { 1 } else { 2 };
        expect(&there, "work", count).await;
        assert_eq!(there.len().await.unwrap(), 0, "round {round}");
        session.close().await.unwrap();
    }
    nothing_left(&bed, &name).await;
}
