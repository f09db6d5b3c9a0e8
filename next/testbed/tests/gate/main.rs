//! The testbed against real servers: one smoke test for each kind of server, each treatment of the proxy, and each way in which a
//! test process ends.

mod client;
mod etcd;
mod proxy;
mod redis;
mod requests;
mod serve;
mod watchdog;
