//! Leaders, consumers and sessions that go on after a loss.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tenure_core::{ConsumeOptions, ErrorKind, Lead, LeadOptions, NewItem, SessionOptions, Store};
use tenure_memory::{MemoryBackend, MemoryConfig};
use tokio::sync::Notify;

use crate::support::{kind, not_yet, pass, soon, store};

#[tokio::test(start_paused = true)]
async fn supervised_session_is_opened_again_after_a_loss() {
    let backend = store();
    let sessions = Store::new(backend.clone()).supervise(SessionOptions::new());
    let first = sessions.session().await.unwrap();
    assert_eq!(sessions.session().await.unwrap(), first);
    backend.revoke(first.id());
    soon(first.lost()).await;
    let second = sessions.session().await.unwrap();
    assert_ne!(second, first);
    assert!(second.is_valid());
    second.close().await.unwrap();
    assert_ne!(sessions.session().await.unwrap(), second);
}

#[tokio::test(start_paused = true)]
async fn supervised_session_ends_with_its_owner() {
    let sessions = Store::new(store()).supervise(SessionOptions::new());
    let session = sessions.session().await.unwrap();
    let guard = session.lock("a").await.unwrap();
    drop(sessions);
    assert!(!session.is_valid() && !guard.is_valid());
}

#[tokio::test(start_paused = true)]
async fn supervised_sessions_that_end_at_once_are_opened_after_growing_pauses() {
    let backend = store();
    let sessions = Store::new(backend).supervise(SessionOptions::new());
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let began = tokio::time::Instant::now();
        let session = sessions.session().await.unwrap();
        pauses.push(began.elapsed());
        session.close().await.unwrap();
    }
    assert_eq!(pauses[0], Duration::ZERO);
    let (first, last) = (pauses[1], pauses[11]);
    assert!(
        first >= Duration::from_millis(25) && first <= Duration::from_millis(51),
        "{first:?}"
    );
    assert!(
        last >= Duration::from_millis(2500) && last <= Duration::from_millis(5001),
        "{last:?}"
    );
    pass(30.0).await;
    let began = tokio::time::Instant::now();
    sessions.session().await.unwrap();
    assert!(began.elapsed() <= Duration::from_millis(51));
}

#[tokio::test(start_paused = true)]
async fn supervised_session_reports_an_error_that_no_retry_can_cure() {
    let options = SessionOptions::new().ttl(Duration::from_secs(1_000_000));
    let sessions = Store::new(store()).supervise(options);
    assert_eq!(kind(sessions.session().await), ErrorKind::Config);
}

