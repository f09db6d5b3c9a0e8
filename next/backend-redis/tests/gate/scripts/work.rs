//! Random schedules of work queues: what clients do, and what they have to be answered. [`work_rules`](super::work_rules) has
//! what may happen to items.

use std::collections::{BTreeMap, BTreeSet};

use super::bench::{Bench, Entered, Request, compare};
use super::server::{Scripts, Server};

pub(crate) const QUEUES: [&str; 3] = ["queue/a", "queue/b", "queue/dead"];

/// How long ids are remembered in these schedules, in microseconds.
pub(crate) const WINDOW: u64 = 3_000_000;

/// An item that is enqueued.
#[derive(Clone, Debug)]
pub(crate) struct New {
    pub(crate) priority: u64,
    pub(crate) id: String,
    pub(crate) delay: u64,
    pub(crate) value: String,
}

/// A take and one of its tokens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    pub(crate) nonce: u64,
    pub(crate) queue: String,
    pub(crate) token: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Enqueue(Vec<New>),
    /// The wish of a take: items, bytes, most deliveries or 0.
    Take(u64, u64, u64),
    Ack(Vec<Claim>),
    Nack(Vec<Claim>, u64),
    Leave(Vec<u64>),
    Depth,
    Peek,
    Purge,
    Break(u64),
    /// A commit under the fence of a claim.
    Fenced(Claim),
    Lease,
    Sweep,
}

/// Where an item is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Ready,
    /// Until then.
    Delayed(u64),
    Claimed {
        session: String,
        nonce: u64,
        token: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) value: String,
    pub(crate) id: String,
    /// Whether the id keeps others out.
    pub(crate) counts: bool,
    pub(crate) deliveries: u64,
    pub(crate) place: Place,
}

/// A take that waits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Consumer {
    pub(crate) arrival: u64,
    pub(crate) session: String,
    pub(crate) nonce: u64,
}

/// Items by queue and place.
pub(crate) type Items = BTreeMap<(String, String), Item>;

/// A take as its client knows it.
#[derive(Clone, Debug)]
struct Take {
    request: Request,
    step: Step,
    claims: Vec<u64>,
}

pub(crate) struct World<'a> {
    pub(crate) bench: Bench<'a>,
    pub(crate) items: Items,
    pub(crate) consumers: BTreeMap<String, Vec<Consumer>>,
    /// Until when an id is remembered; for ever while the item is there.
    pub(crate) ids: BTreeMap<(String, String), Option<u64>>,
    pub(crate) last_token: u64,
    /// The wish of each take: items, bytes, most deliveries or 0.
    pub(crate) wants: BTreeMap<(String, u64), (u64, u64, u64)>,
    /// Since when the first consumer of a queue could be served: session, nonce, time.
    pub(crate) waits_since: BTreeMap<String, (String, u64, u64)>,
    pub(crate) clock_was_set: bool,
    takes: BTreeMap<(String, u64), Take>,
    /// Claims that there were, and may be.
    past: Vec<(String, Claim)>,
    requests: Vec<(Request, Step)>,
}

