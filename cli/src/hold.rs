//! Holding something: until a signal comes, or for as long as a command runs. The one way for
//! everything that can be held.

use std::ffi::OsString;
use std::ops::Deref;
use std::time::Duration;

use serde_json::json;
use tenure::{
    Error, ErrorKind, Holding, Inside, Leadership, LockGuard, LossReason, Name, ReadGuard, Session,
    WriteGuard,
};

use crate::args::{Global, Hold};
use crate::child::{self, Ended, Orders};
use crate::exit::{self, Failure, say};
use crate::output;
use crate::signals::Signals;
use crate::words;
use crate::work::{self, Sessions};

/// What can be held, and how it is given back.
pub(crate) trait Guard: Deref<Target = Holding> {
    /// Whether giving back waits for others, and is part of what was asked for.
    const TOGETHER: bool = false;

    /// Gives it back; returns once the store has said so.
    async fn give_back(self) -> tenure::Result<()>;
}

impl Guard for LockGuard {
    async fn give_back(self) -> tenure::Result<()> {
        self.release().await
    }
}

impl Guard for ReadGuard {
    async fn give_back(self) -> tenure::Result<()> {
        self.release().await
    }
}

impl Guard for WriteGuard {
    async fn give_back(self) -> tenure::Result<()> {
        self.release().await
    }
}

impl Guard for Leadership {
    async fn give_back(self) -> tenure::Result<()> {
        self.resign().await
    }
}

impl Guard for Inside {
    const TOGETHER: bool = true;

    async fn give_back(self) -> tenure::Result<()> {
        self.leave().await
    }
}

/// What is to be held, and what is to be done meanwhile.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    global: &'a Global,
    name: &'a Name,
    hold: &'a Hold,
    /// Empty for none.
    command: &'a [OsString],
    /// Without a command: keep it until a signal comes, instead of giving it back at once.
    stay: bool,
    /// Of an election: what the leader tells the others.
    value: Option<&'a [u8]>,
}

impl<'a> Plan<'a> {
    /// Hold what is called `name` until a signal comes or, if there is one, while `command` runs.
    pub(crate) fn new(
        global: &'a Global,
        name: &'a Name,
        hold: &'a Hold,
        command: &'a [OsString],
    ) -> Self {
        Self {
            global,
            name,
            hold,
            command,
            stay: true,
            value: None,
        }
    }

    /// Announces `value` beside the token.
    pub(crate) fn leading(mut self, value: &'a [u8]) -> Self {
        self.value = Some(value);
        self
    }

    /// Without a command it is given back at once.
    pub(crate) fn passing(mut self) -> Self {
        self.stay = false;
        self
    }

    /// Takes it, waiting up to `limit`, holds it, and gives it back. Returns the exit code.
    pub(crate) async fn carry_out<G: Guard>(
        &self,
        limit: Option<Duration>,
        take: impl AsyncFn(&Session, Option<Duration>) -> tenure::Result<G>,
    ) -> Result<u8, Failure> {
        let done = work::in_sessions(self.global, limit, async |sessions: &mut Sessions<'_>| {
            let kill_after = self.hold.kill_after(sessions.session.ttl())?;
            let stopped = format!("stopped waiting for {:?}", self.name);
            let guard = sessions.take(limit, &stopped, take).await?;
            let (ttl, signals) = (sessions.session.ttl(), &mut sessions.signals);
            if self.command.is_empty() {
                self.hold(guard, signals).await
            } else {
                self.run(guard, signals, ttl, kill_after).await
            }
        });
        let recoded =
            |failure: Failure| failure.recoded(self.hold.not_acquired_code, self.hold.lost_code);
        done.await.map_err(recoded)
    }

    /// Without a command.
    async fn hold<G: Guard>(&self, guard: G, signals: &mut Signals) -> Result<u8, Failure> {
        self.announce(&guard)?;
        if self.stay {
            tokio::select! {
                biased;
                reason = guard.lost() => return Err(lost(&guard, Some(reason))),
                _ = signals.ending() => {}
            }
        }
        give_back(guard, signals).await.map(|()| exit::DONE)
    }

    /// With a command.
    async fn run<G: Guard>(
        &self,
        guard: G,
        signals: &mut Signals,
        ttl: Duration,
        kill_after: Duration,
    ) -> Result<u8, Failure> {
        let orders = Orders {
            command: self.command,
            input: None,
            kill_after,
            process_group: self.hold.process_group,
            url: &self.global.url_for_child(self.hold),
        };
        match child::run(orders, ttl, &guard, signals).await? {
            Ended::Lost(reason, status) => {
                say(format_args!("the command was ended: {status}"));
                Err(lost(&guard, reason))
            }
            Ended::Itself(status) => match give_back(guard, signals).await {
                Ok(()) => Ok(exit::of_child(status)),
                // A loss is never masked by what the command says, nor its failure by silence.
                Err(failure) if failure.code() == exit::LOST => {
                    say(format_args!("the command ended by itself: {status}"));
                    Err(failure)
                }
                Err(failure) if G::TOGETHER && status.success() => Err(failure),
                // It was held until the command had ended: the command's word counts.
                Err(failure) => {
                    failure.tell();
                    Ok(exit::of_child(status))
                }
            },
        }
    }

    fn announce(&self, held: &Holding) -> Result<(), Failure> {
        if !self.global.json {
            let mut line = words::word(held.name().as_str().as_bytes());
            if let Some(value) = self.value {
                line = format!("{line} leader={}", words::word(value));
            }
            return output::line(&format!("{line} token={}", held.token()));
        }
        let mut object = output::Object::new();
        object.set("name", json!(held.name().as_str()));
        if let Some(value) = self.value {
            object.set_bytes("leader", Some(value));
        }
        object.set("token", json!(held.token().get()));
        object.set("session", json!(held.session_id().as_str()));
        object.set("key", json!(held.key()));
        object.print()
    }
}

/// The failure of having lost what was held.
pub(crate) fn lost(held: &Holding, reason: Option<LossReason>) -> Failure {
    let error = held.loss_error().or_else(|| reason.map(Error::lost));
    let why = match error {
        Some(error) => error.explanation().to_string(),
        None => "the store did not answer, or could not renew the lease, in time, so the command was ended \
                 before the lease ran out"
            .to_owned(),
    };
    Failure::new(exit::LOST, format!("lost {:?}: {why}", held.name()))
}

/// Gives it back and waits for the store's word, unless a signal shows that somebody is in a hurry.
async fn give_back<G: Guard>(guard: G, signals: &mut Signals) -> Result<(), Failure> {
    let name = guard.name().clone();
    tokio::select! {
        biased;
        done = guard.give_back() => done.map_err(|error| match error.kind() {
            ErrorKind::Unavailable => unconfirmed(&error),
            _ => error.into(),
        }),
        signal = signals.hurry() => Err(if G::TOGETHER {
            let what = format!("stopped waiting for the others to leave {name:?}");
            Failure::interrupted(signal, what)
        } else {
            interrupted("release", &name)
        }),
    }
}

/// The store has not said that it took back what was held.
pub(crate) fn unconfirmed(error: &Error) -> Failure {
    let error = exit::described(error);
    let message = format!("{error}; the store frees it once the lease has run out");
    Failure::new(exit::UNREACHABLE, message)
}

/// The same because a signal came.
pub(crate) fn interrupted(operation: &'static str, name: &Name) -> Failure {
    let message = "interrupted before the store had confirmed it";
    let error = Error::new(ErrorKind::Unavailable, message);
    unconfirmed(&error.during(operation).on(name.as_str()))
}
