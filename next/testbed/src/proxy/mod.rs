//! A faulty network: a TCP proxy whose directions can be held, dropped, cut and counted.

mod relay;
mod requests;

use std::collections::VecDeque;
use std::io::{self, PipeWriter, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::Shutdown;

use crate::error::{Action, Result};
use crate::port::Port;

/// The connections that the kernel accepts before the proxy does.
const BACKLOG: i32 = 1024;

/// The way of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the server.
    Requests,
    /// From the server to the client.
    Answers,
}

/// The treatment of the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Flow {
    /// They pass.
    #[default]
    Pass,
    /// They are kept, and pass in order after a change to `Pass`. New connections are accepted, and reach the server then. A
    /// connection keeps at most 16 MiB; beyond that the sender is slowed down.
    Hold,
    /// They are lost, and the connections stay open. New connections are accepted and do not reach the server.
    Drop,
}

/// The event that a fault waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// This many more bytes of the direction, of all connections together, have passed; not one more passes before the fault.
    Bytes(u64),
    /// This chunk from now is read, the first is 1; before it passes. A chunk is as many bytes as one read returns: a client
    /// that waits for each answer sends one for each request.
    Chunk(u64),
    /// These bytes are read in one connection; before the chunk with the last of them passes.
    Pattern(Vec<u8>),
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Resets the connection that met the event.
    Cut,
    /// Resets the client's side of the connection that met the event, and keeps what has not passed until
    /// [`Proxy::deliver`]: it arrives late, after the client has sent other requests over a new connection. For requests.
    Strand,
    /// Changes the flow of a direction, for all connections.
    Set(Direction, Flow),
}

/// The traffic of one direction since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// The bytes that passed.
    pub bytes: u64,
    /// The chunks that passed. See [`When::Chunk`].
    pub chunks: u64,
}

/// Whether an armed fault has happened. A test whose fault never happened shows nothing.
#[derive(Debug, Clone, Default)]
pub struct Fired(Arc<AtomicBool>);

impl Fired {
    /// Returns whether the fault has happened.
    pub fn has_fired(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A TCP proxy in front of one server. Dropped, it resets all connections.
///
/// A change is in force when its method returns: after `set(Answers, Drop)` no further byte reaches a client, not even one that
/// the proxy has read already. Bytes that it has written before are in the receiver's socket and do arrive.
///
/// No stream ever has a hole, as in any network. A connection that lost bytes to [`Flow::Drop`], or was opened while requests
/// were dropped, stays silent until that direction changes, and is reset then.
///
/// The end of a stream is treated as its bytes are: held, or lost, with them. A client that hangs up while requests are dropped
/// leaves the server with a half-open connection, as an unplugged cable does.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy on a free port of 127.0.0.1 in front of `server`. The server may start later: a client is reset while it
    /// refuses.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) when no port or thread is available.
    pub fn start(server: SocketAddr) -> Result<Self> {
        let port = Port::reserve()?;
        let listener = TcpListener::from(port.bind()?);
        rustix::net::listen(&listener, BACKLOG).action("listen")?;
        let (wake_reader, wake) = io::pipe().action("create a pipe")?;
        let shared = Arc::new(Shared {
            server,
            listener,
            wake,
            state: Mutex::default(),
        });
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("tenure-proxy".to_owned());
        let thread = thread
            .spawn(move || relay::run(&worker, wake_reader))
            .action("start a thread")?;
        Ok(Self {
            port,
            shared,
            thread: Some(thread),
        })
    }

    /// The address that clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Changes the flow of one direction, of present and future connections.
    pub fn set(&self, direction: Direction, flow: Flow) {
        self.shared.change(|state| state.set(direction, flow));
    }

    /// Drops both directions: connections stay open and silent.
    pub fn silence(&self) {
        self.shared.change(|state| {
            state.set(Direction::Requests, Flow::Drop);
            state.set(Direction::Answers, Flow::Drop);
        });
    }

    /// Lets both directions pass, accepts connections, and disarms all faults. What was kept is kept on.
    pub fn heal(&self) {
        self.shared.change(|state| {
            state.set(Direction::Requests, Flow::Pass);
            state.set(Direction::Answers, Flow::Pass);
            state.armed.clear();
            state.keeps = None;
            state.repeats = false;
        });
        self.refuse(false);
    }

    /// Resets all connections. No byte passes after the return; the resets reach both sides within moments. New connections are
    /// accepted.
    pub fn cut(&self) {
        self.shared.change(|state| {
            state.connections.clear();
            // Also those that the kernel has accepted and the proxy has not.
            while let Ok((client, _)) = self.shared.listener.accept() {
                reset_on_close(&client);
            }
        });
    }

    /// Refuses new connections, as an ended server does, or accepts them again. Present ones go on.
    pub fn refuse(&self, refuse: bool) {
        self.shared.change(|state| {
            // On Linux, a listener that is shut down refuses, and listens again when it is asked to. The port is reserved.
            let listener = &self.shared.listener;
            let _ = match (state.refuse, refuse) {
                (false, true) => rustix::net::shutdown(listener, Shutdown::Both),
                (true, false) => rustix::net::listen(listener, BACKLOG),
                _ => Ok(()),
            };
            state.refuse = refuse;
        });
    }

    /// Arms a fault for one event in one direction; it happens once. The answer to one request is lost by
    /// `arm(Requests, When::Pattern(key), Then::Set(Answers, Flow::Drop))`.
    pub fn arm(&self, direction: Direction, when: When, then: Then) -> Fired {
        let fired = Fired::default();
        let armed = Armed {
            direction,
            when,
            then,
            fired: fired.clone(),
        };
        self.shared.change(|state| state.armed.push(armed));
        fired
    }

    /// Keeps the next chunk with a script of Redis whose operation, its first argument behind the key, is not one of `except`,
    /// and resets the connection. Later ones pass.
    pub fn keep_script(&self, except: &'static [&'static str]) {
        self.shared.change(|state| state.keeps = Some(except));
    }

