//! Locks that are shared with redis-py, in both directions.

use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use tenure_core::backend::Backend as _;
use tenure_core::{LockGuard, LossReason, Session, SessionOptions};
use tenure_testbed::{shared_redis, unique_name};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{backend, connect, soon};

/// Far longer than a test: what only the end of a lease frees fails it.
const LONG: Duration = Duration::from_secs(300);

/// A program with redis-py.
struct Foreign {
    _program: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Foreign {
    async fn start() -> Self {
        let python = std::env::var("TENURE_PYTHON").unwrap_or_else(|_| "/usr/bin/python3".into());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/full/redis_py.py");
        let mut program = Command::new(&python)
            .args(["-I", script, shared_redis().unwrap().url()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {python}: {error}; please install python3"));
        let input = program.stdin.take().unwrap();
        let output = BufReader::new(program.stdout.take().unwrap()).lines();
        let mut foreign = Self {
            _program: program,
            input,
            output,
        };
        let first = foreign.output.next_line().await.unwrap();
        assert_eq!(first.as_deref(), Some("ready"), "please install python3-redis");
        foreign
    }

    async fn tell(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn answer(&mut self) -> String {
        soon("an answer of redis-py", self.output.next_line())
            .await
            .unwrap()
            .unwrap()
    }

    async fn ask(&mut self, line: &str) -> String {
        self.tell(line).await;
        self.answer().await
    }
}

/// A lock's name, and sessions that share it with redis-py.
struct Scene {
    name: String,
    url: String,
    foreign: Foreign,
}

impl Scene {
    async fn start() -> Self {
        let name = unique_name("shared");
        let url = format!("{}?namespace={name}&interop=true", shared_redis().unwrap().url());
        let foreign = Foreign::start().await;
        Self { name, url, foreign }
    }

    async fn open(&self) -> Session {
        let store = connect(&self.url).await.unwrap();
        store.open(SessionOptions::new().ttl(LONG)).await.unwrap()
    }

    /// Tells redis-py to `word` the lock, with `rest`.
    async fn foreign(&mut self, word: &str, rest: &str) -> String {
        let line = format!("{word} {} {rest}", self.name);
        self.foreign.ask(&line).await
    }

    /// Waits for the lock in a task, and returns once it is in the wait queue.
    async fn waiting(&self, session: &Session) -> tokio::task::JoinHandle<tenure_core::Result<LockGuard>> {
        let admin = shared_redis().unwrap().admin();
        let key = format!("{{tenure/{}}}/2/interop/{}/waiters", self.name, self.name);
        let before: u64 = admin.query(&["ZCARD", &key]).unwrap();
        let handle = session.locker(&self.name);
        let task = tokio::spawn(async move { handle.lock().await });
        soon("a place in the wait queue", async {
            while admin.query::<u64>(&["ZCARD", &key]).unwrap() <= before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        task
    }
}

async fn granted(waiting: tokio::task::JoinHandle<tenure_core::Result<LockGuard>>) -> LockGuard {
    soon("a grant", waiting).await.unwrap().unwrap()
}

#[tokio::test]
async fn each_waits_for_the_other() {
    let mut scene = Scene::start().await;
    let session = scene.open().await;
    let name = scene.name.clone();
    assert_eq!(scene.foreign("acquire", "-").await, "acquired");
    assert!(session.try_lock(&name).await.unwrap().is_none(), "two hold the lock");
    let (first, second) = (scene.waiting(&session).await, scene.waiting(&session).await);
    assert_eq!(scene.foreign("release", "").await, "released");
    let guard = granted(first).await;
    assert!(!second.is_finished(), "two hold the lock");
    assert_eq!(scene.foreign("try", "60").await, "busy");
    let earlier = guard.token();
    guard.release().await.unwrap();
    let guard = granted(second).await;
    assert!(guard.token() > earlier);
    let line = format!("acquire {name} 60");
    scene.foreign.tell(&line).await;
    guard.release().await.unwrap();
    assert_eq!(scene.foreign.answer().await, "acquired");
    assert_eq!(scene.foreign("release", "").await, "released");
}

#[tokio::test]
async fn a_lock_of_redis_py_that_expires_goes_to_the_waiter() {
    let mut scene = Scene::start().await;
    let session = scene.open().await;
    assert_eq!(scene.foreign("acquire", "1").await, "acquired");
    let guard = granted(scene.waiting(&session).await).await;
    assert_eq!(scene.foreign("release", "").await, "not owned");
    assert_eq!(guard.loss(), None);
    guard.release().await.unwrap();
}

#[tokio::test]
async fn what_a_dead_session_held_goes_to_redis_py() {
    let mut scene = Scene::start().await;
    let (dead, next) = (scene.open().await, scene.open().await);
    let name = scene.name.clone();
    let held = dead.lock(&name).await.unwrap();
    let line = format!("acquire {name} 300");
    scene.foreign.tell(&line).await;
    let operator = backend(&scene.url).await.unwrap();
    assert!(operator.end_session(dead.id()).await.unwrap());
    assert_eq!(scene.foreign.answer().await, "acquired");
    assert_eq!(soon("the news of the loss", held.lost()).await, LossReason::Revoked);
    // The release of what is lost spares the new holder.
    held.release().await.unwrap_err();
    assert!(next.try_lock(&name).await.unwrap().is_none(), "two hold the lock");
    assert_eq!(scene.foreign("release", "").await, "released");
    next.lock(&name).await.unwrap().release().await.unwrap();
    assert!(operator.guarantees().await.unwrap().deployment.ends_with("interop"));
}

#[tokio::test]
async fn a_key_that_was_taken_away_is_lost_and_its_new_holder_spared() {
    let mut scene = Scene::start().await;
    let store = connect(&scene.url).await.unwrap();
    let session = store
        .open(SessionOptions::new().ttl(Duration::from_secs(3)))
        .await
        .unwrap();
    let name = scene.name.clone();
    let guard = session.lock(&name).await.unwrap();
    let deleted: u64 = shared_redis().unwrap().admin().query(&["DEL", &name]).unwrap();
    assert_eq!(deleted, 1);
    assert_eq!(scene.foreign("acquire", "300").await, "acquired");
    assert_eq!(soon("the news of the loss", guard.lost()).await, LossReason::Revoked);
    guard.release().await.unwrap_err();
    assert!(session.try_lock(&name).await.unwrap().is_none(), "two hold the lock");
    assert_eq!(scene.foreign("release", "").await, "released");
}

#[tokio::test]
async fn never_two_in_a_storm_of_both() {
    const TIMES: usize = 60;
    let mut scene = Scene::start().await;
    let name = scene.name.clone();
    let mut more = Foreign::start().await;
    let line = format!("storm {name} {TIMES}");
    scene.foreign.tell(&line).await;
    more.tell(&line).await;
    let sessions = join_all((0..3).map(|_| scene.open())).await;
    let inside = format!("{name}:inside");
    let ours = join_all(sessions.iter().map(async |session| {
        let admin = shared_redis().unwrap().admin();
        let mut last = None;
        for _ in 0..TIMES {
            let guard = session.lock(&name).await.unwrap();
            assert!(Some(guard.token()) > last);
            last = Some(guard.token());
            assert_eq!(admin.query::<u64>(&["INCR", &inside]).unwrap(), 1, "two hold the lock");
            admin.execute(&["DECR", &inside]).unwrap();
            guard.release().await.unwrap();
        }
    }));
    ours.await;
    for foreign in [&mut scene.foreign, &mut more] {
        assert_eq!(foreign.answer().await, "done");
    }
}
