//! Queues over real stores between real processes, some of which are killed.
#![cfg(any(feature = "etcd", feature = "redis", feature = "postgres"))]

#[macro_use]
mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::Bed;
use tenure_testbed::Holder;

/// Short, so that the items of the killed come back soon.
const TTL: Duration = Duration::from_secs(2);
const PRODUCERS: usize = 4;
const CONSUMERS: usize = 4;
/// These are killed.
const KILLED: usize = 2;

/// One delivery, as its consumer wrote it down.
#[derive(Clone, Debug)]
struct Delivery {
    consumer: usize,
    count: u32,
    token: u64,
    done: bool,
}

fn lines(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn holder(url: &str) -> Holder {
    Holder::open(url, TTL).expect("a holder with a session")
}

/// Everything that was delivered, by item.
fn account(files: &[PathBuf]) -> HashMap<String, Vec<Delivery>> {
    let mut items: HashMap<String, Vec<Delivery>> = HashMap::new();
    for (consumer, file) in files.iter().enumerate() {
        for line in lines(file) {
            let words: Vec<&str> = line.split(' ').collect();
            let [value, what, token] = words[..] else {
                panic!("a line of consumer {consumer}: {line}");
            };
            let token = token.parse().expect("a token");
            let deliveries = items.entry(value.to_owned()).or_default();
            if what == "done" {
                let delivery = deliveries.iter_mut().find(|it| it.token == token);
                delivery.expect("a delivery before its end").done = true;
                continue;
            }
            deliveries.push(Delivery {
                consumer,
                count: what.parse().expect("a count"),
                token,
                done: false,
            });
        }
    }
    for deliveries in items.values_mut() {
        deliveries.sort_by_key(|delivery| delivery.token);
    }
    items
}

/// Kills a consumer between a delivery and its acknowledgement: stopped first, to look.
fn kill_at_work(consumer: &mut Holder, file: &Path, limit: Instant) {
    loop {
        assert!(Instant::now() < limit, "never at work: {:?}", lines(file));
        // A line for the delivery, a line for its end.
        let at_work = || lines(file).len() % 2 == 1;
        if at_work() {
            consumer.pause().expect("stopped");
            if at_work() {
                return consumer.kill().expect("killed");
            }
            consumer.resume().expect("resumed");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Q1, Q2: `each` items from each producer; two of the four consumers are killed at work.
fn killed_consumers_cost_nothing(url: &str, each: u64, limit: Duration) {
    let folder = tempfile::tempdir().expect("a folder");
    let files: Vec<_> = (0..CONSUMERS)
        .map(|number| folder.path().join(format!("consumer-{number}")))
        .collect();
    let mut producers: Vec<_> = (0..PRODUCERS).map(|_| holder(url)).collect();
    let mut consumers: Vec<_> = (0..CONSUMERS).map(|_| holder(url)).collect();
    let start = Instant::now();
    for (number, producer) in producers.iter_mut().enumerate() {
        let tag = format!("p{number}");
        producer.begin_produce("jobs", &tag, each).expect("asked");
    }
    for (number, (consumer, file)) in consumers.iter_mut().zip(&files).enumerate() {
        // Those who are to be killed take longer, so that they are met at work.
        let work = Duration::from_millis(if number < KILLED { 20 } else { 0 });
        consumer.begin_consume("jobs", work, file).expect("asked");
    }
    for (number, consumer) in consumers.iter_mut().enumerate().take(KILLED) {
        kill_at_work(consumer, &files[number], start + limit);
    }
    for producer in &mut producers {
        assert_eq!(producer.produced(limit).expect("produced"), each);
    }
    for consumer in &mut consumers[KILLED..] {
        consumer.consumed(limit).expect("consumed");
    }

    let items = account(&files);
    let mut unconfirmed = Vec::new();
    let (mut acknowledged, mut repeated) = (0, 0);
    for number in 0..PRODUCERS {
        for item in 0..each {
            let value = format!("p{number}-{item}");
            let Some(deliveries) = items.get(&value) else {
                panic!("{value} was never delivered");
            };
            let last = deliveries.last().expect("a delivery");
            match deliveries.iter().filter(|it| it.done).count() {
                1 => {
                    assert!(
                        last.done,
                        "{value} came again after its end: {deliveries:?}"
                    );
                    acknowledged += 1;
                }
                // Killed between the acknowledgement and its note: it was the last all the same.
                0 if last.consumer < KILLED => unconfirmed.push(value.clone()),
                times => panic!("{value} was acknowledged {times} times: {deliveries:?}"),
            }
            // The count is of deliveries in the store: one of them may have been cut off before it was
            // written down, but only of a consumer that was killed.
            let mut before = 0;
            for (at, delivery) in deliveries.iter().enumerate() {
                assert!(delivery.count > before, "{value}: {deliveries:?}");
                let unseen = delivery.count - before - 1;
                assert!(unseen <= KILLED as u32, "{value}: {deliveries:?}");
                before = delivery.count;
                if at > 0 {
                    let previous = &deliveries[at - 1];
                    assert!(
                        previous.consumer < KILLED && !previous.done,
                        "{value} came again, and nobody who had it was killed: {deliveries:?}"
                    );
                    repeated += 1;
                }
            }
        }
    }
    assert_eq!(items.len() as u64, PRODUCERS as u64 * each, "nothing else");
    // One consumer works on one item at a time: that came again, unless its acknowledgement was under
    // way already.
    assert_eq!(repeated + unconfirmed.len(), KILLED, "{unconfirmed:?}");
    println!(
        "{} items in {:?}: {acknowledged} acknowledged once, {repeated} delivered again, of {} the note is missing",
        items.len(),
        start.elapsed(),
        unconfirmed.len()
    );
}

on_every_store! {
    "queues":
    killed_consumers_lose_nothing_and_double_nothing
}

fn killed_consumers_lose_nothing_and_double_nothing(bed: Bed) {
    killed_consumers_cost_nothing(&bed.url, 100, Duration::from_secs(60));
}

/// The long form: `cargo test --features full --test queue_processes -- --ignored --nocapture`.
fn ten_thousand_items_survive_killed_consumers(url: &str) {
    killed_consumers_cost_nothing(url, 2_500, Duration::from_secs(600));
}

#[test]
#[cfg(feature = "etcd")]
#[ignore = "takes a minute"]
fn ten_thousand_items_on_etcd_survive_killed_consumers() {
    ten_thousand_items_survive_killed_consumers(&Bed::etcd("queues").url);
}

#[test]
#[cfg(feature = "redis")]
#[ignore = "takes a minute"]
fn ten_thousand_items_on_redis_survive_killed_consumers() {
    ten_thousand_items_survive_killed_consumers(&Bed::redis("queues").url);
}

#[test]
#[cfg(feature = "postgres")]
#[ignore = "takes a minute"]
fn ten_thousand_items_on_postgres_survive_killed_consumers() {
    ten_thousand_items_survive_killed_consumers(&Bed::postgres("queues").url);
}
