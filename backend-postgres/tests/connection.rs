//! Who may talk to whom, and what is said if not.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use support::{Database, server};
use tenure_core::backend::StoreUrl;
use tenure_core::{Error, ErrorKind, HoldFor, Result, SessionOptions};
use tenure_postgres::PostgresConfig;
use tenure_testbed::{Certs, Identity, PostgresReplica, PostgresServer, Process, Proxy, Tls};

const TTL: Duration = Duration::from_secs(5);

fn config(url: impl AsRef<str>) -> PostgresConfig {
    PostgresConfig::from_url(StoreUrl::parse(url.as_ref()).unwrap()).unwrap()
}

/// Connects, takes a lock and lets go.
async fn use_it(url: impl AsRef<str>) -> Result<()> {
    let store = tenure_postgres::connect(config(url)).await?;
    let session = store.open(SessionOptions::new().ttl(TTL)).await?;
    session.locker("x")?.lock().await?.release().await?;
    session.close().await
}

/// The refusal, which must come promptly.
async fn refused(what: &str, url: impl AsRef<str>) -> Error {
    let start = Instant::now();
    let Err(error) = use_it(url).await else {
        panic!("{what}: accepted");
    };
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "{what}: {took:?}");
    assert!(!format!("{error} {error:?}").contains("canary"), "{what}");
    error
}

/// A URL with the credentials of somebody else, in some database.
fn url_as(server: &PostgresServer, who: &str, database: &str) -> String {
    format!("postgres://{who}@{}/{database}", server.address())
}

fn shown(identity: &Identity) -> String {
    let (cert, key) = (identity.cert.display(), identity.key.display());
    format!("&sslcert={cert}&sslkey={key}")
}

#[tokio::test]
async fn tls_accepts_the_right_and_refuses_the_wrong() {
    let certs = Certs::generate().unwrap();
    let server = PostgresServer::builder().tls(certs.tls());
    let server = server.start_async().await.unwrap();
    let with = |mode: &str, ca: &Path| {
        format!(
            "{}?sslmode={mode}&sslrootcert={}",
            server.url(),
            ca.display()
        )
    };
    for url in [
        with("verify-full", &certs.ca),
        with("verify-ca", &certs.ca),
        with("require", &certs.ca),
        format!("{}?sslrootcert={}", server.url(), certs.ca.display()),
        format!("{}?sslmode=require", server.url()),
        server.url(),
    ] {
        use_it(&url).await.unwrap();
    }
    let nowhere = Path::new("/nowhere.pem");
    let system = format!("{}?sslmode=verify-full", server.url());
    for (what, url, kind) in [
        (
            "wrong authority",
            with("verify-full", &certs.other_ca),
            ErrorKind::Unauthorized,
        ),
        (
            "wrong authority",
            with("verify-ca", &certs.other_ca),
            ErrorKind::Unauthorized,
        ),
        (
            "wrong authority",
            with("require", &certs.other_ca),
            ErrorKind::Unauthorized,
        ),
        ("the system's authorities", system, ErrorKind::Unauthorized),
        (
            "no such file",
            with("verify-full", nowhere),
            ErrorKind::Config,
        ),
    ] {
        let error = refused(what, url).await;
        assert_eq!(error.kind(), kind, "{what}: {error:?}");
        assert!(
            error.chain().to_string().contains("certificate"),
            "{what}: {error}"
        );
    }
    let plain = format!("{}?sslmode=disable", server.url());
    let error = refused("plaintext to a TLS server", plain).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(
        error.chain().to_string().contains("no encryption"),
        "{error}"
    );
}

#[tokio::test]
async fn tls_is_not_given_up_where_it_was_asked_for() {
    for mode in ["require", "verify-ca", "verify-full"] {
        let url = format!("{}?sslmode={mode}", server().url());
        let error = refused(mode, url).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{mode}: {error:?}");
        assert!(error.chain().to_string().contains("TLS"), "{mode}: {error}");
    }
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let certs = Certs::generate().unwrap();
    let tls = Tls::new(certs.ca.clone(), certs.wrong_host.clone());
    let server = PostgresServer::builder()
        .tls(tls)
        .start_async()
        .await
        .unwrap();
    let with = |mode| {
        format!(
            "{}?sslmode={mode}&sslrootcert={}",
            server.url(),
            certs.ca.display()
        )
    };
    let error = refused("wrong host", with("verify-full")).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(error.chain().to_string().contains("certificate"), "{error}");
    use_it(with("verify-ca")).await.unwrap();
}

