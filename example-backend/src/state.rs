//! The folder's one file of state, and the steps that change it.
//!
//! A step locks the folder, reads the file, does its work in memory, and replaces the file by a new
//! one: another process sees all of a step or nothing of it, also when this one is killed half-way.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tenure_core::{Error, ErrorKind, Result};
use tokio::sync::Mutex;

use crate::Mistake;

#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    mistake: Mistake,
    counted_at_home: AtomicU64,
    /// Held by the one step of this process that may lock the file.
    turn: Arc<Mutex<()>>,
}

/// What is in the file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// Which start of the machine the leases' clock counts from.
    boot: String,
    last_token: u64,
    last_session: u64,
    /// When each session ends, on the clock.
    sessions: BTreeMap<u64, Duration>,
    lines: BTreeMap<String, VecDeque<Place>>,
    #[serde(skip)]
    now: Duration,
    #[serde(skip)]
    mistake: Mistake,
    #[serde(skip)]
    at_home: u64,
}

/// A place in a line. The first one holds, from the moment at which it has a token.
#[derive(Debug, Serialize, Deserialize)]
struct Place {
    session: u64,
    nonce: u64,
    token: Option<u64>,
}

impl Folder {
    pub(crate) fn open(path: PathBuf, mistake: Mistake) -> Result<Self> {
        fs::create_dir_all(&path).map_err(unavailable)?;
        Ok(Self {
            path,
            mistake,
            counted_at_home: AtomicU64::new(0),
            turn: Arc::default(),
        })
    }

    /// Takes a step. It runs to its end even if the future is dropped.
    pub(crate) async fn step<T: Send + 'static>(
        self: &Arc<Self>,
        step: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T> {
        let folder = Arc::clone(self);
        let stepped = tokio::spawn(async move {
            // In turn: the lock of the file is given to any of the threads that wait for it, and a release would
            // wait behind the looks of all waiters, again and again.
            let turn = Arc::clone(&folder.turn).lock_owned().await;
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                folder.locked(step)
            })
            .await
        });
        match stepped.await.and_then(std::convert::identity) {
            Ok(outcome) => outcome.map_err(unavailable),
            Err(error) => Err(unavailable(error.into())),
        }
    }

    fn locked<T>(&self, step: impl FnOnce(&mut State) -> T) -> io::Result<T> {
        // Held until the file is closed, at the latest with the process.
        let lock = File::create(self.path.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let file = self.path.join("state.json");
        let (mut state, before) = match fs::read(&file) {
            Ok(text) => (serde_json::from_slice::<State>(&text)?, text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Default::default(),
            Err(error) => return Err(error),
        };
        state.mistake = self.mistake;
        state.at_home = self.counted_at_home.load(Ordering::Relaxed);
        state.catch_up(boot()?, since_boot());
        let outcome = step(&mut state);
        self.counted_at_home.store(state.at_home, Ordering::Relaxed);
        let after = serde_json::to_vec(&state)?;
        // Most looks of waiters change nothing.
        if after != before {
            let new = self.path.join("state.new");
            fs::write(&new, after)?;
            fs::rename(&new, &file)?;
        }
        Ok(outcome)
    }
}

impl State {
    /// Removes what has expired. Whatever an earlier start of the machine had has, too.
    fn catch_up(&mut self, boot: String, now: Duration) {
        self.now = now;
        if self.boot != boot {
            self.boot = boot;
            self.sessions.clear();
        }
        self.sessions.retain(|_, end| *end > now);
        let sessions = &self.sessions;
        for line in self.lines.values_mut() {
            line.retain(|place| sessions.contains_key(&place.session));
        }
        self.lines.retain(|_, line| !line.is_empty());
    }

    pub(crate) fn open(&mut self, ttl: Duration) -> u64 {
        self.last_session += 1;
        self.sessions.insert(self.last_session, self.now + ttl);
        self.last_session
    }

    pub(crate) fn lives(&self, session: u64) -> bool {
        self.sessions.contains_key(&session)
    }

    pub(crate) fn renew(&mut self, session: u64, ttl: Duration) -> bool {
        let end = self.sessions.get_mut(&session);
        end.map(|end| *end = self.now + ttl).is_some()
    }

    pub(crate) fn end(&mut self, session: u64) {
        self.sessions.remove(&session);
        for line in self.lines.values_mut() {
            line.retain(|place| place.session != session);
        }
    }

    /// Joins a line once, and returns the token if it is this ask's turn, else how many stand before it.
    pub(crate) fn stand(
        &mut self,
        path: &str,
        session: u64,
        nonce: u64,
        waits: bool,
    ) -> std::result::Result<u64, usize> {
        let line = self.lines.entry(path.to_owned()).or_default();
        let ahead = line.iter().position(|place| place.is(session, nonce));
        let ahead = ahead.unwrap_or(line.len());
        if ahead == line.len() {
            if !waits && ahead > 0 {
                return Err(ahead);
            }
            line.push_back(Place {
                session,
                nonce,
                token: None,
            });
        }
        if ahead > 0 {
            return Err(ahead);
        }
        let first = &mut line[0];
        if let Some(token) = first.token {
            return Ok(token);
        }
        let last = match self.mistake {
            Mistake::CountAtHome => &mut self.at_home,
            _ => &mut self.last_token,
        };
        *last += 1;
        first.token = Some(*last);
        Ok(*last)
    }

    /// Lets go of what is held; says whether it was.
    pub(crate) fn leave(&mut self, path: &str, session: u64, nonce: u64, token: u64) -> bool {
        let Some(line) = self.lines.get_mut(path) else {
            return false;
        };
        let held = line
            .front()
            .is_some_and(|it| it.is(session, nonce) && it.token == Some(token));
        if held || self.mistake == Mistake::ReleaseByName {
            line.pop_front();
        }
        held
    }

    pub(crate) fn withdraw(&mut self, path: &str, session: u64, nonce: u64) {
        if let Some(line) = self.lines.get_mut(path) {
            line.retain(|place| !place.is(session, nonce));
        }
    }

    /// Which of `nonces` hold nothing any more.
    pub(crate) fn missing(&self, session: u64, nonces: HashSet<u64>) -> Vec<u64> {
        let first = self.lines.values().filter_map(VecDeque::front);
        let held: HashSet<u64> = first
            .filter(|it| it.session == session && it.token.is_some())
            .map(|it| it.nonce)
            .collect();
        nonces.difference(&held).copied().collect()
    }
}

impl Place {
    fn is(&self, session: u64, nonce: u64) -> bool {
        self.session == session && self.nonce == nonce
    }
}

fn unavailable(error: io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "the folder of locks cannot be used").with_source(error)
}

/// The time since the machine started. It counts while the machine sleeps, and nobody can set it.
fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Which start of the machine this is.
fn boot() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
}
