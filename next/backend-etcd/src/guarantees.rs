//! The guarantees of an etcd deployment, determined from its live members.

use std::time::Duration;

use tenure_core::guarantees::{
    Barriers, Cancellation, Durability, EarlyRelease, Exclusion, Expiry, FencedCommit, Guarantee, HandOff, LossSignal,
    MinorityLoss, NameIsolation, Observers, QueueDelivery, QueueOrder, Release, Resume, RwOrder, Scope, TokenOrder,
    Transactions, UnknownCommit,
};
use tenure_core::{Guarantees, Result};

use crate::connection::{Connection, Repeat};

/// etcd looks for expired leases every 500 ms, and revokes at most 1,000 a second.
const LATE: Duration = Duration::from_secs(2);

/// The version of a member that did not answer.
const UNKNOWN: &str = "of unknown version (a member did not answer)";

/// Reads the versions of the voting members over `connection`.
pub(crate) async fn read(connection: &std::sync::Arc<Connection>) -> Result<Guarantees> {
    let status = connection.call(Repeat::Yes, |client| {
        let mut client = client.maintenance_client();
        async move { client.status().await }
    });
    let mut versions = vec![status.await?.version().to_owned()];
    let members = connection.call(Repeat::Yes, |client| {
        let mut client = client.cluster_client();
        async move { client.member_list().await }
    });
    let members = members.await?;
    let voters: Vec<_> = members.members().iter().filter(|member| !member.is_learner()).collect();
    if voters.len() > 1 {
        // Any of them may be the leader, which revokes leases.
        for voter in &voters {
            let mut version = None;
            for url in voter.client_urls() {
                if version.is_none() {
                    version = connection.version_of(url).await;
                }
            }
            versions.push(version.unwrap_or_else(|| UNKNOWN.to_owned()));
        }
    }
    Ok(claims(oldest(&versions), voters.len()))
}

/// Returns the least version; one that cannot be read is less than any.
fn oldest(versions: &[String]) -> &str {
    versions
        .iter()
        .min_by_key(|version| number(version))
        .map_or(UNKNOWN, String::as_str)
}

fn number(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split(['.', '-', '+']).map(str::parse);
    match (parts.next()?, parts.next()?, parts.next()?) {
        (Ok(major), Ok(minor), Ok(patch)) => Some((major, minor, patch)),
        _ => None,
    }
}

fn claims(version: &str, voters: usize) -> Guarantees {
    let shape = match voters {
        1 => "1 member".to_owned(),
        voters => format!("{voters} members"),
    };
    let survives = voters >= 3;
    // A member alone has no change of leader but its own restart.
    let frees_early = defect(version, EARLY_RELEASES).filter(|_| voters > 1);
    let loses = match voters {
        1 => defect(version, LOST_WRITES),
        _ => defect(version, DIVERGENCE),
    };
    let token_order = match (&loses, survives) {
        (Some(defect), _) => Guarantee::new(
            TokenOrder::ClientCrash,
            format!("a crash of a member may lose acknowledged grants: {defect}"),
        ),
        (None, true) => Guarantee::new(TokenOrder::Failover, "a token is a revision of the replicated log"),
        (None, false) => Guarantee::new(
            TokenOrder::StoreRestart,
            "a token is a revision, which is on disk before it is acknowledged; a lost disk loses it",
        ),
    };
    Guarantees {
        deployment: format!("etcd {version}, {shape}"),
        scope: Scope::Network,
        mutual_exclusion: match frees_early {
            Some(_) => Guarantee::new(Exclusion::UnlessReleasedEarly, "see `freed before its TTL`"),
            None => Guarantee::new(
                Exclusion::Always,
                "the lowest create revision under one prefix holds, and Raft orders them",
            ),
        },
        token_order,
        hand_off: Guarantee::new(HandOff::Fifo, "the order of create revisions, across processes"),
        expiry: Guarantee::new(
            Expiry::WithinSinceRestart(LATE),
            "etcd grants each lease its whole TTL again when a leader takes over or a member restarts",
        ),
        early_release: match &frees_early {
            Some(defect) => Guarantee::new(
                EarlyRelease::OnEvents,
                format!("a change of leader: {defect}; upgrade all members"),
            ),
            None => Guarantee::new(
                EarlyRelease::Never,
                "leases are replicated; only an operator's `lease revoke` or `del` ends them early",
            ),
        },
        loss_signal: Guarantee::new(
            LossSignal::ByDeadline,
            "the local clock decides, counted from before the renewal was sent",
        ),
        cancellation: Guarantee::new(
            Cancellation::Prompt,
            "the key is deleted at once, and the session's fence refuses a late request",
        ),
        fenced_release: Guarantee::new(Release::Fenced, "the deletion compares the create revision"),
        name_isolation: Guarantee::new(
            NameIsolation::Isolated,
            "names are escaped, so that no key contains another",
        ),
        resume: Guarantee::new(
            Resume::OneUse,
            "the session's key says that it is detached, and the transaction that resumes it compares the key's revision",
        ),
        rw_order: Guarantee::new(
            RwOrder::Arrival,
            "one queue in the order of create revisions; a reader waits only for the writers before it",
        ),
        observers: Guarantee::new(
            Observers::Converge,
            "a watch on the leader, and a linearizable read after each message; revisions order the states",
        ),
        queue_delivery: Guarantee::new(QueueDelivery::Unsupported, "this version has no queues on etcd"),
        queue_order: Guarantee::new(QueueOrder::Unsupported, "this version has no queues on etcd"),
        barriers: Guarantee::new(
            Barriers::DeadRemoved,
            "a participant is a key on its session's lease, and the transaction that lets them in compares that all are there",
        ),
        isolation: Guarantee::new(
            Transactions::StrictSerializable,
            "an attempt reads at one revision, and its commit compares in the replicated log what it has read",
        ),
        fenced_commit: Guarantee::new(
            FencedCommit::Atomic,
            "the transaction compares the create revision of the guard's key",
        ),
        unknown_commit: Guarantee::new(
            UnknownCommit::Resolved,
            "a commit writes its number to a key on the session's lease, and the session's fence refuses it once that key is read",
        ),
        durability: match loses {
            Some(defect) => Guarantee::new(
                Durability::Volatile,
                format!("a crash of a member: {defect}; upgrade all members"),
            ),
            None => Guarantee::new(
                Durability::Durable,
                "etcd flushes its log before it answers, unless it runs with `--unsafe-no-fsync`, which it does not report",
            ),
        },
        minority_loss: match survives {
            true => Guarantee::new(MinorityLoss::Survives, "a majority of the members goes on"),
            false => Guarantee::new(
                MinorityLoss::SingleMember,
                "there are fewer than three voting members: run three or five",
            ),
        },
    }
}

