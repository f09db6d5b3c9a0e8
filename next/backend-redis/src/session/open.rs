//! Opening and resuming sessions, and their channels.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tenure_core::backend::{Nonce, Opened, SessionEvent, SessionEvents};
use tenure_core::clock::{Clock, Moment, random};
use tenure_core::executor::Executor;
use tenure_core::{Effect, Error, ErrorKind, LossReason, Result, SessionId};
use tokio::time::{Instant, sleep};

use super::{MOST_ATTEMPTS, RedisSession, too_many_dead};
use crate::connection::{Client, Line, Link, Pushed, Subscription};
use crate::keys;
use crate::script::{Answer, Argument, LEASE};
use crate::sweep::{self, Sweeper};
use crate::waiters::{Message, Waiters};

/// The shortest TTL, to which shorter ones are rounded up: below it, one slow answer would end a session.
const LEAST_TTL: Duration = Duration::from_millis(500);

/// The longest TTL.
const MOST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// For how long a resumption is sent again after its answer was lost, and the pause before each time.
const REPEATED: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(100));

/// Opens and resumes the sessions of a store.
#[derive(Clone)]
pub(crate) struct Sessions {
    client: Client,
    executor: Executor,
    clock: Clock,
    sweeper: Arc<Sweeper>,
}

impl Sessions {
    pub(crate) fn new(client: Client, executor: Executor) -> Self {
        Self {
            sweeper: Sweeper::new(client.clone(), executor.clone()),
            client,
            executor,
            clock: Clock::boot_time(),
        }
    }

    /// Opens a session. 1 round trip.
    pub(crate) async fn open(&self, ttl: Duration, label: &str, events: SessionEvents) -> Result<Opened> {
        let (ttl, millis) = granted(ttl)?;
        let label = match (label, &self.client.config().label) {
            ("", Some(own)) => own.as_str(),
            _ => label,
        };
        loop {
            let id = format!("{:016x}", random());
            // Before the lease exists, so that no message is missed.
            let subscription = self.subscribe(&id);
            let renewed = self.clock.now();
            let link = self.client.link().await?;
            let own = [millis.into(), label.into()];
            let answer = lease(&link, "open", &id, link.epoch(), own).await?;
            match answer.word()? {
                "ok" => {
                    let session = self.session(id.clone(), ttl, 0, (events, subscription), renewed, 1);
                    // A fleet of processes that live shorter than their TTL leaves no other client to sweep its dead.
                    self.sweeper.start();
                    return Ok(Opened::new(session, SessionId::new(id), ttl));
                }
                "taken" => {}
                _ => return Err(answer.unexpected()),
            }
        }
    }

    /// Resumes a detached session. 1 round trip, and sweeps while entries are left that were not kept.
    pub(crate) async fn resume(&self, id: &SessionId, events: SessionEvents) -> Result<Opened> {
        let (id, identity) = (id.as_str().to_owned(), format!("{:016x}", random()));
        let subscription = self.subscribe(&id);
        let renewed = self.clock.now();
        let mut last = None;
        for _ in 0..MOST_ATTEMPTS {
            let attempt = async {
                let link = self.client.link().await?;
                let answer = lease(&link, "resume", &id, link.epoch(), [identity.as_str().into()]).await?;
                Ok::<_, Error>((link, answer))
            };
            let (link, answer) = match attempt.await {
                // The detachment may be used up by now, for this identity alone.
                Err(error) if last.is_some() || error.effect() == Effect::Unknown => {
                    let last = *last.get_or_insert_with(|| Instant::now() + REPEATED.0);
                    if !error.is_retryable() || Instant::now() > last {
                        return Err(error.with_effect(Effect::Unknown));
                    }
                    sleep(REPEATED.1).await;
                    continue;
                }
                answer => answer?,
            };
            match answer.word()? {
                "ok" => {
                    let (epoch, next) = (answer.number(1)?, answer.number(3)?);
                    let ttl = Duration::from_millis(answer.number(2)?);
                    let ahead = epoch.saturating_sub(link.epoch());
                    let session = self.session(id.clone(), ttl, ahead, (events, subscription), renewed, next);
                    return Ok(Opened::new(session, SessionId::new(id), ttl).first_nonce(Nonce::new(next)));
                }
                "sweep" => drop(sweep::step(&link).await?),
                "lost" => return Err(Error::lost(LossReason::Expired)),
                "conflict" => {
                    let message = "the session is not detached: it was resumed already, or its process still has it";
                    return Err(Error::new(ErrorKind::Conflict, message));
                }
                _ => return Err(answer.unexpected()),
            }
        }
        Err(too_many_dead())
    }

    fn subscribe(&self, id: &str) -> Subscription {
        let root = keys::root(&self.client.config().namespace);
        self.client.subscribe(keys::session_channel(&root, id))
    }

    fn session(
        &self,
        id: String,
        ttl: Duration,
        ahead: u64,
        (events, subscription): (SessionEvents, Subscription),
        renewed: Moment,
        next: u64,
    ) -> Arc<RedisSession> {
        let waiters = Arc::new(Waiters::new(self.client.config().confirms()));
        let revoked = Arc::<AtomicBool>::default();
        let listening = listen(subscription, Arc::clone(&waiters), events.clone(), Arc::clone(&revoked));
        Arc::new(RedisSession {
            client: self.client.clone(),
            root: keys::root(&self.client.config().namespace).into(),
            waiters,
            sweeper: Arc::clone(&self.sweeper),
            id,
            ttl,
            events,
            clock: self.clock.clone(),
            ahead,
            renewals: AtomicU64::new(0),
            renewed: Mutex::new(renewed),
            last_nonce: AtomicU64::new(next.saturating_sub(1)),
            revoked,
            listener: self.executor.spawn(listening),
        })
    }
}

/// Returns the TTL that is granted to a session that asks for `ttl`, and its milliseconds.
fn granted(ttl: Duration) -> Result<(Duration, u64)> {
    if ttl.is_zero() || ttl > MOST_TTL {
        let message = format!("a TTL of {ttl:?}: Redis grants more than zero and at most {MOST_TTL:?}");
        return Err(Error::new(ErrorKind::Config, message));
    }
    let millis = u64::try_from(ttl.max(LEAST_TTL).as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    Ok((Duration::from_millis(millis), millis))
}

/// Delivers the messages of a session's channel.
async fn listen(
    mut subscription: Subscription,
    waiters: Arc<Waiters>,
    events: SessionEvents,
    revoked: Arc<AtomicBool>,
) {
    let mut first = true;
    loop {
        match subscription.next().await {
            Pushed::Message(message) => match waiters.deliver(&message) {
                Message::SessionEnded => {
                    revoked.store(true, Ordering::Release);
                    events.report(SessionEvent::Lost(LossReason::Revoked));
                }
                Message::RequestEnded(nonce) => {
                    events.report(SessionEvent::RequestLost(nonce, LossReason::Revoked));
                }
                Message::Delivered => {}
            },
            Pushed::Reconnected => {
                waiters.look();
                if !std::mem::take(&mut first) {
                    events.report(SessionEvent::Reconcile);
                }
            }
        }
    }
}

async fn lease<const N: usize>(
    link: &Link,
    operation: &'static str,
    id: &str,
    epoch: u64,
    own: [Argument; N],
) -> Result<Answer> {
    let mut arguments = vec![operation.into(), id.into(), epoch.into(), "".into(), 0.into()];
    arguments.extend(own);
    Answer::read(operation, link.call(Line::Commands, &LEASE, arguments).await?)
}
