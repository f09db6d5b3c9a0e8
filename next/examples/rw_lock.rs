//! A read-write lock: readers share, a writer is alone, and a writer becomes a reader without a gap.
//!
//!     cargo run --example rw_lock
//!     cargo run --features redis --example rw_lock redis://127.0.0.1:6379

use tenure::{SessionOptions, Store};

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".into());
    run(&tenure::connect(url).await?).await
}

pub(crate) async fn run(store: &Store) -> tenure::Result<()> {
    store
        .with_session(SessionOptions::new(), async |session| {
            let (first, second) = (session.read_lock("config").await?, session.read_lock("config").await?);
            println!("two readers, tokens {} and {}", first.token(), second.token());
            first.release().await?;
            second.release().await?;

            let writer = session.write_lock("config").await?;
            println!("the writer is alone, token {}", writer.token());
            // Other readers enter, and no other writer comes in between.
            let reader = writer.downgrade().await?;
            assert!(session.rw_lock("config").try_write().await?.is_none());
            reader.release().await
        })
        .await
}