    /// Returns whether a chunk was kept and not delivered.
    pub fn has_kept(&self) -> bool {
        self.shared.state.lock().kept.is_some()
    }

    /// Sends the kept chunk to the server, over a connection that begins with the first chunk of the one that was reset. Returns
    /// when the server has carried it out. Nothing to do if none was kept.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) when the server does not accept it, or does not hang up within 20 seconds.
    pub fn deliver_kept(&self) -> Result<()> {
        let Some(Kept { opening, request }) = self.shared.state.lock().kept.take() else {
            return Ok(());
        };
        let deliver = || {
            let mut stream = TcpStream::connect(self.shared.server)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(&opening)?;
            stream.write_all(&request)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            // The server reads the end of the stream when it has carried out all before it, and hangs up.
            io::copy(&mut stream, &mut io::sink())
        };
        deliver().map(drop).action("deliver a kept request")
    }

    /// From now on, every script of Redis arrives twice: its copy comes right before it, and has no answer. Until
    /// [`heal`](Self::heal).
    pub fn repeat_scripts(&self) {
        self.shared.change(|state| state.repeats = true);
    }

    /// Passes on what was [stranded](Then::Strand), as far as the server's socket has room. The server's side of these connections
    /// stays open, as it does for a client that waits. Answers are not read.
    pub fn deliver(&self) {
        self.shared.change(|state| {
            for (server, bytes) in &mut state.stranded {
                // A server that has closed the connection, or does not read, misses them.
                let mut server: &TcpStream = server;
                let sent = server.write(bytes).unwrap_or_default();
                bytes.drain(..sent);
            }
        });
    }

    /// Returns how many bytes are stranded.
    pub fn stranded(&self) -> usize {
        let state = self.shared.state.lock();
        state.stranded.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Returns the traffic of one direction since the start.
    pub fn traffic(&self, direction: Direction) -> Traffic {
        self.shared.state.lock().way(direction).traffic
    }

    /// Returns the number of open connections, silent ones included.
    pub fn connections(&self) -> usize {
        self.shared.state.lock().connections.len()
    }

    /// Returns the number of connections that were accepted since the start.
    pub fn accepted(&self) -> u64 {
        self.shared.state.lock().accepted
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.change(|state| state.ended = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The part that the test's threads and the proxy's thread share. Bytes are read and written, without blocking, under the lock:
/// that is why a change is complete when its method returns.
#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    listener: TcpListener,
    wake: PipeWriter,
    state: Mutex<State>,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        let _ = (&self.wake).write_all(&[0]);
    }
}

#[derive(Debug, Default)]
struct State {
    requests: Way,
    answers: Way,
    armed: Vec<Armed>,
    connections: Vec<Connection>,
    /// The server's sides of connections whose client was reset, with the bytes that were kept.
    stranded: Vec<(Arc<TcpStream>, Vec<u8>)>,
    accepted: u64,
    refuse: bool,
    /// The next script is kept, unless its operation is one of these.
    keeps: Option<&'static [&'static str]>,
    kept: Option<Kept>,
    /// Scripts are sent twice.
    repeats: bool,
    ended: bool,
    /// A fault has changed a flow: connections that were looked at before it have to be looked at again.
    again: bool,
}

/// A request that was kept.
#[derive(Debug)]
struct Kept {
    /// The first chunk of its connection.
    opening: Vec<u8>,
    request: Vec<u8>,
}

/// One direction, of all connections.
#[derive(Debug, Default)]
struct Way {
    flow: Flow,
    /// How often `Drop` has ended: connections that lost bytes before are reset.
    drops: u64,
    traffic: Traffic,
}

#[derive(Debug)]
struct Armed {
    direction: Direction,
    when: When,
    then: Then,
    fired: Fired,
}

impl State {
    fn way(&self, direction: Direction) -> &Way {
        match direction {
            Direction::Requests => &self.requests,
            Direction::Answers => &self.answers,
        }
    }

    fn way_mut(&mut self, direction: Direction) -> &mut Way {
        match direction {
            Direction::Requests => &mut self.requests,
            Direction::Answers => &mut self.answers,
        }
    }

    fn set(&mut self, direction: Direction, flow: Flow) {
        let way = self.way_mut(direction);
        way.drops += u64::from(way.flow == Flow::Drop && flow != Flow::Drop);
        way.flow = flow;
        self.again = true;
    }
}

/// One connection of a client. Whatever ends it, both sides are reset, unless both streams came to their end.
#[derive(Debug)]
struct Connection {
    client: Arc<TcpStream>,
    /// Connected when requests may pass.
    server: Option<Arc<TcpStream>>,
    requests: Stream,
    answers: Stream,
}

/// One direction of one connection.
#[derive(Debug, Default)]
struct Stream {
    queue: VecDeque<Piece>,
    /// Bytes in the queue.
    queued: usize,
    /// The end of the stream was read.
    read_all: bool,
    /// The end of the stream was passed on.
    passed_all: bool,
    /// The receiver's socket is full.
    blocked: bool,
    /// The sender was found to be gone when bytes of the other direction were written: its end is a reset.
    sender_gone: bool,
    /// `Way::drops` when bytes were lost.
    lost: Option<u64>,
    /// The last bytes that were read, for patterns in two chunks.
    recent: Vec<u8>,
    /// The first chunk.
    opening: Vec<u8>,
    /// The beginning of a request whose rest has not arrived, while scripts are sent twice.
    begun: Vec<u8>,
}

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    End,
    Reset,
}

fn reset_on_close(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}