#[tokio::test(start_paused = true)]
async fn leader_campaigns_again_after_a_loss_and_returns_the_output_of_its_work() {
    let backend = store();
    let store = Store::new(backend.clone());
    let (runs, stopped) = (Cell::new(0), Cell::new(0));
    struct Stopped<'a>(&'a Cell<u32>);
    impl Drop for Stopped<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let tokens = RefCell::new(Vec::new());
    let led = store.lead("e", "me", |lead: Arc<Lead>| {
        runs.set(runs.get() + 1);
        tokens.borrow_mut().push(lead.token());
        let (run, backend, stopped) = (runs.get(), backend.clone(), &stopped);
        async move {
            let _stopped = Stopped(stopped);
            if run < 3 {
                backend.revoke(lead.session_id());
                std::future::pending::<()>().await;
            }
            lead.proclaim("done").await.map(|()| run)
        }
    });
    assert_eq!(soon(led).await.unwrap().unwrap(), 3);
    assert_eq!(stopped.get(), 3);
    assert!(tokens.borrow().is_sorted() && tokens.borrow().len() == 3);
    // It has resigned.
    let session = store.open(SessionOptions::new()).await.unwrap();
    assert!(session.election("e").try_campaign("next").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn candidate_withdraws_when_it_is_stopped() {
    let backend = store();
    let store = Store::new(backend);
    let session = store.open(SessionOptions::new()).await.unwrap();
    let lead = session.election("e").campaign("other").await.unwrap();
    let options = LeadOptions::new().until(tokio::time::sleep(Duration::from_secs(5)));
    let led = store.lead_with("e", "me", options, async |_| ());
    assert_eq!(soon(led).await.unwrap(), None);
    lead.resign().await.unwrap();
    assert!(session.election("e").try_campaign("next").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn leader_that_is_stopped_finishes_its_work() {
    let store = Store::new(store());
    let options = LeadOptions::new().until(tokio::time::sleep(Duration::from_secs(5)));
    let led = store.lead_with("e", "me", options, async |lead: Arc<Lead>| {
        lead.stopping().await;
        lead.proclaim("stopping").await.unwrap();
        lead.is_valid()
    });
    assert_eq!(soon(led).await.unwrap(), Some(true));
}

#[tokio::test(start_paused = true)]
async fn lead_reports_errors_that_no_session_can_cure() {
    let store = Store::new(store());
    let work = async |_: Arc<Lead>| ();
    assert_eq!(kind(store.lead("", "me", work).await), ErrorKind::InvalidName);
    assert_eq!(kind(store.lead("e", vec![0; 2 << 20], work).await), ErrorKind::TooLarge);
}

async fn queue(backend: &MemoryBackend, items: impl IntoIterator<Item = &'static str>) -> tenure_core::Session {
    let session = Store::new(backend.clone()).open(SessionOptions::new()).await.unwrap();
    session.queue("q").enqueue_many(items).await.unwrap();
    session
}

#[tokio::test(start_paused = true)]
async fn consumer_acknowledges_done_jobs_and_returns_failed_ones_later() {
    let backend = store();
    let session = queue(&backend, ["a", "bad", "c"]).await;
    let done = RefCell::new(Vec::new());
    let options = ConsumeOptions::new()
        .retry(Duration::from_secs(10), Duration::from_secs(20))
        .until(tokio::time::sleep(Duration::from_secs(60)));
    let began = tokio::time::Instant::now();
    let consuming = session.queue("q");
    let consuming = consuming.consume(options, async |job| {
        done.borrow_mut()
            .push((job.text().into_owned(), began.elapsed().as_secs()));
        match job.text() == "bad" && job.deliveries() < 3 {
            true => Err(()),
            false => Ok(()),
        }
    });
    consuming.await.unwrap();
    let expected = [("a", 0), ("bad", 0), ("c", 0), ("bad", 10), ("bad", 30)];
    let done: Vec<_> = done.borrow().iter().map(|(value, at)| (value.clone(), *at)).collect();
    assert_eq!(done, expected.map(|(value, at)| (value.to_owned(), at)));
    assert_eq!(session.queue("q").len().await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn consumer_runs_as_many_jobs_at_a_time_as_it_may() {
    let backend = store();
    let session = queue(&backend, ["1", "2", "3", "4", "5"]).await;
    let (running, most, done) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let stop = Arc::new(Notify::new());
    let stopped = Arc::clone(&stop);
    let options = ConsumeOptions::new()
        .concurrency(3)
        .until(async move { stopped.notified().await });
    let consuming = session.queue("q");
    let consuming = consuming.consume(options, async |_| {
        running.set(running.get() + 1);
        most.set(running.get().max(most.get()));
        pass(1.0).await;
        running.set(running.get() - 1);
        done.set(done.get() + 1);
        if done.get() == 5 {
            stop.notify_one();
        }
        Ok::<_, ()>(())
    });
    soon(consuming).await.unwrap();
    assert_eq!((most.get(), running.get(), done.get()), (3, 0, 5));
}

#[tokio::test(start_paused = true)]
async fn consumer_that_is_stopped_finishes_its_jobs_and_takes_no_more() {
    let backend = store();
    let session = queue(&backend, ["1", "2"]).await;
    let options = ConsumeOptions::new().until(pass(1.0));
    let consuming = session.queue("q");
    let consuming = consuming.consume(options, async |_| {
        pass(5.0).await;
        Ok::<_, ()>(())
    });
    soon(consuming).await.unwrap();
    let depth = session.queue("q").depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn job_beyond_its_limit_is_dropped_and_comes_back() {
    let backend = store();
    let session = queue(&backend, ["slow"]).await;
    let runs = Cell::new(0);
    let options = ConsumeOptions::new()
        .limit(Duration::from_secs(2))
        .dead_letter(3, "dead")
        .retry(Duration::ZERO, Duration::ZERO)
        .until(pass(20.0));
    let consuming = session.queue("q");
    let consuming = consuming.consume(options, async |_| {
        runs.set(runs.get() + 1);
        pass(1_000.0).await;
        Ok::<_, ()>(())
    });
    soon(consuming).await.unwrap();
    assert_eq!(runs.get(), 3);
    assert_eq!(session.queue("dead").pop().await.unwrap(), b"slow");
}

#[tokio::test(start_paused = true)]
async fn job_that_keeps_its_delivery_is_not_acknowledged() {
    let backend = store();
    let session = queue(&backend, ["a"]).await;
    let kept = RefCell::new(None);
    let consuming = session.queue("q");
    let consuming = consuming.consume(ConsumeOptions::new().until(pass(1.0)), |job| {
        *kept.borrow_mut() = Some(Arc::clone(&job));
        async { Ok::<_, ()>(()) }
    });
    soon(consuming).await.unwrap();
    assert_eq!(session.queue("q").depth().await.unwrap().in_flight, 1);
    drop(kept.take());
    assert_eq!(soon(session.queue("q").dequeue()).await.unwrap().deliveries(), 2);
}

#[tokio::test(start_paused = true)]
async fn dropped_consumer_returns_the_items_of_its_jobs() {
    let backend = store();
    let session = queue(&backend, ["a"]).await;
    let handle = session.queue("q");
    not_yet(handle.consume(ConsumeOptions::new(), async |_| {
        std::future::pending::<()>().await;
        Ok::<_, ()>(())
    }))
    .await;
    assert_eq!(soon(handle.dequeue()).await.unwrap().text(), "a");
}

#[tokio::test(start_paused = true)]
async fn consumer_of_a_session_ends_with_it() {
    let backend = store();
    let session = queue(&backend, []).await;
    let handle = session.queue("q");
    let consuming = handle.consume(ConsumeOptions::new(), async |_| Ok::<_, ()>(()));
    backend.revoke(session.id());
    let error = soon(consuming).await.unwrap_err();
    assert_eq!((error.kind(), error.name()), (ErrorKind::Lost, Some("q")));
}

#[tokio::test(start_paused = true)]
async fn consumer_of_a_store_goes_on_in_another_session() {
    let backend = MemoryBackend::connect(MemoryConfig::new()).unwrap();
    let store = Store::new(backend.clone());
    let session = queue(&backend, ["a", "b"]).await;
    session.queue("q").enqueue(NewItem::new("c").priority(7)).await.unwrap();
    let (jobs, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let stopped = Arc::clone(&stop);
    let options = ConsumeOptions::new().until(async move { stopped.notified().await });
    let consuming = store.consume("q", options, |job| {
        let (backend, stop, first) = (
            backend.clone(),
            Arc::clone(&stop),
            jobs.fetch_add(1, Ordering::Relaxed) == 0,
        );
        async move {
            if first {
                backend.revoke(job.session_id());
                std::future::pending::<()>().await;
            }
            if job.text() == "c" {
                stop.notify_one();
            }
            Ok::<_, ()>(())
        }
    });
    soon(consuming).await.unwrap();
    assert_eq!(jobs.load(Ordering::Relaxed), 4);
    assert_eq!(session.queue("q").len().await.unwrap(), 0);
    let consuming = store.consume("", ConsumeOptions::new(), async |_| Ok::<_, ()>(()));
    assert_eq!(kind(consuming.await), ErrorKind::InvalidName);
}

#[tokio::test(start_paused = true)]
async fn runners_and_transactions_run_in_tasks() {
    let backend = store();
    let (store, session) = (Store::new(backend.clone()), queue(&backend, ["a"]).await);
    let (first, second) = (store.clone(), session.clone());
    let leading = tokio::spawn(async move { first.lead("e", "me", async |lead| lead.token()).await });
    let transacting = tokio::spawn(async move {
        let stm = second.stm();
        stm.run(|tx| async move { tx.put("k", "v") }).await
    });
    let consuming = tokio::spawn(async move {
        let options = ConsumeOptions::new().until(pass(1.0));
        store.consume("q", options, async |_| Ok::<_, ()>(())).await
    });
    soon(leading).await.unwrap().unwrap();
    soon(transacting).await.unwrap().unwrap();
    soon(consuming).await.unwrap().unwrap();
    assert_eq!(session.queue("q").len().await.unwrap(), 0);
}
