//! The embedded store behind one delegating wrapper that breaks one rule for one role.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use tenure_conformance::roles::Role;
use tenure_conformance::{Harness, Link, Linked, Need, Operator, async_trait};
use tenure_core::backend::*;
use tenure_core::{
    Clock, ErrorKind, FencingToken, Guarantees, HoldFor, Item, Leader, Name, Namespace, Op, Result,
    SessionId, SessionOptions, Store,
};
use tenure_memory::{
    Fault, MemoryBackend, MemoryBarrier, MemoryConfig, MemoryElection, MemoryLocker, MemoryQueue,
    MemoryRwLock, MemorySession, MemoryStm,
};
use tokio::time::{Instant, sleep};

/// How a rule is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bug {
    /// Not at all: the control.
    Nothing,
    /// What a closed, dropped or revoked session held or waited for stays.
    OutlivesItsSession,
    /// Neither a release nor the end of a session frees anything.
    NeverLetsGo,
    /// A wait that was given up, or whose session was closed, stays in line.
    Ghosts,
    /// A barrier lets waiters pass at once.
    LetsPass,
    /// It ends so many TTLs after its session was opened, though that is renewed.
    EndsAfter(f64),
    /// The store knows of this share of the TTL.
    PartOfTheTtl(f64),
    /// It is freed once its connection was silent, slow or cut for a moment.
    FreedBy(Trouble),
    /// A session cannot be closed.
    CannotClose,
    /// The clock by which validity is judged stands still.
    FrozenClock,
    /// Every request is granted.
    SharedWithAll,
    /// A session that holds it is granted it again.
    SharedInItsSession,
    /// Every grant has the same token.
    ConstantToken,
    /// Tokens start again after idle time.
    TokenForgetsWhenIdle,
    /// When the waiter at this place of the wait queue gives up, the last comes first from then on.
    CancelTurnsTheOrder(At),
    /// A grant reaches its waiter so late.
    GrantIsLate(Duration),
    /// A waiter asks the store so often.
    Polls(Duration),
    /// A waiter that met it is not woken any more.
    DeafAfter(Trouble),
    /// A grant that falls into it, or comes right after it, does not reach its waiter.
    MissesIn(Trouble),
    /// A refused try leaves its place.
    TryQueues,
    /// A wait that was given up stays in line, and is granted.
    WithdrawsNothing,
    /// A release, or a drop, does nothing.
    ReleasesNothing,
    /// A release frees whatever there is under the name.
    ReleasesTheNext,
    /// While it is held, another kind of the same name cannot be had.
    MeetsKinds,
    /// While it is held, names that begin with its own cannot be had.
    MeetsNames,
    /// While it is held, it cannot be had in another namespace.
    MeetsNamespaces,
    /// A release frees the same name in all namespaces.
    ReleasesInAllNamespaces,
    /// Writes of a transaction beyond so many are ignored.
    DropsWritesBeyond(usize),
    /// Deletes are ignored.
    DropsDeletes,
    /// Comparisons of a transaction beyond so many are ignored.
    DropsComparesBeyond(usize),
    /// Values end after so many bytes.
    CutsValues(usize),
    /// Of a batch all but so many items are lost when their consumer's session ends.
    LosesTheRestOfABatch(usize),
    /// Priorities are told apart by so many of their bits.
    PriorityBits(u32),
    /// Items beyond so many in one queue are lost.
    LosesItemsBeyond(u64),
    /// Of more waiters than so many, the rest is not woken.
    DeafBeyond(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Trouble {
    Silence,
    Mute,
    Cut,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum At {
    Head,
    Middle,
    End,
}

/// A namespace, a role and a name that are held.
type Key = (String, Role, String);

struct World {
    store: Store<MemoryBackend>,
    role: Role,
    bug: Bug,
    /// By their main sessions: the sessions behind the broken role.
    shadows: Mutex<HashMap<String, SessionId>>,
    held: Mutex<Vec<Key>>,
    copies: Mutex<HashMap<String, Vec<Taken>>>,
    queues: Mutex<HashMap<String, Vec<u64>>>,
    turned: AtomicBool,
    token: AtomicU64,
    last_grant: Mutex<Option<Instant>>,
    waiting: std::sync::atomic::AtomicUsize,
}

/// A link that remembers what it met.
#[derive(Clone)]
struct Wire {
    inner: tenure_memory::Link,
    met: Arc<Mutex<Met>>,
}

#[derive(Default)]
struct Met {
    now: Option<Trouble>,
    before: Vec<(Trouble, Instant)>,
}

impl Wire {
    fn begin(&self, trouble: Trouble) {
        self.met.lock().unwrap().now = Some(trouble);
    }

    /// Whether it meets `trouble`, or met it since `since`.
    fn met(&self, trouble: Trouble, since: Instant) -> bool {
        let met = self.met.lock().unwrap();
        let before = |(what, when): &(Trouble, Instant)| *what == trouble && *when >= since;
        met.now == Some(trouble) || met.before.iter().any(before)
    }
}

impl Link for Wire {
    fn silence(&self) {
        self.begin(Trouble::Silence);
        self.inner.inject(Fault::Silent);
    }

    fn mute(&self) {
        self.begin(Trouble::Mute);
        self.inner.inject(Fault::AnswersHeld);
    }

    fn hold(&self) {
        self.mute();
    }

    fn heal(&self) {
        {
            let mut met = self.met.lock().unwrap();
            if let Some(trouble) = met.now.take() {
                met.before.push((trouble, Instant::now()));
            }
        }
        self.inner.heal();
    }

    fn cut(&self) {
        // The embedded store has no connection to cut.
        self.begin(Trouble::Cut);
        let mut met = self.met.lock().unwrap();
        met.now = None;
        met.before.push((Trouble::Cut, Instant::now()));
    }

    fn requests(&self) -> Option<u64> {
        Some(self.inner.requests())
    }
}

/// A case's stage with a broken store.
pub(crate) struct Stage(Arc<World>);

impl Stage {
    pub(crate) fn new(role: Role, bug: Bug) -> Self {
        let store = tenure_memory::connect(MemoryConfig::new()).unwrap();
        Self(Arc::new(World {
            store,
            role,
            bug,
            shadows: Mutex::default(),
            held: Mutex::default(),
            copies: Mutex::default(),
            queues: Mutex::default(),
            turned: AtomicBool::new(false),
            token: AtomicU64::new(1),
            last_grant: Mutex::default(),
            waiting: Default::default(),
        }))
    }

    fn connection(&self, namespace: &str) -> Mutant {
        let mut inner = self.0.store.backend().reconnect();
        if !namespace.is_empty() {
            inner = inner.in_namespace(Namespace::new(namespace).unwrap());
        }
        Mutant {
            wire: Wire {
                inner: inner.link(),
                met: Arc::default(),
            },
            inner,
            namespace: namespace.to_owned(),
            world: Arc::clone(&self.0),
        }
    }
}

#[async_trait]
impl Harness for Stage {
    async fn connect(&self) -> Result<Store> {
        Ok(Store::new(self.connection("")).into_dyn())
    }

    fn offers(&self) -> &[Need] {
        &[
            Need::Silence,
            Need::Cut,
            Need::Mute,
            Need::Elsewhere,
            Need::Revoke,
            Need::Keys,
            Need::Hold,
            Need::Requests,
        ]
    }

    async fn linked(&self) -> Result<Linked> {
        let backend = self.connection("");
        let link: Box<dyn Link> = Box::new(backend.wire.clone());
        Ok(Linked {
            store: Store::new(backend).into_dyn(),
            link,
        })
    }

    async fn elsewhere(&self) -> Result<Store> {
        Ok(Store::new(self.connection("default/lock")).into_dyn())
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }
}

#[async_trait]
impl Operator for Stage {
    async fn revoke(&self, session: &SessionId) -> Result<()> {
        let shadow = self
            .0
            .shadows
            .lock()
            .unwrap()
            .get(session.as_str())
            .cloned();
        if let Some(shadow) = shadow.filter(|_| self.0.bug != Bug::OutlivesItsSession) {
            self.0.store.backend().revoke(&shadow);
        }
        self.0.store.backend().revoke(session);
        Ok(())
    }

    async fn keys(&self) -> Result<Vec<String>> {
        Ok(self.0.store.backend().keys())
    }
}

struct Mutant {
    inner: MemoryBackend,
    wire: Wire,
    namespace: String,
    world: Arc<World>,
}

#[async_trait]
impl Backend for Mutant {
    type Session = MutantLease;

    async fn open(&self, ttl: Duration, options: &SessionOptions) -> Result<Opened<MutantLease>> {
        let opened = self.inner.open(ttl, options).await?;
        let bug = self.world.bug;
        let real = match bug {
            Bug::PartOfTheTtl(part) => opened.ttl.mul_f64(part),
            _ => opened.ttl,
        };
        let shadow = self.inner.open(real, options).await?;
        let mut shadows = self.world.shadows.lock().unwrap();
        shadows.insert(opened.id.as_str().to_owned(), shadow.id.clone());
        drop(shadows);
        let (world, wire, id) = (Arc::clone(&self.world), self.wire.clone(), shadow.id);
        let (lease, begin) = (Arc::downgrade(&shadow.lease), Instant::now());
        match bug {
            Bug::EndsAfter(ttls) => drop(tokio::spawn(async move {
                sleep(ttl.mul_f64(ttls)).await;
                world.store.backend().revoke(&id);
            })),
            Bug::FreedBy(trouble) => drop(tokio::spawn(async move {
                while lease.strong_count() > 0 {
                    if wire.met(trouble, begin) {
                        sleep(Duration::from_millis(200)).await;
                        world.store.backend().revoke(&id);
                        return;
                    }
                    sleep(Duration::from_millis(10)).await;
                }
            })),
            _ => {}
        }
        let lease = MutantLease(Arc::new(Member {
            main: opened.lease,
            shadow: shadow.lease,
            wire: self.wire.clone(),
            namespace: self.namespace.clone(),
            world: Arc::clone(&self.world),
            batches: Mutex::default(),
        }));
        Ok(Opened {
            lease: Arc::new(lease),
            id: opened.id,
            ttl: opened.ttl,
            capacity: opened.capacity,
        })
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        self.inner.guarantees().await
    }

    fn clock(&self) -> Clock {
        match self.world.bug {
            Bug::FrozenClock => FROZEN.1.clone(),
            _ => self.inner.clock(),
        }
    }
}

/// A clock on a runtime whose time is paused: it never moves.
static FROZEN: LazyLock<(tokio::runtime::Runtime, Clock)> = LazyLock::new(|| {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let clock = runtime.block_on(async { Clock::tokio() });
        (runtime, clock)
    })
    .join()
    .unwrap()
});

