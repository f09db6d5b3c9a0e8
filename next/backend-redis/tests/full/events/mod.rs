//! Events on a Redis server that operators cause, on servers of the test's own. Each file is a family of events, and each test a
//! row of the table in `docs/redis.md`.

mod busy;
mod by_hand;
mod clients;
mod eviction;
mod flush;
mod loading;
mod memory;
mod misconf;
mod pause;
mod quorum;
mod rights;

use std::ops::Deref;
use std::time::Duration;

use tenure_core::{
    Delivery, Effect, Error, ErrorKind, FencingToken, Holding, Leadership, LockGuard, LossReason, Participant,
    ReadGuard, Result, Session, SessionOptions, WriteGuard,
};
use tenure_testbed::{RedisAdmin, RedisOptions, RedisServer, wait_until};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::{connect, soon};

/// Long enough for a busy machine to renew in time, and short enough to wait for a renewal.
const TTL: Duration = Duration::from_secs(6);

/// The keys of the scene's namespace.
const ROOT: &str = "{tenure/scene}/2/";

/// Whatever a session can hold.
enum Guard {
    Lock(LockGuard),
    Read(ReadGuard),
    Write(WriteGuard),
    Leader(Leadership),
    Inside(Participant),
    Item(Delivery),
}

impl Deref for Guard {
    type Target = Holding;

    fn deref(&self) -> &Holding {
        match self {
            Self::Lock(guard) => guard,
            Self::Read(guard) => guard,
            Self::Write(guard) => guard,
            Self::Leader(guard) => guard,
            Self::Inside(guard) => guard,
            Self::Item(guard) => guard,
        }
    }
}

impl Guard {
    async fn end(self) -> Result<()> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Read(guard) => guard.release().await,
            Self::Write(guard) => guard.release().await,
            Self::Leader(guard) => guard.resign().await,
            Self::Inside(guard) => guard.leave().await,
            Self::Item(guard) => guard.ack().await,
        }
    }
}

/// A request that waits in a task of its own.
type Wait = JoinHandle<Result<Guard>>;

fn spawn(waiting: impl Future<Output = Result<Guard>> + Send + 'static) -> Wait {
    tokio::spawn(waiting)
}

/// Everything that an event can meet: it is held, waited for and stored.
struct Scene {
    /// Holds a lock, the writer's side of a read-write lock, a leadership, an item, and a place in a double barrier.
    holder: Session,
    /// Is inside the double barrier too, and waits for everything else.
    waiter: Session,
    /// Does something while the event lasts.
    guest: Session,
    held: Vec<Guard>,
    /// Waits for what the first of `held` hold, in their order.
    waits: Vec<Wait>,
    /// Both participants of the double barrier `inside`.
    inside: [Guard; 2],
    /// Waits in the double barrier `gate` for a second participant, and in the queue `empty` for an item.
    gate: Wait,
    empty: Wait,
    url: String,
}

async fn open(url: &str, ttl: Duration) -> Result<Session> {
    connect(url).await?.open(SessionOptions::new().ttl(ttl)).await
}

/// A scene on a server of its own.
async fn on_a_server(options: RedisOptions, ttl: Duration) -> (RedisServer, Scene) {
    let server = RedisServer::start(options).unwrap();
    let scene = Scene::set(&server.url(), server.admin(), ttl).await;
    (server, scene)
}

impl Scene {
    async fn set(url: &str, admin: &RedisAdmin, ttl: Duration) -> Self {
        let separator = if url.contains('?') { '&' } else { '?' };
        let url = format!("{url}{separator}namespace=scene");
        let [holder, waiter, guest] = [
            open(&url, ttl).await.unwrap(),
            open(&url, ttl).await.unwrap(),
            open(&url, ttl).await.unwrap(),
        ];
        holder.stm().put("key", "1").await.unwrap();
        for item in ["taken", "stored"] {
            holder.queue(item).enqueue(item).await.unwrap();
        }
        let held = vec![
            Guard::Lock(holder.lock("lock").await.unwrap()),
            Guard::Write(holder.rw_lock("rw").write().await.unwrap()),
            Guard::Leader(holder.election("election").campaign("first").await.unwrap()),
            Guard::Item(holder.queue("taken").dequeue().await.unwrap()),
        ];
        let (first, second) = (holder.double_barrier("inside", 2), waiter.double_barrier("inside", 2));
        let (first, second) = tokio::try_join!(first.enter(), second.enter()).unwrap();
        let (lock, rw, election) = (waiter.clone(), waiter.clone(), waiter.clone());
        let (gate, empty) = (waiter.clone(), waiter.clone());
        let waits = vec![
            spawn(async move { lock.lock("lock").await.map(Guard::Lock) }),
            spawn(async move { rw.rw_lock("rw").read().await.map(Guard::Read) }),
            spawn(async move {
                election
                    .election("election")
                    .campaign("second")
                    .await
                    .map(Guard::Leader)
            }),
        ];
        let gate = spawn(async move { gate.double_barrier("gate", 2).enter().await.map(Guard::Inside) });
        let empty = spawn(async move { empty.queue("empty").dequeue().await.map(Guard::Item) });
        let queues = [
            "lock/lock/waiters",
            "rw_lock/rw/waiters",
            "election/election/waiters",
            "double_barrier/gate/waiters",
            "queue/empty/consumers",
        ];
        wait_until("requests that wait", || {
            let mut places = 0;
            for queue in queues {
                places += admin.query::<usize>(&["ZCARD", &format!("{ROOT}{queue}")])?;
            }
            Ok((places == queues.len()).then_some(()))
        })
        .unwrap();
        Self {
            holder,
            waiter,
            guest,
            held,
            waits,
            inside: [Guard::Inside(first), Guard::Inside(second)],
            gate,
            empty,
            url,
        }
    }

