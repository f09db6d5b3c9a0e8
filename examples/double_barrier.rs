//! A double barrier: phases that all participants begin together and end together.
//!
//!     cargo run --example double_barrier [URL]         three participants in this process
//!     cargo run --example double_barrier URL one       one of three: start it three times

use std::time::Duration;

use tenure::prelude::*;

const PARTICIPANTS: u32 = 3;
const PHASES: u32 = 2;

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let store = tenure::connect(url()).await?;
    let alone = std::env::args().nth(2).is_some();
    let here = if alone { 1 } else { PARTICIPANTS };
    let mut participants = Vec::new();
    for participant in 1..=here {
        let session = store
            .open(SessionOptions::new().ttl(Duration::from_secs(5)))
            .await?;
        participants.push(tokio::spawn(take_part(session, participant)));
    }
    for participant in participants {
        participant.await.expect("a participant does not panic")?;
    }
    Ok(())
}

async fn take_part(session: Session, participant: u32) -> tenure::Result<()> {
    let phase = session.double_barrier("phase", PARTICIPANTS)?;
    for number in 1..=PHASES {
        // Returns in none of them before all have come. One that dies while it waits does not count.
        let inside = phase.enter().await?;
        println!("participant {participant} works in phase {number}");
        inside
            .while_held(tokio::time::sleep(Duration::from_millis(20) * participant))
            .await?;
        // Returns in none of them before all have left, or died.
        inside.leave().await?;
        println!("participant {participant} knows that phase {number} is over");
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
