//! Tests of the etcd backend's own details. The promises of the contract are in the suite: `tests/conformance.rs`.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::time::Duration;

use tenure_core::url::StoreUrl;
use tenure_core::{Result, Session, SessionOptions, Store};
use tenure_etcd::EtcdConfig;
use tenure_testbed::{EtcdOptions, EtcdServer};

mod config;
mod first_contact;
mod lost_answers;
mod operators;

/// Long enough for every test on a busy machine.
const LONG: Duration = Duration::from_secs(300);

fn start(options: EtcdOptions) -> EtcdServer {
    EtcdServer::start(options).unwrap()
}

async fn connect(url: &str) -> Result<Store> {
    tenure_etcd::connect(EtcdConfig::from_url(StoreUrl::parse(url)?)?).await
}

async fn open(store: &Store) -> Session {
    store.open(SessionOptions::new().ttl(LONG)).await.unwrap()
}
