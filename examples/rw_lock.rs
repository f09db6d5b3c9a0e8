//! A read-write lock: readers share, a writer is alone, and each is granted in its turn.
//!
//!     cargo run --example rw_lock [URL]

use std::time::Duration;

use tenure::prelude::*;

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let store = tenure::connect(url()).await?;
    let session = store
        .open(SessionOptions::new().ttl(Duration::from_secs(5)))
        .await?;
    let config = session.rw_lock("config")?;

    let one = config.read().await?;
    let two = config.read().await?;
    println!("two readers, tokens {} and {}", one.token(), two.token());

    // A writer in another session: it waits for both, and later readers wait behind it.
    let writing = store.open(SessionOptions::new()).await?;
    let writer = tokio::spawn({
        let config = writing.rw_lock("config")?;
        async move { config.write().await }
    });

    // An upgrade would wait for itself, so it is refused.
    match config.write().await {
        Err(error) if error.kind() == ErrorKind::Conflict => println!("no upgrade: {error}"),
        Err(error) => return Err(error),
        Ok(_) => unreachable!("this session reads"),
    }

    one.release().await?;
    two.release().await?;
    let write = writer.await.expect("no panic")?;
    println!("a writer, token {}", write.token());

    // It goes on reading what it has written: no other writer comes in between.
    let token = write.token();
    let read = write.downgrade().await?;
    assert_eq!(read.token(), token);
    let other = config.read_timeout(Duration::from_secs(5)).await?;
    println!(
        "the writer reads on, with token {}, and another reader came in",
        read.token()
    );

    other.release().await?;
    read.release().await?;
    writing.close().await?;
    session.close().await
}

/// The first argument, or `TENURE_URL`, or the embedded store.
fn url() -> String {
    let given = std::env::args()
        .nth(1)
        .or_else(|| std::env::var("TENURE_URL").ok());
    given.unwrap_or_else(|| "memory:".to_owned())
}
