//! A work queue: producers with options, and a consumer that acknowledges, retries and stops gracefully.
//!
//!     cargo run --example queue
//!     cargo run --features redis --example queue redis://127.0.0.1:6379

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tenure::{ConsumeOptions, NewItem, SessionOptions, Store};

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".into());
    run(&tenure::connect(url).await?).await
}

pub(crate) async fn run(store: &Store) -> tenure::Result<()> {
    let session = store.open(SessionOptions::new()).await?;
    let jobs = session.queue("resize");

    // A lower priority comes first. An item with the id of an accepted one is dropped, so a retry is safe.
    jobs.enqueue(NewItem::new("photo-1").priority(3).id("photo-1")).await?;
    jobs.enqueue(NewItem::new("photo-1").priority(3).id("photo-1")).await?;
    jobs.enqueue_many(["photo-2", "broken", "photo-3"]).await?;
    println!("{} items", jobs.len().await?);

    let done = AtomicU32::new(0);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stop = std::sync::Mutex::new(Some(stop));
    let options = ConsumeOptions::new()
        .concurrency(2)
        .limit(Duration::from_secs(5))
        .retry(Duration::from_millis(10), Duration::from_millis(50))
        .dead_letter(2, "resize-failed")
        .until(async { drop(stopped.await) });

    // `Ok` acknowledges the item; an error returns it, to be delivered again after a delay.
    let work = store.consume("resize", options, async |job| {
        let photo = job.text();
        println!("delivery {} of {photo}, token {}", job.deliveries(), job.token());
        if photo == "broken" {
            return Err("the photo is unreadable");
        }
        done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    let watch = async {
        let failed = session.queue("resize-failed").dequeue().await?;
        println!("gave up on {}", failed.text());
        failed.ack().await?;
        // Jobs that run finish first.
        drop(stop.lock().expect("no panic").take());
        tenure::Result::Ok(())
    };
    tokio::try_join!(work, watch)?;

    println!("{} photos resized", done.load(Ordering::Relaxed));
    session.close().await
}
