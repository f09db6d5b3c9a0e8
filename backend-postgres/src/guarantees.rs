//! What a PostgreSQL promises, read off the live server.

use std::time::Duration;

use tenure_core::{
    Barriers, Cancellation, Claim, Durability, EarlyRelease, Exclusion, Expiry, FencedCommit,
    Guarantees, HandOff, LossSignal, MinorityLoss, NameIsolation, Observers, QueueDelivery,
    QueueOrder, Release, Result, Resume, RwOrder, TokenOrder, Transactions, UnknownCommit,
};

use crate::client::Client;
use crate::step::step;

/// How late a waiter may find out that a holder is dead: the next one looks every half second, also for those
/// who stand still where no timer runs, and the rest is for a busy machine.
const LATE: Duration = Duration::from_secs(2);

/// What was read.
struct Found {
    version: String,
    fsync: bool,
    /// `synchronous_commit` of our sessions, which is not `off` even where the server's is.
    commit: String,
    /// `synchronous_standby_names`.
    synchronous: String,
    standbys: i64,
    /// `track_activities`: whether the server says since when a connection is silent.
    tracked: bool,
}

async fn find(client: &Client) -> Result<Found> {
    let rows = client
        .read(|| {
            step(
                "SELECT pg_catalog.current_setting('server_version') AS version, \
                 pg_catalog.current_setting('fsync')::boolean AND pg_catalog.current_setting('full_page_writes')::boolean AS fsync, \
                 CASE WHEN pg_catalog.current_setting('synchronous_commit') = 'off' THEN 'on' \
                    ELSE pg_catalog.current_setting('synchronous_commit') END AS commit, \
                 pg_catalog.current_setting('synchronous_standby_names') AS synchronous, \
                 (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication) AS standbys, \
                 pg_catalog.current_setting('track_activities')::boolean AS tracked",
            )
        })
        .await?;
    let row = rows.first()?;
    Ok(Found {
        // Packagers add a word of their own.
        version: row
            .get::<String>("version")?
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned(),
        fsync: row.get("fsync")?,
        commit: row.get("commit")?,
        synchronous: row.get("synchronous")?,
        standbys: row.get("standbys")?,
        tracked: row.get("tracked")?,
    })
}

impl Found {
    fn waits_for_standbys(&self) -> bool {
        !self.synchronous.is_empty() && self.commit != "local"
    }

    fn deployment(&self) -> String {
        let (n, s) = (self.standbys, if self.standbys == 1 { "" } else { "s" });
        let standbys = match self.waits_for_standbys() {
            false if n == 0 => "alone".to_owned(),
            true => format!(
                "{n} standby{s}, synchronous ({}, {})",
                self.synchronous, self.commit
            ),
            false => format!("{n} standby{s}, asynchronous"),
        };
        let fsync = if self.fsync { "" } else { ", fsync off" };
        format!("PostgreSQL {}, {standbys}{fsync}", self.version)
    }

    fn token_order(&self) -> Claim<TokenOrder> {
        if !self.fsync {
            return Claim::new(
                TokenOrder::ClientCrash,
                "`fsync` or `full_page_writes` is off, so a crash of the machine may damage the sequence: switch them on",
            );
        }
        Claim::new(
            TokenOrder::Failover,
            "one sequence, which is set above the time of day, in microseconds, before the first grant after a start, a promotion or a restore: however far a standby lagged. Only one that missed a million grants, and whose clock is behind by more than its primary ran, would turn it back",
        )
    }

    fn expiry(&self) -> Claim<Expiry> {
        let silent = match self.tracked {
            true => "",
            // What the server does not say, sessions do, with each renewal.
            false => {
                " (by its renewals, for `track_activities` is off: a clock that is set forward ends the idle, too)"
            }
        };
        Claim::new(
            Expiry::WithinByClock(LATE),
            format!(
                "the server ends a connection that is silent for the TTL (`idle_session_timeout`), and the next in line looks every half second, and ends one that stands still in the middle of a request{silent}; a clock that is set back prolongs it"
            ),
        )
    }

    fn early_release(&self) -> String {
        let clock = match self.tracked {
            true => "",
            false => {
                "; where `track_activities` is off, also when the server's clock is set forward"
            }
        };
        format!(
            "a session ends with its connection: when that breaks, when its backend is terminated, and when the server restarts; and a standby that is promoted knows of none{clock}"
        )
    }

