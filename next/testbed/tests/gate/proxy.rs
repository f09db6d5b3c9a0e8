//! The promises of the proxy, against plain sockets.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};

use tenure_testbed::Direction::{Answers, Requests};
use tenure_testbed::{Flow, Proxy, Then, Traffic, When, wait_until};

use crate::client::{assert_reset, assert_silent, connect, receive, send};

/// A server behind a proxy.
struct Scene {
    listener: TcpListener,
    proxy: Proxy,
}

impl Scene {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let proxy = Proxy::start(listener.local_addr().expect("an address")).expect("a proxy");
        Self { listener, proxy }
    }

    /// Returns both ends of a new connection.
    fn pair(&self) -> (TcpStream, TcpStream) {
        let client = connect(self.proxy.address());
        let (server, _) = self.listener.accept().expect("the connection of the proxy");
        (client, server)
    }
}

#[test]
fn proxy_passes_and_counts_both_directions() {
    let scene = Scene::new();
    let (client, server) = scene.pair();
    for (request, answer) in [("ping", "PONG!"), ("more", "again")] {
        send(&client, request);
        receive(&server, request);
        send(&server, answer);
        receive(&client, answer);
    }
    assert_eq!(scene.proxy.traffic(Requests), Traffic { bytes: 8, chunks: 2 });
    assert_eq!(scene.proxy.traffic(Answers), Traffic { bytes: 10, chunks: 2 });
    assert_eq!((scene.proxy.accepted(), scene.proxy.connections()), (1, 1));

    // Each stream ends on its own.
    client.shutdown(Shutdown::Write).expect("ended");
    assert_eq!((&server).read(&mut [0; 8]).expect("the end"), 0);
    send(&server, "last");
    drop(server);
    receive(&client, "last");
    assert_eq!((&client).read(&mut [0; 8]).expect("the end"), 0);
    wait_until("no connection", || Ok((scene.proxy.connections() == 0).then_some(()))).expect("closed");
}

#[test]
fn proxy_passes_a_stream_larger_than_all_buffers() {
    let scene = Scene::new();
    let (client, mut server) = scene.pair();
    let sent: Vec<u8> = (0..20_000_000_u32).map(|i| (i % 251) as u8).collect();
    let expected = sent.clone();
    scene.proxy.set(Requests, Flow::Hold);
    let writer = std::thread::spawn(move || {
        (&client).write_all(&sent).expect("sent");
        client.shutdown(Shutdown::Write).expect("ended");
        client
    });
    scene.proxy.set(Requests, Flow::Pass);
    let mut received = Vec::new();
    server.read_to_end(&mut received).expect("all bytes");
    assert!(received == expected);
    drop(writer.join().expect("no panic"));
}

#[test]
fn proxy_holds_one_direction_and_delivers_it_later() {
    let scene = Scene::new();
    let (client, server) = scene.pair();
    scene.proxy.set(Answers, Flow::Hold);
    send(&client, "request");
    receive(&server, "request");
    send(&server, "answer");
    assert_silent(&client);

    scene.proxy.set(Requests, Flow::Hold);
    let late = connect(scene.proxy.address());
    send(&late, "late");
    assert_silent(&late);
    scene.proxy.heal();
    receive(&client, "answer");
    let (server, _) = scene.listener.accept().expect("the held connection");
    receive(&server, "late");
}

#[test]
fn proxy_drop_keeps_connections_silent_and_resets_them_at_its_end() {
    let scene = Scene::new();
    let (client, server) = scene.pair();
    let (quiet_client, quiet_server) = scene.pair();
    scene.proxy.set(Answers, Flow::Drop);
    send(&client, "request");
    receive(&server, "request");
    send(&server, "lost");
    assert_silent(&client);
    scene.proxy.set(Answers, Flow::Pass);
    assert_reset(&client);
    assert_reset(&server);
    // A connection that lost no byte goes on.
    send(&quiet_server, "unharmed");
    receive(&quiet_client, "unharmed");

    scene.proxy.silence();
    let opened_meanwhile = connect(scene.proxy.address());
    send(&opened_meanwhile, "lost");
    assert_silent(&opened_meanwhile);
    // The server does not learn that its client has gone.
    drop(quiet_client);
    assert_silent(&quiet_server);
    scene.proxy.heal();
    assert_reset(&opened_meanwhile);
    assert_reset(&quiet_server);
}