    fn guards(&self) -> impl Iterator<Item = &Guard> {
        self.held.iter().chain(&self.inside)
    }

    fn sessions(&self) -> [&Session; 3] {
        [&self.holder, &self.waiter, &self.guest]
    }

    fn greatest_token(&self) -> FencingToken {
        self.guards().map(|guard| guard.token()).max().unwrap()
    }

    /// Waits until the sessions were renewed twice: once by a renewal that was sent after the call.
    fn wait_renewed(&self, admin: &mut redis::Connection) {
        let mut counted = || {
            let record = |session: &Session| format!("{ROOT}session/{}", session.id());
            let mut count = |session| {
                redis::cmd("HGET")
                    .arg(record(session))
                    .arg("renewals")
                    .query::<u64>(admin)
            };
            self.sessions().map(|session| count(session).unwrap())
        };
        let before = counted();
        wait_until("two renewals of each session", || {
            let are_renewed = counted().iter().zip(&before).all(|(now, before)| *now >= before + 2);
            Ok(are_renewed.then_some(()))
        })
        .unwrap();
    }

    /// Checks that nothing was lost or granted so far.
    fn check_kept(&self) {
        for guard in self.guards() {
            assert_eq!(guard.loss(), None, "{guard:?}", guard = **guard);
        }
        let waits = self.waits.iter().chain([&self.gate, &self.empty]);
        assert!(waits.into_iter().all(|wait| !wait.is_finished()), "a wait ended");
    }

    /// Checks that the event has cost nothing: whatever is held is still held, each release reaches its waiter with a greater token,
    /// and what was stored is there.
    async fn goes_on(mut self) {
        self.check_kept();
        self.hand_over().await;
        self.end_well().await;
    }

    /// Releases whatever is held. Each waiter is granted then, with a greater token.
    async fn hand_over(&mut self) {
        let mut waits = std::mem::take(&mut self.waits).into_iter();
        for guard in std::mem::take(&mut self.held) {
            let (name, token) = (guard.name().clone(), guard.token());
            soon(name.as_str(), guard.end()).await.unwrap();
            let Some(wait) = waits.next() else { continue };
            let next = soon(name.as_str(), wait).await.unwrap().unwrap();
            assert!(next.token() > token, "the tokens of {name} do not rise");
            assert_eq!(next.loss(), None);
            next.end().await.unwrap();
        }
        assert_eq!(self.guest.queue("taken").len().await.unwrap(), 0);
    }

    /// Checks that everything else is there too, and goes on.
    async fn end_well(self) {
        let (guest, holder) = (&self.guest, &self.holder);
        assert_eq!(guest.stm().get_string("key").await.unwrap().as_deref(), Some("1"));
        guest.stm().put("key", "2").await.unwrap();
        let stored = soon("the stored item", guest.queue("stored").dequeue()).await.unwrap();
        assert_eq!((stored.value(), stored.deliveries()), (&b"stored"[..], 1));
        stored.ack().await.unwrap();

        let entered = soon("the second participant", guest.double_barrier("gate", 2).enter()).await;
        let other = soon("the first participant", self.gate).await.unwrap().unwrap();
        leave([Guard::Inside(entered.unwrap()), other]).await;
        leave(self.inside).await;

        holder.queue("empty").enqueue("late").await.unwrap();
        let item = soon("an item for the waiting take", self.empty).await.unwrap().unwrap();
        item.end().await.unwrap();
        for session in [&self.holder, &self.waiter, &self.guest] {
            session.close().await.unwrap();
        }
    }