struct Member {
    main: Arc<MemorySession>,
    /// The session that has what the broken role holds and waits for.
    shadow: Arc<MemorySession>,
    wire: Wire,
    namespace: String,
    world: Arc<World>,
    batches: Mutex<Vec<(Ask, Vec<Grant>)>>,
}

struct MutantLease(Arc<Member>);

#[async_trait]
impl Lease for MutantLease {
    async fn renew(&self) -> Result<()> {
        let _ = self.0.shadow.renew().await;
        self.0.main.renew().await
    }

    async fn revoke(&self) -> Result<()> {
        match self.0.world.bug {
            Bug::CannotClose => return Err(tenure_core::Error::new(ErrorKind::Internal, "no")),
            Bug::OutlivesItsSession | Bug::NeverLetsGo | Bug::Ghosts => {
                // It would expire.
                let shadow = Arc::clone(&self.0.shadow);
                tokio::spawn(async move {
                    for _ in 0..100 {
                        let _ = shadow.renew().await;
                        sleep(Duration::from_secs(1)).await;
                    }
                });
            }
            Bug::LosesTheRestOfABatch(spared) => {
                let batches = std::mem::take(&mut *self.0.batches.lock().unwrap());
                let queue = Arc::clone(&self.0.shadow).typed_queue();
                for (ask, grants) in batches {
                    for lost in grants.iter().skip(spared) {
                        let _ = queue.ack(&ask, lost).await;
                    }
                }
                self.0.shadow.revoke().await?;
            }
            _ => self.0.shadow.revoke().await?,
        }
        self.0.main.revoke().await
    }

