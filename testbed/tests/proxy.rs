//! The proxy's promises, each against plain sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tenure_testbed::{Direction, Flow, Proxy};

/// Long enough that nothing slow is mistaken for a failure.
const SOON: Duration = Duration::from_secs(10);
/// Long enough that what must not arrive would have.
const QUIET: Duration = Duration::from_millis(150);

/// A client and a server, with the proxy between them.
struct Pair {
    proxy: Proxy,
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
}

fn listener() -> (TcpListener, Proxy) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let proxy = Proxy::start(listener.local_addr().expect("an address")).expect("a proxy");
    (listener, proxy)
}

fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("the proxy's connection");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream
}

fn pair() -> Pair {
    let (listener, proxy) = listener();
    let client = dial(proxy.address());
    let server = accept(&listener);
    Pair {
        proxy,
        listener,
        client,
        server,
    }
}

fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).expect("sent");
}

#[track_caller]
fn hear(stream: &mut TcpStream, text: &str) {
    let mut heard = vec![0; text.len()];
    stream.read_exact(&mut heard).expect("heard");
    assert_eq!(String::from_utf8_lossy(&heard), text);
}

#[track_caller]
fn hear_nothing(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(QUIET)).expect("a timeout");
    let heard = stream.read(&mut [0; 64]);
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    let error = heard.expect_err("silence, and no end of the stream");
    assert!(
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
}

