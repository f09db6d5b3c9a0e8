//! One random schedule.

use super::ends::refused;
use super::server::{ROOT, Scripts, Server, list, text};
use super::world::{Request, World};

/// Runs the schedule of `seed`. Returns its number of steps, or what was wrong and the last steps.
pub(crate) fn run(server: &mut Server, scripts: Scripts, seed: u64) -> Result<u64, String> {
    let mut world = World::new(server, scripts, seed);
    let length = [20, 60, 150][(seed % 3) as usize];
    let done = (0..length).try_for_each(|_| world.act()).and_then(|()| world.calm());
    done.map(|()| world.steps).map_err(|failure| {
        // All steps of a schedule that is repeated.
        let most = std::env::var("TENURE_SEED").map_or(20, |_| usize::MAX);
        let tail = world.log.len().saturating_sub(most);
        format!(
            "{failure}\nseed {seed}, the last steps:\n{}",
            world.log[tail..].join("\n")
        )
    })
}

/// A session ends, another takes what it held, and the clock is set back before the sweep: too rare for the schedules.
pub(crate) fn set_back_the_clock(server: &mut Server, scripts: Scripts) -> Result<(), String> {
    let mut world = World::new(server, scripts, 0);
    world.paths = vec!["lock/a".to_owned()];
    world.clock_jumps = true;
    let start = world.now;
    world.step("lease", &["open", "a", "1", "", "0", "500", ""])?;
    world.step("lease", &["open", "b", "1", "", "0", "60000", ""])?;
    let join = |session| ["join", session, "1", "", "1", "lock/a", "x", "wait", ""];
    refused("the first join", &world.step("wait", &join("a"))?, &["granted"])?;
    refused("the second join", &world.step("wait", &join("b"))?, &["waiting"])?;
    world.set_clock(start + 600_000);
    refused("a look", &world.step("wait", &join("b"))?, &["granted"])?;
    world.set_clock(start + 100_000);
    let renewed = world.step("lease", &["renew", "a", "1", "", "0", "500", "0"])?;
    refused("a renewal after the end", &renewed, &["lost"])?;
    world.step("sweep", &["sweep", "", "0", "", "0"])?;
    let renewed = world.step("lease", &["renew", "a", "1", "", "0", "500", "0"])?;
    refused("a renewal after the sweep", &renewed, &["lost"])
}

