//! The guarantees of a Redis deployment, determined from the live server.

use std::time::Duration;

use redis::{Cmd, Value};
use tenure_core::guarantees::{
    Barriers, Cancellation, Durability, EarlyRelease, Exclusion, Expiry, FencedCommit, Guarantee, HandOff, LossSignal,
    MinorityLoss, NameIsolation, Observers, QueueDelivery, QueueOrder, Release, Resume, RwOrder, Scope, TokenOrder,
    Transactions, UnknownCommit,
};
use tenure_core::{ErrorKind, Guarantees, Result};

use crate::config::{RedisConfig, Topology};
use crate::connection::{Line, Link, field, text};

/// The longest delay of a waiter's timer: tokio's timers have a resolution of 1 ms, the rest allows for a busy scheduler.
const LATE: Duration = Duration::from_millis(250);

/// Reads the server's properties over `link`.
pub(crate) async fn read(link: &Link, config: &RedisConfig) -> Result<Guarantees> {
    let info = permitted(link, redis::cmd("INFO")).await?;
    let mut question = redis::cmd("CONFIG");
    question.arg("GET").arg("appendfsync");
    let settings = permitted(link, question).await?;
    let mut server = Server {
        version: link.facts().version.clone(),
        ..Server::default()
    };
    if let Some(info) = info.as_ref().map(text) {
        server.replicas = field(&info, "connected_slaves").and_then(|count| count.parse().ok());
        server.append_only = field(&info, "aof_enabled").map(|enabled| enabled == "1");
        server.policy = field(&info, "maxmemory_policy").map(str::to_owned);
    }
    let mut settings = settings.iter().flat_map(Value::as_map_iter).flatten();
    let fsync = settings.find(|(key, _)| text(key) == "appendfsync");
    server.fsync = fsync.map(|(_, value)| text(value));
    Ok(claims(&server, config))
}