    async fn audit(&self, held: &[Held]) -> Result<Vec<u64>> {
        // What one of the two knows is not missing.
        let main = self.0.main.audit(held).await?;
        let shadow = self.0.shadow.audit(held).await.unwrap_or_default();
        Ok(main.into_iter().filter(|it| shadow.contains(it)).collect())
    }

    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(Arc::new(Broken::new(&self.0, MemorySession::typed_locker)))
    }

    fn rw_lock(self: Arc<Self>) -> Option<Arc<dyn RwLock>> {
        Some(Arc::new(Broken::new(&self.0, MemorySession::typed_rw_lock)))
    }

    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        Some(Arc::new(Broken::new(
            &self.0,
            MemorySession::typed_election,
        )))
    }

    fn queue(self: Arc<Self>) -> Option<Arc<dyn Queue>> {
        Some(Arc::new(Broken::new(&self.0, MemorySession::typed_queue)))
    }

    fn barrier(self: Arc<Self>) -> Option<Arc<dyn Barrier>> {
        Some(Arc::new(Broken::new(&self.0, MemorySession::typed_barrier)))
    }

    fn stm(self: Arc<Self>) -> Option<Arc<dyn Stm>> {
        let inner = Arc::clone(&self.0.main).typed_stm();
        Some(Arc::new(BrokenStm(inner, self.0.world.bug)))
    }
}

/// One primitive of both sessions.
struct Broken<P> {
    main: Arc<P>,
    shadow: Arc<P>,
    it: Arc<Member>,
}

/// What a grant of the wrapper has inside.
struct Inside {
    grant: Option<Grant>,
    shadow: bool,
    key: Key,
}

impl<P> Broken<P> {
    fn new(it: &Arc<Member>, typed: fn(Arc<MemorySession>) -> Arc<P>) -> Self {
        Self {
            main: typed(Arc::clone(&it.main)),
            shadow: typed(Arc::clone(&it.shadow)),
            it: Arc::clone(it),
        }
    }