#[tokio::test]
async fn mutual_tls_wants_the_right_certificate() {
    let certs = Certs::generate().unwrap();
    let server = PostgresServer::builder().tls(certs.mutual_tls());
    let server = server.start_async().await.unwrap();
    let url = format!(
        "{}?sslmode=verify-full&sslrootcert={}",
        server.url(),
        certs.ca.display()
    );
    let with = |identity: &Identity| url.clone() + &shown(identity);
    use_it(with(&certs.client)).await.unwrap();
    for (what, url) in [
        ("none", url.clone()),
        ("expired", with(&certs.expired_client)),
        ("foreign", with(&certs.foreign_client)),
    ] {
        let error = refused(what, url).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{what}: {error:?}");
        assert!(
            error.chain().to_string().contains("`sslcert`"),
            "{what}: {error}"
        );
    }
    let swapped = Identity {
        cert: certs.client.cert.clone(),
        key: certs.expired_client.key.clone(),
    };
    let error = refused("a key that is not the certificate's", with(&swapped)).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
}

#[tokio::test]
async fn passwords() {
    let server = PostgresServer::builder().user("app", "right");
    let server = server.start_async().await.unwrap();
    server
        .sql("GRANT CREATE ON DATABASE postgres TO app")
        .unwrap();
    use_it(url_as(&server, "app:right", "postgres"))
        .await
        .unwrap();
    for (what, who, database) in [
        ("wrong password", "app:canary", "postgres"),
        ("no password", "app", "postgres"),
        ("no such user", "nobody:canary", "postgres"),
    ] {
        let error = refused(what, url_as(&server, who, database)).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{what}: {error:?}");
        told_once(&server, &error, &["refused the login"]);
    }
    let error = refused("no such database", url_as(&server, "app:right", "nowhere")).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    told_once(&server, &error, &["nowhere", "database"]);
}

/// It names the host, and says what is the matter once.
fn told_once(server: &PostgresServer, error: &Error, words: &[&str]) {
    let (text, host) = (error.chain().to_string(), server.address().to_string());
    for word in words.iter().chain([&&*host]) {
        assert_eq!(text.matches(word).count(), 1, "{word}: {text}");
    }
}

