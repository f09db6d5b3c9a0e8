//! An election: campaign, proclaim, query, rev, watch, resign.
//!
//!     cargo run --example election [URL]
//!
//! Two candidates stand, an observer watches. `tenure shell` does the same by hand.

use std::time::Duration;

use tenure::prelude::*;

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let store = tenure::connect(url()).await?;
    let options = || SessionOptions::new().ttl(Duration::from_secs(5));

    // The observer has a session of its own, and sees the present state first.
    let watching = store.open(options()).await?;
    let mut observer = watching.election("scheduler")?.observe();
    let watcher = tokio::spawn(async move {
        while let Some(state) = observer.next().await {
            match state {
                Ok(Some(leader)) => {
                    println!("watch: {} leads, rev {}", leader.text(), leader.token())
                }
                Ok(None) => println!("watch: nobody leads"),
                Err(error) => println!("watch: {}", error.chain()),
            }
        }
    });

    let first = store.open(options()).await?;
    let leadership = first.election("scheduler")?.campaign("node-1").await?;
    println!("node-1 was elected, rev {}", leadership.token());

    // The second waits in line until the first resigns, dies, or is paused past its TTL.
    let second = store.open(options()).await?;
    let election = second.election("scheduler")?;
    let candidate = tokio::spawn({
        let election = election.clone();
        async move { election.campaign("node-2").await }
    });

    leadership.proclaim("node-1: ready").await?;
    if let Some(leader) = election.leader().await? {
        println!("query: {} leads, rev {}", leader.text(), leader.token());
    }

    // Work that only a leader may do stops when the leadership is lost; what it writes carries the
    // token, so that a deposed leader is refused.
    let token = leadership.token();
    leadership
        .while_held(async { println!("node-1 works, with token {token}") })
        .await?;

    leadership.resign().await?;
    println!("node-1 resigned");
    let successor = candidate.await.expect("no panic")?;
    println!("node-2 was elected, rev {}", successor.token());
    assert!(
        successor.token() > token,
        "tokens rise with every leadership"
    );
    successor.resign().await?;

    watching.close().await?; // ends the observer
    watcher.await.expect("no panic");
    first.close().await?;
    second.close().await
}

/// The first argument, or `TENURE_URL`, or the embedded store.
fn url() -> String {
    let given = std::env::args()
        .nth(1)
        .or_else(|| std::env::var("TENURE_URL").ok());
    given.unwrap_or_else(|| "memory:".to_owned())
}
