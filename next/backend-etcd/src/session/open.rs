//! Opening and resuming sessions.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, Txn};
use parking_lot::Mutex;
use tenure_core::backend::{Nonce, Opened, SessionEvents};
use tenure_core::{Error, ErrorKind, LossReason, Result, SessionId};

use super::{CAPACITY, EtcdSession};
use crate::config::refuse;
use crate::connection::Repeat;
use crate::error::revoked;
use crate::fence::Fence;
use crate::keys::LAYOUT;
use crate::places::Places;
use crate::shared::{Shared, other_layout};
use crate::txn::{get, is_absent, put};

/// etcd refuses a longer lease.
const MOST_TTL: Duration = Duration::from_secs(9_000_000_000);

/// Returns the value of an open session's key, which no other process writes. Operators see the label.
fn opened(label: &str) -> Vec<u8> {
    let owner = RandomState::new().build_hasher().finish();
    format!("open {owner:016x}\n{label}").into_bytes()
}

/// Returns the value of a detached session's key: the first nonce of the process that resumes it, the kept requests, the label.
pub(super) fn detached(next: u64, kept: impl Iterator<Item = u64>, label: &str) -> Vec<u8> {
    let kept: String = kept.map(|nonce| format!(" {nonce}")).collect();
    format!("detached {next}{kept}\n{label}").into_bytes()
}

/// Reads the value of a detached session's key; `None` if the session is not detached.
fn read_detached(value: &[u8]) -> Option<(Nonce, HashSet<u64>, &str)> {
    let (line, label) = std::str::from_utf8(value).ok()?.split_once('\n')?;
    let mut numbers = line
        .strip_prefix("detached ")?
        .split(' ')
        .map(|number| number.parse().ok());
    let next = Nonce::new(numbers.next()??);
    Some((next, numbers.flatten().collect(), label))
}

/// Opens a session.
pub(crate) async fn open(shared: &Arc<Shared>, ttl: Duration, label: &str, events: SessionEvents) -> Result<Opened> {
    if ttl.is_zero() || ttl > MOST_TTL {
        let message = format!("a TTL of {ttl:?}: etcd grants more than zero and at most {MOST_TTL:?}");
        return Err(refuse(message));
    }
    // Whole seconds, never less than was asked for.
    let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let connection = &shared.connection;
    // A lease whose answer was lost has nothing, and runs out.
    let granted = connection.call(Repeat::Yes, |client| {
        let mut client = client.lease_client();
        async move { client.grant(seconds, None).await }
    });
    let granted = granted.await?;
    let (lease, ttl) = (granted.id(), Duration::from_secs(granted.ttl().unsigned_abs()));
    let epoch = connection.history.register(lease, events.clone());
    let (key, value) = (shared.keys.session(lease), opened(label));
    let layout = shared.keys.layout();
    let write = Txn::new()
        .when([
            is_absent(&key),
            Compare::value(layout.as_str(), CompareOp::Equal, LAYOUT),
        ])
        .and_then([put(&key, value.as_slice(), lease)])
        .or_else([get(&key), get(&layout)]);
    let written = async {
        let mut answer = connection.txn(Repeat::Yes, write).await?;
        if answer.succeeded {
            return Ok(answer.revision);
        }
        if let Some(found) = answer.key()? {
            // An earlier copy has arrived.
            return Ok(found.mod_revision);
        }
        let found = answer.key()?.map(|found| found.value);
        Err(match found {
            // An operator has removed the namespace.
            None => Error::new(ErrorKind::Unavailable, "the namespace was removed: connect again"),
            Some(found) => other_layout(&found),
        })
    };
    let written = written.await.inspect_err(|_| connection.history.unregister(lease));
    let fence = Fence::new(Arc::clone(connection), key, lease, value, written?);
    let session = session(
        shared,
        (lease, ttl),
        fence,
        (epoch, events),
        (HashSet::new(), Nonce::new(1)),
    );
    Ok(Opened::new(session, id(lease), ttl).capacity(CAPACITY))
}

/// Resumes a detached session.
pub(crate) async fn resume(shared: &Arc<Shared>, id: &SessionId, events: SessionEvents) -> Result<Opened> {
    let lease = i64::from_str_radix(id.as_str(), 16);
    let lease = lease.map_err(|_| refuse(format!("`{id}` is no id of a session on etcd")))?;
    let connection = &shared.connection;
    let left = connection.call(Repeat::Yes, |client| {
        let mut client = client.lease_client();
        async move { client.time_to_live(lease, None).await }
    });
    let left = left.await?;
    // 0 is less than a second.
    if left.ttl() < 0 {
        return Err(Error::lost(LossReason::Expired));
    }
    let ttl = Duration::from_secs(left.granted_ttl().unsigned_abs());
    let key = shared.keys.session(lease);
    let epoch = connection.history.register(lease, events.clone());
    let resumed = async {
        let mut answer = connection.txn(Repeat::Yes, Txn::new().and_then([get(&key)])).await?;
        let found = answer.key()?.ok_or_else(revoked)?;
        let (first, kept, label) = read_detached(&found.value).ok_or_else(|| {
            let message = "the session is not detached, or another process has resumed it";
            Error::new(ErrorKind::Conflict, message)
        })?;
        // Before the fence moves nothing of this process can be written: a copy of this request that arrives late finds another
        // revision.
        let fence = Fence::new(Arc::clone(connection), key, lease, opened(label), found.mod_revision);
        fence.take_over().await?;
        Ok((fence, first, kept))
    };
    let resumed = resumed.await.inspect_err(|_| connection.history.unregister(lease));
    let (fence, first, kept) = resumed?;
    let session = session(shared, (lease, ttl), fence, (epoch, events), (kept, first));
    Ok(Opened::new(session, id.clone(), ttl)
        .capacity(CAPACITY)
        .first_nonce(first))
}

fn id(lease: i64) -> SessionId {
    SessionId::new(format!("{lease:x}"))
}

fn session(
    shared: &Arc<Shared>,
    (lease, ttl): (i64, Duration),
    fence: Fence,
    (epoch, events): (u64, SessionEvents),
    (kept, first): (HashSet<u64>, Nonce),
) -> Arc<EtcdSession> {
    Arc::new(EtcdSession {
        shared: Arc::clone(shared),
        lease,
        fence,
        places: Places::default(),
        events,
        left: Mutex::default(),
        epoch,
        kept,
        last_nonce: Mutex::new(first.get()),
        keeper: Mutex::new(None),
        patience: (ttl / 4).min(shared.connection.timeout()),
    })
}
