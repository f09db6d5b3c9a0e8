//! Elections of the embedded store, under paused time and over faulty links (rules E1 to E5).
#![allow(clippy::unwrap_used, reason = "a test ends with it")]

mod support;

use support::*;
use tenure_core::{
    ErrorKind, FencingToken, Leader, LossReason, Observer, Session, SessionOptions, Store,
};
use tenure_memory::{Fault, MemoryBackend};
use tokio::time::{Instant, sleep, timeout};

async fn linked(store: &Store<MemoryBackend>) -> (Session, tenure_memory::Link) {
    let other = another(store);
    let link = other.backend().link();
    (open(&other).await, link)
}

async fn next(observer: &mut Observer) -> Option<Leader> {
    let next = timeout(secs(60), observer.next()).await;
    next.expect("a state").unwrap().unwrap()
}

async fn says(observer: &mut Observer) -> Option<String> {
    next(observer)
        .await
        .map(|leader| leader.text().into_owned())
}

async fn nothing_new(observer: &mut Observer) {
    let more = timeout(secs(2), observer.next()).await;
    assert!(more.is_err(), "{more:?}");
}

async fn says_now(session: &Session) -> Option<String> {
    let leader = session.election("x").unwrap().leader().await.unwrap();
    leader.map(|leader| leader.text().into_owned())
}

#[tokio::test(start_paused = true)]
async fn candidates_lead_in_turn_and_are_seen() {
    let store = store();
    let (a, b, c) = (
        open(&store).await,
        open(&another(&store)).await,
        open(&store).await,
    );
    let mut observer = c.election("x").unwrap().observe();
    assert_eq!(says(&mut observer).await, None);
    let first = a.election("x").unwrap().campaign("a").await.unwrap();
    assert_eq!(next(&mut observer).await.unwrap().token(), first.token());
    let refused = b.election("x").unwrap().try_campaign("b").await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::WouldBlock);
    let waiting = tokio::spawn({
        let election = b.election("x").unwrap();
        async move { election.campaign("b").await.unwrap() }
    });
    until("b stands", || store.backend().keys().len() == 2).await;
    // Another candidate, another election, a lock of that name: none of them is news.
    let other = a.election("y").unwrap().campaign("other").await.unwrap();
    let lock = a.locker("x").unwrap().lock().await.unwrap();
    nothing_new(&mut observer).await;
    first.proclaim("a2").await.unwrap();
    assert_eq!(says(&mut observer).await.unwrap(), "a2");
    assert_eq!(says_now(&b).await.unwrap(), "a2");
    let at = Instant::now();
    first.resign().await.unwrap();
    let second = waiting.await.unwrap();
    assert_eq!(at.elapsed(), secs(0), "handed over at once");
    assert_eq!(says(&mut observer).await.unwrap(), "b");
    drop((second, other, lock));
    assert_eq!(says(&mut observer).await, None);
    assert_eq!(says_now(&a).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_seen_to_end_with_its_lease() {
    let store = store();
    let (watcher, (doomed, link)) = (open(&store).await, linked(&store).await);
    let mut observer = watcher.election("x").unwrap().observe();
    assert_eq!(says(&mut observer).await, None);
    let lead = doomed.election("x").unwrap().campaign("a").await.unwrap();
    assert_eq!(says(&mut observer).await.unwrap(), "a");
    // Renewals move the end: the observer does not take them for it.
    let early = timeout(TTL * 3, observer.next()).await;
    assert!(early.is_err(), "{early:?}");
    link.silence();
    let at = Instant::now();
    assert_eq!(says(&mut observer).await, None);
    assert!(at.elapsed() <= TTL, "{:?}", at.elapsed());
    assert!(!lead.is_valid());
    let refused = lead.proclaim("late").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Lost);
}

