//! Clients as the library makes them, one after the other, on a virtual clock.

use std::collections::BTreeMap;

use redis::Value;

use super::rules::{Object, Place};
use super::server::{ROOT, Scripts, Server, list, text};

/// Random numbers (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len() as u64) as usize].clone())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) nonce: u64,
    pub(crate) path: String,
    pub(crate) mode: String,
    /// The token of a holding.
    pub(crate) token: Option<u64>,
    /// When a waiter looks again.
    pub(crate) looks: Option<u64>,
    /// The value of a candidate.
    pub(crate) proclaimed: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) session: String,
    pub(crate) ttl: u64,
    pub(crate) epoch: u64,
    pub(crate) next_nonce: u64,
    pub(crate) renews: u64,
    pub(crate) renewals: u64,
    /// When its lease ends.
    pub(crate) ends: u64,
    /// Until when its process is paused.
    pub(crate) paused: u64,
    pub(crate) requests: BTreeMap<u64, Request>,
}

/// A request whose client lost its session: session, epoch, request.
pub(crate) type Late = (String, u64, Request);

pub(crate) struct World<'a> {
    pub(crate) server: &'a mut Server,
    pub(crate) scripts: Scripts,
    pub(crate) random: Random,
    pub(crate) now: u64,
    pub(crate) paths: Vec<String>,
    pub(crate) objects: BTreeMap<String, Object>,
    pub(crate) clients: BTreeMap<String, Client>,
    pub(crate) late: Vec<Late>,
    pub(crate) last_token: u64,
    pub(crate) last_epoch: u64,
    /// The version of each election that was seen last, and its state.
    pub(crate) seen: BTreeMap<String, (u64, Vec<String>)>,
    /// Whether an operator edits keys by hand in this schedule, and whether that was the last step.
    pub(crate) edits: bool,
    pub(crate) edited: bool,
    pub(crate) clock_jumps: bool,
    /// How many of a thousand steps are the death of a process.
    pub(crate) deaths: u64,
    /// Whether a renewal that finds work due does it.
    pub(crate) renewals_sweep: bool,
    pub(crate) steps: u64,
    pub(crate) log: Vec<String>,
}

