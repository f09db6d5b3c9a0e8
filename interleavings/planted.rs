/// A fault that a scenario has to find.
struct Planted {
    name: &'static str,
    /// Where in `core/src`.
    file: &'static str,
    /// What the fault runs before, or instead of if it does not go on.
    before: &'static str,
    fault: &'static str,
}

const PLANTED: &[Planted] = &[
    Planted {
        name: "signal: looks, then registers",
        file: "signal.rs",
        before: "                let mut notified = std::pin::pin!(inner.notify.notified());",
        fault: "if let Some(value) = inner.value.get() { return *value; }
                inner.notify.notified().await;
                continue;",
    },
    Planted {
        name: "signal: notifies, then stores",
        file: "signal.rs",
        before: "        let first = self.0.value.set(value).is_ok();",
        fault: "self.0.notify.notify_waiters();
                return self.0.value.set(value).is_ok();",
    },
    Planted {
        name: "signal: two are first",
        file: "signal.rs",
        before: "        let first = self.0.value.set(value).is_ok();",
        fault: "let first = self.0.value.get().is_none();
                let _ = self.0.value.set(value);
                self.0.notify.notify_waiters();
                return first;",
    },
    Planted {
        name: "waits: notifies, then stores",
        file: "waits.rs",
        before: "        *self.news.lock().unwrap_or_else(PoisonError::into_inner) = Some(news);",
        fault: "self.told.notify_one();
                *self.news.lock().unwrap_or_else(PoisonError::into_inner) = Some(news);
                return;",
    },
    Planted {
        name: "waits: wakes only who waits already",
        file: "waits.rs",
        before: "        *self.news.lock().unwrap_or_else(PoisonError::into_inner) = Some(news);",
        fault: "*self.news.lock().unwrap_or_else(PoisonError::into_inner) = Some(news);
                self.told.notify_waiters();
                return;",
    },
    Planted {
        name: "waits: the end of one wait is that of the next",
        file: "waits.rs",
        before: "        let mut cells = self.waits.cells();",
        fault: "self.waits.cells().remove(&self.nonce);
                return;",
    },
    Planted {
        name: "waits: looks for itself, then removes",
        file: "waits.rs",
        before: "        let mut cells = self.waits.cells();",
        fault: "let mine = self.waits.cells().get(&self.nonce).is_some_and(|cell| Arc::ptr_eq(cell, &self.cell));
                if mine { self.waits.cells().remove(&self.nonce); }
                return;",
    },
    Planted {
        name: "waits: stays behind",
        file: "waits.rs",
        before: "        let mut cells = self.waits.cells();",
        fault: "return;",
    },
    Planted {
        name: "bell: notifies, then stores",
        file: "waits.rs",
        before: "        self.rung.store(true, Ordering::Release);",
        fault: "self.told.notify_one();
                self.rung.store(true, Ordering::Release);
                return;",
    },
    Planted {
        name: "slots: looks, then takes",
        file: "slots.rs",
        before: "        let mut state = self.state();
        let slot = state.idle.pop().unwrap_or_else(|| {",
        fault: "let idle = self.state().idle.last().copied();
                if let Some(slot) = idle {
                    let mut state = self.state();
                    state.idle.pop();
                    state.taken.insert(nonce, slot);
                    return slot;
                }",
    },
    Planted {
        name: "slots: settled twice",
        file: "slots.rs",
        before: "        let mut state = self.state();
        if let Some(slot) = state.taken.remove(&nonce) {",
        fault: "if let Some(slot) = self.of(nonce) {
                    let mut state = self.state();
                    state.taken.remove(&nonce);
                    state.idle.push(Slot { last, ..slot });
                    self.free.add_permits(1);
                }
                return;",
    },
    Planted {
        name: "ledger: looks whether it is the last, then removes",
        file: "ledger.rs",
        before: "        let mut inner = self.ledger.inner();
        for (key, (_, queue)) in std::mem::take(&mut self.keys) {",
        fault: "for (key, (_, queue)) in std::mem::take(&mut self.keys) {
                    drop(queue);
                    let last = self.ledger.inner().queues.get(&key).is_some_and(|queue| Arc::strong_count(queue) == 1);
                    if last { self.ledger.inner().queues.remove(&key); }
                }
                return;",
    },
    Planted {
        name: "ledger: leaves while it has a turn",
        file: "ledger.rs",
        before: "        self.guards.clear();",
        fault: "for (key, _) in std::mem::take(&mut self.keys) {
                    self.ledger.inner().queues.remove(&key);
                }",
    },
    Planted {
        name: "gate: checks, then writes",
        file: "fence_gate.rs",
        before: "        // A writer that panicked leaves its half-done value behind, but never an older token.",
        fault: "if let Some(newest) = self.newest().filter(|newest| *newest > token) {
                    return Err(StaleToken { offered: token, newest });
                }
                let mut guarded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                guarded.newest = Some(token);
                return Ok(write(&mut guarded.value));",
    },
    Planted {
        name: "ask: looks for room, then takes it",
        file: "ask.rs",
        before: "        let taken = book
            .places",
        fault: "if book.places() < capacity {
                    book.places.fetch_add(1, Ordering::Relaxed);
                    return Ok(Some(Self::made(kind, name, book)));
                }",
    },
    Planted {
        name: "ask: two claim one token",
        file: "ask.rs",
        before: "        let mut claimed = inner
            .book
            .claimed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match inner.claim.get() {",
        fault: "let claimed = || inner.book.claimed.lock().unwrap_or_else(PoisonError::into_inner);
                let key = (inner.kind, inner.name.clone(), token);
                let free = !claimed().contains(&key);
                claimed().insert(key);
                return free && inner.claim.set(token).is_ok();",
    },
    Planted {
        name: "session: is revived by a late renewal",
        file: "drive.rs",
        before: "        if let Some(reason) = self.loss.get() {
            return Err(reason);
        }
        if let Some(reason) = self.lease.ended() {",
        fault: "let left = self.deadline().since(self.clock.now());
                if !left.is_zero() { return Ok(left); }",
    },
    // The moment that it needs is short: made longer, so that a few rounds are enough to see it.
    Planted {
        name: "session: is revived by a late renewal",
        file: "drive/task.rs",
        before: "                            core.renewed(sent);",
        fault: "for _ in 0..30 { crate::exploring::point(); }",
    },
    Planted {
        name: "session: counts from the arrival of the answer",
        file: "drive/task.rs",
        before: "                            core.renewed(sent);",
        fault: "core.renewed(core.clock.now());
                            due = core.clock.now() + third;
                            continue;",
    },
    Planted {
        name: "session: is revoked, and then ends",
        file: "drive/task.rs",
        before: "                core.lose(LossReason::Closed);
                (reply, Box::pin(async move { closing.revoke().await }))",
        fault: "let _ = core.revoke().await;",
    },
    Planted {
        name: "flight: a dropped request is dropped",
        file: "drive/flight.rs",
        before: "        let future = self.future.take().unwrap_or_else(|| {",
        fault: "return;",
    },
    Planted {
        name: "flight: a grant that crossed is kept",
        file: "drive/flight.rs",
        before: "            core.persist(\"giving back a grant\", || landed.give_back(&settle, &ask))",
        fault: "return;",
    },
    Planted {
        name: "flight: an ending is dropped with its caller",
        file: "drive/flight.rs",
        before: "        let (core, what, first) = (Arc::clone(self.core), self.what, self.future.take());",
        fault: "let _ = ending; return;",
    },
    Planted {
        name: "holding: is released after the end",
        file: "holding.rs",
        before: "        if core.ended_here() {",
        fault: "let (settle, ask, grant) = self.parts();
                core.adopt(async move { let _ = drive::releasing(&settle, &ask, &grant).await; });
                return;",
    },
];
