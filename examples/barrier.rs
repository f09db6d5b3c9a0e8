//! A barrier: workers wait until somebody says that all is prepared.
//!
//!     cargo run --example barrier [URL]          holds, starts workers, releases
//!     cargo run --example barrier URL wait       a worker in a process of its own
//!     cargo run --example barrier URL release    opens it for them

use std::time::Duration;

use tenure::prelude::*;

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let store = tenure::connect(url()).await?;
    let options = || SessionOptions::new().ttl(Duration::from_secs(5));
    let session = store.open(options()).await?;
    let barrier = session.barrier("deployment")?;

    match std::env::args().nth(2).as_deref() {
        Some("wait") => {
            barrier.wait().await?;
            println!("nobody holds the barrier any more");
        }
        Some("release") => println!("it was held: {}", barrier.release().await?),
        _ => {
            // `HoldFor::Good` would outlive this process; this hold ends with its session.
            barrier.hold(HoldFor::Session).await?;
            let mut workers = Vec::new();
            for worker in 1..=3 {
                let session = store.open(options()).await?;
                workers.push(tokio::spawn(async move {
                    session.barrier("deployment")?.wait().await?;
                    println!("worker {worker} goes on");
                    session.close().await
                }));
            }
            tokio::time::sleep(Duration::from_millis(200)).await; // the preparations
            println!("all is prepared");
            barrier.release().await?;
            for worker in workers {
                worker.await.expect("a worker does not panic")?;
            }
        }
    }
    session.close().await
}

/// The first argument, or `TENURE_URL`, or the embedded store.
fn url() -> String {
    let given = std::env::args()
        .nth(1)
        .or_else(|| std::env::var("TENURE_URL").ok());
    given.unwrap_or_else(|| "memory:".to_owned())
}
