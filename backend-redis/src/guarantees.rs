//! What a Redis promises, read off the live server.

use std::time::Duration;

use redis::{Cmd, Value};
use tenure_core::{
    Barriers, Cancellation, Claim, Durability, EarlyRelease, ErrorKind, Exclusion, Expiry,
    FencedCommit, Guarantees, HandOff, LossSignal, MinorityLoss, NameIsolation, Observers,
    QueueDelivery, QueueOrder, Release, Result, Resume, RwOrder, TokenOrder, Transactions,
    UnknownCommit,
};

use crate::client::{Client, Connection};
use crate::config::{RedisConfig, Topology};
use crate::endpoint::text;

/// How late a waiter's timer may be: tokio's timers are 1 ms coarse, the rest is for a busy
/// scheduler.
const LATE: Duration = Duration::from_millis(250);

pub(crate) async fn read(client: &Client) -> Result<Guarantees> {
    let connection = client.connection().await?;
    let info = permitted(client, &connection, &redis::cmd("INFO")).await?;
    let mut question = redis::cmd("CONFIG");
    question.arg("GET").arg("appendfsync");
    let settings = permitted(client, &connection, &question).await?;
    let mut server = Server::default();
    if let Some(info) = info {
        server.read(&text(&info));
    }
    server.version.clone_from(&connection.facts().version);
    server.fsync = settings
        .iter()
        .flat_map(Value::as_map_iter)
        .flatten()
        .find(|(key, _)| text(key) == "appendfsync")
        .map(|(_, value)| text(value));
    Ok(claims(&server, &client.config))
}

/// The answer, unless the user may not ask.
async fn permitted(
    client: &Client,
    connection: &Connection,
    command: &Cmd,
) -> Result<Option<Value>> {
    match client.send(connection, command).await {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.kind() == ErrorKind::Unauthorized => Ok(None),
        // A managed Redis may not even know the command.
        Err(error) if error.kind() == ErrorKind::Internal => Ok(None),
        Err(error) => Err(error),
    }
}

/// One value out of an answer of `INFO`.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim_end)
}

/// What is known of the server; nothing is known of what the user may not ask.
#[derive(Clone, Debug, Default)]
struct Server {
    version: String,
    replicas: Option<u32>,
    append_only: Option<bool>,
    fsync: Option<String>,
    policy: Option<String>,
}

impl Server {
    fn read(&mut self, info: &str) {
        self.replicas = field(info, "connected_slaves").and_then(|count| count.parse().ok());
        self.append_only = field(info, "aof_enabled").map(|enabled| enabled == "1");
        self.policy = field(info, "maxmemory_policy").map(str::to_owned);
    }

