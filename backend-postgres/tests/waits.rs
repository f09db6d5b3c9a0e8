//! What those who wait cost others: nothing stays behind, nothing holds back a VACUUM, nobody is overtaken.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, Write as _};
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, MaybeDone, maybe_done};
use futures_util::poll;
use sqlx::{Executor, Row};
use support::{Database, ONLY_SESSIONS, TICKETS, server, within};
use tenure_core::backend::StoreUrl;
use tenure_core::{HoldFor, Session, SessionOptions};
use tenure_postgres::{PostgresConfig, PostgresSession};
use tenure_testbed::Process;

const TTL: Duration = Duration::from_secs(5);

/// Connections of ours that are in the midst of something. All look now and then, for some microseconds.
const BUSY: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tenure%' \
    AND datname = current_database() AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL OR state <> 'idle')";

/// Of them, those that hold back a VACUUM for longer than a step takes.
const LONG: &str = "SELECT coalesce(string_agg(concat_ws(' ', state, clock_timestamp() - xact_start, query), '; '), '') FROM pg_stat_activity WHERE application_name LIKE 'tenure%' \
    AND datname = current_database() AND xact_start < clock_timestamp() - interval '300 milliseconds'";

#[tokio::test]
async fn whatever_is_waited_for_no_vacuum_waits() {
    let db = Database::new().await;
    let (holder, waiter) = (db.session(TTL).await, db.session(TTL).await);
    let _lock = holder.locker("l").unwrap().lock().await.unwrap();
    let _writer = holder.rw_lock("r").unwrap().write().await.unwrap();
    let _leader = holder.election("e").unwrap().campaign("one").await.unwrap();
    holder
        .barrier("b")
        .unwrap()
        .hold(HoldFor::Session)
        .await
        .unwrap();
    let waiter = Arc::new(waiter);
    let mut waits = tokio::task::JoinSet::new();
    for number in 0..6 {
        let session = Arc::clone(&waiter);
        waits.spawn(async move {
            match number {
                0 => drop(session.locker("l").unwrap().lock().await),
                1 => drop(session.rw_lock("r").unwrap().read().await),
                2 => drop(session.election("e").unwrap().campaign("two").await),
                3 => drop(session.queue("q").unwrap().dequeue().await),
                4 => drop(session.barrier("b").unwrap().wait().await),
                _ => drop(session.double_barrier("d", 2).unwrap().enter().await),
            }
        });
    }
    db.until(TICKETS, 3).await;
    // All are at rest, and stay so but for a look of theirs now and then.
    db.until(BUSY, 0).await;
    let mut sql = db.sql().await;
    let (mut samples, mut busy) = (0, 0);
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        let row = sql.fetch_one(LONG).await.unwrap();
        assert_eq!(row.get::<String, _>(0), "", "holds back a VACUUM");
        let row = sql.fetch_one(BUSY).await.unwrap();
        busy += i64::from(row.get::<i64, _>(0) > 0);
        samples += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("busy in {busy} of {samples} samples");
    assert!(busy * 10 < samples, "{busy} of {samples}");
    assert!(waits.try_join_next().is_none(), "they wait");
    assert_eq!(
        db.number("SELECT count(*) FROM pg_locks WHERE NOT granted")
            .await,
        0
    );
}

