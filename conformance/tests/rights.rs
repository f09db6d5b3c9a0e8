//! All cases on a PostgreSQL over a role that owns nothing and has what `grants` hands out, no more.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use std::sync::Arc;

use tenure_conformance::stores::PostgresSubject;
use tenure_conformance::{Outcome, Seen, Subject, run};
use tenure_testbed::PostgresServer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_rights_are_enough() {
    let server = PostgresServer::builder()
        // What sixteen cases at a time take.
        .setting("max_connections", 400)
        .setting("max_locks_per_transaction", 128)
        .user("least", "secret")
        // Rights are the subject: a password would be hashed 4096 times for each of some thousand connections.
        .hba("host all least 127.0.0.1/32 trust");
    let server = server.start_async().await.unwrap();
    server.sql(tenure_postgres::migration()).unwrap();
    server.sql(tenure_postgres::grants("least")).unwrap();
    let url = format!(
        "postgres://least@{}/postgres?connect_timeout=10s",
        server.address()
    );
    let subject: Arc<dyn Subject> = Arc::new(PostgresSubject::at(&url).unwrap().at_once(16));
    let report = run(vec![subject], |_| true, |_| {}).await;
    let column = &report.columns[0];
    let (mut wrong, mut held) = (Vec::new(), 0);
    let wanting = |why: &str| why.contains("there is no way to") || why.contains("is not offered");
    for entry in &column.entries {
        // What wants a control that nobody has over somebody's server says so.
        let why = match &entry.outcome {
            Outcome::Held { .. } => {
                held += 1;
                continue;
            }
            Outcome::Violated { counterexample, .. } => counterexample,
            Outcome::NotRun { why, .. } if !wanting(why) => why,
            Outcome::NotPromised {
                seen: Seen::NoControl(why) | Seen::NotBroughtAbout(why),
                ..
            } if !wanting(why) => why,
            _ => continue,
        };
        wrong.push(format!("{}: {why}", entry.case.id));
    }
    println!("{report}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(held > 80, "only {held} cases held");
}
