//! Transactional memory: a counter, a conditional write, and a commit that is bound to a lock.
//!
//!     cargo run --example counter
//!     cargo run --features redis --example counter redis://127.0.0.1:6379

use tenure::{Compare, Op, SessionOptions, Store};

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".into());
    run(&tenure::connect(url).await?).await
}

pub(crate) async fn run(store: &Store) -> tenure::Result<()> {
    store
        .with_session(SessionOptions::new(), async |session| {
            let stm = session.stm();

            // The closure runs again if another transaction wrote what it read.
            let visits = stm
                .run(async |tx| {
                    let visits: u64 = tx.get_as("visits").await?.unwrap_or_default();
                    tx.put_as("visits", &(visits + 1))?;
                    Ok(visits + 1)
                })
                .await?;
            println!("visits: {visits}");

            // The explicit form: one request.
            let outcome = stm
                .txn()
                .when([Compare::version("owner").eq(0)])
                .then([Op::put("owner", "node-1")])
                .or_else([Op::get("owner")])
                .commit()
                .await?;
            println!("first owner: {}", outcome.succeeded);

            // Commits only if the lock is still held in the store at that moment.
            let guard = session.lock("ledger").await?;
            stm.fenced_by(&guard).run(async |tx| tx.put("ledger", "closed")).await?;
            guard.release().await
        })
        .await
}