    fn is_broken(&self, role: Role) -> bool {
        self.it.world.role == role
    }

    fn bug(&self, role: Role) -> Bug {
        match self.is_broken(role) {
            true => self.it.world.bug,
            false => Bug::Nothing,
        }
    }

    fn of(&self, role: Role) -> &Arc<P> {
        match self.is_broken(role) {
            true => &self.shadow,
            false => &self.main,
        }
    }

    fn inside<'g>(&'g self, grant: &'g Grant) -> Option<&'g Inside> {
        grant.attachment::<Inside>()
    }

    /// The primitive and the grant that were behind `grant`.
    fn behind<'g>(&'g self, grant: &'g Grant) -> (&'g Arc<P>, &'g Grant) {
        match self.inside(grant) {
            Some(inside) if inside.shadow => (&self.shadow, inside.grant.as_ref().unwrap_or(grant)),
            Some(inside) => (&self.main, inside.grant.as_ref().unwrap_or(grant)),
            None => (&self.main, grant),
        }
    }

    fn key(&self, role: Role, name: &Name) -> Key {
        let place = match self.it.world.bug {
            Bug::SharedInItsSession => format!("{:p}", &*self.it),
            _ => self.it.namespace.clone(),
        };
        (place, role, name.as_str().to_owned())
    }

    /// Whether what the broken role holds keeps this one out.
    fn meets(&self, role: Role, name: &Name) -> bool {
        let world = &self.it.world;
        let (namespace, _, name) = self.key(role, name);
        let held = world.held.lock().unwrap();
        held.iter().any(|(other, holder, held)| match world.bug {
            Bug::MeetsKinds => *other == namespace && *holder != role && *held == name,
            Bug::MeetsNames => {
                let nests = name != *held && name.starts_with(held.as_str());
                *other == namespace && *holder == role && nests
            }
            Bug::MeetsNamespaces => *other != namespace && *holder == role && *held == name,
            _ => false,
        })
    }

    fn grant(&self, role: Role, name: &Name, grant: Option<Grant>) -> Grant {
        let world = &self.it.world;
        let bug = self.bug(role);
        let true_token = grant.as_ref().map_or_else(
            || 1_000_000 + world.token.fetch_add(1, Ordering::SeqCst),
            |grant| grant.token().get(),
        );
        let last = world.last_grant.lock().unwrap().replace(Instant::now());
        let token = match bug {
            Bug::ConstantToken => 7,
            Bug::TokenForgetsWhenIdle => {
                if last.is_some_and(|last| last.elapsed() > Duration::from_secs(1)) {
                    world.token.store(1, Ordering::SeqCst);
                }
                world.token.fetch_add(1, Ordering::SeqCst)
            }
            _ => true_token,
        };
        let key = self.key(role, name);
        if self.is_broken(role) {
            world.held.lock().unwrap().push(key.clone());
        }
        let shown = grant
            .as_ref()
            .map_or("nowhere".to_owned(), |it| it.key().to_owned());
        Grant::new(FencingToken::new(token), shown).attach(Inside {
            grant,
            shadow: self.is_broken(role),
            key,
        })
    }

    /// A try, broken.
    async fn tries(
        &self,
        role: Role,
        ask: &Ask,
        attempt: impl Future<Output = Result<Option<Grant>>>,
        wait: impl FnOnce() -> Later<Result<Grant>>,
    ) -> Result<Option<Grant>> {
        if self.meets(role, ask.name()) {
            return Ok(None);
        }
        if self.is_shared(role, ask.name()) {
            return Ok(Some(self.grant(role, ask.name(), None)));
        }
        let had = attempt.await?;
        if had.is_none() && self.bug(role) == Bug::TryQueues {
            let waiting = wait();
            tokio::spawn(async move {
                let granted = waiting.await;
                std::future::pending::<()>().await;
                drop(granted);
            });
            sleep(Duration::from_millis(1)).await;
        }
        Ok(had.map(|grant| self.grant(role, ask.name(), Some(grant))))
    }

    fn is_shared(&self, role: Role, name: &Name) -> bool {
        match self.bug(role) {
            Bug::SharedWithAll => true,
            Bug::SharedInItsSession => self
                .it
                .world
                .held
                .lock()
                .unwrap()
                .contains(&self.key(role, name)),
            _ => false,
        }
    }

    /// A wait, broken.
    async fn waits<T>(
        &self,
        role: Role,
        name: &Name,
        withdrawn: impl Future<Output = ()>,
        wait: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let withdrawn = async {
            withdrawn.await;
            Err(tenure_core::Error::withdrawn())
        };
        let waiting = async {
            while self.meets(role, name) {
                sleep(Duration::from_millis(5)).await;
            }
            let begin = Instant::now();
            let ping = async {
                let Bug::Polls(every) = self.bug(role) else {
                    return std::future::pending().await;
                };
                loop {
                    sleep(every).await;
                    let _ = self.it.main.renew().await;
                }
            };
            let had = tokio::select! {
                had = wait => had,
                () = ping => unreachable!(),
            };
            if begin.elapsed() < Duration::from_millis(20) {
                return had;
            }
            let deaf = match self.bug(role) {
                Bug::GrantIsLate(by) => {
                    sleep(by).await;
                    false
                }
                Bug::DeafAfter(trouble) => {
                    let long_ago = !self.it.wire.met(trouble, just_now());
                    long_ago && self.it.wire.met(trouble, begin)
                }
                Bug::MissesIn(trouble) => self.it.wire.met(trouble, just_now()),
                _ => false,
            };
            if deaf {
                sleep(Duration::from_secs(30)).await;
            }
            had
        };
        tokio::select! {
            had = waiting => had,
            gone = withdrawn => gone,
        }
    }

    /// Whether the order of the wait queue is broken, which both sides of a read-write lock share.
    fn is_turned(&self, role: Role) -> bool {
        let sides = |role| matches!(role, Role::Reader | Role::Writer);
        let broken = self.is_broken(role) || sides(role) && sides(self.it.world.role);
        broken && matches!(self.it.world.bug, Bug::CancelTurnsTheOrder(_))
    }

    /// Waits for the turn of an ask where the order of the wait queue is broken.
    async fn turn(&self, role: Role, ask: &Ask) -> Place {
        let world = Arc::clone(&self.it.world);
        let place = Place {
            world: Arc::clone(&world),
            name: ask.name().as_str().to_owned(),
            nonce: ask.nonce(),
            in_order: !self.is_turned(role),
            granted: AtomicBool::new(false),
        };
        if place.in_order {
            return place;
        }
        let mut queues = world.queues.lock().unwrap();
        queues
            .entry(place.name.clone())
            .or_default()
            .push(place.nonce);
        drop(queues);
        place
    }

    /// A release, broken: `None` if it is done.
    fn releases(&self, grant: &Grant) -> Option<Result<()>> {
        let inside = self.inside(grant)?;
        let world = &self.it.world;
        {
            let mut held = world.held.lock().unwrap();
            if let Some(place) = held.iter().position(|key| *key == inside.key) {
                held.swap_remove(place);
            }
        }
        if !inside.shadow {
            return None;
        }
        match world.bug {
            Bug::ReleasesNothing | Bug::NeverLetsGo => Some(Ok(())),
            Bug::ReleasesInAllNamespaces => {
                for namespace in ["default", "default/lock"] {
                    let store = world.store.backend().reconnect();
                    let store = store.in_namespace(Namespace::new(namespace).unwrap());
                    delete(&store, &inside.key.2);
                }
                Some(Ok(()))
            }
            Bug::ReleasesTheNext => {
                delete(world.store.backend(), &inside.key.2);
                Some(Ok(()))
            }
            _ if inside.grant.is_none() => Some(Ok(())),
            _ => None,
        }
    }
}

