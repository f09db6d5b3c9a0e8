//! Random schedules of transactional memory. The model knows every key, revision and marker, and says each answer in full.

use std::collections::{BTreeMap, BTreeSet};

use super::bench::{Bench, Entered, Request, compare};
use super::server::{Scripts, Server};

/// The keys. Two are barriers, which live in the same way.
const PATHS: [&str; 5] = ["data/a", "data/b", "data/a b", "barrier/a", "barrier/b"];

/// Values that are compared byte by byte, and some that look like what is stored before a value.
const VALUES: [&str; 8] = ["", "1", "10", "9", "9\n", "1 2 3 -\n", "z", "- x data/a"];

/// The objects that are locked for fences.
const LOCKS: [&str; 2] = ["lock/l", "rw_lock/l"];

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    created: u64,
    modified: u64,
    version: u64,
    /// The session that it ends with, or `-`.
    owner: String,
    value: String,
}

impl Key {
    fn read(stored: &str) -> Option<Self> {
        let (head, value) = stored.split_once('\n')?;
        let [created, modified, version, owner] = head.split(' ').collect::<Vec<_>>().try_into().ok()?;
        Some(Self {
            created: created.parse().ok()?,
            modified: modified.parse().ok()?,
            version: version.parse().ok()?,
            owner: owner.to_owned(),
            value: value.to_owned(),
        })
    }
}

#[derive(Clone, Debug)]
struct Fence {
    path: String,
    nonce: u64,
    token: String,
    alone: bool,
}

#[derive(Clone, Debug)]
struct Compare {
    path: String,
    target: &'static str,
    relation: &'static str,
    wanted: String,
}

/// An operation: `get`, `put`, `lease` or `delete`.
#[derive(Clone, Debug)]
struct Operation {
    what: &'static str,
    path: String,
    value: String,
}

#[derive(Clone, Debug)]
struct Commit {
    fence: Option<Fence>,
    compares: Vec<Compare>,
    branches: [Vec<Operation>; 2],
}

impl Commit {
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["1".to_owned()];
        match &self.fence {
            None => arguments.push(String::new()),
            Some(Fence {
                path,
                nonce,
                token,
                alone,
            }) => {
                let alone = u8::from(*alone).to_string();
                arguments.extend([path.clone(), nonce.to_string(), token.clone(), alone, String::new()]);
            }
        }
        arguments.push(self.compares.len().to_string());
        for Compare {
            path,
            target,
            relation,
            wanted,
        } in &self.compares
        {
            arguments.extend([path, *target, *relation, wanted].map(str::to_owned));
        }
        for branch in &self.branches {
            arguments.push(branch.len().to_string());
            for Operation { what, path, value } in branch {
                arguments.extend([*what, path].map(str::to_owned));
                if matches!(*what, "put" | "lease") {
                    arguments.push(value.clone());
                }
            }
        }
        arguments
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read {
        paths: Vec<(String, String)>,
        bytes: usize,
    },
    Commit(Commit),
    Resolve,
    /// A step of a lock: only its entries matter here.
    Lock,
    /// A step of the lease.
    Lease,
    /// A part of the sweep, a revocation or a detachment: it frees what has ended.
    Sweep,
}

/// All keys at one revision, as a reader may remember them.
struct Snapshot {
    revision: u64,
    keys: BTreeMap<String, Key>,
}

struct World<'a> {
    bench: Bench<'a>,
    keys: BTreeMap<String, Key>,
    revision: u64,
    removed: u64,
    /// The holdings: path, token and mode by session and nonce.
    holdings: BTreeMap<(String, u64), (String, String, String)>,
    snapshots: Vec<Snapshot>,
    /// All requests so far, those included that were not sent yet.
    requests: Vec<(Request, Step)>,
}

/// Runs the schedule of `seed`. Returns its number of steps, or what was wrong and the last steps.
pub(crate) fn run(server: &mut Server, scripts: Scripts, seed: u64) -> Result<u64, String> {
    let mut world = World {
        bench: Bench::new(server, scripts, seed),
        keys: BTreeMap::new(),
        revision: 0,
        removed: 0,
        holdings: BTreeMap::new(),
        snapshots: Vec::new(),
        requests: Vec::new(),
    };
    let length = [40, 120, 300][(seed % 3) as usize];
    let done = (0..length).try_for_each(|_| world.act()).and_then(|()| world.calm());
    done.map(|()| world.bench.steps)
        .map_err(|failure| world.bench.report(seed, &failure))
}

