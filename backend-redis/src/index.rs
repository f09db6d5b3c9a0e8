//! What a session's client knows of the session's index in Redis (`held/<id>`).
//!
//! Redis may lose its newest writes in a restart or a failover. Then the index has entries again that the client
//! has done with, and nothing else would free them while the session lives. So each request notes its entry here
//! before it is sent: an entry in the store that is not noted here is a stray.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tenure_core::Effect;
use tenure_core::Result;

use crate::layout::hex;
use crate::session::locked;
use crate::step::Arg;

/// How many steps that are to be repeated are kept in mind.
const MOST: usize = 20_000;

/// The length of a nonce in a field.
const NONCE: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Fields: `<nonce>`, and `<nonce>:<place>` for a delivered item.
    expected: Mutex<BTreeSet<String>>,
    repeats: Mutex<VecDeque<(Instant, Repeat)>>,
    progress: Mutex<Progress>,
}

/// How far the index was compared with the store's, over which connection.
#[derive(Debug, Default)]
struct Progress {
    connection: u64,
    /// None at the beginning, `0` at the end.
    cursor: Option<String>,
}

/// A step that leaves no entry in the index that would be missed, and that has to be done again if the server lost it.
#[derive(Clone, Debug)]
pub(crate) struct Repeat {
    /// As `lua/repeat.lua` has them.
    pub(crate) what: &'static str,
    pub(crate) path: String,
    pub(crate) of: String,
}

impl Repeat {
    pub(crate) fn arguments(&self) -> [Arg<'_>; 3] {
        [self.what.into(), (&self.path).into(), (&self.of).into()]
    }
}

impl Index {
    /// From now on `field` is this client's. Returns whether it was not before.
    pub(crate) fn expect(&self, field: String) -> bool {
        locked(&self.expected).insert(field)
    }

    /// Whether an entry of the store's is this client's: a delivery is, too, while its take is on its way.
    pub(crate) fn expects(&self, field: &str) -> bool {
        let expected = locked(&self.expected);
        expected.contains(field)
            || field
                .get(..NONCE)
                .is_some_and(|nonce| expected.contains(nonce))
    }

    /// The entry is gone from the store.
    pub(crate) fn forget(&self, field: &str) {
        locked(&self.expected).remove(field);
    }

    /// All entries of a nonce are gone from the store.
    pub(crate) fn forget_all(&self, nonce: u64) {
        let nonce = hex(nonce);
        let mut expected = locked(&self.expected);
        expected.remove(&nonce);
        // `;` comes right after `:`.
        let claims = expected.range(format!("{nonce}:")..format!("{nonce};"));
        let claims: Vec<String> = claims.cloned().collect();
        for claim in &claims {
            expected.remove(claim);
        }
    }

    /// Runs an acquire of `nonce`, whose entry is expected from before the request is sent, and afterwards
    /// unless the request certainly left nothing: it failed so, or `is_nothing` says so of its result.
    pub(crate) async fn expecting<T>(
        &self,
        nonce: u64,
        acquiring: impl Future<Output = Result<T>>,
        is_nothing: impl FnOnce(&T) -> bool,
    ) -> Result<T> {
        let is_first = self.expect(hex(nonce));
        let acquired = acquiring.await;
        let leaves_nothing = match &acquired {
            Ok(acquired) => is_nothing(acquired),
            // An earlier attempt may have left something.
            Err(error) => is_first && error.effect() == Effect::None,
        };
        if leaves_nothing {
            self.forget(&hex(nonce));
        }
        acquired
    }

    /// Notes a step that has to be done again over a connection to a server that lost it. A server that loses
    /// this, and not the session, has lost less than a TTL: else the session's key had expired.
    pub(crate) fn may_repeat(&self, ttl: Duration, repeat: Repeat) {
        let now = Instant::now();
        let mut repeats = locked(&self.repeats);
        while repeats.len() >= MOST || repeats.front().is_some_and(|(at, _)| *at + ttl + ttl < now)
        {
            repeats.pop_front();
        }
        repeats.push_back((now, repeat));
    }

    pub(crate) fn to_repeat(&self, ttl: Duration) -> Vec<Repeat> {
        let now = Instant::now();
        let repeats = locked(&self.repeats);
        let late = repeats.iter().filter(|(at, _)| *at + ttl + ttl >= now);
        late.map(|(_, repeat)| repeat.clone()).collect()
    }

    /// The session began over this connection: there is nothing to compare.
    pub(crate) fn begins_over(&self, connection: u64) {
        self.came_to(connection, "0".to_owned());
    }

    /// Where the comparison over this connection goes on: none if it is over, `Some(None)` at the beginning.
    pub(crate) fn cursor(&self, connection: u64) -> Option<Option<String>> {
        let mut progress = locked(&self.progress);
        if progress.connection != connection {
            *progress = Progress {
                connection,
                cursor: None,
            };
        }
        match progress.cursor.as_deref() {
            Some("0") => None,
            _ => Some(progress.cursor.clone()),
        }
    }

    pub(crate) fn came_to(&self, connection: u64, cursor: String) {
        *locked(&self.progress) = Progress {
            connection,
            cursor: Some(cursor),
        };
    }
}

#[cfg(test)]
mod tests {
    use tenure_core::{Error, ErrorKind};

    use super::*;

    #[test]
    fn a_delivery_is_expected_while_its_take_is_on_its_way() {
        let index = Index::default();
        index.expect(hex(7));
        assert!(index.expects("0000000000000007:00000:0000000000000001"));
        index.expect("0000000000000007:00000:0000000000000001".into());
        index.forget(&hex(7));
        assert!(index.expects("0000000000000007:00000:0000000000000001"));
        assert!(!index.expects("0000000000000007:00000:0000000000000002"));
        index.forget_all(7);
        assert!(!index.expects("0000000000000007:00000:0000000000000001"));
        assert!(!index.expects("short"));
    }

    #[tokio::test]
    async fn an_attempt_that_certainly_did_nothing_is_not_expected() {
        let index = Index::default();
        let failed = |effect| async move {
            Err::<(), _>(Error::new(ErrorKind::Unavailable, "").with_effect(effect))
        };
        let _ = index.expecting(1, failed(Effect::None), |()| false).await;
        assert!(!index.expects(&hex(1)));
        let _ = index
            .expecting(1, failed(Effect::Unknown), |()| false)
            .await;
        let _ = index.expecting(1, failed(Effect::None), |()| false).await;
        assert!(index.expects(&hex(1)), "the first may have left it");
        let _ = index.expecting(1, async { Ok(()) }, |()| true).await;
        assert!(!index.expects(&hex(1)));
    }

    #[test]
    fn the_index_is_compared_once_over_each_connection() {
        let index = Index::default();
        index.begins_over(1);
        assert_eq!(index.cursor(1), None);
        assert_eq!(index.cursor(2), Some(None));
        index.came_to(2, "17".into());
        assert_eq!(index.cursor(2), Some(Some("17".into())));
        index.came_to(2, "0".into());
        assert_eq!(index.cursor(2), None);
    }
}