fn delete(store: &MemoryBackend, name: &str) {
    let name = escape(name);
    for key in store.keys().into_iter().filter(|key| key.contains(&*name)) {
        store.delete(&key);
    }
}

fn just_now() -> Instant {
    Instant::now() - Duration::from_millis(100)
}

/// A place in a broken wait queue.
struct Place {
    world: Arc<World>,
    name: String,
    nonce: u64,
    in_order: bool,
    granted: AtomicBool,
}

impl Place {
    async fn comes(&self) {
        if self.in_order {
            return;
        }
        loop {
            let turned = self.world.turned.load(Ordering::SeqCst);
            {
                let queues = self.world.queues.lock().unwrap();
                let queue = &queues[&self.name];
                let next = if turned { queue.last() } else { queue.first() };
                if next == Some(&self.nonce) {
                    return;
                }
            }
            sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.in_order {
            return;
        }
        let mut queues = self.world.queues.lock().unwrap();
        let Some(queue) = queues.get_mut(&self.name) else {
            return;
        };
        let place = queue.iter().position(|nonce| *nonce == self.nonce);
        let Some(place) = place else { return };
        let at = match place {
            0 => At::Head,
            place if place + 1 == queue.len() => At::End,
            _ => At::Middle,
        };
        queue.remove(place);
        if !self.granted.load(Ordering::SeqCst) && self.world.bug == Bug::CancelTurnsTheOrder(at) {
            self.world.turned.store(true, Ordering::SeqCst);
        }
    }
}

type Later<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

macro_rules! settle {
    ($Primitive:ty) => {
        #[async_trait]
        impl Settle for Broken<$Primitive> {
            async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
                if let Some(done) = self.releases(grant) {
                    return done;
                }
                let (primitive, grant) = self.behind(grant);
                primitive.release(ask, grant).await
            }

            async fn withdraw(&self, ask: &Ask) -> Result<()> {
                let stays = matches!(
                    self.it.world.bug,
                    Bug::WithdrawsNothing | Bug::Ghosts | Bug::TryQueues | Bug::NeverLetsGo
                );
                if !stays {
                    self.shadow.withdraw(ask).await?;
                }
                self.main.withdraw(ask).await
            }
        }
    };
}

