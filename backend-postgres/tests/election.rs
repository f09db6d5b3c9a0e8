//! Elections on a real PostgreSQL.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor};
use support::{Database, ONLY_SESSIONS, Silent, TICKETS, within};
use tenure_core::backend::StoreUrl;
use tenure_core::{ErrorKind, Leader, LossReason, MAX_NAME_BYTES, MAX_VALUE_BYTES, SessionOptions};
use tenure_postgres::PostgresConfig;

const TTL: Duration = Duration::from_secs(5);

const LED: &str = "SELECT count(*) FROM tenure.elections WHERE session IS NOT NULL";

fn text(leader: Option<Leader>) -> Option<String> {
    leader.map(|leader| leader.text().into_owned())
}

#[tokio::test]
async fn elected_refused_proclaimed_resigned() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let (mine, other) = (a.election("e").unwrap(), b.election("e").unwrap());
    assert_eq!(other.leader().await.unwrap(), None);
    let lead = mine.campaign("one").await.unwrap();
    assert!(lead.key().starts_with("tenure/1/default/election/e#"));
    for handle in [&mine, &other] {
        let refused = handle.try_campaign("two").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WouldBlock);
        let led = handle.leader().await.unwrap().unwrap();
        assert_eq!((led.text().as_ref(), led.token()), ("one", lead.token()));
    }
    lead.proclaim("uno").await.unwrap();
    let led = other.leader().await.unwrap().unwrap();
    assert_eq!((led.text().as_ref(), led.token()), ("uno", lead.token()));
    // The lock of that name is another thing.
    drop(b.locker("e").unwrap().try_lock().await.unwrap());
    let token = lead.token();
    lead.resign().await.unwrap();
    assert_eq!(other.leader().await.unwrap(), None);
    let next = other.try_campaign("two").await.unwrap();
    assert!(next.token() > token);
    assert_eq!(text(mine.leader().await.unwrap()).unwrap(), "two");
    next.resign().await.unwrap();
    assert_eq!(db.number(TICKETS).await + db.number(LED).await, 0);
}

#[tokio::test]
async fn candidates_lead_in_the_order_of_arrival_with_their_own_values() {
    let db = Database::new().await;
    let sessions = [db.session(TTL).await, db.session(TTL).await];
    let first = sessions[0].election("e").unwrap();
    let first = first.campaign("first").await.unwrap();
    let mut tasks = Vec::new();
    for number in 0..8_i64 {
        let handle = sessions[number as usize % 2].election("e").unwrap();
        tasks.push(tokio::spawn(async move {
            let lead = handle.campaign(format!("c{number}")).await.unwrap();
            let led = handle.leader().await.unwrap().unwrap();
            assert_eq!(led.text(), format!("c{number}"));
            assert_eq!(led.token(), lead.token());
            let token = lead.token();
            lead.resign().await.unwrap();
            token
        }));
        db.until(TICKETS, number + 1).await;
    }
    let mut last = first.token();
    first.resign().await.unwrap();
    for task in tasks {
        let token = within(TTL, "a term", task).await.unwrap();
        assert!(token > last, "in the order of arrival");
        last = token;
    }
    assert_eq!(db.number(TICKETS).await, 0);
}

#[tokio::test]
async fn a_candidacy_that_times_out_leaves_nothing() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let lead = a.election("e").unwrap().campaign("a").await.unwrap();
    let limit = Duration::from_millis(150);
    let late = b.election("e").unwrap().campaign_timeout("b", limit).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
    db.until(TICKETS, 0).await;
    lead.resign().await.unwrap();
    db.until(LED, 0).await;
}