    fn durability(&self) -> Claim<Durability> {
        let (value, rows) = if !self.fsync {
            (
                Durability::Volatile,
                "what is stored is not safe from a crash of the machine either: `fsync` or `full_page_writes` is off",
            )
        } else if self.waits_for_standbys() && self.commit != "remote_write" {
            (
                Durability::Stored,
                "what is stored is on this server's disk and on that of its synchronous standbys, unless somebody cancels a commit that waits for these (`pg_cancel_backend`)",
            )
        } else if self.waits_for_standbys() {
            (
                Durability::Stored,
                "what is stored is on this server's disk, and in the memory of its synchronous standbys, unless somebody cancels a commit that waits for these (`pg_cancel_backend`)",
            )
        } else if self.standbys > 0 {
            (
                Durability::Volatile,
                "what is stored is on this server's disk, and a standby that is promoted may lack the last of it: see `synchronous_standby_names`",
            )
        } else {
            (
                Durability::Stored,
                "what is stored is on this server's disk",
            )
        };
        Claim::new(
            value,
            format!(
                "a lock is in the server's memory, and free once that restarts, for every session ends with it; {rows}"
            ),
        )
    }
}

pub(crate) async fn read(client: &Client) -> Result<Guarantees> {
    let found = find(client).await?;
    let claims = claims(&found);
    Ok(match client.config.interop {
        true => among_strangers(claims),
        false => claims,
    })
}

/// What is left of the promises about locks when others may take them too.
fn among_strangers(claims: Guarantees) -> Guarantees {
    Guarantees {
        deployment: claims.deployment + ", interop",
        token_order: Claim::new(
            TokenOrder::None,
            "tenure's tokens rise, but foreign holders have none: a resource cannot tell a late one of those from the present one",
        ),
        hand_off: Claim::new(
            HandOff::Unordered,
            "foreign clients stand in no line: who blocks in `pg_advisory_lock` is served by the server before all of tenure's, who are served in the order of arrival among themselves",
        ),
        expiry: Claim::new(
            Expiry::Unbounded,
            "a foreign holder has no TTL: it holds for as long as its connection lives",
        ),
        name_isolation: Claim::new(
            NameIsolation::Verbatim,
            "a lock's name is the text that others hash, or the key that they take, in every namespace",
        ),
        ..claims
    }
}

fn claims(found: &Found) -> Guarantees {
    Guarantees {
        deployment: found.deployment(),
        mutual_exclusion: Claim::new(
            Exclusion::UnlessReleasedEarly,
            "the server's lock manager has one holder at a time, on a connection of its own; a standby that is promoted while its primary goes on has another, under a greater token",
        ),
        token_order: found.token_order(),
        hand_off: Claim::new(
            HandOff::Fifo,
            "a ticket for each who waits, numbered by the server; a release tells the first that lives",
        ),
        expiry: found.expiry(),
        early_release: Claim::new(EarlyRelease::OnEvents, found.early_release()),
        loss_signal: Claim::new(
            LossSignal::ByDeadline,
            "judged by the local clock, less a margin, whatever the store does",
        ),
        cancellation: Claim::new(
            Cancellation::Prompt,
            "a cancelled wait is withdrawn by its nonce in the background at once",
        ),
        fenced_release: Claim::new(
            Release::Fenced,
            "an unlock goes over the connection that has the lock, and can free no other",
        ),
        name_isolation: Claim::new(
            NameIsolation::Isolated,
            "locks are kept by a 64-bit hash of (namespace, kind, name): two that meet there exclude each other, and one session that wants both is refused",
        ),
        resume: Claim::new(
            Resume::Unsupported,
            "a session is a connection, which no other process can take over",
        ),
        observers: Claim::new(
            Observers::Converge,
            "every state has a number, drawn while its row is locked; a notification or half a second later, the observer reads the latest",
        ),
        barriers: Claim::new(
            Barriers::WithoutTheDead,
            "who holds or is inside counts only while its session has its own advisory lock; the dead are looked for every half second",
        ),
        isolation: Claim::new(
            Transactions::StrictSerializable,
            "commits of a namespace lock one row, and compare what was read under that lock",
        ),
        fenced_commit: Claim::new(
            FencedCommit::Atomic,
            "the commit goes over the connection that has the lock, or locks the row that stands for the guard",
        ),
        unknown_commit: Claim::new(
            UnknownCommit::Resolved,
            "each commit leaves its nonce in a row of the session, in the same statement; whoever doubts writes another there, or reads it",
        ),
        queue_delivery: Claim::new(
            QueueDelivery::AtLeastOnce,
            "an item is a row until it is acknowledged, and a delivery counts while its consumer's session lives",
        ),
        queue_order: Claim::new(
            QueueOrder::PriorityThenFifo,
            "numbers are given out under the lock of the queue's row, so in the order in which items become visible",
        ),
        durability: found.durability(),
        minority_loss: Claim::new(
            MinorityLoss::SingleMember,
            "one server answers; a standby takes over only when somebody promotes it",
        ),
        rw_order: Claim::new(
            RwOrder::Arrival,
            "readers and writers take tickets of one line; a release tells the first, and the readers right behind a reader",
        ),
    }
}
