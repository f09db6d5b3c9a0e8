//! Locks that are shared with programs that know nothing of tenure: redis-py's `Lock`, and what sets
//! keys with `SET NX PX`.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tenure_core::backend::StoreUrl;
use tenure_core::{
    ErrorKind, LockGuard, LockHandle, NameIsolation, Namespace, Session, SessionOptions, Store,
    TokenOrder,
};
use tenure_redis::{RedisBackend, RedisConfig, RedisLocker, RedisSession, acl_rules};
use tenure_testbed::{Process, RedisCluster, RedisServer};
use tokio::task::JoinHandle;

/// For whatever should take no time on a busy machine.
const PROMPT: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_millis(1_500);
const LONG: Duration = Duration::from_secs(60);
const ROOT: &str = "{tenure/1/default}/";

fn config(server: &RedisServer) -> RedisConfig {
    RedisConfig::new(server.address().to_string()).interop(true)
}

async fn store(server: &RedisServer) -> Store<RedisBackend> {
    tenure_redis::connect(config(server)).await.unwrap()
}

async fn open(server: &RedisServer, ttl: Duration) -> Session<RedisSession> {
    let options = SessionOptions::new().ttl(ttl);
    store(server).await.open(options).await.unwrap()
}

async fn locker(server: &RedisServer, ttl: Duration, name: &str) -> LockHandle<RedisLocker> {
    open(server, ttl).await.locker(name).unwrap()
}

async fn within<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    tokio::time::timeout(limit, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took longer than {limit:?}"))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    within(PROMPT, what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn ask(server: &RedisServer, command: &[&str]) -> String {
    server.command(command).unwrap()
}

fn number(server: &RedisServer, command: &[&str]) -> i64 {
    let answer = ask(server, command);
    let digits = answer.trim().trim_start_matches("(integer) ");
    digits
        .parse()
        .unwrap_or_else(|_| panic!("{command:?}: {answer}"))
}

/// How many places there are in the line of `name`.
fn in_line(server: &RedisServer, name: &str) -> i64 {
    number(server, &["ZCARD", &format!("{ROOT}interop/{name}")])
}

fn exists(server: &RedisServer, name: &str) -> bool {
    number(server, &["EXISTS", name]) == 1
}

type Waiting = JoinHandle<tenure_core::Result<LockGuard>>;

/// A task that waits for the lock, once it stands in line as number `number`.
async fn waiting(server: &RedisServer, lock: &LockHandle<RedisLocker>, number: i64) -> Waiting {
    let (handle, name) = (lock.clone(), lock.name().to_string());
    let task = tokio::spawn(async move { handle.lock().await });
    until("a place in line", || in_line(server, &name) >= number).await;
    task
}

async fn granted(waiting: Waiting) -> LockGuard {
    within(PROMPT, "a grant", waiting).await.unwrap().unwrap()
}

/// Long enough for several slow checks: whoever would break in has done so by then.
async fn several_checks() {
    tokio::time::sleep(Duration::from_millis(350)).await;
}

/// A process with redis-py.
struct Foreign(Process);

impl Foreign {
    async fn start(server: &RedisServer) -> Self {
        // Debian's own, since its packages are for no other.
        let python = std::env::var_os("TENURE_PYTHON").filter(|value| !value.is_empty());
        let mut command = Command::new(python.unwrap_or("/usr/bin/python3".into()));
        // Isolated: the folder of the script would hide the module.
        command.arg("-I");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign.py"));
        command.arg(server.port().to_string());
        let process = Process::spawn(command);
        let mut process = process.expect("Debian's packages python3 and python3-redis are needed");
        let ready = process.expect_line_async("ready", PROMPT).await;
        ready.expect("redis-py is needed: Debian's package python3-redis");
        Self(process)
    }

    fn begin(&mut self, line: &str) {
        self.0.send_line(line).unwrap();
    }

    async fn answers(&mut self) -> String {
        self.0.expect_line_async("", LONG).await.unwrap()
    }

    async fn tell(&mut self, line: &str) -> String {
        self.begin(line);
        self.answers().await
    }