#[tokio::test(start_paused = true)]
async fn an_observer_behind_a_fault_sees_the_last_state() {
    for fault in [
        Fault::Silent,
        Fault::AnswersHeld,
        Fault::RequestsLost,
        Fault::AnswersLost,
        Fault::RequestsLate,
    ] {
        let store = store();
        let (watcher, link) = linked(&store).await;
        let a = open(&store).await;
        let mut observer = watcher.election("x").unwrap().observe();
        assert_eq!(says(&mut observer).await, None);
        let seen = tokio::spawn(async move {
            let mut seen = Vec::new();
            while seen.last() != Some(&Some("last".to_owned())) {
                seen.push(says(&mut observer).await);
            }
            seen
        });
        sleep(millis(10)).await;
        link.inject(fault);
        // Beyond the end of the watcher's own lease, which is no hindrance.
        for number in 0..5 {
            let lead = a.election("x").unwrap().campaign("then").await.unwrap();
            lead.proclaim(format!("then {number}")).await.unwrap();
            lead.resign().await.unwrap();
            sleep(TTL / 4).await;
        }
        let lead = a.election("x").unwrap().campaign("last").await.unwrap();
        sleep(secs(1)).await;
        assert!(!seen.is_finished(), "{fault:?}: seen through a fault");
        link.heal();
        let seen = timeout(secs(2), seen).await.expect("within 2 s").unwrap();
        assert!(seen.len() < 5, "{fault:?}: {seen:?}");
        drop(lead);
    }
}

