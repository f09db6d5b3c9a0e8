//! Every primitive through the command, against every real store: what one process leaves for
//! another, two shells beside each other, and elections shared with `etcdctl`.

#![cfg(any(feature = "etcd", feature = "redis", feature = "postgres"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{Done, PATIENCE, Shell, run, run_with_input, says, tenure, until};
#[cfg(feature = "etcd")]
use tenure_testbed::EtcdServer;
#[cfg(feature = "postgres")]
use tenure_testbed::PostgresServer;
#[cfg(feature = "redis")]
use tenure_testbed::RedisServer;
use tenure_testbed::{Process, Signal};

/// A server, and `tenure` on it.
struct Store {
    server: Server,
    url: String,
}

enum Server {
    #[cfg(feature = "etcd")]
    Etcd(EtcdServer),
    #[cfg(feature = "redis")]
    Redis(RedisServer),
    #[cfg(feature = "postgres")]
    Postgres(PostgresServer),
}

/// How much holds or waits: advisory locks but those of sessions, places in lines, and who lives in a room.
#[cfg(feature = "postgres")]
const COUNT_LOCKS: &str = "SELECT (SELECT count(*) FROM tenure.tickets) \
    + (SELECT count(*) FROM tenure.participants AS p WHERE tenure.alive(p.session)) \
    + (SELECT count(*) FROM pg_locks AS l WHERE l.locktype = 'advisory' \
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
        AND NOT EXISTS (SELECT FROM tenure.sessions AS s \
            WHERE tenure.session_key(s.id) = (l.classid::bigint << 32 | l.objid::bigint)))";

/// How much holds or waits: the entries of all lines, values, queues and barriers.
#[cfg(feature = "redis")]
const COUNT_ENTRIES: &str = r"
local entries = 0
for _, key in ipairs(redis.call('KEYS', '*')) do
    if not (string.find(key, '/session') or string.find(key, '/held/')) then
        local kind = redis.call('TYPE', key).ok
        local count = {zset = 'ZCARD', hash = 'HLEN', set = 'SCARD', list = 'LLEN'}
        entries = entries + (count[kind] and redis.call(count[kind], key) or 1)
    end
end
return entries";

impl Store {
    #[cfg(feature = "etcd")]
    fn etcd() -> Self {
        let etcd = EtcdServer::start().unwrap();
        let url = format!("etcd://{}/cli", etcd.address());
        let server = Server::Etcd(etcd);
        Self { server, url }
    }

    #[cfg(feature = "redis")]
    fn redis() -> Self {
        let redis = RedisServer::start().unwrap();
        let url = format!("{}?namespace=cli", redis.url());
        let server = Server::Redis(redis);
        Self { server, url }
    }

    #[cfg(feature = "postgres")]
    fn postgres() -> Self {
        let postgres = PostgresServer::start().unwrap();
        let url = format!("{}?namespace=cli&sslmode=disable", postgres.url());
        let server = Server::Postgres(postgres);
        Self { server, url }
    }

    #[cfg(feature = "etcd")]
    fn interop() -> Self {
        let mut store = Self::etcd();
        store.url.push_str("?interop=true");
        store
    }

    fn command(&self, args: &[&str]) -> Command {
        tenure(["--url", &self.url].iter().chain(args))
    }

    fn run(&self, args: &[&str]) -> Done {
        run(self.command(args))
    }

    fn feed(&self, args: &[&str], input: &[u8]) -> Done {
        run_with_input(self.command(args), input)
    }

    fn spawn(&self, args: &[&str]) -> Process {
        Process::spawn(self.command(args)).unwrap()
    }

    fn shell(&self, args: &[&str]) -> Shell {
        Shell::start(&[&["--url", &self.url], args].concat())
    }

    /// Prints exactly this, and is done.
    #[track_caller]
    fn prints(&self, args: &[&str], output: &str) {
        let done = self.run(args);
        done.exits(0);
        assert_eq!(done.stdout, output, "{args:?}");
    }

