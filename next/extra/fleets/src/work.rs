//! The work of the processes of a fleet.

use std::cell::Cell;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tenure_core::url::StoreUrl;
use tenure_core::{Session, SessionOptions, Store};
use tenure_redis::RedisConfig;
use tokio::io::{AsyncBufReadExt as _, BufReader, stdin};
use tokio::time::Instant;

use crate::fleet::TURN;
use crate::{Result, bare};

/// Between which accounts the transfers go.
const ACCOUNTS: u64 = 5;

/// Says that this process is ready, and waits for a line.
async fn begin() -> Result {
    println!("ready");
    wait().await
}

async fn wait() -> Result {
    let mut line = String::new();
    BufReader::new(stdin()).read_line(&mut line).await?;
    Ok(())
}

/// Connects to the namespace of the measurements.
///
/// # Errors
///
/// Those of the store.
pub async fn connect(url: &str) -> Result<Store> {
    let url = StoreUrl::parse(&format!("{url}?namespace=fleets&ttl=30s"))?;
    Ok(tenure_redis::connect(RedisConfig::from_url(url)?).await?)
}

async fn open(url: &str) -> Result<Session> {
    Ok(connect(url).await?.open(SessionOptions::new()).await?)
}

/// Repeats `step` in `callers` tasks of one thread until the turn is over, and prints how often a second it was done.
async fn repeat(callers: usize, step: impl AsyncFn(usize) -> Result) -> Result {
    begin().await?;
    let (began, done) = (Instant::now(), Cell::new(0_u64));
    let loops = (0..callers).map(async |caller| {
        while began.elapsed() < TURN {
            step(caller).await?;
            done.set(done.get() + 1);
        }
        Result::Ok(())
    });
    try_join_all(loops).await?;
    println!("{:.3}", done.get() as f64 / began.elapsed().as_secs_f64());
    Ok(())
}

/// Two different accounts, another pair each time.
fn accounts(turn: &Cell<u64>) -> (String, String) {
    let number = turn.get();
    turn.set(number + 1);
    let from = number % ACCOUNTS;
    let to = (from + 1 + number / ACCOUNTS % (ACCOUNTS - 1)) % ACCOUNTS;
    (format!("account-{from}"), format!("account-{to}"))
}

async fn transfer(session: &Session, (from, to): (String, String)) -> Result {
    let (from, to) = (&from, &to);
    let work = |tx: tenure_core::Tx| {
        let (from, to) = (from.clone(), to.clone());
        async move {
            let balances = tx.get_many([&from, &to]).await?;
            let balance = |index: usize| {
                let text = balances[index].as_deref().map(String::from_utf8_lossy);
                text.and_then(|text| text.parse::<i64>().ok()).unwrap_or(0)
            };
            tx.put(&from, (balance(0) - 1).to_string())?;
            tx.put(&to, (balance(1) + 1).to_string())
        }
    };
    Ok(session.stm().attempts(10_000).run(work).await?)
}

/// Takes and acknowledges items, one at a time, from a queue whose depth stays the same. Prints how many a second; the time of
/// the enqueueing in between does not count.
async fn take(session: Session, name: &str) -> Result {
    const BATCH: u32 = 10;
    let queue = session.queue(name);
    begin().await?;
    let (mut spent, mut taken) = (Duration::ZERO, 0);
    while spent < TURN {
        queue.enqueue_many((0..BATCH).map(|_| "an item")).await?;
        let began = Instant::now();
        for _ in 0..BATCH {
            queue.dequeue().await?.ack().await?;
        }
        spent += began.elapsed();
        taken += BATCH;
    }
    println!("{:.3}", f64::from(taken) / spent.as_secs_f64());
    Ok(())
}

/// Reads of a lock that another process holds alone: says `ready` when all are asked for, and prints the microseconds from the
/// next line of the input until the last one was granted.
async fn readers(session: Session, name: &str, count: usize) -> Result {
    let waiting = (0..count).map(|_| {
        let handle = session.rw_lock(name);
        tokio::spawn(async move { handle.read().await })
    });
    let waiting: Vec<_> = waiting.collect();
    begin().await?;
    let began = Instant::now();
    let guards = join_all(waiting).await;
    println!("{}", began.elapsed().as_micros());
    for guard in guards {
        guard??.release().await?;
    }
    Ok(())
}

/// Clients with connections and sessions of their own, that wait for a lock if `waits`, else rest.
async fn clients(url: &str, name: &str, count: usize, waits: bool) -> Result {
    let mut sessions = Vec::new();
    for _ in 0..count {
        sessions.push(open(url).await?);
    }
    if waits {
        for session in &sessions {
            let handle = session.locker(name);
            tokio::spawn(async move { handle.lock().await.map(drop) });
        }
    }
    begin().await
}

/// Runs a work by its name.
///
/// # Errors
///
/// Those of the stores, and for a name that is none.
pub async fn run(name: &str, url: &str, arguments: &[&str]) -> Result {
    let number = |index: usize| -> Result<usize> { Ok(arguments.get(index).ok_or("an argument is missing")?.parse()?) };
    let me = std::process::id().to_string();
    let turn = Cell::new(u64::from(std::process::id()));
    match name {
        "bare-pair" => {
            let (link, lock) = (bare::connect(url).await?, bare::Lock::default());
            repeat(number(0)?, async |caller| {
                lock.pair(&mut link.clone(), &format!("bare-{me}-{caller}"), &me).await
            })
            .await
        }
        "pair" => {
            let session = open(url).await?;
            repeat(number(0)?, async |caller| {
                Ok(session.lock(format!("{me}-{caller}")).await?.release().await?)
            })
            .await
        }
        "bare-baton" => {
            let link = bare::connect(url).await?;
            repeat(1, async |_| bare::baton(&mut link.clone(), "baton").await).await
        }
        "lock" => {
            let session = open(url).await?;
            repeat(1, async |_| Ok(session.lock("contended").await?.release().await?)).await
        }
        "bare-transfer" => {
            let (link, script) = (bare::connect(url).await?, bare::transfer());
            repeat(number(0)?, async |_| {
                let (from, to) = accounts(&turn);
                let _: i64 = script.key(from).key(to).invoke_async(&mut link.clone()).await?;
                Ok(())
            })
            .await
        }
        "transfer" => {
            let session = open(url).await?;
            repeat(number(0)?, async |_| transfer(&session, accounts(&turn)).await).await
        }
        "take" => take(open(url).await?, arguments.first().ok_or("a name is missing")?).await,
        "writer" => {
            let session = connect(url)
                .await?
                .open(SessionOptions::new().ttl(Duration::from_secs(3)))
                .await?;
            let _guard = session
                .write_lock(arguments.first().ok_or("a name is missing")?)
                .await?;
            begin().await
        }
        "readers" => {
            readers(
                open(url).await?,
                arguments.first().ok_or("a name is missing")?,
                number(1)?,
            )
            .await
        }
        "clients" => clients(url, "wanted", number(0)?, arguments.get(1) == Some(&"wait")).await,
        _ => Err(format!("there is no work {name:?}").into()),
    }
}
