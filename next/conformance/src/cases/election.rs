//! Elections: rules E1 to E5.

use std::sync::Arc;

use parking_lot::Mutex;
use tenure_core::backend::{Leader, LeaderUpdate};
use tenure_core::guarantees::Line;
use tenure_core::{ElectionHandle, ErrorKind, FencingToken, Leadership, Observer, Result};
use tokio::time::Instant;

use super::{granted, request_is_delayed, still_waiting, waiter};
use crate::case::cases;
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::tools::{
    LONG, LOOK, PROMPT, Task, at_every_await_point, done, ensure, expiry_bound, held, in_time, open, open_linked,
    open_on, operator, promptly, refused, settle, slack, spawn, within,
};

cases! { CASES:
    e1_equal_values_decide_nothing "E1"
        "candidates with the same value, a prefix of it or none are different candidates"
        (Some(Line::MutualExclusion)) [] always;
    e3_deposed_leader_changes_nothing "E3" "a deposed leader's proclamation and resignation are refused with Lost"
        (Some(Line::FencedRelease)) [RevokeRequest] fenced_release;
    e3_cancelled_proclamation_does_not_follow_a_later_one "E3"
        "a proclamation whose caller gave up does not replace a later one"
        (None) [] always;
    e3_late_proclamation_does_not_win "E3"
        "a proclamation that arrives late does not replace a later one" (None) [DelayRequest] always;
    e4_observer_shows_every_change "E4"
        "an observer starts with the current state, and shows proclamations and vacancies"
        (Some(Line::Observers)) [] observers_converge;
    e4_observer_shows_the_end_of_a_dead_leader "E4" "an observer shows the vacancy that a dead leader leaves"
        (Some(Line::Observers)) [Silence] observers_converge;
    e4_observer_converges_after_a_silence "E4" "an observer that was cut off shows the last state, and never goes back"
        (Some(Line::Observers)) [Silence] observers_converge;
    e4_observer_tolerates_disturbances "E4" "an operator's acts on a running store hide no state from an observer"
        (Some(Line::Observers)) [Disturb] observers_converge;
    e4_observers_never_go_back "E4" "however fast leaders change, observers never go back, and show the last state"
        (Some(Line::Observers)) [] observers_converge;
    e5_leadership_is_reclaimed_with_its_value "E5"
        "a resumed session reclaims its leadership, with its token and its value"
        (Some(Line::Resume)) [] resumable;
}

/// The state of an election, as it is compared.
pub(super) type State = Option<(FencingToken, String)>;

fn state(leader: Option<&Leader>) -> State {
    leader.map(|leader| (leader.token, String::from_utf8_lossy(&leader.value).into_owned()))
}

pub(super) fn led(lead: &Leadership, value: &str) -> State {
    Some((lead.token(), value.to_owned()))
}

async fn campaign(election: &ElectionHandle, value: &str) -> Step<Leadership> {
    done("a campaign without contenders", election.campaign(value)).await
}

async fn candidate(harness: &dyn Harness, election: &ElectionHandle, value: &str) -> Step<Task<Result<Leadership>>> {
    let (election, value) = (election.clone(), value.to_owned());
    waiter(harness, async move { election.campaign(value).await }).await
}

pub(super) async fn is_led(election: &ElectionHandle, expected: &State, when: &str) -> Step<()> {
    let found = state(done("leader", election.leader()).await?.as_ref());
    ensure!(
        found == *expected,
        "{when}, leader() is {found:?} instead of {expected:?}"
    );
    Ok(())
}

/// Checks now and a while later: for what goes on in the background.
async fn stays_led(election: &ElectionHandle, expected: &State, when: &str) -> Step<()> {
    is_led(election, expected, when).await?;
    settle().await;
    is_led(election, expected, when).await
}

async fn shows(observer: &mut Observer, expected: &State, when: &str) -> Step<()> {
    let next = tokio::time::timeout(PROMPT, observer.next()).await;
    let next = next.map_err(|_| Outcome::violated(format!("{when}, the observer did not show {expected:?}")))?;
    let Some(update) = next.transpose()? else {
        return Err(Outcome::violated(format!("{when}, the observer ended")));
    };
    let found = state(update.leader.as_ref());
    ensure!(
        found == *expected,
        "{when}, the observer shows {found:?} instead of {expected:?}"
    );
    Ok(())
}

