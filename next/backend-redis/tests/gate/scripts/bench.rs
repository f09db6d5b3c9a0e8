//! A server under a virtual clock, the keys that it has after each script, and the model of sessions and markers: what the hunts
//! of keys and of work queues share.

use std::collections::{BTreeMap, BTreeSet};

use redis::Value;

use super::server::{ROOT, Scripts, Server, list, text};
use super::world::Random;

/// A request as a client sends it. It can be sent again at any later time.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) script: &'static str,
    pub(crate) operation: &'static str,
    pub(crate) session: String,
    pub(crate) epoch: u64,
    pub(crate) slot: &'static str,
    pub(crate) nonce: u64,
    pub(crate) own: Vec<String>,
}

/// The keys of the namespace, without its root.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    pub(crate) texts: BTreeMap<String, String>,
    hashes: BTreeMap<String, BTreeMap<String, String>>,
    sets: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Keys {
    fn read(state: &Value) -> (Self, Vec<(String, String)>) {
        let (mut keys, mut messages) = (Self::default(), Vec::new());
        for key in list(state) {
            let [name, kind, content] = list(key) else { continue };
            let (name, parts) = (text(name), list(content).iter().map(text).collect::<Vec<_>>());
            let pairs = || parts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
            match &*text(kind) {
                "hash" => drop(keys.hashes.insert(name, pairs().collect())),
                "zset" => {
                    let scores = pairs().map(|(member, score)| (member, score.parse().unwrap_or(f64::NAN)));
                    keys.sets.insert(name, scores.collect());
                }
                "list" => messages = pairs().collect(),
                _ => drop(keys.texts.insert(name, text(content))),
            }
        }
        keys.texts.remove("CLOCK");
        (keys, messages)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.texts.keys().chain(self.hashes.keys()).chain(self.sets.keys())
    }

    pub(crate) fn hash(&self, name: &str) -> BTreeMap<String, String> {
        self.hashes.get(name).cloned().unwrap_or_default()
    }

    pub(crate) fn set(&self, name: &str) -> BTreeMap<String, f64> {
        self.sets.get(name).cloned().unwrap_or_default()
    }

    pub(crate) fn field(&self, hash: &str, field: &str) -> Option<&str> {
        self.hashes.get(hash)?.get(field).map(String::as_str)
    }

    /// Lists the entries of all sessions: session, field, entry.
    pub(crate) fn entries(&self) -> Vec<(String, String, String)> {
        let mut entries = Vec::new();
        for (name, fields) in &self.hashes {
            if let Some(session) = name.strip_prefix("held/").or_else(|| name.strip_prefix("kept/")) {
                let entry = |(field, entry): (&String, &String)| (session.to_owned(), field.clone(), entry.clone());
                entries.extend(fields.iter().map(entry));
            }
        }
        entries
    }
}

/// A session, as the store has to know it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Session {
    pub(crate) epoch: u64,
    pub(crate) deadline: u64,
    ttl: u64,
    renewals: u64,
    pub(crate) detached: bool,
    next: u64,
    resumed: Option<String>,
    /// By slot: operation, nonce, result.
    pub(crate) slots: BTreeMap<String, (String, u64, String)>,
}

/// The process of a session.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) epoch: u64,
    pub(crate) next_nonce: u64,
    pub(crate) ttl: u64,
    renews: u64,
    /// Until when it is paused.
    pub(crate) paused: u64,
    /// When each of its requests that wait looks again.
    pub(crate) looks: BTreeMap<u64, u64>,
}

/// How a session lets a request in.
pub(crate) enum Entered {
    Refused(&'static str),
    /// An earlier attempt had this result.
    Before(String),
    New,
}

pub(crate) struct Bench<'a> {
    pub(crate) server: &'a mut Server,
    scripts: Scripts,
    pub(crate) random: Random,
    pub(crate) now: u64,
    pub(crate) steps: u64,
    pub(crate) log: Vec<String>,
    pub(crate) before: Keys,
    pub(crate) keys: Keys,
    /// The messages of the last script: channel and text.
    pub(crate) messages: Vec<(String, String)>,
    pub(crate) sessions: BTreeMap<String, Session>,
    pub(crate) clients: BTreeMap<String, Client>,
    pub(crate) last_epoch: u64,
    /// Whether a renewal that finds work due does it.
    pub(crate) renewals_sweep: bool,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(server: &'a mut Server, scripts: Scripts, seed: u64) -> Self {
        server.run(&redis::cmd("FLUSHALL"));
        let mut random = Random(seed);
        let mut bench = Self {
            server,
            scripts,
            now: 0,
            steps: 0,
            log: Vec::new(),
            before: Keys::default(),
            keys: Keys::default(),
            messages: Vec::new(),
            sessions: BTreeMap::new(),
            clients: BTreeMap::new(),
            last_epoch: 1,
            renewals_sweep: random.percent(50),
            random,
        };
        bench.set_clock(1_795_000_000_000_000);
        bench
    }

