//! `tenure shell`: one session, by hand or from a pipe.
//!
//! What can be answered at once is, before the next line is read. What has to wait goes on beside
//! the prompt as a task, and tells its outcome as an [`Event`].

mod console;
mod line;
mod outcome;

use tenure::{
    Delivery, Error, ErrorKind, HoldFor, Holding, Inside, Item, Leader, Leadership, LockGuard,
    LossReason, Name, Observer, ReadGuard, Session, WriteGuard,
};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use self::console::{Console, Input};
use self::line::{Action, Line, VERBS};
use self::outcome::Outcome;
use crate::args::{self, Global};
use crate::exit::{self, Failure, described};
use crate::signals::Signals;
use crate::{store, work};

pub(crate) async fn run(global: &Global, args: &args::Shell) -> Result<u8, Failure> {
    let name = store::name(&args.name)?;
    work::in_session(global, async |session, signals| {
        let console = Console::open(format!("{}> ", crate::output::printable(name.as_str())))?;
        Shell::new(global.json, name, session, console)
            .run(signals)
            .await
    })
    .await
}

struct Shell<'a> {
    json: bool,
    /// What its objects are called unless a line names another.
    name: Name,
    session: &'a Session,
    console: Console,
    held: Vec<Held>,
    waits: Vec<Wait>,
    watched: Vec<Name>,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    /// How many tasks there were: each has a number of its own.
    tasks: u64,
}

/// Of what there can be one of each name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Lock,
    Leader,
    Reader,
    Writer,
    Inside,
}

impl Slot {
    /// The command by which one comes to it.
    fn verb(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Leader => "elect",
            Self::Reader => "r",
            Self::Writer => "w",
            Self::Inside => "enter",
        }
    }

    /// What the outcome calls it.
    fn state(self) -> &'static str {
        match self {
            Self::Lock | Self::Reader | Self::Writer => "held",
            Self::Leader => "leader",
            Self::Inside => "entered",
        }
    }
}

/// Something held.
struct Held {
    slot: Slot,
    name: Name,
    task: u64,
    guard: Guard,
    /// Tells of its loss.
    lookout: AbortHandle,
}

enum Guard {
    Lock(LockGuard),
    Leader(Leadership),
    Reader(ReadGuard),
    Writer(WriteGuard),
    Inside(Inside),
}

impl Guard {
    fn holding(&self) -> &Holding {
        match self {
            Self::Lock(guard) => guard,
            Self::Leader(guard) => guard,
            Self::Reader(guard) => guard,
            Self::Writer(guard) => guard,
            Self::Inside(guard) => guard,
        }
    }

    async fn give_back(self) -> tenure::Result<()> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Leader(guard) => guard.resign().await,
            Self::Reader(guard) => guard.release().await,
            Self::Writer(guard) => guard.release().await,
            Self::Inside(guard) => guard.leave().await,
        }
    }
}

/// A command that waits.
struct Wait {
    task: u64,
    verb: &'static str,
    name: Name,
    /// What it waits for, if that is to be held.
    slot: Option<Slot>,
    abort: AbortHandle,
}

/// What happens beside the prompt. Those with a `task` are answers of a [`Wait`].
enum Event {
    Granted {
        task: u64,
        guard: tenure::Result<Guard>,
    },
    Popped {
        task: u64,
        delivery: tenure::Result<Delivery>,
    },
    Done {
        task: u64,
        state: &'static str,
        result: tenure::Result<()>,
    },
    Lost {
        task: u64,
        reason: LossReason,
    },
    Seen {
        name: Name,
        leader: tenure::Result<Option<Leader>>,
    },
}

/// Whether there is a next line to be read.
enum Next {
    Line,
    Quit,
}