#[tokio::test]
async fn observers_are_told_of_every_change_of_a_slow_election() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let mut observer = b.election("e").unwrap().observe();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(seen) = observer.next().await {
            tell.send(text(seen.unwrap())).unwrap();
        }
    });
    let handle = a.election("e").unwrap();
    let mut took = Vec::new();
    let mut shown = async |wanted: Option<&str>| {
        let started = Instant::now();
        let seen = within(TTL, "a change", told.recv()).await;
        assert_eq!(seen.unwrap().as_deref(), wanted);
        took.push(started.elapsed());
        // For it to wait again.
        tokio::time::sleep(Duration::from_millis(30)).await;
    };
    shown(None).await;
    for _ in 0..5 {
        let lead = handle.campaign("one").await.unwrap();
        shown(Some("one")).await;
        lead.proclaim("two").await.unwrap();
        shown(Some("two")).await;
        lead.resign().await.unwrap();
        shown(None).await;
    }
    took.sort();
    // It looks by itself every half second.
    let median = took[took.len() / 2];
    assert!(median < Duration::from_millis(300), "{took:?}");
    // Another one starts with what is.
    let mut late = a.election("e").unwrap().observe();
    let seen = within(TTL, "the present", late.next()).await;
    assert_eq!(text(seen.unwrap().unwrap()), None);
}

#[tokio::test]
async fn nobody_is_told_who_does_not_watch() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let watched = "SELECT count(*) FROM tenure.elections WHERE watched > now()";
    let lead = a.election("e").unwrap().campaign("a").await.unwrap();
    assert_eq!(
        b.election("e")
            .unwrap()
            .leader()
            .await
            .unwrap()
            .unwrap()
            .text(),
        "a"
    );
    assert_eq!(db.number(watched).await, 0);
    let mut observer = b.election("e").unwrap().observe();
    let seen = within(TTL, "the present", observer.next()).await;
    assert_eq!(text(seen.unwrap().unwrap()).unwrap(), "a");
    assert_eq!(db.number(watched).await, 1);
    lead.resign().await.unwrap();
    let seen = within(TTL, "the vacancy", observer.next()).await;
    assert_eq!(text(seen.unwrap().unwrap()), None);
}

/// However fast leaders change, and whoever makes the vacancies.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn observers_never_go_back() {
    let db = Database::new().await;
    let over = Arc::new(AtomicBool::new(false));
    let mut observers = Vec::new();
    for _ in 0..3 {
        let (session, over) = (db.session(TTL).await, Arc::clone(&over));
        observers.push(tokio::spawn(async move {
            let mut observer = session.election("e").unwrap().observe();
            let (mut last, mut seen) = ((0, 0), 0_usize);
            loop {
                let next = within(TTL * 4, "the next state", observer.next()).await;
                let Some(leader) = next.unwrap().unwrap() else {
                    continue;
                };
                let now = (leader.token().get(), leader.text().parse::<u64>().unwrap());
                assert!(now > last, "{now:?} after {last:?}");
                (last, seen) = (now, seen + 1);
                if now.1 == 1_000_000 {
                    assert!(over.load(Ordering::SeqCst));
                    return seen;
                }
            }
        }));
    }
    let mut leaders = Vec::new();
    for number in 0..4 {
        let mut session = db.session(TTL).await;
        let store = db.store().await;
        leaders.push(tokio::spawn(async move {
            for term in 0..12 {
                let handle = session.election("e").unwrap();
                let lead = handle.campaign("1").await.unwrap();
                lead.proclaim("2").await.unwrap();
                lead.proclaim("3").await.unwrap();
                match (term + number) % 3 {
                    0 => lead.resign().await.unwrap(),
                    1 => drop(lead),
                    _ => {
                        session.close().await.unwrap();
                        let options = tenure_core::SessionOptions::new().ttl(TTL);
                        session = store.open(options).await.unwrap();
                    }
                }
            }
        }));
    }
    for leader in leaders {
        leader.await.unwrap();
    }
    over.store(true, Ordering::SeqCst);
    let session = db.session(TTL).await;
    let last = session.election("e").unwrap();
    let _last = last.campaign("1000000").await.unwrap();
    for observer in observers {
        assert!(observer.await.unwrap() > 0);
    }
}

