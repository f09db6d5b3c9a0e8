//! Double barriers: groups that are granted as a whole.

use std::num::NonZeroU32;

use async_trait::async_trait;
use tenure_core::backend::{Barrier, Departure, EndOutcome, Grant, Joined, Marker, Nonce, Request};
use tenure_core::{FencingToken, Kind, Name, Result};
use tokio::time::{Instant, sleep_until};

use crate::keys;
use crate::script::WAIT;
use crate::session::{Call, RedisSession};
use crate::waiters::{Waiter, after_lease};

#[async_trait]
impl Barrier for RedisSession {
    async fn enter(&self, request: &Request, count: NonZeroU32) -> Result<Joined> {
        let arguments = vec![self.path_of(request).into(), u64::from(count.get()).into()];
        self.join_as(request, Waiter::new("enter", &WAIT, arguments)).await
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        self.wait_for(request).await
    }

    async fn leave(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        self.leave_all(marker, departures).await
    }

    async fn all_left(&self, name: &Name, token: FencingToken) -> Result<bool> {
        let path = self.path(Kind::DoubleBarrier, name);
        let mut topic = self.client.subscribe(keys::topic(&self.root, &path));
        topic.next().await;
        loop {
            let call = Call::new(&WAIT, "inside", Nonce::new(0), vec![path.as_str().into(), token.into()]);
            let answer = self.call(&call).await?;
            match answer.word()? {
                "none" => return Ok(true),
                "inside" => {}
                _ => return Err(answer.unexpected()),
            }
            let until = Instant::now() + after_lease(answer.number(1)?);
            tokio::select! {
                _ = topic.next() => {}
                () = sleep_until(until) => {}
            }
        }
    }
}
