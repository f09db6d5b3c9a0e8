//! The views of observers, and the entries that the server lists.

use std::collections::BTreeSet;

use super::world::World;

impl World<'_> {
    /// Observes an election, or looks into a double barrier.
    pub(crate) fn observe(&mut self) -> Result<(), String> {
        let path = self.random.pick(&self.paths.clone()).unwrap_or_default();
        let sessions: Vec<_> = self
            .clients
            .keys()
            .filter(|session| self.acts(session))
            .cloned()
            .collect();
        let Some(session) = self.random.pick(&sessions) else {
            return Ok(());
        };
        let epoch = self.clients[&session].epoch.to_string();
        if path.starts_with("election/") {
            let answer = loop {
                let answer = self.step("wait", &["head", &session, &epoch, "", "0", &path])?;
                if answer[0] != "sweep" {
                    break answer;
                }
                self.sweep_all()?;
            };
            if answer[0] == "lost" {
                self.lose(&session);
                return Ok(());
            }
            return self.check_leader(&path, &answer);
        }
        if path.starts_with("double_barrier/") {
            // Of the present generation, or of the one before it.
            let inside: Vec<_> = self.objects[&path].holders.clone();
            let Some(token) = inside.iter().map(|place| place.score).max() else {
                return Ok(());
            };
            let first = inside[0].generation().unwrap_or(token);
            for (token, mine) in [(token, true), (first, true), (first - 1, false)] {
                let answer = self.step(
                    "wait",
                    &["inside", &session, &epoch, "", "0", &path, &token.to_string()],
                )?;
                let others = !self.objects[&path].live_holders(self.now).is_empty();
                match &*answer[0] {
                    "lost" => {
                        self.lose(&session);
                        return Ok(());
                    }
                    "sweep" => self.sweep_all()?,
                    "inside" if mine && others => {}
                    "none" if !mine || !others => {}
                    _ => return Err(format!("inside {path} under {token}: {answer:?}")),
                }
            }
        }
        Ok(())
    }

    pub(crate) fn check_leader(&mut self, path: &str, answer: &[String]) -> Result<(), String> {
        let holder = self.objects[path].holders.first().cloned();
        let (version, state) = match &*answer[0] {
            "leader" => (
                answer[2].parse::<u64>().unwrap_or_default() * 2 + 1,
                answer[1..4].to_vec(),
            ),
            _ => (answer[1].parse::<u64>().unwrap_or_default() * 2, Vec::new()),
        };
        match (&holder, &*answer[0]) {
            (Some(place), "leader") if place.score.to_string() == answer[1] => {
                let request = self
                    .clients
                    .get(&place.session)
                    .and_then(|client| client.requests.get(&place.nonce));
                if let Some(request) = request.filter(|request| request.proclaimed != answer[3]) {
                    return Err(format!("{request:?} proclaimed, observed is {answer:?}"));
                }
            }
            (None, "vacant") => {}
            _ => return Err(format!("the holder of {path} is {holder:?}, observed is {answer:?}")),
        }
        if let Some((seen, known)) = self.seen.insert(path.to_owned(), (version, state.clone()))
            && (version < seen || (known != state && version == seen))
            && !self.edits
        {
            return Err(format!(
                "version {version} of {path} after {seen}: {known:?}, then {state:?}"
            ));
        }
        Ok(())
    }

    /// Compares the listed entries of a session with its requests.
    pub(crate) fn compare(&mut self, session: &str) -> Result<(), String> {
        let epoch = self.clients[session].epoch.to_string();
        let answer = self.step("lease", &["entries", session, &epoch, "", "0", "0"])?;
        if answer[0] == "lost" {
            return Ok(());
        }
        let listed: BTreeSet<_> = answer[2..]
            .chunks(3)
            .filter(|entry| entry[1] == "1")
            .map(|entry| {
                (
                    entry[0].clone(),
                    entry[2].split(' ').next().unwrap_or_default().to_owned(),
                )
            })
            .collect();
        let requests = self.clients[session].requests.values();
        let own = requests.map(|request| {
            (
                request.nonce.to_string(),
                request.token.map_or("-".into(), |token| token.to_string()),
            )
        });
        let own: BTreeSet<_> = own.collect();
        match own == listed || self.edits {
            true => Ok(()),
            false => Err(format!("{session} has {own:?}, listed is {answer:?}")),
        }
    }
}