impl World<'_> {
    fn act(&mut self) -> Result<(), String> {
        while self.bench.clients.len() < 4 {
            let open = self.bench.open();
            self.perform(&open, &Step::Lease)?;
        }
        let Some(session) = self.bench.pick_client() else {
            return self.pass(100_000);
        };
        match self.bench.random.below(1000) {
            ..300 => self.commit(&session)?,
            300..400 => self.read(&session)?,
            400..450 => {
                // What became of a commit, which may arrive after the question.
                let mut marks = self
                    .requests
                    .iter()
                    .filter(|(request, step)| request.session == session && matches!(step, Step::Commit(_)));
                if let Some((commit, _)) = marks.next_back() {
                    let resolve = Request {
                        operation: "resolve",
                        own: Vec::new(),
                        ..commit.clone()
                    };
                    let epoch = self.bench.clients[&session].epoch;
                    self.perform(&Request { epoch, ..resolve }, &Step::Resolve)?;
                }
            }
            450..540 => {
                let requests = self.requests.clone();
                if let Some((request, step)) = self.bench.random.pick(&requests) {
                    self.perform(&request, &step)?;
                }
            }
            540..620 => self.lock(&session)?,
            620..640 => {
                let holdings: Vec<_> = self.holdings.clone().into_iter().collect();
                if let Some((_, (path, token, _))) = self.bench.random.pick(&holdings) {
                    let own = vec![path, token];
                    let request = Request {
                        script: "admin",
                        operation: "break",
                        own,
                        ..self.bench.sweep()
                    };
                    self.perform(&request, &Step::Lock)?;
                }
            }
            640..655 => {
                self.bench.clients.remove(&session);
            }
            655..680 => self.bench.pause(&session),
            680..700 => self.revoke(&session)?,
            700..720 => self.detach(&session)?,
            720..735 => {
                let end = self.bench.request(&session, "admin", "end", Vec::new());
                self.perform(&end, &Step::Lease)?;
            }
            735..770 => self.bench.replace_link(&session),
            770..800 => drop(self.sweep()?),
            800..810 => drop(self.bench.server.run(redis::cmd("SCRIPT").arg("FLUSH"))),
            810..830 => {
                let back = self.bench.random.pick(&[1_000, 400_000, 2_000_000]).unwrap_or(1_000);
                self.bench.set_clock(self.bench.now - back);
                // A session that ended unseen may live again.
                self.snapshots.clear();
            }
            _ => {
                let periods = [1_000, 20_000, 250_000, 700_000, 3_000_000];
                let period = self.bench.random.pick(&periods).unwrap_or(1_000);
                self.pass(period)?;
            }
        }
        match self.bench.random.percent(30) {
            true => self.pass(1_000),
            false => Ok(()),
        }
    }

    fn pass(&mut self, micros: u64) -> Result<(), String> {
        let until = self.bench.now + micros;
        while let Some((session, _)) = self.bench.next_timer(until) {
            let renewal = self.bench.renewal(&session);
            let answer = self.perform(&renewal, &Step::Lease)?;
            match &*answer[0] {
                "ok" if answer[2] == "1" && self.bench.renewals_sweep => drop(self.sweep()?),
                "ok" => {}
                _ => drop(self.bench.clients.remove(&session)),
            }
        }
        Ok(())
    }

    /// One step of the sweep. Returns whether more is due.
    fn sweep(&mut self) -> Result<bool, String> {
        let sweep = self.bench.sweep();
        Ok(self.perform(&sweep, &Step::Sweep)?[0] == "more")
    }

    fn revoke(&mut self, session: &str) -> Result<(), String> {
        let revoke = self.bench.request(session, "sweep", "revoke", Vec::new());
        self.bench.clients.remove(session);
        while self.perform(&revoke, &Step::Sweep)?[0] == "more" && self.bench.random.percent(90) {}
        Ok(())
    }

    /// Detaches, and resumes later, perhaps. Leased keys end with the detachment.
    fn detach(&mut self, session: &str) -> Result<(), String> {
        let held = self
            .holdings
            .keys()
            .filter(|(owner, _)| owner == session)
            .map(|(_, nonce)| *nonce);
        let mut kept: Vec<_> = held.collect();
        kept.truncate(self.bench.random.below(3) as usize);
        let detachment = self.bench.detachment(session, &kept);
        let Some(client) = self.bench.clients.remove(session) else {
            return Ok(());
        };
        if self.perform(&detachment, &Step::Sweep)?[0] == "lost" || self.bench.random.percent(30) {
            return Ok(());
        }
        // An operator breaks what is kept, now and then.
        let place = kept
            .first()
            .and_then(|nonce| self.holdings.get(&(session.to_owned(), *nonce)).cloned());
        if let Some((path, token, _)) = place.filter(|_| self.bench.random.percent(30)) {
            let own = vec![path, token];
            let request = Request {
                script: "admin",
                operation: "break",
                own,
                ..self.bench.sweep()
            };
            self.perform(&request, &Step::Lock)?;
        }
        let away = self.bench.random.pick(&[1_000, 200_000, 700_000]).unwrap_or_default();
        self.pass(away)?;
        self.bench.clients.insert(session.to_owned(), client);
        let by = format!("by {}", self.bench.steps);
        let resume = self.bench.request(session, "lease", "resume", vec![by]);
        for _ in 0..100 {
            let answer = self.perform(&resume, &Step::Lease)?;
            match &*answer[0] {
                "sweep" => drop(self.sweep()?),
                "ok" => {
                    let epoch = answer[1].parse().unwrap_or_default();
                    self.bench.last_epoch = self.bench.last_epoch.max(epoch);
                    if let Some(client) = self.bench.clients.get_mut(session) {
                        client.epoch = epoch;
                    }
                    return Ok(());
                }
                _ => {
                    self.bench.clients.remove(session);
                    return Ok(());
                }
            }
        }
        Err(format!("{session} is never resumed"))
    }

    fn lock(&mut self, session: &str) -> Result<(), String> {
        let held: Vec<_> = self
            .holdings
            .iter()
            .filter(|((owner, _), _)| owner == session)
            .collect();
        let held: Vec<_> = held
            .into_iter()
            .map(|((_, nonce), place)| (*nonce, place.clone()))
            .collect();
        if let Some((nonce, (path, token, _))) = self.bench.random.pick(&held).filter(|_| self.bench.random.percent(40))
        {
            let own = vec![nonce.to_string(), path, token];
            let leave = self.bench.marked(session, "wait", "leave", own);
            self.perform(&leave, &Step::Lock)?;
            return Ok(());
        }
        let path = self.bench.random.pick(&LOCKS).unwrap_or_default();
        let mode = if path.starts_with("rw") && self.bench.random.percent(70) {
            "s"
        } else {
            "x"
        };
        let nonce = self.bench.next_nonce(session);
        let own = [path, mode, "try", ""].map(str::to_owned).to_vec();
        let join = Request {
            nonce,
            ..self.bench.request(session, "wait", "join", own)
        };
        self.perform(&join, &Step::Lock).map(drop)
    }

    fn read(&mut self, session: &str) -> Result<(), String> {
        let mut paths = Vec::new();
        for _ in 0..=self.bench.random.below(5) {
            let path = self.bench.random.pick(&PATHS).unwrap_or_default();
            let modified = self.keys.get(path).map_or(7, |key| key.modified);
            let known = self
                .bench
                .random
                .pick(&["-".to_owned(), String::new(), modified.to_string()]);
            paths.push((path.to_owned(), known.unwrap_or_default()));
        }
        let bytes = self.bench.random.pick(&[0, 3, 1000]).unwrap_or(1000);
        let own = std::iter::once(bytes.to_string())
            .chain(paths.iter().flat_map(|(path, known)| [path.clone(), known.clone()]));
        let own = own.collect();
        let read = self.bench.request(session, "kv", "read", own);
        self.perform(&read, &Step::Read { paths, bytes }).map(drop)
    }

    fn random_path(&mut self) -> String {
        self.bench.random.pick(&PATHS).unwrap_or_default().to_owned()
    }

    fn branch(&mut self) -> Vec<Operation> {
        let mut branch = Vec::new();
        for _ in 0..self.bench.random.below(4) {
            let what = self
                .bench
                .random
                .pick(&["get", "put", "put", "lease", "lease", "delete"])
                .unwrap_or("get");
            let value = self.bench.random.pick(&VALUES).unwrap_or_default().to_owned();
            let path = self.random_path();
            branch.push(Operation { what, path, value });
        }
        branch
    }

    fn compare(&mut self) -> Compare {
        let path = self.random_path();
        let target = self
            .bench
            .random
            .pick(&["value", "version", "created", "modified"])
            .unwrap_or("value");
        let relation = self.bench.random.pick(&["=", "=", "!", "<", ">"]).unwrap_or("=");
        let known = self.keys.get(&path).cloned();
        let wanted = match (target, known.filter(|_| self.bench.random.percent(70))) {
            ("value", Some(key)) => key.value,
            ("value", None) => self.bench.random.pick(&VALUES).unwrap_or_default().to_owned(),
            (_, None) => self.bench.random.below(3).to_string(),
            ("version", Some(key)) => key.version.to_string(),
            ("created", Some(key)) => key.created.to_string(),
            (_, Some(key)) => key.modified.to_string(),
        };
        Compare {
            path,
            target,
            relation,
            wanted,
        }
    }

    fn commit(&mut self, session: &str) -> Result<(), String> {
        let mut held: Vec<_> = self.holdings.clone().into_iter().collect();
        // Mostly its own.
        held.retain(|((owner, _), _)| owner == session || self.bench.random.percent(10));
        let fence = self
            .bench
            .random
            .pick(&held)
            .filter(|_| self.bench.random.percent(60))
            .map(|((_, nonce), place)| {
                let (path, mut token, _) = place;
                if self.bench.random.percent(10) {
                    token = "1".into();
                }
                let path = if self.bench.random.percent(5) {
                    "lock/other".into()
                } else {
                    path
                };
                Fence {
                    path,
                    nonce,
                    token,
                    alone: self.bench.random.percent(50),
                }
            });
        let compares = (0..self.bench.random.below(3)).map(|_| self.compare()).collect();
        let commit = Commit {
            fence,
            compares,
            branches: [self.branch(), self.branch()],
        };
        let request = self.bench.marked(session, "kv", "commit", commit.arguments());
        // One of five is late: it arrives after what its client sends next, or never.
        if self.bench.random.percent(20) {
            self.requests.push((request, Step::Commit(commit)));
            return Ok(());
        }
        self.perform(&request, &Step::Commit(commit)).map(drop)
    }

    /// Sends a request, and compares the answer and all keys with the model.
    fn perform(&mut self, request: &Request, step: &Step) -> Result<Vec<String>, String> {
        if !matches!(request.operation, "sweep" | "break") {
            self.requests.push((request.clone(), step.clone()));
            let excess = self.requests.len().saturating_sub(60);
            self.requests.drain(..excess);
        }
        let known = (self.keys.clone(), self.revision);
        let expected = match step {
            Step::Read { paths, bytes } => self.expect_read(request, paths, *bytes),
            Step::Commit(commit) => self.expect_commit(request, commit),
            Step::Resolve => self.expect_resolve(request),
            Step::Lease => self.bench.expect(request),
            Step::Sweep if request.operation == "sweep" => Vec::new(),
            Step::Sweep => self.bench.expect(request),
            Step::Lock => match self.bench.enter(request, request.operation == "join") {
                _ if request.operation == "break" => Vec::new(),
                Entered::Refused(word) => vec![word.to_owned()],
                _ => Vec::new(),
            },
        };
        let answer = self.bench.send(request)?;
        compare(request, &answer, &expected)?;
        if matches!(step, Step::Read { .. } | Step::Commit(_)) && answer.len() != expected.len() {
            return Err(format!("{request:?} was answered {answer:?}, not {expected:?}"));
        }
        if matches!(step, Step::Lock) {
            self.note_lock(request, &answer);
        }
        self.check(step, &known.0, known.1)?;
        if let Step::Read { paths, .. } = step
            && answer[0] == "ok"
        {
            self.check_snapshots(paths, &answer)?;
        }
        Ok(answer)
    }

    fn is_dead(&self, owner: &str) -> bool {
        owner != "-" && !self.bench.lives(owner)
    }

    fn next_revision(&mut self) -> u64 {
        self.revision = (self.revision + 1).max(self.bench.now);
        self.revision
    }

    /// Reads a key as a step has to: one whose session is dead is removed.
    fn find(&mut self, path: &str) -> Option<Key> {
        let key = self.keys.get(path)?.clone();
        if !self.is_dead(&key.owner) {
            return Some(key);
        }
        self.keys.remove(path);
        self.removed = self.next_revision();
        None
    }

    fn expect_read(&mut self, request: &Request, paths: &[(String, String)], bytes: usize) -> Vec<String> {
        if let Entered::Refused(word) = self.bench.enter(request, false) {
            return vec![word.to_owned()];
        }
        let (mut entries, mut bytes, mut first_end) = (Vec::new(), bytes as i64, None);
        for (index, (path, known)) in paths.iter().enumerate() {
            let Some(key) = self.find(path) else {
                entries.extend(["0", "0", "0", ""].map(str::to_owned));
                continue;
            };
            let wanted = known != "-" && *known != key.modified.to_string();
            if wanted {
                bytes -= key.value.len() as i64;
                if bytes < 0 && index > 0 {
                    break;
                }
            }
            if key.owner != "-" {
                let rest = self.bench.sessions[&key.owner].deadline - self.bench.now;
                first_end = Some(first_end.unwrap_or(u64::MAX).min(rest.div_ceil(1000)));
            }
            entries.extend([key.created, key.modified, key.version].map(|number| number.to_string()));
            entries.push(if wanted { key.value } else { String::new() });
        }
        let first_end = first_end.map_or_else(String::new, |rest| rest.to_string());
        let mut answer = vec![
            "ok".to_owned(),
            self.revision.to_string(),
            self.removed.to_string(),
            first_end,
        ];
        answer.extend(entries);
        answer
    }

    fn expect_commit(&mut self, request: &Request, commit: &Commit) -> Vec<String> {
        match self.bench.enter(request, true) {
            Entered::Refused(word) => return vec![word.to_owned()],
            Entered::Before(result) => {
                let word = match &*result {
                    "fence" => "fence",
                    "aborted" => "late",
                    _ => "again",
                };
                return vec![word.to_owned()];
            }
            Entered::New => {}
        }
        let me = &request.session;
        let holds = commit.fence.as_ref().is_none_or(|fence| {
            let holding = self.holdings.get(&(me.clone(), fence.nonce));
            holding.is_some_and(|(path, token, mode)| {
                *path == fence.path && *token == fence.token && !(fence.alone && mode == "s")
            })
        });
        if !holds {
            self.bench.remember(request, "fence");
            return vec!["fence".to_owned()];
        }
        let mut succeeded = true;
        for compare in &commit.compares {
            let key = self.find(&compare.path);
            succeeded &= holds_for(key.as_ref(), compare);
        }
        let branch = &commit.branches[usize::from(!succeeded)];
        for operation in branch {
            self.find(&operation.path);
        }
        if branch.iter().any(|operation| operation.what != "get") {
            self.next_revision();
        }
        let revision = self.revision;
        let mut answer = vec!["done".to_owned(), revision.to_string(), u8::from(succeeded).to_string()];
        for Operation { what, path, value } in branch {
            let key = self.keys.get(path).cloned();
            match (*what, key) {
                ("get", None) => answer.extend(["0", "0", "0", ""].map(str::to_owned)),
                ("get", Some(key)) => {
                    answer.extend([key.created, key.modified, key.version].map(|number| number.to_string()));
                    answer.push(key.value);
                }
                ("delete", key) => {
                    self.keys.remove(path);
                    self.removed = if key.is_some() { revision } else { self.removed };
                }
                (what, key) => {
                    let written = Key {
                        created: key.as_ref().map_or(revision, |key| key.created),
                        modified: revision,
                        version: key.map_or(0, |key| key.version) + 1,
                        owner: if what == "lease" { me.clone() } else { "-".to_owned() },
                        value: value.clone(),
                    };
                    self.keys.insert(path.clone(), written);
                }
            }
        }
        self.bench
            .remember(request, &format!("{revision} {}", u8::from(succeeded)));
        answer
    }

    fn expect_resolve(&mut self, request: &Request) -> Vec<String> {
        if let Entered::Refused(word) = self.bench.enter(request, false) {
            return vec![word.to_owned()];
        }
        let slots = self.bench.sessions.get(&request.session).map(|session| &session.slots);
        if let Some((operation, nonce, result)) = slots.and_then(|slots| slots.get(request.slot))
            && operation == "commit"
            && *nonce == request.nonce
            && let Some((revision, succeeded)) = result.split_once(' ')
        {
            return ["committed", revision, succeeded].map(str::to_owned).to_vec();
        }
        self.bench.remember(
            &Request {
                operation: "commit",
                ..request.clone()
            },
            "aborted",
        );
        vec!["aborted".to_owned()]
    }

    /// Follows the holdings, which the hunt of wait queues checks.
    fn note_lock(&mut self, request: &Request, answer: &[String]) {
        match (request.operation, &*answer[0]) {
            ("join", "granted") => {
                let place = (request.own[0].clone(), answer[1].clone(), request.own[1].clone());
                self.holdings.insert((request.session.clone(), request.nonce), place);
            }
            ("leave", "left") => {
                let nonce = request.own[0].parse().unwrap_or_default();
                // A repeated release answers from its slot, and ends nothing.
                let entry = self
                    .bench
                    .keys
                    .field(&format!("held/{}", request.session), &request.own[0]);
                if entry.is_none() {
                    self.holdings.remove(&(request.session.clone(), nonce));
                }
                self.bench.remember(request, &answer[1]);
            }
            ("break", "ok") => {
                let nonce = answer[2].parse().unwrap_or_default();
                self.holdings.remove(&(answer[1].clone(), nonce));
            }
            _ => {}
        }
    }

    fn check(&mut self, step: &Step, keys: &BTreeMap<String, Key>, revision: u64) -> Result<(), String> {
        self.bench.check_sessions()?;
        let texts = self.bench.keys.texts.clone();
        let there: BTreeMap<_, _> = texts
            .iter()
            .filter_map(|(path, text)| Some((path.clone(), Key::read(text)?)))
            .collect();
        if matches!(step, Step::Sweep) {
            // It removes keys of sessions that are dead or detached, one after the other.
            let gone = self.keys.iter().filter(|(path, _)| !there.contains_key(*path));
            let gone: Vec<_> = gone.map(|(path, key)| (path.clone(), key.owner.clone())).collect();
            for (path, owner) in gone {
                if !self.is_dead(&owner) && !self.bench.is_detached(&owner) {
                    return Err(format!("{path} was removed, and {owner} lives"));
                }
                self.keys.remove(&path);
                self.removed = self.next_revision();
            }
        }
        if there != self.keys {
            return Err(format!("the keys are {there:?}, not {:?}", self.keys));
        }
        let numbers = texts.get("revision").map_or("0 0", String::as_str);
        if numbers != format!("{} {}", self.revision, self.removed) || self.revision < revision {
            return Err(format!(
                "the revisions are {numbers}, not {} {}",
                self.revision, self.removed
            ));
        }
        for path in PATHS {
            let topic = format!("topic/{path}");
            if keys.get(path) != self.keys.get(path)
                && !self.bench.messages.iter().any(|(channel, _)| channel.ends_with(&topic))
            {
                return Err(format!("{path} has changed, and its observers received nothing"));
            }
        }
        self.check_entries()
    }

    /// The index of a session names its leased keys, and nothing else. What is held, is held in the store.
    fn check_entries(&mut self) -> Result<(), String> {
        let entries = self.bench.keys.entries();
        let leased: BTreeSet<_> = entries
            .iter()
            .filter(|(.., entry)| entry == "k")
            .map(|(s, path, _)| (path, s))
            .collect();
        let owned: BTreeSet<_> = self
            .keys
            .iter()
            .filter(|(_, key)| key.owner != "-")
            .map(|(p, key)| (p, &key.owner))
            .collect();
        if leased != owned {
            return Err(format!("the indexes name {leased:?}, leased are {owned:?}"));
        }
        let (now, sessions) = (self.bench.now, &self.bench.sessions);
        self.holdings
            .retain(|(session, _), _| sessions.get(session).is_some_and(|session| session.deadline > now));
        let (keys, bench) = (&self.bench.keys, &self.bench);
        self.holdings.retain(|(session, nonce), _| {
            // A detachment ends what it does not keep.
            let kept = keys.field(&format!("kept/{session}"), &nonce.to_string()).is_some();
            kept || !bench.is_detached(session)
        });
        for ((session, nonce), (path, token, mode)) in &self.holdings {
            let score = keys
                .set(&format!("{path}/holders"))
                .get(&format!("{session}:{nonce}:{mode}"))
                .copied();
            if score.map(|score| score as u64) != token.parse().ok() {
                return Err(format!(
                    "{session}:{nonce} holds {path} under {token}, and its place is {score:?}"
                ));
            }
        }
        Ok(())
    }

    /// A reader that saw `revision` may go on with what it saw if the answer shows nothing newer.
    fn check_snapshots(&mut self, paths: &[(String, String)], answer: &[String]) -> Result<(), String> {
        let number = |text: &String| text.parse::<u64>().unwrap_or_default();
        let (revision, removed) = (number(&answer[1]), number(&answer[2]));
        for snapshot in &self.snapshots {
            let modified = |entry: &[String]| match number(&entry[0]) {
                0 => removed,
                _ => number(&entry[1]),
            };
            let entries = || answer[4..].chunks(4);
            if revision < snapshot.revision || entries().any(|entry| modified(entry) > snapshot.revision) {
                continue;
            }
            for ((path, _), entry) in paths.iter().zip(entries()) {
                let known = snapshot
                    .keys
                    .get(path)
                    .map_or([0; 3], |key| [key.created, key.modified, key.version]);
                if known.map(|number| number.to_string()) != entry[..3] {
                    return Err(format!(
                        "{path} has changed since {}: {:?}",
                        snapshot.revision, snapshot.keys
                    ));
                }
            }
        }
        let alive = self.keys.iter().filter(|(_, key)| !self.is_dead(&key.owner));
        let keys = alive.map(|(path, key)| (path.clone(), key.clone())).collect();
        self.snapshots.push(Snapshot { revision, keys });
        let excess = self.snapshots.len().saturating_sub(8);
        self.snapshots.drain(..excess);
        Ok(())
    }

    /// All sessions end, and one deletes what is left. Then no key is left but the counters.
    fn calm(&mut self) -> Result<(), String> {
        for session in self.bench.clients.keys().cloned().collect::<Vec<_>>() {
            self.revoke(&session)?;
        }
        let open = self.bench.open();
        self.perform(&open, &Step::Lease)?;
        let delete = |path: &&str| Operation {
            what: "delete",
            path: (*path).to_owned(),
            value: String::new(),
        };
        let branches = [PATHS.iter().map(delete).collect(), Vec::new()];
        let commit = Commit {
            fence: None,
            compares: Vec::new(),
            branches,
        };
        let request = self.bench.marked(&open.session, "kv", "commit", commit.arguments());
        self.perform(&request, &Step::Commit(commit))?;
        self.revoke(&open.session)?;
        self.bench.set_clock(self.bench.now + 70_000_000);
        for _ in 0..1000 {
            if !self.sweep()? {
                let left: Vec<_> = self
                    .bench
                    .keys
                    .names()
                    .filter(|name| !["token", "revision"].contains(&name.as_str()))
                    .collect();
                return match left.is_empty() {
                    true => Ok(()),
                    false => Err(format!("keys are left: {left:?}")),
                };
            }
        }
        Err("the sweep does not end".to_owned())
    }
}

fn holds_for(key: Option<&Key>, compare: &Compare) -> bool {
    let order = match (compare.target, key) {
        ("value", None) => return false,
        ("value", Some(key)) => key.value.as_bytes().cmp(compare.wanted.as_bytes()),
        (target, key) => {
            let number = key.map_or(0, |key| match target {
                "version" => key.version,
                "created" => key.created,
                _ => key.modified,
            });
            number.cmp(&compare.wanted.parse().unwrap_or_default())
        }
    };
    match compare.relation {
        "=" => order.is_eq(),
        "!" => order.is_ne(),
        "<" => order.is_lt(),
        _ => order.is_gt(),
    }
}
