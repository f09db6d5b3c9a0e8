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
    let voters = members
        .await?
        .members()
        .iter()
        .filter(|member| !member.is_learner())
        .count();
    Ok(claims(&version, voters, shared.interop))
}

fn claims(version: &str, voters: usize, interop: bool) -> Guarantees {
    let shape = match voters {
        1 => "1 member".to_owned(),
        n => format!("{n} members"),
    };
    let survives = voters >= 3;
    let old = has_lease_bugs(version);
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
        } else if voters > 1 && old {
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
        early_release: if voters > 1 && old {
            Claim::new(
                EarlyRelease::OnEvents,
                "a change of leader: this etcd is older than 3.4.38, with bugs of leases across leader changes that were fixed later; upgrade it",
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
        durability: Claim::new(
            Durability::Durable,
            "etcd syncs its log before it answers (unless it was started with --unsafe-no-fsync, which it does not tell)",
        ),
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

/// Whether this is a 3.4 from before its last fixes to leases (or older still).
fn has_lease_bugs(version: &str) -> bool {
    let mut parts = version
        .split(['.', '-', '+'])
        .map(|part| part.parse::<u32>().ok());
    match (
        parts.next().flatten(),
        parts.next().flatten(),
        parts.next().flatten(),
    ) {
        (Some(major), Some(minor), Some(patch)) => (major, minor, patch) < (3, 4, 38),
        // What cannot be read is not trusted.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_cluster_promises_less_than_a_new_one() {
        for (version, voters, exclusion) in [
            ("3.4.23", 3, Exclusion::UnlessReleasedEarly),
            ("3.4.38", 3, Exclusion::Always),
            ("3.5.16", 3, Exclusion::Always),
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
}