#[test]
fn proxy_cut_resets_both_ends_and_accepts_new_connections() {
    let scene = Scene::new();
    let (client, server) = scene.pair();
    scene.proxy.cut();
    assert_eq!(scene.proxy.connections(), 0);
    assert_reset(&client);
    assert_reset(&server);
    let (client, server) = scene.pair();
    send(&client, "new");
    receive(&server, "new");
}

#[test]
fn proxy_refuses_new_connections_and_leaves_open_ones() {
    let scene = Scene::new();
    let (client, server) = scene.pair();
    for _ in 0..3 {
        scene.proxy.refuse(true);
        let error = TcpStream::connect(scene.proxy.address()).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        send(&client, "open");
        receive(&server, "open");
        scene.proxy.refuse(false);
        let (client, server) = scene.pair();
        send(&client, "new");
        receive(&server, "new");
    }
}

#[test]
fn proxy_resets_clients_of_a_server_that_refuses() {
    let Scene { listener, proxy } = Scene::new();
    drop(listener);
    assert_reset(&connect(proxy.address()));
}

#[test]
fn fault_after_bytes_passes_exactly_those() {
    let scene = Scene::new();
    let (client, server) = scene.pair();
    let (other_client, other_server) = scene.pair();
    let cut = scene.proxy.arm(Requests, When::Bytes(5), Then::Cut);
    send(&client, "abc");
    receive(&server, "abc");
    assert!(!cut.has_fired());
    send(&client, "defg");
    assert_reset(&client);
    assert!(cut.has_fired());
    assert_eq!(scene.proxy.traffic(Requests).bytes, 5);
    send(&other_client, "unharmed");
    receive(&other_server, "unharmed");

    let hold = scene.proxy.arm(Answers, When::Bytes(2), Then::Set(Answers, Flow::Hold));
    send(&other_server, "four");
    receive(&other_client, "fo");
    assert_silent(&other_client);
    assert!(hold.has_fired());
    scene.proxy.heal();
    receive(&other_client, "ur");
}

#[test]
fn fault_at_a_chunk_comes_before_it_passes() {
    let scene = Scene::new();
    let (client, server) = scene.pair();
    let cut = scene.proxy.arm(Requests, When::Chunk(2), Then::Cut);
    send(&client, "first");
    receive(&server, "first");
    send(&client, "second");
    assert_reset(&server);
    assert!(cut.has_fired());
    assert_eq!(scene.proxy.traffic(Requests), Traffic { bytes: 5, chunks: 1 });
}

#[test]
fn fault_at_a_pattern_loses_the_answer_to_one_request() {
    let scene = Scene::new();
    let (client, server) = scene.pair();
    // Its first bytes have come before it is armed.
    send(&client, "key");
    receive(&server, "key");
    let lost = scene.proxy.arm(
        Requests,
        When::Pattern(b"key-7".to_vec()),
        Then::Set(Answers, Flow::Drop),
    );
    let disarmed = scene.proxy.arm(Requests, When::Pattern(b"never".to_vec()), Then::Cut);
    for part in ["key-6", "ke", "y-7"] {
        assert!(!lost.has_fired());
        send(&client, part);
        receive(&server, part);
    }
    assert!(lost.has_fired());
    send(&server, "lost");
    assert_silent(&client);
    scene.proxy.heal();
    assert_reset(&client);
    let (client, server) = scene.pair();
    send(&client, "never");
    receive(&server, "never");
    assert!(!disarmed.has_fired());
}

#[test]
fn proxy_strands_a_request_that_arrives_late() {
    let scene = Scene::new();
    let (client, server) = scene.pair();
    send(&client, "first ");
    receive(&server, "first ");
    let stranded = scene.proxy.arm(Requests, When::Pattern(b"second".into()), Then::Strand);
    send(&client, "a second one");
    assert_reset(&client);
    assert!(stranded.has_fired());
    assert_eq!((scene.proxy.stranded(), scene.proxy.connections()), (12, 0));

    // Another connection overtakes it.
    let (later, other) = scene.pair();
    send(&later, "the second");
    receive(&other, "the second");
    assert_silent(&server);
    scene.proxy.heal();
    scene.proxy.deliver();
    receive(&server, "a second one");
    assert_eq!(scene.proxy.stranded(), 0);
    // As a client that waits for its answer.
    assert_silent(&server);
}