    /// The keys of the store, or what it has in their place.
    fn keys(&self) -> usize {
        match &self.server {
            #[cfg(feature = "etcd")]
            Server::Etcd(etcd) => {
                let get = ["get", "", "--prefix", "--keys-only"];
                let listed = etcd.run_etcdctl(&get).unwrap();
                listed.lines().filter(|line| !line.is_empty()).count()
            }
            #[cfg(feature = "redis")]
            Server::Redis(redis) => {
                let counted = redis.command(&["EVAL", COUNT_ENTRIES, "0"]);
                counted.unwrap().parse().unwrap()
            }
            #[cfg(feature = "postgres")]
            Server::Postgres(postgres) => postgres.sql(COUNT_LOCKS).unwrap().parse().unwrap(),
        }
    }

    /// Takes a lock away from whoever holds it, as an operator.
    fn take_away(&self, lock: &str) {
        match &self.server {
            #[cfg(feature = "etcd")]
            Server::Etcd(etcd) => {
                let prefix = format!("tenure/1/cli/lock/{lock}/");
                etcd.run_etcdctl(&["del", "--prefix", &prefix]).unwrap();
            }
            #[cfg(feature = "redis")]
            Server::Redis(redis) => {
                let key = format!("{{tenure/1/cli}}/lock/{lock}");
                assert_eq!(redis.command(&["DEL", &key]).unwrap(), "1");
            }
            #[cfg(feature = "postgres")]
            Server::Postgres(postgres) => {
                let told = format!("SELECT tenure.evict_path('tenure/1/cli/lock/{lock}')");
                assert_eq!(postgres.sql(told).unwrap(), "1");
            }
        }
    }

    /// How many there are once nobody comes or goes: a process that has ended may be counted for a moment.
    #[track_caller]
    fn settled_keys(&self) -> usize {
        let (mut last, mut same) = (self.keys(), 0);
        until("keys that stay", || {
            let now = self.keys();
            same = if now == last { same + 1 } else { 0 };
            last = now;
            same >= 20
        });
        last
    }

    /// Waits until there is another key that stays: somebody who waits is in line then.
    #[track_caller]
    fn until_more_keys_than(&self, before: usize) {
        until("another key", || self.settled_keys() > before);
    }
}

#[track_caller]
fn line(process: &mut Process, begins: &str) -> String {
    let line = process.expect_line("", PATIENCE).unwrap();
    assert!(line.starts_with(begins), "{line:?} instead of {begins:?}");
    line
}

#[track_caller]
fn token(process: &mut Process) -> u64 {
    let line = process.expect_line("token=", PATIENCE).unwrap();
    line.rsplit_once("token=").unwrap().1.parse().unwrap()
}

#[track_caller]
fn ends(process: &mut Process, code: i32) {
    assert_eq!(process.wait(PATIENCE).unwrap().code(), Some(code));
}

#[track_caller]
fn object(done: &Done) -> serde_json::Value {
    serde_json::from_str(done.stdout.trim_end()).unwrap()
}

/// A test of its own for each of these and each store.
macro_rules! on_every_store {
    ($($test:ident)*) => {
        #[cfg(feature = "etcd")]
        mod etcd {
            $(#[test]
            fn $test() {
                super::$test(super::Store::etcd());
            })*
        }

        #[cfg(feature = "redis")]
        mod redis {
            $(#[test]
            fn $test() {
                super::$test(super::Store::redis());
            })*
        }

        #[cfg(feature = "postgres")]
        mod postgres {
            $(#[test]
            fn $test() {
                super::$test(super::Store::postgres());
            })*
        }
    };
}

on_every_store! {
    readers_share_and_writers_do_not
    an_election_on_the_command_line
    a_leaders_value_cannot_forge_a_line
    a_paused_leaders_command_is_ended
    a_queue_on_the_command_line
    values_from_stdin_and_back
    a_command_gets_the_value_and_decides
    what_nobody_could_read_is_not_lost
    a_killed_consumers_item_comes_back
    a_paused_consumers_command_is_ended
    a_barrier_on_the_command_line
    all_enter_and_all_leave
    keys_on_the_command_line
    transactions
    two_shells_and_an_election
    two_shells_and_a_read_write_lock
    two_shells_and_a_lock
    a_shell_outlives_the_loss_of_one_thing
    two_shells_and_a_queue
    two_shells_and_barriers
}

