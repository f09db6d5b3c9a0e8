//! The real stores, and a test of its own for each of them.
#![allow(dead_code, unused_macros, reason = "every test binary uses its part")]

#[cfg(feature = "etcd")]
use tenure_testbed::EtcdServer;
#[cfg(feature = "postgres")]
use tenure_testbed::PostgresServer;
#[cfg(feature = "redis")]
use tenure_testbed::RedisServer;

/// A server of one test's own, and the URL of a namespace on it.
pub(crate) struct Bed {
    server: Server,
    namespace: &'static str,
    pub(crate) url: String,
}

enum Server {
    #[cfg(feature = "etcd")]
    Etcd(EtcdServer),
    #[cfg(feature = "redis")]
    Redis(RedisServer),
    #[cfg(feature = "postgres")]
    Postgres(PostgresServer),
}

/// How many places of a line belong to sessions that live.
#[cfg(feature = "redis")]
const COUNT_LIVE: &str = r"
local live = 0
for _, place in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    live = live + redis.call('EXISTS', KEYS[2] .. string.match(place, '^[^:]*'))
end
return live";

/// How many hold the lock of a path or stand in line for it: who holds has an advisory lock and no ticket.
#[cfg(feature = "postgres")]
const COUNT_LINE: &str = "SELECT (SELECT count(*) FROM tenure.tickets AS t WHERE t.path = p.path AND tenure.alive(t.session)) \
    + (SELECT count(*) FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
        AND (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended(p.path, 0)) FROM (VALUES ('$path')) AS p(path)";

impl Bed {
    #[cfg(feature = "etcd")]
    pub(crate) fn etcd(namespace: &'static str) -> Self {
        let etcd = EtcdServer::start().expect("an etcd");
        let url = format!("etcd://{}/{namespace}", etcd.address());
        Self {
            server: Server::Etcd(etcd),
            namespace,
            url,
        }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn redis(namespace: &'static str) -> Self {
        let redis = RedisServer::start().expect("a Redis");
        let url = format!("{}?namespace={namespace}", redis.url());
        Self {
            server: Server::Redis(redis),
            namespace,
            url,
        }
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn postgres(namespace: &'static str) -> Self {
        let postgres = PostgresServer::start().expect("a PostgreSQL");
        let url = format!("{}?namespace={namespace}&sslmode=disable", postgres.url());
        Self {
            server: Server::Postgres(postgres),
            namespace,
            url,
        }
    }

    /// Kills the server and starts it again on what it kept.
    pub(crate) fn kill_and_restart(&mut self) {
        match &mut self.server {
            #[cfg(feature = "etcd")]
            Server::Etcd(etcd) => {
                etcd.kill().expect("killed");
                etcd.restart().expect("restarted");
            }
            #[cfg(feature = "redis")]
            Server::Redis(redis) => {
                redis.kill().expect("killed");
                redis.restart().expect("restarted");
            }
            #[cfg(feature = "postgres")]
            Server::Postgres(postgres) => {
                postgres.kill().expect("killed");
                postgres.restart().expect("restarted");
            }
        }
    }

    /// The sum of the numbers under all keys of the transactional memory that begin like this.
    #[cfg(feature = "postgres")]
    pub(crate) fn sum_of(&self, keys: &str) -> u64 {
        let namespace = self.namespace;
        match &self.server {
            Server::Postgres(postgres) => {
                let sum = format!(
                    "SELECT sum(convert_from(value, 'UTF8')::bigint) FROM tenure.data \
                     WHERE path LIKE 'tenure/1/{namespace}/data/{keys}%'"
                );
                postgres.sql(sum).expect("a sum").parse().expect("a number")
            }
            #[cfg(any(feature = "etcd", feature = "redis"))]
            _ => panic!("nobody asks"),
        }
    }

    /// How many hold the lock or wait for it, in the eyes of the store.
    pub(crate) fn line(&self, lock: &str) -> usize {
        let namespace = self.namespace;
        match &self.server {
            #[cfg(feature = "etcd")]
            Server::Etcd(etcd) => {
                let prefix = format!("tenure/1/{namespace}/lock/{lock}/");
                let get = ["get", &prefix, "--prefix", "--keys-only"];
                let keys = etcd.run_etcdctl(&get).expect("the keys");
                keys.lines().filter(|key| !key.is_empty()).count()
            }
            #[cfg(feature = "redis")]
            Server::Redis(redis) => {
                let root = format!("{{tenure/1/{namespace}}}");
                let (line, session) = (format!("{root}/lock/{lock}"), format!("{root}/session/"));
                let counted = redis.command(&["EVAL", COUNT_LIVE, "2", &line, &session]);
                counted.expect("the places").parse().expect("a number")
            }
            #[cfg(feature = "postgres")]
            Server::Postgres(postgres) => {
                let path = format!("tenure/1/{namespace}/lock/{lock}");
                let counted = postgres.sql(COUNT_LINE.replace("$path", &path));
                counted.expect("the places").parse().expect("a number")
            }
        }
    }

    /// How often a key of the transactional memory was written; 0 if that cannot be told just now.
    pub(crate) fn writes_of(&self, key: &str) -> u64 {
        let namespace = self.namespace;
        match &self.server {
            #[cfg(feature = "etcd")]
            Server::Etcd(etcd) => {
                let key = format!("tenure/1/{namespace}/data/{key}");
                let printed = etcd.run_etcdctl(&["get", &key, "-w", "fields"]);
                let printed = printed.unwrap_or_default();
                let line = printed.lines().find(|line| line.starts_with("\"Version\""));
                let number = line.and_then(|line| line.rsplit(' ').next());
                number.and_then(|number| number.parse().ok()).unwrap_or(0)
            }
            #[cfg(feature = "redis")]
            Server::Redis(redis) => {
                let key = format!("{{tenure/1/{namespace}}}/data/{key}");
                let version = redis.command(&["HGET", &key, "version"]);
                version.unwrap_or_default().parse().unwrap_or(0)
            }
            #[cfg(feature = "postgres")]
            Server::Postgres(postgres) => {
                let path = format!("tenure/1/{namespace}/data/{key}");
                let version = format!("SELECT version FROM tenure.data WHERE path = '{path}'");
                let version = postgres.sql(version).unwrap_or_default();
                version.parse().unwrap_or(0)
            }
        }
    }
}

/// A test of its own for each of these and each store, on a [`Bed`] with this namespace. Those of `leases`
/// are about stores that only time ends a session of, those of `connections` about those that end it with
/// its connection.
macro_rules! on_every_store {
    (
        $namespace:literal: $($test:ident)*
        $(; leases: $($lease:ident)*; connections: $($connection:ident)*)?
    ) => {
        #[cfg(feature = "etcd")]
        mod etcd {
            $(#[test]
            fn $test() {
                super::$test(super::support::Bed::etcd($namespace));
            })*
            $($(#[test]
            fn $lease() {
                super::$lease(super::support::Bed::etcd($namespace));
            })*)?
        }

        #[cfg(feature = "redis")]
        mod redis {
            $(#[test]
            fn $test() {
                super::$test(super::support::Bed::redis($namespace));
            })*
            $($(#[test]
            fn $lease() {
                super::$lease(super::support::Bed::redis($namespace));
            })*)?
        }

        #[cfg(feature = "postgres")]
        mod postgres {
            $(#[test]
            fn $test() {
                super::$test(super::support::Bed::postgres($namespace));
            })*
            $($(#[test]
            fn $connection() {
                super::$connection(super::support::Bed::postgres($namespace));
            })*)?
        }
    };
}