settle!(MemoryLocker);
settle!(MemoryRwLock);
settle!(MemoryElection);
settle!(MemoryQueue);
settle!(MemoryBarrier);

/// The try and the wait of a primitive of the kind of a lock.
macro_rules! line {
    ($self:ident, $role:expr, $ask:ident, $try:ident($($arg:expr),*) or $wait:ident) => {{
        let role = $role;
        let primitive = Arc::clone($self.of(role));
        let (waiting, ask) = (Arc::clone(&primitive), $ask.clone());
        let wait = move || -> Later<Result<Grant>> {
            Box::pin(async move { waiting.$wait(&ask, $($arg),*).await })
        };
        $self.tries(role, $ask, primitive.$try($ask, $($arg),*), wait).await
    }};
    ($self:ident, $role:expr, $ask:ident, $try:ident($($arg:expr),*) then $wait:ident) => {{
        let role = $role;
        if $self.is_shared(role, $ask.name()) {
            return Ok($self.grant(role, $ask.name(), None));
        }
        let place = $self.turn(role, $ask).await;
        let crowd = $self.it.world.waiting.fetch_add(1, Ordering::SeqCst);
        if matches!($self.bug(role), Bug::DeafBeyond(most) if crowd > most) {
            $ask.withdrawn().await;
            return Err(tenure_core::Error::withdrawn());
        }
        let waiting = async {
            if place.in_order {
                return $self.of(role).$wait($ask, $($arg),*).await;
            }
            loop {
                place.comes().await;
                if let Some(grant) = $self.of(role).$try($ask, $($arg),*).await? {
                    return Ok(grant);
                }
                sleep(Duration::from_millis(2)).await;
            }
        };
        let withdrawn: Later<()> = match $self.bug(role) {
            Bug::WithdrawsNothing => {
                // The wait goes on without its caller.
                let (primitive, ask) = (Arc::clone($self.of(role)), $ask.clone());
                let goes_on: Later<()> = Box::pin(async move {
                    ask.withdrawn().await;
                    drop(primitive);
                });
                goes_on
            }
            _ => Box::pin($ask.withdrawn()),
        };
        let grant = $self.waits(role, $ask.name(), withdrawn, waiting).await?;
        place.granted.store(true, Ordering::SeqCst);
        Ok($self.grant(role, $ask.name(), Some(grant)))
    }};
}

#[async_trait]
impl Locker for Broken<MemoryLocker> {
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>> {
        line!(self, Role::Lock, ask, try_acquire() or acquire)
    }

    async fn acquire(&self, ask: &Ask) -> Result<Grant> {
        line!(self, Role::Lock, ask, try_acquire() then acquire)
    }
}

fn of_side(side: Side) -> Role {
    match side {
        Side::Read => Role::Reader,
        Side::Write => Role::Writer,
    }
}

#[async_trait]
impl RwLock for Broken<MemoryRwLock> {
    async fn try_acquire(&self, ask: &Ask, side: Side) -> Result<Option<Grant>> {
        line!(self, of_side(side), ask, try_acquire(side) or acquire)
    }

    async fn acquire(&self, ask: &Ask, side: Side) -> Result<Grant> {
        line!(self, of_side(side), ask, try_acquire(side) then acquire)
    }

    async fn downgrade(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let (primitive, grant) = self.behind(grant);
        primitive.downgrade(ask, grant).await
    }
}

impl Broken<MemoryElection> {
    fn cut<'v>(&self, value: &'v [u8]) -> &'v [u8] {
        match self.it.world.bug {
            Bug::CutsValues(most) => &value[..value.len().min(most)],
            _ => value,
        }
    }
}

#[async_trait]
impl Election for Broken<MemoryElection> {
    async fn try_campaign(&self, ask: &Ask, value: &[u8]) -> Result<Option<Grant>> {
        let role = Role::Leadership;
        let (election, again, copy) = (Arc::clone(self.of(role)), ask.clone(), value.to_vec());
        let wait = move || -> Later<Result<Grant>> {
            Box::pin(async move { election.campaign(&again, &copy).await })
        };
        let attempt = self.of(role).try_campaign(ask, value);
        self.tries(role, ask, attempt, wait).await
    }

