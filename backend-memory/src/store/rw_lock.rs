//! Read-write locks: what they can do beyond standing in a line.

use tenure_core::backend::Side;
use tenure_core::{Error, FencingToken, LossReason, Result};

use super::{Member, State};

impl State {
    /// Makes the writer that `nonce` is under `token` a reader, in its place. Again is once.
    pub(crate) fn downgrade(
        &mut self,
        member: &Member,
        nonce: u64,
        token: FencingToken,
    ) -> Result<()> {
        let gone = || Error::lost(LossReason::Revoked);
        let place = self.lease(member)?.places.get(&nonce).cloned();
        let (object, arrival) = place.ok_or_else(gone)?;
        let place = self.place(&object, arrival);
        let place = place
            .filter(|place| place.token == Some(token))
            .ok_or_else(gone)?;
        if std::mem::replace(&mut place.side, Side::Read) == Side::Write {
            // As if a writer had gone from before the next place.
            self.close_gap(&object, arrival + 1, Side::Write);
        }
        Ok(())
    }
}
