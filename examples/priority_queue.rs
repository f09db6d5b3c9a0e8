//! A queue with priorities: lower numbers first, equal ones in the order of acceptance.
//!
//!     cargo run --example priority_queue [URL]

use std::time::Duration;

use tenure::prelude::*;

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let store = tenure::connect(url()).await?;
    let session = store
        .open(SessionOptions::new().ttl(Duration::from_secs(5)))
        .await?;
    let patients = session.queue("emergency room")?;

    for (priority, patient) in [
        (3, "a cold"),
        (1, "a broken arm"),
        (3, "a cough"),
        (0, "a heart attack"),
    ] {
        patients
            .enqueue(Item::new(patient).priority(priority))
            .await?;
        println!("came: {patient} (priority {priority})");
    }
    if let Some(next) = patients.peek().await? {
        println!("next is {}", String::from_utf8_lossy(&next.value));
    }
    for expected in ["a heart attack", "a broken arm", "a cold", "a cough"] {
        let delivery = patients.dequeue_timeout(Duration::from_secs(5)).await?;
        println!("treated: {}", String::from_utf8_lossy(delivery.value()));
        assert_eq!(delivery.value(), expected.as_bytes());
        delivery.ack().await?;
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