/// A defect, and the first release of each branch without it. Later branches never had it.
struct Defect {
    what: &'static str,
    /// In ascending order.
    fixed: &'static [(u32, u32, u32)],
}

/// Defects that free the holdings of a live session when the leader changes.
const EARLY_RELEASES: &[Defect] = &[
    // etcd pull request 17425.
    Defect {
        what: "an old leader revokes leases that the new one renews",
        fixed: &[(3, 4, 31), (3, 5, 13)],
    },
    // etcd pull requests 14087, and 14150 for 3.4.
    Defect {
        what: "a revocation races with a change of leader",
        fixed: &[(3, 4, 19), (3, 5, 5)],
    },
    // In 3.6.5 and the patches of its time: the lease is looked up again during a renewal.
    Defect {
        what: "a renewal is acknowledged although the lease is gone",
        fixed: &[(3, 4, 38), (3, 5, 23), (3, 6, 5)],
    },
];

/// Defects that lose acknowledged writes of a member alone (etcd pull requests 14423 and 14424).
const LOST_WRITES: &[Defect] = &[
    Defect {
        what: "a member alone acknowledges before its log is on disk",
        fixed: &[(3, 4, 21), (3, 5, 5)],
    },
    INCONSISTENCY,
];

/// The data of members may differ after a crash (etcd pull request 13908). 3.4 does not have it.
const INCONSISTENCY: Defect = Defect {
    what: "data and revisions are inconsistent after a crash under load",
    fixed: &[(3, 4, 0), (3, 5, 3)],
};

const DIVERGENCE: &[Defect] = &[INCONSISTENCY];

/// Returns the first of `defects` that `version` has, in words. A version that cannot be read has them all.
fn defect(version: &str, defects: &[Defect]) -> Option<String> {
    let number = number(version);
    let has = |defect: &&Defect| {
        let Some((major, minor, patch)) = number else {
            return true;
        };
        let mut fixed = defect.fixed.iter();
        match fixed.find(|(a, b, _)| (*a, *b) >= (major, minor)) {
            Some((a, b, first)) if (*a, *b) == (major, minor) => patch < *first,
            // Older than the oldest branch that was repaired.
            Some(_) => true,
            None => false,
        }
    };
    let found = defects.iter().find(has)?;
    let fixed: Vec<_> = found.fixed.iter().map(|(a, b, c)| format!("{a}.{b}.{c}")).collect();
    Some(format!(
        "etcd {version} has a defect ({}), repaired in {}",
        found.what,
        fixed.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_an_old_version_guarantee_less() {
        use Exclusion::{Always, UnlessReleasedEarly};
        use TokenOrder::{ClientCrash, Failover, StoreRestart};
        for (version, voters, exclusion, order) in [
            ("3.4.23", 1, Always, StoreRestart),
            ("3.4.20", 1, Always, ClientCrash),
            ("3.4.23", 3, UnlessReleasedEarly, Failover),
            ("3.4.38", 3, Always, Failover),
            ("3.5.2", 3, UnlessReleasedEarly, ClientCrash),
            ("3.5.22", 3, UnlessReleasedEarly, Failover),
            ("3.5.23", 3, Always, Failover),
            ("3.6.4", 3, UnlessReleasedEarly, Failover),
            ("3.6.5-rc.1", 3, Always, Failover),
            ("3.7.0", 3, Always, Failover),
            (UNKNOWN, 3, UnlessReleasedEarly, ClientCrash),
        ] {
            let claimed = claims(version, voters);
            assert_eq!(
                (claimed.mutual_exclusion.value, claimed.token_order.value),
                (exclusion, order),
                "{version} with {voters}"
            );
        }
    }

    #[test]
    fn oldest_member_decides() {
        let versions = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect::<Vec<_>>();
        assert_eq!(oldest(&versions(&["3.5.30", "3.5.9", "3.6.5"])), "3.5.9");
        assert_eq!(oldest(&versions(&["3.4.1", UNKNOWN])), UNKNOWN);
    }
}
