//! The thread of a proxy: accepts connections, and passes bytes as the flows say.

use std::io::{self, ErrorKind, PipeReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};

use super::requests::{has_script_except, repeat_scripts};
use super::{Connection, Direction, Fired, Flow, Kept, Piece, Shared, State, Stream, Then, When, reset_on_close};

/// The bytes that one direction of a connection may keep.
const WINDOW: usize = 16 << 20;

/// The end of a connection.
enum End {
    /// Both sides are reset.
    Reset,
    /// The client's side is reset. What it has sent is kept for the server.
    Strand,
}

use End::{Reset, Strand};

/// Serves until the proxy is dropped.
pub(super) fn run(shared: &Shared, mut wake: PipeReader) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut waits = Vec::new();
        let listening = {
            let mut state = shared.state.lock();
            if state.ended {
                // Resets them all.
                return state.connections.clear();
            }
            accept(shared, &mut state);
            state.again = true;
            while std::mem::take(&mut state.again) {
                relay(shared.server, &mut state, &mut buffer);
            }
            state
                .connections
                .iter()
                .for_each(|connection| connection.waits(&state, &mut waits));
            !state.refuse
        };
        let mut polled = vec![PollFd::new(&wake, PollFlags::IN)];
        if listening {
            polled.push(PollFd::new(&shared.listener, PollFlags::IN));
        }
        polled.extend(
            waits
                .iter()
                .map(|(stream, flags)| PollFd::from_borrowed_fd(stream.as_fd(), *flags)),
        );
        let polling = poll(&mut polled, None);
        if polling.is_ok() && !polled[0].revents().is_empty() {
            let _ = wake.read(&mut buffer);
        }
    }
}

fn accept(shared: &Shared, state: &mut State) {
    while !state.refuse {
        // Out of file descriptors, or a client that has gone: the next look finds the others.
        let Ok((client, _)) = shared.listener.accept() else {
            return;
        };
        let _ = client.set_nonblocking(true).and_then(|()| client.set_nodelay(true));
        reset_on_close(&client);
        let mut connection = Connection {
            client: Arc::new(client),
            server: None,
            requests: Stream::default(),
            answers: Stream::default(),
        };
        if state.requests.flow == Flow::Drop {
            connection.requests.lost = Some(state.requests.drops);
        }
        state.connections.push(connection);
        state.accepted += 1;
    }
}

/// Passes on all that can be passed on now.
fn relay(server: SocketAddr, state: &mut State, buffer: &mut [u8]) {
    let mut connections = std::mem::take(&mut state.connections);
    connections.retain_mut(|connection| connection.step(server, state, buffer).is_ok_and(|open| open));
    state.connections = connections;
}

/// Begins to connect. Until it is connected, the stream neither reads nor writes; a refusal is its first error.
fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let family = if server.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = TcpStream::from(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?);
    reset_on_close(&stream);
    match rustix::net::connect(&stream, &server) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Connection {
    /// Returns whether the connection goes on.
    fn step(&mut self, server: SocketAddr, state: &mut State, buffer: &mut [u8]) -> Result<bool, End> {
        for (stream, way) in [(&self.requests, &state.requests), (&self.answers, &state.answers)] {
            if stream.lost.is_some_and(|drops| drops != way.drops) {
                return Err(Reset);
            }
        }
        let server = match &self.server {
            Some(server) => Arc::clone(server),
            None if state.requests.flow != Flow::Pass || self.requests.lost.is_some() => return Ok(true),
            None => Arc::clone(self.server.insert(Arc::new(connect(server).map_err(|_| Reset)?))),
        };
        let (requests, answers) = (&mut self.requests, &mut self.answers);
        let passed = requests.step(Direction::Requests, &self.client, &server, answers, state, buffer);
        if matches!(passed, Err(Strand)) {
            state.stranded.push((Arc::clone(&server), requests.take_bytes()));
        }
        passed?;
        answers.step(Direction::Answers, &server, &self.client, requests, state, buffer)?;
        let open = !(requests.passed_all && answers.passed_all);
        if !open {
            // The last bytes in the sockets are to arrive.
            for stream in [&self.client, &server] {
                let _ = rustix::net::sockopt::set_socket_linger(stream, None);
            }
        }
        Ok(open)
    }

    /// Adds the events that this connection waits for.
    fn waits(&self, state: &State, waits: &mut Vec<(Arc<TcpStream>, PollFlags)>) {
        let Some(server) = &self.server else { return };
        let ends = [
            (&self.client, &self.requests, &self.answers, state.answers.flow),
            (server, &self.answers, &self.requests, state.requests.flow),
        ];
        for (end, from, to, flow) in ends {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !from.read_all && from.queued < WINDOW);
            flags.set(PollFlags::OUT, to.blocked && flow == Flow::Pass);
            // A socket without a wanted event would still report that its peer has gone, again and again.
            if !flags.is_empty() {
                waits.push((Arc::clone(end), flags));
            }
        }
    }
}