    pub(crate) fn set_clock(&mut self, now: u64) {
        self.now = now;
        self.server.run(redis::cmd("SET").arg(format!("{ROOT}CLOCK")).arg(now));
    }

    /// Returns the failure with the seed and the last steps; with all of them if one seed is repeated.
    pub(crate) fn report(&self, seed: u64, failure: &str) -> String {
        let most = std::env::var("TENURE_SEED").map_or(25, |_| usize::MAX);
        let tail = self.log.len().saturating_sub(most);
        format!(
            "{failure}\nseed {seed}, the last steps:\n{}",
            self.log[tail..].join("\n")
        )
    }

    /// Runs a script, and reads all keys.
    pub(crate) fn send(&mut self, request: &Request) -> Result<Vec<String>, String> {
        self.steps += 1;
        let Request {
            operation,
            session,
            epoch,
            slot,
            nonce,
            own,
            ..
        } = request;
        let arguments = [
            (*operation).to_owned(),
            session.clone(),
            epoch.to_string(),
            (*slot).to_owned(),
            nonce.to_string(),
        ];
        let answer = self
            .server
            .script(&self.scripts, request.script, arguments.iter().chain(own));
        let line = format!(
            "{} {operation} {session} {epoch} {slot}.{nonce} {own:?}",
            self.now % 1_000_000_000
        );
        let answer = answer.map_err(|error| format!("{line} failed: {error}"))?;
        let answer: Vec<_> = list(&answer).iter().map(text).collect();
        self.log.push(format!("{line} -> {answer:?}"));
        let state = self.server.script(&self.scripts, "keys", std::iter::empty::<&String>());
        let (keys, messages) = Keys::read(&state.map_err(|error| error.to_string())?);
        self.before = std::mem::replace(&mut self.keys, keys);
        self.messages = messages;
        Ok(answer)
    }

    pub(crate) fn lives(&self, session: &str) -> bool {
        self.sessions
            .get(session)
            .is_some_and(|session| session.deadline > self.now)
    }

    pub(crate) fn is_detached(&self, session: &str) -> bool {
        self.sessions.get(session).is_some_and(|session| session.detached)
    }

    pub(crate) fn acts(&self, session: &str) -> bool {
        self.clients
            .get(session)
            .is_some_and(|client| client.paused <= self.now)
    }

    /// Returns a client that is not paused.
    pub(crate) fn pick_client(&mut self) -> Option<String> {
        let acting: Vec<_> = self
            .clients
            .keys()
            .filter(|session| self.acts(session))
            .cloned()
            .collect();
        self.random.pick(&acting)
    }

    /// Describes a request of a client. One with a slot has a nonce of its own.
    pub(crate) fn request(
        &mut self,
        session: &str,
        script: &'static str,
        operation: &'static str,
        own: Vec<String>,
    ) -> Request {
        let epoch = self.clients.get(session).map_or(0, |client| client.epoch);
        Request {
            script,
            operation,
            session: session.to_owned(),
            epoch,
            slot: "",
            nonce: 0,
            own,
        }
    }

    pub(crate) fn marked(
        &mut self,
        session: &str,
        script: &'static str,
        operation: &'static str,
        own: Vec<String>,
    ) -> Request {
        let slot = self.random.pick(&["1", "2", "3"]).unwrap_or("1");
        let nonce = self.next_nonce(session);
        Request {
            slot,
            nonce,
            ..self.request(session, script, operation, own)
        }
    }

    pub(crate) fn next_nonce(&mut self, session: &str) -> u64 {
        let Some(client) = self.clients.get_mut(session) else {
            return 0;
        };
        client.next_nonce += 1;
        client.next_nonce - 1
    }

    /// The next request comes over a new connection.
    pub(crate) fn replace_link(&mut self, session: &str) {
        self.last_epoch += 1;
        if let Some(client) = self.clients.get_mut(session) {
            client.epoch = self.last_epoch;
        }
    }