fn readers_share_and_writers_do_not(store: Store) {
    let mut first = store.spawn(&["read-lock", "config"]);
    line(&mut first, "config token=");
    let mut second = store.spawn(&["read-lock", "config"]);
    line(&mut second, "config token=");
    store
        .run(&["write-lock", "config", "--try"])
        .fails(75, &["config"]);
    store
        .run(&["write-lock", "config", "--wait", "200ms", "--", "true"])
        .fails(75, &["config"]);

    let mut writer = store.spawn(&[
        "write-lock",
        "config",
        "--",
        "sh",
        "-c",
        "echo token=$TENURE_TOKEN; read line",
    ]);
    let before = store.keys();
    first.terminate().unwrap();
    ends(&mut first, 0);
    assert!(writer.try_line().is_none());
    second.terminate().unwrap();
    ends(&mut second, 0);
    token(&mut writer);
    store.run(&["read-lock", "config", "--try"]).fails(75, &[]);
    writer.send_line("").unwrap();
    ends(&mut writer, 0);
    store
        .run(&["read-lock", "config", "--try", "--", "sh", "-c", "exit 3"])
        .exits(3);
    assert!(before > 0);
}

fn an_election_on_the_command_line(store: Store) {
    let none = store.run(&["leader", "boss"]);
    none.exits(1);
    assert_eq!(none.stdout, "no leader\n");
    let none = store.run(&["leader", "boss", "--json"]);
    none.exits(1);
    assert!(object(&none)["leader"].is_null());

    let mut observer = store.spawn(&["observe", "boss"]);
    line(&mut observer, "no leader");
    let mut first = store.spawn(&["elect", "boss", "node-1"]);
    let announced = line(&mut first, "boss leader=node-1 token=");
    let one: u64 = announced.rsplit_once('=').unwrap().1.parse().unwrap();
    line(&mut observer, &format!("leader=node-1 token={one}"));
    store.prints(&["leader", "boss"], "node-1\n");
    let known = object(&store.run(&["leader", "boss", "--json"]));
    assert_eq!(
        (&known["leader"], &known["token"]),
        (&"node-1".into(), &one.into())
    );

    store
        .run(&["elect", "boss", "x", "--try"])
        .fails(75, &["boss"]);
    store
        .run(&["elect", "boss", "x", "--wait", "200ms"])
        .fails(75, &["boss"]);
    let before = store.keys();
    let mut second = store.spawn(&[
        "elect",
        "boss",
        "node-2",
        "--",
        "sh",
        "-c",
        "echo token=$TENURE_TOKEN; read line; exit 5",
    ]);
    store.until_more_keys_than(before);
    first.terminate().unwrap();
    ends(&mut first, 0);
    assert!(token(&mut second) > one);
    observer.expect_line("leader=node-2", PATIENCE).unwrap();
    second.send_line("").unwrap();
    ends(&mut second, 5);
    line(&mut observer, "no leader");
    observer.signal(Signal::INT).unwrap();
    ends(&mut observer, 0);
}

fn a_leaders_value_cannot_forge_a_line(store: Store) {
    let value = "a\nno leader";
    let mut leader = store.spawn(&["elect", "boss", value]);
    line(&mut leader, r#"boss leader="a\nno leader" token="#);
    store.prints(&["leader", "boss"], "a\\nno leader\n");
    let known = object(&store.run(&["leader", "boss", "--json"]));
    assert_eq!(known["leader"], value);
    let mut observer = store.spawn(&["observe", "boss", "--json"]);
    let seen = line(&mut observer, "{");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&seen).unwrap()["leader"],
        value
    );
    observer.terminate().unwrap();
    ends(&mut observer, 0);
}