/// Returns the answer, unless the user lacks the right to the command or a managed Redis does not know it.
async fn permitted(link: &Link, command: Cmd) -> Result<Option<Value>> {
    match link.command(Line::Commands, command).await {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if matches!(error.kind(), ErrorKind::Unauthorized | ErrorKind::Internal) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The known properties of the server; `None` where the user lacks the right to query them.
#[derive(Clone, Debug, Default)]
struct Server {
    version: String,
    replicas: Option<u32>,
    append_only: Option<bool>,
    fsync: Option<String>,
    policy: Option<String>,
}

impl Server {
    /// Returns the writes that are lost when the server's process or machine ends, if any are.
    fn forgets(&self, config: &RedisConfig) -> Option<&'static str> {
        match (self.append_only, self.fsync.as_deref()) {
            (Some(true), Some("always")) => None,
            (Some(true), _) if config.wait_aof => None,
            (Some(true), Some("everysec")) => Some(
                "about a second of writes in a restart of its machine, or two when its process alone is killed while the disk \
                 is slow (`appendfsync everysec` may postpone the write itself)",
            ),
            (Some(true), Some(_)) => Some(
                "the writes that the operating system has not flushed in a restart of its machine (`appendfsync no`)",
            ),
            (Some(true), None) => Some(
                "perhaps a second of writes, perhaps more, in a restart of its machine or its process (the user lacks the \
                 right to `config|get`, which shows `appendfsync`)",
            ),
            (Some(false), _) => Some("all writes since the last snapshot, or all, in a restart (`appendonly no`)"),
            (None, _) => Some("perhaps everything in a restart (the user lacks the right to `info`)"),
        }
    }

    /// Returns whether a server that lacks acknowledged writes may take over.
    fn fails_over(&self) -> bool {
        self.replicas != Some(0)
    }

    fn may_evict(&self) -> bool {
        self.policy.as_deref() != Some("noeviction")
    }
}

fn claims(server: &Server, config: &RedisConfig) -> Guarantees {
    let forgets = server.forgets(config);
    let keeps = forgets.is_none() && !server.fails_over() && !server.may_evict();
    let claims = Guarantees {
        deployment: deployment(server, config),
        scope: Scope::Network,
        mutual_exclusion: Guarantee::new(
            Exclusion::UnlessReleasedEarly,
            "every step is one script, which runs alone; `freed before its TTL` has the events that may free a lease early. Pass \
             the tokens to the resource: their order holds even then",
        ),
        token_order: Guarantee::new(
            TokenOrder::Failover,
            "each token is above the last one and not below the server's clock in microseconds: it rises over what Redis \
             forgets, unless the clock of the server that serves then is behind the last token (NTP prevents that); while two \
             primaries serve at once, each has an order of its own",
        ),
        hand_off: Guarantee::new(
            HandOff::Fifo,
            "each name has a wait queue in the order of arrival; a release grants to the next waiter in the same script",
        ),
        expiry: Guarantee::new(
            Expiry::WithinByClock(LATE),
            "the next waiter sleeps until the lease before it ends by the server's clock; if the clock is set back, the wait is \
             as much longer",
        ),
        early_release: Guarantee::new(EarlyRelease::OnEvents, early(server, config, forgets)),
        loss_signal: Guarantee::new(
            LossSignal::ByDeadline,
            "judged by the local clock, counted from before the renewal was sent",
        ),
        cancellation: Guarantee::new(
            Cancellation::Prompt,
            "a cancelled wait is withdrawn by its nonce at once; the epoch of a replaced connection refuses its late requests",
        ),
        fenced_release: Guarantee::new(Release::Fenced, "a release names its session, its nonce and its token"),
        name_isolation: Guarantee::new(NameIsolation::Isolated, "names are escaped, so no key contains another"),
        resume: Guarantee::new(
            Resume::OneUse,
            "a mark in the session's record, removed by the script that resumes",
        ),
        observers: if keeps {
            Guarantee::new(
                Observers::Converge,
                "each change sends a message, and the state is read after each message that may have been missed; changes are \
                 numbered",
            )
        } else {
            Guarantee::new(
                Observers::MayMiss,
                "a restart or a failover that loses the latest changes (see `acknowledged grant`) shows an older state again",
            )
        },
        barriers: Guarantee::new(
            Barriers::DeadRemoved,
            "places in a barrier belong to their session, and count only while its lease runs",
        ),
        isolation: Guarantee::new(
            Transactions::StrictSerializable,
            if keeps {
                "a commit compares and writes in one script"
            } else {
                "a commit compares and writes in one script; one that a restart or a failover loses (see `acknowledged grant`) \
                 leaves no trace"
            },
        ),
        fenced_commit: Guarantee::new(FencedCommit::Atomic, "the script checks the guard before it writes"),
        unknown_commit: Guarantee::new(
            UnknownCommit::Resolved,
            "each commit leaves its nonce and result in its session's record, in the same script",
        ),
        queue_delivery: Guarantee::new(
            QueueDelivery::AtLeastOnce,
            if keeps {
                "an item stays until it is acknowledged; a claim ends with its session, and gives the item back"
            } else {
                "an item stays until it is acknowledged, and a claim ends with its session; but a restart or a failover that \
                 loses writes (see `acknowledged grant`) loses items"
            },
        ),
        queue_order: Guarantee::new(
            QueueOrder::PriorityThenFifo,
            "items are kept by priority and number of acceptance, and a returned item keeps both",
        ),
        durability: durability(server, config, forgets),
        minority_loss: match (&config.topology, server.replicas) {
            (Topology::Fixed, _) => Guarantee::new(
                MinorityLoss::SingleMember,
                "one server, and no replica is known that could take over: use sentinels or a cluster",
            ),
            (_, Some(1..)) => Guarantee::new(
                MinorityLoss::Survives,
                "a replica takes over; the writes that it had not received are lost",
            ),
            _ => Guarantee::new(
                MinorityLoss::SingleMember,
                "no replica is connected that could take over: add one",
            ),
        },
        rw_order: Guarantee::new(
            RwOrder::Arrival,
            "readers and writers have one wait queue; adjacent readers are granted together",
        ),
    };
    if config.interop {
        with_foreign_clients(claims)
    } else {
        claims
    }
}

/// Weakens the guarantees of locks for interop mode, where other programs may acquire them too.
fn with_foreign_clients(claims: Guarantees) -> Guarantees {
    Guarantees {
        deployment: claims.deployment + ", interop",
        mutual_exclusion: Guarantee::new(
            Exclusion::Cooperative,
            "a foreign holder may go on when its key has expired, or delete the key of another holder; among tenure's own \
             clients, see `freed before its TTL`",
        ),
        token_order: Guarantee::new(
            TokenOrder::None,
            "tenure's tokens rise, but foreign holders have none: a resource cannot tell a late request of theirs from a \
             present one",
        ),
        hand_off: Guarantee::new(
            HandOff::Unordered,
            "foreign clients take the key when they find it free; tenure's own are granted in the order of arrival",
        ),
        expiry: Guarantee::new(
            Expiry::Unbounded,
            "a foreign holder chooses its own TTL, or none (the default of redis-py's Lock)",
        ),
        early_release: Guarantee::new(
            EarlyRelease::OnEvents,
            format!(
                "a foreign client deletes or overwrites the key; {}",
                claims.early_release.reason
            ),
        ),
        fenced_release: Guarantee::new(
            Release::Unfenced,
            "tenure compares before it deletes, as do redis-py and redsync; a client that releases with a bare DEL frees the \
             present holder",
        ),
        name_isolation: Guarantee::new(
            NameIsolation::Verbatim,
            "a lock's name is a key beside all others of the database, whatever the namespace",
        ),
        ..claims
    }
}

fn deployment(server: &Server, config: &RedisConfig) -> String {
    let mut parts = vec![
        format!("Redis {}", server.version),
        match config.topology {
            Topology::Fixed => "one server",
            Topology::Sentinel { .. } => "under sentinels",
            Topology::Cluster => "cluster",
        }
        .to_owned(),
    ];
    match server.replicas {
        Some(0) => {}
        Some(1) => parts.push("1 replica".into()),
        Some(count) => parts.push(format!("{count} replicas")),
        None => parts.push("replicas unknown".into()),
    }
    parts.push(match (server.append_only, server.fsync.as_deref()) {
        (Some(true), Some(fsync)) => format!("appendfsync {fsync}"),
        (Some(true), None) => "append-only file".into(),
        (Some(false), _) => "no append-only file".into(),
        (None, _) => "persistence unknown".into(),
    });
    if config.wait_replicas > 0 {
        parts.push(format!("wait_replicas {}", config.wait_replicas));
    }
    if config.wait_aof {
        parts.push("wait_aof".into());
    }
    parts.join(", ")
}

/// Returns the events on which a lease may end early, and the settings that would avoid one of them.
fn early(server: &Server, config: &RedisConfig, forgets: Option<&str>) -> String {
    let mut events =
        vec!["the server's clock jumps forward (leases end by the wall clock: slew it, do not step it)".to_owned()];
    if let Some(writes) = forgets {
        events.push(format!(
            "the server loses {writes}; with `appendonly yes` and `appendfsync always` it would not"
        ));
    }
    if server.fails_over() {
        let narrowed = match config.wait_replicas {
            0 => "`wait_replicas` narrows this".to_owned(),
            count => format!("{count} replicas have acknowledged it, but another one may be promoted"),
        };
        events.push(format!(
            "a replica takes over that had not received the grant ({narrowed}), or a primary that is cut off goes on beside it"
        ));
    }
    if server.may_evict() {
        events.push(match &server.policy {
            Some(policy) => format!("the memory is full (`maxmemory-policy {policy}`: set it to `noeviction`)"),
            None => "the memory is full (the user lacks the right to `info`, which shows the policy)".to_owned(),
        });
    }
    events.join("; ")
}

fn durability(server: &Server, config: &RedisConfig, forgets: Option<&str>) -> Guarantee<Durability> {
    let (value, reason) = match forgets {
        Some(writes) => {
            let reason = format!("the server loses {writes}: set `appendonly yes` and `appendfsync always`");
            return Guarantee::new(Durability::Volatile, reason);
        }
        None if server.may_evict() => (
            Durability::Volatile,
            "it is on disk, but the server evicts keys when its memory is full, items and data included: set \
             `maxmemory-policy noeviction`",
        ),
        None if server.fails_over() && config.wait_replicas == 0 => (
            Durability::Volatile,
            "it is on the primary's disk, but a replica that takes over may not have received it: `wait_replicas` narrows this",
        ),
        None if server.fails_over() => (
            Durability::Volatile,
            "it is on the primary's disk and on the requested number of replicas, but another replica may take over",
        ),
        None if config.wait_aof => (
            Durability::Durable,
            "a step counts once `WAITAOF` reports that it is flushed",
        ),
        None => (
            Durability::Durable,
            "`appendfsync always` flushes the append-only file before the server answers",
        ),
    };
    Guarantee::new(value, reason)
}