/// By which routine of the server it refuses is no part of its documentation.
#[tokio::test]
async fn a_role_that_has_all_its_connections_is_told_from_a_full_server() {
    let server = PostgresServer::builder().setting("max_connections", 12);
    let server = server.start_async().await.unwrap();
    let limit = "CREATE ROLE few LOGIN CONNECTION LIMIT 1; CREATE ROLE crowd LOGIN; \
        CREATE DATABASE small CONNECTION LIMIT 0";
    for limit in limit.split(';') {
        server.sql(limit).unwrap();
    }
    for (who, database, hint) in [
        ("few", "postgres", "ALTER ROLE"),
        ("crowd", "small", "ALTER DATABASE"),
    ] {
        let error = refused(hint, url_as(&server, who, database)).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        told_once(&server, &error, &[hint]);
    }
    let mut all = Vec::new();
    while let Ok(one) = PgConnection::connect(&url_as(&server, "crowd", "postgres")).await {
        all.push(one);
    }
    let error = refused("full", url_as(&server, "crowd", "postgres")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    told_once(&server, &error, &["`max_connections`"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_hosts_the_one_that_can_be_written_to() {
    let pair = PostgresReplica::start_async().await.unwrap();
    let (primary, standby) = (pair.primary.address(), pair.standby.address());
    let alone = format!("postgres://postgres@{standby}/postgres");
    let error = refused("a standby", &alone).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.chain().to_string().contains("standby"), "{error}");
    let nobody = Proxy::start("127.0.0.1:1").unwrap().address();
    let all = format!("postgres://postgres@{nobody},{standby},{primary}/postgres");
    use_it(&all).await.unwrap();
    let store = tenure_postgres::connect(config(&all)).await.unwrap();
    let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    let before = session.locker("l").unwrap().lock().await.unwrap().token();
    let mut pair = pair;
    pair.primary.kill().unwrap();
    let pair = tokio::task::spawn_blocking(move || {
        pair.promote().unwrap();
        pair
    });
    let _pair = pair.await.unwrap();
    session.lost().await;
    // The same store finds the new primary.
    let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    let after = session.locker("l").unwrap().lock().await.unwrap().token();
    assert!(after > before);
}

#[tokio::test]
async fn a_server_that_is_silent_is_not_waited_for_long() {
    let proxy = Proxy::start(server().address()).unwrap();
    proxy.silence();
    let url = format!(
        "postgres://postgres@{}/postgres?connect_timeout=300ms",
        proxy.address()
    );
    let start = Instant::now();
    let error = refused("silence", url).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn sessions_bear_their_names() {
    let db = Database::new().await;
    let url = server().url_of(&db.name) + "?application_name=orders";
    let store = tenure_postgres::connect(config(url)).await.unwrap();
    let _session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    // The one that is the lease, the one that hears, the one that reads.
    db.until(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'orders'",
        3,
    )
    .await;
}

#[tokio::test]
async fn a_read_only_role_is_refused() {
    let db = Database::new().await;
    let mut sql = db.sql().await;
    sql.execute("CREATE ROLE reader LOGIN").await.unwrap();
    sql.execute("ALTER ROLE reader SET default_transaction_read_only = on")
        .await
        .unwrap();
    let error = refused("read-only", url_as(server(), "reader", &db.name)).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(
        error
            .chain()
            .to_string()
            .contains("default_transaction_read_only"),
        "{error}"
    );
}

/// A role that owns nothing, over a schema that somebody else has applied.
#[tokio::test]
async fn the_least_rights_are_enough_and_each_is_needed() {
    let db = Database::new().await;
    let mut sql = db.sql().await;
    sql.execute("CREATE ROLE least LOGIN").await.unwrap();
    let url = url_as(server(), "least", &db.name);
    let error = refused("no schema, and no right to make one", &url).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(error.chain().to_string().contains("migration"), "{error}");

    let migration = tenure_postgres::migration();
    sql.execute(sqlx::raw_sql(AssertSqlSafe(migration)))
        .await
        .unwrap();
    let error = refused("no rights on the schema", &url).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(
        error.chain().to_string().contains("schema tenure"),
        "{error}"
    );

    let grants = tenure_postgres::grants("least");
    sql.execute(sqlx::raw_sql(AssertSqlSafe(grants)))
        .await
        .unwrap();
    use_it(&url).await.unwrap();

    for (right, named) in [
        ("SELECT ON tenure.layout", "layout"),
        ("SELECT ON tenure.tickets", "tickets"),
        ("INSERT ON tenure.sessions", "sessions"),
        ("USAGE, UPDATE ON SEQUENCE tenure.tokens", "tokens"),
        ("USAGE ON SCHEMA tenure", "schema tenure"),
    ] {
        let change = |verb: &str, to: &str| AssertSqlSafe(format!("{verb} {right} {to} least"));
        sql.execute(change("REVOKE", "FROM")).await.unwrap();
        let error = refused(right, &url).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{right}: {error:?}");
        assert!(
            error.chain().to_string().contains(named),
            "{right}: {error}"
        );
        sql.execute(change("GRANT", "TO")).await.unwrap();
    }
    use_it(&url).await.unwrap();
}

#[tokio::test]
async fn a_schema_of_another_version_is_refused() {
    let db = Database::new().await;
    use_it(server().url_of(&db.name)).await.unwrap();
    let mut sql = db.sql().await;
    let newer = tenure_postgres::LAYOUT + 1;
    for (version, oldest, works) in [(newer, 1, true), (newer, newer, false)] {
        let set = format!("UPDATE tenure.layout SET version = {version}, oldest = {oldest}");
        sql.execute(AssertSqlSafe(set)).await.unwrap();
        match works {
            true => use_it(server().url_of(&db.name)).await.unwrap(),
            false => {
                let error = refused("another layout", server().url_of(&db.name)).await;
                assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
                assert!(
                    error.chain().to_string().contains("layout version"),
                    "{error}"
                );
            }
        }
    }
}

/// The schema of version 1 as its owner left it, with functions that do nothing.
async fn make_version_1(sql: &mut PgConnection) {
    for part in [
        include_str!("../migrations/tables/1.sql"),
        include_str!("support/functions_1.sql"),
    ] {
        sql.execute(sqlx::raw_sql(part)).await.unwrap();
    }
}

#[tokio::test]
async fn a_schema_of_version_1_is_upgraded_by_its_owner_and_refused_by_others() {
    let db = Database::new().await;
    let mut sql = db.sql().await;
    make_version_1(&mut sql).await;
    sql.execute("CREATE ROLE later LOGIN").await.unwrap();
    let grants = tenure_postgres::grants("later");
    sql.execute(sqlx::raw_sql(AssertSqlSafe(grants)))
        .await
        .unwrap();
    let url = url_as(server(), "later", &db.name);
    let error = refused("not the owner", &url).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(
        error.chain().to_string().contains("layout version 1"),
        "{error}"
    );
    // What stands in it stays.
    sql.execute("INSERT INTO tenure.data VALUES ('tenure/1/x/stm/k', 'v', 1, 1, 1)")
        .await
        .unwrap();
    use_it(server().url_of(&db.name)).await.unwrap();
    use_it(&url).await.unwrap();
    const LEFT: &str = "SELECT (SELECT count(*) FROM tenure.data) * 100 \
        + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'tenure'::regnamespace AND prosrc ~ 'version 1')";
    assert_eq!(db.number(LEFT).await, 100);
    // The migration by hand does the same, changes nothing the second time, and leaves the session's path.
    let db = Database::new().await;
    let mut sql = db.sql().await;
    make_version_1(&mut sql).await;
    sql.execute("SET search_path = public, other")
        .await
        .unwrap();
    for _ in 0..2 {
        let migration = AssertSqlSafe(tenure_postgres::migration());
        sql.execute(sqlx::raw_sql(migration)).await.unwrap();
    }
    let path: String = sqlx::query_scalar("SHOW search_path")
        .fetch_one(&mut sql)
        .await
        .unwrap();
    assert_eq!(path, "public, other");
    use_it(server().url_of(&db.name)).await.unwrap();
    // One that is newer is left alone.
    sql.execute("UPDATE tenure.layout SET version = 1000")
        .await
        .unwrap();
    let migration = AssertSqlSafe(tenure_postgres::migration());
    let refused = sql.execute(sqlx::raw_sql(migration)).await.unwrap_err();
    assert!(refused.to_string().contains("newer"), "{refused}");
}

/// All find it missing, one makes it, and the rest see what that one made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_make_the_schema_at_once_under_any_default_isolation() {
    for level in ["read committed", "repeatable read", "serializable"] {
        let db = Database::new().await;
        let set = format!(
            "ALTER DATABASE {} SET default_transaction_isolation = '{level}'",
            db.name
        );
        server().sql(set).unwrap();
        let mut stores = tokio::task::JoinSet::new();
        for _ in 0..6 {
            stores.spawn(tenure_postgres::connect(db.config()));
        }
        while let Some(store) = stores.join_next().await {
            store.unwrap().unwrap_or_else(|e| panic!("{level}: {e}"));
        }
    }
}

#[tokio::test]
async fn a_database_of_another_encoding_is_refused() {
    let mut sql = Database::new().await.sql().await;
    sql.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        .await
        .unwrap();
    let error = refused("LATIN1", server().url_of("latin")).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(error.chain().to_string().contains("LATIN1"), "{error}");
}

/// pgbouncer before the server, in a mode of pooling.
struct Pooler {
    _process: Process,
    _folder: Folder,
    port: u16,
}

struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Pooler {
    async fn start(mode: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        // A port that was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let folder = std::env::temp_dir().join(format!("tenure-pooler-{port}-{mode}"));
        std::fs::create_dir(&folder).unwrap();
        let folder = Folder(folder);
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&folder.0, everybody).unwrap();
        let (users, ini) = (folder.0.join("users.txt"), folder.0.join("pgbouncer.ini"));
        std::fs::write(&users, "\"postgres\" \"\"\n").unwrap();
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\n\
             pool_mode = {mode}\nmax_client_conn = 100\ndefault_pool_size = 20\n\
             ignore_startup_parameters = extra_float_digits\n",
            server().port(),
            users.display(),
        );
        std::fs::write(&ini, settings).unwrap();
        // Where Debian has it, which is not in everybody's PATH.
        let debian = Path::new("/usr/sbin/pgbouncer");
        let program = match debian.exists() {
            true => debian,
            false => Path::new("pgbouncer"),
        };
        let mut command = std::process::Command::new(program);
        command.arg(&ini);
        // It refuses to run as root.
        if is_root() {
            command.args(["-u", "nobody"]);
        }
        let process = Process::spawn(command).unwrap();
        let pooler = Self {
            _process: process,
            _folder: folder,
            port,
        };
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "pgbouncer does not serve"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        pooler
    }

    fn url(&self, database: &str) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        )
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

#[tokio::test]
async fn a_pooler_that_shares_connections_is_refused() {
    let db = Database::new().await;
    use_it(server().url_of(&db.name)).await.unwrap();
    for mode in ["transaction", "statement"] {
        let pooler = Pooler::start(mode).await;
        let error = refused(mode, pooler.url(&db.name)).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{mode}: {error:?}");
        assert!(
            error.chain().to_string().contains("pooler"),
            "{mode}: {error}"
        );
    }
}

#[tokio::test]
async fn a_pooler_of_whole_sessions_works() {
    let db = Database::new().await;
    let pooler = Pooler::start("session").await;
    use_it(pooler.url(&db.name)).await.unwrap();
}

/// Who is told that the session is lost finds it so, also where the next renewal is far away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_not_valid_once_a_call_has_said_that_it_is_lost() {
    let db = Database::new().await;
    for what in ["lock", "release", "enqueue", "hold"] {
        let proxy = Proxy::start(server().address()).unwrap();
        let url = format!(
            "postgres://postgres@{}/{}?sslmode=disable",
            proxy.address(),
            db.name
        );
        let store = tenure_postgres::connect(config(url)).await.unwrap();
        let options = SessionOptions::new().ttl(Duration::from_secs(60));
        let session = store.open(options).await.unwrap();
        let guard = session.locker("held").unwrap().lock().await.unwrap();
        proxy.cut();
        let answer = match what {
            "lock" => session.locker(what).unwrap().try_lock().await.map(drop),
            "release" => guard.release().await,
            "enqueue" => session.queue(what).unwrap().enqueue("x").await.map(drop),
            _ => {
                let barrier = session.barrier(what).unwrap();
                barrier.hold(HoldFor::Session).await.map(drop)
            }
        };
        let valid = session.is_valid();
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Lost, "{what}");
        assert!(!valid, "{what}");
        let lost = tokio::time::timeout(Duration::from_secs(5), session.lost()).await;
        assert!(lost.is_ok(), "{what}: nobody is told");
    }
}

