//! Requests of Redis that arrive late, or twice.

use std::net::TcpStream;

use tenure_testbed::{Proxy, RedisOptions, RedisServer, wait_until};

use crate::client::{assert_reset, connect, receive, send};

/// Counts how often a script ran, and sends its client a message.
const SCRIPT: &str = "redis.call('SPUBLISH', 'news', 'message') return redis.call('INCR', KEYS[1])";

fn request(words: &[&str]) -> String {
    let word = |word: &&str| format!("${}\r\n{word}\r\n", word.len());
    format!("*{}\r\n{}", words.len(), words.iter().map(word).collect::<String>())
}

fn run(operation: &str) -> String {
    request(&["EVAL", SCRIPT, "1", "count", operation])
}

/// A server behind a proxy, and a connection to it that has begun.
fn scene() -> (RedisServer, Proxy, TcpStream) {
    let server = RedisServer::start(
        RedisOptions::default()
            .user("app", "on >secret ~* &* +@all")
            .user("default", "off"),
    )
    .expect("a server");
    let proxy = Proxy::start(server.address()).expect("a proxy");
    let client = begin(&proxy);
    (server, proxy, client)
}

fn begin(proxy: &Proxy) -> TcpStream {
    let client = connect(proxy.address());
    send(&client, &request(&["AUTH", "app", "secret"]));
    receive(&client, "+OK\r\n");
    client
}

fn count(server: &RedisServer) -> u64 {
    let count: Option<u64> = server.admin().query(&["GET", "count"]).expect("a count");
    count.unwrap_or(0)
}

#[test]
fn kept_script_arrives_when_it_is_delivered() {
    let (server, proxy, client) = scene();
    proxy.keep_script(&["renew"]);
    send(&client, &request(&["PING"]));
    receive(&client, "+PONG\r\n");
    send(&client, &run("renew"));
    receive(&client, ":1\r\n");
    assert!(!proxy.has_kept());
    send(&client, &run("join"));
    assert_reset(&client);
    assert!(proxy.has_kept());
    let client = begin(&proxy);
    send(&client, &run("leave"));
    receive(&client, ":2\r\n");
    // With the password of the connection that was reset.
    proxy.deliver_kept().expect("delivered");
    assert_eq!(count(&server), 3);
    assert!(!proxy.has_kept());
    proxy.deliver_kept().expect("nothing");
    assert_eq!(count(&server), 3);
}

#[test]
fn repeated_script_is_answered_once_and_its_messages_arrive_twice() {
    let (server, proxy, client) = scene();
    proxy.repeat_scripts();
    send(&client, &request(&["PING"]));
    receive(&client, "+PONG\r\n");
    // In two pieces, with a request behind it.
    let requests = run("join") + &request(&["PING"]);
    let (begin, rest) = requests.split_at(20);
    send(&client, begin);
    wait_until("the first piece", || {
        Ok((proxy.traffic(tenure_testbed::Direction::Requests).chunks == 3).then_some(()))
    })
    .expect("passed on");
    send(&client, rest);
    receive(&client, ":2\r\n+PONG\r\n");
    // Redis 7 sends messages to a client whose answers are left out.
    send(&client, &request(&["HELLO", "3"]));
    let hello = "$6\r\nserver";
    receive(&client, "%7\r\n");
    receive(&client, hello);
    send(&client, &request(&["SSUBSCRIBE", "news"]));
    let mut seen = String::new();
    read_until(&client, &mut seen, "ssubscribe");
    seen.clear();
    send(&client, &run("join"));
    read_until(&client, &mut seen, ":4\r\n");
    assert_eq!(seen.matches("smessage").count(), 2, "{seen}");
    proxy.heal();
    send(&client, &run("join"));
    read_until(&client, &mut seen, ":5\r\n");
    assert_eq!(count(&server), 5);
}

fn read_until(mut client: &TcpStream, seen: &mut String, end: &str) {
    use std::io::Read as _;
    while !seen.contains(end) {
        let mut byte = [0; 512];
        let length = client.read(&mut byte).expect("bytes");
        assert!(length > 0, "the server hung up after {seen}");
        seen.push_str(&String::from_utf8_lossy(&byte[..length]));
    }
}
