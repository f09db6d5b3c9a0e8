//! `tenure lock`, `tenure read-lock`, `tenure write-lock`.

use std::time::Duration;

use tenure::Session;

use crate::args::{Global, Lock};
use crate::exit::Failure;
use crate::hold::Plan;
use crate::store;

pub(crate) async fn lock(global: &Global, args: &Lock) -> Result<u8, Failure> {
    let (name, command) = args.subject()?;
    let name = store::name(name)?;
    let take = async |session: &Session, limit: Option<Duration>| {
        let lock = session.locker(&name)?;
        match limit {
            Some(Duration::ZERO) => lock.try_lock().await,
            Some(limit) => lock.lock_timeout(limit).await,
            None => lock.lock().await,
        }
    };
    Plan::new(global, &name, &args.hold, command)
        .carry_out(args.wait.limit(), take)
        .await
}

pub(crate) async fn read(global: &Global, args: &Lock) -> Result<u8, Failure> {
    let (name, command) = args.subject()?;
    let name = store::name(name)?;
    let take = async |session: &Session, limit: Option<Duration>| {
        let lock = session.rw_lock(&name)?;
        match limit {
            Some(Duration::ZERO) => lock.try_read().await,
            Some(limit) => lock.read_timeout(limit).await,
            None => lock.read().await,
        }
    };
    Plan::new(global, &name, &args.hold, command)
        .carry_out(args.wait.limit(), take)
        .await
}

pub(crate) async fn write(global: &Global, args: &Lock) -> Result<u8, Failure> {
    let (name, command) = args.subject()?;
    let name = store::name(name)?;
    let take = async |session: &Session, limit: Option<Duration>| {
        let lock = session.rw_lock(&name)?;
        match limit {
            Some(Duration::ZERO) => lock.try_write().await,
            Some(limit) => lock.write_timeout(limit).await,
            None => lock.write().await,
        }
    };
    Plan::new(global, &name, &args.hold, command)
        .carry_out(args.wait.limit(), take)
        .await
}