/// What a server hears that answers `N` to the request for TLS, and asks for the password in clear text.
async fn heard_by_a_curious_server(listen: &str, query: &str) -> (Error, Vec<u8>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind((listen, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        let mut buffer = [0; 1024];
        loop {
            let count = match client.read(&mut buffer).await {
                Ok(0) | Err(_) => return heard,
                Ok(count) => count,
            };
            heard.extend_from_slice(&buffer[..count]);
            // The request for TLS has eight bytes and begins with its length; so does the startup, which is longer.
            let answer: &[u8] = match buffer[..count] {
                [0, 0, 0, 8, ..] => b"N",
                [0, ..] => b"R\0\0\0\x08\0\0\0\x03",
                _ => return heard,
            };
            if client.write_all(answer).await.is_err() {
                return heard;
            }
        }
    });
    let url = format!("postgres://someone:canary@{listen}:{port}/shop?{query}");
    let error = refused("a curious server", &url).await;
    (error, server.await.unwrap())
}

#[tokio::test]
async fn a_password_is_not_sent_in_clear_text_off_this_machine() {
    let tells = |heard: &[u8]| heard.windows(6).any(|it| it == b"canary");
    for query in ["", "sslmode=prefer", "sslmode=allow", "sslmode=require"] {
        // It reaches this machine, and does not look like it.
        let (error, heard) = heard_by_a_curious_server("0.0.0.0", query).await;
        assert!(!tells(&heard), "{query}: {heard:?}");
        assert_eq!(error.kind(), ErrorKind::Config, "{query}: {error:?}");
        let chain = format!("{error:?}");
        assert!(!chain.contains("canary"), "{chain}");
    }
    let (error, _) = heard_by_a_curious_server("0.0.0.0", "").await;
    assert!(
        format!("{error:?}").contains("sslmode=disable"),
        "{error:?}"
    );
    // The control: where that was asked for, or nothing leaves the machine, the server gets it.
    for (listen, query) in [("0.0.0.0", "sslmode=disable"), ("127.0.0.1", "")] {
        let (_, heard) = heard_by_a_curious_server(listen, query).await;
        assert!(tells(&heard), "{listen} {query}");
    }
}

