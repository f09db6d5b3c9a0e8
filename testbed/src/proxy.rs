//! A faulty network: a TCP proxy whose every direction can be delayed, held, swallowed or cut.
//!
//! # Promises
//!
//! *Changes are in force when the method returns*: after `set(Direction::Down, Flow::Drop)` not one
//! more byte reaches the client, not even one that the proxy had read already. Bytes that the
//! proxy has *written* are in the receiver's socket buffer and do arrive.
//!
//! *No stream has a hole.* No network delivers one, and clients do strange things with it. A
//! connection that lost bytes to [`Flow::Drop`] (or was opened in such a time) stays silent until
//! its direction is changed to something else, and is reset then.
//!
//! The end of a stream is treated as its bytes are: it is delayed, held or swallowed with them. A
//! client that hangs up while [`Direction::Up`] drops leaves the server with a half-open
//! connection, as a pulled cable does.
//!
//! The proxy works on a thread of its own, so that neither a blocked test nor the end of the
//! runtime that created it disturbs it; one proxy may serve many runtimes.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::error::{Doing, Result};
use crate::ports::Port;

/// Which way bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the server: requests.
    Up,
    /// From the server to the client: answers.
    Down,
}

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flow {
    /// They pass.
    #[default]
    Pass,
    /// Each byte passes this long after it came, in order. Changing it also moves the bytes that
    /// are on their way.
    Delay(Duration),
    /// They are kept, and pass when the flow is changed to `Pass` or `Delay`. New connections are
    /// accepted and reach the server then. At most 16 MiB a connection and direction are kept;
    /// beyond that the sender is slowed, as by a full window.
    Hold,
    /// They are swallowed, those on their way included, while the connection stays open: silence.
    /// New connections are accepted and are silent too.
    Drop,
}

/// Where the proxy's memory for one direction of one connection ends.
const WINDOW: usize = 16 << 20;

/// A TCP proxy in front of one address. Ended, with every connection reset, when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Keeps the port ours while new connections are refused.
    _port: Port,
}

