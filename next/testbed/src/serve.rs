//! `tenure-testbed serve -- COMMAND`: the servers of a whole test run.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use crate::error::{Action, Error, Result};
use crate::etcd::{ETCD_VARIABLE, EtcdOptions, EtcdServer};
use crate::redis::{REDIS_VARIABLE, RedisOptions, RedisServer};
use crate::watchdog::Watchdog;

const USAGE: &str = "usage: tenure-testbed serve [etcd | redis]... -- COMMAND [ARGUMENT]...";

/// Runs `serve [STORE]... -- COMMAND [ARGUMENT]...`: starts one server of each store (all if none is named), exports its URL
/// (`TENURE_TEST_ETCD`, `TENURE_TEST_REDIS`), runs the command, stops the servers, and returns the exit code of the command: 128 + n if signal n
/// ended it. A variable that is set already keeps its server.
///
/// # Errors
///
/// [`Error::Usage`]; [`Error::Io`] when the command cannot be run; otherwise as [`RedisServer::start`] and [`EtcdServer::start`].
pub fn serve(arguments: impl IntoIterator<Item = OsString>) -> Result<u8> {
    let usage = || Error::Usage(USAGE.to_owned());
    let mut arguments = arguments.into_iter();
    if arguments.next().is_none_or(|word| word != "serve") {
        return Err(usage());
    }
    let stores: Vec<OsString> = arguments.by_ref().take_while(|word| word != "--").collect();
    if stores.iter().any(|store| store != "etcd" && store != "redis") {
        return Err(usage());
    }
    let program = arguments.next().ok_or_else(usage)?;

    let wanted = |store: &str, variable| {
        let named = stores.is_empty() || stores.iter().any(|named| named == store);
        named && std::env::var_os(variable).is_none_or(|url| url.is_empty())
    };
    let etcd = wanted("etcd", ETCD_VARIABLE)
        .then(|| EtcdServer::start(EtcdOptions::default()))
        .transpose()?;
    let redis = wanted("redis", REDIS_VARIABLE)
        .then(|| RedisServer::start(RedisOptions::default()))
        .transpose()?;
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .envs(etcd.iter().map(|etcd| (ETCD_VARIABLE, etcd.url())))
        .envs(redis.iter().map(|redis| (REDIS_VARIABLE, redis.url())));

    // In the group of this process, so that the terminal's signals reach it; with the watchdog, so that it does not go on
    // without servers when this process is killed.
    let mut child = command.spawn().action(format!("run `{}`", program.display()))?;
    let watchdog = Watchdog::get()?;
    watchdog.watch(child.id());
    let status = child.wait().action(format!("wait for `{}`", program.display()))?;
    watchdog.forget(child.id());
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}