    /// Says how the session lets a request in, and notes its epoch.
    pub(crate) fn enter(&mut self, request: &Request, grants: bool) -> Entered {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&request.session) else {
            return Entered::Refused("lost");
        };
        if request.epoch < session.epoch {
            return Entered::Refused("stale");
        } else if session.detached {
            return Entered::Refused("detached");
        }
        session.epoch = request.epoch;
        if grants && session.deadline <= now {
            return Entered::Refused("lost");
        }
        match session.slots.get(request.slot) {
            Some((operation, nonce, result)) if operation == request.operation && *nonce == request.nonce => {
                Entered::Before(result.clone())
            }
            Some((_, nonce, _)) if *nonce > request.nonce => Entered::Refused("late"),
            _ => Entered::New,
        }
    }

    /// Notes the result of a step under its slot.
    pub(crate) fn remember(&mut self, request: &Request, result: &str) {
        if let Some(session) = self.sessions.get_mut(&request.session) {
            let memory = (request.operation.to_owned(), request.nonce, result.to_owned());
            session.slots.insert(request.slot.to_owned(), memory);
        }
    }

    /// Says what a step of the lease has to be answered, and does it. Only as many fields as are listed are compared.
    pub(crate) fn expect(&mut self, request: &Request) -> Vec<String> {
        let now = self.now;
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let own = |index: usize| request.own.get(index).map_or("", String::as_str);
        let number = |text: &str| text.parse::<u64>().unwrap_or_default();
        if request.operation == "open" {
            // What a dead session had is gone before its record.
            if self.sessions.contains_key(&request.session) {
                return words(&["taken"]);
            }
            let (ttl, epoch) = (number(own(0)), request.epoch);
            let session = Session {
                epoch,
                ttl,
                deadline: now + ttl * 1000,
                ..Session::default()
            };
            self.sessions.insert(request.session.clone(), session);
            return words(&["ok"]);
        }
        let Some(session) = self.sessions.get_mut(&request.session) else {
            return words(&[match request.operation {
                "revoke" => "ok",
                "end" => "gone",
                _ => "lost",
            }]);
        };
        let (dead, older) = (session.deadline <= now, request.epoch < session.epoch);
        match request.operation {
            "end" => session.deadline = 0,
            "revoke" if older => return words(&["stale"]),
            "revoke" => {
                (session.epoch, session.deadline) = (request.epoch, 0);
                return Vec::new();
            }
            _ if dead => return words(&["lost"]),
            "resume" if session.detached => {
                if self.keys.hashes.contains_key(&format!("held/{}", request.session)) {
                    return words(&["sweep"]);
                }
                session.epoch = request.epoch.max(session.epoch + 1);
                (session.detached, session.resumed) = (false, Some(own(0).to_owned()));
                return vec![
                    "ok".into(),
                    session.epoch.to_string(),
                    session.ttl.to_string(),
                    session.next.to_string(),
                ];
            }
            "resume" if session.resumed.as_deref() != Some(own(0)) => return words(&["conflict"]),
            "resume" => return vec!["ok".into(), session.epoch.to_string()],
            _ if older => return words(&["stale"]),
            "renew" if session.detached => return words(&["detached"]),
            "renew" => {
                let known = session.renewals;
                session.renewals = number(own(1)).max(known) + 1;
                (session.epoch, session.deadline) = (request.epoch, now + number(own(0)) * 1000);
                return vec!["ok".into(), known.to_string()];
            }
            // Entries that are kept are named by earlier scripts and by the last one.
            _ if session.detached => {}
            _ => {
                session.epoch = request.epoch;
                if own(0) == "1" {
                    (session.detached, session.next) = (true, number(own(1)));
                    return Vec::new();
                }
            }
        }
        words(&["ok"])
    }

    /// Compares the records with the model: a record goes when its session is dead, and nothing else changes by itself.
    pub(crate) fn check_sessions(&mut self) -> Result<(), String> {
        let due = self.keys.set("deadlines");
        for (id, session) in self.sessions.clone() {
            let record = self.keys.hash(&format!("session/{id}"));
            if record.is_empty() {
                if session.deadline > self.now {
                    return Err(format!("{id} lives, and its record is gone"));
                }
                self.sessions.remove(&id);
                continue;
            }
            let fact = |field: &str| record.get(field).map_or("", String::as_str);
            let mut deadline = session.deadline;
            if fact("deadline") == "0" && deadline <= self.now {
                deadline = 0;
            }
            let slots = record.iter().filter_map(|(field, memory)| {
                let slot = field.strip_prefix('d').filter(|slot| slot.len() == 1)?;
                let mut parts = memory.splitn(3, ' ');
                let mut part = || parts.next().unwrap_or_default().to_owned();
                let (operation, nonce, result) = (part(), part(), part());
                Some((slot.to_owned(), (operation, nonce.parse().unwrap_or_default(), result)))
            });
            let slots: BTreeMap<_, _> = slots.collect();
            let same = fact("epoch") == session.epoch.to_string()
                && fact("deadline") == deadline.to_string()
                && fact("renewals") == session.renewals.to_string()
                && record.contains_key("detached") == session.detached
                && slots == session.slots;
            if !same {
                return Err(format!("the record of {id} is {record:?}, not {session:?}"));
            }
            if let Some(known) = self.sessions.get_mut(&id) {
                known.deadline = deadline;
            }
            match due.get(&format!("s/{id}")) {
                Some(at) if *at <= deadline.max(self.now) as f64 => {}
                at => return Err(format!("the end of {id}, {deadline}, is due at {at:?}")),
            }
            if session.detached
                && self.keys.hashes.contains_key(&format!("held/{id}"))
                && !due.contains_key(&format!("d/{id}"))
            {
                return Err(format!("what the detached {id} did not keep is never freed"));
            }
        }
        let owners = self
            .keys
            .entries()
            .into_iter()
            .map(|(session, ..)| session)
            .collect::<BTreeSet<_>>();
        let records = self.keys.hashes.keys().filter_map(|name| name.strip_prefix("session/"));
        match owners
            .iter()
            .map(String::as_str)
            .chain(records)
            .find(|session| !self.sessions.contains_key(*session))
        {
            Some(stray) => Err(format!("there are keys of {stray}, which has ended")),
            None => Ok(()),
        }
    }

    /// Adds a client, whose session is not open yet. Returns the request that opens it.
    pub(crate) fn open(&mut self) -> Request {
        let session = format!("{:08x}", self.random.next() >> 32);
        let ttl = self.random.pick(&[1_000, 3_000, 60_000]).unwrap_or(1_000);
        self.last_epoch += 1;
        let client = Client {
            epoch: self.last_epoch,
            next_nonce: 1,
            ttl,
            renews: self.now + ttl * 1000 / 3,
            paused: 0,
            looks: BTreeMap::new(),
        };
        self.clients.insert(session.clone(), client);
        self.request(&session, "lease", "open", vec![ttl.to_string(), String::new()])
    }

    /// Pauses a client for about as long as its lease lasts.
    pub(crate) fn pause(&mut self, session: &str) {
        let share = 50 + self.random.below(100);
        if let Some(client) = self.clients.get_mut(session) {
            client.paused = self.now + client.ttl * 10 * share;
        }
    }

    /// Moves the clock to the next timer of a client, at most to `until`. Returns its session, and the nonce of a look.
    pub(crate) fn next_timer(&mut self, until: u64) -> Option<(String, Option<u64>)> {
        let timers = self.clients.iter().flat_map(|(session, client)| {
            let at = move |time: &u64| (*time).max(client.paused);
            let looks = client
                .looks
                .iter()
                .map(move |(nonce, time)| (at(time), session, Some(*nonce)));
            looks.chain([(at(&client.renews), session, None)])
        });
        let next = timers.filter(|(at, ..)| *at <= until).min();
        let next = next.map(|(at, session, nonce)| (at, session.clone(), nonce));
        let at = next.as_ref().map_or(until, |(at, ..)| *at);
        if at > self.now {
            self.set_clock(at);
        }
        next.map(|(_, session, nonce)| (session, nonce))
    }

    /// Describes a renewal.
    pub(crate) fn renewal(&mut self, session: &str) -> Request {
        let now = self.now;
        let renewals = self.sessions.get(session).map_or(0, |session| session.renewals);
        let ttl = self.clients.get_mut(session).map_or(0, |client| {
            client.renews = now + client.ttl * 1000 / 3;
            client.ttl
        });
        self.request(session, "lease", "renew", vec![ttl.to_string(), renewals.to_string()])
    }

    pub(crate) fn sweep(&self) -> Request {
        let (session, own) = (String::new(), Vec::new());
        Request {
            script: "sweep",
            operation: "sweep",
            session,
            epoch: 0,
            slot: "",
            nonce: 0,
            own,
        }
    }

    /// Describes the last script of a detachment that keeps `kept`.
    pub(crate) fn detachment(&mut self, session: &str, kept: &[u64]) -> Request {
        let next = self.clients.get(session).map_or(0, |client| client.next_nonce);
        let mut own = vec!["1".to_owned(), next.to_string()];
        own.extend(kept.iter().map(u64::to_string));
        self.request(session, "sweep", "detach", own)
    }
}

/// Compares an answer with the fields that it has to begin with.
pub(crate) fn compare(request: &Request, answer: &[String], expected: &[String]) -> Result<(), String> {
    match answer.starts_with(expected) {
        true => Ok(()),
        false => Err(format!("{request:?} was answered {answer:?}, not {expected:?}")),
    }
}
