//! The suite on one Redis server, each case on a server of its own.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeSet;

use tenure_conformance::{Harness, Link, Linked, Need, Operator, async_trait, conformance, out_of_order};
use tenure_core::name::object_at;
use tenure_core::url::StoreUrl;
use tenure_core::{Error, ErrorKind, FencingToken, Kind, Result, SessionId, Store};
use tenure_redis::{RedisBackend, RedisConfig};
use tenure_testbed::{Direction, Flow, Proxy, RedisOptions, RedisServer, wait_until};

/// The namespace of a case, and one that begins with its name.
const NAMESPACES: [&str; 2] = ["case", "case-2"];

/// The keys of the namespace of a case.
const ROOT: &str = "{tenure/case}/2/";

struct OneServer {
    server: RedisServer,
}

impl OneServer {
    fn start() -> Result<Self> {
        let server = RedisServer::start(RedisOptions::default()).map_err(out_of_order)?;
        Ok(Self { server })
    }

    async fn backend(&self, url: &str, namespace: &str) -> Result<RedisBackend> {
        let url = StoreUrl::parse(&format!("{url}?namespace={namespace}"))?;
        RedisBackend::connect(RedisConfig::from_url(url)?).await
    }

    fn query<T: redis::FromRedisValue>(&self, words: &[&str]) -> Result<T> {
        self.server.admin().query(words).map_err(out_of_order)
    }

    fn keys_of(&self, pattern: &str) -> Result<Vec<String>> {
        self.server.admin().keys(pattern).map_err(out_of_order)
    }

    /// Lists the members of all sorted sets whose name ends so, as `<path> <member>`.
    fn members(&self, end: &str) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for key in self.keys_of(&format!("{ROOT}*{end}"))? {
            let members: Vec<String> = self.query(&["ZRANGE", &key, "0", "-1"])?;
            let path = key.trim_start_matches(ROOT).trim_end_matches(end);
            all.extend(members.iter().map(|member| format!("{path} {member}")));
        }
        Ok(all)
    }

    /// Checks that a request is in a wait queue if and only if its session's index has it, and that each key has an owner.
    fn check_keys(&self) -> std::result::Result<(), String> {
        let fail = |error: Error| error.chain().to_string();
        let mut indexed = BTreeSet::new();
        for key in self.keys_of(&format!("{ROOT}*")).map_err(fail)? {
            let path = key.trim_start_matches(ROOT);
            let Some(session) = path.strip_prefix("held/").or_else(|| path.strip_prefix("kept/")) else {
                continue;
            };
            if !self
                .query::<bool>(&["EXISTS", &format!("{ROOT}session/{session}")])
                .map_err(fail)?
            {
                return Err(format!("{key} belongs to no session"));
            }
            let entries: Vec<(String, String)> = self.query(&["HGETALL", &key]).map_err(fail)?;
            for (nonce, entry) in entries {
                if let [token, mode, path] = *entry.splitn(3, ' ').collect::<Vec<_>>()
                    && token != "q"
                {
                    indexed.insert(format!("{path} {session}:{nonce}:{mode}"));
                }
            }
        }
        let mut placed: BTreeSet<_> = self.members("/holders").map_err(fail)?.into_iter().collect();
        placed.extend(self.members("/waiters").map_err(fail)?);
        match placed == indexed {
            true => Ok(()),
            false => Err(format!("in the queues: {placed:?}; in the indexes: {indexed:?}")),
        }
    }
}

/// The network between a client and the server.
struct ProxyLink(Proxy);

impl Link for ProxyLink {
    fn silence(&self) {
        self.0.silence();
    }

    fn mute(&self) {
        self.0.set(Direction::Answers, Flow::Drop);
    }

    fn hold(&self) {
        self.0.set(Direction::Answers, Flow::Hold);
    }

    fn heal(&self) {
        self.0.heal();
    }

    fn cut(&self) {
        self.0.cut();
    }

    fn requests(&self) -> Option<u64> {
        Some(self.0.traffic(Direction::Requests).chunks)
    }
}

#[async_trait]
impl Harness for OneServer {
    async fn connect(&self) -> Result<Store> {
        self.backend(&self.server.url(), NAMESPACES[0]).await.map(Store::new)
    }

    fn offers(&self) -> &[Need] {
        &[
            Need::Silence,
            Need::Mute,
            Need::Hold,
            Need::Cut,
            Need::Requests,
            Need::Elsewhere,
            Need::Revoke,
            Need::RevokeRequest,
            Need::Keys,
            Need::Waiters,
            Need::Sessions,
            Need::Restart,
            Need::Survive,
            Need::Disturb,
            Need::Pause,
            Need::Restore,
        ]
    }

