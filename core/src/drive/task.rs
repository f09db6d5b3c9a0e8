//! The session's task.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::{BoxFuture, Core, Entered, GRACE, Message, caught, unconfirmed};
use crate::clock::Moment;
use crate::session::{Held, LossReason};
use crate::{Error, ErrorKind, Result};

/// Runs until nobody needs the session any more, and everything let go of has come to its end.
///
/// Not an `async fn`: dropped before it was ever polled, it must still end the session.
pub(super) fn run(
    core: Arc<Core>,
    mail: mpsc::UnboundedReceiver<Message>,
    renewed_at: Moment,
) -> impl Future<Output = ()> + Send {
    let task = Task {
        core,
        orphans: FuturesUnordered::new(),
        abandoned: false,
    };
    task.run(mail, renewed_at)
}

struct Task {
    core: Arc<Core>,
    orphans: FuturesUnordered<BoxFuture<()>>,
    abandoned: bool,
}

/// Why the renewing stopped, and who wants to know how the end went.
enum Ending {
    Lost,
    Close(Option<oneshot::Sender<Result<()>>>),
    Detach(oneshot::Sender<Result<()>>),
}

impl Drop for Task {
    fn drop(&mut self) {
        // Nobody renews any more.
        if std::thread::panicking() {
            self.core.lose(LossReason::Failed);
            let core = Arc::clone(&self.core);
            drop(self.core.runtime.spawn(async move { core.revoke().await }));
        } else {
            // The runtime ends.
            self.core.lose(LossReason::Closed);
        }
    }
}

impl Task {
    async fn run(mut self, mut mail: mpsc::UnboundedReceiver<Message>, renewed_at: Moment) {
        let ending = self.renew_until_the_end(&mut mail, renewed_at).await;
        self.end(ending, &mut mail).await;
        self.wind_up(mail).await;
    }