impl Proxy {
    /// Starts a proxy on a free port of 127.0.0.1 in front of `upstream` (`host:port`). The server
    /// need not be there yet: a client whose server refuses is reset.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) when no port or thread is to be had.
    pub fn start(upstream: impl ToString) -> Result<Self> {
        let port = Port::pick()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .doing("start the proxy's runtime")?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: watch::Sender::new(()),
        });
        let worker = Arc::clone(&shared);
        let upstream: Arc<str> = upstream.to_string().into();
        let (listening, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("tenure-proxy".to_owned())
            .spawn(move || runtime.block_on(serve(worker, address, upstream, listening)))
            .doing("start the proxy's thread")?;
        let proxy = Self {
            address,
            shared,
            thread: Some(thread),
            _port: port,
        };
        started
            .recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
            .doing(format!("listen on {address}"))?;
        Ok(proxy)
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port where clients connect, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes the flow of one direction, of open and of new connections.
    pub fn set(&self, direction: Direction, flow: Flow) {
        self.shared.change(|state| state.set(direction, flow));
    }

    /// Changes the flow of both directions at once.
    pub fn set_both(&self, flow: Flow) {
        self.shared.change(|state| {
            state.set(Direction::Up, flow);
            state.set(Direction::Down, flow);
        });
    }

    /// The flow of one direction.
    pub fn flow(&self, direction: Direction) -> Flow {
        self.shared.lock().way(direction).flow
    }

    /// Both directions [`Flow::Drop`]: connections stay open and nothing arrives.
    pub fn silence(&self) {
        self.set_both(Flow::Drop);
    }

    /// Both directions [`Flow::Pass`], connections accepted, what was armed with
    /// [`cut_after`](Self::cut_after), [`cut_when`](Self::cut_when) or [`when`](Self::when) disarmed.
    pub fn heal(&self) {
        self.shared.change(|state| {
            for direction in [Direction::Up, Direction::Down] {
                state.set(direction, Flow::Pass);
                let way = state.way_mut(direction);
                way.cut_after = None;
                way.matches.clear();
            }
        });
        self.refuse(false);
    }

    /// Resets all open connections. No byte passes after the return; the resets reach both ends
    /// within moments. New connections are accepted.
    pub fn cut(&self) {
        self.shared.change_and_wait(|state| {
            state.generation += 1;
            state.empty_backlog = true;
        });
    }

    /// Whether new connections are refused, as by a server that is not there. Open ones go on.
    pub fn refuse(&self, refuse: bool) {
        self.shared.change_and_wait(|state| state.refuse = refuse);
    }

    /// Passes `bytes` more bytes in this direction, those of all connections together, then resets
    /// the connection that carried the last of them. Once; a second call replaces the first.
    pub fn cut_after(&self, direction: Direction, bytes: u64) -> Trigger {
        let trigger = Trigger::default();
        let fired = trigger.clone();
        self.shared.change(|state| {
            state.way_mut(direction).cut_after = Some((bytes, fired));
        });
        trigger
    }

    /// Resets the connection that carries `pattern` in this direction, before the piece that holds
    /// the pattern's last byte is passed on. Once.
    ///
    /// gRPC sends keys and values as they are, but compresses method names and headers.
    pub fn cut_when(&self, direction: Direction, pattern: impl Into<Vec<u8>>) -> Trigger {
        self.arm(direction, pattern.into(), Action::Cut)
    }

    /// Changes the flow of `target` when `pattern` passes in `direction`, before the piece that
    /// holds the pattern's last byte is passed on. Once. The answer to one request is lost by
    /// `when(Up, key, Down, Flow::Drop)`.
    pub fn when(
        &self,
        direction: Direction,
        pattern: impl Into<Vec<u8>>,
        target: Direction,
        flow: Flow,
    ) -> Trigger {
        self.arm(direction, pattern.into(), Action::Set(target, flow))
    }

    /// How many connections are open, silent ones included.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections
    }

    /// How many connections were accepted since the start.
    pub fn accepted(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// How many bytes were passed on in this direction since the start.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.lock().way(direction).bytes
    }

    /// How many pieces were passed on in this direction since the start: about one for each request that a
    /// client sends by itself.
    pub fn pieces(&self, direction: Direction) -> u64 {
        self.shared.lock().way(direction).pieces
    }

    fn arm(&self, direction: Direction, pattern: Vec<u8>, action: Action) -> Trigger {
        let trigger = Trigger::default();
        let fired = trigger.clone();
        self.shared.change(|state| {
            state.way_mut(direction).matches.push(Match {
                pattern,
                action,
                fired,
            });
        });
        trigger
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

/// Tells whether what was armed has happened; a fault that never struck proves nothing.
#[derive(Debug, Clone, Default)]
pub struct Trigger(Arc<AtomicBool>);

impl Trigger {
    /// Whether it has happened.
    pub fn has_fired(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    fn fire(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What the test's threads and the proxy's thread share.
///
/// Bytes are read and written, without blocking, *under the lock*: that is what makes a change
/// complete when the method that made it returns.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    up: Way,
    down: Way,
    /// Raised by a cut: connections of an earlier generation are over.
    generation: u64,
    refuse: bool,
    /// A cut also reaches connections that the kernel has made and the proxy not yet accepted.
    empty_backlog: bool,
    /// Dropped by the accepting task once it has seen the changes.
    seen: Vec<std::sync::mpsc::Sender<()>>,
    connections: usize,
    accepted: u64,
    ended: bool,
}

/// One direction, over all connections.
#[derive(Debug, Default)]
struct Way {
    flow: Flow,
    /// Raised when the flow leaves `Drop`: what lost bytes before that is reset.
    drops_ended: u64,
    cut_after: Option<(u64, Trigger)>,
    matches: Vec<Match>,
    bytes: u64,
    pieces: u64,
}

#[derive(Debug)]
struct Match {
    pattern: Vec<u8>,
    action: Action,
    fired: Trigger,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Cut,
    Set(Direction, Flow),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.send_replace(());
    }

    /// Changes what the accepting task has to act on, and waits until it has: microseconds.
    fn change_and_wait(&self, change: impl FnOnce(&mut State)) {
        let (seen, answer) = std::sync::mpsc::channel();
        self.change(|state| {
            change(state);
            state.seen.push(seen);
        });
        // Nothing is ever sent: what is waited for is the drop of the other end.
        let _ = answer.recv();
    }
}

impl State {
    fn way(&self, direction: Direction) -> &Way {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    fn way_mut(&mut self, direction: Direction) -> &mut Way {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }

    fn set(&mut self, direction: Direction, flow: Flow) {
        let way = self.way_mut(direction);
        if way.flow == Flow::Drop && flow != Flow::Drop {
            way.drops_ended += 1;
        }
        way.flow = flow;
    }
}

/// Accepts connections until the proxy is dropped.
async fn serve(
    shared: Arc<Shared>,
    address: SocketAddr,
    upstream: Arc<str>,
    listening: std::sync::mpsc::Sender<io::Result<()>>,
) {
    let mut changed = shared.changed.subscribe();
    let mut listener = match listen(address) {
        Ok(listener) => Some(listener),
        Err(error) => {
            let _ = listening.send(Err(error));
            return;
        }
    };
    let _ = listening.send(Ok(()));
    loop {
        changed.mark_unchanged();
        // The generation of what is accepted below is that of *before* the accepting: a cut that
        // comes between the two reaches it.
        let (ended, refuse, generation, empty_backlog, seen) = {
            let mut state = shared.lock();
            let empty_backlog = std::mem::take(&mut state.empty_backlog);
            let seen = std::mem::take(&mut state.seen);
            (
                state.ended,
                state.refuse,
                state.generation,
                empty_backlog,
                seen,
            )
        };
        if ended {
            // The runtime drops the connections' tasks, which resets them.
            return;
        }
        if let Some(listener) = listener.as_ref().filter(|_| empty_backlog) {
            // Not by way of tokio, which may not have heard yet that there is something to accept.
            while let Ok(client) = rustix::net::accept(listener) {
                let _ = rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO));
            }
        }
        match (refuse, &listener) {
            (true, Some(_)) => listener = None,
            // The port is reserved, so that this can fail for a moment only.
            (false, None) => listener = listen(address).ok(),
            _ => {}
        }
        drop(seen);
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None if refuse => std::future::pending().await,
                None => Err(io::ErrorKind::NotConnected.into()),
            }
        };
        tokio::select! {
            biased;
            _ = changed.changed() => {}
            accepted = accept => match accepted {
                Ok((client, _)) => {
                    let connection = Connection::new(&shared, client, generation);
                    tokio::spawn(connection.run(Arc::clone(&upstream)));
                }
                // Out of file descriptors, a client that is gone again, no listener: try again,
                // but not in a tight loop.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            },
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// One client's connection. Whatever ends it, both ends are reset, unless both streams came to
/// their proper end.
struct Connection {
    shared: Arc<Shared>,
    client: TcpStream,
    generation: u64,
    /// `drops_ended` of `Up` when the client came, if that direction dropped then.
    opened_in_drop: Option<u64>,
}

impl Connection {
    fn new(shared: &Arc<Shared>, client: TcpStream, generation: u64) -> Self {
        let _ = client.set_nodelay(true);
        let _ = client.set_zero_linger();
        let mut state = shared.lock();
        state.connections += 1;
        state.accepted += 1;
        Self {
            client,
            generation,
            opened_in_drop: (state.up.flow == Flow::Drop).then_some(state.up.drops_ended),
            shared: Arc::clone(shared),
        }
    }

    async fn run(self, upstream: Arc<str>) {
        if !self.may_connect().await {
            return;
        }
        let Some(server) = self.connect(&upstream).await else {
            return;
        };
        let _ = server.set_nodelay(true);
        let (client_gone, server_gone) = (AtomicBool::new(false), AtomicBool::new(false));
        let up = Pump::new(
            &self,
            Direction::Up,
            [&self.client, &server],
            [&client_gone, &server_gone],
        );
        let down = Pump::new(
            &self,
            Direction::Down,
            [&server, &self.client],
            [&server_gone, &client_gone],
        );
        // Either pump resets both ends by returning an error.
        if tokio::try_join!(up.run(), down.run()).is_ok() {
            // Both streams have ended: what is still in the sockets is to arrive.
            let _ = rustix::net::sockopt::set_socket_linger(&self.client, None);
            let _ = rustix::net::sockopt::set_socket_linger(&server, None);
        }
    }

    /// Waits until the way up is open; `false` if the connection is over before that.
    async fn may_connect(&self) -> bool {
        let mut changed = self.shared.changed.subscribe();
        loop {
            changed.mark_unchanged();
            {
                let state = self.shared.lock();
                if state.generation != self.generation {
                    return false;
                }
                match self.opened_in_drop {
                    Some(drops) if state.up.drops_ended != drops => return false,
                    Some(_) => {}
                    None if matches!(state.up.flow, Flow::Pass | Flow::Delay(_)) => return true,
                    None => {}
                }
            }
            // What the client sends stays in the socket. Its end is not looked for: a held or
            // swallowed end is none, and a silent connection ends with the next change.
            let _ = changed.changed().await;
        }
    }

    async fn connect(&self, upstream: &str) -> Option<TcpStream> {
        let mut changed = self.shared.changed.subscribe();
        let connect = connect(upstream);
        tokio::pin!(connect);
        loop {
            changed.mark_unchanged();
            if self.shared.lock().generation != self.generation {
                return None;
            }
            tokio::select! {
                _ = changed.changed() => {}
                connected = &mut connect => return connected.ok(),
            }
        }
    }
}

/// Connects with `SO_LINGER` set beforehand: the server may have accepted before we know of it, and
/// has to see a reset even then.
async fn connect(upstream: &str) -> io::Result<TcpStream> {
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for address in tokio::net::lookup_host(upstream).await? {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_zero_linger()?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.lock().connections -= 1;
    }
}

/// The connection is over and has to be reset.
struct Reset;

/// Moves the bytes of one direction of one connection.
struct Pump<'a> {
    shared: &'a Shared,
    generation: u64,
    direction: Direction,
    source: &'a TcpStream,
    sink: &'a TcpStream,
    /// A reset shows once, to whichever pump looks first; so each pump leaves word for the other.
    source_gone: &'a AtomicBool,
    sink_gone: &'a AtomicBool,
    queue: VecDeque<Piece>,
    queued: usize,
    read_end: bool,
    /// `drops_ended` when bytes were lost.
    lost: Option<u64>,
    /// The last bytes read, for patterns that straddle two reads.
    recent: Vec<u8>,
}

struct Piece {
    arrived: Instant,
    what: What,
}

enum What {
    Bytes(Vec<u8>, usize),
    /// The stream's proper end.
    End,
    Reset,
}

/// What a pump waits for.
#[derive(Default)]
struct Wait {
    readable: bool,
    writable: bool,
    until: Option<Instant>,
}

impl<'a> Pump<'a> {
    fn new(
        connection: &'a Connection,
        direction: Direction,
        [source, sink]: [&'a TcpStream; 2],
        [source_gone, sink_gone]: [&'a AtomicBool; 2],
    ) -> Self {
        Self {
            shared: &connection.shared,
            generation: connection.generation,
            direction,
            source,
            sink,
            source_gone,
            sink_gone,
            queue: VecDeque::new(),
            queued: 0,
            read_end: false,
            lost: None,
            recent: Vec::new(),
        }
    }

    /// Ends well when the stream's end was passed on.
    async fn run(mut self) -> Result<(), Reset> {
        let mut changed = self.shared.changed.subscribe();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            changed.mark_unchanged();
            let Some(wait) = self.step(&mut buffer)? else {
                return Ok(());
            };
            let readable = async {
                match wait.readable {
                    true => drop(self.source.readable().await),
                    false => std::future::pending().await,
                }
            };
            let writable = async {
                match wait.writable {
                    true => drop(self.sink.writable().await),
                    false => std::future::pending().await,
                }
            };
            let due = async {
                match wait.until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = changed.changed() => {}
                () = readable => {}
                () = writable => {}
                () = due => {}
            }
        }
    }

    /// Reads and writes what can be read and written now; `None` when the end was passed on.
    fn step(&mut self, buffer: &mut [u8]) -> Result<Option<Wait>, Reset> {
        let shared = self.shared;
        let mut state = shared.lock();
        let mut wait = self.step_locked(&mut state, buffer)?;
        drop(state);
        if let Some(wait) = &mut wait {
            // Decided after the writing, which makes room.
            wait.readable = !self.read_end && self.queued < WINDOW;
        }
        Ok(wait)
    }

    fn step_locked(&mut self, state: &mut State, buffer: &mut [u8]) -> Result<Option<Wait>, Reset> {
        if state.generation != self.generation {
            return Err(Reset);
        }
        if self
            .lost
            .is_some_and(|drops| drops != state.way(self.direction).drops_ended)
        {
            return Err(Reset);
        }
        let mut wait = Wait::default();
        self.read(state, buffer)?;
        loop {
            let delay = match state.way(self.direction).flow {
                Flow::Pass => Duration::ZERO,
                Flow::Delay(delay) => delay,
                Flow::Hold => return Ok(Some(wait)),
                Flow::Drop => {
                    self.swallow(state);
                    return Ok(Some(wait));
                }
            };
            let Some(piece) = self.queue.front_mut() else {
                return Ok(Some(wait));
            };
            // A delay too long to be counted never ends.
            let due = piece.arrived.checked_add(delay);
            if due.is_none_or(|due| due > Instant::now()) {
                wait.until = due;
                return Ok(Some(wait));
            }
            match &mut piece.what {
                What::Reset => return Err(Reset),
                What::End => {
                    shut_down(self.sink);
                    return Ok(None);
                }
                What::Bytes(bytes, from) => {
                    let way = state.way_mut(self.direction);
                    let rest = &bytes[*from..];
                    let allowed = match &way.cut_after {
                        Some((left, _)) => {
                            rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX))
                        }
                        None => rest.len(),
                    };
                    let written = match allowed {
                        0 => Ok(0),
                        _ => self.sink.try_write(&rest[..allowed]),
                    };
                    match written {
                        Ok(written) => {
                            *from += written;
                            let whole = *from == bytes.len();
                            self.queued -= written;
                            way.bytes += written as u64;
                            way.pieces += u64::from(whole);
                            if whole {
                                self.queue.pop_front();
                            }
                            if let Some((left, trigger)) = &mut way.cut_after {
                                *left -= written as u64;
                                if *left == 0 {
                                    trigger.fire();
                                    way.cut_after = None;
                                    return Err(Reset);
                                }
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            wait.writable = true;
                            return Ok(Some(wait));
                        }
                        Err(_) => {
                            // The receiver is gone. Its sender learns of it through the other
                            // pump, if that direction is open; until then it talks to nobody.
                            self.sink_gone.store(true, Ordering::SeqCst);
                            self.swallow(state);
                            return Ok(Some(wait));
                        }
                    }
                }
            }
        }
    }

    /// Reads what is there, within the window, and looks for patterns.
    fn read(&mut self, state: &mut State, buffer: &mut [u8]) -> Result<(), Reset> {
        // At most a few buffers a step, so that one connection does not starve the others.
        for _ in 0..4 {
            if self.read_end || self.queued >= WINDOW {
                return Ok(());
            }
            let what = match self.source.try_read(buffer) {
                Ok(0) if self.source_gone.load(Ordering::SeqCst) => What::Reset,
                Ok(0) => What::End,
                Ok(read) => What::Bytes(buffer[..read].to_vec(), 0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => What::Reset,
            };
            match &what {
                What::Bytes(bytes, _) => {
                    self.queued += bytes.len();
                    let bytes = bytes.clone();
                    self.look_for_patterns(state, &bytes)?;
                }
                What::End | What::Reset => self.read_end = true,
            }
            self.queue.push_back(Piece {
                arrived: Instant::now(),
                what,
            });
        }
        Ok(())
    }

    /// Acts on the patterns whose last byte is among the new bytes.
    fn look_for_patterns(&mut self, state: &mut State, bytes: &[u8]) -> Result<(), Reset> {
        let way = state.way_mut(self.direction);
        let longest = way.matches.iter().map(|found| found.pattern.len()).max();
        let Some(longest) = longest else {
            self.recent.clear();
            return Ok(());
        };
        let old = self.recent.len();
        self.recent.extend_from_slice(bytes);
        let mut actions = Vec::new();
        way.matches.retain(|armed| {
            // Bytes that came before it was armed may begin a match, but not be all of one.
            let from = (old + 1).saturating_sub(armed.pattern.len()).min(old);
            let found = contains(&self.recent[from..], &armed.pattern);
            if found {
                armed.fired.fire();
                actions.push(armed.action);
            }
            !found
        });
        let excess = self.recent.len().saturating_sub(longest.saturating_sub(1));
        self.recent.drain(..excess);
        let mut cut = false;
        // All of them, whichever was armed first: a cut and what new connections are to meet.
        for action in actions {
            match action {
                Action::Cut => cut = true,
                Action::Set(direction, flow) => {
                    state.set(direction, flow);
                    self.shared.changed.send_replace(());
                }
            }
        }
        if cut {
            return Err(Reset);
        }
        Ok(())
    }

    fn swallow(&mut self, state: &State) {
        if !self.queue.is_empty() {
            self.queue.clear();
            self.queued = 0;
            self.lost = Some(state.way(self.direction).drops_ended);
        }
    }
}

fn contains(bytes: &[u8], pattern: &[u8]) -> bool {
    pattern.is_empty() || bytes.windows(pattern.len()).any(|window| window == pattern)
}

/// Closes the writing half, so that the receiver sees the stream's end.
fn shut_down(stream: &TcpStream) {
    let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Write);
}
