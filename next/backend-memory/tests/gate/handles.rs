//! The handles and guards of core on the embedded store: what they add to the steps of the backend API.

use std::time::Duration;

use tenure_core::{
    Effect, ErrorKind, LossReason, MAX_BATCH, NewItem, Observer, Op, Session, SessionOptions, Store,
    backend::LeaderUpdate,
};
use tenure_memory::{MemoryBackend, MemoryConfig};

use crate::support::{TTL, kind, not_yet, pass, soon, store};

async fn open(backend: &MemoryBackend) -> Session {
    let options = SessionOptions::new().ttl(TTL);
    Store::new(backend.clone()).open(options).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn writer_waits_while_a_reader_of_the_same_session_holds() {
    let session = open(&store()).await;
    let lock = session.rw_lock("a");
    let (first, second) = (lock.read().await.unwrap(), session.read_lock("a").await.unwrap());
    assert!(lock.try_write().await.unwrap().is_none());
    assert_eq!(
        kind(lock.write_timeout(Duration::from_secs(1)).await),
        ErrorKind::TimedOut
    );
    let writing = tokio::spawn(async move { lock.write().await });
    pass(1.0).await;
    // A reader does not overtake the writer.
    assert!(session.rw_lock("a").try_read().await.unwrap().is_none());
    first.release().await.unwrap();
    pass(1.0).await;
    assert!(!writing.is_finished());
    let token = second.token();
    drop(second);
    assert!(soon(writing).await.unwrap().unwrap().token() > token);
}

#[tokio::test(start_paused = true)]
async fn downgraded_writer_keeps_its_token_and_lets_readers_in_but_no_writer() {
    let backend = store();
    let (session, other) = (open(&backend).await, open(&backend).await);
    let writer = session.write_lock("a").await.unwrap();
    let token = writer.token();
    let reading = tokio::spawn(async move { other.read_lock("a").await });
    pass(1.0).await;
    assert!(!reading.is_finished());
    let downgraded = writer.downgrade().await.unwrap();
    assert_eq!(downgraded.token(), token);
    let reader = soon(reading).await.unwrap().unwrap();
    not_yet(session.write_lock("a")).await;
    // A commit that the reader fences is carried out; one of the writer that it was is not.
    let stm = session.stm();
    stm.fenced_by(&downgraded)
        .run(async |tx| tx.put("k", "v"))
        .await
        .unwrap();
    downgraded.release().await.unwrap();
    reader.release().await.unwrap();
    soon(session.write_lock("a")).await.unwrap().release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn downgrade_of_a_lost_writer_is_lost() {
    let backend = store();
    let session = open(&backend).await;
    let writer = session.write_lock("a").await.unwrap();
    session.close().await.unwrap();
    let error = writer.downgrade().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.loss()),
        (ErrorKind::Lost, Some(LossReason::Closed))
    );
    assert_eq!((error.operation(), error.name()), (Some("downgrade"), Some("a")));
    assert!(error.needs_new_session());
}

