//! The one etcd of a test run.

use std::sync::OnceLock;

use parking_lot::Mutex;

use super::admin::EtcdAdmin;
use super::options::EtcdOptions;
use super::server::EtcdServer;
use crate::error::{Error, Result};

/// The environment variable with the URL of the etcd of the test run.
pub(crate) const ETCD_VARIABLE: &str = "TENURE_TEST_ETCD";

/// The etcd that all tests of a run share. A test works in a namespace of [`unique_name`](crate::unique_name), and changes
/// nothing that concerns others: no compaction, no user, no pause.
#[derive(Debug)]
pub struct SharedEtcd {
    url: String,
    admin: EtcdAdmin,
    _own: Option<EtcdServer>,
}

impl SharedEtcd {
    /// The URL: `etcd://127.0.0.1:PORT`, or the value of `TENURE_TEST_ETCD`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// An operator's access.
    pub fn admin(&self) -> &EtcdAdmin {
        &self.admin
    }
}

/// Returns the etcd that `TENURE_TEST_ETCD` names, as under `tenure-testbed serve`; without that variable, one that this process
/// starts at the first call.
///
/// # Errors
///
/// As [`EtcdServer::start`]; [`Error::Usage`] when the variable is not `etcd://host:port`.
pub fn shared_etcd() -> Result<&'static SharedEtcd> {
    static SHARED: OnceLock<SharedEtcd> = OnceLock::new();
    static START: Mutex<()> = Mutex::new(());
    let _one_starts_it = START.lock();
    if let Some(shared) = SHARED.get() {
        return Ok(shared);
    }
    let shared = match std::env::var(ETCD_VARIABLE).ok().filter(|url| !url.is_empty()) {
        Some(url) => {
            let address = url.strip_prefix("etcd://").ok_or_else(|| {
                let message = format!("{ETCD_VARIABLE} must be `etcd://host:port`");
                Error::Usage(message)
            })?;
            SharedEtcd {
                admin: EtcdAdmin::by_address(address),
                url,
                _own: None,
            }
        }
        None => {
            let server = EtcdServer::start(EtcdOptions::default())?;
            SharedEtcd {
                url: server.url(),
                admin: server.admin().clone(),
                _own: Some(server),
            }
        }
    };
    Ok(SHARED.get_or_init(|| shared))
}
