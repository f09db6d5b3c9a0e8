//! Sessions, wait queues and double barriers: an application's calls through core to a real server.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tenure_core::backend::{Backend, Joined, LeaderUpdate, Mode, Nonce, Request, SessionEvents};
use tenure_core::{
    Effect, ErrorKind, FencingToken, Kind, LossReason, Name, NewItem, Op, Session, SessionOptions, Store,
};
use tenure_redis::{RedisBackend, connect};
use tenure_testbed::{RedisOptions, RedisServer};
use tokio::time::timeout;

use crate::connection::config;

struct Scene {
    server: RedisServer,
    store: Store,
}

impl Scene {
    async fn start(query: &str) -> Self {
        let server = RedisServer::start(RedisOptions::default().without_persistence()).unwrap();
        let store = connect(config(&format!("{}?{query}", server.url()))).await.unwrap();
        Self { server, store }
    }

    async fn open(&self) -> Session {
        self.store.open(SessionOptions::new()).await.unwrap()
    }

    /// Returns the keys that are left, without those of the namespace itself.
    fn keys(&self) -> Vec<String> {
        let mut keys = self.server.admin().keys("*").unwrap();
        keys.retain(|key| !key.ends_with("/token") && !key.ends_with("/layout"));
        keys
    }

    /// Waits until `keys` is all that is left.
    async fn settled(&self, keys: &[&str]) {
        soon(async {
            while self.keys() != keys {
                tokio::time::sleep(Duration::from_millis(10)).await; // real time: lets the waiter join first
            }
        })
        .await;
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), what)
        .await
        .expect("it did not happen within 30 s")
}

#[tokio::test]
async fn lock_is_handed_over_in_order_and_leaves_no_key() {
    let scene = Scene::start("").await;
    let (a, b) = (scene.open().await, scene.open().await);
    let guard = a.lock("x").await.unwrap();
    assert!(b.try_lock("x").await.unwrap().is_none());
    let short = b.locker("x").lock_timeout(Duration::from_millis(50)).await;
    assert_eq!(short.unwrap_err().kind(), ErrorKind::TimedOut);
    let first = guard.token();
    let locker = b.locker("x");
    let (next, released) = tokio::join!(soon(locker.lock()), async {
        tokio::time::sleep(Duration::from_millis(20)).await; // real time: lets the waiter join first
        guard.release().await
    });
    released.unwrap();
    let next = next.unwrap();
    assert!(next.token() > first);
    next.release().await.unwrap();
    a.close().await.unwrap();
    b.close().await.unwrap();
    scene.settled(&[]).await;
}

/// Nothing of a batch is accepted, and no marker says that it was, if a key of the queue is of a wrong type.
#[tokio::test]
async fn enqueue_that_meets_a_key_of_a_wrong_type_leaves_nothing() {
    let scene = Scene::start("").await;
    let session = scene.open().await;
    let queue = session.queue("jobs");
    let batch = || ["a", "b"].map(|value| NewItem::new(value).id(value));
    for part in ["values", "items", "ready", "delayed", "ids"] {
        let key = format!("{{tenure/default}}/2/queue/jobs/{part}");
        scene
            .server
            .admin()
            .execute(&["SET", &key, "of another program"])
            .unwrap();
        let limit = Duration::from_secs(2); // real time: a retry goes on until the key is gone
        let refused = timeout(limit, queue.enqueue_many(batch())).await;
        assert!(!matches!(refused, Ok(Ok(()))), "{part}: accepted");
        assert_eq!(
            scene.server.admin().keys("*/queue/*").unwrap(),
            [key.as_str()],
            "{part}"
        );
        scene.server.admin().execute(&["DEL", &key]).unwrap();
    }
    soon(queue.enqueue_many(batch())).await.unwrap();
    assert_eq!(queue.len().await.unwrap(), 2);
}

