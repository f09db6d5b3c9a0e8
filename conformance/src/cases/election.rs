//! Elections: rules E1 to E5.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tenure_core::{
    ElectionHandle, ErrorKind, FencingToken, Leader, Leadership, LossReason, Observer,
};

use super::cancel::{QUIET, at_every_await_point, was_last};
pub use super::limits::e4_values_of_every_size_are_seen;
use super::mass_death::{Wanted, survivor_is_served};
use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::harness::{Harness, Linked};

type Step<T> = std::result::Result<T, Outcome>;

/// Within this an observer must show the last state after its network has returned.
const CATCH_UP: Duration = Duration::from_secs(2);

/// A task that campaigns and returns its leadership.
fn candidate(
    handle: &ElectionHandle,
    value: impl Into<String>,
) -> Task<tenure_core::Result<Leadership>> {
    let (handle, value) = (handle.clone(), value.into());
    spawn(async move { handle.campaign(value).await })
}

async fn campaign(handle: &ElectionHandle, value: &str) -> Step<Leadership> {
    Ok(promptly("an uncontested campaign", handle.campaign(value)).await??)
}

async fn resign(lead: Leadership) -> Step<()> {
    Ok(promptly("a resignation", lead.resign()).await??)
}

async fn proclaim(lead: &Leadership, value: &str) -> Step<()> {
    Ok(promptly("a proclamation", lead.proclaim(value)).await??)
}

async fn leader(handle: &ElectionHandle) -> Step<Option<Leader>> {
    Ok(promptly("an answer to leader()", handle.leader()).await??)
}

/// What observers and `leader()` are compared by.
type State = Option<(FencingToken, String)>;

fn state(leader: Option<&Leader>) -> State {
    leader.map(|leader| (leader.token(), leader.text().into_owned()))
}

fn led(lead: &Leadership, value: &str) -> State {
    Some((lead.token(), value.to_owned()))
}

async fn is_led(handle: &ElectionHandle, expected: State, when: &str) -> Step<()> {
    let found = state(leader(handle).await?.as_ref());
    ensure!(
        found == expected,
        "{when}, leader() is {found:?} and not {expected:?}"
    );
    Ok(())
}

async fn shows(observer: &mut Observer, expected: State, when: &str) -> Step<()> {
    let next = promptly(&format!("{when}: the next state"), observer.next()).await?;
    let Some(next) = next.transpose()? else {
        return Err(Outcome::violated(format!("{when}, the observer ended")));
    };
    let found = state(next.as_ref());
    ensure!(
        found == expected,
        "{when}, the observer shows {found:?} and not {expected:?}"
    );
    Ok(())
}

