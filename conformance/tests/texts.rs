//! What errors, logs and `Debug` say, on every store: no payload, and each cause once.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

mod support;

use std::fmt::{Debug, Write as _};
use std::io;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use rstest::rstest;
use support::stage;
use tenure_conformance::{Harness, Need};
use tenure_core::backend::{Backend as _, Done, Grant, Outcome, Read, Sighting, StoreUrl, Taken};
use tenure_core::{
    Compare, Error, ErrorKind, FencingToken, Isolation, Item, Op, Result, Session, SessionOptions,
    Store,
};
use tracing_subscriber::filter::LevelFilter;

async fn open(store: &Store, ttl: Duration) -> Session {
    store.open(SessionOptions::new().ttl(ttl)).await.unwrap()
}

const LONG: Duration = Duration::from_secs(60);

/// A value of 1 KiB that is found again in any text which shows a piece of it.
struct Payload {
    value: String,
    /// Its recurring part: as text, as a list of bytes, in hexadecimal digits.
    forms: Vec<String>,
}

impl Payload {
    fn new(store: &str) -> Self {
        let part = format!("Payl0ad-{store:-<9}");
        let list = format!("{:?}", part.as_bytes());
        let hex = part.bytes().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let list = list.trim_matches(['[', ']']).to_owned();
        Self {
            value: part.repeat(1024 / part.len()),
            forms: vec![hex.to_uppercase(), hex, list, part],
        }
    }

    fn is_in(&self, text: &str) -> bool {
        self.forms.iter().any(|form| text.contains(form))
    }
}

/// Every event of the process, as it is written.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl io::Write for Log {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(event).into_owned();
        self.0.lock().unwrap().push(line);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything that the process logs, from the first use on: all targets, all levels.
static LOG: LazyLock<Log> = LazyLock::new(|| {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    log
});

/// What was shown of values and errors, with a word for each.
struct Shown<'a> {
    payload: &'a Payload,
    leaks: Vec<String>,
}

impl Shown<'_> {
    fn value(&mut self, what: &str, value: &dyn Debug) {
        let text = format!("{value:?} {value:#?}");
        if self.payload.is_in(&text) {
            let start: String = text.chars().take(160).collect();
            self.leaks.push(format!("{what}: {start}"));
        }
    }

    fn error<T: Debug>(&mut self, what: &str, result: Result<T>) -> Error {
        let error = result.unwrap_err();
        self.value(what, &error);
        let mut link: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = link {
            if self.payload.is_in(&error.to_string()) {
                self.leaks.push(format!("{what}: {error}"));
            }
            self.value(what, &error);
            link = error.source();
        }
        error
    }
}

async fn elections(shown: &mut Shown<'_>, one: &Session, other: &Session) {
    let value = &shown.payload.value.clone();
    let (election, observed) = (one.election("e").unwrap(), other.election("e").unwrap());
    let lead = election.campaign(value).await.unwrap();
    let mut observer = observed.observe();
    let seen = observer.next().await.unwrap().unwrap().unwrap();
    shown.value("an observer", &observer);
    shown.value("a leader", &seen);
    shown.value("a leadership", &lead);
    shown.error("a refused campaign", observed.try_campaign(value).await);
    let late = observed.campaign_timeout(value, Duration::from_millis(50));
    shown.error("a late campaign", late.await);
    lead.proclaim(format!("again {value}")).await.unwrap();
    shown.value("the leader", &observed.leader().await.unwrap());
    shown.value("the next leader", &observer.next().await);
    lead.resign().await.unwrap();
    let sighting = Sighting {
        order: 1,
        leader: Some(seen),
    };
    shown.value("a sighting", &sighting);
}

