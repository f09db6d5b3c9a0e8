//! Many locks on a small server, and many of them wanted by others.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tenure_core::backend::StoreUrl;
use tenure_core::{ErrorKind, SessionOptions};
use tenure_postgres::PostgresConfig;
use tenure_testbed::PostgresServer;

/// Of sessions of ours.
const CONNECTIONS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tenure%'";

/// Ends the other client with the test, however that ends: else it would go on for ever.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// 2,000 locks held and 500 of them wanted by one process, on a server of 50 connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_locks_and_five_hundred_contended() {
    let server = PostgresServer::builder()
        .setting("max_connections", 50)
        .setting("max_locks_per_transaction", 192);
    let server = Arc::new(server.start_async().await.unwrap());
    let url = server.url() + "?sslmode=disable";
    let config = PostgresConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let store = tenure_postgres::connect(config.clone()).await.unwrap();
        let options = SessionOptions::new().ttl(Duration::from_secs(10));
        sessions.push(store.open(options).await.unwrap());
    }

    // Meanwhile another client comes and goes, and makes tables.
    let (over, others) = (Over(Arc::default()), Arc::clone(&server));
    let going = Arc::clone(&over.0);
    let other = tokio::task::spawn_blocking(move || {
        let (mut made, mut most) = (0, 0);
        while !going.load(Ordering::Relaxed) || made < 10 {
            others
                .sql(format!("CREATE TABLE t{made} (id int PRIMARY KEY)"))
                .unwrap();
            others.sql(format!("SELECT count(*) FROM t{made}")).unwrap();
            most = most.max(others.sql(CONNECTIONS).unwrap().parse::<usize>().unwrap());
            made += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        (made, most)
    });

    let mut held = Vec::new();
    for number in 0..2000 {
        let lock = sessions[0].locker(format!("l{number}")).unwrap();
        held.push(lock.lock().await.unwrap());
    }
    let mut wanted = Vec::new();
    for number in 0..500 {
        // Half by the other session, half by another task of the same one.
        let lock = sessions[number % 2].locker(format!("l{number}")).unwrap();
        wanted.push(tokio::spawn(async move {
            let guard = lock.lock().await.unwrap();
            let token = guard.token();
            guard.release().await.unwrap();
            token
        }));
    }
    let tickets = || server.sql("SELECT count(*) FROM tenure.tickets").unwrap();
    for _ in 0..1000 {
        if tickets() == "500" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(tickets(), "500");
    assert!(wanted.iter().all(|task| !task.is_finished()));

    // More than what the server bears is refused, whoever asks for it, and costs nobody anything.
    let mut more = Vec::new();
    let refused = loop {
        let lock = sessions[1].locker(format!("more {}", more.len())).unwrap();
        match lock.try_lock().await {
            Ok(guard) => more.push(guard),
            Err(error) => break error,
        }
        assert!(more.len() < 5000, "as many as one likes");
    };
    assert_eq!(refused.kind(), ErrorKind::TooLarge, "{refused}");
    println!("refused after {} more", more.len());
    assert!(held.iter().chain(&more).all(|guard| guard.is_valid()));
    let last = held.iter().map(|guard| guard.token()).max().unwrap();
    drop(more);

    let began = std::time::Instant::now();
    for guard in held {
        guard.release().await.unwrap();
    }
    for task in wanted {
        let token = tokio::time::timeout(Duration::from_secs(60), task).await;
        assert!(token.unwrap().unwrap() > last);
    }
    println!("handed on and released in {:?}", began.elapsed());
    drop(over);
    let (made, most) = other.await.unwrap();
    println!("{made} tables made, at most {most} connections");
    assert!(most <= 2 * 3, "{most}");
    assert_eq!(tickets(), "0");
}
