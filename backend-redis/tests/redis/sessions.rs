//! Sessions that are detached, resumed, and revoked with much in their hands.

use tenure_core::{ErrorKind, FencingToken};

use crate::common::*;

/// More than one chunk of everything: holdings stay, waits go, and what was taken up is the resumer's.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_with_much_is_detached_and_resumed() {
    const HELD: usize = 1200;
    const WAITS: usize = 250;
    let bed = Bed::new("resumed");
    let (session, other) = (bed.session(secs(60)).await, bed.session(secs(60)).await);
    let taken = other.locker("taken").unwrap().lock().await.unwrap();
    let mut guards = Vec::new();
    for number in 0..HELD {
        let lock = session.locker(format!("held {number}")).unwrap();
        guards.push(lock.lock().await.unwrap());
    }
    let lead = session.election("e").unwrap().campaign("me").await.unwrap();
    let mut waits = tokio::task::JoinSet::new();
    for _ in 0..WAITS {
        let lock = session.locker("taken").unwrap();
        waits.spawn(async move { lock.lock().await.map(drop) });
    }
    bed.until_in_line("lock/taken", WAITS + 1).await;
    let tokens: Vec<FencingToken> = guards.iter().map(|guard| guard.token()).collect();
    let (leadership, id) = (lead.token(), session.id().clone());
    within(LATER, "detach", session.detach()).await.unwrap();
    while let Some(wait) = within(SOON, "the end of a wait", waits.join_next()).await {
        assert_eq!(wait.unwrap().unwrap_err().kind(), ErrorKind::Lost);
    }
    assert_eq!(bed.in_line("lock/taken"), 1, "the waits are gone");
    let store = bed.store().await;
    let resumed = store.resume(&id).await.unwrap();
    let again = bed.store().await.resume(&id).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict, "{again:?}");
    // Whatever the one who detached still does has no effect.
    drop((guards, lead));
    for (number, token) in tokens.iter().enumerate().step_by(97) {
        let lock = resumed.locker(format!("held {number}")).unwrap();
        let guard = lock.reclaim(*token).await.unwrap();
        assert_eq!(guard.token(), *token);
        assert_eq!(
            lock.reclaim(*token).await.unwrap_err().kind(),
            ErrorKind::Lost
        );
        guard.release().await.unwrap();
    }
    let lead = resumed
        .election("e")
        .unwrap()
        .resume(leadership)
        .await
        .unwrap();
    lead.proclaim("me again").await.unwrap();
    let leader = other
        .election("e")
        .unwrap()
        .leader()
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (leader.text(), leader.token()),
        ("me again".into(), leadership)
    );
    let lock = other.locker("held 1").unwrap();
    assert_eq!(
        lock.try_lock().await.unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    resumed.close().await.unwrap();
    drop(
        within(SOON, "what a closed session held", lock.lock())
            .await
            .unwrap(),
    );
    drop(taken);
}

/// Whoever detached died halfway: the record was written, and what was to go is still there.
#[tokio::test(flavor = "multi_thread")]
async fn the_resumer_does_what_the_detacher_left() {
    let bed = Bed::new("halfway");
    let (session, other) = (bed.session(secs(60)).await, bed.session(secs(60)).await);
    let guard = session.locker("kept").unwrap().lock().await.unwrap();
    let token = guard.token();
    let gone = other.locker("gone").unwrap().lock().await.unwrap();
    let lock = session.locker("gone").unwrap();
    let waiting = tokio::spawn(async move { lock.lock().await });
    bed.until_in_line("lock/gone", 2).await;
    let id = session.id().clone();
    session.detach().await.unwrap();
    drop(waiting);
    // As it was before the last step.
    let (line, who) = guard.key().rsplit_once('#').unwrap();
    let line = line.replace("lock/kept", "lock/gone");
    let nonce = who
        .split_once(':')
        .unwrap()
        .1
        .replace(|c: char| c.is_ascii_digit(), "a");
    let member = format!("{id}:{nonce}:w");
    let dropped = format!("{}dropped/{id}", bed.root());
    bed.ask(&["ZADD", &line, "9007199254740000", &member]);
    bed.ask(&["HSET", &dropped, &nonce, "lock/gone"]);
    let resumed = bed.store().await.resume(&id).await.unwrap();
    assert_eq!(bed.in_line("lock/gone"), 1, "dropped by the resumer");
    assert_eq!(bed.ask(&["EXISTS", &dropped]), "0");
    let guard = resumed
        .locker("kept")
        .unwrap()
        .reclaim(token)
        .await
        .unwrap();
    assert!(guard.is_valid());
    drop(gone);
}

/// A session that was detached and never resumed leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_of_one_that_is_not_resumed() {
    let bed = Bed::new("abandoned");
    let session = bed.session(secs(1)).await;
    let other = bed.session(secs(2)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    session.detach().await.unwrap();
    let lock = other.locker("x").unwrap();
    let next = within(SOON, "the lock of the abandoned", lock.lock())
        .await
        .unwrap();
    assert!(next.token() > guard.token());
    next.release().await.unwrap();
    // The other's renewals sweep.
    let mine = other.id().to_string();
    eventually("nothing stays", || {
        bed.keys()
            .iter()
            .all(|key| key.ends_with(&mine) || key == "sessions" || key == "last")
    })
    .await;
}
