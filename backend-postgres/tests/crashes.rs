//! A server that is killed again and again in the midst of grants.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tenure_core::backend::StoreUrl;
use tenure_core::{FencingToken, SessionOptions};
use tenure_postgres::PostgresConfig;
use tenure_testbed::PostgresServer;

const KILLS: usize = 20;
const CLIENTS: usize = 4;

/// Every token of a grant, by name, in the order in which they were held.
type Seen = Arc<Mutex<Vec<(usize, FencingToken)>>>;

/// Locks one of two names again and again, with a new session whenever one is lost.
async fn grants(url: String, client: usize, seen: Seen) {
    let config = PostgresConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
    loop {
        // Not there, just now.
        let Ok(store) = tenure_postgres::connect(config.clone()).await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let options = SessionOptions::new().ttl(Duration::from_secs(5));
        let Ok(session) = store.open(options).await else {
            continue;
        };
        let lock = session.locker(format!("l{}", client % 2)).unwrap();
        while let Ok(guard) = lock.lock().await {
            seen.lock().unwrap().push((client % 2, guard.token()));
            drop(guard.release().await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rise_whenever_the_server_is_killed() {
    let mut server = PostgresServer::start_async().await.unwrap();
    let seen = Seen::default();
    let url = server.url() + "?sslmode=disable";
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| tokio::spawn(grants(url.clone(), client, Arc::clone(&seen))))
        .collect();
    let mut before = 0;
    for round in 0..KILLS {
        for _ in 0..3000 {
            if seen.lock().unwrap().len() >= before + 20 + round * 7 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let count = seen.lock().unwrap().len();
        assert!(
            count >= before + 20,
            "{count} grants before kill {round}, {before} before the last"
        );
        tokio::task::block_in_place(|| server.kill()).unwrap();
        // What was granted, was written down.
        tokio::time::sleep(Duration::from_millis(50)).await;
        before = seen.lock().unwrap().len();
        server.restart_async().await.unwrap();
    }
    for client in clients {
        client.abort();
    }
    let seen = seen.lock().unwrap();
    for name in 0..2 {
        let tokens = seen.iter().filter(|(of, _)| *of == name);
        let tokens: Vec<_> = tokens.map(|(_, token)| *token).collect();
        assert!(tokens.is_sorted_by(|a, b| a < b), "{name}: {tokens:?}");
    }
    let distinct: BTreeSet<_> = seen.iter().map(|(_, token)| token).collect();
    assert_eq!(distinct.len(), seen.len());
    println!("{} grants over {KILLS} kills", seen.len());
}