#[track_caller]
fn is_reset(stream: &mut TcpStream) {
    let error = stream.read(&mut [0; 64]).expect_err("a reset, not an end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

/// Polls a condition of the proxy; its counters follow its sockets by moments.
#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn passes_both_ways_and_counts() {
    let mut pair = pair();
    say(&mut pair.client, "question");
    hear(&mut pair.server, "question");
    say(&mut pair.server, "answer");
    hear(&mut pair.client, "answer");
    assert_eq!(pair.proxy.bytes(Direction::Up), 8);
    assert_eq!(pair.proxy.bytes(Direction::Down), 6);
    assert_eq!((pair.proxy.connections(), pair.proxy.accepted()), (1, 1));
}

#[test]
fn passes_a_large_stream_whole_and_its_end() {
    let mut pair = pair();
    let sent: Vec<u8> = (0..40_000_000_u32).map(|i| (i % 251) as u8).collect();
    let copy = sent.clone();
    let mut client = pair.client.try_clone().expect("a clone");
    let writer = std::thread::spawn(move || {
        client.write_all(&copy).expect("sent");
        client.shutdown(std::net::Shutdown::Write).expect("ended");
    });
    let mut heard = Vec::new();
    pair.server
        .read_to_end(&mut heard)
        .expect("all and the end");
    writer.join().expect("the writer");
    assert!(heard == sent, "{} bytes of {}", heard.len(), sent.len());
    // Half closed: the answer still comes, and then its end.
    say(&mut pair.server, "thanks");
    drop(pair.server);
    let mut answer = String::new();
    pair.client
        .read_to_string(&mut answer)
        .expect("a proper end");
    assert_eq!(answer, "thanks");
    eventually("the connection is over", || pair.proxy.connections() == 0);
}

#[test]
fn delay_is_each_bytes_own_and_ends_when_changed() {
    let mut pair = pair();
    let delay = Duration::from_millis(300);
    pair.proxy.set(Direction::Up, Flow::Delay(delay));
    let start = Instant::now();
    for _ in 0..5 {
        say(&mut pair.client, "x");
        std::thread::sleep(Duration::from_millis(20));
    }
    hear(&mut pair.server, "xxxxx");
    let took = start.elapsed();
    assert!(took >= delay, "{took:?}");
    // The delays overlap: one after the other they would take 1.5 s.
    assert!(took < Duration::from_millis(1_200), "{took:?}");
    // The other direction is not delayed.
    say(&mut pair.server, "y");
    hear(&mut pair.client, "y");

    pair.proxy.set(Direction::Up, Flow::Delay(Duration::MAX));
    say(&mut pair.client, "z");
    hear_nothing(&mut pair.server);
    pair.proxy.set(Direction::Up, Flow::Pass);
    hear(&mut pair.server, "z");
}

#[test]
fn hold_keeps_one_direction_and_delivers_it_later() {
    let mut pair = pair();
    pair.proxy.set(Direction::Down, Flow::Hold);
    say(&mut pair.client, "question");
    hear(&mut pair.server, "question");
    say(&mut pair.server, "answer");
    hear_nothing(&mut pair.client);
    pair.proxy.set(Direction::Down, Flow::Pass);
    hear(&mut pair.client, "answer");
}

/// Several connections at once, whose flow changes all the time: each stream arrives in order,
/// without a gap, and knows nothing of the others.
#[test]
fn changes_of_flow_neither_lose_nor_reorder_a_byte() {
    let (listener, proxy) = listener();
    let pairs: Vec<_> = (0..8)
        .map(|_| (dial(proxy.address()), accept(&listener)))
        .collect();
    let ends: Vec<_> = pairs
        .into_iter()
        .enumerate()
        .map(|(number, (mut client, mut server))| {
            let words = move |client: &mut dyn FnMut(&[u8])| {
                for i in 0..100_000_u64 {
                    client(&(i * 8 + number as u64).to_le_bytes());
                }
            };
            let writer = std::thread::spawn(move || {
                let mut buffer = Vec::new();
                words(&mut |word| buffer.extend_from_slice(word));
                for piece in buffer.chunks(5_003) {
                    client.write_all(piece).expect("sent");
                }
                // Its proper end, not a reset.
                client.shutdown(std::net::Shutdown::Write).expect("ended");
                client
            });
            let reader = std::thread::spawn(move || {
                let mut heard = Vec::new();
                server.read_to_end(&mut heard).expect("all, and the end");
                let mut expected = Vec::new();
                words(&mut |word| expected.extend_from_slice(word));
                assert!(heard == expected, "stream {number}");
            });
            (writer, reader)
        })
        .collect();
    let flows = [
        Flow::Hold,
        Flow::Delay(Duration::from_millis(2)),
        Flow::Pass,
        Flow::Delay(Duration::from_millis(1)),
    ];
    let mut flow = flows.iter().cycle();
    while !ends.iter().all(|(_, reader)| reader.is_finished()) {
        proxy.set(Direction::Up, *flow.next().expect("a cycle"));
        // The pace of the changes, nothing that is waited for.
        std::thread::sleep(Duration::from_millis(1));
    }
    for (writer, reader) in ends {
        writer.join().expect("the writer");
        reader.join().expect("the reader");
    }
}

#[test]
fn hold_fills_its_window_and_drains_it() {
    let pair = pair();
    pair.proxy.set(Direction::Up, Flow::Hold);
    // More than the window and the sockets' buffers together: the writer has to block.
    let total = 48 << 20;
    let mut client = pair.client.try_clone().expect("a clone");
    let writer = std::thread::spawn(move || client.write_all(&vec![7; total]).expect("sent"));
    let mut server = pair.server;
    hear_nothing(&mut server);
    assert!(!writer.is_finished());
    pair.proxy.heal();
    let mut left = total;
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        left -= server.read(&mut buffer).expect("heard");
    }
    writer.join().expect("the writer");
}

#[test]
fn hold_keeps_the_end_and_new_connections_too() {
    let mut pair = pair();
    pair.proxy.set_both(Flow::Hold);
    say(&mut pair.client, "last words");
    drop(pair.client);
    let mut late = dial(pair.proxy.address());
    say(&mut late, "late");
    hear_nothing(&mut pair.server);
    pair.listener.set_nonblocking(true).expect("set");
    assert!(
        pair.listener.accept().is_err(),
        "held connections do not reach the server"
    );
    pair.listener.set_nonblocking(false).expect("set");
    pair.proxy.heal();
    let mut heard = String::new();
    pair.server
        .read_to_string(&mut heard)
        .expect("a proper end");
    assert_eq!(heard, "last words");
    hear(&mut accept(&pair.listener), "late");
}

