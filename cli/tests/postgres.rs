//! `tenure lock` on a lock that is shared with whoever takes an advisory lock of PostgreSQL.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Command;

use support::{Done, PATIENCE, dead_address, run, tenure, tenure_done, until};
use tenure_testbed::{PostgresServer, Process};

/// `tenure --url URL lock ARGS...`
fn lock(postgres: &PostgresServer, args: &[&str]) -> Command {
    let url = postgres.url() + "?sslmode=disable&interop=true&ttl=2s";
    tenure(["--url", &url, "lock"].iter().chain(args))
}

/// A session of `psql` that a test drives line by line.
struct Psql(Process);

impl Psql {
    fn start(postgres: &PostgresServer) -> Self {
        let mut command = Command::new("psql");
        command.args(["-X", "-q", "-t", "-A", &postgres.url()]);
        Self(Process::spawn(command).unwrap())
    }

    fn says(&mut self, question: &str) -> String {
        self.0.send_line(&format!("SELECT {question};")).unwrap();
        self.0.expect_line("", PATIENCE).unwrap()
    }

    fn takes(&mut self, key: &str) -> bool {
        self.says(&format!("pg_try_advisory_lock({key})")) == "t"
    }

    fn gives(&mut self, key: &str) {
        assert_eq!(self.says(&format!("pg_advisory_unlock({key})")), "t");
    }
}

fn refused(done: &Done) {
    assert_eq!(done.code, Some(75), "{done:?}");
}

/// In their words, and in ours.
const SAME: [(&str, &str); 3] = [
    ("hashtextextended('orders', 0)", "orders"),
    ("42", "key:42"),
    ("3, -4", "key:3,-4"),
];

#[test]
fn one_lock_for_the_command_and_for_psql() {
    let postgres = PostgresServer::start().unwrap();
    let mut psql = Psql::start(&postgres);
    for (key, name) in SAME {
        let holding = [name, "--", "sh", "-c", "echo in; read line; exit 0"];
        // The command keeps psql out.
        let mut ours = Process::spawn(lock(&postgres, &holding)).unwrap();
        ours.expect_line("in", PATIENCE).unwrap();
        assert!(!psql.takes(key), "{name}");
        ours.close_stdin();
        assert!(ours.wait(PATIENCE).unwrap().success());

        // psql keeps the command out, and lets it in.
        assert!(psql.takes(key), "{name}");
        refused(&run(lock(&postgres, &["--try", name, "--", "true"])));
        let mut ours = Process::spawn(lock(&postgres, &holding)).unwrap();
        let wait = "SELECT count(*) > 1 FROM pg_stat_activity WHERE application_name = 'tenure'";
        until("the command's sessions", || {
            postgres.sql(wait).unwrap() == "t"
        });
        assert!(!ours.has_line());
        psql.gives(key);
        ours.expect_line("in", PATIENCE).unwrap();
        assert!(!psql.takes(key), "{name}");

        // Killed, it says nothing to anybody: the lock goes with its connection.
        ours.kill().unwrap();
        until("the end of the command's session", || psql.takes(key));
        psql.gives(key);
    }
    // So does one of psql's.
    assert!(psql.takes("42"));
    let mut ours = Process::spawn(lock(&postgres, &["key:42", "--", "echo", "in"])).unwrap();
    psql.0.kill().unwrap();
    ours.expect_line("in", PATIENCE).unwrap();
    assert!(ours.wait(PATIENCE).unwrap().success());
}

/// For an administrator without Rust.
#[test]
fn the_schema_and_the_rights_as_sql() {
    let postgres = PostgresServer::builder().user("app", "secret");
    let postgres = postgres.start().unwrap();
    let schema = tenure_done(["schema", "--url", "postgres:"]);
    assert_eq!(schema.code, Some(0), "{schema:?}");
    postgres.sql(&schema.stdout).unwrap();
    let grants = tenure_done(["schema", "--url", &postgres.url(), "--grants", "app"]);
    assert_eq!(grants.code, Some(0), "{grants:?}");
    postgres.sql(&grants.stdout).unwrap();
    let url = postgres.url().replace("//postgres@", "//app:secret@") + "?sslmode=disable";
    assert!(url.contains("app:secret"), "{url}");
    let locked = tenure_done(["--url", &url, "lock", "orders", "--", "true"]);
    assert_eq!(locked.code, Some(0), "{locked:?}");
    let elsewhere = tenure_done(["schema", "--url", "memory:"]);
    assert_eq!(elsewhere.code, Some(78), "{elsewhere:?}");
}