    /// What is lost when the server's process or machine ends, if anything is.
    fn forgets(&self, config: &RedisConfig) -> Option<&'static str> {
        match (self.append_only, self.fsync.as_deref()) {
            (Some(true), Some("always")) => None,
            (Some(true), _) if config.wait_aof => None,
            (Some(true), Some("everysec")) => Some(
                "about a second of writes in a restart of its machine, or two when its process alone is killed while the disk is slow (`appendfsync everysec` may postpone the write itself)",
            ),
            (Some(true), Some(_)) => Some(
                "what the operating system has not written in a restart of its machine (`appendfsync no`)",
            ),
            (Some(true), None) => Some(
                "perhaps a second of writes, perhaps more, in a restart of its machine or its process (the user may not ask for `appendfsync`: that takes the right to `config|get`)",
            ),
            (Some(false), _) => {
                Some("all since the last snapshot, or all, in a restart (`appendonly no`)")
            }
            (None, _) => Some("perhaps everything in a restart (the user may not ask INFO)"),
        }
    }

    /// Whether another may take over that lacks what this one acknowledged.
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
    let recovers = !matches!(config.topology, Topology::Fixed);
    let claims = Guarantees {
        deployment: deployment(server, config),
        mutual_exclusion: Claim::new(
            Exclusion::UnlessReleasedEarly,
            "every step is one script, which runs alone; what may free a lease early has a line of its own. Pass the tokens to the resource: their order holds even then",
        ),
        token_order: Claim::new(
            TokenOrder::Failover,
            "the next token is the last one plus one, lifted to the server's clock in microseconds with every new connection: so it rises over what Redis forgets, as long as the clock of who serves then is not behind the last token (NTP sees to that); while two primaries serve at once, each has an order of its own",
        ),
        hand_off: Claim::new(
            HandOff::Fifo,
            "a line for each name, in the order of arrival; a release tells the next in the same step",
        ),
        expiry: Claim::new(
            Expiry::WithinByClock(LATE),
            "the next in line sleeps until the lease before it ends by the server's clock; if that is set back, it takes as much longer",
        ),
        early_release: Claim::new(EarlyRelease::OnEvents, early(server, config, forgets)),
        loss_signal: Claim::new(
            LossSignal::ByDeadline,
            "judged by the local clock, counted from before the renewal was sent",
        ),
        cancellation: Claim::new(
            Cancellation::Prompt,
            "a cancelled wait is withdrawn by its nonce at once; a late request of a replaced connection is refused by the connection's number",
        ),
        fenced_release: Claim::new(
            Release::Fenced,
            "a release names its session, nonce and token",
        ),
        name_isolation: Claim::new(
            NameIsolation::Isolated,
            "names are escaped, so no key contains another",
        ),
        resume: Claim::new(
            Resume::OneUse,
            "a mark in the session's record, removed by the step that resumes",
        ),
        observers: if keeps {
            Claim::new(
                Observers::Converge,
                "a push with every change, and a new look after whatever may have been missed; changes are numbered",
            )
        } else {
            Claim::new(
                Observers::MayMiss,
                "a restart or a failover that loses the latest changes (see `acknowledged grant`) shows an older state again",
            )
        },
        barriers: Claim::new(
            Barriers::WithoutTheDead,
            "places in a barrier belong to their session, and count only while its lease runs",
        ),
        isolation: Claim::new(
            Transactions::StrictSerializable,
            if keeps {
                "a commit compares what was read and writes in one script"
            } else {
                "a commit compares what was read and writes in one script; one that a restart or a failover loses (see `acknowledged grant`) is as if it had never been"
            },
        ),
        fenced_commit: Claim::new(
            FencedCommit::Atomic,
            "the script looks whether the guard holds before it writes",
        ),
        unknown_commit: Claim::new(
            UnknownCommit::Resolved,
            "each commit leaves its nonce and result in its session's record, in the same script",
        ),
        queue_delivery: Claim::new(
            QueueDelivery::AtLeastOnce,
            if keeps {
                "an item stays until it is acknowledged; a claim ends with its session, and gives it back"
            } else {
                "an item stays until it is acknowledged, and a claim ends with its session; but items go with whatever a restart or a failover loses (see `acknowledged grant`)"
            },
        ),
        queue_order: Claim::new(
            QueueOrder::PriorityThenFifo,
            "items are kept by (priority, number of arrival), and one that comes back keeps its own",
        ),
        durability: durability(server, config, forgets),
        minority_loss: if recovers && server.replicas.is_some_and(|count| count > 0) {
            Claim::new(
                MinorityLoss::Survives,
                "a replica takes over; what it had not received is lost",
            )
        } else if recovers {
            Claim::new(
                MinorityLoss::SingleMember,
                "no replica is connected that could take over: add one",
            )
        } else {
            Claim::new(
                MinorityLoss::SingleMember,
                "one server, and nobody to take over that tenure knows of: use sentinels or a cluster",
            )
        },
        rw_order: Claim::new(
            RwOrder::Arrival,
            "readers and writers stand in one line; neighbouring readers are granted together",
        ),
    };
    match config.interop {
        true => among_strangers(claims),
        false => claims,
    }
}