#[tokio::test]
async fn a_terminated_leader_is_told_and_the_next_leads() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let c = db.session(TTL).await;
    let lead = a.election("e").unwrap().campaign("a").await.unwrap();
    let mut observer = c.election("e").unwrap().observe();
    let seen = within(TTL, "the present", observer.next()).await;
    assert_eq!(text(seen.unwrap().unwrap()).unwrap(), "a");
    let handle = b.election("e").unwrap();
    let next = tokio::spawn(async move { handle.campaign("b").await });
    db.until(TICKETS, 1).await;
    let terminate = format!("SELECT tenure.terminate({})", a.id());
    db.sql()
        .await
        .execute(AssertSqlSafe(terminate))
        .await
        .unwrap();
    let next = within(TTL, "the next leader", next).await.unwrap().unwrap();
    assert!(next.token() > lead.token());
    assert_eq!(lead.lost().await, LossReason::Revoked);
    assert_eq!(
        lead.proclaim("late").await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(lead.resign().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(
        text(c.election("e").unwrap().leader().await.unwrap()).unwrap(),
        "b"
    );
    loop {
        let seen = within(TTL, "the next leader", observer.next()).await;
        if let Some(leader) = seen.unwrap().unwrap() {
            assert_eq!(
                (leader.text().as_ref(), leader.token()),
                ("b", next.token())
            );
            break;
        }
    }
    next.resign().await.unwrap();
}

/// With nobody behind it, whoever looks finds out: its row does not count from that moment on.
#[tokio::test]
async fn a_dead_leaders_row_does_not_count() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let mut sql = db.sql().await;
    // Nobody else looks after the dead.
    sql.execute("ALTER FUNCTION tenure.sweep() RENAME TO sweep_later; CREATE FUNCTION tenure.sweep() RETURNS integer LANGUAGE sql AS 'SELECT 0'")
        .await
        .unwrap();
    let lead = a.election("e").unwrap().campaign("a").await.unwrap();
    let _other = a.election("f").unwrap().campaign("f").await.unwrap();
    let mut observer = b.election("e").unwrap().observe();
    let seen = within(TTL, "the present", observer.next()).await;
    assert_eq!(text(seen.unwrap().unwrap()).unwrap(), "a");
    let terminate = format!("SELECT tenure.terminate({})", a.id());
    sql.execute(AssertSqlSafe(terminate)).await.unwrap();
    let seen = within(Duration::from_secs(2), "the vacancy", observer.next()).await;
    assert_eq!(text(seen.unwrap().unwrap()), None);
    lead.lost().await;
    // The row that nobody watched is still there.
    assert_eq!(db.number(LED).await, 1);
    assert_eq!(b.election("f").unwrap().leader().await.unwrap(), None);
    sql.execute("SELECT tenure.sweep_later()").await.unwrap();
    assert_eq!(db.number(LED).await, 0);
}

/// As after a crash that lost the latest numbers, before anybody has opened a session.
#[tokio::test]
async fn an_observer_goes_on_when_numbers_went_back() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let _lead = a.election("e").unwrap().campaign("a").await.unwrap();
    let mut observer = b.election("e").unwrap().observe();
    let seen = within(TTL, "the present", observer.next()).await;
    assert_eq!(text(seen.unwrap().unwrap()).unwrap(), "a");
    let mut sql = db.sql().await;
    sql.execute("TRUNCATE tenure.life, tenure.elections; SELECT setval('tenure.tokens', 1)")
        .await
        .unwrap();
    let seen = within(TTL, "the vacancy", observer.next()).await;
    assert_eq!(text(seen.unwrap().unwrap()), None);
}

