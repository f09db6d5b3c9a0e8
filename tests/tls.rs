//! A URL that asks for TLS never gets plain text.
#![cfg(any(feature = "etcd", feature = "redis"))]
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use std::io::Read as _;
use std::net::TcpListener;
use std::time::Duration;

/// The first byte of a TLS handshake.
const HANDSHAKE: u8 = 0x16;

/// What a client of this URL's scheme says first, to a server that says nothing; `None` if it never
/// connects, and an empty text if it connects and says nothing.
fn first_words(scheme: &str, path: &str) -> Option<Vec<u8>> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("{scheme}://{}{path}", listener.local_addr().unwrap());
    let listening = std::thread::spawn(move || {
        listener.set_nonblocking(true).unwrap();
        for _ in 0..300 {
            if let Ok((mut client, _)) = listener.accept() {
                client.set_nonblocking(false).unwrap();
                let timeout = Some(Duration::from_secs(3));
                client.set_read_timeout(timeout).unwrap();
                let mut words = vec![0; 64];
                let read = client.read(&mut words).unwrap_or(0);
                words.truncate(read);
                return Some(words);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let connected = runtime.block_on(async {
        let connect = async { tenure::connect(url).await?.guarantees().await };
        tokio::time::timeout(Duration::from_secs(5), connect).await
    });
    assert!(!matches!(connected, Ok(Ok(_))), "nobody answered");
    listening.join().unwrap()
}

fn speaks_tls(scheme: &str, path: &str) {
    if let Some(words) = first_words(scheme, path) {
        let first = words.first();
        assert!(
            first.is_none_or(|&byte| byte == HANDSHAKE),
            "{scheme}: {:?}",
            String::from_utf8_lossy(&words)
        );
    }
}

#[test]
#[cfg(feature = "etcd")]
fn etcds_is_tls() {
    speaks_tls("etcds", "/ns");
    // The control: what the test sees of one that may speak plainly.
    let words = first_words("etcd", "/ns").unwrap();
    assert!(words.starts_with(b"PRI * HTTP/2.0"), "{words:?}");
}

#[test]
#[cfg(feature = "redis")]
fn rediss_is_tls() {
    for (scheme, path) in [
        ("rediss", ""),
        ("rediss+sentinel", "/service"),
        ("rediss+cluster", ""),
    ] {
        speaks_tls(scheme, path);
    }
    let words = first_words("redis", "").unwrap();
    assert!(words.starts_with(b"*"), "{words:?}");
}