/// What a thousand futures leave that were dropped at random points: how long until it is all gone.
async fn clean_after(db: &Database, sessions: &[Session<PostgresSession>; 2]) -> Duration {
    let mut sql = db.sql().await;
    let held = sessions[0].locker("l0").unwrap().lock().await.unwrap();
    let mut tasks = Vec::new();
    for number in 0..1000_usize {
        let lock = sessions[number % 2]
            .locker(format!("l{}", number % 5))
            .unwrap();
        tasks.push(tokio::spawn(async move {
            // After so many polls, or where it is after a while.
            let mut future = Box::pin(lock.lock());
            for _ in 0..number % 11 {
                let once = std::future::poll_fn(|context| {
                    std::task::Poll::Ready(future.as_mut().poll(context).is_ready())
                });
                if once.await {
                    return;
                }
                tokio::time::sleep(Duration::from_micros(number as u64 * 7919 % 20_000)).await;
            }
            drop(future);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let dropped = Instant::now();
    held.release().await.unwrap();
    for (question, rest) in [(TICKETS, 0), (ONLY_SESSIONS, 2), (BUSY, 0)] {
        while sql.fetch_one(question).await.unwrap().get::<i64, _>(0) != rest {
            assert!(dropped.elapsed() < Duration::from_secs(5), "{question}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    dropped.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_futures_dropped_leave_nothing_soon_after() {
    let db = Database::new().await;
    let sessions = [db.session(TTL * 4).await, db.session(TTL * 4).await];
    let mut best = Duration::MAX;
    // What else the machine does is not ours: of a few rounds one is in time.
    for _ in 0..4 {
        best = best.min(clean_after(&db, &sessions).await);
        for number in 0..5 {
            let lock = sessions[number % 2].locker(format!("l{number}")).unwrap();
            drop(lock.try_lock().await.unwrap());
        }
        if best < Duration::from_secs(1) {
            break;
        }
    }
    println!("clean {best:?} after the last was dropped");
    assert!(best < Duration::from_secs(2), "{best:?}");
}

const URL: &str = "TENURE_TEST_WAITERS";

/// The process of the test below: a line `N` on its input makes it wait in line as `N`; it says `granted N
/// TOKEN` and lets go.
#[tokio::test]
#[ignore = "is a process of another test"]
async fn waiters() {
    let Ok(url) = std::env::var(URL) else {
        return;
    };
    let config = PostgresConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
    let store = tenure_postgres::connect(config).await.unwrap();
    let options = SessionOptions::new().ttl(TTL);
    let session = store.open(options).await.unwrap();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            tell.send(line.unwrap()).unwrap();
        }
        std::process::exit(0);
    });
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{line}").unwrap();
        out.flush().unwrap();
    };
    say("ready".into());
    while let Some(number) = told.recv().await {
        let lock = session.locker("line").unwrap();
        tokio::spawn(async move {
            let guard = lock.lock().await.unwrap();
            say(format!("granted {number} {}", guard.token()));
            guard.release().await.unwrap();
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_of_ten_waiters_each_go_in_order() {
    const PATIENCE: Duration = Duration::from_secs(30);
    let db = Database::new().await;
    let session = db.session(TTL).await;
    let held = session.locker("line").unwrap().lock().await.unwrap();
    let url = server().url_of(&db.name) + "?sslmode=disable";
    let mut processes: Vec<_> = (0..3)
        .map(|_| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "waiters", "--ignored", "--nocapture"]);
            Process::spawn(command_with(command, &url)).unwrap()
        })
        .collect();
    for process in &mut processes {
        tokio::task::block_in_place(|| process.expect_line("ready", PATIENCE)).unwrap();
    }
    // Not by turns: the order is the server's, not one of the processes'.
    let of = |number: i64| usize::try_from(number * 7 % 30 / 10).unwrap();
    for number in 0..30 {
        processes[of(number)]
            .send_line(&number.to_string())
            .unwrap();
        db.until(TICKETS, number + 1).await;
    }
    held.release().await.unwrap();
    let mut granted = Vec::new();
    for number in 0..30 {
        let process = &mut processes[of(number)];
        let line = tokio::task::block_in_place(|| process.expect_line("granted", PATIENCE));
        let line = line.unwrap();
        let mut words = line
            .split(' ')
            .skip(1)
            .map(|word| word.parse::<u64>().unwrap());
        granted.push((words.next().unwrap(), words.next().unwrap()));
    }
    granted.sort_by_key(|(_, token)| *token);
    let order: Vec<_> = granted.iter().map(|(number, _)| *number).collect();
    assert_eq!(order, (0..30).collect::<Vec<_>>());
    assert_eq!(db.number(TICKETS).await, 0);
}

fn command_with(mut command: Command, url: &str) -> Command {
    command.env(URL, url);
    command
}

/// Steps share connections. One whose caller neither polls it on nor drops it must not keep them: not from
/// other steps, and not from the renewals.
#[tokio::test]
async fn a_call_that_is_not_polled_is_in_nobodys_way() {
    let ttl = Duration::from_secs(1);
    let db = Database::new().await;
    let (holder, session) = (db.session(TTL).await, db.session(ttl).await);
    let _held = holder.locker("held").unwrap().lock().await.unwrap();
    let barrier = holder.barrier("b").unwrap();
    barrier.hold(HoldFor::Session).await.unwrap();
    let (held, free) = (
        session.locker("held").unwrap(),
        session.locker("free").unwrap(),
    );
    let election = session.election("e").unwrap();
    let lead = election.campaign("a").await.unwrap();
    let (barrier, queue) = (session.barrier("b").unwrap(), session.queue("q").unwrap());
    let stm = session.stm().unwrap();
    for polls in 1..6 {
        let mut observer = election.observe();
        let mut calls: Vec<Pin<Box<MaybeDone<BoxFuture<'_, ()>>>>> = [
            async { drop(held.lock().await) }.boxed(),
            async { drop(free.lock().await) }.boxed(),
            async { drop(barrier.wait().await) }.boxed(),
            async { drop(election.leader().await) }.boxed(),
            async { drop(queue.depth().await) }.boxed(),
            async { drop(queue.enqueue("x").await) }.boxed(),
            async { drop(stm.get("k").await) }.boxed(),
            async { drop(stm.put("k", "v").await) }.boxed(),
            async { drop(observer.next().await) }.boxed(),
        ]
        .map(|call| Box::pin(maybe_done(call)))
        .into();
        // Somewhere in the middle of what each does.
        for _ in 0..polls {
            for call in &mut calls {
                let _ = poll!(call.as_mut());
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        let leader = within(TTL, "a read", election.leader()).await;
        assert_eq!(leader.unwrap().unwrap().text(), "a");
        within(TTL, "a step", lead.proclaim("a")).await.unwrap();
        if polls % 2 == 1 {
            tokio::time::sleep(ttl + ttl / 4).await;
            assert!(session.is_valid(), "renewed meanwhile");
        }
        drop(calls);
    }
    lead.resign().await.unwrap();
}