    fn is_silent(&self) -> bool {
        !self.0.has_line()
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_holds_whoever_it_is() {
    let server = RedisServer::start_async().await.unwrap();
    let lock = locker(&server, LONG, "orders").await;
    let mut theirs = Foreign::start(&server).await;

    let guard = lock.lock().await.unwrap();
    assert_eq!(ask(&server, &["GET", "orders"]), guard.key());
    assert_eq!(theirs.tell("try orders 60").await, "busy");
    let set = ["SET", "orders", "x", "NX", "PX", "60000"];
    assert!(!ask(&server, &set).contains("OK"), "a plain SET NX PX");
    guard.release().await.unwrap();
    assert!(!exists(&server, "orders"));

    assert_eq!(theirs.tell("try orders 60").await, "acquired");
    let refused = lock.try_lock().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    let limit = Duration::from_millis(300);
    let refused = lock.lock_timeout(limit).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TimedOut);
    assert_eq!(theirs.tell("release orders").await, "released");
    // Who gave up leaves in the background.
    until("an empty line", || in_line(&server, "orders") == 0).await;
    lock.try_lock().await.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ours_keep_their_order_behind_a_foreign_holder() {
    let server = RedisServer::start_async().await.unwrap();
    let mut theirs = Foreign::start(&server).await;
    // The default: one that never expires.
    assert_eq!(theirs.tell("acquire orders -").await, "acquired");
    assert_eq!(number(&server, &["PTTL", "orders"]), -1);
    let lock = locker(&server, LONG, "orders").await;
    let mut line = Vec::new();
    for place in 1..=4 {
        let lock = match place % 2 {
            0 => locker(&server, LONG, "orders").await,
            _ => lock.clone(),
        };
        line.push(waiting(&server, &lock, place).await);
    }
    several_checks().await;
    assert!(line.iter().all(|waiting| !waiting.is_finished()));
    // Only the first in line looks.
    let looks = || {
        let stats = ask(&server, &["INFO", "commandstats"]);
        let calls = stats.lines().find_map(|line| {
            line.strip_prefix("cmdstat_evalsha:calls=")?
                .split(',')
                .next()
        });
        calls.unwrap().parse::<u64>().unwrap()
    };
    let before = looks();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let looked = looks() - before;
    assert!((1..=16).contains(&looked), "{looked} looks in a second");

    assert_eq!(theirs.tell("release orders").await, "released");
    let mut last = 0;
    for waiting in line {
        let guard = granted(waiting).await;
        assert!(guard.token().get() > last);
        if last == 0 {
            theirs.begin("acquire orders 60");
        }
        last = guard.token().get();
        assert_eq!(ask(&server, &["GET", "orders"]), guard.key());
        // redis-py looks every 100 ms; it does not get between two of ours.
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(theirs.is_silent());
        guard.release().await.unwrap();
    }
    assert_eq!(theirs.answers().await, "acquired");
    assert_eq!(theirs.tell("release orders").await, "released");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_release_and_a_foreign_expiry_are_noticed() {
    let server = RedisServer::start_async().await.unwrap();
    let lock = locker(&server, LONG, "orders").await;
    let mut theirs = Foreign::start(&server).await;
    // With an expiry far away, and with none: neither is waited for.
    for seconds in ["3000", "-"] {
        let line = format!("acquire orders {seconds}");
        assert_eq!(theirs.tell(&line).await, "acquired");
        let waiting = waiting(&server, &lock, 1).await;
        several_checks().await;
        assert!(!waiting.is_finished());
        assert_eq!(theirs.tell("release orders").await, "released");
        let guard = granted(waiting).await;
        guard.release().await.unwrap();
    }
    assert_eq!(theirs.tell("acquire orders 0.7").await, "acquired");
    let taken = Instant::now();
    let guard = granted(waiting(&server, &lock, 1).await).await;
    // The command to take it was on its way for a while.
    assert!(
        taken.elapsed() > Duration::from_millis(400),
        "{:?}",
        taken.elapsed()
    );
    assert_eq!(theirs.tell("release orders").await, "lost");
    assert_eq!(ask(&server, &["GET", "orders"]), guard.key());
    assert!(guard.is_valid());
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_with_redis_py_gets_it_after_us() {
    let server = RedisServer::start_async().await.unwrap();
    let lock = locker(&server, TTL, "orders").await;
    let mut theirs = Foreign::start(&server).await;
    let guard = lock.lock().await.unwrap();
    theirs.begin("acquire orders 60");
    // Over more than one TTL: it is the renewal that keeps them out.
    tokio::time::sleep(TTL * 2).await;
    assert!(theirs.is_silent() && guard.is_valid());
    guard.release().await.unwrap();
    assert_eq!(theirs.answers().await, "acquired");
    // And the other way round, with a drop.
    let waiting = waiting(&server, &lock, 1).await;
    assert_eq!(theirs.tell("release orders").await, "released");
    drop(granted(waiting).await);
    assert_eq!(theirs.tell("acquire orders 60").await, "acquired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_one_of_ours_held_expires_for_all() {
    let server = RedisServer::start_async().await.unwrap();
    let mut theirs = Foreign::start(&server).await;
    let (victim, died) = (Victim::new(), Instant::now());
    let lock = locker_of_victim(&server, &victim).await;
    let key = victim
        .run(async move {
            let guard = lock.lock().await.unwrap();
            let key = guard.key().to_owned();
            std::mem::forget(guard);
            key
        })
        .await;
    assert_eq!(ask(&server, &["GET", "orders"]), key);
    let session = key.rsplit_once('#').unwrap().1.split(':').next().unwrap();
    let record = format!("{ROOT}session/{session}");
    // Never less than what is left of the lease. Asked in one step, which is one instant.
    let both = "return redis.call('PTTL', KEYS[1]) - redis.call('PTTL', KEYS[2])";
    let more = number(&server, &["EVAL", both, "2", "orders", &record]);
    assert!((0..=10).contains(&more), "{more}");
    drop(victim);
    theirs.begin("acquire orders 60");
    // Somebody of ours, too, so that the place is buried.
    let ours = locker(&server, LONG, "orders").await;
    let waiting = waiting(&server, &ours, 1).await;
    assert_eq!(
        within(PROMPT, "the end of a lease", async {
            tokio::select! {
                answer = theirs.answers() => answer,
                guard = granted(waiting) => {
                    assert!(theirs.is_silent());
                    guard.release().await.unwrap();
                    theirs.answers().await
                }
            }
        })
        .await,
        "acquired"
    );
    assert!(died.elapsed() > TTL / 2);
}

async fn locker_of_victim(server: &RedisServer, victim: &Victim) -> LockHandle<RedisLocker> {
    let config = config(server);
    victim
        .run(async move {
            let store = tenure_redis::connect(config).await.unwrap();
            let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
            session.locker("orders").unwrap()
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lock_spares_whoever_has_it_now() {
    let server = RedisServer::start_async().await.unwrap();
    let session = open(&server, LONG).await;
    let lock = session.locker("orders").unwrap();
    let mut theirs = Foreign::start(&server).await;

    // Found by the release.
    let guard = lock.lock().await.unwrap();
    ask(&server, &["DEL", "orders"]);
    assert_eq!(theirs.tell("acquire orders 60").await, "acquired");
    let value = ask(&server, &["GET", "orders"]);
    let stm = session.stm().unwrap();
    let fenced = stm
        .fenced_by(&guard)
        .run(async |tx| tx.put("total", "1"))
        .await;
    assert_eq!(fenced.unwrap_err().kind(), ErrorKind::Lost);
    let lost = guard.release().await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Lost);
    assert_eq!(ask(&server, &["GET", "orders"]), value);
    assert_eq!(in_line(&server, "orders"), 0);
    assert_eq!(theirs.tell("release orders").await, "released");

    // What is held commits.
    let guard = lock.lock().await.unwrap();
    let stm = session.stm().unwrap();
    let fenced = stm
        .fenced_by(&guard)
        .run(async |tx| tx.put("total", "1"))
        .await;
    fenced.unwrap();
    guard.release().await.unwrap();

    // Found by the renewal, while another one of ours waits: it does not wait for the loser.
    let short = locker(&server, TTL, "orders").await;
    let guard = short.lock().await.unwrap();
    let waiting = waiting(&server, &lock, 2).await;
    ask(&server, &["SET", "orders", "theirs"]);
    within(PROMPT, "the alarm", guard.lost()).await;
    assert!(!guard.is_valid() && !waiting.is_finished());
    ask(&server, &["DEL", "orders"]);
    let next = granted(waiting).await;
    let lost = guard.release().await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Lost);
    assert_eq!(ask(&server, &["GET", "orders"]), next.key());
    next.release().await.unwrap();

    // A key that has gone, and stays so, is lost as well: somebody may have had it in between.
    let guard = short.lock().await.unwrap();
    ask(&server, &["DEL", "orders"]);
    within(PROMPT, "the alarm", guard.lost()).await;
    drop(guard);
    until("nothing left", || in_line(&server, "orders") == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_an_operator_removes_frees_the_key() {
    let server = RedisServer::start_async().await.unwrap();
    let lock = locker(&server, TTL, "orders").await;
    for others in [1, 0] {
        let guard = lock.lock().await.unwrap();
        let second = locker(&server, LONG, "orders").await;
        let next = match others {
            0 => None,
            _ => Some(waiting(&server, &second, 2).await),
        };
        let (line, who) = guard.key().rsplit_once('#').unwrap();
        assert_eq!(number(&server, &["ZREM", line, &format!("{who}:w")]), 1);
        within(PROMPT, "the alarm", guard.lost()).await;
        match next {
            Some(next) => granted(next).await.release().await.unwrap(),
            None => until("a free key", || !exists(&server, "orders")).await,
        }
        assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_of_redisson_is_reported() {
    let server = RedisServer::start_async().await.unwrap();
    let lock = locker(&server, LONG, "orders").await;
    let hash = ["HSET", "orders", "6c2d-thread:1", "1"];
    let redisson = |error: tenure_core::Error| {
        let text = error.chain().to_string();
        assert_eq!(error.kind(), ErrorKind::Foreign, "{text}");
        assert!(
            text.contains("Redisson") && text.contains("orders"),
            "{text}"
        );
    };
    ask(&server, &hash);
    redisson(lock.try_lock().await.unwrap_err());
    redisson(lock.lock().await.unwrap_err());
    assert_eq!(in_line(&server, "orders"), 0);
    // One that comes while ours wait.
    ask(&server, &["DEL", "orders"]);
    ask(&server, &["SET", "orders", "theirs"]);
    let first = waiting(&server, &lock, 1).await;
    let second = waiting(&server, &lock, 2).await;
    // At one instant, or the first one of ours comes in between.
    let turn = "redis.call('DEL', KEYS[1]) return redis.call('HSET', KEYS[1], 'x', '1')";
    ask(&server, &["EVAL", turn, "1", "orders"]);
    for waiting in [first, second] {
        redisson(
            within(PROMPT, "an error", waiting)
                .await
                .unwrap()
                .unwrap_err(),
        );
    }
    assert_eq!(in_line(&server, "orders"), 0);
    assert_eq!(ask(&server, &["TYPE", "orders"]), "hash");
    // Something else.
    ask(&server, &["DEL", "orders"]);
    ask(&server, &["LPUSH", "orders", "1"]);
    let error = lock.lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
    assert!(!error.chain().to_string().contains("Redisson"), "{error}");
    // One that came over a holder of ours.
    ask(&server, &["DEL", "orders"]);
    let guard = lock.lock().await.unwrap();
    ask(&server, &["DEL", "orders"]);
    ask(&server, &hash);
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(ask(&server, &["TYPE", "orders"]), "hash");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cancels_or_closes_leaves_nothing() {
    let server = RedisServer::start_async().await.unwrap();
    let session = open(&server, LONG).await;
    let lock = session.locker("a/b %2F\u{e4}").unwrap();
    let escaped = "a%2Fb %252F\u{e4}";
    let guard = lock.lock().await.unwrap();
    assert!(exists(&server, "a/b %2F\u{e4}"), "verbatim");
    assert_eq!(in_line(&server, escaped), 1);
    let handle = lock.clone();
    let waiting = tokio::spawn(async move { handle.lock().await });
    until("a place in line", || in_line(&server, escaped) == 2).await;
    waiting.abort();
    until("it has gone", || in_line(&server, escaped) == 1).await;
    guard.release().await.unwrap();
    // Behind a foreign holder.
    ask(&server, &["SET", "x", "theirs"]);
    let lock = session.locker("x").unwrap();
    let refused = lock.lock_timeout(Duration::from_millis(200)).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::TimedOut);
    until("it has gone", || in_line(&server, "x") == 0).await;
    ask(&server, &["DEL", "x"]);
    let mut rest = keys(&server);
    rest.retain(|key| !key.contains("/session"));
    assert_eq!(rest, [format!("{ROOT}last")]);
    // What is held when the session closes.
    let held = [
        lock.lock().await.unwrap(),
        session.locker("y").unwrap().lock().await.unwrap(),
    ];
    assert!(exists(&server, "x") && exists(&server, "y"));
    session.close().await.unwrap();
    drop(held);
    assert_eq!(keys(&server), [format!("{ROOT}last")]);
}

fn keys(server: &RedisServer) -> Vec<String> {
    let listed = ask(
        server,
        &[
            "EVAL",
            "return table.concat(redis.call('KEYS', '*'), '\\n')",
            "0",
        ],
    );
    let mut keys: Vec<_> = listed.lines().map(str::to_owned).collect();
    keys.sort();
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_renews_the_keys_of_all_it_holds() {
    let server = RedisServer::start_async().await.unwrap();
    let session = open(&server, Duration::from_secs(6)).await;
    let mut held = Vec::new();
    for number in 0..1_100 {
        let lock = session.locker(format!("many-{number}")).unwrap();
        held.push(lock.lock().await.unwrap());
    }
    let taken = Instant::now();
    let record = format!("{ROOT}session/{}", session.id());
    let least = "local least = math.huge
        for i = 0, 1099 do least = math.min(least, redis.call('PTTL', 'many-' .. i)) end
        return least - redis.call('PTTL', KEYS[1])";
    // Not at the instant in which a renewal is half done.
    until("all keys live as long as the session", || {
        taken.elapsed() > Duration::from_secs(7)
            && number(&server, &["EVAL", least, "1", &record]) >= 0
    })
    .await;
    assert!(held.iter().all(|guard| guard.is_valid()));
    session.close().await.unwrap();
    assert!(!exists(&server, "many-0") && !exists(&server, "many-1099"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_session_has_its_keys() {
    let server = RedisServer::start_async().await.unwrap();
    let store = store(&server).await;
    let old = store.open(SessionOptions::new().ttl(LONG)).await.unwrap();
    let guard = old.locker("orders").unwrap().lock().await.unwrap();
    let token = guard.token();
    let id = old.detach().await.unwrap();
    drop(guard);
    assert!(exists(&server, "orders"));
    let session = store.resume(&id).await.unwrap();
    let lock = session.locker("orders").unwrap();
    let guard = lock.reclaim(token).await.unwrap();
    assert_eq!(ask(&server, &["GET", "orders"]), guard.key());
    assert_eq!(
        lock.try_lock().await.unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    guard.release().await.unwrap();
    assert!(!exists(&server, "orders"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_two_at_once_in_a_storm() {
    let server = Arc::new(RedisServer::start_async().await.unwrap());
    let mut theirs = [Foreign::start(&server).await, Foreign::start(&server).await];
    for foreign in &mut theirs {
        foreign.begin("storm orders 25");
    }
    let ours = (0..3).map(|_| {
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let lock = locker(&server, LONG, "orders").await;
            for _ in 0..40 {
                let guard = lock.lock().await.unwrap();
                assert_eq!(number(&server, &["INCR", "inside"]), 1);
                number(&server, &["DECR", "inside"]);
                guard.release().await.unwrap();
                // Others get a chance.
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        })
    });
    let ours: Vec<_> = ours.collect();
    for task in ours {
        within(LONG, "our part", task).await.unwrap();
    }
    for foreign in &mut theirs {
        assert_eq!(foreign.answers().await, "done");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_cannot_be_keys_are_refused() {
    let server = RedisServer::start_async().await.unwrap();
    let session = open(&server, LONG).await;
    for name in [
        "{tenure/1/default}/last",
        "{tenure/x",
        "{tenure/1/default}orders",
    ] {
        let lock = session.locker(name).unwrap();
        for refused in [lock.try_lock().await, lock.lock().await] {
            assert_eq!(
                refused.unwrap_err().kind(),
                ErrorKind::InvalidName,
                "{name}"
            );
        }
    }
    // Other primitives are where they always are.
    let election = session.election("{tenure/x").unwrap();
    drop(election.campaign("me").await.unwrap());
    let guarantees = store(&server).await.guarantees().await.unwrap();
    assert_eq!(guarantees.token_order.value, TokenOrder::None);
    assert_eq!(guarantees.name_isolation.value, NameIsolation::Verbatim);

    let cluster = RedisCluster::start_async().await.unwrap();
    let url = format!("{}?interop=true&namespace=shop", cluster.url());
    let config = RedisConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
    let store = tenure_redis::connect(config).await.unwrap();
    let session = store.open(SessionOptions::new().ttl(LONG)).await.unwrap();
    let lock = session.locker("orders").unwrap();
    let refused = lock.lock().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidName);
    assert!(
        refused.chain().to_string().contains("{tenure/1/shop}"),
        "{refused}"
    );
    let lock = session.locker("orders:{tenure/1/shop}").unwrap();
    let guard = within(PROMPT, "a lock", lock.lock()).await.unwrap();
    guard.release().await.unwrap();
    session.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_rights_are_those_documented_and_the_names() {
    let namespace = Namespace::default();
    let rules = acl_rules(&namespace);
    let server = RedisServer::builder()
        .user("app", &format!("on >secret ~shared:* {rules}"))
        .start_async();
    let server = server.await.unwrap();
    let store = tenure_redis::connect(config(&server).user("app", "secret"))
        .await
        .unwrap();
    let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    let lock = session.locker("shared:orders").unwrap();
    let guard = lock.lock().await.unwrap();
    let next = waiting(&server, &lock, 2).await;
    tokio::time::sleep(TTL).await;
    assert!(guard.is_valid());
    guard.release().await.unwrap();
    granted(next).await.release().await.unwrap();
    assert!(session.is_valid());

    let refused = session.locker("other").unwrap().lock().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{refused}");
    until("nothing left", || in_line(&server, "other") == 0).await;
}