impl Stream {
    /// Reads and passes on; `back` is the other direction of the same connection.
    fn step(
        &mut self,
        direction: Direction,
        mut source: &TcpStream,
        sink: &TcpStream,
        back: &mut Stream,
        state: &mut State,
        buffer: &mut [u8],
    ) -> Result<(), End> {
        // At most a few reads, so that one connection does not starve the others.
        for _ in 0..4 {
            if self.read_all || self.queued >= WINDOW {
                break;
            }
            let piece = match source.read(buffer) {
                Ok(0) if self.sender_gone => Piece::Reset,
                Ok(0) => Piece::End,
                Ok(length) if direction == Direction::Requests => {
                    Piece::Bytes(self.take_requests(&buffer[..length], state)?)
                }
                Ok(length) => Piece::Bytes(buffer[..length].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => Piece::Reset,
            };
            let noted = match &piece {
                Piece::Bytes(bytes) => {
                    self.queued += bytes.len();
                    self.note_chunk(direction, bytes, state)
                }
                Piece::End | Piece::Reset => {
                    self.read_all = true;
                    Ok(())
                }
            };
            self.queue.push_back(piece);
            noted?;
        }
        self.blocked = false;
        while !self.queue.is_empty() && !self.blocked {
            match state.way(direction).flow {
                Flow::Hold => break,
                Flow::Drop => self.lose(direction, state),
                Flow::Pass => self.pass(direction, sink, back, state)?,
            }
        }
        Ok(())
    }

    /// Returns the bytes to pass on instead of a chunk of requests.
    fn take_requests(&mut self, chunk: &[u8], state: &mut State) -> Result<Vec<u8>, End> {
        if self.opening.is_empty() {
            self.opening = chunk.to_vec();
        } else if state.keeps.is_some_and(|except| has_script_except(chunk, except)) {
            state.keeps = None;
            state.kept = Some(Kept {
                opening: self.opening.clone(),
                request: chunk.to_vec(),
            });
            return Err(Reset);
        }
        if !state.repeats && self.begun.is_empty() {
            return Ok(chunk.to_vec());
        }
        self.begun.extend_from_slice(chunk);
        Ok(match state.repeats {
            true => repeat_scripts(&mut self.begun),
            false => std::mem::take(&mut self.begun),
        })
    }

    /// Passes on the first piece, or a part of it.
    fn pass(
        &mut self,
        direction: Direction,
        mut sink: &TcpStream,
        back: &mut Stream,
        state: &mut State,
    ) -> Result<(), End> {
        let bytes = match self.queue.front_mut() {
            None => return Ok(()),
            Some(Piece::Reset) => return Err(Reset),
            Some(Piece::End) => {
                self.queue.clear();
                self.passed_all = true;
                let _ = rustix::net::shutdown(sink, Shutdown::Write);
                return Ok(());
            }
            Some(Piece::Bytes(bytes)) => bytes,
        };
        let allowed = state.allowed(direction).min(bytes.len());
        let written = match if allowed == 0 {
            Ok(0)
        } else {
            sink.write(&bytes[..allowed])
        } {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.blocked = true;
                return Ok(());
            }
            Err(_) => {
                // The receiver has gone. The sender learns of it by the other direction, if that one passes.
                back.sender_gone = true;
                self.lose(direction, state);
                return Ok(());
            }
        };
        bytes.drain(..written);
        self.queued -= written;
        let whole = bytes.is_empty();
        if whole {
            self.queue.pop_front();
        }
        let traffic = &mut state.way_mut(direction).traffic;
        traffic.bytes += written as u64;
        traffic.chunks += u64::from(whole);
        state.fire(direction, |when| match when {
            When::Bytes(left) => {
                *left -= written as u64;
                *left == 0
            }
            _ => false,
        })
    }

    /// Takes what was read and has not passed.
    fn take_bytes(&mut self) -> Vec<u8> {
        let pieces = std::mem::take(&mut self.queue).into_iter();
        let bytes = pieces.filter_map(|piece| match piece {
            Piece::Bytes(bytes) => Some(bytes),
            Piece::End | Piece::Reset => None,
        });
        bytes.flatten().collect()
    }

    fn lose(&mut self, direction: Direction, state: &State) {
        self.queue.clear();
        self.queued = 0;
        self.lost = Some(state.way(direction).drops);
    }

    /// Fires the faults that wait for this chunk.
    fn note_chunk(&mut self, direction: Direction, bytes: &[u8], state: &mut State) -> Result<(), End> {
        let before = self.recent.len();
        self.recent.extend_from_slice(bytes);
        let (recent, mut keep) = (&self.recent, 0);
        let fired = state.fire(direction, |when| match when {
            When::Bytes(_) => false,
            When::Chunk(left) => {
                *left = left.saturating_sub(1);
                *left == 0
            }
            When::Pattern(pattern) => {
                keep = keep.max(pattern.len().saturating_sub(1));
                // Its last byte is in this chunk; its first ones may have come before the fault was armed.
                let from = (before + 1).saturating_sub(pattern.len());
                pattern.is_empty()
                    || recent[from.min(before)..]
                        .windows(pattern.len())
                        .any(|window| window == pattern)
            }
        });
        let surplus = self.recent.len().saturating_sub(keep);
        self.recent.drain(..surplus);
        fired
    }
}

impl State {
    /// Returns the bytes that may pass before the next fault.
    fn allowed(&self, direction: Direction) -> usize {
        let armed = self.armed.iter().filter(|armed| armed.direction == direction);
        let limits = armed.filter_map(|armed| match armed.when {
            When::Bytes(left) => usize::try_from(left).ok(),
            _ => None,
        });
        limits.min().unwrap_or(usize::MAX)
    }

    /// Fires the faults of the direction whose event has come. All of them, so that a test can arm a cut together with the flow
    /// that the next connection meets.
    fn fire(&mut self, direction: Direction, mut comes: impl FnMut(&mut When) -> bool) -> Result<(), End> {
        let mut faults: Vec<(Then, Fired)> = Vec::new();
        self.armed.retain_mut(|armed| {
            let fires = armed.direction == direction && comes(&mut armed.when);
            if fires {
                faults.push((armed.then, armed.fired.clone()));
            }
            !fires
        });
        let mut result = Ok(());
        for (then, fired) in faults {
            match then {
                Then::Cut => result = Err(Reset),
                Then::Strand => result = Err(Strand),
                Then::Set(direction, flow) => self.set(direction, flow),
            }
            fired.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
        result
    }
}