    async fn campaign(&self, ask: &Ask, value: &[u8]) -> Result<Grant> {
        let value = self.cut(value);
        line!(self, Role::Leadership, ask, try_campaign(value) then campaign)
    }

    async fn proclaim(&self, ask: &Ask, grant: &Grant, number: u64, value: &[u8]) -> Result<()> {
        let (primitive, grant) = self.behind(grant);
        primitive
            .proclaim(ask, grant, number, self.cut(value))
            .await
    }

    async fn leader(&self, name: &Name) -> Result<Option<Leader>> {
        self.main.leader(name).await
    }

    async fn observe(&self, name: &Name, after: Option<u64>) -> Result<Sighting> {
        self.main.observe(name, after).await
    }
}

impl Broken<MemoryQueue> {
    fn of_want(&self, want: &Want) -> Role {
        match want.most {
            1 if !self.is_broken(Role::Batch) => Role::Delivery,
            _ => Role::Batch,
        }
    }

    fn taken(&self, role: Role, name: &Name, taken: Vec<Taken>) -> Vec<Taken> {
        let show = |taken: Taken| Taken {
            grant: self.grant(role, name, Some(taken.grant)),
            ..taken
        };
        let taken: Vec<Taken> = taken.into_iter().map(show).collect();
        let mut copies = self.it.world.copies.lock().unwrap();
        copies.insert(name.as_str().to_owned(), taken.clone());
        taken
    }

    /// What another has, where a rule is broken so.
    fn copy(&self, role: Role, name: &Name) -> Option<Vec<Taken>> {
        if !self.is_shared(role, name) {
            return None;
        }
        let copies = self.it.world.copies.lock().unwrap();
        let copy = |taken: &Taken| Taken {
            grant: self.grant(role, name, None),
            ..taken.clone()
        };
        Some(copies.get(name.as_str())?.iter().map(copy).collect())
    }
}

#[async_trait]
impl Queue for Broken<MemoryQueue> {
    async fn enqueue(&self, ask: &Ask, items: &[Item]) -> Result<()> {
        let copy = |item: &Item| {
            let (mut value, mut priority) = (item.value().to_vec(), item.get_priority());
            match self.it.world.bug {
                Bug::CutsValues(most) => value.truncate(most),
                Bug::PriorityBits(bits) => priority &= (1 << bits) - 1,
                _ => {}
            }
            Item::new(value).priority(priority)
        };
        let bug = self.it.world.bug;
        if let Bug::LosesItemsBeyond(most) = bug
            && self.main.depth(ask.name()).await?.total() >= most
        {
            return Ok(());
        }
        match bug {
            Bug::CutsValues(_) | Bug::PriorityBits(_) => {
                let items: Vec<Item> = items.iter().map(copy).collect();
                self.main.enqueue(ask, &items).await
            }
            _ => self.main.enqueue(ask, items).await,
        }
    }

    async fn try_take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>> {
        let role = self.of_want(want);
        if self.meets(role, ask.name()) {
            return Ok(Vec::new());
        }
        if let Some(copy) = self.copy(role, ask.name()) {
            return Ok(copy);
        }
        let taken = self.of(role).try_take(ask, want).await?;
        if taken.is_empty() && self.bug(role) == Bug::TryQueues {
            let (queue, ask, want) = (Arc::clone(self.of(role)), ask.clone(), want.clone());
            tokio::spawn(async move { queue.take(&ask, &want).await });
            return Ok(taken);
        }
        Ok(self.taken(role, ask.name(), taken))
    }

    async fn take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>> {
        let role = self.of_want(want);
        if let Some(copy) = self.copy(role, ask.name()) {
            return Ok(copy);
        }
        let taking = self.of(role).take(ask, want);
        let taken = self
            .waits(role, ask.name(), ask.withdrawn(), taking)
            .await?;
        if self.is_broken(role) {
            let grants = taken.iter().map(|taken| taken.grant.clone()).collect();
            self.it.batches.lock().unwrap().push((ask.clone(), grants));
        }
        Ok(self.taken(role, ask.name(), taken))
    }

    async fn ack(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        if let Some(done) = self.releases(grant) {
            return done;
        }
        let (queue, grant) = self.behind(grant);
        queue.ack(ask, grant).await
    }

    async fn nack(&self, ask: &Ask, grant: &Grant, delay: Duration) -> Result<()> {
        if let Some(done) = self.releases(grant) {
            return done;
        }
        let (queue, grant) = self.behind(grant);
        queue.nack(ask, grant, delay).await
    }

    async fn depth(&self, name: &Name) -> Result<tenure_core::Depth> {
        self.main.depth(name).await
    }

