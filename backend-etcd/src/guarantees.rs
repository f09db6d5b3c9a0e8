//! What this etcd guarantees, read off its members.

use std::time::Duration;

use tenure_core::{
    Barriers, Cancellation, Claim, Durability, EarlyRelease, Exclusion, Expiry, FencedCommit,
    Guarantees, HandOff, LossSignal, MinorityLoss, NameIsolation, Observers, QueueDelivery,
    QueueOrder, Release, Result, Resume, RwOrder, TokenOrder, Transactions, UnknownCommit,
};

use crate::session::Shared;

/// etcd looks for expired leases every 500 ms and revokes 1,000 a second at most.
const EXPIRY_SLACK: Duration = Duration::from_secs(2);

pub(crate) async fn read(shared: &Shared) -> Result<Guarantees> {
    let wire = &shared.wire;
    let status = wire.call_repeatable(|client| {
        let mut client = client.maintenance_client();
        async move { client.status().await }
    });
    let members = wire.call_repeatable(|client| {
        let mut client = client.cluster_client();
        async move { client.member_list().await }
    });
    let version = status.await?.version().to_owned();
    let members = members.await?;
    let voters = members.members().iter().filter(|it| !it.is_learner());
    let voters: Vec<Vec<String>> = voters.map(|it| it.client_urls().to_vec()).collect();
    let mut versions = vec![version];
    if voters.len() > 1 {
        // Any of them may be the leader, whose version it is that revokes leases.
        for urls in &voters {
            let mut found = None;
            for url in urls {
                found = match found {
                    None => wire.version_of(url).await,
                    found => found,
                };
            }
            versions.push(found.unwrap_or_else(|| UNANSWERED.to_owned()));
        }
    }
    Ok(claims(&oldest(&versions), voters.len(), shared.interop))
}

/// The version of a member that did not answer.
const UNANSWERED: &str = "of unknown version (a member did not answer)";

/// The least of `versions`; one that cannot be read is less than any.
fn oldest(versions: &[String]) -> String {
    let least = versions.iter().min_by_key(|version| number(version));
    least.cloned().unwrap_or_default()
}

fn number(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split(['.', '-', '+']).map(str::parse);
    match (parts.next()?, parts.next()?, parts.next()?) {
        (Ok(major), Ok(minor), Ok(patch)) => Some((major, minor, patch)),
        _ => None,
    }
}

