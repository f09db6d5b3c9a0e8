//! `tenure barrier hold`, `release`, `wait` and `enter`.

use std::time::Duration;

use serde_json::Value;
use tenure::{HoldFor, Name, Session};

use crate::args::{Barrier, BarrierWait, Enter, Global, Named};
use crate::exit::{self, Failure, say};
use crate::hold::Plan;
use crate::work::Sessions;
use crate::{output, store, work};

pub(crate) async fn run(global: &Global, args: &Barrier) -> Result<u8, Failure> {
    match args {
        Barrier::Hold(args) => hold(global, args).await,
        Barrier::Release(args) => release(global, args).await,
        Barrier::Wait(args) => wait(global, args).await,
        Barrier::Enter(args) => enter(global, args).await,
    }
}

async fn hold(global: &Global, args: &Named) -> Result<u8, Failure> {
    let name = store::name(&args.name)?;
    // For good: who waits has to find it held after this process has ended.
    let hold = async |session: &Session| session.barrier(&name)?.hold(HoldFor::Good).await;
    let tell = |()| tell(global, &name, "held", true);
    work::ask(global, hold, tell).await
}

async fn release(global: &Global, args: &Named) -> Result<u8, Failure> {
    let name = store::name(&args.name)?;
    let release = async |session: &Session| session.barrier(&name)?.release().await;
    work::ask(global, release, |released| {
        // Released it is in any case: done, but worth a word.
        if !released {
            say(format_args!("{name:?} was not held"));
        }
        tell(global, &name, "released", released)
    })
    .await
}

async fn wait(global: &Global, args: &BarrierWait) -> Result<u8, Failure> {
    let name = store::name(&args.name)?;
    let wait = async |session: &Session, limit: Option<Duration>| {
        let barrier = session.barrier(&name)?;
        match limit {
            Some(limit) => barrier.wait_timeout(limit).await,
            None => barrier.wait().await,
        }
    };
    work::in_sessions(global, args.wait, async |sessions: &mut Sessions<'_>| {
        let stopped = format!("stopped waiting for {name:?}");
        sessions.take(args.wait, &stopped, wait).await?;
        tell(global, &name, "held", false)
    })
    .await
}

async fn enter(global: &Global, args: &Enter) -> Result<u8, Failure> {
    let (name, command) = args.subject()?;
    let name = store::name(name)?;
    let take = async |session: &Session, limit: Option<Duration>| {
        let barrier = session.double_barrier(&name, args.count)?;
        match limit {
            Some(limit) => barrier.enter_timeout(limit).await,
            None => barrier.enter().await,
        }
    };
    Plan::new(global, &name, &args.hold, command)
        .passing()
        .carry_out(args.wait, take)
        .await
}

/// The exit code says it all; `--json` says it on a line.
fn tell(global: &Global, name: &Name, what: &str, is: bool) -> Result<u8, Failure> {
    if global.json {
        let mut object = output::Object::new();
        object.set("name", name.as_str().into());
        object.set(what, Value::Bool(is));
        object.print()?;
    }
    Ok(exit::DONE)
}