impl World<'_> {
    fn act(&mut self) -> Result<(), String> {
        while self.clients.len() < 5 {
            self.open()?;
        }
        let sessions: Vec<_> = self
            .clients
            .keys()
            .filter(|session| self.acts(session))
            .cloned()
            .collect();
        let Some(session) = self.random.pick(&sessions) else {
            return self.pass(100_000);
        };
        if self.happen(&session)? {
            return Ok(());
        }
        let requests: Vec<_> = self.clients[&session].requests.values().cloned().collect();
        let request = self.random.pick(&requests);
        match (self.random.below(1000), request) {
            (..340, _) if requests.len() < 6 => self.request(&session)?,
            (..560, Some(_)) => {
                let count = 1 + self.random.below(2) as usize;
                let twice = self.random.percent(20);
                self.leave(&session, &requests[..count.min(requests.len())], twice)?;
            }
            (..600, Some(request)) => {
                if request.token.is_none() || self.random.percent(30) {
                    self.join(&session, request, "wait")?;
                }
            }
            (..630, Some(request)) => self.replace_link(&session, request)?,
            (..675, Some(_)) => {
                let held: Vec<_> = requests
                    .iter()
                    .filter(|request| request.token.is_some())
                    .cloned()
                    .collect();
                if let Some(request) = self.random.pick(&held) {
                    self.change(&session, request)?;
                }
            }
            (..730, _) => self.revoke(&session)?,
            (..745, _) => self.detach(&session)?,
            (..755, _) => self.break_one()?,
            (..765, _) if self.edits => self.edit()?,
            (..775, _) => self.arrive_late()?,
            (..785, Some(request)) => self.leave_under_another_token(&session, request)?,
            (..800, _) => drop(self.step("sweep", &["sweep", "", "0", "", "0"])?),
            (..830, _) => self.observe()?,
            (..840, _) => self.compare(&session)?,
            _ => {
                let period = [1_000, 20_000, 100_000, 250_000, 700_000, 3_000_000];
                let period = self.random.pick(&period).unwrap_or(1_000);
                self.pass(period)?;
            }
        }
        if self.random.percent(30) && self.paths.iter().any(|path| path.starts_with("election/")) {
            self.observe()?;
        }
        if self.random.percent(50) {
            self.pass(1_000)?;
        }
        Ok(())
    }

    /// A fault of a client: its process dies or is paused, or the server's clock is set back.
    fn happen(&mut self, session: &str) -> Result<bool, String> {
        let event = self.random.below(1000);
        let pauses = if self.clock_jumps { 60 } else { 15 };
        if event < self.deaths {
            self.lose(session);
        } else if event < self.deaths + pauses {
            // For about as long as its lease lasts.
            let (ttl, share) = (self.clients[session].ttl, 50 + self.random.below(100));
            let until = self.now + ttl * 10 * share;
            if let Some(client) = self.clients.get_mut(session) {
                client.paused = until;
            }
        } else if self.clock_jumps && event < self.deaths + pauses + 40 {
            let back = self.random.pick(&[1_000, 50_000, 400_000, 2_000_000]).unwrap_or(1_000);
            self.set_clock(self.now - back);
            // Those that were paused go on in the earlier time.
            for client in self.clients.values_mut() {
                client.paused = 0;
            }
            self.check()?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn request(&mut self, session: &str) -> Result<(), String> {
        let path = self.random.pick(&self.paths.clone()).unwrap_or_default();
        let mode = match path.split('/').next() {
            Some("rw_lock") if self.random.percent(60) => "s".to_owned(),
            Some("double_barrier") if self.random.percent(10) => "g2".to_owned(),
            Some("double_barrier") => format!("g{}", if path.ends_with('d') { 5 } else { 3 }),
            _ => "x".to_owned(),
        };
        let Some(client) = self.clients.get_mut(session) else {
            return Ok(());
        };
        let nonce = client.next_nonce;
        client.next_nonce += 1;
        let request = Request {
            nonce,
            path,
            mode,
            token: None,
            looks: None,
            proclaimed: format!("by {nonce}"),
        };
        let how = if self.random.percent(20) { "try" } else { "wait" };
        self.join(session, request, how)
    }

    /// A new connection, over which the session renews or looks. Then a request of the old one arrives.
    fn replace_link(&mut self, session: &str, request: Request) -> Result<(), String> {
        let (old, epoch) = (self.clients[session].epoch.to_string(), self.next_epoch());
        if let Some(client) = self.clients.get_mut(session) {
            client.epoch = epoch;
        }
        match request.token {
            None => self.join(session, request.clone(), "wait")?,
            Some(_) => self.renew(session)?,
        }
        if self.lives(session) {
            let arguments = ["join", session, &old, "", "999999", &request.path, "x", "wait", ""];
            refused(
                "a request of an older connection",
                &self.step("wait", &arguments)?,
                &["stale", "lost"],
            )?;
        }
        Ok(())
    }

    /// A downgrade or a proclamation.
    fn change(&mut self, session: &str, mut request: Request) -> Result<(), String> {
        let Some(token) = request.token.map(|token| token.to_string()) else {
            return Ok(());
        };
        let client = self.clients.get_mut(session).ok_or("no client")?;
        let (epoch, marker) = (client.epoch.to_string(), client.next_nonce.to_string());
        client.next_nonce += 1;
        let nonce = request.nonce.to_string();
        let answer = match request.path.split('/').next() {
            Some("rw_lock") if request.mode == "x" => {
                let arguments = [
                    "downgrade",
                    session,
                    &epoch,
                    "5",
                    &marker,
                    &nonce,
                    &request.path,
                    &token,
                ];
                let answer = self.step("wait", &arguments)?;
                if self.random.percent(50) && self.lives(session) {
                    let again = self.step("wait", &arguments)?;
                    refused("a repeated downgrade", &again, &["ok", "lost"])?;
                }
                // Else the answer was lost.
                if self.random.percent(50) {
                    request.mode = "s".into();
                }
                answer
            }
            Some("election") => {
                let value = format!("{nonce} at {marker}");
                let path = request.path.clone();
                let proclaim = |value| ["proclaim", session, &epoch, "", &nonce, &path, &token, &marker, value];
                let answer = self.step("wait", &proclaim(&value))?;
                if answer[0] == "ok" {
                    request.proclaimed = value.clone();
                    // One with the same number, or a lower one, arrives late.
                    self.step("wait", &proclaim("late"))?;
                }
                answer
            }
            _ => return Ok(()),
        };
        match &*answer[0] {
            "lost" => self.lose(session),
            "ok" => {
                let client = self.clients.get_mut(session).ok_or("no client")?;
                client.requests.insert(request.nonce, request);
                if answer.get(1).is_some_and(|more| more == "1") {
                    self.sweep_all()?;
                }
            }
            _ if self.edits => {}
            _ => return Err(format!("{request:?}: {answer:?}")),
        }
        Ok(())
    }

    /// All clients live on, until each request was granted and has left. Then no key is left.
    fn calm(&mut self) -> Result<(), String> {
        for client in self.clients.values_mut() {
            client.paused = 0;
        }
        for round in 0..600 {
            let requests: Vec<_> = self
                .clients
                .values()
                .flat_map(|client| {
                    client
                        .requests
                        .values()
                        .map(|request| (client.session.clone(), request.clone()))
                })
                .collect();
            let held: Vec<_> = requests
                .iter()
                .filter(|(_, request)| request.token.is_some())
                .cloned()
                .collect();
            if requests.is_empty() {
                break;
            }
            if let Some((session, request)) = self.random.pick(&held) {
                self.leave(&session, &[request], false)?;
            } else if let Some((session, request)) = requests.iter().find(|(_, request)| request.mode.starts_with('g'))
            {
                // A group may never be complete.
                if round > 20 {
                    self.leave(session, std::slice::from_ref(request), false)?;
                }
            }
            let period = self.random.pick(&[1_000, 150_000, 1_000_000]).unwrap_or(1_000);
            self.pass(period)?;
        }
        let left: Vec<_> = self
            .clients
            .values()
            .filter(|client| !client.requests.is_empty())
            .collect();
        if !left.is_empty() {
            return Err(format!("not granted although none is in the way: {left:?}"));
        }
        for session in self.clients.keys().cloned().collect::<Vec<_>>() {
            self.revoke(&session)?;
        }
        self.pass(70_000_000)?;
        self.sweep_all()?;
        let keys = self.server.run(redis::cmd("KEYS").arg("*"));
        let known = ["CLOCK", "MESSAGES", "token"].map(|key| format!("{ROOT}{key}"));
        let mut keys: Vec<_> = list(&keys)
            .iter()
            .map(text)
            .filter(|key| !known.contains(key))
            .collect();
        // The holder of an entry that was deleted by hand stays until another client wants the object.
        keys.retain(|key| !(self.edits && (key.ends_with("/holders") || key.ends_with("/values"))));
        match keys.is_empty() {
            true => Ok(()),
            false => Err(format!("keys are left: {keys:?}")),
        }
    }
}