/// A reader that has had enough is no failure.
#[test]
fn nobody_reads_on() {
    let command = "set -o pipefail; \"$0\" schema --url postgres: | true";
    let mut bash = Command::new("bash");
    bash.args(["-c", command, env!("CARGO_BIN_EXE_tenure")]);
    let done = run(bash);
    assert_eq!(done.code, Some(141), "{done:?}");
    assert!(done.stderr.is_empty(), "{done:?}");
}

#[test]
fn a_server_that_is_away_is_named_and_its_error_told_once() {
    let address = dead_address();
    let url = format!("postgres://{address}/shop");
    let done = tenure_done(["--url", &url, "lock", "l"]);
    done.fails(69, &[&address]);
    assert_eq!(done.stderr.matches("refused").count(), 1, "{done:?}");
}

/// What stays: a dead session's row, until somebody sweeps, and what a late commit would have to find.
#[test]
fn the_suite_leaves_nothing_stored() {
    let postgres = PostgresServer::start().unwrap();
    // Sessions with everything that is stored.
    for only in ["q1_*", "b1_*", "e1_*", "t1_*"] {
        tenure_done(["--url", &postgres.url(), "conform", "--only", only]).exits(0);
    }
    let tables = "SELECT string_agg(relname, ' ') FROM pg_class WHERE relkind = 'r' \
                  AND relnamespace = 'tenure'::regnamespace";
    let tables = postgres.sql(tables).unwrap();
    let own = [
        "layout",
        "life",
        "sweeps",
        "sessions",
        "markers",
        "queue_consumers",
    ];
    let mut looked = 0;
    for table in tables.split(' ').filter(|table| !own.contains(table)) {
        let count = format!("SELECT count(*) FROM tenure.{table}");
        // The last connections may not have ended yet.
        until(table, || postgres.sql(count.clone()).unwrap() == "0");
        looked += 1;
    }
    assert!(looked >= 10, "{tables}");
}

/// The password file of PostgreSQL's own programs; not one that others may read.
#[test]
fn the_password_comes_from_the_password_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = PostgresServer::builder()
        .user("app", "a:b")
        .start()
        .unwrap();
    server
        .sql("GRANT CREATE ON DATABASE postgres TO app")
        .unwrap();
    let address = server.address();
    let file = std::env::temp_dir().join(format!("tenure-pgpass-{}", std::process::id()));
    let lines = format!(
        "other:*:*:*:wrong\n127.0.0.1:{}:*:app:a\\:b\n",
        address.port()
    );
    std::fs::write(&file, lines).unwrap();
    let url = format!("postgres://app@{address}/postgres?sslmode=disable");
    let locked = |mode| {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut command = tenure(["--url", &url, "lock", "--try", "l", "--", "true"]);
        command.env_remove("PGPASSWORD").env("PGPASSFILE", &file);
        run(command)
    };
    let (private, public) = (locked(0o600), locked(0o644));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(private.code, Some(0), "{private:?}");
    assert_ne!(public.code, Some(0), "{public:?}");
    let told = format!("{private:?}{public:?}");
    assert!(!told.contains("a:b") && !told.contains("a\\\\:b"), "{told}");
}

/// At the server's default of a hundred connections, more waiters than have room all get their turn: those for whom
/// there is no connection left ask again.
#[test]
fn fifty_lockers_share_a_hundred_connections() {
    let server = PostgresServer::start().unwrap();
    let url = server.url() + "?sslmode=disable&connect_timeout=30s&ttl=30s";
    let lockers: Vec<_> = (0..50)
        .map(|_| {
            let command = tenure(["--url", &url, "lock", "--wait", "5m", "l", "--", "true"]);
            std::thread::spawn(move || run(command))
        })
        .collect();
    for locker in lockers {
        let done = locker.join().unwrap();
        assert_eq!(done.code, Some(0), "{done:?}");
    }
}