impl<'a> Shell<'a> {
    fn new(json: bool, name: Name, session: &'a Session, console: Console) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        Self {
            json,
            name,
            session,
            console,
            held: Vec::new(),
            waits: Vec::new(),
            watched: Vec::new(),
            events,
            sender,
            tasks: 0,
        }
    }

    /// Reads lines to their end. Whatever is held then ends with the session.
    async fn run(mut self, signals: &mut Signals) -> Result<u8, Failure> {
        let lost = self.session.lost();
        tokio::pin!(lost);
        loop {
            let next = tokio::select! {
                biased;
                signal = signals.ending() => return Ok(exit::of_signal(signal)),
                next = self.step(lost.as_mut()) => next?,
            };
            if let Next::Quit = next {
                self.withdraw_all()?;
                return Ok(exit::DONE);
            }
        }
    }

    /// One line or one event, to its end.
    async fn step(
        &mut self,
        lost: std::pin::Pin<&mut impl Future<Output = LossReason>>,
    ) -> Result<Next, Failure> {
        tokio::select! {
            biased;
            reason = lost => Err(self.session_lost(reason)),
            event = self.events.recv() => {
                if let Some(event) = event {
                    self.happened(event).await?;
                }
                Ok(Next::Line)
            }
            line = self.console.next() => match line {
                None => Ok(Next::Quit),
                Some(line) => match line? {
                    Input::Line(line) => self.line(&line).await,
                    Input::TooLong => {
                        let why = format!("a line of more than {} bytes", console::LONGEST);
                        self.print(&Outcome::error("", why))?;
                        Ok(Next::Line)
                    }
                },
            },
        }
    }

    fn print(&mut self, outcome: &Outcome) -> Result<(), Failure> {
        self.console.print(&outcome.line(self.json, &self.name))
    }

    async fn line(&mut self, line: &[u8]) -> Result<Next, Failure> {
        let line = match line::parse(line) {
            Ok(None) => return Ok(Next::Line),
            Ok(Some(line)) => line,
            Err(nonsense) => {
                let verb = nonsense.verb.unwrap_or_default();
                self.print(&Outcome::error(&verb, nonsense.why))?;
                return Ok(Next::Line);
            }
        };
        match line.action {
            Action::Quit => return Ok(Next::Quit),
            Action::Help => {
                self.help()?;
                return Ok(Next::Line);
            }
            _ => {}
        }
        let name = line.name.clone().unwrap_or_else(|| self.name.clone());
        let (verb, key) = (line.verb, line.action.key().cloned());
        let outcome = match self.execute(line, &name).await {
            Ok(None) => return Ok(Next::Line),
            Ok(Some(outcome)) => outcome,
            Err(trouble) => trouble.told(verb)?,
        };
        let outcome = match &key {
            Some(key) => outcome.of_key(key),
            None => outcome.on(&name),
        };
        self.print(&outcome)?;
        Ok(Next::Line)
    }

    /// Does what a line says, or begins to.
    async fn execute(&mut self, line: Line, name: &Name) -> Result<Option<Outcome>, Trouble> {
        let (session, verb) = (self.session, line.verb);
        let done = |state| Ok(Some(Outcome::new(verb, state)));
        match line.action {
            Action::Elect(value) => {
                let value = value.unwrap_or_else(|| session.id().as_str().into());
                self.elect(name, value).await
            }
            Action::Proclaim(value) => {
                let Some(Guard::Leader(leadership)) = self.guard(Slot::Leader, name) else {
                    return Err(Trouble::Refused("not the leader"));
                };
                leadership.proclaim(value).await?;
                done("proclaimed")
            }
            Action::Query => {
                let leader = session.election(name)?.leader().await?;
                Ok(Some(Outcome::of_leader(verb, leader.as_ref()).on(name)))
            }
            Action::Rev => match session.election(name)?.leader().await? {
                Some(leader) => {
                    let token = leader.token().get();
                    Ok(Some(Outcome::new(verb, "").number("token", token).on(name)))
                }
                None => done("no leader"),
            },
            Action::Watch => self.watch(name).await,
            Action::Lock => self.lock(name).await,
            Action::Read => self.read(name).await,
            Action::Write => self.write(name).await,
            Action::Unlock => self.give_back(verb, Slot::Lock, name, "released").await,
            Action::Resign => self.give_back(verb, Slot::Leader, name, "resigned").await,
            Action::ReadUnlock => self.give_back(verb, Slot::Reader, name, "released").await,
            Action::WriteUnlock => self.give_back(verb, Slot::Writer, name, "released").await,
            Action::Leave => self.leave(name),
            Action::Enter(count) => self.enter(name, count),
            Action::Push { priority, value } => {
                let item = Item::new(value).priority(priority);
                session.queue(name)?.enqueue(item).await?;
                done("enqueued")
            }
            Action::Pop => self.pop(name).await,
            Action::Hold => {
                session.barrier(name)?.hold(HoldFor::Session).await?;
                done("held")
            }
            Action::Release => {
                let released = session.barrier(name)?.release().await?;
                done(if released { "released" } else { "not held" })
            }
            Action::Wait => self.wait(name).await,
            Action::Get(key) => Ok(Some(match session.stm()?.get(&key).await? {
                Some(entry) => Outcome::new(verb, "").bytes("value", &entry.value),
                None => Outcome::new(verb, "absent"),
            })),
            Action::Put(key, value) => {
                session.stm()?.put(&key, value).await?;
                Ok(Some(Outcome::new(verb, "written")))
            }
            Action::Delete(key) => {
                let deleted = session.stm()?.delete(&key).await?;
                let state = if deleted { "deleted" } else { "absent" };
                Ok(Some(Outcome::new(verb, state)))
            }
            Action::Help | Action::Quit => Ok(None),
        }
    }

    async fn elect(&mut self, name: &Name, value: Vec<u8>) -> Result<Option<Outcome>, Trouble> {
        self.vacant(Slot::Leader, name)?;
        let election = self.session.election(name)?;
        match election.try_campaign(&value).await {
            Ok(leadership) => Ok(Some(self.hold(Slot::Leader, Guard::Leader(leadership)))),
            Err(error) => {
                let campaign = async move { election.campaign(&value).await.map(Guard::Leader) };
                self.take_later(error, Slot::Leader, name, campaign)
            }
        }
    }

    async fn lock(&mut self, name: &Name) -> Result<Option<Outcome>, Trouble> {
        self.vacant(Slot::Lock, name)?;
        let lock = self.session.locker(name)?;
        match lock.try_lock().await {
            Ok(guard) => Ok(Some(self.hold(Slot::Lock, Guard::Lock(guard)))),
            Err(error) => {
                let taking = async move { lock.lock().await.map(Guard::Lock) };
                self.take_later(error, Slot::Lock, name, taking)
            }
        }
    }

    async fn read(&mut self, name: &Name) -> Result<Option<Outcome>, Trouble> {
        self.vacant(Slot::Reader, name)?;
        let lock = self.session.rw_lock(name)?;
        match lock.try_read().await {
            Ok(guard) => Ok(Some(self.hold(Slot::Reader, Guard::Reader(guard)))),
            Err(error) => {
                let taking = async move { lock.read().await.map(Guard::Reader) };
                self.take_later(error, Slot::Reader, name, taking)
            }
        }
    }

    async fn write(&mut self, name: &Name) -> Result<Option<Outcome>, Trouble> {
        self.vacant(Slot::Writer, name)?;
        let lock = self.session.rw_lock(name)?;
        match lock.try_write().await {
            Ok(guard) => Ok(Some(self.hold(Slot::Writer, Guard::Writer(guard)))),
            Err(error) => {
                let taking = async move { lock.write().await.map(Guard::Writer) };
                self.take_later(error, Slot::Writer, name, taking)
            }
        }
    }

    fn enter(&mut self, name: &Name, count: u32) -> Result<Option<Outcome>, Trouble> {
        self.vacant(Slot::Inside, name)?;
        let barrier = self.session.double_barrier(name, count)?;
        let entering = async move { barrier.enter().await.map(Guard::Inside) };
        Ok(Some(self.take_in_line(Slot::Inside, name, entering)))
    }

    async fn pop(&mut self, name: &Name) -> Result<Option<Outcome>, Trouble> {
        let queue = self.session.queue(name)?;
        if let Some(delivery) = queue.try_dequeue().await? {
            self.popped(delivery).await?;
            return Ok(None);
        }
        let outcome = self.begin("pop", name, None, |task, sender| async move {
            let delivery = queue.dequeue().await;
            let _ = sender.send(Event::Popped { task, delivery });
        });
        Ok(Some(outcome))
    }

    async fn wait(&mut self, name: &Name) -> Result<Option<Outcome>, Trouble> {
        let barrier = self.session.barrier(name)?;
        let state = "released";
        if !barrier.is_held().await? {
            return Ok(Some(Outcome::new("wait", state).on(name)));
        }
        let outcome = self.begin("wait", name, None, |task, sender| async move {
            let result = barrier.wait().await;
            let _ = sender.send(Event::Done {
                task,
                state,
                result,
            });
        });
        Ok(Some(outcome))
    }

    async fn watch(&mut self, name: &Name) -> Result<Option<Outcome>, Trouble> {
        if self.watched.contains(name) {
            return Err(Trouble::Refused("watched already"));
        }
        let mut observer = self.session.election(name)?.observe();
        // The present state is an answer to the command.
        let Some(first) = observer.next().await else {
            return Err(Trouble::Refused("the session has ended"));
        };
        let outcome = Outcome::of_leader("watch", first?.as_ref()).on(name);
        self.watched.push(name.clone());
        tokio::spawn(follow(observer, name.clone(), self.sender.clone()));
        Ok(Some(outcome))
    }

    /// Gives back what is held, or gives up the wait for it.
    async fn give_back(
        &mut self,
        verb: &'static str,
        slot: Slot,
        name: &Name,
        state: &'static str,
    ) -> Result<Option<Outcome>, Trouble> {
        if let Some(outcome) = self.give_up(verb, slot, name)? {
            return Ok(Some(outcome));
        }
        let guard = self.let_go(slot, name).ok_or(NOT_HELD)?;
        guard.give_back().await?;
        Ok(Some(Outcome::new(verb, state).on(name)))
    }

    fn leave(&mut self, name: &Name) -> Result<Option<Outcome>, Trouble> {
        let (verb, slot) = ("leave", Slot::Inside);
        if let Some(outcome) = self.give_up(verb, slot, name)? {
            return Ok(Some(outcome));
        }
        let guard = self.let_go(slot, name).ok_or(NOT_HELD)?;
        // The slot stays taken until all have left.
        let outcome = self.begin(verb, name, Some(slot), |task, sender| async move {
            let result = guard.give_back().await;
            let state = "left";
            let _ = sender.send(Event::Done {
                task,
                state,
                result,
            });
        });
        Ok(Some(outcome))
    }

    /// Ends the wait for `slot`, if there is one.
    fn give_up(
        &mut self,
        verb: &'static str,
        slot: Slot,
        name: &Name,
    ) -> Result<Option<Outcome>, Trouble> {
        let waits_for = |wait: &Wait| wait.slot == Some(slot) && wait.name == *name;
        let Some(at) = self.waits.iter().position(waits_for) else {
            return Ok(None);
        };
        if self.waits[at].verb == verb {
            return Err(Trouble::Refused("waiting already"));
        }
        let wait = self.waits.remove(at);
        self.withdrawn(&wait).map_err(Trouble::Fatal)?;
        Ok(Some(Outcome::new(verb, "withdrawn").on(name)))
    }

    fn withdrawn(&mut self, wait: &Wait) -> Result<(), Failure> {
        wait.abort.abort();
        self.print(&Outcome::new(wait.verb, "withdrawn").on(&wait.name))
    }

    fn withdraw_all(&mut self) -> Result<(), Failure> {
        for wait in std::mem::take(&mut self.waits) {
            self.withdrawn(&wait)?;
        }
        Ok(())
    }

    fn vacant(&self, slot: Slot, name: &Name) -> Result<(), Trouble> {
        if self
            .held
            .iter()
            .any(|held| held.slot == slot && held.name == *name)
        {
            return Err(Trouble::Refused("held already"));
        }
        let waits = |wait: &Wait| wait.slot == Some(slot) && wait.name == *name;
        match self.waits.iter().any(waits) {
            true => Err(Trouble::Refused("waiting already")),
            false => Ok(()),
        }
    }

    fn guard(&self, slot: Slot, name: &Name) -> Option<&Guard> {
        let held = self
            .held
            .iter()
            .find(|held| held.slot == slot && held.name == *name);
        held.map(|held| &held.guard)
    }

    fn let_go(&mut self, slot: Slot, name: &Name) -> Option<Guard> {
        let is = |held: &Held| held.slot == slot && held.name == *name;
        let held = self.held.remove(self.held.iter().position(is)?);
        held.lookout.abort();
        Some(held.guard)
    }

    /// Keeps what was granted, with an eye on its loss.
    fn hold(&mut self, slot: Slot, guard: Guard) -> Outcome {
        let task = self.next_task();
        let (lost, sender) = (guard.holding().lost(), self.sender.clone());
        let lookout = tokio::spawn(async move {
            let reason = lost.await;
            let _ = sender.send(Event::Lost { task, reason });
        });
        let (name, token) = (guard.holding().name().clone(), guard.holding().token());
        let outcome = Outcome::new(slot.verb(), slot.state()).number("token", token.get());
        let outcome = outcome.on(&name);
        self.held.push(Held {
            slot,
            name,
            task,
            guard,
            lookout: lookout.abort_handle(),
        });
        outcome
    }

    /// What an attempt did not get now is waited for; what failed, failed.
    fn take_later(
        &mut self,
        error: Error,
        slot: Slot,
        name: &Name,
        taking: impl Future<Output = tenure::Result<Guard>> + Send + 'static,
    ) -> Result<Option<Outcome>, Trouble> {
        match error.kind() {
            ErrorKind::WouldBlock => Ok(Some(self.take_in_line(slot, name, taking))),
            _ => Err(error.into()),
        }
    }

    fn take_in_line(
        &mut self,
        slot: Slot,
        name: &Name,
        taking: impl Future<Output = tenure::Result<Guard>> + Send + 'static,
    ) -> Outcome {
        self.begin(slot.verb(), name, Some(slot), |task, sender| async move {
            let guard = taking.await;
            let _ = sender.send(Event::Granted { task, guard });
        })
    }

    /// Begins to wait beside the prompt.
    fn begin<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        verb: &'static str,
        name: &Name,
        slot: Option<Slot>,
        work: impl FnOnce(u64, mpsc::UnboundedSender<Event>) -> F,
    ) -> Outcome {
        let task = self.next_task();
        let abort = tokio::spawn(work(task, self.sender.clone())).abort_handle();
        let name = name.clone();
        let outcome = Outcome::new(verb, "waiting").on(&name);
        self.waits.push(Wait {
            task,
            verb,
            name,
            slot,
            abort,
        });
        outcome
    }

    fn next_task(&mut self) -> u64 {
        self.tasks += 1;
        self.tasks
    }

    async fn happened(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Granted { task, guard } => {
                // Withdrawn meanwhile: dropped, the guard gives back what it got.
                let Some(wait) = self.waited(task) else {
                    return Ok(());
                };
                let outcome = match (guard, wait.slot) {
                    (Ok(guard), Some(slot)) => self.hold(slot, guard),
                    (Ok(_), None) => return Ok(()),
                    (Err(error), _) => Outcome::error(wait.verb, described(&error)).on(&wait.name),
                };
                self.print(&outcome)
            }
            Event::Popped { task, delivery } => {
                let Some(wait) = self.waited(task) else {
                    return Ok(());
                };
                let popped = match delivery {
                    Ok(delivery) => self.popped(delivery).await,
                    Err(error) => Err(error.into()),
                };
                match popped {
                    Ok(()) => Ok(()),
                    Err(trouble) => self.troubled(&wait, trouble),
                }
            }
            Event::Done {
                task,
                state,
                result,
            } => {
                let Some(wait) = self.waited(task) else {
                    return Ok(());
                };
                match result {
                    Ok(()) => self.print(&Outcome::new(wait.verb, state).on(&wait.name)),
                    Err(error) => self.troubled(&wait, error.into()),
                }
            }
            Event::Lost { task, reason } => {
                let Some(at) = self.held.iter().position(|held| held.task == task) else {
                    return Ok(());
                };
                let held = self.held.remove(at);
                self.lost(&held, reason)
            }
            Event::Seen { name, leader } => {
                let outcome = match leader {
                    Ok(leader) => Outcome::of_leader("watch", leader.as_ref()),
                    Err(error) => {
                        self.watched.retain(|watched| *watched != name);
                        Outcome::error("watch", described(&error))
                    }
                };
                self.print(&outcome.on(&name))
            }
        }
    }

    fn troubled(&mut self, wait: &Wait, trouble: Trouble) -> Result<(), Failure> {
        self.print(&trouble.told(wait.verb)?.on(&wait.name))
    }

    /// The wait whose answer has come, unless it was withdrawn.
    fn waited(&mut self, task: u64) -> Option<Wait> {
        let at = self.waits.iter().position(|wait| wait.task == task)?;
        Some(self.waits.remove(at))
    }

    /// Printed before it is acknowledged: should that fail, the item goes back.
    async fn popped(&mut self, delivery: Delivery) -> Result<(), Trouble> {
        let outcome = Outcome::new("pop", "").bytes("value", delivery.value());
        let outcome = outcome.on(delivery.name());
        self.print(&outcome).map_err(Trouble::Fatal)?;
        Ok(delivery.ack().await?)
    }

    fn lost(&mut self, held: &Held, reason: LossReason) -> Result<(), Failure> {
        let outcome = Outcome::new(held.slot.verb(), "lost")
            .bytes("reason", reason.to_string().as_bytes())
            .number("token", held.guard.holding().token().get());
        self.print(&outcome.on(&held.name))
    }

    /// Nothing can be done in this shell any more.
    fn session_lost(&mut self, reason: LossReason) -> Failure {
        for held in std::mem::take(&mut self.held) {
            if let Err(failure) = self.lost(&held, reason) {
                return failure;
            }
        }
        if let Err(failure) = self.withdraw_all() {
            return failure;
        }
        let message = format!("shell: its session has ended ({reason}), so start another");
        Failure::new(exit::LOST, message)
    }

    fn help(&mut self) -> Result<(), Failure> {
        for verb in &VERBS {
            let line = if self.json {
                let mut object = crate::output::Object::new();
                object.set("command", "help".into());
                object.set("usage", line::form(verb).into());
                object.set("does", verb.does.into());
                object.text()
            } else {
                format!("help: {:<30} {}", line::form(verb), verb.does)
            };
            self.console.print(&line)?;
        }
        Ok(())
    }
}

const NOT_HELD: Trouble = Trouble::Refused("not held");

/// Why a line was not done.
enum Trouble {
    /// The store, or the library, says no.
    Failed(Error),
    /// It makes no sense now.
    Refused(&'static str),
    /// Nobody hears the shell any more.
    Fatal(Failure),
}

impl Trouble {
    fn told(self, verb: &str) -> Result<Outcome, Failure> {
        match self {
            Self::Failed(error) => Ok(Outcome::error(verb, described(&error))),
            Self::Refused(why) => Ok(Outcome::error(verb, why)),
            Self::Fatal(failure) => Err(failure),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Tells of every later state of an election, for as long as the shell lasts.
async fn follow(mut observer: Observer, name: Name, sender: mpsc::UnboundedSender<Event>) {
    while let Some(leader) = observer.next().await {
        let name = name.clone();
        if sender.send(Event::Seen { name, leader }).is_err() {
            return;
        }
    }
}