    async fn renew_until_the_end(
        &mut self,
        mail: &mut mpsc::UnboundedReceiver<Message>,
        renewed_at: Moment,
    ) -> Ending {
        let core = Arc::clone(&self.core);
        let third = core.ttl / 3;
        let mut due = renewed_at + third;
        let mut renewal: Option<BoxFuture<(Moment, Result<()>)>> = None;
        let mut audit: Option<BoxFuture<()>> = None;
        loop {
            if core.validity().is_err() {
                return Ending::Lost;
            }
            tokio::select! {
                biased;
                // By the clock, not by an answer: nothing that the network does can delay this.
                () = core.clock.sleep_until(core.deadline()) => {}
                message = mail.recv() => match message {
                    Some(Message::Adopt(orphan)) => self.orphans.push(orphan),
                    Some(Message::Close(reply)) => return Ending::Close(Some(reply)),
                    Some(Message::Detach(reply)) => return Ending::Detach(reply),
                    Some(Message::Abandon) | None => {
                        self.abandoned = true;
                        return Ending::Close(None);
                    }
                },
                (sent, answer) = wait(&mut renewal) => {
                    renewal = None;
                    due = match answer {
                        // An answer after the deadline is too late: `validity` above sees to it.
                        Ok(()) if core.validity().is_ok() => {
                            core.renewed(sent);
                            if audit.is_none() {
                                audit = self.audit();
                            }
                            sent + third
                        }
                        Ok(()) => due,
                        Err(error) if error.kind() == ErrorKind::Lost => {
                            core.lose(error.loss().unwrap_or(LossReason::Revoked));
                            due
                        }
                        Err(error) => {
                            core.not_renewed(&error);
                            tracing::debug!(session = %core.id, error = %error.chain(), "renewal failed, trying again");
                            core.clock.now() + (core.ttl / 20).clamp(Duration::from_millis(10), Duration::from_secs(1))
                        }
                    };
                }
                () = wait(&mut audit) => audit = None,
                Some(()) = self.orphans.next(), if !self.orphans.is_empty() => {}
                () = core.clock.sleep_until(due), if renewal.is_none() => {
                    let (lease, clock, third) = (Arc::clone(&core.lease), core.clock.clone(), third);
                    renewal = Some(Box::pin(async move {
                        let sent = clock.now();
                        let answer = tokio::time::timeout(third, caught(lease.renew())).await;
                        let answer = answer.map(|answer| answer.unwrap_or_else(Err));
                        (sent, answer.unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "no answer within a third of the TTL"))))
                    }));
                }
            }
        }
    }

    /// Asks the store whether all that is held is still there, and alarms the holders of what is not.
    fn audit(&self) -> Option<BoxFuture<()>> {
        let held: Vec<Held> = self
            .core
            .held()
            .values()
            .map(|entered| entered.held.clone())
            .collect();
        if held.is_empty() {
            return None;
        }
        let core = Arc::clone(&self.core);
        Some(Box::pin(async move {
            let audit = caught(core.lease.audit(&held));
            match tokio::time::timeout(core.ttl / 3, audit)
                .await
                .map(|answer| answer.unwrap_or_else(Err))
            {
                Ok(Ok(missing)) => {
                    for nonce in missing {
                        if let Some(Entered { held, alarm, .. }) = core.held().get(&nonce) {
                            tracing::warn!(session = %core.id, key = %held.key, "a holding was removed from the store");
                            alarm.raise(LossReason::Revoked);
                        }
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(session = %core.id, error = %error.chain(), "audit failed")
                }
                Err(_) => tracing::debug!(session = %core.id, "audit took too long"),
            }
        }))
    }

    /// Validity ends first, the lease after it: never the other way round.
    async fn end(&mut self, ending: Ending, mail: &mut mpsc::UnboundedReceiver<Message>) {
        let core = Arc::clone(&self.core);
        let closing = Arc::clone(&core);
        let (reply, mut last): (_, BoxFuture<Result<()>>) = match ending {
            // The store may keep the lease for a while: let go of it if it can be reached.
            Ending::Lost => (None, Box::pin(async move { closing.revoke().await })),
            Ending::Close(reply) => {
                core.lose(LossReason::Closed);
                (reply, Box::pin(async move { closing.revoke().await }))
            }
            Ending::Detach(reply) => {
                core.lose(LossReason::Detached);
                // Now: a guard dropped from here on leaves what it held to the one who resumes.
                // What nobody could take up there is not left, but given back.
                let held: Vec<Held> = core
                    .held()
                    .values()
                    .map(|entered| entered.held.clone())
                    .filter(|held| held.kind.can_be_taken_up())
                    .collect();
                self.settle_orphans(mail).await;
                let detaching = async move {
                    let bound = GRACE.min(closing.ttl);
                    let detaching = caught(closing.lease.detach(&held));
                    let answer = tokio::time::timeout(bound, detaching).await;
                    let answer = answer.map(|answer| answer.unwrap_or_else(Err));
                    answer.unwrap_or_else(|_| Err(unconfirmed()))
                };
                (Some(reply), Box::pin(detaching))
            }
        };
        loop {
            tokio::select! {
                biased;
                answer = &mut last => {
                    if let Err(error) = &answer {
                        tracing::debug!(session = %core.id, error = %error.chain(), "ending the session failed");
                    }
                    if let Some(reply) = reply {
                        // The caller may have gone: then nobody wants to know.
                        let _ = reply.send(answer);
                    }
                    return;
                }
                Some(message) = mail.recv() => self.late(message),
                Some(()) = self.orphans.next(), if !self.orphans.is_empty() => {}
            }
        }
    }

    /// Before a detach: what was let go of here must not turn up as held where it is resumed, nor
    /// what waits. Until every place that is left is a holding's; bounded, because the lease is
    /// not renewed any more, and a waiter that nobody polls gives nothing up. What the bound cuts
    /// off, the store sorts out when the session is resumed.
    async fn settle_orphans(&mut self, mail: &mut mpsc::UnboundedReceiver<Message>) {
        let core = Arc::clone(&self.core);
        let mut bound = std::pin::pin!(core.clock.sleep(GRACE.min(core.ttl / 4)));
        while !self.orphans.is_empty() || core.book.places() > core.held().len() {
            tokio::select! {
                biased;
                () = &mut bound => return,
                Some(message) = mail.recv() => self.late(message),
                Some(()) = self.orphans.next(), if !self.orphans.is_empty() => {}
                // A place may be given up without a word to us.
                () = core.clock.sleep(Duration::from_millis(10)) => {}
            }
        }
    }

    /// A message that arrives after the end.
    fn late(&mut self, message: Message) {
        let reason = self.core.validity().err().unwrap_or(LossReason::Closed);
        match message {
            Message::Adopt(orphan) => self.orphans.push(orphan),
            Message::Close(reply) => {
                let _ = reply.send(match reason {
                    LossReason::Closed => Ok(()),
                    reason => Err(self.core.lost_waiting(reason)),
                });
            }
            Message::Detach(reply) => {
                let _ = reply.send(Err(self.core.lost_waiting(reason)));
            }
            Message::Abandon => self.abandoned = true,
        }
    }

    /// Drives what is left until nobody can add to it, within bounds.
    async fn wind_up(&mut self, mut mail: mpsc::UnboundedReceiver<Message>) {
        while !self.abandoned {
            tokio::select! {
                biased;
                message = mail.recv() => match message {
                    Some(message) => self.late(message),
                    None => break,
                },
                Some(()) = self.orphans.next(), if !self.orphans.is_empty() => {}
            }
        }
        while let Ok(message) = mail.try_recv() {
            self.late(message);
        }
        let _ = tokio::time::timeout(GRACE, async {
            while self.orphans.next().await.is_some() {}
        })
        .await;
    }
}

/// Waits for the future in `slot`; for ever if there is none.
async fn wait<T>(slot: &mut Option<BoxFuture<T>>) -> T {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
