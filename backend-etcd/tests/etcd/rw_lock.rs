//! Read-write locks: what stands in etcd, near the head and far from it, and Go's recipe.

use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, PutOptions, SortOrder, SortTarget, Txn,
    WatchOptions,
};
use tenure_core::backend::{Kind, path};
use tenure_core::{ErrorKind, FencingToken, Name, Result, Session};
use tenure_etcd::EtcdSession;
use tenure_testbed::{Direction, Flow, Proxy};
use tokio::task::{JoinHandle, JoinSet};

use crate::common::*;

/// What the line of the read-write lock `name` stands under.
fn prefix(bed: &Bed, name: &str) -> String {
    let name = Name::new(name).unwrap();
    format!("{}/", path(&bed.namespace, Kind::RwLock, &name))
}

async fn until_in_line(bed: &Bed, name: &str, count: usize) {
    let standing = async || bed.list(prefix(bed, name)).await.len() == count;
    eventually(&format!("{count} in the line of {name}"), LATER, standing).await;
}

/// The value under `key`.
async fn value(bed: &Bed, key: &str) -> String {
    let found = bed.raw.kv_client().get(key, None).await.unwrap();
    found.kvs()[0].value_str().unwrap().to_owned()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Read,
    Write,
}
use Way::{Read, Write};

type Log = Arc<Mutex<Vec<(usize, FencingToken)>>>;

/// One that waits its turn, notes it, and holds until it is told to let go.
struct Waiter {
    go: tokio::sync::oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

impl Waiter {
    fn start(session: Session<EtcdSession>, way: Way, place: usize, log: &Log) -> Self {
        let (go, told) = tokio::sync::oneshot::channel();
        let log = Arc::clone(log);
        let task = tokio::spawn(async move {
            let lock = session.rw_lock("x")?;
            let note = |token| log.lock().unwrap().push((place, token));
            match way {
                Read => {
                    let guard = lock.read().await?;
                    note(guard.token());
                    let _ = told.await;
                    guard.release().await
                }
                Write => {
                    let guard = lock.write().await?;
                    note(guard.token());
                    let _ = told.await;
                    guard.release().await
                }
            }
        });
        Self { go, task }
    }