/// Runs the schedule of `seed`. Returns its number of steps, or what was wrong and the last steps.
pub(crate) fn run(server: &mut Server, scripts: Scripts, seed: u64) -> Result<u64, String> {
    let mut bench = Bench::new(server, scripts, seed);
    // A small hash is scanned at once in one of its two encodings, and in parts in the other one.
    let listed = if bench.random.percent(50) { "0" } else { "128" };
    bench.server.run(
        redis::cmd("CONFIG")
            .arg("SET")
            .arg("hash-max-listpack-entries")
            .arg(listed),
    );
    let mut world = World {
        bench,
        items: BTreeMap::new(),
        consumers: BTreeMap::new(),
        ids: BTreeMap::new(),
        last_token: 0,
        wants: BTreeMap::new(),
        waits_since: BTreeMap::new(),
        clock_was_set: false,
        takes: BTreeMap::new(),
        past: Vec::new(),
        requests: Vec::new(),
    };
    let length = [40, 100, 200][(seed % 3) as usize];
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
            ..180 => self.enqueue(&session)?,
            180..380 => self.take(&session)?,
            380..480 => self.end_claims(&session, false)?,
            480..550 => self.end_claims(&session, true)?,
            550..600 => self.leave(&session)?,
            600..650 => {
                let requests = self.requests.clone();
                if let Some((request, step)) = self.bench.random.pick(&requests) {
                    self.repeat(request, step)?;
                }
            }
            650..690 => {
                let mut claims = self.claims_of(None);
                claims.extend(self.past.iter().cloned());
                // One that has ended, of a take that has others: too rare for chance.
                let ended = |(owner, claim): &(String, Claim)| {
                    let take = self.takes.get(&(owner.clone(), claim.nonce));
                    take.is_some_and(|take| !take.claims.contains(&claim.token))
                };
                let ended: Vec<_> = self.past.iter().filter(|claim| ended(claim)).cloned().collect();
                if !ended.is_empty() && self.bench.random.percent(50) {
                    claims = ended;
                }
                if let Some((owner, claim)) = self.bench.random.pick(&claims) {
                    let by = if self.bench.random.percent(20) { session } else { owner };
                    self.fenced(&by, claim)?;
                }
            }
            690..710 => {
                let own = vec![self.random_queue()];
                let request = self.bench.request(&session, "work", "depth", own);
                self.perform(&request, &Step::Depth)?;
            }
            710..720 => {
                let own = vec![self.random_queue()];
                let request = self.bench.request(&session, "work", "peek", own);
                self.perform(&request, &Step::Peek)?;
            }
            720..745 => {
                // Mostly one with items.
                let mut queues: Vec<_> = self.items.keys().map(|(queue, _)| queue.clone()).collect();
                queues.push(self.random_queue());
                let queue = self.bench.random.pick(&queues).unwrap_or_default();
                self.purge(&session, &queue)?;
            }
            745..760 => {
                let claims = self.claims_of(None);
                if let Some((_, claim)) = self.bench.random.pick(&claims) {
                    let own = vec![claim.queue, claim.token.to_string()];
                    let request = Request {
                        script: "admin",
                        operation: "break",
                        own,
                        ..self.bench.sweep()
                    };
                    self.perform(&request, &Step::Break(claim.token))?;
                }
            }
            760..780 => self.lose(&session),
            780..810 => self.bench.pause(&session),
            810..820 => self.revoke(&session)?,
            820..835 => self.detach(&session)?,
            835..840 => {
                let end = self.bench.request(&session, "admin", "end", Vec::new());
                self.perform(&end, &Step::Lease)?;
            }
            840..860 => self.bench.replace_link(&session),
            860..870 => drop(self.sweep()?),
            870..875 => drop(self.bench.server.run(redis::cmd("SCRIPT").arg("FLUSH"))),
            875..880 => {
                let back = self.bench.random.pick(&[1_000, 400_000]).unwrap_or(1_000);
                self.clock_was_set = true;
                self.bench.set_clock(self.bench.now - back);
            }
            _ => {
                let periods = [1_000, 20_000, 100_000, 250_000, 700_000, 3_500_000];
                let period = self.bench.random.pick(&periods).unwrap_or(1_000);
                self.pass(period)?;
            }
        }
        match self.bench.random.percent(50) {
            true => self.pass(1_000),
            false => Ok(()),
        }
    }

    /// A request arrives again. A client finds a take that it had forgotten when it compares.
    fn repeat(&mut self, request: Request, step: Step) -> Result<(), String> {
        let answer = self.perform(&request, &step)?;
        let now = self.bench.now;
        if let Step::Take(..) = &step
            && let Some(client) = self.bench.clients.get_mut(&request.session)
            && matches!(&*answer[0], "items" | "waiting" | "sweep")
        {
            client.looks.insert(request.nonce, now);
            let take = Take {
                request: request.clone(),
                step,
                claims: Vec::new(),
            };
            self.takes.insert((request.session, request.nonce), take);
        }
        Ok(())
    }

    fn random_queue(&mut self) -> String {
        self.bench.random.pick(&QUEUES).unwrap_or_default().to_owned()
    }

    /// Lists the claims that clients know of.
    fn claims_of(&self, session: Option<&str>) -> Vec<(String, Claim)> {
        let mut claims = Vec::new();
        for ((owner, nonce), take) in &self.takes {
            if session.is_none_or(|session| session == owner) {
                let queue = take.request.own[0].clone();
                let claim = |token: &u64| {
                    (
                        owner.clone(),
                        Claim {
                            nonce: *nonce,
                            queue: queue.clone(),
                            token: *token,
                        },
                    )
                };
                claims.extend(take.claims.iter().map(claim));
            }
        }
        claims
    }

    fn enqueue(&mut self, session: &str) -> Result<(), String> {
        let queue = self.random_queue();
        self.enqueue_at(session, queue)
    }

    fn enqueue_at(&mut self, session: &str, queue: String) -> Result<(), String> {
        let (mut own, mut items) = (vec![queue], Vec::new());
        for _ in 0..=self.bench.random.below(5) {
            let random = &mut self.bench.random;
            let id = if random.percent(40) {
                random.pick(&["i", "j", "k l"]).unwrap_or_default()
            } else {
                ""
            };
            let new = New {
                priority: random.below(3) * 300,
                id: id.to_owned(),
                delay: random.pick(&[0, 0, 0, 30_000, 900_000]).unwrap_or(0),
                value: format!("{}{}", self.bench.steps, "x".repeat(random.below(20) as usize)),
            };
            own.extend([
                new.priority.to_string(),
                new.id.clone(),
                new.delay.to_string(),
                new.value.clone(),
            ]);
            items.push(new);
        }
        let request = self.bench.marked(session, "work", "enqueue", own);
        self.perform(&request, &Step::Enqueue(items)).map(drop)
    }

    fn take(&mut self, session: &str) -> Result<(), String> {
        let queue = self.random_queue();
        self.take_from(session, queue)
    }

    fn take_from(&mut self, session: &str, queue: String) -> Result<(), String> {
        let how = if self.bench.random.percent(30) { "try" } else { "wait" };
        let waiting = self
            .takes
            .iter()
            .filter(|((owner, _), take)| owner == session && take.claims.is_empty())
            .count();
        if waiting > 2 {
            return Ok(());
        }
        let random = &mut self.bench.random;
        let (items, bytes) = (1 + random.below(3), random.pick(&[5, 30, 1000]).unwrap_or(1000));
        let after = if random.percent(30) && queue != "queue/dead" {
            1 + random.below(3)
        } else {
            0
        };
        let dead = if after > 0 { "queue/dead" } else { "" };
        let own = vec![queue, how.to_owned(), format!("{items} {bytes} {after} {dead}")];
        let nonce = self.bench.next_nonce(session);
        let request = Request {
            nonce,
            ..self.bench.request(session, "work", "take", own)
        };
        let step = Step::Take(items, bytes, after);
        let take = Take {
            request: request.clone(),
            step: step.clone(),
            claims: Vec::new(),
        };
        self.takes.insert((session.to_owned(), nonce), take);
        self.look(&request, &step)
    }

    /// Takes, or looks after a take, as the library does.
    fn look(&mut self, request: &Request, step: &Step) -> Result<(), String> {
        let id = (request.session.clone(), request.nonce);
        for _ in 0..300 {
            let epoch = self
                .bench
                .clients
                .get(&request.session)
                .map_or(request.epoch, |client| client.epoch);
            let answer = self.perform(
                &Request {
                    epoch,
                    ..request.clone()
                },
                step,
            )?;
            let looks = self
                .bench
                .clients
                .get_mut(&request.session)
                .map(|client| &mut client.looks);
            if let Some(looks) = looks {
                looks.remove(&request.nonce);
                if answer[0] == "waiting" {
                    let rest: u64 = answer[1].parse().unwrap_or_default();
                    looks.insert(
                        request.nonce,
                        self.bench.now + rest * 1000 + 20_000 + self.bench.random.below(100_000),
                    );
                }
            }
            let more = match &*answer[0] {
                "items" => answer[1] == "1",
                "waiting" | "busy" => answer[2] == "1",
                "sweep" => {
                    self.sweep()?;
                    continue;
                }
                "lost" | "detached" => {
                    self.lose(&request.session);
                    return Ok(());
                }
                _ => false,
            };
            match (&*answer[0], self.takes.get_mut(&id)) {
                ("items", Some(take)) => {
                    take.claims = answer[2..].chunks(5).filter_map(|item| item[0].parse().ok()).collect()
                }
                ("waiting", _) => {}
                _ => drop(self.takes.remove(&id)),
            }
            let mut claims = self.claims_of(Some(&request.session));
            claims.retain(|claim| !self.past.contains(claim));
            self.past.extend(claims);
            let excess = self.past.len().saturating_sub(20);
            self.past.drain(..excess);
            return match more {
                true => self.sweep_all(),
                false => Ok(()),
            };
        }
        Err(format!("{request:?} is never answered"))
    }

    fn end_claims(&mut self, session: &str, back: bool) -> Result<(), String> {
        let mut claims = Vec::new();
        let mut known = self.claims_of(Some(session));
        if self.bench.random.percent(15) {
            known.extend(self.past.iter().filter(|(owner, _)| owner == session).cloned());
        }
        for _ in 0..=self.bench.random.below(2) {
            claims.extend(self.bench.random.pick(&known).map(|(_, claim)| claim));
        }
        claims.dedup();
        self.end_these(session, claims, back)
    }

    fn end_these(&mut self, session: &str, claims: Vec<Claim>, back: bool) -> Result<(), String> {
        if claims.is_empty() {
            return Ok(());
        }
        let delay = self.bench.random.pick(&[0, 0, 50_000, 800_000]).unwrap_or(0);
        let mut own = Vec::new();
        for claim in &claims {
            own.extend([claim.nonce.to_string(), claim.queue.clone(), claim.token.to_string()]);
            own.extend(back.then(|| delay.to_string()));
        }
        let (operation, step) = match back {
            true => ("nack", Step::Nack(claims.clone(), delay)),
            false => ("ack", Step::Ack(claims.clone())),
        };
        let request = self.bench.marked(session, "work", operation, own);
        let answer = self.perform(&request, &step)?;
        if answer[0] == "lost" {
            self.lose(session);
        }
        for claim in claims {
            let id = (session.to_owned(), claim.nonce);
            if let Some(take) = self.takes.get_mut(&id) {
                take.claims.retain(|token| *token != claim.token);
                if take.claims.is_empty() {
                    self.takes.remove(&id);
                }
            }
        }
        match answer.get(2).is_some_and(|more| more == "1") {
            true => self.sweep_all(),
            false => Ok(()),
        }
    }

    fn leave(&mut self, session: &str) -> Result<(), String> {
        let takes: Vec<_> = self
            .takes
            .keys()
            .filter(|(owner, _)| owner == session)
            .map(|(_, nonce)| *nonce)
            .collect();
        let mut nonces: Vec<_> = (0..=self.bench.random.below(2))
            .filter_map(|_| self.bench.random.pick(&takes))
            .collect();
        nonces.dedup();
        self.leave_these(session, nonces)
    }

    fn leave_these(&mut self, session: &str, nonces: Vec<u64>) -> Result<(), String> {
        let mut own = Vec::new();
        for nonce in &nonces {
            if let Some(take) = self.takes.remove(&(session.to_owned(), *nonce)) {
                own.extend([nonce.to_string(), take.request.own[0].clone()]);
            }
            if let Some(client) = self.bench.clients.get_mut(session) {
                client.looks.remove(nonce);
            }
        }
        if own.is_empty() {
            return Ok(());
        }
        let request = self.bench.request(session, "work", "leave", own);
        let answer = self.perform(&request, &Step::Leave(nonces))?;
        match &*answer[0] {
            "lost" => self.lose(session),
            _ if answer.get(1).is_some_and(|more| more == "1") => self.sweep_all()?,
            _ => {}
        }
        Ok(())
    }

    fn fenced(&mut self, session: &str, claim: Claim) -> Result<(), String> {
        let own = [
            "1",
            &claim.queue,
            &claim.nonce.to_string(),
            &claim.token.to_string(),
            "1",
            "",
            "0",
            "0",
            "0",
        ];
        let own = own.map(str::to_owned).to_vec();
        let request = self.bench.marked(session, "kv", "commit", own);
        self.perform(&request, &Step::Fenced(claim)).map(drop)
    }

    fn purge(&mut self, session: &str, queue: &str) -> Result<(), String> {
        let request = self.bench.marked(session, "work", "purge", vec![queue.to_owned()]);
        // Other steps come between its parts, and its client may die.
        while self.perform(&request, &Step::Purge)?[0] == "more" && self.bench.random.percent(95) {
            match (self.bench.random.below(3), self.bench.pick_client()) {
                (0, Some(other)) if other != session => self.enqueue_at(&other, queue.to_owned())?,
                (1, Some(other)) if other != session => self.take(&other)?,
                (2, Some(other)) if other != session => self.end_claims(&other, true)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes what a part of a purge removed out of `base`. It removes what was there when it began, and counts it.
    fn note_purge(
        &mut self,
        request: &Request,
        before: Option<&str>,
        answer: &[String],
        base: &mut Items,
    ) -> Result<(), String> {
        let queue = &request.own[0];
        let number = |text: &str| text.parse::<u64>().unwrap_or_default();
        let progress = |memory: &str| {
            let fields: Vec<_> = memory.split(' ').collect();
            (number(fields[0]), fields.get(2).map(|limit| number(limit)))
        };
        let (mut count, limit) = before.map_or((0, Some(u64::MAX)), progress);
        let Some(limit) = limit else {
            return compare(request, answer, &["ok".to_owned(), count.to_string()]);
        };
        let there = self.bench.keys.hash(&format!("{queue}/items"));
        let old = |place: &str| number(&place[6..]) < limit;
        let gone: Vec<_> = base
            .keys()
            .filter(|(of, place)| of == queue && old(place) && !there.contains_key(place))
            .cloned()
            .collect();
        count += gone.len() as u64;
        for key in gone {
            let item = base.remove(&key);
            self.forget_later(queue, item.as_ref());
        }
        if answer[0] == "ok" {
            if let Some(left) = base.keys().find(|(of, place)| of == queue && old(place)) {
                return Err(format!(
                    "{left:?} was there when a purge began, and is there when it ends"
                ));
            }
            self.bench.remember(request, &count.to_string());
            return compare(request, answer, &["ok".to_owned(), count.to_string()]);
        }
        let record = format!("session/{}", request.session);
        let memory = self
            .bench
            .keys
            .field(&record, &format!("d{}", request.slot))
            .unwrap_or_default()
            .to_owned();
        let memory = memory.splitn(3, ' ').nth(2).unwrap_or_default();
        let (known, next) = progress(memory);
        let same = limit == u64::MAX || next == Some(limit);
        self.bench.remember(request, memory);
        match answer[0] == "more" && known == count && same {
            true => Ok(()),
            false => Err(format!(
                "a purge removed {count} items below {limit}, and knows {memory:?}"
            )),
        }
    }

    /// The process of a session ends, or learns that the session has.
    fn lose(&mut self, session: &str) {
        self.bench.clients.remove(session);
        self.takes.retain(|(owner, _), _| owner != session);
    }

    fn sweep(&mut self) -> Result<bool, String> {
        let sweep = self.bench.sweep();
        Ok(self.perform(&sweep, &Step::Sweep)?[0] == "more")
    }

    fn sweep_all(&mut self) -> Result<(), String> {
        for _ in 0..1000 {
            if !self.sweep()? {
                return Ok(());
            }
        }
        Err("the sweep does not end".to_owned())
    }

    fn revoke(&mut self, session: &str) -> Result<(), String> {
        let revoke = self.bench.request(session, "sweep", "revoke", Vec::new());
        self.lose(session);
        loop {
            let answer = self.perform(&revoke, &Step::Sweep)?;
            if answer[1] == "1" {
                self.sweep_all()?;
            }
            if answer[0] != "more" || self.bench.random.percent(10) {
                return Ok(());
            }
        }
    }

    /// Detaches, and resumes later, perhaps. No take is kept.
    fn detach(&mut self, session: &str) -> Result<(), String> {
        let detachment = self.bench.detachment(session, &[]);
        let client = self.bench.clients.get(session).cloned();
        self.lose(session);
        let answer = self.perform(&detachment, &Step::Sweep)?;
        if answer[0] == "lost" {
            return Ok(());
        } else if answer[0] == "more" || answer[1] == "1" {
            self.sweep_all()?;
        }
        let away = self.bench.random.pick(&[1_000, 200_000, 700_000]).unwrap_or_default();
        self.pass(away)?;
        let Some(mut client) = client.filter(|_| self.bench.random.percent(70)) else {
            return Ok(());
        };
        client.looks.clear();
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
                    self.lose(session);
                    return Ok(());
                }
            }
        }
        Err(format!("{session} is never resumed"))
    }

    fn pass(&mut self, micros: u64) -> Result<(), String> {
        let until = self.bench.now + micros;
        while let Some((session, nonce)) = self.bench.next_timer(until) {
            match nonce {
                Some(nonce) => match self.takes.get(&(session.clone(), nonce)).cloned() {
                    Some(take) => self.look(&take.request, &take.step)?,
                    None => {
                        if let Some(client) = self.bench.clients.get_mut(&session) {
                            client.looks.remove(&nonce);
                        }
                    }
                },
                None => {
                    let renewal = self.bench.renewal(&session);
                    let answer = self.perform(&renewal, &Step::Lease)?;
                    match &*answer[0] {
                        "ok" if answer[2] == "1" && self.bench.renewals_sweep => self.sweep_all()?,
                        "ok" => {}
                        _ => self.lose(&session),
                    }
                }
            }
        }
        self.check_progress()
    }

    /// Sends a request, and compares the answer and what happened to the items with the model.
    fn perform(&mut self, request: &Request, step: &Step) -> Result<Vec<String>, String> {
        if !matches!(request.operation, "sweep" | "break") {
            self.requests.push((request.clone(), step.clone()));
            let excess = self.requests.len().saturating_sub(60);
            self.requests.drain(..excess);
        }
        let (mut base, mut new) = (self.items.clone(), Vec::new());
        let slot = self
            .bench
            .sessions
            .get(&request.session)
            .and_then(|session| session.slots.get(request.slot));
        let earlier = slot.filter(|(operation, nonce, _)| operation == request.operation && *nonce == request.nonce);
        let earlier = earlier.map(|(.., result)| result.clone());
        let expected = self.expect(request, step, &mut base, &mut new);
        let answer = self.bench.send(request)?;
        compare(request, &answer, &expected)?;
        if matches!(step, Step::Purge) && expected.is_empty() {
            self.note_purge(request, earlier.as_deref(), &answer, &mut base)?;
        }
        self.bench.check_sessions()?;
        let entered = !matches!(&*answer[0], "lost" | "stale" | "detached" | "late" | "revoked");
        self.check_items(request, step, entered, base, new)?;
        match (step, &*answer[0]) {
            (Step::Take(..), "items") => self.check_taken(request, &answer)?,
            (Step::Take(..), "waiting") => self.check_wait(request, &answer)?,
            (Step::Take(..), "busy") => {
                let queue = &request.own[0];
                let free = |((of, _), item): (&(String, String), &Item)| of == queue && item.place == Place::Ready;
                if answer[2] != "1" && self.items.iter().any(free) {
                    return Err(format!("{queue} is busy, and has a ready item"));
                }
            }
            _ => {}
        }
        self.deliver()?;
        Ok(answer)
    }

    /// Says how an answer has to begin, and what the step itself does to `base`. New items are added to `new`.
    fn expect(&mut self, request: &Request, step: &Step, base: &mut Items, new: &mut Vec<New>) -> Vec<String> {
        let number = |number: usize| number.to_string();
        let (now, queue) = (self.bench.now, request.own.first().cloned().unwrap_or_default());
        match step {
            Step::Lease => return self.bench.expect(request),
            Step::Sweep if request.operation == "sweep" => return Vec::new(),
            Step::Sweep => return self.bench.expect(request),
            Step::Break(token) => {
                let claimed =
                    |item: &Item| matches!(&item.place, Place::Claimed { token: known, .. } if known == token);
                let found = base.iter_mut().find(|((of, _), item)| *of == queue && claimed(item));
                return vec![match found {
                    Some((_, item)) => {
                        item.place = Place::Ready;
                        "ok".to_owned()
                    }
                    None => "gone".to_owned(),
                }];
            }
            Step::Depth => {
                let (mut ready, mut claimed, mut delayed) = (0, 0, 0);
                for (_, item) in base.iter().filter(|((of, _), _)| *of == queue) {
                    match item.place {
                        Place::Claimed { .. } => claimed += 1,
                        Place::Delayed(due) if due > now => delayed += 1,
                        _ => ready += 1,
                    }
                }
                return vec!["ok".to_owned(), number(ready), number(claimed), number(delayed)];
            }
            Step::Peek => {
                let free =
                    |item: &Item| item.place == Place::Ready || matches!(item.place, Place::Delayed(due) if due <= now);
                let first = base.iter().find(|((of, _), item)| *of == queue && free(item));
                return match first {
                    None => vec!["empty".to_owned()],
                    Some(((_, place), item)) => {
                        let priority = place[..5].trim_start_matches('0');
                        let priority = if priority.is_empty() { "0" } else { priority };
                        let fields = [priority, &item.deliveries.to_string(), &item.id, &item.value].map(str::to_owned);
                        std::iter::once("item".to_owned()).chain(fields).collect()
                    }
                };
            }
            _ => {}
        }
        let grants = !matches!(step, Step::Ack(_) | Step::Nack(..) | Step::Leave(_));
        let before = match self.bench.enter(request, grants) {
            Entered::Refused(word) => return vec![word.to_owned()],
            Entered::Before(result) => Some(result),
            Entered::New => None,
        };
        match (step, before) {
            (Step::Enqueue(_), Some(_)) => vec!["ok".to_owned(), "0".to_owned()],
            (Step::Enqueue(items), None) => {
                for item in items {
                    let known = self.ids.get(&(queue.clone(), item.id.clone()));
                    let known = known.is_some_and(|until| until.is_none_or(|until| until > now));
                    if !known || item.id.is_empty() {
                        new.push(item.clone());
                        if !item.id.is_empty() {
                            self.ids.insert((queue.clone(), item.id.clone()), None);
                        }
                    }
                }
                self.bench.remember(request, "ok");
                vec!["ok".to_owned()]
            }
            (Step::Ack(_) | Step::Nack(..), Some(result)) => vec!["ended".to_owned(), result, "0".to_owned()],
            (Step::Ack(claims), None) => {
                let results = claims
                    .iter()
                    .map(|claim| match self.find(base, &request.session, claim) {
                        Some(key) => {
                            let item = base.remove(&key);
                            self.forget_later(&key.0, item.as_ref());
                            '1'
                        }
                        None => '0',
                    });
                let results: String = results.collect();
                self.bench.remember(request, &results);
                vec!["ended".to_owned(), results]
            }
            (Step::Nack(claims, delay), None) => {
                let results = claims.iter().map(|claim| {
                    let found = self
                        .find(base, &request.session, claim)
                        .and_then(|key| base.get_mut(&key));
                    let is_there = found.is_some();
                    if let Some(item) = found {
                        item.place = if *delay > 0 {
                            Place::Delayed(now + delay)
                        } else {
                            Place::Ready
                        };
                    }
                    if is_there { '1' } else { '0' }
                });
                let results: String = results.collect();
                self.bench.remember(request, &results);
                vec!["ended".to_owned(), results]
            }
            (Step::Leave(nonces), _) => {
                for item in base.values_mut() {
                    if let Place::Claimed { session, nonce, .. } = &item.place
                        && *session == request.session
                        && nonces.contains(nonce)
                    {
                        (item.place, item.deliveries) = (Place::Ready, item.deliveries.saturating_sub(1));
                    }
                }
                vec!["ok".to_owned()]
            }
            // See `note_purge`.
            (Step::Purge, _) => Vec::new(),
            (Step::Fenced(_), Some(result)) => vec![if result == "fence" { "fence" } else { "again" }.to_owned()],
            (Step::Fenced(claim), None) => {
                let holds = self.find(base, &request.session, claim).is_some();
                // No revision was ever drawn.
                self.bench.remember(request, if holds { "0 1" } else { "fence" });
                vec![if holds { "done" } else { "fence" }.to_owned()]
            }
            _ => Vec::new(),
        }
    }

    /// Returns the item of a claim of this session.
    fn find(&self, items: &Items, session: &str, claim: &Claim) -> Option<(String, String)> {
        let place = Place::Claimed {
            session: session.to_owned(),
            nonce: claim.nonce,
            token: claim.token,
        };
        let found = items
            .iter()
            .find(|((queue, _), item)| *queue == claim.queue && item.place == place);
        found.map(|(key, _)| key.clone())
    }

    /// The id of an item that was removed is remembered for a while.
    pub(crate) fn forget_later(&mut self, queue: &str, item: Option<&Item>) {
        if let Some(item) = item.filter(|item| item.counts && !item.id.is_empty()) {
            self.ids
                .insert((queue.to_owned(), item.id.clone()), Some(self.bench.now + WINDOW));
        }
    }

    /// A take is answered with all that it has, in order.
    fn check_taken(&mut self, request: &Request, answer: &[String]) -> Result<(), String> {
        let mut has = BTreeSet::new();
        for ((queue, place), item) in &self.items {
            if let Place::Claimed { session, nonce, token } = &item.place
                && *session == request.session
                && *nonce == request.nonce
            {
                let priority = place[..5].parse::<u64>().unwrap_or_default();
                let fields = [
                    token.to_string(),
                    priority.to_string(),
                    item.deliveries.to_string(),
                    item.id.clone(),
                    item.value.clone(),
                ];
                has.insert((*token, fields.to_vec()));
                if *queue != request.own[0] {
                    return Err(format!("{request:?} has an item of {queue}"));
                }
            }
        }
        let expected: Vec<_> = has.into_iter().flat_map(|(_, fields)| fields).collect();
        match answer[2..] == expected {
            true => Ok(()),
            false => Err(format!("{request:?} has {expected:?}, and was answered {answer:?}")),
        }
    }

    /// A take waits no longer than until something can happen that no message announces.
    fn check_wait(&mut self, request: &Request, answer: &[String]) -> Result<(), String> {
        let (now, queue) = (self.bench.now, &request.own[0]);
        let consumers = self.consumers.get(queue).cloned().unwrap_or_default();
        let me = consumers
            .iter()
            .position(|consumer| consumer.session == request.session && consumer.nonce == request.nonce);
        let Some(me) = me else {
            return Err(format!("{request:?} waits without a place"));
        };
        let end = |session: &str| self.bench.sessions.get(session).map_or(now, |session| session.deadline);
        let mut first = end(&request.session);
        match me.checked_sub(1) {
            Some(ahead) => first = first.min(end(&consumers[ahead].session)),
            None => {
                for (_, item) in self.items.iter().filter(|((of, _), _)| of == queue) {
                    first = first.min(match &item.place {
                        Place::Ready => now,
                        Place::Delayed(due) => *due,
                        Place::Claimed { session, .. } => end(session),
                    });
                }
            }
        }
        let (rest, more) = (answer[1].parse::<u64>().unwrap_or_default(), answer[2] == "1");
        match rest <= first.saturating_sub(now).div_ceil(1000) || more {
            true => Ok(()),
            false => Err(format!(
                "{request:?} waits for {rest} ms, and something happens {} us from now",
                first.saturating_sub(now)
            )),
        }
    }

    /// Delivers the messages of the last script.
    fn deliver(&mut self) -> Result<(), String> {
        for (channel, message) in std::mem::take(&mut self.bench.messages) {
            let Some((_, session)) = channel.split_once("session/") else {
                continue;
            };
            if let Some(nonce) = message.strip_prefix("! ") {
                self.takes
                    .remove(&(session.to_owned(), nonce.parse().unwrap_or_default()));
            } else if message == "!" {
                self.lose(session);
            } else {
                let nonce: u64 = message.parse().map_err(|_| format!("{session} was sent {message:?}"))?;
                let now = self.bench.now;
                if let Some(client) = self.bench.clients.get_mut(session)
                    && self.takes.contains_key(&(session.to_owned(), nonce))
                {
                    client.looks.insert(nonce, now);
                }
            }
        }
        Ok(())
    }

    /// All clients take and acknowledge until the queues are empty. Then all sessions end, and no key is left but the token.
    fn calm(&mut self) -> Result<(), String> {
        for client in self.bench.clients.values_mut() {
            client.paused = 0;
        }
        for _ in 0..400 {
            let sessions: Vec<_> = self.bench.clients.keys().cloned().collect();
            for session in sessions {
                let known = self
                    .claims_of(Some(&session))
                    .into_iter()
                    .map(|(_, claim)| claim)
                    .collect();
                self.end_these(&session, known, false)?;
            }
            if self.items.is_empty() {
                break;
            }
            if let Some(session) = self.bench.pick_client() {
                // Those that wait at other queues make room.
                let waiting =
                    |((owner, _), take): &(&(String, u64), &Take)| *owner == session && take.claims.is_empty();
                let waiting = self
                    .takes
                    .iter()
                    .filter(waiting)
                    .map(|((_, nonce), _)| *nonce)
                    .collect();
                self.leave_these(&session, waiting)?;
                let queues: Vec<_> = self.items.keys().map(|(queue, _)| queue.clone()).collect();
                if let Some(queue) = self.bench.random.pick(&queues) {
                    self.take_from(&session, queue)?;
                }
            } else {
                let open = self.bench.open();
                self.perform(&open, &Step::Lease)?;
            }
            let period = self.bench.random.pick(&[1_000, 150_000, 1_000_000]).unwrap_or(1_000);
            self.pass(period)?;
        }
        if !self.items.is_empty() {
            return Err(format!("never delivered: {:?}", self.items));
        }
        for session in self.bench.clients.keys().cloned().collect::<Vec<_>>() {
            let takes = self
                .takes
                .keys()
                .filter(|(owner, _)| *owner == session)
                .map(|(_, nonce)| *nonce)
                .collect();
            self.leave_these(&session, takes)?;
            if self.bench.clients.contains_key(&session) {
                self.revoke(&session)?;
            }
        }
        // All leases end, and the ids are forgotten.
        self.bench.set_clock(self.bench.now + 70_000_000);
        self.sweep_all()?;
        let left: Vec<_> = self
            .bench
            .keys
            .names()
            .filter(|name| !["token", "revision"].contains(&name.as_str()))
            .collect();
        match left.is_empty() {
            true => Ok(()),
            false => Err(format!("keys are left: {left:?}")),
        }
    }
}
