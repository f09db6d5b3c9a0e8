//! Elections, as in Go's `concurrency.Election`: the lowest create revision under the prefix
//! leads, is the token, and its value is what the leader proclaims.
//!
//! A campaign is the acquire of a lock (see `locker.rs`) whose key has a value of its own. What
//! differs from Go: a candidate whose lease ended is never elected, and a proclamation compares the
//! key's last revision beside its first, so that none arrives after a later one.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use tenure_core::backend::{Ask, Election, Grant, Kind, Locker, Settle, Sighting, async_trait};
use tenure_core::{Error, ErrorKind, FencingToken, Leader, LossReason, Name, Result};
use tokio::sync::Mutex;

use crate::floor::revision;
use crate::locker::EtcdLocker;
use crate::session::EtcdSession;
use crate::ticket::ranges;

/// How often in a row a proclamation may find that the key was changed since it last looked. By
/// earlier ones that went unanswered, or by an operator: never for long.
const OVERTAKEN: usize = 16;

/// The elections of one session.
pub struct EtcdElection {
    session: Arc<EtcdSession>,
    /// The line that candidates stand in.
    line: EtcdLocker,
}

/// What this process knows of the key that it leads by. Locked for as long as a proclamation is
/// under way, so that two of one leadership do not chase each other.
struct Known {
    /// The key's last revision, as far as known.
    modified: i64,
    /// The greatest number that was proclaimed.
    number: u64,
}

impl EtcdElection {
    pub(crate) fn new(session: Arc<EtcdSession>) -> Self {
        Self {
            line: EtcdLocker {
                session: Arc::clone(&session),
            },
            session,
        }
    }

    fn prefix(&self, name: &Name) -> String {
        self.session.shared.layout.line(Kind::Election, name)
    }

    fn stand(&self, ask: &Ask, value: &[u8]) {
        let prefix = self.prefix(ask.name());
        self.session.tickets.stand_for(ask, &prefix, value);
    }

    fn leading(grant: Grant) -> Grant {
        // Newer, if it was taken up: the first proclamation finds that out.
        let modified = revision(grant.token());
        grant.attach(Mutex::new(Known {
            modified,
            number: 0,
        }))
    }

    /// Puts `value` if the key is still that of `token` and was last changed at `modified`. Says at
    /// which revision it was changed last: now, or before.
    async fn put(&self, ask: &Ask, token: i64, modified: i64, value: &[u8]) -> Result<Put> {
        let gone = || Error::lost(LossReason::Revoked);
        let (key, mut compares) = self.session.tickets.own(ask).ok_or_else(gone)?;
        let key = key.as_str();
        compares.push(Compare::create_revision(key, CompareOp::Equal, token));
        compares.push(Compare::mod_revision(key, CompareOp::Equal, modified));
        let lease = PutOptions::new().with_lease(self.session.lease);
        let look = GetOptions::new().with_keys_only();
        let txn = Txn::new()
            .when(compares)
            .and_then([TxnOp::put(key, value, Some(lease))])
            .or_else([TxnOp::get(key, Some(look))]);
        let answer = self.session.shared.wire.call(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        let answer = answer.await?;
        if answer.succeeded() {
            let revision = answer.header().map_or(0, |header| header.revision());
            return Ok(Put::Done(revision));
        }
        let found = ranges(answer).into_iter().flat_map(|(kvs, _)| kvs).next();
        match found {
            Some(kv) if kv.create_revision == token && kv.mod_revision != modified => {
                Ok(Put::Changed(kv.mod_revision))
            }
            // Deleted, or taken up by a resumed session.
            _ => Err(gone()),
        }
    }
}

enum Put {
    Done(i64),
    Changed(i64),
}

fn odd(what: &str) -> Error {
    Error::new(ErrorKind::Internal, what)
}

#[async_trait]
impl Election for EtcdElection {
    async fn try_campaign(&self, ask: &Ask, value: &[u8]) -> Result<Option<Grant>> {
        self.stand(ask, value);
        let granted = self.line.try_acquire(ask).await?;
        Ok(granted.map(Self::leading))
    }

    async fn campaign(&self, ask: &Ask, value: &[u8]) -> Result<Grant> {
        self.stand(ask, value);
        self.line.acquire(ask).await.map(Self::leading)
    }

    async fn proclaim(&self, ask: &Ask, grant: &Grant, number: u64, value: &[u8]) -> Result<()> {
        let known = grant.attachment::<Mutex<Known>>();
        let known = known.ok_or_else(|| odd("a leadership of another store"))?;
        let mut known = known.lock().await;
        for _ in 0..OVERTAKEN {
            if known.number > number {
                return Ok(()); // and surpassed
            }
            match self
                .put(ask, revision(grant.token()), known.modified, value)
                .await?
            {
                Put::Done(modified) => {
                    *known = Known { modified, number };
                    return Ok(());
                }
                Put::Changed(modified) => known.modified = modified,
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "somebody else keeps writing the leader's key: try again",
        ))
    }

    async fn leader(&self, name: &Name) -> Result<Option<Leader>> {
        self.session.shared.feeds.leader(&self.prefix(name)).await
    }

    async fn observe(&self, name: &Name, after: Option<u64>) -> Result<Sighting> {
        let after = after.map(|after| i64::try_from(after).unwrap_or(i64::MAX));
        let feeds = &self.session.shared.feeds;
        feeds.observe(&self.prefix(name), after).await
    }
}

#[async_trait]
impl Settle for EtcdElection {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.line.release(ask, grant).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        self.line.withdraw(ask).await
    }

    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        let taken_up = self.line.reclaim(ask, token).await?;
        Ok(taken_up.map(Self::leading))
    }
}