    async fn let_go(self) {
        let _ = self.go.send(());
        within(SOON, "a release", self.task).await.unwrap().unwrap();
    }
}

fn inside(log: &Log) -> Vec<usize> {
    let mut places: Vec<_> = log.lock().unwrap().iter().map(|it| it.0).collect();
    places.sort_unstable();
    places
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_downgrade_keeps_the_key_and_its_create_revision() {
    let bed = Bed::new("rw-downgrade").await;
    let session = bed.session(secs(40)).await;
    let lock = session.rw_lock("x").unwrap();
    let guard = lock.write().await.unwrap();
    let (key, token) = (guard.key().to_owned(), guard.token());
    let line = bed.list(prefix(&bed, "x")).await;
    assert_eq!(line, [(key.clone(), i64::try_from(token.get()).unwrap())]);
    assert!(value(&bed, &key).await.starts_with("w "));
    let guard = guard.downgrade().await.unwrap();
    assert_eq!(guard.token(), token);
    assert_eq!(bed.list(prefix(&bed, "x")).await, line);
    assert!(value(&bed, &key).await.starts_with("r "));
    guard.release().await.unwrap();
    bed.until_empty(SOON).await;
}

/// Why `try_read` needs two comparisons: in an empty line, none of values holds.
#[tokio::test]
async fn etcd_compares_no_values_where_there_is_no_key() {
    let bed = Bed::new("rw-values").await;
    let below = Compare::value(prefix(&bed, "x"), CompareOp::Less, "s").with_prefix();
    let answer = bed.raw.kv_client().txn(Txn::new().when([below])).await;
    assert!(!answer.unwrap().succeeded());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn try_read_joins_readers_and_no_writer() {
    let bed = Bed::new("rw-try").await;
    let (a, b) = (bed.session(secs(40)).await, bed.session(secs(40)).await);
    let (a, b) = (a.rw_lock("x").unwrap(), b.rw_lock("x").unwrap());
    let first = a.try_read().await.unwrap(); // nobody there
    let second = b.try_read().await.unwrap(); // a reader there
    let third = b.try_read().await.unwrap(); // of the same session, too
    assert_eq!(b.try_write().await.unwrap_err().kind(), ErrorKind::Conflict);
    drop((second, third));
    until_in_line(&bed, "x", 1).await;
    let refused = b.try_write().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    first.release().await.unwrap();
    let writer = b.try_write().await.unwrap();
    let refused = a.try_read().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    writer.release().await.unwrap();
    bed.until_empty(SOON).await;
}

/// One line of 70, of clients of their own (most of them far from the head) and of one client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn near_and_far_batches_keep_one_order() {
    let bed = Bed::new("rw-mixed").await;
    let store = bed.store().await;
    let log = Log::default();
    // Batches of 0 to 9 readers, each with a writer behind it.
    let mut ways = Vec::new();
    for batch in [3, 0, 9, 1, 20, 5, 2, 12, 4] {
        ways.extend(std::iter::repeat_n(Read, batch));
        ways.push(Write);
    }
    let holder = bed.session(secs(50)).await;
    let guard = holder.rw_lock("x").unwrap().write().await.unwrap();
    let mut waiters = Vec::new();
    for (place, way) in ways.iter().enumerate() {
        let session = match place % 3 {
            0 => open(&store, secs(50)).await,
            _ => bed.session(secs(50)).await,
        };
        waiters.push(Waiter::start(session, *way, place, &log));
        until_in_line(&bed, "x", place + 2).await;
    }
    assert!(inside(&log).is_empty());
    guard.release().await.unwrap();
    let (mut place, mut waiters) = (0, waiters.into_iter());
    while place < ways.len() {
        let readers = ways[place..].iter().take_while(|way| **way == Read).count();
        let batch = readers.max(1);
        let expected: Vec<usize> = (0..place + batch).collect();
        eventually(&format!("the batch at {place}"), SOON, async || {
            inside(&log) == expected
        })
        .await;
        for waiter in waiters.by_ref().take(batch) {
            assert_eq!(inside(&log), expected, "too many inside");
            waiter.let_go().await;
        }
        place += batch;
    }
    let mut log = log.lock().unwrap().clone();
    log.sort_unstable_by_key(|it| it.0);
    assert!(
        log.is_sorted_by(|a, b| a.1 < b.1),
        "tokens rise with the places"
    );
    bed.until_empty(SOON).await;
}

/// Downgraded while those who wait are far away: readers watch the writer's key alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_downgrade_is_heard_far_from_the_head() {
    let bed = Bed::new("rw-far").await;
    let holder = bed.session(secs(50)).await;
    let log = Log::default();
    let guard = holder.rw_lock("x").unwrap().write().await.unwrap();
    let mut waiters = Vec::new();
    for place in 0..40 {
        let session = bed.session(secs(50)).await;
        waiters.push(Waiter::start(session, Read, place, &log));
        until_in_line(&bed, "x", place + 2).await;
    }
    let session = bed.session(secs(50)).await;
    let writer = Waiter::start(session, Write, 40, &log);
    until_in_line(&bed, "x", 42).await;
    let guard = guard.downgrade().await.unwrap();
    let readers: Vec<usize> = (0..40).collect();
    eventually("all readers in", SOON, async || inside(&log) == readers).await;
    for waiter in waiters {
        waiter.let_go().await;
    }
    assert_eq!(
        inside(&log),
        readers,
        "the downgraded one keeps the writer out"
    );
    guard.release().await.unwrap();
    eventually("the writer in", SOON, async || inside(&log).len() == 41).await;
    writer.let_go().await;
    bed.until_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dead_and_the_withdrawn_are_passed_over_in_batches() {
    let bed = Bed::new("rw-gaps").await;
    let holder = bed.session(secs(40)).await;
    let guard = holder.rw_lock("x").unwrap().read().await.unwrap();
    let log = Log::default();
    let (mut waiters, mut sessions) = (Vec::new(), Vec::new());
    // w r r w r: the first writer is withdrawn, the second dies.
    for (place, way) in [Write, Read, Read, Write, Read].into_iter().enumerate() {
        let session = bed.session(secs(40)).await;
        sessions.push(session.clone());
        waiters.push(Waiter::start(session, way, place, &log));
        until_in_line(&bed, "x", place + 2).await;
    }
    waiters[0].task.abort();
    eventually("two readers in", SOON, async || inside(&log) == [1, 2]).await;
    bed.revoke(&sessions[3]).await;
    eventually("the third, too", SOON, async || inside(&log) == [1, 2, 4]).await;
    guard.release().await.unwrap();
    for (place, waiter) in waiters.into_iter().enumerate() {
        if ![0, 3].contains(&place) {
            waiter.let_go().await;
        }
    }
    until_in_line(&bed, "x", 0).await;
}

/// The answer to a downgrade is lost; whether it landed or not, the release frees the lock, and a
/// second try says that it is a reader now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_downgrade_whose_answer_is_lost_is_settled() {
    let bed = Bed::new("rw-lost").await;
    let proxy = Proxy::start(bed.address).unwrap();
    let config = bed.through(proxy.address()).timeout(secs(4));
    let store = connect(config).await;
    for direction in [Direction::Up, Direction::Down] {
        let session = open(&store, secs(30)).await;
        let lock = session.rw_lock("x").unwrap();
        let guard = lock.write().await.unwrap();
        let token = guard.token();
        proxy.set(direction, Flow::Drop);
        let downgrading = tokio::spawn(guard.downgrade());
        tokio::time::sleep(ms(300)).await;
        assert!(!downgrading.is_finished());
        proxy.heal();
        proxy.cut();
        let guard = within(LATER, "the downgrade", downgrading).await;
        let guard = guard.unwrap().unwrap();
        assert_eq!(guard.token(), token);
        assert!(value(&bed, guard.key()).await.starts_with("r "));
        guard.release().await.unwrap();
        // And one whose caller goes away in the middle: released, whatever landed.
        let guard = lock.write().await.unwrap();
        proxy.set(direction, Flow::Drop);
        let gave_up = tokio::time::timeout(ms(200), guard.downgrade()).await;
        assert!(gave_up.is_err());
        proxy.heal();
        proxy.cut();
        until_in_line(&bed, "x", 0).await;
        session.close().await.unwrap();
        bed.until_empty(SOON).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_session_takes_up_its_side() {
    let bed = Bed::new("rw-resume").await;
    let store = bed.store().await;
    let session = open(&store, secs(40)).await;
    let reads = session.rw_lock("r").unwrap().read().await.unwrap();
    let writes = session.rw_lock("w").unwrap().write().await.unwrap();
    let turned = session.rw_lock("t").unwrap().write().await.unwrap();
    let turned = turned.downgrade().await.unwrap();
    let other = bed.session(secs(40)).await;
    let beside = other.rw_lock("r").unwrap().read().await.unwrap();
    let tokens = (reads.token(), writes.token(), turned.token());
    let id = session.detach().await.unwrap();
    drop((reads, writes, turned));
    let session = store.resume(&id).await.unwrap();
    let lock = |name: &str| session.rw_lock(name).unwrap();
    let wrong = lock("r").reclaim_write(tokens.0).await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Lost);
    let wrong = lock("w").reclaim_read(tokens.1).await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Lost);
    let wrong = lock("t").reclaim_write(tokens.2).await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Lost);
    let reads = lock("r").reclaim_read(tokens.0).await.unwrap();
    let writes = lock("w").reclaim_write(tokens.1).await.unwrap();
    let turned = lock("t").reclaim_read(tokens.2).await.unwrap();
    let refused = lock("r").write().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let writes = writes.downgrade().await.unwrap();
    for guard in [reads, writes, turned, beside] {
        assert!(guard.is_valid());
        guard.release().await.unwrap();
    }
    session.close().await.unwrap();
    bed.until_empty(SOON).await;
}