#[test]
fn silence_leaves_connections_open_and_resets_them_when_it_ends() {
    let mut pair = pair();
    pair.proxy.silence();
    say(&mut pair.client, "lost");
    say(&mut pair.server, "lost");
    let mut late = dial(pair.proxy.address());
    say(&mut late, "lost");
    hear_nothing(&mut pair.client);
    hear_nothing(&mut pair.server);
    hear_nothing(&mut late);
    assert_eq!(pair.proxy.connections(), 2);
    pair.proxy.heal();
    for stream in [&mut pair.client, &mut pair.server, &mut late] {
        is_reset(stream);
    }
    // And those that come now are as good as ever.
    let mut client = dial(pair.proxy.address());
    say(&mut client, "again");
    hear(&mut accept(&pair.listener), "again");
}

#[test]
fn silence_in_one_direction_spares_the_other() {
    let mut pair = pair();
    pair.proxy.set(Direction::Down, Flow::Drop);
    say(&mut pair.client, "question");
    hear(&mut pair.server, "question");
    say(&mut pair.server, "answer");
    hear_nothing(&mut pair.client);
    say(&mut pair.client, "question");
    hear(&mut pair.server, "question");
    pair.proxy.heal();
    is_reset(&mut pair.client);
}

#[test]
fn a_connection_that_lost_nothing_survives_silence() {
    let mut pair = pair();
    pair.proxy.silence();
    pair.proxy.heal();
    say(&mut pair.client, "still here");
    hear(&mut pair.server, "still here");
}

#[test]
fn silence_swallows_the_end_of_a_stream() {
    let mut pair = pair();
    pair.proxy.set(Direction::Up, Flow::Drop);
    drop(pair.client);
    hear_nothing(&mut pair.server);
    pair.proxy.heal();
    is_reset(&mut pair.server);
}

#[test]
fn a_change_is_in_force_when_it_returns() {
    for _ in 0..300 {
        let mut pair = pair();
        let mut server = pair.server.try_clone().expect("a clone");
        let writer = std::thread::spawn(move || while server.write_all(b"answer").is_ok() {});
        hear(&mut pair.client, "answer");
        pair.proxy.set(Direction::Down, Flow::Drop);
        let passed = pair.proxy.bytes(Direction::Down);
        std::thread::yield_now();
        assert_eq!(pair.proxy.bytes(Direction::Down), passed);
        pair.proxy.cut();
        writer.join().expect("the writer");
    }
}

#[test]
fn cut_resets_both_ends_and_takes_new_connections() {
    let mut pair = pair();
    pair.proxy.cut();
    is_reset(&mut pair.client);
    is_reset(&mut pair.server);
    let mut client = dial(pair.proxy.address());
    say(&mut client, "again");
    hear(&mut accept(&pair.listener), "again");
}

#[test]
fn cut_reaches_connections_that_were_not_yet_accepted() {
    for _ in 0..200 {
        let (_listener, proxy) = listener();
        let mut client = dial(proxy.address());
        proxy.cut();
        is_reset(&mut client);
    }
}

#[test]
fn cut_ends_silent_and_held_connections() {
    for flow in [Flow::Drop, Flow::Hold] {
        let (_listener, proxy) = listener();
        proxy.set_both(flow);
        let mut client = dial(proxy.address());
        eventually("it is accepted", || proxy.connections() == 1);
        proxy.cut();
        is_reset(&mut client);
        eventually("it is over", || proxy.connections() == 0);
    }
}

#[test]
fn cut_after_passes_just_that_many_bytes() {
    let mut pair = pair();
    let trigger = pair.proxy.cut_after(Direction::Down, 5);
    say(&mut pair.client, "the other direction does not count");
    say(&mut pair.server, "abc");
    hear(&mut pair.client, "abc");
    assert!(!trigger.has_fired());
    say(&mut pair.server, "defgh");
    hear(&mut pair.client, "de");
    is_reset(&mut pair.client);
    assert!(trigger.has_fired());
    assert_eq!(pair.proxy.bytes(Direction::Down), 5);
    // Once only.
    let mut client = dial(pair.proxy.address());
    let mut server = accept(&pair.listener);
    say(&mut server, "abcdefgh");
    hear(&mut client, "abcdefgh");
}

