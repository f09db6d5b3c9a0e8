//! Elections: proclamations and observers.

use super::*;

/// Elections.
impl State {
    pub(crate) fn proclaim(
        &mut self,
        member: &Member,
        request: &Request,
        token: FencingToken,
        number: u64,
        value: &[u8],
    ) -> Result<()> {
        let (object, arrival) = match self.holding(member, request, token) {
            Err(_) if self.planted.has(Bug::ProclaimUnfenced) => {
                let object = self.object_of(request);
                let first = self
                    .wait_queues
                    .get(&object)
                    .and_then(|queue| queue.places.first_key_value());
                (object.clone(), first.map_or(0, |(arrival, _)| *arrival))
            }
            found => found?,
        };
        let late = self.planted.has(Bug::LateProclamationWins);
        let ignored = self.planted.has(Bug::ProclamationIgnored);
        let queue = self.wait_queues.get_mut(&object);
        if let Some(place) = queue.and_then(|queue| queue.places.get_mut(&arrival))
            && (number > place.proclaimed || late)
        {
            place.proclaimed = number;
            if !ignored {
                place.value = value.into();
                self.leader_changed(&object);
            }
        }
        Ok(())
    }

    /// Lets the proclamations of a resumed leadership count from 1: its process does not know the last number.
    pub(crate) fn reset_proclamations(&mut self, object: &Object, arrival: u64) {
        let queue = self.wait_queues.get_mut(object);
        if let Some(place) = queue.and_then(|queue| queue.places.get_mut(&arrival)) {
            place.proclaimed = 0;
        }
    }

    /// Numbers the new state of an election, and wakes its observers.
    pub(super) fn leader_changed(&mut self, object: &Object) {
        if object.kind != Kind::Election {
            return;
        }
        let version = self.next_arrival();
        let Some(queue) = self.wait_queues.get_mut(object) else {
            return;
        };
        if queue.leader().is_none() && self.planted.has(Bug::VacancyMissed) {
            return;
        }
        queue.version = version;
        if queue.places.is_empty() {
            self.vacancy = version;
        }
        self.wake_observers(object);
    }

    /// Returns the state of an election if it is newer than `after`.
    pub(crate) fn look_at_election(
        &mut self,
        member: &Member,
        name: &Name,
        after: Option<u64>,
    ) -> Result<Look<LeaderUpdate>> {
        self.lease(member)?;
        let object = self.object(Kind::Election, name);
        let update = match self.wait_queues.get(&object) {
            Some(queue) => {
                let back = self.planted.has(Bug::ObserverGoesBack) && queue.version % 2 == 0;
                let value = |place: &Place| Arc::clone(if back { &place.brought } else { &place.value });
                let leader = queue
                    .leader()
                    .and_then(|place| Some(Leader::new(place.token?, value(place))));
                LeaderUpdate::new(queue.version, leader)
            }
            None => LeaderUpdate::new(self.vacancy, None),
        };
        if after.is_none_or(|after| update.version > after) {
            return Ok(Look::Done(update));
        }
        let leader = self
            .wait_queues
            .get(&object)
            .and_then(WaitQueue::leader)
            .map(|place| place.session);
        Ok(Look::Until(self.first_end(leader.into_iter().chain([member.session]))))
    }
}