fn a_paused_leaders_command_is_ended(store: Store) {
    let child =
        "trap 'echo ending; exit 0' TERM; echo token=$TENURE_TOKEN; while :; do sleep 0.02; done";
    let mut paused = store.spawn(&["elect", "boss", "a", "--ttl", "2s", "--", "sh", "-c", child]);
    let first = token(&mut paused);
    paused.pause().unwrap();
    let mut other = store.spawn(&["elect", "boss", "b"]);
    assert!(token(&mut other) > first);
    paused.resume().unwrap();
    paused.expect_line("ending", PATIENCE).unwrap();
    ends(&mut paused, 76);
    says(&paused, "tenure: lost \"boss\"");
    store.prints(&["leader", "boss"], "b\n");
}

fn a_queue_on_the_command_line(store: Store) {
    store.prints(&["enqueue", "jobs", "late", "--priority", "9"], "");
    store.prints(&["enqueue", "jobs", "--", "-first"], "");
    store.prints(&["queue-len", "jobs"], "2\n");
    store.prints(&["queue-peek", "jobs"], "-first\n");
    let depth = object(&store.run(&["queue-len", "jobs", "--json"]));
    assert_eq!((&depth["len"], &depth["ready"]), (&2.into(), &2.into()));

    store.prints(&["dequeue", "jobs"], "-first\n");
    let taken = object(&store.run(&["dequeue", "jobs", "--json"]));
    assert_eq!(taken["value"], "late");
    assert_eq!(taken["priority"], 9);
    assert_eq!(taken["deliveries"], 1);
    store.prints(&["queue-len", "jobs"], "0\n");

    store.run(&["queue-peek", "jobs"]).fails(1, &["jobs"]);
    store
        .run(&["dequeue", "jobs", "--wait", "0s"])
        .fails(75, &["jobs"]);
    let started = Instant::now();
    store
        .run(&["dequeue", "jobs", "--wait", "300ms"])
        .fails(75, &["jobs"]);
    assert!(started.elapsed() >= Duration::from_millis(300));
    store
        .run(&[
            "dequeue",
            "jobs",
            "--wait",
            "0s",
            "--not-acquired-code",
            "9",
        ])
        .fails(9, &[]);

    let mut waiting = store.spawn(&["dequeue", "jobs"]);
    store.prints(&["enqueue", "jobs", "three"], "");
    line(&mut waiting, "three");
    ends(&mut waiting, 0);
}