/// What is left of the promises about locks when others may take them too.
fn among_strangers(claims: Guarantees) -> Guarantees {
    Guarantees {
        deployment: claims.deployment + ", interop",
        mutual_exclusion: Claim::new(
            Exclusion::Cooperative,
            "a foreign holder is bound by nothing but its own care: it may go on when its key has expired, or delete ours; among tenure's own see `freed before its TTL`",
        ),
        token_order: Claim::new(
            TokenOrder::None,
            "tenure's tokens rise, but foreign holders have none: a resource cannot tell a late one of those from the present one",
        ),
        hand_off: Claim::new(
            HandOff::Unordered,
            "foreign clients stand in no line: they take the key when they find it free, and tenure hands it from one of its own to the next, in the order of arrival",
        ),
        expiry: Claim::new(
            Expiry::Unbounded,
            "a foreign holder chooses its own TTL, or none (the default of redis-py's Lock)",
        ),
        early_release: Claim::new(
            EarlyRelease::OnEvents,
            format!(
                "a foreign client deletes or overwrites the key; {}",
                claims.early_release.reason
            ),
        ),
        fenced_release: Claim::new(
            Release::Unfenced,
            "tenure compares before it deletes, as do redis-py and redsync; a client that releases with a bare DEL frees whoever holds",
        ),
        name_isolation: Claim::new(
            NameIsolation::Verbatim,
            "a lock's name is a key beside all others of the database, whatever the namespace; other primitives stay in theirs",
        ),
        ..claims
    }
}

fn deployment(server: &Server, config: &RedisConfig) -> String {
    let mut words = format!("Redis {}", server.version);
    words += match config.topology {
        Topology::Fixed => ", one server",
        Topology::Sentinel { .. } => ", under sentinels",
        Topology::Cluster => ", cluster",
    };
    words += &match server.replicas {
        Some(0) => String::new(),
        Some(1) => ", 1 replica".into(),
        Some(count) => format!(", {count} replicas"),
        None => ", replicas unknown".into(),
    };
    words += &match (server.append_only, server.fsync.as_deref()) {
        (Some(true), Some(fsync)) => format!(", appendfsync {fsync}"),
        (Some(true), None) => ", append-only file".into(),
        (Some(false), _) => ", no append-only file".into(),
        (None, _) => ", persistence unknown".into(),
    };
    if config.wait_replicas > 0 {
        words += &format!(", wait_replicas {}", config.wait_replicas);
    }
    if config.wait_aof {
        words += ", wait_aof";
    }
    words
}

/// The events on which a lease may end early, and what would spare one of them.
fn early(server: &Server, config: &RedisConfig, forgets: Option<&str>) -> String {
    let mut events = vec![
        "the server's clock jumps forward (leases end by the wall clock: slew it, do not step it)"
            .to_owned(),
    ];
    if let Some(what) = forgets {
        events.push(format!(
            "the server loses {what}; with `appendonly yes` and `appendfsync always` it would not"
        ));
    }
    if server.fails_over() {
        let narrowed = match config.wait_replicas {
            0 => "`wait_replicas` narrows this".to_owned(),
            count => format!(
                "one of those {count} that acknowledge has it, but nothing makes that one the one"
            ),
        };
        events.push(format!(
            "a replica takes over that had not received the grant ({narrowed}), or a primary that is cut off goes on beside it"
        ));
    }
    if server.may_evict() {
        events.push(match &server.policy {
            Some(policy) => {
                format!("the memory is full (`maxmemory-policy {policy}`: set it to `noeviction`)")
            }
            None => "the memory is full (the user may not ask INFO for the policy)".to_owned(),
        });
    }
    events.join("; ")
}