async fn queues(shown: &mut Shown<'_>, one: &Session, other: &Session) {
    let value = &shown.payload.value.clone();
    let queue = one.queue("q").unwrap();
    let item = || Item::new(value).priority(3).id("one").unwrap();
    shown.value("an item", &item());
    queue.enqueue(item()).await.unwrap();
    queue.enqueue(item()).await.unwrap();
    let batch = [Item::new(value), Item::new(value), Item::new(value)];
    queue.enqueue_many(batch).await.unwrap();
    shown.value("a queue", &queue);
    shown.value("a peek", &queue.peek().await);
    queue.depth().await.unwrap();
    let delivery = queue.dequeue().await.unwrap();
    shown.value("a delivery", &delivery);
    delivery.nack().await.unwrap();
    let batch = queue.dequeue_many(2).await.unwrap();
    shown.value("a batch", &batch);
    drop(batch);
    let delivery = other.queue("q").unwrap().dequeue().await.unwrap();
    delivery.nack_after(Duration::from_millis(1)).await.unwrap();
    queue.pop().await.unwrap();
    queue.dequeue().await.unwrap().nack().await.unwrap();
    let strict = other.queue("q").unwrap().dead_letters(1, "dead").unwrap();
    shown.value("a strict queue", &strict);
    let waiting = strict.dequeue_timeout(Duration::from_millis(200)).await;
    shown.value("a strict dequeue", &waiting);
    drop(waiting);
    queue.purge().await.unwrap();
    let taken = Taken {
        grant: Grant::new(FencingToken::new(1), "key"),
        value: value.clone().into(),
        priority: 0,
        deliveries: 1,
    };
    shown.value("what a backend delivers", &taken);
}

async fn transactions(shown: &mut Shown<'_>, one: &Session) {
    let value = &shown.payload.value.clone();
    let stm = one.stm().unwrap();
    stm.put("k", value.clone()).await.unwrap();
    let entry = stm.get("k").await.unwrap().unwrap();
    shown.value("an entry", &entry);
    let compares = [
        Compare::value("k").eq(value.clone()),
        Compare::value("k").lt(format!("{value}~")),
    ];
    shown.value("comparisons", &compares);
    shown.value("the target of one", &compares[0].target());
    let operations = [Op::get("k"), Op::put("other", value.clone())];
    shown.value("operations", &operations);
    let otherwise = [Op::put("never", value.clone())];
    let txn = stm.txn().when(compares).then(operations).or_else(otherwise);
    shown.value("a transaction", &txn);
    let outcome = txn.commit().await.unwrap();
    shown.value("its outcome", &outcome);
    let done = Done {
        revision: outcome.revision,
        succeeded: true,
        results: outcome.results,
    };
    shown.value("what a backend did", &done);
    shown.value("what came of a commit", &Outcome::Done(done.clone()));
    let read = Read {
        revision: 1,
        repeatable: true,
        entries: vec![Some(entry)],
    };
    shown.value("what a backend read", &read);
    let isolations = [
        Isolation::SerializableSnapshot,
        Isolation::Serializable,
        Isolation::RepeatableReads,
        Isolation::ReadCommitted,
    ];
    for isolation in isolations {
        let stm = stm.clone().isolation(isolation).prefetch(["other"]);
        let conflicts = std::sync::atomic::AtomicBool::new(true);
        let running = stm.run(async |tx| {
            let read = tx.get_many(["k", "other"]).await?;
            if conflicts.swap(false, std::sync::atomic::Ordering::Relaxed) {
                stm.put("k", format!("{value}{isolation}")).await?;
            }
            tx.put("written", read.concat_all())?;
            tx.put_as("json", value)?;
            Ok(format!("{tx:?}"))
        });
        let tx = running.await.unwrap();
        shown.value("a Tx", &tx);
    }
    let number = stm.run(async |tx| tx.get_as::<u64>("json").await);
    shown.error("JSON of another type", number.await);
    let odd = [value.as_bytes(), &[0xff]].concat();
    stm.put("odd", odd).await.unwrap();
    let text = stm.run(async |tx| tx.get_string("odd").await);
    shown.error("no UTF-8", text.await);
    let word = stm.run(async |tx| tx.get_as::<u64>("odd").await);
    shown.error("no JSON", word.await);
    let large = stm.put("large", value.repeat(2_000)).await;
    shown.error("a value that is too large", large);
    let guard = one.locker("g").unwrap().lock().await.unwrap();
    let bound = stm.fenced_by(&guard);
    shown.value("a bound transaction", &bound);
    bound
        .run(async |tx| tx.put("k", value.clone()))
        .await
        .unwrap();
    guard.release().await.unwrap();
    stm.delete("k").await.unwrap();
}

