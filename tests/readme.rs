//! The code in README.md compiles and does what it says: what stands here between the marks is what
//! stands there.
#![cfg(feature = "memory")]

use tenure::prelude::*;

/// README's tour of the primitives.
#[tokio::test]
async fn the_tour_runs() -> tenure::Result<()> {
    let store = tenure::connect("memory:").await?;
    let session = store.open(SessionOptions::new()).await?;
    let crowd = store.open(SessionOptions::new()).await?;
    for _ in 0..9 {
        let phase = crowd.double_barrier("phase", 10)?;
        tokio::spawn(async move { phase.enter().await?.leave().await });
    }
    // begin
    let lead = session.election("scheduler")?.campaign("node-1").await?;
    lead.proclaim("node-1: ready").await?;
    lead.resign().await?;

    let write = session.rw_lock("config")?.write().await?;
    let read = write.downgrade().await?; // no other writer comes in between
    read.release().await?;

    let jobs = session.queue("jobs")?;
    jobs.enqueue(Item::new("resize").priority(3)).await?;
    let job = jobs.dequeue().await?; // under this session's lease until it is acknowledged
    job.ack().await?;

    session.barrier("deployment")?.wait().await?;
    let inside = session.double_barrier("phase", 10)?.enter().await?;
    inside.leave().await?;

    let guard = session.locker("orders")?.lock().await?;
    let data = session.stm()?; // commits only if the lock is held in the store at that moment
    data.fenced_by(&guard)
        .run(|tx| async move {
            let n: u64 = tx.get_as("n").await?.unwrap_or_default();
            tx.put_as("n", &(n + 1))
        })
        .await?;
    // end
    let n = data.get("n").await?.map(|entry| entry.value);
    assert_eq!(n.as_deref(), Some(&b"1"[..]));
    guard.release().await
}

/// The same words, wherever the lines break.
#[test]
fn the_tour_is_the_readme() {
    let words = |text: &str| text.split_whitespace().collect::<String>();
    let here = include_str!("readme.rs");
    let tour = here
        .split("// begin")
        .nth(1)
        .and_then(|rest| rest.split("// end").next());
    let readme = include_str!("../README.md");
    let mut blocks = readme.split("```rust").skip(1);
    let found = blocks
        .any(|block| words(block.split("```").next().unwrap_or("")) == words(tour.unwrap_or("?")));
    assert!(found, "README.md has another tour than tests/readme.rs");
}
