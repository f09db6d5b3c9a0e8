//! Joining and leaving.

use super::world::{Request, World};

impl World<'_> {
    /// Joins, or looks: it is the same step.
    pub(crate) fn join(&mut self, session: &str, mut request: Request, how: &str) -> Result<(), String> {
        let Some(client) = self.clients.get(session) else {
            return Ok(());
        };
        let (epoch, nonce) = (client.epoch.to_string(), request.nonce.to_string());
        let (operation, mode) = match request.path.split('/').next() {
            Some("election") => ("campaign", "x"),
            Some("double_barrier") => ("enter", &request.mode[1..]),
            _ => ("join", &*request.mode),
        };
        let value = format!("by {nonce}");
        let arguments = [operation, session, &epoch, "", &nonce, &request.path, mode, how, &value];
        let answer = loop {
            let answer = self.step("wait", &arguments)?;
            match &*answer[0] {
                "sweep" => self.step("sweep", &["sweep", "", "0", "", "0"])?,
                _ => break answer,
            };
        };
        let known = self
            .clients
            .get(session)
            .and_then(|client| client.requests.get(&request.nonce));
        let held = known.and_then(|request| request.token);
        let object = &self.objects[&request.path];
        let (holders, waiters) = (object.live_holders(self.now), object.live_waiters(self.now));
        match &*answer[0] {
            "granted" => {
                let token = answer[1].parse().map_err(|_| format!("a token: {answer:?}"))?;
                if held.is_some_and(|held| held != token) {
                    return Err(format!("{request:?} was granted another token: {token}"));
                }
                request.looks = None;
                request.token = Some(token);
            }
            "waiting" => {
                let rest: u64 = answer[1].parse().unwrap_or_default();
                request.looks = Some(self.now + rest * 1000 + 20_000 + self.random.below(100_000));
            }
            "busy" if holders.is_empty() && waiters.is_empty() => return Err(format!("{request:?} was refused")),
            "full" if !holders.is_empty() => return self.forget(session, request.nonce),
            "size" if waiters.iter().any(|place| place.mode != request.mode) => {
                return self.forget(session, request.nonce);
            }
            "busy" | "revoked" => return self.forget(session, request.nonce),
            "lost" => {
                self.lose(session);
                return Ok(());
            }
            _ => return Err(format!("{request:?}: {answer:?}")),
        }
        if let Some(client) = self.clients.get_mut(session) {
            client.requests.insert(request.nonce, request);
        }
        if answer.get(2).is_some_and(|more| more == "1") {
            self.sweep_all()?;
        }
        Ok(())
    }

    fn forget(&mut self, session: &str, nonce: u64) -> Result<(), String> {
        let known = self
            .clients
            .get_mut(session)
            .and_then(|client| client.requests.remove(&nonce));
        // One that waited is withdrawn by the library, as one with an error is.
        match known {
            Some(request) => self.leave(session, &[request], false),
            None => Ok(()),
        }
    }

    /// Ends requests of a client, in one message that may be repeated.
    pub(crate) fn leave(&mut self, session: &str, requests: &[Request], twice: bool) -> Result<(), String> {
        let Some(client) = self.clients.get_mut(session) else {
            return Ok(());
        };
        let marker = client.next_nonce.to_string();
        client.next_nonce += 1;
        let (epoch, slot) = (client.epoch.to_string(), (client.next_nonce % 3).to_string());
        let mut arguments = vec!["leave".into(), session.into(), epoch, slot, marker];
        for request in requests {
            let token = request.token.map(|token| token.to_string()).unwrap_or_default();
            arguments.extend([request.nonce.to_string(), request.path.clone(), token]);
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let is_live = client.ends > self.now;
        let answer = self.step("wait", &arguments)?;
        if answer[0] == "lost" {
            self.lose(session);
            return Ok(());
        }
        if answer[0] != "left" || answer[1].len() != requests.len() {
            return Err(format!("leave: {answer:?}"));
        }
        for (request, ended) in requests.iter().zip(answer[1].chars()) {
            let places = &self.objects[&request.path];
            let id = (session.to_owned(), request.nonce);
            let mut all = places.holders.iter().chain(&places.waiters);
            if all.any(|place| place.id() == id) {
                return Err(format!("{request:?} left and is there"));
            }
            let known = self
                .clients
                .get_mut(session)
                .and_then(|client| client.requests.remove(&request.nonce));
            if known.is_some() && ended != '1' && is_live && !self.edits {
                return Err(format!("{request:?} was not there when it left"));
            }
        }
        if twice {
            let again = self.step("wait", &arguments)?;
            if again[0] != "lost" && again[..2] != answer[..2] {
                return Err(format!("leave answered {answer:?}, then {again:?}"));
            }
        }
        if answer[2] == "1" {
            self.sweep_all()?;
        }
        Ok(())
    }
}
