//! A queue: producers, consumers, an item that is given back, one that fails for good.
//!
//!     cargo run --example queue [URL]

use std::time::Duration;

use tenure::prelude::*;

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let store = tenure::connect(url()).await?;
    let session = store
        .open(SessionOptions::new().ttl(Duration::from_secs(5)))
        .await?;
    // What was delivered three times in vain goes to another queue.
    let jobs = session.queue("jobs")?.dead_letters(3, "jobs that failed")?;

    // An id makes it safe to send again what may have been accepted before.
    jobs.enqueue(Item::new("resize picture 1").id("picture-1")?)
        .await?;
    jobs.enqueue(Item::new("resize picture 1").id("picture-1")?)
        .await?;
    jobs.enqueue_many(["broken job", "resize picture 2"].map(Item::from))
        .await?;
    println!("{} items", jobs.len().await?);

    // Another session, as another process would have.
    let consuming = store.open(SessionOptions::new()).await?;
    let inbox = consuming
        .queue("jobs")?
        .dead_letters(3, "jobs that failed")?;
    let mut done = 0;
    while done < 2 {
        let delivery = inbox.dequeue().await?;
        let job = String::from_utf8_lossy(delivery.value()).into_owned();
        println!(
            "delivery {} of {job:?}, token {}",
            delivery.count(),
            delivery.token()
        );
        // The work stops when the item is lost: another has it then.
        let worked = delivery.while_held(work(&job)).await?;
        match worked {
            Ok(()) => {
                delivery.ack().await?;
                done += 1;
            }
            // Back to its place, for whoever comes next. Dying has the same effect.
            Err(why) => {
                println!("  {why}, given back");
                delivery.nack().await?;
            }
        }
    }

    let failed = session.queue("jobs that failed")?;
    let delivery = failed.dequeue_timeout(Duration::from_secs(5)).await?;
    println!("given up: {:?}", String::from_utf8_lossy(delivery.value()));
    delivery.ack().await?;

    consuming.close().await?;
    session.close().await
}

async fn work(job: &str) -> Result<(), &'static str> {
    tokio::time::sleep(Duration::from_millis(20)).await;
    if job.starts_with("broken") {
        return Err("this one cannot be done");
    }
    Ok(())
}

/// The first argument, or `TENURE_URL`, or the embedded store.
fn url() -> String {
    let given = std::env::args()
        .nth(1)
        .or_else(|| std::env::var("TENURE_URL").ok());
    given.unwrap_or_else(|| "memory:".to_owned())
}
