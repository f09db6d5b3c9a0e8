//! Barriers: one that many wait at until it is released, and a double barrier that a group enters and leaves together.
//!
//!     cargo run --example barrier
//!     cargo run --features redis --example barrier redis://127.0.0.1:6379

use tenure::{SessionOptions, Store};

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".into());
    run(&tenure::connect(url).await?).await
}

pub(crate) async fn run(store: &Store) -> tenure::Result<()> {
    let session = store.open(SessionOptions::new()).await?;

    // The barrier is held by a guard: it opens when the guard is released or the session ends.
    let migration = session.barrier("migration").hold().await?;
    let waiter = session.barrier("migration");
    let waiting = tokio::spawn(async move { waiter.wait().await });
    println!("the migration runs");
    migration.release().await?;
    waiting.await.expect("the waiter does not panic")?;

    // Three participants start together, and go on together.
    let mut participants = Vec::new();
    for number in 1..=3 {
        let phase = session.double_barrier("phase-1", 3);
        participants.push(tokio::spawn(async move {
            let inside = phase.enter().await?;
            println!("participant {number} works");
            inside.leave().await
        }));
    }
    for participant in participants {
        participant.await.expect("a participant does not panic")?;
    }
    println!("all have left");
    session.close().await
}