    async fn linked(&self) -> Result<Linked> {
        let proxy = Proxy::start(self.server.address()).map_err(out_of_order)?;
        let url = format!("redis://{}", proxy.address());
        let store = self.backend(&url, NAMESPACES[0]).await.map(Store::new)?;
        Ok(Linked::new(store, ProxyLink(proxy)))
    }

    async fn elsewhere(&self) -> Result<Store> {
        self.backend(&self.server.url(), NAMESPACES[1]).await.map(Store::new)
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }

    /// Nothing disagrees after the case: at the latest when the sessions of the case have ended and were swept. An error would only
    /// be a note, so this panics.
    async fn clean_up(&self) -> Result<()> {
        if !self.server.is_running() {
            return Ok(());
        }
        let mut last = String::new();
        let agrees = wait_until("keys that agree", || {
            Ok(match self.check_keys() {
                Ok(()) => Some(()),
                Err(found) => {
                    last = found;
                    None
                }
            })
        });
        assert!(agrees.is_ok(), "{last}");
        Ok(())
    }
}

#[async_trait]
impl Operator for OneServer {
    async fn revoke(&self, session: &SessionId) -> Result<()> {
        let operator = self.backend(&self.server.url(), NAMESPACES[0]).await?;
        operator.end_session(session).await.map(drop)
    }

    async fn revoke_request(&self, key: &str) -> Result<()> {
        let missing = || Error::new(ErrorKind::Conflict, "there is no such holding");
        let (path, request) = key.trim_start_matches(ROOT).rsplit_once('#').ok_or_else(missing)?;
        let (session, rest) = request.split_once(':').ok_or_else(missing)?;
        let request = format!("{session}:{}:", rest.split(':').next().unwrap_or_default());
        let tokens: Vec<u64> = if path.starts_with("queue/") {
            // All items of the take; each claim ends with its token.
            let claims: Vec<String> = self.query(&["HVALS", &format!("{ROOT}{path}/claims")])?;
            let token = |claim: &String| claim.strip_prefix(&request)?.parse().ok();
            claims.iter().filter_map(token).collect()
        } else {
            let holders = format!("{ROOT}{path}/holders");
            let holders: Vec<(String, u64)> = self.query(&["ZRANGE", &holders, "0", "-1", "WITHSCORES"])?;
            let is_it = |(member, _): &&(String, u64)| member.starts_with(&request);
            holders.iter().filter(is_it).map(|(_, token)| *token).collect()
        };
        let (kind, name) = object_at(path).ok_or_else(missing)?;
        let operator = self.backend(&self.server.url(), NAMESPACES[0]).await?;
        let mut broken = !tokens.is_empty();
        for token in tokens {
            broken &= operator.break_holding(kind, &name, FencingToken::new(token)).await?;
        }
        match broken {
            true => Ok(()),
            false => Err(missing()),
        }
    }

    async fn keys(&self) -> Result<Vec<String>> {
        let mut keys = self.members("/holders")?;
        keys.extend(self.members("/waiters")?);
        for index in self.keys_of(&format!("{ROOT}held/*"))? {
            let fields: Vec<String> = self.query(&["HKEYS", &index])?;
            keys.extend(fields.iter().map(|field| format!("{index} {field}")));
        }
        for values in self.keys_of(&format!("{ROOT}queue/*/values"))? {
            let places: Vec<String> = self.query(&["HKEYS", &values])?;
            keys.extend(places.iter().map(|place| format!("{values} {place}")));
        }
        Ok(keys)
    }

    async fn waiters(&self, kind: Kind, name: &str) -> Result<Vec<SessionId>> {
        let path = format!("{}/{}", kind.as_str(), tenure_core::name::escape(name));
        let members: Vec<String> = self.query(&["ZRANGE", &format!("{ROOT}{path}/waiters"), "0", "-1"])?;
        let session = |member: &String| member.split(':').next().map(SessionId::new);
        Ok(members.iter().filter_map(session).collect())
    }

    async fn sessions(&self) -> Result<usize> {
        self.keys_of("*/session/*").map(|keys| keys.len())
    }

    async fn restart(&self) -> Result<()> {
        self.server
            .kill()
            .and_then(|()| self.server.restart())
            .map_err(out_of_order)
    }

    async fn disturb(&self) -> Result<()> {
        self.query::<()>(&["SCRIPT", "FLUSH"])
    }

    async fn pause(&self) -> Result<()> {
        self.server.pause().map_err(out_of_order)
    }

    async fn resume(&self) -> Result<()> {
        self.server.resume().map_err(out_of_order)
    }

    async fn snapshot(&self) -> Result<()> {
        self.server.save_snapshot().map_err(out_of_order)
    }

    async fn restore(&self) -> Result<()> {
        self.server.restore_snapshot().map_err(out_of_order)
    }
}

conformance!(redis, OneServer::start()?, without: [
    capacity, delay_request, repeat,
    clock_forward, clock_back, failover, lose_minority, return_members,
]);