async fn e1_equal_values_decide_nothing(harness: &dyn Harness) -> Verdict {
    let watcher = open(harness, LONG).await?.election("equal");
    let long = "x".repeat(4096);
    let values = ["host", "host", "hos", "", "no leader", &long];
    let mut line = Vec::new();
    for value in values {
        let election = open(harness, LONG).await?.election("equal");
        line.push((value, candidate(harness, &election, value).await?));
    }
    let mut newest = FencingToken::new(0);
    let mut line = line.into_iter();
    while let Some((value, mut first)) = line.next() {
        let lead = granted(&mut first, "the election of the next candidate").await?;
        ensure!(lead.token() > newest, "token {} followed {newest}", lead.token());
        newest = lead.token();
        is_led(&watcher, &led(&lead, value), "after an election").await?;
        let behind: Vec<_> = line.as_slice().iter().map(|(_, task)| task).collect();
        still_waiting("while another candidate led", &behind).await?;
        done("resign", lead.resign()).await?;
    }
    held!(
        "{} candidates with equal and similar values led one after another",
        values.len()
    )
}

async fn e3_deposed_leader_changes_nothing(harness: &dyn Harness) -> Verdict {
    let watcher = open(harness, LONG).await?.election("throne");
    let mut refusal = String::new();
    for resigns in [false, true] {
        let (first, second) = (open(harness, LONG).await?, open(harness, LONG).await?);
        let deposed = campaign(&first.election("throne"), "old").await?;
        let mut next = candidate(harness, &second.election("throne"), "new").await?;
        done("a deletion", operator(harness)?.revoke_request(deposed.key())).await?;
        let next = granted(&mut next, "the election of the next candidate").await?;
        let expected = led(&next, "new");
        let late = promptly("proclaim", deposed.proclaim("old again")).await?;
        refusal = refused("a proclamation by a deposed leader", late, &[ErrorKind::Lost])?.to_string();
        is_led(&watcher, &expected, "after a deposed leader's proclamation").await?;
        match resigns {
            true => {
                let late = promptly("resign", deposed.resign()).await?;
                refused("a resignation by a deposed leader", late, &[ErrorKind::Lost])?;
            }
            false => drop(deposed),
        }
        stays_led(&watcher, &expected, "after a deposed leader's end").await?;
        ensure!(next.is_valid(), "a deposed leader ended its successor's leadership");
        done("resign", next.resign()).await?;
    }
    held!("refused, and the successor's value stayed: {refusal}")
}

async fn e3_cancelled_proclamation_does_not_follow_a_later_one(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let watcher = open(harness, LONG).await?.election("word");
    let lead = campaign(&session.election("word"), "first").await?;
    let (lead, round) = (&lead, std::cell::Cell::new(0));
    let dropped = at_every_await_point(
        async || {
            round.set(round.get() + 1);
            Ok(lead.proclaim(format!("hasty {}", round.get())))
        },
        async |_| {
            let last = format!("last {}", round.get());
            done("proclaim", lead.proclaim(&last)).await?;
            stays_led(&watcher, &led(lead, &last), "after the later proclamation").await
        },
    );
    let dropped = dropped.await?;
    held!("{dropped} proclamations were dropped, and the later one stayed each time")
}

async fn e3_late_proclamation_does_not_win(harness: &dyn Harness) -> Verdict {
    let watcher = open(harness, LONG).await?.election("word");
    let (session, link) = open_linked(harness, LONG).await?;
    let lead = Arc::new(campaign(&session.election("word"), "first").await?);
    link.delay_request();
    let speaker = Arc::clone(&lead);
    let mut early = spawn(async move { speaker.proclaim("early").await });
    request_is_delayed(&*link).await?;
    let confirmed = early
        .end(PROMPT, "the end of a proclamation whose request was kept")
        .await?;
    ensure!(
        confirmed.is_ok() || lead.is_valid(),
        "a proclamation whose request was kept ended the leadership: {confirmed:?}"
    );
    done("proclaim", lead.proclaim("later")).await?;
    link.deliver();
    stays_led(&watcher, &led(&lead, "later"), "after the early proclamation arrived").await?;
    link.delay_request();
    let speaker = Arc::clone(&lead);
    let speaking = spawn(async move { speaker.proclaim("late").await });
    request_is_delayed(&*link).await?;
    drop((speaking, lead));
    let other = open(harness, LONG).await?;
    let next = campaign(&other.election("word"), "next").await?;
    link.deliver();
    stays_led(
        &watcher,
        &led(&next, "next"),
        "after a former leader's proclamation arrived",
    )
    .await?;
    held!("proclamations that arrived after a later one, or in the next leadership, changed nothing")
}