trait ConcatAll {
    fn concat_all(self) -> Vec<u8>;
}

impl ConcatAll for Vec<Option<Vec<u8>>> {
    fn concat_all(self) -> Vec<u8> {
        self.into_iter().flatten().flatten().collect()
    }
}

#[rstest]
#[case::memory("memory")]
#[cfg_attr(feature = "etcd", case::etcd("etcd"))]
#[cfg_attr(feature = "redis", case::redis("redis"))]
#[cfg_attr(feature = "postgres", case::postgres("postgres"))]
#[tokio::test]
async fn payloads_appear_in_no_log_no_error_and_no_debug_text(#[case] store: &str) {
    let log = LOG.clone();
    let harness = &*stage(store).await;
    let payload = Payload::new(store);
    let mut shown = Shown {
        payload: &payload,
        leaks: Vec::new(),
    };
    let connection = harness.connect().await.unwrap();
    let (one, other) = (
        open(&connection, LONG).await,
        open(&harness.connect().await.unwrap(), LONG).await,
    );
    elections(&mut shown, &one, &other).await;
    queues(&mut shown, &one, &other).await;
    transactions(&mut shown, &one).await;
    shown.value("a store", &connection);
    shown.value("a session", &one);
    one.close().await.unwrap();
    let lines = log.0.lock().unwrap().clone();
    assert!(!lines.is_empty(), "nothing was logged");
    let leaks = lines.iter().filter(|line| payload.is_in(line));
    for leak in leaks.take(10) {
        let leak: String = leak.chars().take(300).collect();
        shown.leaks.push(format!("a log: {leak}"));
    }
    let leaks = shown.leaks;
    assert!(
        leaks.is_empty(),
        "{} leaks:\n{}",
        leaks.len(),
        leaks.join("\n")
    );
}

/// The embedded store is in the process: its state can be shown with a session of it.
#[tokio::test]
async fn payloads_appear_in_no_debug_text_of_the_embedded_store() {
    let payload = Payload::new("embedded");
    let store = tenure_memory::connect(tenure_memory::MemoryConfig::new()).unwrap();
    let session = store.open(SessionOptions::new()).await.unwrap();
    let stm = session.stm().unwrap();
    stm.put("k", payload.value.clone()).await.unwrap();
    let lead = session.election("e").unwrap();
    let lead = lead.campaign(&payload.value).await.unwrap();
    let queue = session.queue("q").unwrap();
    queue.enqueue(payload.value.as_str()).await.unwrap();
    let opened = store
        .backend()
        .open(LONG, &SessionOptions::new())
        .await
        .unwrap();
    for shown in [
        format!("{:?}", store.backend()),
        format!("{opened:?}"),
        format!("{session:?} {stm:?} {lead:?} {queue:?}"),
    ] {
        assert!(!payload.is_in(&shown), "{shown}");
    }
}

/// Asserts that no text of the chain is repeated by one above it.
fn each_cause_once(what: &str, error: &Error) {
    let mut texts: Vec<String> = Vec::new();
    let mut link: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = link {
        texts.push(error.to_string());
        link = error.source();
    }
    for (place, text) in texts.iter().enumerate() {
        assert!(!text.is_empty(), "{what}: an empty text in {texts:?}");
        for above in &texts[..place] {
            assert!(
                !above.contains(text),
                "{what}: {text:?} is repeated in {texts:?}"
            );
        }
    }
    assert_eq!(error.chain().to_string(), texts.join(": "), "{what}");
    let debug = format!("{error:?}");
    assert!(
        debug.contains(&format!("{:?}", texts.join(": "))),
        "{what}: {debug} where the chain is {texts:?}"
    );
}

