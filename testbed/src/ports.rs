//! Loopback ports that stay ours from the moment they are picked.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

use crate::error::{Doing, Result};

/// A free port of 127.0.0.1, kept for one server.
///
/// The port is held by a socket that is bound, with `SO_REUSEADDR`, but never listens. On Linux
/// such a socket keeps the kernel from handing the port to anyone who asks for a free one, or as
/// the source of a connection, while a server that also sets `SO_REUSEADDR` (Go's, Redis and
/// PostgreSQL do) may bind it and listen. So two tests never pick the same port, and the port of a
/// server that was killed still refuses connections, and is still free, when it is restarted.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _reserved: Option<TcpSocket>,
}

impl Port {
    /// Picks a free port.
    pub(crate) fn pick() -> Result<Self> {
        let reserve = || {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            let number = socket.local_addr()?.port();
            Ok::<_, std::io::Error>((number, socket))
        };
        let (number, socket) = reserve().doing("reserve a port of 127.0.0.1")?;
        Ok(Self {
            number,
            // Elsewhere the reservation would keep the server itself out; there a server that
            // finds its port taken is started again on another one.
            _reserved: cfg!(target_os = "linux").then_some(socket),
        })
    }

    /// The port's number.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// The port on 127.0.0.1.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::net::TcpListener;

    #[test]
    fn a_reserved_port_is_handed_to_nobody_else_but_can_be_listened_on() {
        let port = Port::pick().expect("a port");
        let mut others = Vec::new();
        let mut seen = HashSet::new();
        for _ in 0..2_000 {
            let other = TcpListener::bind("127.0.0.1:0").expect("a listener");
            assert_ne!(other.local_addr().expect("address").port(), port.number());
            seen.insert(other.local_addr().expect("address").port());
            others.push(other);
            if others.len() > 200 {
                others.clear();
            }
        }
        assert!(seen.len() > 200, "the kernel walked through its range");
        // std's listener sets SO_REUSEADDR, as servers do; twice, as for a restart.
        for _ in 0..2 {
            TcpListener::bind(("127.0.0.1", port.number())).expect("the owner's listener");
        }
    }
}