#[tokio::test]
async fn a_leader_that_stands_still_is_succeeded() {
    let db = Database::new().await;
    let ttl = Duration::from_secs(2);
    let silent = Silent::start(db.config(), ttl, move |session| async move {
        session
            .election("e")
            .unwrap()
            .campaign("silent")
            .await
            .unwrap()
    });
    let (held, token, silent) = silent.holds().await;
    let session = db.session(TTL).await;
    let next = session
        .election("e")
        .unwrap()
        .campaign("next")
        .await
        .unwrap();
    let after = held.elapsed();
    assert!(after >= ttl, "{after:?}");
    assert!(after < ttl + Duration::from_secs(10), "{after:?}");
    assert!(next.token() > token);
    silent.wake(|lead| assert!(!lead.is_valid()));
    assert_eq!(
        text(session.election("e").unwrap().leader().await.unwrap()).unwrap(),
        "next"
    );
    next.resign().await.unwrap();
}

#[tokio::test]
async fn a_closed_session_leads_and_stands_no_more() {
    let db = Database::new().await;
    let (a, b, c) = (
        db.session(TTL).await,
        db.session(TTL).await,
        db.session(TTL).await,
    );
    let _lead = a.election("e").unwrap().campaign("a").await.unwrap();
    let handle = b.election("e").unwrap();
    let stands = tokio::spawn(async move { handle.campaign("b").await });
    db.until(TICKETS, 1).await;
    let handle = c.election("e").unwrap();
    let next = tokio::spawn(async move { handle.campaign("c").await });
    db.until(TICKETS, 2).await;
    b.close().await.unwrap();
    assert_eq!(stands.await.unwrap().unwrap_err().kind(), ErrorKind::Lost);
    a.close().await.unwrap();
    let next = within(TTL, "the next leader", next).await.unwrap().unwrap();
    next.resign().await.unwrap();
    assert_eq!(db.number(LED).await, 0);
    // Nor with nobody behind it.
    let _lead = c.election("f").unwrap().campaign("c").await.unwrap();
    c.close().await.unwrap();
    assert_eq!(db.number(LED).await, 0);
}

#[tokio::test]
async fn an_operator_deposes_a_leader() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let lead = a.election("e").unwrap().campaign("a").await.unwrap();
    let holding = lead.key().rsplit_once('#').unwrap().1.to_owned();
    let evict = format!("SELECT tenure.evict('{holding}')");
    db.sql().await.execute(AssertSqlSafe(evict)).await.unwrap();
    assert_eq!(lead.lost().await, LossReason::Revoked);
    assert_eq!(db.number(LED).await, 0);
    let next = b.election("e").unwrap().try_campaign("b").await.unwrap();
    assert_eq!(
        lead.proclaim("late").await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(
        text(a.election("e").unwrap().leader().await.unwrap()).unwrap(),
        "b"
    );
    next.resign().await.unwrap();
}

#[tokio::test]
async fn values_and_names_of_every_kind() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let (most, worst): (Vec<u8>, String) = (
        (0..MAX_VALUE_BYTES)
            .map(|at| ((at * 2_654_435_761) >> 7) as u8)
            .collect(),
        // Each is written with three characters, and none as the one before.
        (0..MAX_NAME_BYTES)
            .map(|at| char::from((1 + at * 7919 / 13 % 31) as u8))
            .collect(),
    );
    let names = [
        "a",
        "A",
        "a/",
        "a/value",
        "../../x",
        "'; DROP TABLE tenure.elections; --",
        "%2F",
        "\u{1f511}",
        "a#1:2",
        &worst,
    ];
    let mut leads = Vec::new();
    for name in names {
        let lead = a.election(name).unwrap().try_campaign(name).await.unwrap();
        leads.push(lead);
    }
    for (name, lead) in names.iter().zip(&leads) {
        let led = b.election(name).unwrap().leader().await.unwrap().unwrap();
        assert_eq!((led.text().as_ref(), led.token()), (*name, lead.token()));
    }
    let handle = b.election("a").unwrap();
    let mut observer = handle.observe();
    for value in [&b""[..], b"\0\xff\\x00'", &most] {
        leads[0].proclaim(value).await.unwrap();
        assert_eq!(handle.leader().await.unwrap().unwrap().value(), value);
        loop {
            let seen = within(TTL, "the value", observer.next()).await;
            if seen.unwrap().unwrap().unwrap().value() == value {
                break;
            }
        }
    }
    let over = vec![0; MAX_VALUE_BYTES + 1];
    assert_eq!(
        leads[0].proclaim(&over).await.unwrap_err().kind(),
        ErrorKind::TooLarge
    );
    assert_eq!(
        handle.try_campaign(&over).await.unwrap_err().kind(),
        ErrorKind::TooLarge
    );
    assert!(leads[0].is_valid());
    // And one that waits with so large a value.
    let (large, candidate) = (most.clone(), b.election("a").unwrap());
    let next = tokio::spawn(async move { candidate.campaign(&large).await });
    db.until(TICKETS, 1).await;
    leads.swap_remove(0).resign().await.unwrap();
    let _next = within(TTL, "the next leader", next).await.unwrap().unwrap();
    assert_eq!(handle.leader().await.unwrap().unwrap().value(), most);
}

