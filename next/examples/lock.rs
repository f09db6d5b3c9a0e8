//! Critical sections under a lock: one that waits, one that runs only if the lock is free, one with a time limit.
//!
//!     cargo run --example lock
//!     cargo run --features redis --example lock redis://127.0.0.1:6379

use std::time::Duration;

use tenure::{ErrorKind, FenceGate, SessionOptions, Store};

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".into());
    run(&tenure::connect(url).await?).await
}

pub(crate) async fn run(store: &Store) -> tenure::Result<()> {
    // The resource refuses a token that is older than the newest one it has seen.
    let account = FenceGate::new(100_u32);

    store
        .with_session(SessionOptions::new().ttl(Duration::from_secs(10)), async |session| {
            // Waits for the lock, runs the work, releases. The work stops at its next await point if the lock is lost.
            let balance = session
                .locker("account")
                .with(async |token| {
                    account.write(token, |balance| {
                        *balance -= 30;
                        *balance
                    })
                })
                .await?;
            println!("charged, the balance is {balance:?}");

            // A periodic job: runs only in the process that finds the lock free.
            if let Some(guard) = session.try_lock("nightly").await? {
                println!("the nightly job runs here, under token {}", guard.token());
                guard.release().await?;
            }

            // A wait with a limit.
            let guard = session.lock("account").await?;
            match session.locker("account").lock_timeout(Duration::from_millis(200)).await {
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    println!("still held: {error}")
                }
                other => drop(other?),
            }
            guard.release().await
        })
        .await
}