/// A refusal that no repetition cures is reported once it is certain that nothing was committed.
#[tokio::test]
async fn commit_that_meets_a_key_of_a_wrong_type_is_refused() {
    let scene = Scene::start("").await;
    let session = scene.open().await;
    let key = "{tenure/default}/2/data/k";
    let admin = scene.server.admin();
    admin.execute(&["RPUSH", key, "of another program"]).unwrap();
    let put = session.stm().txn().then([Op::put("other", "v"), Op::put("k", "v")]);
    let error = soon(put.commit()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Foreign, "{}", error.chain());
    assert_eq!(error.effect(), Effect::None, "{}", error.chain());
    assert_eq!(admin.keys("*/data/*").unwrap(), [key]);
}

/// Numbers of Lua are exact up to 2^53: above it, one token would be granted twice.
#[tokio::test]
async fn token_floor_that_leaves_no_room_is_refused() {
    let scene = Scene::start("").await;
    let session = scene.open().await;
    for floor in [FencingToken::MAX, FencingToken::new(u64::MAX)] {
        let raised = scene.store.raise_token_floor(floor).await;
        assert_eq!(raised.err().map(|error| error.kind()), Some(ErrorKind::TooLarge));
    }
    scene.store.raise_token_floor(FencingToken::new(1 << 52)).await.unwrap();
    let mut last = FencingToken::new((1 << 52) - 1);
    for _ in 0..3 {
        let guard = session.lock("x").await.unwrap();
        assert!(guard.token() > last);
        last = guard.token();
    }
}

#[tokio::test]
async fn hundred_waiters_are_granted_one_after_the_other() {
    let scene = Scene::start("").await;
    let (a, b) = (scene.open().await, scene.open().await);
    let mut last = FencingToken::new(0);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..100 {
        let locker = if number % 2 == 0 { a.locker("x") } else { b.locker("x") };
        tasks.spawn(async move {
            let guard = locker.lock().await.unwrap();
            let token = guard.token();
            guard.release().await.unwrap();
            token
        });
    }
    let mut tokens = soon(tasks.join_all()).await;
    tokens.sort_unstable();
    for token in tokens {
        assert!(token > last, "{token} was granted twice");
        last = token;
    }
}

#[tokio::test]
async fn readers_are_granted_together_when_a_writer_downgrades() {
    let scene = Scene::start("").await;
    let (a, b) = (scene.open().await, scene.open().await);
    let writer = a.write_lock("x").await.unwrap();
    let readers = (0..3).map(|_| {
        let session = b.clone();
        tokio::spawn(async move { session.read_lock("x").await.unwrap() })
    });
    let readers: Vec<_> = readers.collect();
    let token = writer.token();
    let own = writer.downgrade().await.unwrap();
    assert_eq!(own.token(), token);
    let mut guards = Vec::new();
    for reader in readers {
        guards.push(soon(reader).await.unwrap());
    }
    assert!(b.rw_lock("x").try_write().await.unwrap().is_none());
    drop(guards);
    own.release().await.unwrap();
    drop(soon(b.write_lock("x")).await.unwrap());
}

#[tokio::test]
async fn observer_sees_the_values_and_the_vacancies() {
    let scene = Scene::start("").await;
    let (a, b) = (scene.open().await, scene.open().await);
    let election = b.election("x");
    let mut observer = election.observe();
    assert_eq!(soon(observer.next()).await.unwrap().unwrap().leader, None);
    let leadership = a.election("x").campaign("first").await.unwrap();
    let value = |update: LeaderUpdate| update.leader.map(|leader| leader.value.to_vec());
    assert_eq!(
        value(soon(observer.next()).await.unwrap().unwrap()),
        Some(b"first".to_vec())
    );
    leadership.proclaim("second").await.unwrap();
    assert_eq!(
        value(soon(observer.next()).await.unwrap().unwrap()),
        Some(b"second".to_vec())
    );
    leadership.resign().await.unwrap();
    assert_eq!(value(soon(observer.next()).await.unwrap().unwrap()), None);
    let leadership = a.election("x").campaign("").await.unwrap();
    assert_eq!(value(soon(observer.next()).await.unwrap().unwrap()), Some(Vec::new()));
    assert_eq!(election.leader().await.unwrap().unwrap().token, leadership.token());
}