#[tokio::test]
async fn a_thousand_campaigns_dropped_at_random_leave_nothing() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let mut tasks = Vec::new();
    for number in 0..1000_u64 {
        let session = if number % 2 == 0 { &a } else { &b };
        let handle = session.election(format!("e{}", number % 7)).unwrap();
        tasks.push(tokio::spawn(async move {
            let limit = Duration::from_micros(number * 7919 % 200_000);
            let _ = tokio::time::timeout(limit, async {
                let lead = handle.campaign("x").await?;
                lead.proclaim("y").await?;
                lead.resign().await
            })
            .await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    db.until(TICKETS, 0).await;
    db.until(LED, 0).await;
    // Two sessions' own.
    db.until(ONLY_SESSIONS, 2).await;
    drop(a.election("e0").unwrap().try_campaign("z").await.unwrap());
}

#[tokio::test]
async fn what_nobody_leads_or_watches_is_forgotten() {
    let db = Database::new().await;
    let session = db.session(TTL).await;
    for name in ["old", "young", "watched", "led"] {
        let lead = session.election(name).unwrap().campaign("x").await.unwrap();
        if name == "led" {
            std::mem::forget(lead);
        } else {
            lead.resign().await.unwrap();
        }
    }
    let mut sql = db.sql().await;
    sql.execute("UPDATE tenure.elections SET vacant = now() - interval '61 minutes' WHERE path NOT LIKE '%young'")
        .await
        .unwrap();
    sql.execute("UPDATE tenure.elections SET watched = now() + interval '9 seconds' WHERE path LIKE '%watched'")
        .await
        .unwrap();
    sql.execute("UPDATE tenure.elections SET vacant = NULL WHERE session IS NOT NULL")
        .await
        .unwrap();
    sql.execute("SELECT tenure.election_collect()")
        .await
        .unwrap();
    assert_eq!(db.number("SELECT count(*) FROM tenure.elections").await, 3);
    // One that observed it before sees what comes after.
    let old = session.election("old").unwrap();
    let mut observer = old.observe();
    let seen = within(TTL, "the present", observer.next()).await;
    assert_eq!(text(seen.unwrap().unwrap()), None);
    sql.execute("DELETE FROM tenure.elections WHERE session IS NULL")
        .await
        .unwrap();
    let _lead = old.campaign("anew").await.unwrap();
    let seen = within(TTL, "the new leader", observer.next()).await;
    assert_eq!(text(seen.unwrap().unwrap()).unwrap(), "anew");
}

/// Everything is forgotten but the order of tokens and of states.
#[tokio::test]
async fn elections_go_on_after_a_restart_of_the_server() {
    for crash in [false, true] {
        let start = || tenure_testbed::PostgresServer::start().unwrap();
        let mut server = tokio::task::spawn_blocking(start).await.unwrap();
        let url = server.url() + "?sslmode=disable";
        let open = async || {
            let config = StoreUrl::parse(&url).and_then(PostgresConfig::from_url);
            let store = tenure_postgres::connect(config.unwrap()).await.unwrap();
            store.open(SessionOptions::new().ttl(TTL)).await.unwrap()
        };
        let (a, b) = (open().await, open().await);
        let lead = a.election("e").unwrap().campaign("before").await.unwrap();
        let mut observer = b.election("e").unwrap().observe();
        let seen = within(TTL, "the present", observer.next()).await;
        assert_eq!(text(seen.unwrap().unwrap()).unwrap(), "before");
        let handle = b.election("e").unwrap();
        let candidate = tokio::spawn(async move { handle.campaign("lost").await });
        while server.sql(TICKETS).unwrap() == "0" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server = tokio::task::spawn_blocking(move || {
            if crash {
                server.kill().unwrap();
            }
            server.restart().unwrap();
            server
        })
        .await
        .unwrap();
        lead.lost().await;
        let ended = within(TTL, "the end of a candidacy", candidate).await;
        assert_eq!(ended.unwrap().unwrap_err().kind(), ErrorKind::Lost);
        // By the observer, before any new session.
        let seen = within(TTL, "the vacancy", observer.next()).await;
        assert_eq!(text(seen.unwrap().unwrap()), None);
        let next = open()
            .await
            .election("e")
            .unwrap()
            .try_campaign("after")
            .await
            .unwrap();
        assert!(next.token() > lead.token());
        assert_eq!(lead.resign().await.unwrap_err().kind(), ErrorKind::Lost);
        let seen = within(TTL, "the new leader", observer.next()).await;
        assert_eq!(text(seen.unwrap().unwrap()).unwrap(), "after");
    }
}

/// Steps are made for READ COMMITTED.
#[tokio::test]
async fn the_databases_default_isolation_does_not_matter() {
    let db = Database::new().await;
    let alter = format!(
        "ALTER DATABASE {} SET default_transaction_isolation = 'serializable'",
        db.name
    );
    db.sql().await.execute(AssertSqlSafe(alter)).await.unwrap();
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let session = db.session(TTL).await;
        tasks.push(tokio::spawn(async move {
            let handle = session.election("e").unwrap();
            for _ in 0..20 {
                let lead = handle.campaign("x").await.unwrap();
                lead.proclaim("y").await.unwrap();
                assert_eq!(
                    handle.leader().await.unwrap().unwrap().token(),
                    lead.token()
                );
                lead.resign().await.unwrap();
            }
        }));
    }
    for task in tasks {
        within(TTL * 2, "twenty terms each", task).await.unwrap();
    }
}

/// The server cancels a resignation after the lock was freed, which it does not take back.
#[tokio::test]
async fn a_resignation_that_failed_half_way_spares_the_next_leader() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let mut sql = db.sql().await;
    let lead = a.election("e").unwrap().campaign("a").await.unwrap();
    let handle = b.election("e").unwrap();
    let next = tokio::spawn(async move { handle.campaign("b").await });
    db.until(TICKETS, 1).await;
    sql.execute(support::BREAK_NUDGE).await.unwrap();
    let resignation = tokio::spawn(lead.resign());
    // It looks by itself.
    let next = within(TTL, "the next leader", next).await.unwrap().unwrap();
    assert_eq!(
        text(a.election("e").unwrap().leader().await.unwrap()).unwrap(),
        "b"
    );
    let unconfirmed = within(TTL, "the resignation", resignation).await.unwrap();
    assert_eq!(unconfirmed.unwrap_err().kind(), ErrorKind::Unavailable);
    sql.execute(support::MEND_NUDGE).await.unwrap();
    // It goes on in the background.
    tokio::time::sleep(Duration::from_millis(500)).await;
    next.proclaim("b on").await.unwrap();
    assert_eq!(
        text(a.election("e").unwrap().leader().await.unwrap()).unwrap(),
        "b on"
    );
    next.resign().await.unwrap();
    db.until(LED, 0).await;
    db.until(ONLY_SESSIONS, 2).await;
}