async fn e4_observer_shows_every_change(harness: &dyn Harness) -> Verdict {
    let (a, b) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let watching = open(harness, LONG).await?;
    let election = watching.election("seen");
    let mut observer = election.observe();
    shows(&mut observer, &None, "before any election").await?;
    let first = campaign(&a.election("seen"), "a").await?;
    shows(&mut observer, &led(&first, "a"), "after an election").await?;
    let (token, mut late) = (first.token(), election.observe());
    shows(&mut late, &led(&first, "a"), "at the start").await?;
    for value in ["a, ready", "b, ready", ""] {
        done("proclaim", first.proclaim(value)).await?;
        ensure!(
            first.token() == token,
            "a proclamation changed token {token} to {}",
            first.token()
        );
        is_led(&election, &led(&first, value), "after a proclamation").await?;
        shows(&mut observer, &led(&first, value), "after a proclamation").await?;
        shows(&mut late, &led(&first, value), "after a proclamation").await?;
    }
    let mut next = candidate(harness, &b.election("seen"), "b").await?;
    done("resign", first.resign()).await?;
    let next = granted(&mut next, "the election of the next candidate").await?;
    shows(
        &mut observer,
        &led(&next, "b"),
        "after a resignation with a candidate behind",
    )
    .await?;
    done("resign", next.resign()).await?;
    shows(&mut observer, &None, "after a resignation").await?;
    let again = campaign(&b.election("seen"), "b").await?;
    shows(&mut observer, &led(&again, "b"), "after a second term").await?;
    done("close", b.close()).await?;
    shows(&mut observer, &None, "after the end of the leader's session").await?;
    done("close", watching.close()).await?;
    let end = promptly("the end of the observer", observer.next()).await?;
    ensure!(end.is_none(), "an observer whose session was closed shows {end:?}");
    held!("the current state, elections, proclamations, vacancies, and its own end")
}

async fn e4_observer_shows_the_end_of_a_dead_leader(harness: &dyn Harness) -> Verdict {
    let mut observer = open(harness, LONG).await?.election("mortal").observe();
    shows(&mut observer, &None, "before any election").await?;
    let (session, link) = open_linked(harness, harness.ttl()).await?;
    let lead = campaign(&session.election("mortal"), "alive").await?;
    shows(&mut observer, &led(&lead, "alive"), "after an election").await?;
    let early = tokio::time::timeout(session.ttl() * 2, observer.next()).await;
    ensure!(early.is_err(), "while the leader lived, the observer showed {early:?}");
    link.silence();
    let (at, limit) = (Instant::now(), session.ttl() + expiry_bound(harness).await? + slack());
    let next = within(limit, "the vacancy of a dead leader", observer.next()).await?;
    let vacant = matches!(&next, Some(Ok(LeaderUpdate { leader: None, .. })));
    ensure!(vacant, "after the leader's death the observer shows {next:?}");
    ensure!(
        !lead.is_valid(),
        "the observer showed a vacancy while the leader was valid"
    );
    link.heal();
    held!(
        "shown {:?} after the leader's last sign of life, with a TTL of {:?}",
        at.elapsed(),
        session.ttl()
    )
}

/// The states that an observer in a task of its own has shown.
pub(super) struct Watch {
    shown: Arc<Mutex<Vec<State>>>,
    task: Task<Result<()>>,
}

impl Watch {
    pub(super) fn start(mut observer: Observer) -> Self {
        let shown: Arc<Mutex<Vec<State>>> = Arc::default();
        let states = Arc::clone(&shown);
        let task = spawn(async move {
            while let Some(update) = observer.next().await {
                let state = state(update?.leader.as_ref());
                states.lock().push(state);
            }
            Ok(())
        });
        Self { shown, task }
    }

    pub(super) async fn comes_to(&self, last: &State, when: &str) -> Step<()> {
        let showing = async {
            while self.shown.lock().last() != Some(last) {
                tokio::time::sleep(LOOK).await;
            }
        };
        let shown = tokio::time::timeout(PROMPT, showing).await;
        shown.map_err(|_| {
            let seen = self.shown.lock().last().cloned();
            Outcome::violated(format!("{when}, the observer shows {seen:?} instead of {last:?}"))
        })
    }

    /// Waits until the observer has ended, as it does with its session; returns false if it shows `last` instead.
    pub(super) async fn ends_before(&self, last: &State) -> bool {
        let ending = async {
            while !self.task.is_finished() && self.shown.lock().last() != Some(last) {
                tokio::time::sleep(LOOK).await;
            }
        };
        // The caller judges an observer that does neither.
        let _ = tokio::time::timeout(PROMPT, ending).await;
        self.task.is_finished()
    }

    /// Checks that tokens and the numbers in the values of one leader rise; returns how many states were shown.
    pub(super) fn never_went_back(&self) -> Step<usize> {
        let states = self.shown.lock();
        let led: Vec<_> = states.iter().flatten().collect();
        for pair in led.windows(2) {
            let [(token, value), (next, later)] = [pair[0], pair[1]];
            let back = token > next || (token == next && value > later);
            ensure!(
                !back,
                "the observer showed {later:?} of token {next} after {value:?} of token {token}"
            );
        }
        Ok(states.len())
    }
}

