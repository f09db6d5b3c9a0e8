//! Options of a member, and its arguments.

use std::time::Duration;

use crate::certs::Tls;
use crate::folder::Folder;
use crate::port::Port;

/// The name of the member.
pub(crate) const MEMBER: &str = "member";

/// Options of a member. By default: no TLS, no authentication, and etcd's own election timeout of a second.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct EtcdOptions {
    pub(crate) tls: Option<Tls>,
    pub(crate) root_password: Option<String>,
    arguments: Vec<String>,
}

impl EtcdOptions {
    /// Serves clients over TLS only.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Turns authentication on, with a user `root` of this password. URLs do not contain it.
    pub fn root_password(mut self, password: &str) -> Self {
        self.root_password = Some(password.to_owned());
        // The cheapest hash: each connection checks a password.
        self.argument("--bcrypt-cost=4")
    }

    /// Sets the election timeout. Half as much again is the shortest TTL of a lease.
    pub fn election_timeout(self, timeout: Duration) -> Self {
        let millis = timeout.as_millis();
        self.argument(format!("--election-timeout={millis}"))
            .argument(format!("--heartbeat-interval={}", (millis / 10).max(1)))
    }

    /// Adds an argument, such as `--quota-backend-bytes=16777216`. It follows the testbed's own and overrides them.
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Returns `http`, or `https` with TLS.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Returns the arguments, the same at each start.
    pub(crate) fn arguments(&self, folder: &Folder, [client, peer, metrics]: [&Port; 3]) -> Vec<String> {
        let client = format!("{}://{}", self.scheme(), client.address());
        let peer = peer_url(peer);
        let mut arguments = vec![
            format!("--name={MEMBER}"),
            format!("--data-dir={}", folder.join("data").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={MEMBER}={peer}"),
            // The health is asked for without TLS, whatever clients need.
            format!("--listen-metrics-urls=http://{}", metrics.address()),
            "--logger=zap".to_owned(),
        ];
        if let Some(tls) = &self.tls {
            arguments.push(format!("--cert-file={}", tls.server.certificate.display()));
            arguments.push(format!("--key-file={}", tls.server.key.display()));
            if let Some(ca) = &tls.client_ca {
                arguments.push("--client-cert-auth".to_owned());
                arguments.push(format!("--trusted-ca-file={}", ca.display()));
            }
        }
        arguments.extend(self.arguments.iter().cloned());
        arguments
    }
}

pub(crate) fn peer_url(peer: &Port) -> String {
    format!("http://{}", peer.address())
}