fn claims(version: &str, voters: usize, interop: bool) -> Guarantees {
    let shape = match voters {
        1 => "1 member".to_owned(),
        n => format!("{n} members"),
    };
    let survives = voters >= 3;
    let frees_early = defect(version, EARLY_RELEASES);
    let old = voters > 1 && frees_early.is_some();
    let loses = match voters {
        1 => defect(version, LOST_WRITES),
        _ => defect(version, DIVERGENCE),
    };
    Guarantees {
        deployment: format!(
            "etcd {version}, {shape}{}",
            if interop { ", interop" } else { "" }
        ),
        mutual_exclusion: if interop {
            Claim::new(
                Exclusion::Cooperative,
                "Go's mutex may be granted after its lease was revoked; among tenure's own, always",
            )
        } else if old {
            Claim::new(
                Exclusion::UnlessReleasedEarly,
                "see there; the order of tokens holds even then",
            )
        } else {
            Claim::new(
                Exclusion::Always,
                "the lowest create revision under one prefix holds; Raft orders them",
            )
        },
        token_order: if interop {
            Claim::new(
                TokenOrder::None,
                "tenure's tokens are create revisions and rise; ETCD_LOCK_REV of etcdctl is another revision, and mixing the two breaks the order",
            )
        } else if let Some(defect) = &loses {
            Claim::new(
                TokenOrder::ClientCrash,
                format!("a crash of a member may lose acknowledged grants: {defect}"),
            )
        } else if survives {
            Claim::new(
                TokenOrder::Failover,
                "the token is a revision of the replicated log",
            )
        } else {
            Claim::new(
                TokenOrder::StoreRestart,
                "the token is a revision, written to disk before it is acknowledged; with one member, a lost disk loses it",
            )
        },
        hand_off: Claim::new(
            HandOff::Fifo,
            "in the order of create revisions, across processes",
        ),
        expiry: if interop {
            Claim::new(
                Expiry::Unbounded,
                "a foreign holder chooses its own TTL (etcdctl: 60 s)",
            )
        } else {
            Claim::new(
                Expiry::WithinOrAnew(EXPIRY_SLACK),
                "etcd grants every lease a fresh TTL when a leader takes over or a member restarts, and keeps no record of what was left",
            )
        },
        early_release: if let Some(defect) = frees_early.filter(|_| old) {
            Claim::new(
                EarlyRelease::OnEvents,
                format!("a change of leader: {defect}; upgrade every member"),
            )
        } else {
            Claim::new(
                EarlyRelease::Never,
                "the lease is replicated; only an operator's `lease revoke` or `del` ends it early",
            )
        },
        loss_signal: Claim::new(
            LossSignal::ByDeadline,
            "judged by the local clock, counted from before the renewal was sent",
        ),
        cancellation: Claim::new(
            Cancellation::Prompt,
            "the key is deleted at once, and a late request finds the marker of its withdrawal",
        ),
        fenced_release: Claim::new(Release::Fenced, "the deletion compares the create revision"),
        name_isolation: if interop {
            Claim::new(
                NameIsolation::Verbatim,
                "the name is the prefix, as for Go and etcdctl: `a` waits for whatever stands under `a/`",
            )
        } else {
            Claim::new(
                NameIsolation::Isolated,
                "names are escaped, so no key contains another",
            )
        },
        resume: Claim::new(
            Resume::OneUse,
            "a record on the lease, deleted by the transaction that resumes",
        ),
        observers: Claim::new(
            Observers::Converge,
            "a watch on the candidates, and a linearizable read after whatever it may have missed; the order is that of the revisions",
        ),
        barriers: if interop {
            Claim::new(
                Barriers::Cooperative,
                "Go's double barrier opens by a count alone, keeps those whom it refused, and does not see that the last was the last",
            )
        } else {
            Claim::new(
                Barriers::WithoutTheDead,
                "every participant is a key on its lease; the barrier opens by a transaction that compares that all of them are there",
            )
        },
        isolation: Claim::new(
            Transactions::StrictSerializable,
            "an attempt reads at one revision, and the commit compares what it read in the replicated log",
        ),
        fenced_commit: Claim::new(
            FencedCommit::Atomic,
            "the transaction compares the create revision of the guard's key with its token",
        ),
        unknown_commit: Claim::new(
            UnknownCommit::Resolved,
            "each commit puts its nonce into a key on the session's lease; whoever doubts overwrites that under the same comparison, or reads it",
        ),
        queue_delivery: if interop {
            Claim::new(
                QueueDelivery::AtMostOnce,
                "Go's consumers delete an item before its work is done, claimed or not: one that dies takes it along; among tenure's own, at least once",
            )
        } else {
            Claim::new(
                QueueDelivery::AtLeastOnce,
                "an item's key stays until the transaction that acknowledges it; a claim hangs on its consumer's lease",
            )
        },
        queue_order: if interop {
            Claim::new(
                QueueOrder::Unordered,
                "Go's consumers heed neither claims nor, in a plain queue, priorities; among tenure's own, by priority and then by revision, but for what comes back meanwhile",
            )
        } else {
            Claim::new(
                QueueOrder::PriorityThenFifo,
                "the number in an item's key is drawn in the transaction that puts it; who claims proves that nothing before it is to be had",
            )
        },
        durability: match loses {
            Some(defect) => Claim::new(
                Durability::Volatile,
                format!("a crash: {defect}; upgrade every member"),
            ),
            None => Claim::new(
                Durability::Durable,
                "etcd syncs its log before it answers (unless it was started with --unsafe-no-fsync, which it does not tell)",
            ),
        },
        minority_loss: if survives {
            Claim::new(MinorityLoss::Survives, "a majority goes on")
        } else {
            Claim::new(
                MinorityLoss::SingleMember,
                "fewer than three voting members: run three or five",
            )
        },
        rw_order: Claim::new(
            RwOrder::Arrival,
            if interop {
                "in the order of revisions, as in Go's recipe; in its layout nothing can be downgraded"
            } else {
                "one line in the order of create revisions; a reader waits only for the writers before it"
            },
        ),
    }
}

/// A defect, and the first release of each branch without it. Branches after the last one never had it.
struct Defect {
    what: &'static str,
    /// Ascending: branch, and patch.
    fixed: &'static [(u32, u32, u32)],
}