    /// Checks that the event has ended everything: each holding receives its loss for `reason`, and each wait fails.
    async fn ends_everything(self, reason: LossReason) {
        for guard in self.held.into_iter().chain(self.inside) {
            let name = guard.name().clone();
            assert_eq!(soon(name.as_str(), guard.lost()).await, reason, "{name}");
            let error = soon(name.as_str(), guard.end()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Lost, "{}", error.chain());
        }
        for wait in self.waits.into_iter().chain([self.gate, self.empty]) {
            match soon("the end of a wait", wait).await.unwrap() {
                Ok(guard) => panic!("{:?} was granted in a session that has ended", *guard),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Lost, "{}", error.chain()),
            }
        }
        assert_eq!(soon("the third session", self.guest.lost()).await, reason);
    }

    /// Checks that each step that does not wait is refused: with an error that says `text`, and without effect.
    async fn refuses_at_once(&self, text: &str) {
        self.refuses_places_at_once(text).await;
        let error = self.guest.queue("stored").try_dequeue().await.unwrap_err();
        assert_eq!(
            (error.kind(), error.effect()),
            (ErrorKind::Unavailable, Effect::None),
            "{}",
            error.chain()
        );
        assert!(error.chain().to_string().contains(text), "{}", error.chain());
    }

    /// As [`refuses_at_once`](Self::refuses_at_once), for steps that take a new place.
    async fn refuses_places_at_once(&self, text: &str) {
        let guest = &self.guest;
        let refused = |what: &str, error: Option<Error>| {
            let Some(error) = error else {
                panic!("{what} was not refused")
            };
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{what}: {}", error.chain());
            assert_eq!(error.effect(), Effect::None, "{what}: {}", error.chain());
            assert!(error.chain().to_string().contains(text), "{what}: {}", error.chain());
        };
        refused("a lock", guest.try_lock("free").await.err());
        refused("a write lock", guest.rw_lock("free").try_write().await.err());
        refused("a read lock", guest.rw_lock("free").try_read().await.err());
        refused("a campaign", guest.election("free").try_campaign("").await.err());
        refused("a session", open(&self.url, TTL).await.err());
    }

    /// Starts steps that wait until the event is over.
    async fn start_patient_steps(&self) -> PatientSteps {
        let [lock, enter, item, key] = [0; 4].map(|_| self.guest.clone());
        let steps = PatientSteps {
            lock: spawn(async move { lock.lock("patient").await.map(Guard::Lock) }),
            enter: spawn(async move { enter.double_barrier("patient", 1).enter().await.map(Guard::Inside) }),
            item: tokio::spawn(async move { item.queue("patient").enqueue("once").await }),
            key: tokio::spawn(async move { key.stm().put("patient", "once").await }),
            guest: self.guest.clone(),
        };
        // Their first attempts are on their way.
        sleep(Duration::from_millis(200)).await;
        assert!(!steps.lock.is_finished() && !steps.enter.is_finished());
        assert!(!steps.item.is_finished() && !steps.key.is_finished());
        steps
    }
}

/// Tries to lock until the refusal says `text`. Before it, a request may be in flight over a connection that ends.
async fn refusal(session: &Session, text: &str) -> Error {
    let refused = async {
        loop {
            match session.try_lock("free").await {
                Err(error) if error.chain().to_string().contains(text) => break error,
                answer => drop(answer),
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon(text, refused).await
}

/// Returns whether Redis refused an operator's command with this word.
fn says(error: &tenure_testbed::Error, word: &str) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.to_string().contains(word))
}

/// Steps whose callers wait while the server refuses.
struct PatientSteps {
    lock: Wait,
    enter: Wait,
    item: JoinHandle<Result<()>>,
    key: JoinHandle<Result<u64>>,
    guest: Session,
}

impl PatientSteps {
    /// Checks that each step was carried out, once.
    async fn are_done_once(self) {
        for wait in [self.lock, self.enter] {
            soon("a patient acquire", wait)
                .await
                .unwrap()
                .unwrap()
                .end()
                .await
                .unwrap();
        }
        soon("a patient enqueue", self.item).await.unwrap().unwrap();
        soon("a patient commit", self.key).await.unwrap().unwrap();
        assert_eq!(self.guest.queue("patient").len().await.unwrap(), 1);
        let entry = self.guest.stm().entry("patient").await.unwrap().unwrap();
        assert_eq!(entry.version, 1);
    }
}

/// Checks that clients go on after a loss of everything, with tokens above `greatest`.
async fn others_go_on(url: &str, greatest: FencingToken) {
    let opening = async {
        loop {
            match open(url, TTL).await {
                Ok(session) => break session,
                Err(error) => assert!(error.is_retryable(), "{}", error.chain()),
            }
        }
    };
    let next = soon("a session after the event", opening).await;
    let lock = Guard::Lock(soon("the lock", next.lock("lock")).await.unwrap());
    let write = Guard::Write(soon("the read-write lock", next.rw_lock("rw").write()).await.unwrap());
    let leader = Guard::Leader(
        soon("the election", next.election("election").campaign("third"))
            .await
            .unwrap(),
    );
    for guard in [lock, write, leader] {
        assert!(guard.token() > greatest, "the tokens of {} do not rise", guard.name());
        assert_eq!(guard.loss(), None);
        guard.end().await.unwrap();
    }
    let inside = soon("the double barrier", next.double_barrier("inside", 1).enter())
        .await
        .unwrap();
    inside.leave().await.unwrap();
}

async fn leave([first, second]: [Guard; 2]) {
    let (first, second) = soon("the end of a double barrier", async {
        tokio::join!(first.end(), second.end())
    })
    .await;
    first.and(second).unwrap();
}