fn values_from_stdin_and_back(store: Store) {
    let lines: Vec<String> = (0..200).map(|n| format!("job {n}")).collect();
    // The last line has no end, and one is empty.
    let input = format!("{}\n\n\u{ff}last", lines.join("\n"));
    store
        .feed(&["enqueue", "jobs", "-"], input.as_bytes())
        .exits(0);
    store.prints(&["queue-len", "jobs"], "202\n");
    let done = store.run(&["dequeue", "jobs", "--count", "202"]);
    done.exits(0);
    assert_eq!(done.stdout, input + "\n");

    // Bytes are bytes.
    store
        .feed(&["enqueue", "jobs", "-"], b"\xff\xfe\n")
        .exits(0);
    let mut command = store.command(&["dequeue", "jobs"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let done = tenure_testbed::output_within(command, PATIENCE).unwrap();
    assert_eq!(done.stdout, b"\xff\xfe\n");
    store.feed(&["enqueue", "jobs", "-"], b"\xff\xfe").exits(0);
    let taken = object(&store.run(&["dequeue", "jobs", "--json"]));
    assert_eq!(taken["value_base64"], "//4=");

    // What came before the end is printed, and done.
    store.prints(&["enqueue", "jobs", "only"], "");
    let done = store.run(&["dequeue", "jobs", "--count", "2", "--wait", "0s"]);
    done.fails(75, &[]);
    assert_eq!(done.stdout, "only\n");
    store.prints(&["queue-len", "jobs"], "0\n");
    let counted = store.feed(&["enqueue", "jobs", "-", "--json"], b"a\nb\n");
    assert_eq!(object(&counted)["enqueued"], 2);
}

fn a_command_gets_the_value_and_decides(store: Store) {
    // Larger than a pipe.
    let value = "v".repeat(100_000);
    store
        .feed(&["enqueue", "jobs", "-"], value.as_bytes())
        .exits(0);
    let take =
        |child: &str| store.run(&["dequeue", "jobs", "--wait", "0s", "--", "sh", "-c", child]);
    take("exit 7").exits(7);
    take("kill -TERM $$").exits(143);
    let done = store.run(&["dequeue", "jobs", "--", "/no/such/program"]);
    done.fails(127, &[]);
    let done = take(r#"printf '%s %s ' "$TENURE_NAME" "$TENURE_TOKEN"; wc -c"#);
    done.exits(0);
    let words: Vec<&str> = done.stdout.split_whitespace().collect();
    assert_eq!((words[0], words[2]), ("jobs", "100000"));
    assert!(words[1].parse::<u64>().unwrap() > 0);
    take("true").fails(75, &[]);

    // A count is so many commands, up to the first that fails.
    store.feed(&["enqueue", "jobs", "-"], b"1\n2\n3\n").exits(0);
    let child = "read n; echo got $n; test $n != 2";
    let done = store.run(&["dequeue", "jobs", "--count", "3", "--", "sh", "-c", child]);
    // `read` finds no line end, and goes on.
    done.exits(1);
    assert_eq!(done.stdout, "got 1\ngot 2\n");
    store.prints(&["queue-len", "jobs"], "2\n");
    let next = object(&store.run(&["dequeue", "jobs", "--json"]));
    assert_eq!(
        (&next["value"], &next["deliveries"]),
        (&"2".into(), &2.into())
    );
}

fn what_nobody_could_read_is_not_lost(store: Store) {
    store.prints(&["enqueue", "jobs", "precious"], "");
    // A pipe without a reader.
    let mut command = store.command(&["dequeue", "jobs"]);
    let mut reader = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
    let pipe = reader.stdin.take().unwrap();
    reader.wait().unwrap();
    command.stdin(Stdio::null()).stdout(pipe);
    let done: Done = tenure_testbed::output_within(command, PATIENCE)
        .unwrap()
        .into();
    // As for a program that dies of SIGPIPE, and without a word.
    assert_eq!(done.code, Some(141), "{done:?}");
    assert_eq!(done.stderr, "");
    store.prints(&["dequeue", "jobs", "--wait", "10s"], "precious\n");
}

fn a_killed_consumers_item_comes_back(store: Store) {
    store.prints(&["enqueue", "jobs", "one"], "");
    let mut consumer = store.spawn(&[
        "dequeue",
        "jobs",
        "--ttl",
        "2s",
        "--",
        "sh",
        "-c",
        "echo token=$TENURE_TOKEN; sleep 600",
    ]);
    token(&mut consumer);
    let depth = object(&store.run(&["queue-len", "jobs", "--json"]));
    assert_eq!((&depth["len"], &depth["in_flight"]), (&1.into(), &1.into()));
    consumer.kill().unwrap();
    let taken = object(&store.run(&["dequeue", "jobs", "--json"]));
    assert_eq!(
        (&taken["value"], &taken["deliveries"]),
        (&"one".into(), &2.into())
    );
}

fn a_paused_consumers_command_is_ended(store: Store) {
    store.prints(&["enqueue", "jobs", "one"], "");
    let child =
        "trap 'echo ending; exit 0' TERM; echo token=$TENURE_TOKEN; while :; do sleep 0.02; done";
    let mut paused = store.spawn(&["dequeue", "jobs", "--ttl", "2s", "--", "sh", "-c", child]);
    token(&mut paused);
    paused.pause().unwrap();
    store.prints(&["dequeue", "jobs"], "one\n");
    paused.resume().unwrap();
    paused.expect_line("ending", PATIENCE).unwrap();
    ends(&mut paused, 76);
    store.prints(&["queue-len", "jobs"], "0\n");
}

fn a_barrier_on_the_command_line(store: Store) {
    store.prints(&["barrier", "wait", "gate"], "");
    store.prints(&["barrier", "hold", "gate"], "");
    store.run(&["barrier", "hold", "gate"]).fails(1, &["gate"]);
    // Its holder has ended long ago.
    store
        .run(&["barrier", "wait", "gate", "--wait", "300ms"])
        .fails(75, &["gate"]);
    let mut waiting = store.spawn(&["barrier", "wait", "gate", "--json"]);
    let released = object(&store.run(&["barrier", "release", "gate", "--json"]));
    assert_eq!(released["released"], true);
    ends(&mut waiting, 0);
    let again = store.run(&["barrier", "release", "gate"]);
    again.exits(0);
    assert!(again.stderr.contains("was not held"), "{again:?}");
}

fn all_enter_and_all_leave(store: Store) {
    let child = "echo inside; read line; exit 4";
    let enter = ["barrier", "enter", "phase", "--count", "2"];
    let with = [&enter[..], &["--", "sh", "-c", child]].concat();
    store
        .run(&[&enter[..], &["--wait", "300ms"]].concat())
        .fails(75, &["phase"]);
    let mut first = store.spawn(&with);
    let mut second = store.spawn(&enter);
    line(&mut first, "inside");
    line(&mut second, "phase token=");
    // The second has left, and waits for the first.
    assert!(second.is_running());
    store.run(&enter).fails(1, &["phase"]);
    first.send_line("").unwrap();
    ends(&mut first, 4);
    ends(&mut second, 0);

    // A signal ends the wait.
    let nobody = store.settled_keys();
    let mut alone = store.spawn(&enter);
    store.until_more_keys_than(nobody);
    let before = store.keys();
    alone.terminate().unwrap();
    ends(&mut alone, 143);
    assert!(store.keys() <= before);
}

fn keys_on_the_command_line(store: Store) {
    let absent = store.run(&["get", "k"]);
    absent.fails(1, &["k"]);
    assert_eq!(absent.stdout, "");
    store.prints(&["put", "k", "v 1"], "");
    store.prints(&["get", "k"], "v 1\n");
    store.prints(&["put", "k", "--", "-v"], "");
    let entry = object(&store.run(&["get", "k", "--json"]));
    assert_eq!(
        (&entry["value"], &entry["version"]),
        (&"-v".into(), &2.into())
    );
    assert!(entry["modified"].as_u64() > entry["created"].as_u64());
    store.prints(&["delete", "k"], "");
    let absent = store.run(&["get", "k", "--json"]);
    absent.exits(1);
    assert!(object(&absent)["value"].is_null());
    let again = store.run(&["delete", "k"]);
    again.exits(0);
    assert!(again.stderr.contains("was absent"), "{again:?}");
}

fn transactions(store: Store) {
    let txn = |text: &str| store.feed(&["txn"], text.as_bytes());
    let create = "create(\"state\") = 0\n\nput state \"open \\\"a\\\"\"\nput n 1\n\nget state\nget missing\nget n\n";
    txn(create).exits(0);
    let again = txn(create);
    again.exits(1);
    assert_eq!(again.stdout, "open \"a\"\n\n1\n");
    txn("value(\"state\") = 'open \"a\"'\nversion(n) > 0\nmod(n) != 0\n\nget n\ndelete n\n")
        .exits(0);
    store.run(&["get", "n"]).fails(1, &[]);
    txn("value(\"state\") != 'open \"a\"'\n\nput n 1\n").exits(1);
    store.run(&["get", "n"]).fails(1, &[]);

    let json = store.feed(&["txn", "--json"], b"\nget state\nget n\n");
    json.exits(0);
    let lines: Vec<serde_json::Value> = json
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["value"], "open \"a\"");
    assert!(lines[1]["value"].is_null());
    assert_eq!(lines[2]["succeeded"], true);

    for (text, words) in [
        (
            "value(\"k\") = \"v\"\nvalue(k\n",
            &["line 2", "value(\"KEY\")"][..],
        ),
        ("\nput a\n", &["line 2", "put KEY VALUE"]),
        ("", &["empty"]),
    ] {
        txn(text).fails(64, words);
    }
}

/// What has no effect must not look like an answer.
#[test]
fn a_dead_store_is_69() {
    let dead = support::dead_address();
    if cfg!(feature = "etcd") {
        nobody_answers_at(&format!("etcd://{dead}/ns"));
    }
    if cfg!(feature = "redis") {
        nobody_answers_at(&format!("redis://{dead}"));
    }
    if cfg!(feature = "postgres") {
        nobody_answers_at(&format!("postgres://me@{dead}/db?sslmode=disable"));
    }
}

fn nobody_answers_at(url: &str) {
    for args in [
        &["leader", "x"][..],
        &["observe", "x"],
        &["elect", "x", "v"],
        &["read-lock", "x"],
        &["enqueue", "x", "v"],
        &["dequeue", "x"],
        &["queue-len", "x"],
        &["barrier", "wait", "x"],
        &["barrier", "enter", "x", "--count", "1"],
        &["get", "x"],
        &["shell"],
    ] {
        run(tenure(["--url", url].iter().chain(args))).fails(69, &[]);
    }
}

fn two_shells_and_an_election(store: Store) {
    let (mut one, mut two) = (store.shell(&["--ttl", "2s"]), store.shell(&[]));
    one.does("query", "query: no leader");
    let first = one.takes("elect alpha", "elect: leader");
    for shell in [&mut one, &mut two] {
        shell.does("query", &format!("query: leader=alpha token={first}"));
        shell.does("rev", &format!("rev: token={first}"));
        shell.does("watch", &format!("watch: leader=alpha token={first}"));
    }
    one.does("proclaim ready", "proclaim: proclaimed");
    one.next(&format!("watch: leader=ready token={first}"));
    two.next(&format!("watch: leader=ready token={first}"));
    two.does("elect beta", "elect: waiting");
    // The prompt goes on.
    two.does("get k", "get k: absent");

    one.send("resign");
    one.0.expect_line("resign: resigned", PATIENCE).unwrap();
    let line = two.0.expect_line("elect: leader token=", PATIENCE).unwrap();
    let second: u64 = line.rsplit_once('=').unwrap().1.parse().unwrap();
    assert!(second > first);
    one.0
        .expect_line(&format!("watch: leader=beta token={second}"), PATIENCE)
        .unwrap();
    one.send("proclaim no");
    one.0
        .expect_line("proclaim: error: not the leader", PATIENCE)
        .unwrap();

    // And back, by the death of the leader.
    let (mut three, mut four) = (store.shell(&["--ttl", "2s"]), store.shell(&[]));
    let third = three.takes("elect @other gamma", "elect @other: leader");
    four.does("elect @other delta", "elect @other: waiting");
    three.0.kill().unwrap();
    let fourth = four.token("elect @other: leader");
    assert!(fourth > third);
    four.does(
        "query other",
        &format!("query @other: leader=delta token={fourth}"),
    );
}

fn two_shells_and_a_read_write_lock(store: Store) {
    let (mut one, mut two) = (store.shell(&[]), store.shell(&[]));
    one.takes("r", "r: held");
    two.takes("r", "r: held");
    two.does("runlock", "runlock: released");
    two.does("w", "w: waiting");
    one.does("runlock", "runlock: released");
    two.token("w: held");
    one.does("r", "r: waiting");
    two.does("wunlock", "wunlock: released");
    one.token("r: held");
    one.ends();
    two.ends();
}

fn two_shells_and_a_lock(store: Store) {
    let (mut one, mut two) = (store.shell(&["--ttl", "2s"]), store.shell(&[]));
    let first = one.takes("lock", "lock: held");
    two.does("lock", "lock: waiting");
    two.send("unlock");
    two.next("lock: withdrawn");
    two.next("unlock: withdrawn");
    two.does("lock", "lock: waiting");
    // The end of the input frees what is held.
    one.ends();
    assert!(two.token("lock: held") > first);
    two.ends();
}

/// What an operator takes away is gone; the rest of the session is not.
fn a_shell_outlives_the_loss_of_one_thing(store: Store) {
    let mut shell = store.shell(&["--ttl", "2s"]);
    let token = shell.takes("lock @a", "lock @a: held");
    shell.takes("lock @b", "lock @b: held");
    store.take_away("a");
    let lost = shell.next("lock @a: lost reason=");
    assert!(lost.ends_with(&format!("token={token}")), "{lost}");
    shell.does("unlock @a", "unlock @a: error: not held");
    shell.does("unlock @b", "unlock @b: released");
    shell.ends();
}

fn two_shells_and_a_queue(store: Store) {
    let (mut one, mut two) = (store.shell(&[]), store.shell(&[]));
    two.does("pop", "pop: waiting");
    one.does("push a", "push: enqueued");
    two.next("pop: value=a");
    one.does("push late", "push: enqueued");
    one.does("push @demo later", "push: enqueued");
    two.does("pop", "pop: value=late");
    one.does("pop", "pop: value=later");
    one.ends();
    two.ends();
}

fn two_shells_and_barriers(store: Store) {
    let (mut one, mut two) = (store.shell(&[]), store.shell(&[]));
    one.does("hold", "hold: held");
    two.does("wait", "wait: waiting");
    one.does("release", "release: released");
    two.next("wait: released");
    // One that ends lets go of it.
    one.does("hold", "hold: held");
    two.does("wait", "wait: waiting");

    one.does("enter 2", "enter: waiting");
    two.does("enter 2", "enter: waiting");
    one.token("enter: entered");
    two.token("enter: entered");
    one.does("leave", "leave: waiting");
    two.does("leave", "leave: waiting");
    one.next("leave: left");
    two.next("leave: left");
    one.does("enter 2", "enter: waiting");
    one.send("leave");
    one.next("enter: withdrawn");
    one.next("leave: withdrawn");
    one.ends();
    two.next("wait: released");
    two.ends();
}

/// `etcdctl elect NAME VALUE`, which prints its key and its value once it leads.
#[cfg(feature = "etcd")]
fn etcdctl_elect(store: &Store, args: &[&str]) -> Process {
    #[allow(irrefutable_let_patterns, reason = "not if there is another store")]
    let Server::Etcd(etcd) = &store.server else {
        panic!("etcdctl works with etcd only");
    };
    let command = etcd.etcdctl(&[&["elect"], args].concat()).unwrap();
    Process::spawn(command).unwrap()
}

#[test]
#[cfg(feature = "etcd")]
fn etcdctl_and_tenure_elect_one_leader() {
    let store = Store::interop();
    let mut theirs = etcdctl_elect(&store, &["boss", "theirs"]);
    line(&mut theirs, "boss/");
    line(&mut theirs, "theirs");
    store.prints(&["leader", "boss"], "theirs\n");
    store
        .run(&["elect", "boss", "ours", "--try"])
        .fails(75, &[]);
    let before = store.keys();
    let mut ours = store.spawn(&["elect", "boss", "ours"]);
    store.until_more_keys_than(before);
    assert!(ours.try_line().is_none());
    theirs.signal(Signal::INT).unwrap();
    line(&mut ours, "boss leader=ours token=");

    // They see ours, and wait for us.
    let mut listening = etcdctl_elect(&store, &["--listen", "boss"]);
    listening.expect_line("ours", PATIENCE).unwrap();
    let before = store.keys();
    let mut theirs = etcdctl_elect(&store, &["boss", "again"]);
    store.until_more_keys_than(before);
    assert!(theirs.try_line().is_none());
    ours.terminate().unwrap();
    ends(&mut ours, 0);
    line(&mut theirs, "boss/");
    line(&mut theirs, "again");
    listening.expect_line("again", PATIENCE).unwrap();
    store.prints(&["leader", "boss"], "again\n");
}