    async fn peek(&self, name: &Name) -> Result<Option<tenure_core::Peeked>> {
        self.main.peek(name).await
    }

    async fn purge(&self, ask: &Ask) -> Result<u64> {
        self.main.purge(ask).await
    }
}

#[async_trait]
impl Barrier for Broken<MemoryBarrier> {
    async fn hold(&self, ask: &Ask, hold_for: HoldFor) -> Result<()> {
        let conflict = || tenure_core::Error::new(ErrorKind::Conflict, "held");
        if self.meets(Role::Hold, ask.name()) {
            return Err(conflict());
        }
        // Await points, as a network has them.
        tokio::task::yield_now().await;
        let held = self.of(Role::Hold).hold(ask, hold_for).await;
        tokio::task::yield_now().await;
        if held.is_err() && self.bug(Role::Hold) == Bug::TryQueues {
            let (barrier, ask) = (Arc::clone(&self.shadow), ask.clone());
            tokio::spawn(async move {
                while barrier.hold(&ask, hold_for).await.is_err() {
                    sleep(Duration::from_millis(1)).await;
                }
            });
        }
        held?;
        if self.is_broken(Role::Hold) {
            let key = self.key(Role::Hold, ask.name());
            self.it.world.held.lock().unwrap().push(key);
        }
        Ok(())
    }

    async fn lift(&self, ask: &Ask) -> Result<bool> {
        let key = self.key(Role::Hold, ask.name());
        let world = &self.it.world;
        world.held.lock().unwrap().retain(|held| *held != key);
        if self.bug(Role::Hold) == Bug::ReleasesInAllNamespaces {
            for namespace in ["default", "default/lock"] {
                let store = world.store.backend().reconnect();
                let store = store.in_namespace(Namespace::new(namespace).unwrap());
                delete(&store, ask.name().as_str());
            }
        }
        self.main.lift(ask).await
    }

    async fn is_held(&self, name: &Name) -> Result<bool> {
        self.main.is_held(name).await
    }

    async fn wait(&self, name: &Name) -> Result<()> {
        if self.bug(Role::Hold) == Bug::LetsPass {
            return Ok(());
        }
        let waiting = self.main.wait(name);
        self.waits(Role::Hold, name, std::future::pending(), waiting)
            .await
    }

    async fn enter(&self, ask: &Ask, count: std::num::NonZeroU32) -> Result<Grant> {
        let role = Role::Participant;
        if self.meets(role, ask.name()) {
            return Err(tenure_core::Error::new(
                ErrorKind::Conflict,
                "somebody is inside",
            ));
        }
        tokio::task::yield_now().await;
        let entered = self.of(role).enter(ask, count).await;
        tokio::task::yield_now().await;
        if entered.is_err() && self.bug(role) == Bug::TryQueues {
            let (barrier, ask) = (Arc::clone(&self.shadow), ask.clone());
            tokio::spawn(async move {
                while barrier.enter(&ask, count).await.is_err() {
                    sleep(Duration::from_millis(1)).await;
                }
            });
        }
        let grant = entered?;
        Ok(self.grant(role, ask.name(), Some(grant)))
    }

    async fn all_left(&self, name: &Name, grant: &Grant) -> Result<()> {
        let (barrier, grant) = self.behind(grant);
        let waiting = barrier.all_left(name, grant);
        self.waits(Role::Participant, name, std::future::pending(), waiting)
            .await
    }
}

/// Transactions, broken.
struct BrokenStm(Arc<MemoryStm>, Bug);

#[async_trait]
impl Stm for BrokenStm {
    async fn read(&self, keys: &[Name], at: Option<u64>) -> Result<Read> {
        self.0.read(keys, at).await
    }

    async fn commit(&self, transaction: &Transaction) -> Result<Outcome> {
        let mut changed = transaction.clone();
        for branch in [&mut changed.then, &mut changed.or_else] {
            let mut number = 0;
            for operation in branch.iter_mut() {
                number += 1;
                // A read in its place keeps the number of answers.
                let ignored = match self.1 {
                    Bug::DropsWritesBeyond(most) => operation.writes() && number > most,
                    Bug::DropsDeletes => matches!(operation, Op::Delete(_)),
                    _ => false,
                };
                if ignored {
                    *operation = Op::Get(operation.key().clone());
                }
                if let (Op::Put(_, value), Bug::CutsValues(most)) = (operation, self.1) {
                    value.truncate(most);
                }
            }
        }
        if let Bug::DropsComparesBeyond(most) = self.1 {
            changed.compares.truncate(most);
        }
        self.0.commit(&changed).await
    }

    async fn resolve(&self, transaction: &Transaction) -> Result<Resolution> {
        self.0.resolve(transaction).await
    }

    fn check(&self, transaction: &Transaction) -> Result<()> {
        self.0.check(transaction)
    }
}