/// What frees the holdings of a live session when the leader changes.
const EARLY_RELEASES: &[Defect] = &[
    // etcd pull 17425.
    Defect {
        what: "an old leader revokes leases that the new one renews",
        fixed: &[(3, 4, 31), (3, 5, 13)],
    },
    // etcd pull 14087, and 14150 for 3.4.
    Defect {
        what: "a revocation races with a change of leader",
        fixed: &[(3, 4, 19), (3, 5, 5)],
    },
    // "Re-check that the lease still exists during the renew process", in 3.6.5 and the patches of its time.
    Defect {
        what: "a renewal is acknowledged though the lease is gone",
        fixed: &[(3, 4, 38), (3, 5, 23), (3, 6, 5)],
    },
];

/// What loses acknowledged writes of one member alone (etcd pulls 14423 and 14424).
const LOST_WRITES: &[Defect] = &[
    Defect {
        what: "a member alone acknowledges before its log is on disk",
        fixed: &[(3, 4, 21), (3, 5, 5)],
    },
    INCONSISTENCY,
];

/// What lets the data of members differ after a crash (etcd pull 13908); 3.4 does not have it.
const INCONSISTENCY: Defect = Defect {
    what: "data and revisions are inconsistent after a crash under load",
    fixed: &[(3, 4, 0), (3, 5, 3)],
};

const DIVERGENCE: &[Defect] = &[INCONSISTENCY];

/// The first of `defects` that `version` has, in words. A version that cannot be read has them all.
fn defect(version: &str, defects: &[Defect]) -> Option<String> {
    let number = number(version);
    let has = |defect: &&Defect| {
        let Some((major, minor, patch)) = number else {
            return true;
        };
        let mut fixed = defect.fixed.iter();
        match fixed.find(|(a, b, _)| (*a, *b) >= (major, minor)) {
            Some((a, b, first)) if (*a, *b) == (major, minor) => patch < *first,
            // Older than the oldest branch that was mended.
            Some(_) => true,
            None => false,
        }
    };
    let found = defects.iter().find(has)?;
    let fixed = found.fixed.iter();
    let fixed: Vec<_> = fixed.map(|(a, b, c)| format!("{a}.{b}.{c}")).collect();
    Some(format!(
        "etcd {version} has a defect ({}) that is mended in {}",
        found.what,
        fixed.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_cluster_promises_less_than_a_new_one() {
        for (version, voters, exclusion) in [
            ("3.4.23", 3, Exclusion::UnlessReleasedEarly),
            ("3.4.38", 3, Exclusion::Always),
            ("3.5.0", 3, Exclusion::UnlessReleasedEarly),
            ("3.5.12", 3, Exclusion::UnlessReleasedEarly),
            ("3.5.16", 3, Exclusion::UnlessReleasedEarly),
            ("3.5.23", 3, Exclusion::Always),
            ("3.6.0", 3, Exclusion::UnlessReleasedEarly),
            ("3.6.5", 3, Exclusion::Always),
            ("3.7.0", 3, Exclusion::Always),
            ("3.3.27", 3, Exclusion::UnlessReleasedEarly),
            ("3.4.23", 1, Exclusion::Always),
            ("nonsense", 3, Exclusion::UnlessReleasedEarly),
        ] {
            let claims = claims(version, voters, false);
            assert_eq!(
                claims.mutual_exclusion.value, exclusion,
                "{version}, {voters}"
            );
        }
    }

    #[test]
    fn the_oldest_member_decides() {
        let versions = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        assert_eq!(oldest(&versions(&["3.5.30", "3.5.9", "3.6.5"])), "3.5.9");
        let unknown = versions(&["3.5.30", UNANSWERED]);
        assert_eq!(oldest(&unknown), UNANSWERED);
        let claims = claims(&oldest(&unknown), 3, false);
        assert_eq!(claims.early_release.value, EarlyRelease::OnEvents);
    }

    #[test]
    fn a_release_that_loses_acknowledged_writes_is_not_durable() {
        for (version, voters, durability) in [
            ("3.4.20", 1, Durability::Volatile),
            ("3.4.23", 1, Durability::Durable),
            ("3.5.2", 3, Durability::Volatile),
            ("3.5.4", 1, Durability::Volatile),
            ("3.5.4", 3, Durability::Durable),
            ("3.5.30", 1, Durability::Durable),
        ] {
            let claims = claims(version, voters, false);
            assert_eq!(claims.durability.value, durability, "{version}, {voters}");
        }
    }
}
