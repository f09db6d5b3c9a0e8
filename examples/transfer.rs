//! A transfer with an explicit transaction: if both balances are as they were read, then move the
//! money, else look at them again.
//!
//!     cargo run --example transfer [URL]

use std::time::Duration;

use tenure::prelude::*;
use tenure::{Compare, Op, OpResult};

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let store = tenure::connect(url()).await?;
    let session = store
        .open(SessionOptions::new().ttl(Duration::from_secs(5)))
        .await?;
    let data = session.stm()?;
    data.put("alice", "70").await?;
    data.put("bob", "30").await?;

    // Only who holds this lock transfers: the store looks at the lock in the same step as it moves
    // the money, so that a holder that was paused and lost it changes nothing.
    let guard = session.locker("accounts")?.lock().await?;

    let (mut alice, mut bob) = (70_i64, 30_i64);
    // Somebody who did not ask for the lock: what was read is stale now.
    data.put("bob", "31").await?;
    loop {
        let moved = data
            .txn()
            .when([
                Compare::value("alice").eq(alice.to_string()),
                Compare::value("bob").eq(bob.to_string()),
            ])
            .then([
                Op::put("alice", (alice - 20).to_string()),
                Op::put("bob", (bob + 20).to_string()),
            ])
            .or_else([Op::get("alice"), Op::get("bob")])
            .fenced_by(&guard)
            .commit()
            .await?;
        if moved.succeeded {
            break;
        }
        println!("a balance has changed, looking again");
        let mut balances = moved.results.iter().map(balance);
        (alice, bob) = (
            balances.next().unwrap_or_default(),
            balances.next().unwrap_or_default(),
        );
    }
    guard.release().await?;

    for name in ["alice", "bob"] {
        let entry = data.get(name).await?;
        let value = entry.map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
        println!("{name}: {}", value.unwrap_or_default());
    }
    session.close().await
}

fn balance(result: &OpResult) -> i64 {
    match result {
        OpResult::Get(Some(entry)) => String::from_utf8_lossy(&entry.value)
            .parse()
            .unwrap_or_default(),
        _ => 0,
    }
}

/// The first argument, or `TENURE_URL`, or the embedded store.
fn url() -> String {
    let given = std::env::args()
        .nth(1)
        .or_else(|| std::env::var("TENURE_URL").ok());
    given.unwrap_or_else(|| "memory:".to_owned())
}