#[tokio::test(start_paused = true)]
async fn dropped_downgrade_releases_the_lock() {
    let backend = store();
    let (session, other) = (open(&backend).await, open(&backend).await);
    let writer = session.write_lock("a").await.unwrap();
    {
        let mut downgrading = Box::pin(writer.downgrade());
        let polled =
            std::future::poll_fn(|context| std::task::Poll::Ready(downgrading.as_mut().poll(context).is_ready()));
        let _ = polled.await;
    }
    soon(other.write_lock("a")).await.unwrap().release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fenced_commit_of_a_lost_guard_is_refused() {
    let backend = store();
    let session = open(&backend).await;
    let guard = session.lock("a").await.unwrap();
    let txn = session.stm().txn().then([Op::put("k", "v")]);
    assert!(txn.fenced_by(&guard).commit().await.unwrap().succeeded);
    backend.revoke(session.id());
    let txn = session.stm().txn().then([Op::put("k", "late")]);
    assert_eq!(kind(txn.fenced_by(&guard).commit().await), ErrorKind::Lost);
    let other = open(&backend).await;
    assert_eq!(other.stm().get_string("k").await.unwrap().as_deref(), Some("v"));
}

#[tokio::test(start_paused = true)]
async fn writer_is_reclaimed_for_writing_only_if_it_was_not_downgraded() {
    let backend = store();
    let session = open(&backend).await;
    let (writer, other) = (
        session.write_lock("a").await.unwrap(),
        session.write_lock("b").await.unwrap(),
    );
    let reader = other.downgrade().await.unwrap();
    let (written, read) = (writer.token(), reader.token());
    let id = session.detach().await.unwrap();
    drop((writer, reader));
    let session = Store::new(backend.clone()).resume(&id).await.unwrap();
    let writer = session.rw_lock("a").reclaim_write(written).await.unwrap();
    assert!(session.rw_lock("a").try_read().await.unwrap().is_none());
    writer.release().await.unwrap();
    assert_eq!(kind(session.rw_lock("b").reclaim_write(read).await), ErrorKind::Lost);
    // A refused reclaim leaves the holding as it is.
    let reader = session.rw_lock("b").reclaim_read(read).await.unwrap();
    assert!(session.rw_lock("b").try_write().await.unwrap().is_none());
    reader.release().await.unwrap();
}

fn shown(update: Option<tenure_core::Result<LeaderUpdate>>) -> Option<String> {
    let leader = update.expect("the observer ended").unwrap().leader?;
    Some(String::from_utf8(leader.value.to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn observer_shows_changes_only_and_ends_with_its_session() {
    let backend = store();
    let (session, other) = (open(&backend).await, open(&backend).await);
    let mut observer = other.election("e").observe();
    assert_eq!(shown(soon(observer.next()).await), None);
    let lead = session.election("e").campaign("a").await.unwrap();
    assert_eq!(shown(soon(observer.next()).await).as_deref(), Some("a"));
    lead.proclaim("b").await.unwrap();
    assert_eq!(shown(soon(observer.next()).await).as_deref(), Some("b"));
    // The same value again is no change.
    lead.proclaim("b").await.unwrap();
    not_yet(observer.next()).await;
    lead.proclaim("c").await.unwrap();
    assert_eq!(shown(soon(observer.next()).await).as_deref(), Some("c"));
    lead.resign().await.unwrap();
    assert_eq!(shown(soon(observer.next()).await), None);
    other.close().await.unwrap();
    assert!(soon(observer.next()).await.is_none());
    assert!(soon(observer.next()).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn observer_of_a_revoked_session_ends_with_its_loss() {
    let backend = store();
    let session = open(&backend).await;
    let mut observer: Observer = session.election("e").observe();
    assert_eq!(shown(soon(observer.next()).await), None);
    backend.revoke(session.id());
    let error = soon(observer.next()).await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::Lost, Some("observe")));
    assert!(soon(observer.next()).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn candidates_lead_in_their_order_with_rising_tokens() {
    let backend = store();
    let (first, second) = (open(&backend).await, open(&backend).await);
    let lead = first.election("e").campaign("first").await.unwrap();
    assert!(second.election("e").try_campaign("x").await.unwrap().is_none());
    let limit = Duration::from_secs(1);
    assert_eq!(
        kind(second.election("e").campaign_timeout("x", limit).await),
        ErrorKind::TimedOut
    );
    let election = second.election("e");
    let next = tokio::spawn(async move { election.campaign("second").await });
    pass(1.0).await;
    let leader = second.election("e").leader().await.unwrap().unwrap();
    assert_eq!((&leader.value[..], leader.token), (&b"first"[..], lead.token()));
    let token = lead.token();
    lead.resign().await.unwrap();
    let lead = soon(next).await.unwrap().unwrap();
    assert!(lead.token() > token);
    first.close().await.unwrap();
    second.close().await.unwrap();
    let error = lead.proclaim("late").await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Lost, Effect::None));
}

#[tokio::test(start_paused = true)]
async fn reclaimed_leadership_proclaims() {
    let backend = store();
    let session = open(&backend).await;
    let lead = session.election("e").campaign("a").await.unwrap();
    for value in ["b", "c", "d"] {
        lead.proclaim(value).await.unwrap();
    }
    let leader = session.election("e").leader().await.unwrap().unwrap();
    assert_eq!(&leader.value[..], b"d");
    let token = lead.token();
    let id = session.detach().await.unwrap();
    drop(lead);
    let session = Store::new(backend.clone()).resume(&id).await.unwrap();
    let lead = session.election("e").reclaim(token).await.unwrap();
    assert_eq!(lead.token(), token);
    assert_eq!(kind(session.election("e").reclaim(token).await), ErrorKind::Lost);
    lead.proclaim("e").await.unwrap();
    let leader = session.election("e").leader().await.unwrap().unwrap();
    assert_eq!((&leader.value[..], leader.token), (&b"e"[..], token));
}

#[tokio::test(start_paused = true)]
async fn value_that_is_too_large_is_refused() {
    let session = open(&store()).await;
    let large = vec![0; 1024 * 1024 + 1];
    assert_eq!(kind(session.election("e").campaign(&large).await), ErrorKind::TooLarge);
    let lead = session.election("e").campaign("").await.unwrap();
    assert_eq!(kind(lead.proclaim(&large).await), ErrorKind::TooLarge);
    assert_eq!(kind(session.queue("q").enqueue(large).await), ErrorKind::TooLarge);
}

#[tokio::test(start_paused = true)]
async fn items_are_delivered_by_priority_and_acceptance_until_they_are_acknowledged() {
    let session = open(&store()).await;
    let queue = session.queue("q");
    queue.enqueue(NewItem::new("low").priority(9)).await.unwrap();
    queue.enqueue_many(["a", "b"]).await.unwrap();
    queue
        .enqueue(NewItem::new("later").delay(Duration::from_secs(60)))
        .await
        .unwrap();
    let (depth, len) = (queue.depth().await.unwrap(), queue.len().await.unwrap());
    assert_eq!((depth.ready, depth.delayed, len), (3, 1, 4));
    assert_eq!(&queue.peek().await.unwrap().unwrap().value[..], b"a");
    let deliveries = queue.dequeue_many(MAX_BATCH).await.unwrap();
    let order: Vec<_> = deliveries
        .iter()
        .map(|one| (one.text().into_owned(), one.priority()))
        .collect();
    assert_eq!(order, [("a".into(), 0), ("b".into(), 0), ("low".into(), 9)]);
    let [a, b, low]: [_; 3] = deliveries.try_into().unwrap();
    assert!(a.token() != b.token() && queue.try_dequeue().await.unwrap().is_none());
    a.ack().await.unwrap();
    drop(b);
    low.nack_after(Duration::from_secs(5)).await.unwrap();
    let b = soon(queue.dequeue()).await.unwrap();
    assert_eq!((b.value(), b.deliveries(), b.id()), (&b"b"[..], 2, None));
    assert_eq!(
        kind(queue.dequeue_timeout(Duration::from_secs(4)).await),
        ErrorKind::TimedOut
    );
    assert_eq!(soon(queue.dequeue()).await.unwrap().text(), "low");
    b.nack().await.unwrap();
    assert_eq!(queue.pop().await.unwrap(), b"b");
    pass(60.0).await;
    assert!(queue.purge().await.unwrap() >= 1);
    assert!(queue.try_pop().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn popped_item_is_gone_and_a_lost_delivery_is_not() {
    let backend = store();
    let (session, other) = (open(&backend).await, open(&backend).await);
    session.queue("q").enqueue_many(["a", "b"]).await.unwrap();
    assert_eq!(session.queue("q").try_pop().await.unwrap().as_deref(), Some(&b"a"[..]));
    let delivery = session.queue("q").dequeue().await.unwrap();
    session.close().await.unwrap();
    let error = delivery.ack().await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Lost, Effect::None));
    assert_eq!(soon(other.queue("q").pop()).await.unwrap(), b"b");
    assert_eq!(other.queue("q").len().await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn failed_return_names_its_own_call() {
    let session = open(&store()).await;
    let queue = session.queue("q");
    queue.enqueue_many(["a", "b"]).await.unwrap();
    let deliveries = queue.dequeue_many(2).await.unwrap();
    let [a, b]: [_; 2] = deliveries.try_into().unwrap();
    session.close().await.unwrap();
    let at_once = a.nack().await.unwrap_err();
    let later = b.nack_after(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(at_once.operation(), Some("nack"));
    assert_eq!(later.operation(), Some("nack_after"));
}

#[tokio::test(start_paused = true)]
async fn dropped_dequeue_takes_nothing() {
    let backend = store();
    let (session, other) = (open(&backend).await, open(&backend).await);
    let queue = session.queue("q");
    not_yet(queue.dequeue()).await;
    other.queue("q").enqueue("a").await.unwrap();
    let delivery = soon(other.queue("q").dequeue()).await.unwrap();
    assert_eq!(delivery.deliveries(), 1);
}

#[tokio::test(start_paused = true)]
async fn item_with_a_known_id_is_accepted_once() {
    let session = open(&store()).await;
    let queue = session.queue("q");
    for value in ["a", "b"] {
        queue.enqueue(NewItem::new(value).id("job")).await.unwrap();
    }
    assert_eq!(queue.len().await.unwrap(), 1);
    let delivery = queue.dequeue().await.unwrap();
    assert_eq!((delivery.value(), delivery.id()), (&b"a"[..], Some("job")));
    let error = queue.enqueue(NewItem::new("c").id("")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::InvalidName, Some("enqueue"))
    );
    let too_many = std::iter::repeat_n("x", MAX_BATCH + 1);
    assert_eq!(kind(queue.enqueue_many(too_many).await), ErrorKind::TooLarge);
    assert_eq!(kind(queue.dequeue_many(MAX_BATCH + 1).await), ErrorKind::TooLarge);
    assert_eq!(queue.len().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn item_moves_to_the_dead_letter_queue_after_its_last_delivery() {
    let session = open(&store()).await;
    let queue = session.queue("q").dead_letter(2, "dead");
    queue.enqueue("a").await.unwrap();
    for _ in 0..2 {
        soon(queue.dequeue()).await.unwrap().nack().await.unwrap();
    }
    assert!(queue.try_dequeue().await.unwrap().is_none());
    assert_eq!(session.queue("dead").pop().await.unwrap(), b"a");
    let handle = || session.queue("q");
    assert_eq!(
        kind(handle().dead_letter(1, "q").try_dequeue().await),
        ErrorKind::Config
    );
    assert_eq!(kind(handle().dead_letter(0, "dead").dequeue().await), ErrorKind::Config);
    assert_eq!(
        kind(handle().dead_letter(1, "").dequeue().await),
        ErrorKind::InvalidName
    );
}

#[tokio::test(start_paused = true)]
async fn participants_enter_together_and_leave_together() {
    let backend = store();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(open(&backend).await);
    }
    let enter = |session: &Session| {
        let barrier = session.double_barrier("d", 3);
        tokio::spawn(async move { barrier.enter().await })
    };
    let waiting = [enter(&sessions[0]), enter(&sessions[1])];
    pass(1.0).await;
    assert!(waiting.iter().all(|one| !one.is_finished()));
    let last = soon(sessions[2].double_barrier("d", 3).enter()).await.unwrap();
    let [first, second] = waiting;
    let (first, second) = (
        soon(first).await.unwrap().unwrap(),
        soon(second).await.unwrap().unwrap(),
    );
    // One too many, and another count.
    assert_eq!(
        kind(sessions[0].double_barrier("d", 3).enter().await),
        ErrorKind::Conflict
    );
    let leaving = tokio::spawn(first.leave());
    pass(1.0).await;
    assert!(!leaving.is_finished());
    drop(second);
    pass(1.0).await;
    assert!(!leaving.is_finished());
    last.leave().await.unwrap();
    soon(leaving).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn participant_that_stops_waiting_does_not_count() {
    let backend = store();
    let (session, other) = (open(&backend).await, open(&backend).await);
    let barrier = session.double_barrier("d", 2);
    assert_eq!(
        kind(barrier.enter_timeout(Duration::from_secs(1)).await),
        ErrorKind::TimedOut
    );
    pass(1.0).await;
    not_yet(other.double_barrier("d", 2).enter()).await;
    assert_eq!(kind(session.double_barrier("d", 0).enter().await), ErrorKind::Config);
}

#[tokio::test(start_paused = true)]
async fn barrier_holds_up_its_waiters_until_the_holder_dies() {
    let backend = store();
    let (holder, session) = (open(&backend).await, open(&backend).await);
    let guard = holder.barrier("b").hold().await.unwrap();
    let barrier = session.barrier("b");
    let waiting = tokio::spawn(async move { barrier.wait().await });
    pass(1.0).await;
    assert!(!waiting.is_finished() && guard.is_valid());
    backend.revoke(holder.id());
    soon(waiting).await.unwrap().unwrap();
    assert!(!session.barrier("b").is_held().await.unwrap());
    assert_eq!(kind(guard.release().await), ErrorKind::Lost);
}

#[tokio::test(start_paused = true)]
async fn each_item_of_a_take_counts_for_the_capacity_of_its_session() {
    let backend = MemoryBackend::connect(MemoryConfig::new().capacity(4)).unwrap();
    let session = open(&backend).await;
    let queue = session.queue("q");
    queue.enqueue_many(["1", "2", "3", "4", "5", "6"]).await.unwrap();
    let mut deliveries = queue.dequeue_many(4).await.unwrap();
    assert_eq!(kind(session.lock("a").await), ErrorKind::TooLarge);
    assert_eq!(kind(queue.try_dequeue().await), ErrorKind::TooLarge);
    deliveries.pop().unwrap().ack().await.unwrap();
    session.lock("a").await.unwrap().release().await.unwrap();
    drop(deliveries);
    assert_eq!(queue.dequeue_many(2).await.unwrap().len(), 2);
}