/// Fails in every way that needs no broken network.
async fn refusals(harness: &dyn Harness, errors: &mut Vec<(&'static str, Error)>) {
    let connection = harness.connect().await.unwrap();
    let (one, other) = (
        open(&connection, LONG).await,
        open(&harness.connect().await.unwrap(), LONG).await,
    );
    let mut add = |what, error: Error| errors.push((what, error));
    add("no name", one.locker("").unwrap_err());
    add("a long name", one.queue("x".repeat(10_000)).unwrap_err());
    let none = SessionOptions::new().ttl(Duration::ZERO);
    add("no TTL", connection.open(none).await.unwrap_err());
    let huge = SessionOptions::new().ttl(Duration::from_secs(u64::MAX / 4));
    add("a huge TTL", connection.open(huge).await.unwrap_err());
    let (lock, then) = (one.locker("l").unwrap(), other.locker("l").unwrap());
    let guard = lock.lock().await.unwrap();
    add("a lock that is held", then.try_lock().await.unwrap_err());
    let soon = then.lock_timeout(Duration::from_millis(20)).await;
    add("a lock that is held for long", soon.unwrap_err());
    if harness.offers().contains(&Need::Delete) {
        let operator = harness.operator().unwrap();
        operator.delete(guard.key()).await.unwrap();
        // Where the client carries out the operator's order itself, the release may come first.
        if let Err(error) = guard.release().await {
            add("a lock that is gone", error);
        }
    }
    let stm = one.stm().unwrap();
    let large = stm.put("large", vec![0; 2 * 1024 * 1024]).await;
    add("a large value", large.unwrap_err());
    stm.put("text", "no number").await.unwrap();
    let number = stm.run(async |tx| tx.get_as::<u64>("text").await).await;
    add("JSON of another type", number.unwrap_err());
    stm.put("bytes", [0xff]).await.unwrap();
    let text = stm.run(async |tx| tx.get_string("bytes").await).await;
    add("no UTF-8", text.unwrap_err());
    let keys = std::collections::HashMap::from([((1, 2), 3)]);
    let json = stm.run(async |tx| tx.put_as("json", &keys)).await;
    add("no JSON", json.unwrap_err());
    let resumed = connection.resume(&tenure_core::SessionId::new("7")).await;
    add("a session that never was", resumed.unwrap_err());
    one.clone().close().await.unwrap();
    add("a closed session", lock.lock().await.unwrap_err());
    add("a read after the end", stm.get("x").await.unwrap_err());
}

/// Fails because the store does not answer until the lease is over.
async fn losses(harness: &dyn Harness, errors: &mut Vec<(&'static str, Error)>) {
    let linked = harness.linked().await.unwrap();
    let session = open(&linked.store, harness.ttl()).await;
    let election = session.election("e").unwrap();
    let (lead, guard) = (
        election.campaign("x").await.unwrap(),
        session.locker("l").unwrap().lock().await.unwrap(),
    );
    linked.link.silence();
    let enqueueing = session.queue("q").unwrap();
    let enqueueing = enqueueing.enqueue("x");
    let stm = session.stm().unwrap();
    let writing = stm.put("k", "v");
    let working = guard.while_held(std::future::pending::<()>());
    let (enqueued, written, worked) = tokio::join!(enqueueing, writing, working);
    let lost = guard.loss_error().unwrap();
    for (what, error) in [
        ("an enqueue over a silent link", enqueued.unwrap_err()),
        ("a write over a silent link", written.unwrap_err()),
        ("work over a silent link", worked.unwrap_err()),
        ("a loss over a silent link", lost),
        ("a late release", guard.release().await.unwrap_err()),
        ("a late proclamation", lead.proclaim("y").await.unwrap_err()),
        ("a late resignation", lead.resign().await.unwrap_err()),
        (
            "a late lock",
            session.locker("m").unwrap().lock().await.unwrap_err(),
        ),
    ] {
        errors.push((what, error));
    }
    linked.link.heal();
}

async fn connect(url: &str) -> Result<Store> {
    let parsed = StoreUrl::parse(url)?;
    match url.split([':', '+', 's']).next() {
        #[cfg(feature = "etcd")]
        Some("etcd") => {
            let config = tenure_etcd::EtcdConfig::from_url(parsed)?;
            Ok(tenure_etcd::connect(config).await?.into_dyn())
        }
        #[cfg(feature = "redis")]
        Some("redi") => {
            let config = tenure_redis::RedisConfig::from_url(parsed)?;
            Ok(tenure_redis::connect(config).await?.into_dyn())
        }
        #[cfg(feature = "postgres")]
        Some("po") => {
            let config = tenure_postgres::PostgresConfig::from_url(parsed)?;
            Ok(tenure_postgres::connect(config).await?.into_dyn())
        }
        _ => {
            let config = tenure_memory::MemoryConfig::from_url(parsed)?;
            Ok(tenure_memory::connect(config)?.into_dyn())
        }
    }
}

/// Fails to connect: to a port where no server is, to one that hangs up, to one that speaks another protocol, with
/// files that are not there.
async fn no_connection(store: &str, errors: &mut Vec<(&'static str, Error)>) {
    let listen = async |answer: &'static [u8]| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
            }
        });
        port
    };
    let hangs_up = listen(b"").await;
    let http = listen(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
    let redis = listen(b"-WRONGPASS no such user\r\n").await;
    let schemes: &[&str] = match store {
        "etcd" => &[
            "etcd://ADDRESS/x",
            "etcds://ADDRESS/x",
            "etcds://ADDRESS/x?ca=/nowhere",
        ],
        "redis" => &[
            "redis://ADDRESS",
            "rediss://ADDRESS",
            "rediss://ADDRESS?ca=/nowhere",
            "redis://:secret@ADDRESS",
            "redis+cluster://ADDRESS",
            "redis+sentinel://ADDRESS/service",
        ],
        "postgres" => &[
            "postgres://u@ADDRESS/d",
            "postgres://u:secret@ADDRESS/d?sslmode=require",
            "postgres://u@ADDRESS/d?sslmode=verify-full&sslrootcert=/nowhere",
        ],
        _ => &["memory:?ttl=x", "memory:?ttl=0s", "memory:?tll=3s"],
    };
    for scheme in schemes {
        for port in [1, hangs_up, http, redis] {
            let url = scheme.replace("ADDRESS", &format!("127.0.0.1:{port}"));
            match connect(&url).await {
                Err(error) => errors.push(("no connection", error)),
                // This client connects with its first request.
                Ok(store) => {
                    let opened = store.open(SessionOptions::new()).await;
                    errors.push(("no session", opened.unwrap_err()));
                }
            }
        }
        let nonsense = format!("{scheme}&nonsense=1").replace("ADDRESS", "[::1");
        errors.push(("nonsense", connect(&nonsense).await.unwrap_err()));
    }
}

#[rstest]
#[case::memory("memory")]
#[cfg_attr(feature = "etcd", case::etcd("etcd"))]
#[cfg_attr(feature = "redis", case::redis("redis"))]
#[cfg_attr(feature = "postgres", case::postgres("postgres"))]
#[tokio::test]
async fn errors_leave_their_cause_to_source(#[case] store: &str) {
    let harness = &*stage(store).await;
    let mut errors = Vec::new();
    refusals(harness, &mut errors).await;
    losses(harness, &mut errors).await;
    no_connection(store, &mut errors).await;
    let with_cause = errors
        .iter()
        .filter(|(_, error)| std::error::Error::source(error).is_some());
    assert!(with_cause.count() >= 3, "{errors:?}");
    for (what, error) in &errors {
        each_cause_once(what, error);
        assert_ne!(error.kind(), ErrorKind::Internal, "{what}: {error:?}");
    }
}