async fn e4_observer_converges_after_a_silence(harness: &dyn Harness) -> Verdict {
    const CHANGES: usize = 4;
    let (session, link) = open_linked(harness, LONG).await?;
    let watch = Watch::start(session.election("away").observe());
    let sessions = [open(harness, LONG).await?, open(harness, LONG).await?];
    let mut lead = campaign(&sessions[0].election("away"), "0").await?;
    watch.comes_to(&led(&lead, "0"), "before the silence").await?;
    link.silence();
    for number in 1..=CHANGES {
        let mut next = candidate(harness, &sessions[number % 2].election("away"), "1").await?;
        done("resign", lead.resign()).await?;
        lead = granted(&mut next, "the election of the next candidate").await?;
        done("proclaim", lead.proclaim("2")).await?;
    }
    in_time!(
        watch.shown.lock().last() != Some(&led(&lead, "2")),
        "the silence hid nothing"
    );
    link.heal();
    watch.comes_to(&led(&lead, "2"), "after the silence").await?;
    done("proclaim", lead.proclaim("3")).await?;
    watch
        .comes_to(&led(&lead, "3"), "after the silence and another proclamation")
        .await?;
    let shown = watch.never_went_back()?;
    held!("{CHANGES} changes of leadership during a silence; {shown} states were shown, in order, and the last")
}

async fn e4_observer_tolerates_disturbances(harness: &dyn Harness) -> Verdict {
    let election = open(harness, LONG).await?.election("disturbed");
    let watch = Watch::start(open(harness, LONG).await?.election("disturbed").observe());
    let rounds = 4;
    for _ in 0..rounds {
        let lead = campaign(&election, "0").await?;
        done("a disturbance", operator(harness)?.disturb()).await?;
        done("proclaim", lead.proclaim("1")).await?;
        watch.comes_to(&led(&lead, "1"), "after a disturbance").await?;
        done("a disturbance", operator(harness)?.disturb()).await?;
        done("resign", lead.resign()).await?;
        watch.comes_to(&None, "after a disturbance").await?;
    }
    watch.never_went_back()?;
    held!("{rounds} terms with a disturbance before each change, all of them shown")
}

async fn e4_observers_never_go_back(harness: &dyn Harness) -> Verdict {
    const LEADERS: usize = 3;
    const TERMS: usize = 6;
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(Watch::start(open(harness, LONG).await?.election("turmoil").observe()));
    }
    let mut leaders = Vec::new();
    for _ in 0..LEADERS {
        let election = open(harness, LONG).await?.election("turmoil");
        leaders.push(spawn(async move {
            for _ in 0..TERMS {
                let lead = election.campaign("0").await?;
                for number in 1..5 {
                    lead.proclaim(number.to_string()).await?;
                    tokio::task::yield_now().await;
                }
                lead.resign().await?;
            }
            Ok(())
        }));
    }
    for leader in &mut leaders {
        granted(leader, "the terms of a leader").await?;
    }
    let election = open(harness, LONG).await?.election("turmoil");
    let last = campaign(&election, "the last").await?;
    let mut seen = Vec::new();
    for watch in &watches {
        watch.comes_to(&led(&last, "the last"), "after all terms").await?;
        seen.push(watch.never_went_back()?);
    }
    held!(
        "of {} terms the observers showed {seen:?} states, in order, and the last",
        LEADERS * TERMS
    )
}

async fn e5_leadership_is_reclaimed_with_its_value(harness: &dyn Harness) -> Verdict {
    let (store, other) = (
        done("a connection", harness.connect()).await?,
        open(harness, LONG).await?,
    );
    let watcher = other.election("kept");
    let session = open_on(&store, LONG).await?;
    let first = campaign(&session.election("kept"), "first").await?;
    done("proclaim", first.proclaim("before")).await?;
    let token = first.token();
    let mut next = candidate(harness, &watcher, "next").await?;
    let id = done("detach", session.detach()).await?;
    let resumed = done("resume", store.resume(&id)).await?;
    let second = done("reclaim", resumed.election("kept").reclaim(token)).await?;
    ensure!(
        second.token() == token,
        "reclaimed under token {}, not {token}",
        second.token()
    );
    is_led(&watcher, &led(&second, "before"), "after the reclaim").await?;
    done("proclaim", second.proclaim("after")).await?;
    let late = promptly("proclaim", first.proclaim("late")).await?;
    refused("a proclamation by the detached session", late, &[ErrorKind::Lost])?;
    drop(first);
    stays_led(&watcher, &led(&second, "after"), "after the detached session's end").await?;
    ensure!(
        !next.is_finished(),
        "another candidate leads beside a reclaimed leadership"
    );
    done("resign", second.resign()).await?;
    let next = granted(&mut next, "the election of the next candidate").await?;
    ensure!(next.token() > token, "token {} followed {token}", next.token());
    held!("reclaimed once under token {token}, with its value; the former session changed nothing")
}