#[tokio::test]
async fn double_barrier_lets_in_and_out_as_a_whole() {
    let scene = Scene::start("").await;
    let session = scene.open().await;
    let barrier = session.double_barrier("x", 3);
    for _ in 0..2 {
        let (first, second, third) = tokio::join!(soon(barrier.enter()), soon(barrier.enter()), soon(barrier.enter()));
        let (first, second, third) = (first.unwrap(), second.unwrap(), third.unwrap());
        let full = barrier.enter().await;
        assert_eq!(full.err().map(|error| error.kind()), Some(ErrorKind::Conflict));
        let (one, two, three) = tokio::join!(soon(first.leave()), soon(second.leave()), soon(third.leave()));
        one.and(two).and(three).unwrap();
    }
    session.close().await.unwrap();
    scene.settled(&[]).await;
}

#[tokio::test]
async fn detached_session_is_resumed_once_with_its_holdings() {
    let scene = Scene::start("").await;
    let (a, b) = (scene.open().await, scene.open().await);
    let lock = a.lock("kept").await.unwrap();
    let token = lock.token();
    std::mem::forget(lock);
    let id = a.detach().await.unwrap();
    assert!(b.try_lock("kept").await.unwrap().is_none());
    let resumed = scene.store.resume(&id).await.unwrap();
    let again = scene.store.resume(&id).await;
    assert_eq!(again.err().map(|error| error.kind()), Some(ErrorKind::Conflict));
    let lock = resumed.locker("kept").reclaim(token).await.unwrap();
    assert_eq!(lock.token(), token);
    lock.release().await.unwrap();
    drop(soon(b.lock("kept")).await.unwrap());
    drop(soon(resumed.lock("another")).await.unwrap());
}

/// The break leaves nothing that the resumption would have to wait for.
#[tokio::test]
async fn detached_session_whose_holding_was_broken_is_resumed_without_it() {
    let scene = Scene::start("").await;
    let (a, b) = (scene.open().await, scene.open().await);
    let (broken, kept) = (a.lock("broken").await.unwrap(), a.lock("kept").await.unwrap());
    let (token, kept_token) = (broken.token(), kept.token());
    std::mem::forget((broken, kept));
    let id = a.detach().await.unwrap();
    let operator = RedisBackend::connect(config(&scene.server.url())).await.unwrap();
    let name = Name::new("broken").unwrap();
    assert!(operator.break_holding(Kind::Lock, &name, token).await.unwrap());
    drop(soon(b.lock("broken")).await.unwrap());
    let resumed = soon(scene.store.resume(&id)).await.unwrap();
    let gone = resumed.locker("broken").reclaim(token).await;
    assert_eq!(gone.err().map(|error| error.kind()), Some(ErrorKind::Lost));
    drop(resumed.locker("kept").reclaim(kept_token).await.unwrap());
}

#[tokio::test]
async fn purge_of_many_items_is_many_scripts() {
    let scene = Scene::start("").await;
    let (session, consumer) = (scene.open().await, scene.open().await);
    let (queue, other) = (session.queue("jobs"), consumer.queue("jobs"));
    let items = |range: std::ops::Range<u32>| range.map(|number| NewItem::new("value").id(number.to_string()));
    for part in 0..20 {
        queue.enqueue_many(items(32 * part..32 * (part + 1))).await.unwrap();
    }
    let taken = soon(other.dequeue_many(32)).await.unwrap();
    let purging = || scene.server.admin().calls("hscan").unwrap();
    let before = purging();
    assert_eq!(queue.purge().await.unwrap(), 640);
    assert!(purging() - before >= 8, "{} scripts", purging() - before);
    assert_eq!(queue.len().await.unwrap(), 0);
    for delivery in taken {
        assert_eq!(delivery.ack().await.unwrap_err().kind(), ErrorKind::Lost);
    }
    // The ids of purged items are remembered.
    queue.enqueue_many(items(0..10)).await.unwrap();
    assert_eq!(queue.len().await.unwrap(), 0);
}