fn durability(server: &Server, config: &RedisConfig, forgets: Option<&str>) -> Claim<Durability> {
    match forgets {
        None if server.may_evict() => Claim::new(
            Durability::Volatile,
            "it is on disk, but the server throws keys away when its memory is full, items and data included: set `maxmemory-policy noeviction`",
        ),
        Some(what) => Claim::new(
            Durability::Volatile,
            format!("the server loses {what}: set `appendonly yes` and `appendfsync always`"),
        ),
        None if server.fails_over() => Claim::new(
            Durability::Volatile,
            match config.wait_replicas {
                0 => {
                    "it is on the primary's disk, but a replica that takes over may not have received it: `wait_replicas` narrows this"
                }
                _ => {
                    "it is on the primary's disk and with as many replicas as were asked for, but another may take over"
                }
            },
        ),
        None => Claim::new(
            Durability::Durable,
            if config.wait_aof {
                "a step counts once `WAITAOF` says that it is flushed"
            } else {
                "`appendfsync always` flushes the append-only file before it answers"
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(replicas: u32, append_only: bool, fsync: &str) -> Server {
        Server {
            version: "7.0.15".into(),
            replicas: Some(replicas),
            append_only: Some(append_only),
            fsync: Some(fsync.into()),
            policy: Some("noeviction".into()),
        }
    }

    #[test]
    fn only_what_is_flushed_and_alone_is_durable() {
        let config = RedisConfig::new("a:1");
        for (server, durable) in [
            (server(0, true, "always"), Durability::Durable),
            (server(1, true, "always"), Durability::Volatile),
            (server(0, true, "everysec"), Durability::Volatile),
            (server(0, true, "no"), Durability::Volatile),
            (server(0, false, "always"), Durability::Volatile),
            (Server::default(), Durability::Volatile),
        ] {
            let claims = claims(&server, &config);
            assert_eq!(claims.durability.value, durable, "{server:?}");
            let never_back = claims.observers.value == Observers::Converge;
            assert_eq!(never_back, durable == Durability::Durable, "{server:?}");
            assert_eq!(
                claims.mutual_exclusion.value,
                Exclusion::UnlessReleasedEarly
            );
            assert_eq!(claims.early_release.value, EarlyRelease::OnEvents);
        }
    }

    #[test]
    fn acknowledged_by_the_disk_is_durable_however_it_is_flushed() {
        let config = RedisConfig::new("a:1").wait_aof(true);
        let claims = claims(&server(0, true, "everysec"), &config);
        assert_eq!(claims.durability.value, Durability::Durable);
    }

    #[test]
    fn the_events_are_those_of_this_deployment() {
        let config = RedisConfig::new("a:1");
        let alone = claims(&server(0, true, "always"), &config);
        let reason = alone.early_release.reason;
        assert!(
            reason.contains("clock") && !reason.contains("replica"),
            "{reason}"
        );
        assert!(
            !reason.contains("memory") && !reason.contains("loses"),
            "{reason}"
        );
        let unknown = claims(&Server::default(), &config);
        let reason = unknown.early_release.reason;
        for word in ["clock", "replica", "memory", "INFO"] {
            assert!(reason.contains(word), "{word}: {reason}");
        }
    }

    /// The README's word for it.
    #[test]
    fn what_forgets_is_a_restart() {
        let config = RedisConfig::new("a:1");
        for server in [
            server(0, true, "everysec"),
            server(0, true, "no"),
            server(0, false, "always"),
            Server::default(),
        ] {
            let claims = claims(&server, &config);
            for reason in [claims.early_release.reason, claims.durability.reason] {
                assert!(reason.contains(" in a restart"), "{reason}");
            }
        }
    }

    #[test]
    fn strangers_keep_less() {
        let durable = server(0, true, "always");
        let ours = claims(&durable, &RedisConfig::new("a:1"));
        let shared = claims(&durable, &RedisConfig::new("a:1").interop(true));
        assert!(shared.deployment.ends_with(", interop"));
        assert_eq!(shared.mutual_exclusion.value, Exclusion::Cooperative);
        assert_eq!(shared.token_order.value, TokenOrder::None);
        assert_eq!(shared.hand_off.value, HandOff::Unordered);
        assert_eq!(shared.expiry.value, Expiry::Unbounded);
        assert_eq!(shared.fenced_release.value, Release::Unfenced);
        assert_eq!(shared.name_isolation.value, NameIsolation::Verbatim);
        // What no stranger has a part in stays.
        assert_eq!(shared.queue_order.value, ours.queue_order.value);
        assert_eq!(shared.fenced_commit.value, ours.fenced_commit.value);
        let reason = shared.early_release.reason;
        assert!(
            reason.contains("foreign") && reason.contains("clock"),
            "{reason}"
        );
    }
}