/// The bytes of all connections are counted together; the one with the last byte is cut.
#[test]
fn cut_after_spares_the_other_connections() {
    let (listener, proxy) = listener();
    let mut one = (dial(proxy.address()), accept(&listener));
    let mut two = (dial(proxy.address()), accept(&listener));
    let trigger = proxy.cut_after(Direction::Up, 6);
    say(&mut one.0, "abcd");
    hear(&mut one.1, "abcd");
    say(&mut two.0, "efgh");
    hear(&mut two.1, "ef");
    is_reset(&mut two.1);
    assert!(trigger.has_fired());
    say(&mut one.0, "more");
    hear(&mut one.1, "more");
    assert_eq!(proxy.bytes(Direction::Up), 10);
}

#[test]
fn cut_when_sees_a_pattern_across_pieces() {
    let mut pair = pair();
    let trigger = pair.proxy.cut_when(Direction::Up, "needle");
    say(&mut pair.client, "hay nee");
    hear(&mut pair.server, "hay nee");
    assert!(!trigger.has_fired());
    say(&mut pair.client, "dle hay");
    is_reset(&mut pair.server);
    assert!(trigger.has_fired());
}

#[test]
fn a_pattern_counts_from_when_it_was_armed() {
    let mut pair = pair();
    let long = pair.proxy.cut_when(Direction::Up, "a very long pattern");
    say(&mut pair.client, "word");
    hear(&mut pair.server, "word");
    let short = pair.proxy.cut_when(Direction::Up, "word");
    say(&mut pair.client, ".");
    hear(&mut pair.server, ".");
    assert!(!short.has_fired() && !long.has_fired());
    // And what was armed is forgotten by a heal.
    pair.proxy.heal();
    say(&mut pair.client, "word");
    hear(&mut pair.server, "word");
}

#[test]
fn the_answer_to_one_request_is_lost() {
    let mut pair = pair();
    let trigger = pair
        .proxy
        .when(Direction::Up, "commit", Direction::Down, Flow::Drop);
    say(&mut pair.client, "begin");
    hear(&mut pair.server, "begin");
    say(&mut pair.server, "ok");
    hear(&mut pair.client, "ok");
    say(&mut pair.client, "commit");
    hear(&mut pair.server, "commit");
    assert!(trigger.has_fired());
    assert_eq!(pair.proxy.flow(Direction::Down), Flow::Drop);
    say(&mut pair.server, "ok");
    hear_nothing(&mut pair.client);
}

#[test]
fn refuses_new_connections_only() {
    let mut pair = pair();
    for _ in 0..20 {
        pair.proxy.refuse(true);
        let error = TcpStream::connect(pair.proxy.address()).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        say(&mut pair.client, "still here");
        hear(&mut pair.server, "still here");
        pair.proxy.refuse(false);
        dial(pair.proxy.address());
        accept(&pair.listener);
    }
}

#[test]
fn a_server_that_is_not_there_shows_as_a_reset() {
    let (listener, proxy) = listener();
    drop(listener);
    is_reset(&mut dial(proxy.address()));
}

#[test]
fn a_reset_reaches_the_other_end_as_a_reset() {
    for _ in 0..50 {
        let mut pair = pair();
        // Closing with unread bytes resets.
        say(&mut pair.client, "unread");
        eventually("passed", || pair.proxy.bytes(Direction::Up) == 6);
        drop(pair.server);
        is_reset(&mut pair.client);
    }
}

#[test]
fn dropping_it_resets_and_frees_everything() {
    let mut pair = pair();
    let address = pair.proxy.address();
    drop(pair.proxy);
    is_reset(&mut pair.client);
    is_reset(&mut pair.server);
    let error = TcpStream::connect(address).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

/// The thread of its own: bytes pass while the test's only runtime thread is blocked.
#[tokio::test]
async fn a_blocked_runtime_does_not_stop_it() {
    let mut pair = pair();
    say(&mut pair.client, "question");
    hear(&mut pair.server, "question");
    pair.proxy.cut();
    is_reset(&mut pair.client);
}