#[tokio::test]
async fn dead_holder_is_replaced_after_its_lease() {
    let scene = Scene::start("ttl=500ms").await;
    let survivor = scene.open().await;
    // A session that core does not renew.
    let backend = RedisBackend::connect(config(&scene.server.url())).await.unwrap();
    let (events, _) = SessionEvents::channel();
    let opened = backend.open(Duration::from_millis(500), "", events).await.unwrap();
    let name = Name::new("x").unwrap();
    let request = Request::new(Nonce::new(1), Kind::Lock, name, Arc::new(AtomicU64::new(1)));
    let locker = opened.session.locker().unwrap();
    let joined = locker.join(&request, Mode::Exclusive, None, true).await.unwrap();
    let Joined::Granted(grant) = joined else {
        panic!("{joined:?}");
    };
    assert!(survivor.try_lock("x").await.unwrap().is_none());
    assert!(soon(survivor.lock("x")).await.unwrap().token() > grant.token);
}

#[tokio::test]
async fn session_ended_by_a_flush_is_lost() {
    let scene = Scene::start("ttl=500ms").await;
    let session = scene.open().await;
    let guard = session.lock("x").await.unwrap();
    scene.server.admin().flush().unwrap();
    assert_eq!(soon(session.lost()).await, LossReason::Revoked);
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn waiters_survive_a_broken_connection() {
    let scene = Scene::start("").await;
    let (a, b) = (scene.open().await, scene.open().await);
    let guard = a.lock("x").await.unwrap();
    let waiting = tokio::spawn(async move { b.lock("x").await.unwrap().token() });
    tokio::time::sleep(Duration::from_millis(100)).await; // real time: lets the waiter join first
    scene
        .server
        .admin()
        .execute(&["CLIENT", "KILL", "TYPE", "normal"])
        .unwrap();
    scene
        .server
        .admin()
        .execute(&["CLIENT", "KILL", "TYPE", "pubsub"])
        .unwrap();
    let token = guard.token();
    guard.release().await.unwrap();
    assert!(soon(waiting).await.unwrap() > token);
}

#[tokio::test]
async fn lock_of_another_program_is_respected_and_shared() {
    let scene = Scene::start("interop=true").await;
    let admin = scene.server.admin();
    let session = scene.open().await;
    admin
        .execute(&["SET", "orders/eu", "theirs", "NX", "PX", "60000"])
        .unwrap();
    assert!(session.try_lock("orders/eu").await.unwrap().is_none());
    let locker = session.locker("orders/eu");
    let waiting = tokio::spawn(async move { locker.lock().await.unwrap() });
    tokio::time::sleep(Duration::from_millis(50)).await; // real time: lets the waiter join first
    admin.execute(&["DEL", "orders/eu"]).unwrap();
    let guard = soon(waiting).await.unwrap();
    let taken: Option<String> = admin
        .query(&["SET", "orders/eu", "theirs", "NX", "PX", "60000"])
        .unwrap();
    assert_eq!(taken, None);
    guard.release().await.unwrap();
    let taken: Option<String> = admin
        .query(&["SET", "orders/eu", "theirs", "NX", "PX", "60000"])
        .unwrap();
    assert!(taken.is_some());
    admin.execute(&["RPUSH", "a list", "entry"]).unwrap();
    assert_eq!(session.lock("a list").await.unwrap_err().kind(), ErrorKind::Foreign);
}