#[tokio::test(start_paused = true)]
async fn a_proclamation_that_arrives_after_a_later_one_changes_nothing() {
    let store = store();
    let (session, link) = linked(&store).await;
    let lead = session
        .election("x")
        .unwrap()
        .campaign("first")
        .await
        .unwrap();
    link.inject_once(Fault::RequestsLate);
    // Given up before core sends it again.
    let given_up = timeout(millis(5), lead.proclaim("late")).await;
    assert!(given_up.is_err());
    lead.proclaim("later").await.unwrap();
    let watcher = open(&store).await;
    link.heal(); // it arrives
    assert_eq!(says_now(&watcher).await.unwrap(), "later");
    // One that comes in time counts, also if it comes twice.
    link.inject_once(Fault::AnswersLost);
    lead.proclaim("repeated").await.unwrap();
    assert_eq!(says_now(&watcher).await.unwrap(), "repeated");
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leader_changes_nothing() {
    let store = store();
    let (a, b) = (open(&store).await, open(&another(&store)).await);
    let deposed = a.election("x").unwrap().campaign("a").await.unwrap();
    let waiting = tokio::spawn({
        let election = b.election("x").unwrap();
        async move { election.campaign("b").await.unwrap() }
    });
    until("b stands", || store.backend().keys().len() == 2).await;
    assert!(store.backend().delete(deposed.key()));
    let lead = waiting.await.unwrap();
    let refused = deposed.proclaim("a again").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Lost);
    assert_eq!(deposed.resign().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(says_now(&a).await.unwrap(), "b");
    assert!(lead.is_valid());
}

#[tokio::test(start_paused = true)]
async fn a_leadership_is_taken_up_by_a_resumed_session() {
    let store = store();
    let (session, link) = linked(&store).await;
    let other = open(&store).await;
    let mut observer = other.election("x").unwrap().observe();
    let lead = session.election("x").unwrap().campaign("a").await.unwrap();
    for number in 0..3 {
        lead.proclaim(format!("a{number}")).await.unwrap();
    }
    assert_eq!(says(&mut observer).await.unwrap(), "a2");
    // One of its proclamations is still on its way when it leaves.
    link.inject_once(Fault::RequestsLate);
    let late = timeout(millis(5), lead.proclaim("late")).await;
    assert!(late.is_err());
    let token = lead.token();
    let id = session.detach().await.unwrap();
    let resumed = another(&store).into_dyn().resume(&id).await.unwrap();
    let election = resumed.election("x").unwrap();
    let wrong = election.resume(FencingToken::new(token.get() + 1)).await;
    assert_eq!(wrong.unwrap_err().kind(), ErrorKind::Lost);
    let taken = election.resume(token).await.unwrap();
    assert_eq!(says_now(&other).await.unwrap(), "a2");
    link.heal(); // it arrives
    assert_eq!(says_now(&other).await.unwrap(), "a2");
    // The first of a new process, whose count begins anew.
    taken.proclaim("taken up").await.unwrap();
    assert_eq!(says(&mut observer).await.unwrap(), "taken up");
    assert_eq!(lead.loss(), Some(LossReason::Detached));
    drop(lead);
    sleep(secs(1)).await;
    assert!(taken.is_valid());
    taken.resign().await.unwrap();
    assert_eq!(says(&mut observer).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_whose_session_died_is_never_elected() {
    let store = store();
    let (a, (doomed, link)) = (open(&store).await, linked(&store).await);
    let lead = a.election("x").unwrap().campaign("a").await.unwrap();
    let waiting = tokio::spawn({
        let election = doomed.election("x").unwrap();
        async move { election.campaign("dead").await }
    });
    until("it stands", || store.backend().keys().len() == 2).await;
    link.silence();
    let refused = waiting.await.unwrap().unwrap_err();
    assert_eq!(refused.loss(), Some(LossReason::Unreachable));
    sleep(TTL).await;
    lead.resign().await.unwrap();
    assert_eq!(says_now(&a).await, None);
    link.heal();
    sleep(secs(1)).await;
    assert_eq!(says_now(&a).await, None);
}

/// Every operation is dropped at each of its await points, over a layer that yields before and
/// after each request.
#[tokio::test(start_paused = true)]
async fn whoever_is_dropped_leaves_nothing() {
    const YIELDS: usize = 2;
    let store = store();
    let (slow, _) = layered(&store, Script::new(YIELDS).capacity(2));
    let victim = slow.into_dyn().open(SessionOptions::new()).await.unwrap();
    let other = open(&another(&store)).await;
    let (handle, theirs) = (victim.election("x").unwrap(), other.election("x").unwrap());
    let is_clean = async || {
        until_no_ghost(store.backend()).await;
        assert!(victim.is_valid());
        let again = handle.campaign_timeout("again", secs(1)).await.unwrap();
        again.resign().await.unwrap();
    };
    for polls in 0..100 {
        let mut done = Vec::new();
        done.push(polled(polls, handle.campaign("a")).await.is_some());
        is_clean().await;
        done.push(polled(polls, handle.try_campaign("a")).await.is_some());
        is_clean().await;
        // Elected while it is given up, or not.
        let lead = theirs.campaign("b").await.unwrap();
        let resigning = tokio::spawn(async move {
            sleep(millis(1)).await;
            lead.resign().await.unwrap();
        });
        done.push(polled(polls, handle.campaign("a")).await.is_some());
        resigning.await.unwrap();
        is_clean().await;
        // Dropped by the time, as it is not woken any more.
        let lead = theirs.campaign("b").await.unwrap();
        let _ = timeout(millis(50), polled(polls, handle.campaign("a"))).await;
        until("only the leader is left", || {
            store.backend().keys().len() == 1
        })
        .await;
        lead.resign().await.unwrap();
        let lead = handle.campaign("a").await.unwrap();
        done.push(polled(polls, lead.proclaim("a2")).await.is_some());
        done.push(polled(polls, lead.resign()).await.is_some());
        is_clean().await;
        if done.iter().all(|done| *done) {
            assert!(polls > YIELDS, "too few await points to mean anything");
            return;
        }
    }
    panic!("never came to its end");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_dropped_campaigns_and_observers_leave_nothing() {
    let store = store();
    let session = open(&store).await;
    let before = store.backend().footprint();
    for number in 0..1_000 {
        let election = session.election(format!("x{}", number % 7)).unwrap();
        let polls = number % 5;
        let mut observer = election.observe();
        let _ = polled(polls, async {
            let observing = observer.next();
            let _ = tokio::join!(observing, election.campaign("a"));
        })
        .await;
    }
    until_no_ghost(store.backend()).await;
    until("as before", || store.backend().footprint() == before).await;
}
