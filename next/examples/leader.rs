//! A leader for ever, and an observer that follows the leaders.
//!
//!     cargo run --example leader
//!     cargo run --features redis --example leader redis://127.0.0.1:6379

use std::sync::Arc;

use futures_util::TryStreamExt;
use tenure::{SessionOptions, Store};
use tokio::sync::Notify;

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".into());
    run(&tenure::connect(url).await?).await
}

pub(crate) async fn run(store: &Store) -> tenure::Result<()> {
    let session = store.open(SessionOptions::new()).await?;
    let mut updates = session.election("scheduler").observe();
    let seen = Arc::new(Notify::new());
    let see = Arc::clone(&seen);
    let observer = tokio::spawn(async move {
        let mut leaders = 0;
        // The stream begins with the current state and shows vacancies too.
        while let Some(update) = updates.try_next().await? {
            match update.leader {
                Some(leader) => {
                    leaders += 1;
                    see.notify_one();
                    println!(
                        "leader {}, token {}",
                        String::from_utf8_lossy(&leader.value),
                        leader.token
                    );
                }
                None if leaders == 0 => println!("no leader yet"),
                None => {
                    println!("the leader resigned");
                    break;
                }
            }
        }
        tenure::Result::Ok(leaders)
    });

    // Campaigns, works as the leader, campaigns again in a new session after a loss. The work of a scheduler is a loop.
    store
        .lead("scheduler", "node-1", async |lead| {
            println!("leading under token {}", lead.token());
            seen.notified().await;
        })
        .await?;

    observer.await.expect("the observer does not panic")?;
    session.close().await
}
