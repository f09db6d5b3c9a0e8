//! Cases on a PostgreSQL over a role that owns nothing and has what `grants` hands out, no more.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use tenure_conformance::stores::PostgresHarness;
use tenure_conformance::{CASES, Outcome};
use tenure_testbed::PostgresServer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_rights_are_enough() {
    let server = PostgresServer::builder()
        .setting("max_connections", 200)
        .user("least", "secret");
    let server = server.start_async().await.unwrap();
    server.sql(tenure_postgres::migration()).unwrap();
    server.sql(tenure_postgres::grants("least")).unwrap();
    let url = format!("postgres://least:secret@{}/postgres", server.address());
    let (mut wrong, mut held) = (Vec::new(), 0);
    for case in CASES {
        if !["L1", "L2", "L4", "L7", "S1"].contains(&case.rule) {
            continue;
        }
        // What wants a control that nobody has over somebody's server says so.
        let harness = PostgresHarness::at(&url).unwrap();
        match case.run(&harness).await {
            Outcome::Held { .. } => held += 1,
            Outcome::Violated { counterexample, .. } => {
                wrong.push(format!("{}: {counterexample}", case.id));
            }
            // A primitive that is not offered is told from a right that is not there.
            Outcome::NotRun { why } if why.contains("right") => {
                wrong.push(format!("{}: {why}", case.id));
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(held > 5, "only {held} cases ran");
    println!("{held} cases held");
}