/// An address behind which there are two servers, in turn.
#[tokio::test]
async fn connections_that_reach_different_servers_are_refused() {
    let other = PostgresServer::start_async().await.unwrap();
    let servers = [server().address(), other.address()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let balancer = tokio::spawn(async move {
        for server in servers.iter().cycle() {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = tokio::net::TcpStream::connect(server).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let url = format!("postgres://postgres@{address}/postgres?sslmode=disable");
    for _ in 0..4 {
        // Which of the connections meets which server is a matter of their order.
        if let Ok(store) = tenure_postgres::connect(config(&url)).await {
            let options = || SessionOptions::new().ttl(TTL);
            let opened = [store.open(options()).await, store.open(options()).await];
            let error = opened.into_iter().find_map(Result::err).unwrap();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        }
    }
    balancer.abort();
}

/// Nobody waits for the answers any more, and the connection goes on.
#[tokio::test]
async fn a_cancelled_read_does_not_cost_the_connection() {
    let db = Database::new().await;
    let session = db.session(Duration::from_secs(20)).await;
    let queue = session.queue("q").unwrap();
    queue.enqueue("x").await.unwrap();
    assert_eq!(queue.len().await.unwrap(), 1);
    const PIDS: &str = "SELECT sum(pid) FROM pg_stat_activity \
        WHERE datname = current_database() AND application_name = 'tenure'";
    const COUNTING: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
        AND state = 'active' AND query LIKE '%queue_depth%' AND pid <> pg_backend_pid()";
    let before = db.number(PIDS).await;
    for _ in 0..5 {
        let mut sql = db.sql().await;
        sql.execute("BEGIN; LOCK TABLE tenure.queue_items")
            .await
            .unwrap();
        let counting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.len().await }
        });
        db.until(COUNTING, 1).await;
        counting.abort();
        let _ = counting.await;
        // The next ones wait for their turn, and are cancelled there.
        for _ in 0..3 {
            let limit = Duration::from_millis(10);
            tokio::time::timeout(limit, queue.len()).await.unwrap_err();
        }
        assert_eq!(db.number(COUNTING).await, 1);
        sql.execute("COMMIT").await.unwrap();
        assert_eq!(queue.len().await.unwrap(), 1);
    }
    assert_eq!(
        db.number(PIDS).await,
        before,
        "other connections than before"
    );
}