/// Whether nobody else became the leader for a while: long enough for what goes on in the
/// background.
async fn stays_led(handle: &ElectionHandle, expected: &State, when: &str) -> Step<()> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(600) {
        is_led(handle, expected.clone(), when).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Waits until nobody leads or stands, and leads and resigns once to prove it.
async fn nothing_is_left(
    harness: &dyn Harness,
    probe: &ElectionHandle,
    baseline: usize,
) -> Step<()> {
    let trying = async {
        loop {
            match probe.try_campaign("probe").await {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                done => return done,
            }
        }
    };
    let lead = promptly("afterwards: try_campaign finding nobody", trying).await??;
    resign(lead).await?;
    keys_return_to(baseline, PROMPT, harness).await
}

/// E1: many candidates, never two leaders.
pub async fn e1_one_leads_at_a_time(harness: &dyn Harness) -> Verdict {
    const CANDIDATES: usize = 6;
    const ROUNDS: usize = 5;
    let leading = Arc::new(AtomicUsize::new(0));
    let overlaps = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    // All before the first begins: opening may take longer than all its rounds.
    let mut sessions = Vec::new();
    for _ in 0..CANDIDATES.div_ceil(2) {
        sessions.push(open(harness, LONG).await?);
    }
    for number in 0..CANDIDATES {
        // Two candidates of each session are two candidates.
        let handle = sessions[number / 2].election("office")?;
        let (leading, overlaps) = (Arc::clone(&leading), Arc::clone(&overlaps));
        tasks.push(spawn(async move {
            for round in 0..ROUNDS {
                let value = format!("{number}.{round}");
                let lead = handle.campaign(value).await?;
                overlaps.fetch_add(leading.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                let seen = handle.leader().await?;
                // Somebody else in office while we are is an overlap, too.
                if seen.is_none_or(|seen| seen.token() != lead.token()) {
                    overlaps.fetch_add(1, Ordering::SeqCst);
                }
                leading.fetch_sub(1, Ordering::SeqCst);
                lead.resign().await?;
            }
            Ok::<_, tenure_core::Error>(())
        }));
    }
    for task in &mut tasks {
        task.end(Duration::from_secs(30), "the candidates' terms")
            .await??;
    }
    let (overlaps, terms) = (overlaps.load(Ordering::SeqCst), CANDIDATES * ROUNDS);
    ensure!(
        overlaps == 0,
        "of {terms} terms, {overlaps} met another leader"
    );
    held!("{terms} terms of {CANDIDATES} candidates, one at a time, each seen by leader()")
}

/// E2: the token rises with each leadership, however the one before ended, and stays for as long
/// as the leadership does.
pub async fn e2_the_token_rises_with_each_leadership(harness: &dyn Harness) -> Verdict {
    let watcher = open(harness, LONG).await?.election("terms")?;
    let mut tokens: Vec<FencingToken> = Vec::new();
    for round in 0..9 {
        let session = open(harness, LONG).await?;
        let handle = session.election("terms")?;
        let lead = within(PROMPT, "an election", handle.campaign("first")).await??;
        let token = lead.token();
        if let Some(before) = tokens.last() {
            ensure!(
                token > *before,
                "a leader with token {token} came after one with {before}"
            );
        }
        proclaim(&lead, "second").await?;
        is_led(&watcher, led(&lead, "second"), "after a proclamation").await?;
        tokens.push(token);
        match round % 3 {
            0 => resign(lead).await?,
            1 => drop(lead),
            _ => promptly("close", session.clone().close()).await??,
        }
    }
    held!("tokens {tokens:?}, each the same for leader() before and after a proclamation")
}

/// E3: one who was deposed can neither proclaim nor resign for the one who leads now.
pub async fn e3_a_deposed_leader_changes_nothing(harness: &dyn Harness) -> Verdict {
    let watcher = open(harness, LONG).await?.election("throne")?;
    let mut said = Vec::new();
    for resigns in [false, true] {
        let (first, second) = (open(harness, LONG).await?, open(harness, LONG).await?);
        let deposed = campaign(&first.election("throne")?, "old").await?;
        let mut arrivals = Arrivals::watch(harness).await?;
        let mut next = candidate(&second.election("throne")?, "new");
        arrivals.one_more().await?;
        // Its session lives on, and nobody has told it yet.
        operator(harness)?.delete(deposed.key()).await?;
        let next = next.end(PROMPT, "the election of the next").await??;
        let expected = led(&next, "new");
        let answer = promptly("an answer", deposed.proclaim("old again")).await?;
        let refusal = refused(
            "a proclamation by a deposed leader",
            answer,
            &[ErrorKind::Lost],
        )?;
        said.push(refusal.to_string());
        is_led(&watcher, expected.clone(), "after a late proclamation").await?;
        if resigns {
            let answer = promptly("an answer", deposed.resign()).await?;
            refused(
                "a resignation by a deposed leader",
                answer,
                &[ErrorKind::Lost],
            )?;
        } else {
            drop(deposed);
        }
        stays_led(&watcher, &expected, "after a late resignation").await?;
        ensure!(next.is_valid(), "the new leader lost its leadership");
        proclaim(&next, "newer").await?;
        is_led(&watcher, led(&next, "newer"), "after a proclamation").await?;
        resign(next).await?;
    }
    held!("refused, and the new leader's value stood: {}", said[0])
}

/// E3: a proclamation that its caller gave up does not land after a later one.
pub async fn e3_the_last_proclamation_stands(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let watcher = open(harness, LONG).await?.election("word")?;
    let lead = campaign(&session.election("word")?, "first").await?;
    for polls in 0..6 {
        let hasty = format!("hasty {polls}");
        let _ = give_up_after(polls, QUIET, lead.proclaim(&hasty)).await;
        let last = format!("last {polls}");
        proclaim(&lead, &last).await?;
        is_led(&watcher, led(&lead, &last), "after a proclamation").await?;
        let when = "some time after a proclamation";
        stays_led(&watcher, &led(&lead, &last), when).await?;
    }
    resign(lead).await?;
    held!("six proclamations stood, each after one that its caller had given up")
}

/// E3: so it is when the link was silent meanwhile.
pub async fn e3_a_proclamation_is_made_good_after_a_silence(harness: &dyn Harness) -> Verdict {
    let Linked { store, link } = harness.linked().await?;
    let session = promptly("open", open_on(&store, LONG)).await??;
    let watcher = open(harness, LONG).await?.election("word")?;
    let lead = Arc::new(campaign(&session.election("word")?, "first").await?);
    link.silence();
    let hasty = Duration::from_millis(100);
    let _ = tokio::time::timeout(hasty, lead.proclaim("hasty")).await;
    let speaker = Arc::clone(&lead);
    let mut patient = spawn(async move { speaker.proclaim("patient").await });
    tokio::time::sleep(QUIET).await;
    ensure!(!patient.is_finished(), "confirmed over a silent link");
    is_led(&watcher, led(&lead, "first"), "during a silence").await?;
    link.heal();
    patient
        .end(
            Duration::from_secs(12),
            "the proclamation, after the silence",
        )
        .await??;
    let expected = led(&lead, "patient");
    stays_led(&watcher, &expected, "after the silence").await?;
    held!("the proclamation that was waited for stood, and not the one given up before it")
}

/// E4: an observer starts with the present and shows what changes, vacancies too.
pub async fn e4_an_observer_shows_every_change(harness: &dyn Harness) -> Verdict {
    let (a, b) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let watching = open(harness, LONG).await?;
    let handle = watching.election("seen")?;
    let mut observer = handle.observe();
    shows(&mut observer, None, "before any election").await?;
    let first = campaign(&a.election("seen")?, "a").await?;
    shows(&mut observer, led(&first, "a"), "after an election").await?;
    let mut late = handle.observe();
    shows(&mut late, led(&first, "a"), "at the start").await?;
    proclaim(&first, "a, ready").await?;
    let expected = led(&first, "a, ready");
    shows(&mut observer, expected.clone(), "after a proclamation").await?;
    shows(&mut late, expected, "after a proclamation").await?;
    let mut arrivals = Arrivals::watch(harness).await?;
    let mut next = candidate(&b.election("seen")?, "b");
    arrivals.one_more().await?;
    resign(first).await?;
    let next = next.end(PROMPT, "the election of the next").await??;
    shows(&mut observer, led(&next, "b"), "after a hand-over").await?;
    resign(next).await?;
    shows(&mut observer, None, "after a resignation").await?;
    let again = campaign(&b.election("seen")?, "b").await?;
    shows(&mut observer, led(&again, "b"), "after a second term").await?;
    promptly("close", b.close()).await??;
    shows(&mut observer, None, "after the end of the leader's session").await?;
    promptly("close", watching.close()).await??;
    let end = promptly("the end of the observer", observer.next()).await?;
    ensure!(
        end.is_none(),
        "an observer whose session was closed goes on with {end:?}"
    );
    held!(
        "vacancy, election, proclamation, hand-over, vacancy, a second term, and a closed session"
    )
}

/// E4: the end of a leader that died shows, with nobody behind it.
pub async fn e4_an_observer_shows_the_end_of_a_dead_leader(harness: &dyn Harness) -> Verdict {
    let bound = expiry_bound(harness).await?;
    let mut observer = open(harness, LONG).await?.election("mortal")?.observe();
    shows(&mut observer, None, "before any election").await?;
    let process = Process::start()?;
    let (store, ttl) = (harness.connect().await?, harness.ttl());
    let leading = async move {
        let session = open_on(&store, ttl).await?;
        let lead = session.election("mortal")?.try_campaign("alive").await?;
        Ok::<_, tenure_core::Error>((session, lead))
    };
    let (session, lead) = process.run(leading).await??;
    shows(&mut observer, led(&lead, "alive"), "after an election").await?;
    // Long enough for a lease that nobody renews to have ended.
    tokio::time::sleep(session.ttl() + bound).await;
    let early = tokio::time::timeout(Duration::from_millis(10), observer.next()).await;
    ensure!(
        early.is_err(),
        "while the leader lived, the observer showed {early:?}"
    );
    process.kill().await;
    let killed = Instant::now();
    let limit = session.ttl() + bound + SLACK;
    let next = within(limit, "the vacancy after a leader's death", observer.next()).await?;
    let took = killed.elapsed();
    ensure!(
        matches!(next, Some(Ok(None))),
        "after the leader's death the observer shows {next:?}"
    );
    held!(
        "shown {took:?} after the leader's death; its TTL was {:?}",
        session.ttl()
    )
}

/// What an observer in a task of its own has shown.
#[derive(Clone, Default)]
struct Shown(Arc<Mutex<Vec<State>>>);

impl Shown {
    fn collect(mut observer: Observer) -> (Self, Task<tenure_core::Result<()>>) {
        let shown = Self::default();
        let states = Arc::clone(&shown.0);
        let task = spawn(async move {
            while let Some(leader) = observer.next().await {
                let leader = leader?;
                let mut states = states.lock().unwrap_or_else(PoisonError::into_inner);
                states.push(state(leader.as_ref()));
            }
            Ok(())
        });
        (shown, task)
    }

    fn states(&self) -> Vec<State> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn ends_with(&self, last: &State, limit: Duration, what: &str) -> Step<()> {
        let showing = async {
            while self.states().last() != Some(last) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let shown = within(limit, &format!("{what}: the state {last:?}"), showing).await;
        shown.map_err(|_| {
            Outcome::violated(format!(
                "{what}: {limit:?} later the observer has not shown {last:?} but {:?}",
                self.states().last()
            ))
        })
    }

    /// Tokens never fall, and the numbers that one leader proclaims neither.
    fn never_goes_back(&self) -> Step<usize> {
        let states = self.states();
        let led = || states.iter().flatten();
        let number = |value: &str| value.rsplit(' ').next()?.parse::<u64>().ok();
        for ((token, value), (next, later)) in led().zip(led().skip(1)) {
            ensure!(
                token <= next,
                "the observer showed the leader with token {next} after that with {token}"
            );
            ensure!(
                token != next || number(value) <= number(later),
                "the observer showed `{later}` after `{value}`"
            );
        }
        Ok(states.len())
    }
}

/// E4: what an observer misses while it is cut off, it makes up for; it never goes back.
pub async fn e4_an_observer_that_was_cut_off_shows_the_last_state(
    harness: &dyn Harness,
) -> Verdict {
    const CHANGES: usize = 5;
    let Linked { store, link } = harness.linked().await?;
    let session = promptly("open", open_on(&store, LONG)).await??;
    let (shown, _task) = Shown::collect(session.election("away")?.observe());
    let mut sessions = Vec::new();
    for _ in 0..2 {
        sessions.push(open(harness, LONG).await?);
    }
    let mut lead = campaign(&sessions[0].election("away")?, "0").await?;
    shown
        .ends_with(&led(&lead, "0"), PROMPT, "before the silence")
        .await?;
    link.silence();
    let mut missed = 0;
    for number in 1..=CHANGES {
        let mut arrivals = Arrivals::watch(harness).await?;
        let handle = sessions[number % 2].election("away")?;
        let mut next = candidate(&handle, number.to_string());
        arrivals.one_more().await?;
        resign(lead).await?;
        lead = next.end(PROMPT, "the election of the next").await??;
        proclaim(&lead, &format!("settled {number}")).await?;
        missed += 1;
    }
    let last = format!("settled {CHANGES}");
    if shown.states().last() == Some(&led(&lead, &last)) {
        return Err(Outcome::not_run(
            "the silence hid nothing from the observer",
        ));
    }
    link.heal();
    let healed = Instant::now();
    shown
        .ends_with(&led(&lead, &last), CATCH_UP, "after the silence")
        .await?;
    let took = healed.elapsed();
    proclaim(&lead, "more 99").await?;
    shown
        .ends_with(&led(&lead, "more 99"), PROMPT, "after that")
        .await?;
    shown.never_goes_back()?;
    resign(lead).await?;
    held!("{missed} changes of leadership fell into a silence; the last showed {took:?} after it")
}

/// E4: what operators do to the store in passing hides nothing.
pub async fn e4_an_observer_bears_disturbances(harness: &dyn Harness) -> Verdict {
    const ROUNDS: usize = 5;
    let operator = operator(harness)?;
    let handle = open(harness, LONG).await?.election("disturbed")?;
    let (shown, _task) =
        Shown::collect(open(harness, LONG).await?.election("disturbed")?.observe());
    for round in 0..ROUNDS {
        let lead = campaign(&handle, "0").await?;
        operator.disturb().await?;
        // The connection of a step may break with the disturbance. A proclamation may be repeated; a resignation
        // is repeated in the background.
        let broke = |error: &tenure_core::Error| error.kind() == ErrorKind::Unavailable;
        match promptly("a proclamation", lead.proclaim("1")).await? {
            Err(error) if broke(&error) => proclaim(&lead, "1").await?,
            proclaimed => proclaimed?,
        }
        let what = "after a disturbance";
        shown.ends_with(&led(&lead, "1"), PROMPT, what).await?;
        operator.disturb().await?;
        if round % 2 == 0 {
            promptly("a disturbance", operator.disturb()).await??;
        }
        match promptly("a resignation", lead.resign()).await? {
            Err(error) if broke(&error) => {}
            resigned => resigned?,
        }
        shown.ends_with(&None, PROMPT, what).await?;
    }
    shown.never_goes_back()?;
    held!("{ROUNDS} terms with a disturbance before and after each change, all shown")
}

/// E4: however fast leaders change, observers never go back and end up at the last.
pub async fn e4_observers_of_a_turmoil_never_go_back(harness: &dyn Harness) -> Verdict {
    const LEADERS: usize = 4;
    const TERMS: usize = 10;
    let mut observers = Vec::new();
    for _ in 0..3 {
        let session = open(harness, LONG).await?;
        observers.push(Shown::collect(session.election("turmoil")?.observe()));
    }
    let mut leaders = Vec::new();
    for _ in 0..LEADERS {
        let handle = open(harness, LONG).await?.election("turmoil")?;
        leaders.push(spawn(async move {
            for _ in 0..TERMS {
                let lead = handle.campaign("0").await?;
                for number in 1..4 {
                    lead.proclaim(number.to_string()).await?;
                }
                lead.resign().await?;
            }
            Ok::<_, tenure_core::Error>(())
        }));
    }
    for leader in &mut leaders {
        leader
            .end(Duration::from_secs(30), "the leaders' terms")
            .await??;
    }
    let handle = open(harness, LONG).await?.election("turmoil")?;
    let last = campaign(&handle, "the last").await?;
    let mut seen = Vec::new();
    for (shown, _task) in &observers {
        let what = "after the turmoil";
        shown.never_goes_back()?;
        shown
            .ends_with(&led(&last, "the last"), PROMPT, what)
            .await?;
        seen.push(shown.never_goes_back()?);
    }
    resign(last).await?;
    held!(
        "of {} states the observers showed {seen:?}, in order, and the last",
        LEADERS * TERMS * 5 + 2
    )
}

/// E5 (L5, L7): `resign` and `proclaim`, dropped at any await point.
pub async fn e5_a_cancelled_resignation_still_resigns(harness: &dyn Harness) -> Verdict {
    let (caller, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (handle, probe) = (caller.election("left")?, other.election("left")?);
    let baseline = count_keys(harness).await?;
    at_every_await_point!("resign", |polls| {
        let lead = campaign(&handle, "me").await?;
        let last = was_last(give_up_after(polls, PROMPT, lead.resign()).await)?;
        nothing_is_left(harness, &probe, baseline).await?;
        Ok(last)
    })?;
    at_every_await_point!("proclaim, and the leadership after it,", |polls| {
        let lead = campaign(&handle, "me").await?;
        let last = was_last(give_up_after(polls, PROMPT, lead.proclaim("me too")).await)?;
        drop(lead);
        nothing_is_left(harness, &probe, baseline).await?;
        Ok(last)
    })
}

/// E5 (L6): a candidate whose session is gone gets an error and is never elected.
pub async fn e5_a_dead_candidate_is_never_elected(harness: &dyn Harness) -> Verdict {
    let (holder, third) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let mut ends = Vec::new();
    for by_operator in [true, false] {
        let lead = campaign(&holder.election("late")?, "leader").await?;
        let doomed = open(harness, harness.ttl()).await?;
        let mut arrivals = Arrivals::watch(harness).await?;
        let mut dead = candidate(&doomed.election("late")?, "dead");
        arrivals.one_more().await?;
        let mut living = candidate(&third.election("late")?, "living");
        arrivals.one_more().await?;
        let limit = doomed.ttl() + SLACK;
        let reason = if by_operator {
            operator(harness)?.revoke(doomed.id()).await?;
            LossReason::Revoked
        } else {
            promptly("close", doomed.close()).await??;
            LossReason::Closed
        };
        let at = Instant::now();
        let answer = dead
            .end(limit, "the end of a dead candidate's wait")
            .await?;
        ends.push(at.elapsed());
        let error = refused("a campaign of a dead session", answer, &[ErrorKind::Lost])?;
        ensure!(
            error.loss() == Some(reason),
            "the candidate's session was lost by `{reason}`, and the error says {:?}",
            error.loss()
        );
        ensure!(!living.is_finished(), "two leaders");
        resign(lead).await?;
        let next = living
            .end(PROMPT, "the election of the one behind a dead candidate")
            .await??;
        is_led(&third.election("late")?, led(&next, "living"), "then").await?;
        resign(next).await?;
    }
    held!("two dead candidates heard of it after {ends:?}, and the one behind them led")
}

/// E5 (S4): a leadership that was detached is taken up by one who resumes, with its value and its
/// token, and the one who left it has no say any more.
pub async fn e5_a_leadership_is_taken_up_after_a_restart(harness: &dyn Harness) -> Verdict {
    let (store, other) = (harness.connect().await?, open(harness, LONG).await?);
    let watcher = other.election("kept")?;
    let session = open(harness, LONG).await?;
    let first = campaign(&session.election("kept")?, "first").await?;
    proclaim(&first, "before").await?;
    let token = first.token();
    let mut arrivals = Arrivals::watch(harness).await?;
    let mut next = candidate(&watcher, "next");
    arrivals.one_more().await?;
    let id = promptly("detach", session.detach()).await??;
    let resumed = promptly("resume", store.resume(&id)).await??;
    let handle = resumed.election("kept")?;
    let second = promptly("the taking up", handle.resume(token)).await??;
    ensure!(
        second.token() == token,
        "taken up under token {token}, and it has {}",
        second.token()
    );
    is_led(&watcher, led(&second, "before"), "after the taking up").await?;
    let answer = promptly("an answer", handle.resume(token)).await?;
    refused("a second taking up", answer, &[ErrorKind::Lost])?;
    proclaim(&second, "after").await?;
    let answer = promptly("an answer", first.proclaim("late")).await?;
    let left = "a proclamation by the one who left it";
    refused(left, answer, &[ErrorKind::Lost])?;
    drop(first);
    stays_led(&watcher, &led(&second, "after"), "then").await?;
    ensure!(!next.is_finished(), "two leaders");
    resign(second).await?;
    let next = next.end(PROMPT, "the election of the next").await??;
    ensure!(next.token() > token, "the next token is {}", next.token());
    resign(next).await?;
    promptly("close", resumed.close()).await??;
    held!("taken up under token {token} with its value, proclaimed anew, and resigned")
}

/// E5: a leader and many candidates die at the same moment.
pub async fn e5_a_mass_death_delays_no_longer_than_stated(harness: &dyn Harness) -> Verdict {
    survivor_is_served(harness, Wanted::Leadership).await
}