/// What was held before a detach and is not taken up yet has the session's plain key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trying_in_a_resumed_session_spares_what_it_held() {
    let bed = Bed::new("rw-resume-try").await;
    let store = bed.store().await;
    let session = open(&store, secs(40)).await;
    let before = session.rw_lock("x").unwrap().read().await.unwrap();
    let (token, id) = (before.token(), session.detach().await.unwrap());
    drop(before);
    let session = store.resume(&id).await.unwrap();
    let lock = session.rw_lock("x").unwrap();
    let tried = lock.try_read().await.unwrap();
    assert!(tried.token() > token);
    let taken_up = lock.reclaim_read(token).await.unwrap();
    let standing = bed.list(prefix(&bed, "x")).await;
    let of = |guard: &tenure_core::Holding| (guard.key().to_owned(), revision(guard));
    assert_eq!(standing, [of(&taken_up), of(&tried)]);
    tried.release().await.unwrap();
    let refused = bed.session(secs(40)).await;
    let refused = refused.rw_lock("x").unwrap().try_write().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    assert!(taken_up.is_valid());
    taken_up.release().await.unwrap();
    session.close().await.unwrap();
    bed.until_empty(SOON).await;
}

fn revision(guard: &tenure_core::Holding) -> i64 {
    i64::try_from(guard.token().get()).unwrap()
}

/// Go's `recipes.RWMutex`, with raw calls: a leased key `<prefix>/read/<nanos>` or
/// `<prefix>/write/<nanos>`; then waits for the last key of those that block it with a lower
/// revision, one by one, until there is none.
struct Go {
    client: Client,
    lease: i64,
}

impl Go {
    async fn new(bed: &Bed) -> Self {
        let mut client = bed.raw.clone();
        let lease = client.lease_grant(40, None).await.unwrap().id();
        Self { client, lease }
    }