impl World<'_> {
    pub(crate) fn new<'a>(server: &'a mut Server, scripts: Scripts, seed: u64) -> World<'a> {
        server.run(&redis::cmd("FLUSHALL"));
        let mut random = Random(seed);
        let paths = [
            &["lock/a", "rw_lock/b"][..],
            &["rw_lock/b"],
            &["rw_lock/b"],
            &["lock/a"],
            &["rw_lock/b", "election/c", "double_barrier/d"],
            &["election/c"],
            &["double_barrier/d", "double_barrier/e"],
        ];
        let paths = paths[random.below(paths.len() as u64) as usize];
        let mut world = World {
            server,
            scripts,
            now: 0,
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            objects: BTreeMap::new(),
            clients: BTreeMap::new(),
            late: Vec::new(),
            last_token: 0,
            last_epoch: 1,
            seen: BTreeMap::new(),
            edits: random.percent(15),
            edited: false,
            clock_jumps: random.percent(15),
            deaths: random.pick(&[7, 20, 60]).unwrap_or(7),
            renewals_sweep: random.percent(50),
            steps: 0,
            log: Vec::new(),
            random,
        };
        world.set_clock(1_795_000_000_000_000);
        world
    }

    pub(crate) fn set_clock(&mut self, now: u64) {
        self.now = now;
        self.server.run(redis::cmd("SET").arg(format!("{ROOT}CLOCK")).arg(now));
    }

    pub(crate) fn next_epoch(&mut self) -> u64 {
        self.last_epoch += 1;
        self.last_epoch
    }

    pub(crate) fn read_state(&mut self) -> Vec<Value> {
        let state = self.server.script(&self.scripts, "state", self.paths.iter());
        list(&state.expect("the state")).to_vec()
    }

    pub(crate) fn lives(&self, session: &str) -> bool {
        self.clients.contains_key(session)
    }

    /// Returns whether the client of a session acts now.
    pub(crate) fn acts(&self, session: &str) -> bool {
        self.clients
            .get(session)
            .is_some_and(|client| client.paused <= self.now)
    }

    /// Runs a script and checks the rules.
    pub(crate) fn step(&mut self, script: &str, arguments: &[&str]) -> Result<Vec<String>, String> {
        self.steps += 1;
        let answer = self.server.script(&self.scripts, script, arguments.iter());
        let answer = answer.map_err(|error| format!("{arguments:?} failed: {error}"))?;
        let answer: Vec<_> = list(&answer).iter().map(text).collect();
        self.log
            .push(format!("{} {arguments:?} -> {answer:?}", self.now % 1_000_000_000));
        self.check()?;
        Ok(answer)
    }

    pub(crate) fn open(&mut self) -> Result<(), String> {
        let session = format!("{:016x}", self.random.next());
        let ttl = self.random.pick(&[500, 3_000, 60_000]).unwrap_or(500);
        let epoch = self.next_epoch();
        let client = Client {
            session: session.clone(),
            ttl,
            epoch,
            next_nonce: 1,
            renews: self.now + ttl * 1000 / 3,
            renewals: 0,
            ends: self.now + ttl * 1000,
            paused: 0,
            requests: BTreeMap::new(),
        };
        let arguments = ["open", &session, &epoch.to_string(), "", "0", &ttl.to_string(), ""];
        let answer = self.step("lease", &arguments)?;
        self.clients.insert(session, client);
        (answer[0] == "ok").then_some(()).ok_or(format!("open: {answer:?}"))
    }

    pub(crate) fn lose(&mut self, session: &str) {
        if let Some(client) = self.clients.remove(session) {
            let late = client
                .requests
                .into_values()
                .map(|request| (client.session.clone(), client.epoch, request));
            self.late.extend(late);
            let excess = self.late.len().saturating_sub(20);
            self.late.drain(..excess);
        }
    }

    pub(crate) fn sweep_all(&mut self) -> Result<(), String> {
        for _ in 0..2000 {
            if self.step("sweep", &["sweep", "", "0", "", "0"])?[0] != "more" {
                return Ok(());
            }
        }
        Err("the sweep does not end".into())
    }

    pub(crate) fn deliver(&mut self, session: &str, message: &str) -> Result<(), String> {
        let now = self.now;
        let Some(client) = self.clients.get_mut(session) else {
            return Ok(());
        };
        let mut words = message.split(' ');
        match (words.next(), words.next()) {
            (Some("!"), Some(nonce)) => {
                client.requests.remove(&nonce.parse().unwrap_or_default());
            }
            (Some(nonce), token) => {
                let request = client.requests.get_mut(&nonce.parse().unwrap_or_default());
                if let Some(request) = request.filter(|request| request.token.is_none()) {
                    request.looks = token.is_none().then_some(now);
                    request.token = token.and_then(|token| token.parse().ok());
                }
            }
            _ => return Err(format!("an empty message for {session}")),
        }
        Ok(())
    }

    pub(crate) fn renew(&mut self, session: &str) -> Result<(), String> {
        let client = self.clients[session].clone();
        let (epoch, ttl) = (client.epoch.to_string(), client.ttl.to_string());
        let arguments = ["renew", session, &epoch, "", "0", &ttl, &client.renewals.to_string()];
        let answer = self.step("lease", &arguments)?;
        match &*answer[0] {
            "lost" => self.lose(session),
            "ok" => {
                let now = self.now;
                if let Some(client) = self.clients.get_mut(session) {
                    client.renewals += 1;
                    client.ends = now + client.ttl * 1000;
                    client.renews = now + client.ttl * 1000 / 3;
                }
                let of = |(_, place): &(String, Place)| place.session == session;
                let held: Vec<_> = self
                    .holders()
                    .into_iter()
                    .filter(of)
                    .map(|(_, place)| place.nonce)
                    .collect();
                let mut requests = client.requests.values().filter(|request| request.token.is_some());
                if let Some(lost) = requests.find(|request| !held.contains(&request.nonce))
                    && !self.edits
                {
                    return Err(format!("{session} was renewed, and {lost:?} is gone"));
                }
                if answer[2] == "1" && self.renewals_sweep {
                    self.sweep_all()?;
                }
            }
            _ => return Err(format!("renew: {answer:?}")),
        }
        Ok(())
    }

    /// Lets time pass. Clients renew and look when it is time.
    pub(crate) fn pass(&mut self, micros: u64) -> Result<(), String> {
        let until = self.now + micros;
        loop {
            let renewals = self
                .clients
                .values()
                .map(|client| (client.renews.max(client.paused), client.session.clone(), None));
            let looks = self.clients.values().flat_map(|client| {
                let looks = client
                    .requests
                    .values()
                    .filter_map(|request| Some((request.looks?.max(client.paused), request.nonce)));
                looks.map(|(at, nonce)| (at, client.session.clone(), Some(nonce)))
            });
            let next = renewals.chain(looks).filter(|(at, ..)| *at <= until).min();
            let Some((at, session, nonce)) = next else {
                break;
            };
            if at > self.now {
                self.set_clock(at);
            }
            match nonce {
                None => self.renew(&session)?,
                Some(nonce) => {
                    let request = self.clients[&session].requests[&nonce].clone();
                    self.join(&session, request, "wait")?;
                }
            }
        }
        if until > self.now {
            self.set_clock(until);
        }
        self.check()
    }

    pub(crate) fn holders(&self) -> Vec<(String, Place)> {
        let of = |(path, object): (&String, &Object)| {
            object
                .holders
                .iter()
                .map(|place| (path.clone(), place.clone()))
                .collect::<Vec<_>>()
        };
        self.objects.iter().flat_map(of).collect()
    }
}
