//! Locks that are shared with other clients of the server (`interop=true`).
//!
//! A name is then the text that others hash, in every namespace: `pg_advisory_lock(hashtextextended(
//! 'NAME', 0))` is the same lock. `key:N` is the 64-bit key N itself, and `key:A,B` the two 32-bit keys A
//! and B, as other libraries derive them. Others stand in no line and tell nobody: the next in line looks
//! by itself, every fraction of the TTL.
//!
//! Two 32-bit keys are a space of their own in the server. Ours stand in a line for the name as ever, and
//! whoever has that takes the pair as well.

use tenure_core::backend::Ask;
use tenure_core::{Error, ErrorKind, Result};

use crate::key::key_of;
use crate::line::Stand;
use crate::main_connection::MainGuard;
use crate::session::PostgresSession;
use crate::step::step;

/// What names of explicit keys begin with.
pub(crate) const EXPLICIT: &str = "key:";

/// The advisory lock that a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    One(i64),
    Two(i32, i32),
}

impl Place {
    /// That of `name`, where names are taken verbatim.
    pub(crate) fn of(name: &str) -> Self {
        Self::explicit(name).unwrap_or_else(|| Self::One(key_of(name)))
    }

    fn explicit(name: &str) -> Option<Self> {
        let keys = name.strip_prefix(EXPLICIT)?;
        match keys.split_once(',') {
            None => keys.trim().parse().ok().map(Self::One),
            Some((first, second)) => Some(Self::Two(
                first.trim().parse().ok()?,
                second.trim().parse().ok()?,
            )),
        }
    }

    /// The one way to write it.
    fn spelled(self) -> String {
        match self {
            Self::One(key) => format!("{EXPLICIT}{key}"),
            Self::Two(first, second) => format!("{EXPLICIT}{first},{second}"),
        }
    }
}

/// What the paths of locks without `interop`, and other advisory keys of ours, begin with.
const OURS: &str = "tenure/1/";

/// Refuses a name that looks like an explicit key and is none: hashed, it would be a lock that nobody
/// meant. And one that is spelled otherwise than others would: it is one lock, and looks like two. And one
/// whose hash may be a key of ours, by which sessions are told from the dead.
pub(crate) fn check(name: &str) -> Result<()> {
    let refuse = |why: String| Err(Error::new(ErrorKind::InvalidName, why));
    if name.starts_with(OURS) {
        return refuse(format!(
            "with `interop`, a name cannot begin with `{OURS}`: the keys of such names are tenure's own"
        ));
    }
    if !name.starts_with(EXPLICIT) {
        return Ok(());
    }
    match Place::explicit(name).map(Place::spelled) {
        None => refuse(
            "with `interop`, a name that begins with `key:` is an advisory key: `key:N` with a 64-bit number, or `key:A,B` with two 32-bit ones".into(),
        ),
        Some(spelled) if spelled != name => refuse(format!("this key is written `{spelled}`")),
        Some(_) => Ok(()),
    }
}

impl PostgresSession {
    /// Takes the pair that goes with the line that `ask` has just got, if there is one and it is free;
    /// leaves the line again if not.
    pub(crate) async fn try_pair(&self, stand: &Stand<'_>) -> Result<bool> {
        let mut main = self.main().await;
        let taken = take(&mut main, stand).await;
        if !matches!(taken, Ok(true)) {
            self.leave(&mut main, stand.nonce).await?;
        }
        taken
    }

    /// The same, and waits for it: nobody of ours can overtake, and foreign holders tell nobody.
    pub(crate) async fn wait_for_pair(&self, ask: &Ask, stand: &Stand<'_>) -> Result<()> {
        loop {
            {
                let mut main = self.main().await;
                match take(&mut main, stand).await {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(error) => {
                        self.leave(&mut main, stand.nonce).await?;
                        return Err(error);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.patience()) => {}
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            }
        }
    }
}

/// Whether the pair could be had, or there is none to have.
async fn take(main: &mut MainGuard<'_>, stand: &Stand<'_>) -> Result<bool> {
    let Some((first, second)) = stand.pair else {
        return Ok(true);
    };
    // Noted before: an unlock too many is harmless.
    match main.own().of(stand.nonce) {
        Some((_, holder)) => holder.pair = stand.pair,
        None => return Err(crate::error::removed_from_line()),
    }
    let take = step("SELECT pg_catalog.pg_try_advisory_lock($1, $2) AS taken");
    let taken = main.call(take.with(first).with(second)).await?;
    let taken: bool = taken.first()?.get("taken")?;
    if !taken && let Some((_, holder)) = main.own().of(stand.nonce) {
        holder.pair = None;
    }
    Ok(taken)
}

/// Gives the pair of `nonce` back, if it has one.
pub(crate) async fn give_back(main: &mut MainGuard<'_>, nonce: u64) -> Result<()> {
    let pair = main.own().of(nonce).and_then(|(_, holder)| holder.pair);
    let Some((first, second)) = pair else {
        return Ok(());
    };
    let give = step("SELECT pg_catalog.pg_advisory_unlock($1, $2)");
    main.call(give.with(first).with(second)).await?;
    if let Some((_, holder)) = main.own().of(nonce) {
        holder.pair = None;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_keys() {
        assert_eq!(Place::of("key:42"), Place::One(42));
        assert_eq!(Place::of("key:-1"), Place::One(-1));
        assert_eq!(Place::of("key:1,-2"), Place::Two(1, -2));
        assert_eq!(Place::of("orders"), Place::One(key_of("orders")));
        for good in [
            "orders",
            "key",
            "keys",
            "key:0",
            "key:-42",
            "key:3,-4",
            "key:9223372036854775807",
            "tenure",
            "tenure/2/x",
        ] {
            check(good).unwrap();
        }
        for bad in [
            "key:",
            "key:x",
            "key:1,2,3",
            "key:9223372036854775808",
            "key:1,4294967296",
            "key:007",
            "key:+5",
            "key:-0",
            "key: 5",
            "key:1, 2",
            "key:1,02",
            "tenure/1/session/1",
            "tenure/1/default/lock/orders",
        ] {
            assert_eq!(
                check(bad).unwrap_err().kind(),
                ErrorKind::InvalidName,
                "{bad}"
            );
        }
        let error = check("key:+1, 02").unwrap_err();
        assert!(error.to_string().contains("`key:1,2`"), "{error}");
    }
}
