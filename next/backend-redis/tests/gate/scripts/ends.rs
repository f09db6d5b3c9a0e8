//! How sessions and holdings end: revocation, detachment, an operator, late requests.

use super::server::{ROOT, text};
use super::world::{Client, Request, World};

pub(crate) fn refused(what: &str, answer: &[String], refusals: &[&str]) -> Result<(), String> {
    match refusals.contains(&&*answer[0]) {
        true => Ok(()),
        false => Err(format!("{what}: {answer:?}")),
    }
}

impl World<'_> {
    pub(crate) fn revoke(&mut self, session: &str) -> Result<(), String> {
        let epoch = self.clients[session].epoch.to_string();
        self.lose(session);
        loop {
            let answer = self.step("sweep", &["revoke", session, &epoch, "", "0"])?;
            if answer[1] == "1" {
                self.sweep_all()?;
            }
            if answer[0] != "more" || self.random.percent(10) {
                return Ok(());
            }
        }
    }

    /// Detaches with some of the holdings, and resumes over a connection that may be older.
    pub(crate) fn detach(&mut self, session: &str) -> Result<(), String> {
        let Some(mut client) = self.clients.remove(session) else {
            return Ok(());
        };
        let (kept, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut client.requests).into_values().partition(|request| {
            request.token.is_some() && !request.path.starts_with("double") && self.random.percent(70)
        });
        let (epoch, next) = (client.epoch.to_string(), client.next_nonce.to_string());
        let mut arguments = vec![
            "detach".to_owned(),
            session.into(),
            epoch.clone(),
            String::new(),
            "0".into(),
            "1".into(),
            next.clone(),
        ];
        arguments.extend(kept.iter().map(|request| request.nonce.to_string()));
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let answer = self.step("sweep", &arguments)?;
        refused("detach", &answer, &["ok", "more", "lost"])?;
        if answer[0] == "lost" {
            return Ok(());
        }
        if answer[1] == "1" || answer[0] == "more" && self.random.percent(50) {
            self.sweep_all()?;
        }
        let arguments = [
            "join",
            session,
            &epoch,
            "",
            &next,
            &self.paths[0].clone(),
            "x",
            "wait",
            "",
        ];
        refused(
            "a join after the detachment",
            &self.step("wait", &arguments)?,
            &["detached", "lost"],
        )?;
        let away = self.random.pick(&[1_000, 100_000, 700_000]).unwrap_or_default();
        self.pass(away)?;
        let offered = self.random.below(self.last_epoch + 1).to_string();
        let resume = ["resume", session, &offered, "", "0", "by me"];
        let mut answer = self.step("lease", &resume)?;
        for _ in 0..100 {
            if answer[0] == "sweep" {
                self.sweep_all()?;
                answer = self.step("lease", &resume)?;
            }
        }
        match &*answer[0] {
            "lost" => return Ok(()),
            "ok" if answer[3] == next => {}
            _ => return Err(format!("resume: {answer:?}")),
        }
        refused(
            "a second resume",
            &self.step("lease", &["resume", session, &offered, "", "0", "by another"])?,
            &["conflict", "lost"],
        )?;
        let arguments = ["leave", session, &epoch, "1", &next, "1", &self.paths[0].clone(), ""];
        refused(
            "a step of the former process",
            &self.step("wait", &arguments)?,
            &["stale", "lost"],
        )?;
        for request in &rest {
            let gone = self
                .holders()
                .iter()
                .all(|(_, place)| place.id() != (session.to_owned(), request.nonce));
            if !gone {
                return Err(format!("{request:?} was not kept and is there after the resumption"));
            }
        }
        let epoch: u64 = answer[1].parse().unwrap_or_default();
        self.last_epoch = self.last_epoch.max(epoch);
        let requests = kept.into_iter().map(|request| (request.nonce, request)).collect();
        let resumed = Client {
            epoch,
            requests,
            renews: self.now,
            ..client
        };
        self.clients.insert(session.to_owned(), resumed);
        self.pass(0)
    }

    pub(crate) fn break_one(&mut self) -> Result<(), String> {
        let Some((path, place)) = self.random.pick(&self.holders()) else {
            return Ok(());
        };
        let arguments = ["break", "", "0", "", "0", &path, &place.score.to_string()];
        let answer = self.step("admin", &arguments)?;
        if answer[0] != "ok" || self.holders().iter().any(|(_, other)| other.id() == place.id()) {
            return Err(format!("{place:?} was broken: {answer:?}"));
        }
        let nonce = place.nonce.to_string();
        if let Some(client) = self.clients.get(&place.session) {
            if client.requests.contains_key(&place.nonce) {
                return Err(format!("the client of {place:?} was not notified"));
            }
            // The library repeats a join, then withdraws.
            let (operation, mode) = match path.split('/').next() {
                Some("election") => ("campaign", "x"),
                Some("double_barrier") => ("enter", "3"),
                _ => ("join", "x"),
            };
            let epoch = client.epoch.to_string();
            let arguments = [operation, &place.session, &epoch, "", &nonce, &path, mode, "wait", ""];
            refused(
                "a join after its holding was broken",
                &self.step("wait", &arguments)?,
                &["revoked", "lost"],
            )?;
            let token = Some(place.score);
            let (mode, proclaimed) = (place.mode.clone(), String::new());
            let request = Request {
                nonce: place.nonce,
                path,
                mode,
                token,
                looks: None,
                proclaimed,
            };
            self.leave(&place.session, &[request], false)?;
        }
        if answer[3] == "1" {
            self.sweep_all()?;
        }
        Ok(())
    }

    /// An operator deletes the entry of a dead session, or a record.
    pub(crate) fn edit(&mut self) -> Result<(), String> {
        let Some((_, place)) = self.random.pick(&self.holders()) else {
            return Ok(());
        };
        let session = &place.session;
        if self.random.percent(50) {
            self.server
                .run(redis::cmd("DEL").arg(format!("{ROOT}session/{session}")));
            self.lose(session);
        } else if !self.lives(session) {
            self.server
                .run(redis::cmd("HDEL").arg(format!("{ROOT}held/{session}")).arg(place.nonce));
        }
        self.edited = true;
        self.check()
    }

    /// A step of a session that its client has given up.
    pub(crate) fn arrive_late(&mut self) -> Result<(), String> {
        let Some((session, epoch, request)) = self.random.pick(&self.late.clone()) else {
            return Ok(());
        };
        if self.lives(&session) {
            return Ok(()); // resumed
        }
        let key = format!("{ROOT}session/{session}");
        let gone = text(&self.server.run(redis::cmd("EXISTS").arg(key))) == "0";
        let (epoch, nonce) = (epoch.to_string(), request.nonce.to_string());
        let token = request.token.map(|token| token.to_string()).unwrap_or_default();
        let answer = if self.random.percent(60) {
            self.step(
                "wait",
                &["leave", &session, &epoch, "7", "1000000", &nonce, &request.path, &token],
            )?
        } else {
            let (operation, mode) = match request.path.split('/').next() {
                Some("election") => ("campaign", "x"),
                Some("double_barrier") => ("enter", &request.mode[1..]),
                _ => ("join", &*request.mode),
            };
            self.step(
                "wait",
                &[operation, &session, &epoch, "", &nonce, &request.path, mode, "wait", ""],
            )?
        };
        if gone && answer[0] != "lost" {
            return Err(format!("{request:?} acted after the end of its session: {answer:?}"));
        }
        if answer.last().is_some_and(|more| more == "1") && answer[0] == "left" {
            self.sweep_all()?;
        }
        Ok(())
    }

    pub(crate) fn leave_under_another_token(&mut self, session: &str, request: Request) -> Result<(), String> {
        let Some(token) = request.token else {
            return Ok(());
        };
        let client = self.clients.get_mut(session).ok_or("no client")?;
        let (epoch, marker) = (client.epoch.to_string(), client.next_nonce.to_string());
        client.next_nonce += 1;
        client.requests.remove(&request.nonce);
        let (nonce, token) = (request.nonce.to_string(), (token + 1).to_string());
        let answer = self.step(
            "wait",
            &["leave", session, &epoch, "6", &marker, &nonce, &request.path, &token],
        )?;
        match &*answer[0] {
            "lost" => self.lose(session),
            "left" if answer[1] == "0" => {
                if answer[2] == "1" {
                    self.sweep_all()?;
                }
            }
            _ => return Err(format!("a release under another token: {answer:?}")),
        }
        Ok(())
    }
}
