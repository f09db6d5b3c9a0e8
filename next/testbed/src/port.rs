//! Free ports of the loopback interface.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::error::{Action, Result};

/// A free port of 127.0.0.1, reserved for one server.
///
/// The reservation is a socket that is bound, with `SO_REUSEADDR`, and never listens. It keeps the kernel from assigning the port
/// to another process. A server that sets `SO_REUSEADDR` too (Go's, Redis and PostgreSQL do) can bind it and listen. So two
/// tests never pick the same port, and the port of a server that was killed refuses connections until its restart.
#[derive(Debug)]
pub(crate) struct Port {
    address: SocketAddr,
    _reservation: OwnedFd,
}

impl Port {
    /// Reserves a free port.
    pub(crate) fn reserve() -> Result<Self> {
        bind(0)
            .and_then(|socket| {
                let address = SocketAddrV4::try_from(rustix::net::getsockname(&socket)?)?;
                Ok(Self {
                    address: address.into(),
                    _reservation: socket,
                })
            })
            .action("reserve a port of 127.0.0.1")
    }

    pub(crate) fn number(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a socket that is bound to the port and does not listen yet.
    pub(crate) fn bind(&self) -> Result<OwnedFd> {
        bind(self.number()).action(format!("bind port {}", self.number()))
    }
}

fn bind(port: u16) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    Ok(socket)
}
