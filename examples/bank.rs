//! The bank: accounts of 100, tasks that transfer half a balance at random, and a sum that stays.
//!
//!     cargo run --example bank [URL]
//!
//! Kill and restart the store half-way, if it keeps its data: the sum stays. A commit whose answer
//! was lost is found out; one of which nothing can be found out is counted and reported, and makes
//! no money either way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tenure::prelude::*;

const ACCOUNTS: u64 = 5;
const EACH: u64 = 100;
const TASKS: u64 = 10;
const TRANSFERS: u64 = 100;

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let store = tenure::connect(url()).await?;
    let session = store
        .open(SessionOptions::new().ttl(Duration::from_secs(30)))
        .await?;
    let bank = session.stm()?;
    bank.run(|tx| async move {
        for account in 0..ACCOUNTS {
            tx.put_as(name(account), &EACH)?;
        }
        Ok(())
    })
    .await?;

    let unknown = Arc::new(AtomicU32::new(0));
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let (bank, unknown) = (bank.clone(), Arc::clone(&unknown));
        tasks.push(tokio::spawn(async move {
            let mut random = Random::new(task);
            for _ in 0..TRANSFERS {
                let from = random.below(ACCOUNTS);
                let to = (from + 1 + random.below(ACCOUNTS - 1)) % ACCOUNTS;
                // Done whole or not at all, however often it has to be tried.
                match bank.run(move |tx| transfer(tx, from, to)).await {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::CommitUnknown => {
                        println!("{}", error.chain());
                        unknown.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        }));
    }
    for task in tasks {
        task.await.expect("a task does not panic")?;
    }

    let sum = bank
        .run(|tx| async move {
            let mut sum = 0;
            for account in 0..ACCOUNTS {
                let balance: Option<u64> = tx.get_as(name(account)).await?;
                sum += balance.unwrap_or_default();
            }
            Ok(sum)
        })
        .await?;
    println!(
        "commits of which nothing could be found out: {}",
        unknown.load(Ordering::Relaxed)
    );
    println!("account sum is {sum}");
    session.close().await
}

/// Moves half of what is on one account to another.
async fn transfer(tx: tenure::Tx, from: u64, to: u64) -> tenure::Result<()> {
    let (from, to) = (name(from), name(to));
    let have: u64 = tx.get_as(&from).await?.unwrap_or_default();
    let other: u64 = tx.get_as(&to).await?.unwrap_or_default();
    let amount = have / 2;
    tx.put_as(&from, &(have - amount))?;
    tx.put_as(&to, &(other + amount))
}

fn name(account: u64) -> String {
    format!("account-{account}")
}

/// Enough for an example: Steele and Vigna's SplitMix64.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// The first argument, or `TENURE_URL`, or the embedded store.
fn url() -> String {
    let given = std::env::args()
        .nth(1)
        .or_else(|| std::env::var("TENURE_URL").ok());
    given.unwrap_or_else(|| "memory:".to_owned())
}