    async fn lock(&mut self, name: &str, way: Way) -> (String, i64) {
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_nanos();
        let (side, blocks) = match way {
            Read => ("read", format!("{name}/write")),
            Write => ("write", format!("{name}/")),
        };
        let key = format!("{name}/{side}/{nanos}");
        let leased = PutOptions::new().with_lease(self.lease);
        let put = self.client.put(key.as_str(), "", Some(leased)).await;
        let own = put.unwrap().header().unwrap().revision();
        loop {
            let last = GetOptions::new()
                .with_prefix()
                .with_sort(SortTarget::Mod, SortOrder::Descend)
                .with_limit(1)
                .with_max_mod_revision(own - 1);
            let found = self.client.get(blocks.as_str(), Some(last)).await.unwrap();
            let Some(blocker) = found.kvs().first().map(|kv| kv.key().to_vec()) else {
                return (key, own);
            };
            let from = WatchOptions::new().with_start_revision(own);
            let mut events = self.client.watch(blocker, Some(from)).await.unwrap();
            let is_delete = |event: &etcd_client::Event| event.event_type() == EventType::Delete;
            while let Some(message) = events.message().await.unwrap() {
                if message.events().iter().any(is_delete) {
                    break;
                }
            }
        }
    }

    async fn unlock(&mut self, key: &str) {
        self.client.delete(key, None).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_shared_with_gos_recipe() {
    let bed = Bed::new("rw-go").await;
    let name = format!("{}/shared", bed.namespace);
    let store = connect(bed.config().interop(true)).await;
    let (readers, writers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (newest, together) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = JoinSet::new();
    for number in 0..8 {
        let (name, ours) = (name.clone(), number % 2 == 0);
        let way = if number < 5 { Read } else { Write };
        let session = open(&store, secs(40)).await;
        let mut go = Go::new(&bed).await;
        let (readers, writers) = (Arc::clone(&readers), Arc::clone(&writers));
        let (newest, together) = (Arc::clone(&newest), Arc::clone(&together));
        let visit = move |token: i64| {
            let (readers, writers) = (Arc::clone(&readers), Arc::clone(&writers));
            let (newest, together) = (Arc::clone(&newest), Arc::clone(&together));
            async move {
                let own = if way == Read { &readers } else { &writers };
                own.fetch_add(1, Ordering::SeqCst);
                if way == Write {
                    let before = newest.swap(token, Ordering::SeqCst);
                    assert!(before < token, "a writer's token fell");
                }
                for _ in 0..3 {
                    let now = (
                        readers.load(Ordering::SeqCst),
                        writers.load(Ordering::SeqCst),
                    );
                    assert!(now.1 <= 1 && (now.0 == 0 || now.1 == 0), "inside: {now:?}");
                    together.fetch_max(now.0, Ordering::SeqCst);
                    tokio::time::sleep(ms(1)).await;
                }
                own.fetch_sub(1, Ordering::SeqCst);
            }
        };
        tasks.spawn(async move {
            for _ in 0..10 {
                if !ours {
                    let (key, token) = go.lock(&name, way).await;
                    visit(token).await;
                    go.unlock(&key).await;
                    continue;
                }
                let lock = session.rw_lock(name.as_str()).unwrap();
                let token = |token: FencingToken| i64::try_from(token.get()).unwrap();
                match way {
                    Read => {
                        let guard = lock.read().await.unwrap();
                        assert!(guard.key().starts_with(&format!("{name}/read/")));
                        visit(token(guard.token())).await;
                        guard.release().await.unwrap();
                    }
                    Write => {
                        let guard = lock.write().await.unwrap();
                        assert!(guard.key().starts_with(&format!("{name}/write/")));
                        visit(token(guard.token())).await;
                        guard.release().await.unwrap();
                    }
                }
            }
        });
    }
    within(LATER, "everybody's turns", tasks.join_all()).await;
    assert!(together.load(Ordering::SeqCst) > 1, "readers share");
    let left: HashSet<_> = bed.list(format!("{name}/")).await.into_iter().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trying_minds_gos_holders_and_nothing_is_downgraded() {
    let bed = Bed::new("rw-go-try").await;
    let name = format!("{}/tried", bed.namespace);
    let store = connect(bed.config().interop(true)).await;
    let session = open(&store, secs(40)).await;
    let lock = session.rw_lock(name.as_str()).unwrap();
    let mut go = Go::new(&bed).await;
    let (key, _) = go.lock(&name, Read).await;
    lock.try_read().await.unwrap().release().await.unwrap();
    let refused = lock.try_write().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    go.unlock(&key).await;
    let (key, _) = go.lock(&name, Write).await;
    let refused = lock.try_read().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    go.unlock(&key).await;
    let guard = lock.try_write().await.unwrap();
    let refused = guard.downgrade().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(
        refused.chain().to_string().contains("Go's recipe"),
        "{refused}"
    );
    let empty = async || bed.list(format!("{name}/")).await.is_empty();
    eventually("released all the same", SOON, empty).await;
}
