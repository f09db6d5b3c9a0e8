//! Fencing tokens: create revisions, above the floor that an operator has raised.
//!
//! The key `token_floor` has the offsets that were ever added to revisions: `<offset>@<since> .. <offset>`. Each holds for keys
//! that were created after the revision `since`; the last one since the revision of the key itself. A request that has come before
//! a raise and is granted after it gets the later offset too, and notes its token in its key. An offset is at least the floor, so
//! all tokens after a raise are above it, and they rise with create revisions.

use std::sync::Arc;

use etcd_client::proto::PbKeyValue;
use etcd_client::{Compare, CompareOp, Txn};
use tenure_core::{Error, ErrorKind, FencingToken, Result};

use crate::connection::{Connection, Repeat};
use crate::txn::{get, put};

/// A floor leaves this many tokens above it.
const LEAST_ROOM: u64 = 1 << 51;

/// How often a raise begins again because another operator raised the floor.
const MOST_ATTEMPTS: u32 = 100;

/// The offsets of tokens, as one read found them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Floors {
    /// Offsets with the revision after which each holds.
    offsets: Vec<(i64, u64)>,
}

impl Floors {
    /// Reads the key with the floors, if there is one.
    pub(crate) fn read(found: Option<&PbKeyValue>) -> Self {
        let Some(found) = found else {
            return Self::default();
        };
        let text = String::from_utf8_lossy(&found.value);
        let offset = |word: &str| {
            let (offset, since) = word.split_once('@').unwrap_or((word, ""));
            Some((since.parse().unwrap_or(found.mod_revision), offset.parse().ok()?))
        };
        Self {
            offsets: text.split(' ').filter_map(offset).collect(),
        }
    }

    /// Returns the token of a key that was created at this revision.
    pub(crate) fn token(&self, created: i64) -> FencingToken {
        let offset = self.offsets.iter().rev().find(|(since, _)| created > *since);
        FencingToken::new(offset.map_or(0, |(_, offset)| *offset) + created.unsigned_abs())
    }

    /// Returns the token of a key that is granted now, whenever it was created.
    pub(crate) fn latest(&self, created: i64) -> FencingToken {
        let offset = self.offsets.last().map_or(0, |(_, offset)| *offset);
        FencingToken::new(offset + created.unsigned_abs())
    }

    /// Returns whether a key of this revision is older than the last raise.
    pub(crate) fn are_raised_after(&self, created: i64) -> bool {
        self.offsets.last().is_some_and(|(since, _)| created <= *since)
    }

    /// Writes the offsets with a further one.
    fn with(&self, offset: u64) -> String {
        let before = self.offsets.iter().map(|(since, offset)| format!("{offset}@{since} "));
        before.collect::<String>() + &offset.to_string()
    }
}

/// Makes every later token at least `floor`.
pub(crate) async fn raise(connection: &Arc<Connection>, key: &str, floor: FencingToken) -> Result<()> {
    if floor.get() > FencingToken::MAX.get() - LEAST_ROOM {
        let message = format!(
            "a floor of {floor} leaves too few tokens: the greatest is {}",
            FencingToken::MAX.get() - LEAST_ROOM
        );
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    for _ in 0..MOST_ATTEMPTS {
        let read = Txn::new().and_then([get(key)]);
        let mut answer = connection.txn(Repeat::Yes, read).await?;
        let found = answer.key()?;
        let floors = Floors::read(found.as_ref());
        // Every later key is created above this revision.
        let next = answer.revision + 1;
        if floor <= floors.token(next) {
            return Ok(());
        }
        let seen = found.map_or(0, |found| found.mod_revision);
        let write = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, seen)])
            .and_then([put(key, floors.with(floor.get()), 0)]);
        // A copy that arrives later finds another revision. Whether this one was the first, the next read shows.
        if connection.txn(Repeat::Yes, write).await?.succeeded {
            return Ok(());
        }
    }
    let message = "others raise the token floor all the time: retry";
    Err(Error::new(ErrorKind::Unavailable, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floors(value: &str, mod_revision: i64) -> Floors {
        Floors::read(Some(&PbKeyValue {
            value: value.into(),
            mod_revision,
            ..PbKeyValue::default()
        }))
    }

    #[test]
    fn tokens_rise_with_revisions_over_each_raise() {
        let none = Floors::default();
        assert_eq!((none.token(7).get(), none.are_raised_after(1)), (7, false));
        let one = floors("90", 10);
        assert_eq!((one.token(7).get(), one.token(11).get()), (7, 101));
        assert!(one.are_raised_after(10) && !one.are_raised_after(11));
        // Raised again by the key of revision 20.
        let two = floors(&one.with(980), 20);
        let tokens: Vec<_> = [7, 10, 11, 20, 21].map(|created| two.token(created).get()).into();
        assert_eq!(tokens, [7, 10, 101, 110, 1001]);
        assert!(two.are_raised_after(11));
        let latest = [7, 11, 21].map(|created| two.latest(created).get());
        assert_eq!(latest, [987, 991, 1001]);
    }
}
