//! Options of sessions and connections, and sources of credentials.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tenure_core::backend::DEFAULT_TTL;
use tenure_core::url::StoreUrl;
use tenure_core::{ConnectOptions, CredentialSource, Credentials, Error, ErrorKind, SessionOptions, Store};

use crate::stm_store::StmStore;

const LONG: Duration = Duration::from_secs(60);

fn source<C>(function: impl Fn(u32) -> C + Send + Sync + 'static) -> CredentialSource
where
    C: Future<Output = tenure_core::Result<Credentials>> + Send + 'static,
{
    let calls = AtomicU32::new(0);
    let options = ConnectOptions::new().credentials_from(move || function(calls.fetch_add(1, Ordering::SeqCst)));
    StoreUrl::parse("etcd://user:old@h:1")
        .unwrap()
        .with(options)
        .take_credentials()
        .unwrap()
}

fn numbered(call: u32) -> Credentials {
    Credentials::new("app", call.to_string())
}

#[tokio::test(start_paused = true)]
async fn label_is_checked_when_the_session_opens() {
    let control = StmStore::new();
    let store = Store::new(control.clone());
    for good in ["", "billing"] {
        assert!(store.open(SessionOptions::new().label(good)).await.is_ok());
    }
    for bad in ["x".repeat(64), "a\nb".into()] {
        let error = store.open(SessionOptions::new().label(bad)).await.unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Config, Some("open")));
    }
    assert_eq!(control.calls("open"), 2);
}

#[tokio::test(start_paused = true)]
async fn session_asks_for_its_own_ttl_or_the_default() {
    let store = Store::new(StmStore::new());
    assert_eq!(store.open(SessionOptions::new()).await.unwrap().ttl(), DEFAULT_TTL);
    let long = store.open(SessionOptions::new().ttl(LONG)).await.unwrap();
    assert_eq!(long.ttl(), LONG);
}

#[test]
fn debug_text_has_no_password() {
    let options = ConnectOptions::new().credentials(Credentials::new("user", "canary"));
    let text = format!("{options:?}");
    assert!(text.contains("user") && !text.contains("canary"), "{text}");
}

#[tokio::test]
async fn slow_call_for_credentials_serves_the_next_attempt() {
    let (go, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let source = source(move |call| {
        let gate = Arc::clone(&gate);
        async move {
            // Blocks its thread, as a client for a vault may.
            gate.lock().unwrap().recv().unwrap();
            Ok(numbered(call))
        }
    });
    let late = source.credentials(Duration::from_millis(5)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Unavailable);
    go.send(()).unwrap();
    assert_eq!(source.credentials(LONG).await.unwrap(), numbered(0));
    go.send(()).unwrap();
    assert_eq!(source.credentials(LONG).await.unwrap(), numbered(1));
}

#[tokio::test]
async fn panic_or_error_of_the_call_ends_one_attempt() {
    let source = source(|call| {
        assert_ne!(call, 0, "on purpose");
        async move {
            match call {
                1 => Err(Error::new(ErrorKind::Unauthorized, "the vault is sealed")),
                _ => Ok(numbered(call)),
            }
        }
    });
    let panicked = source.credentials(LONG).await.unwrap_err();
    assert_eq!(panicked.kind(), ErrorKind::Unavailable);
    assert!(panicked.message().contains("panicked"));
    let failed = source.credentials(LONG).await.unwrap_err();
    assert_eq!((failed.kind(), failed.is_retryable()), (ErrorKind::Unauthorized, false));
    let text = failed.chain().to_string();
    assert!(text.contains("application") && text.contains("sealed"), "{text}");
    assert_eq!(source.credentials(LONG).await.unwrap(), numbered(2));
    assert_eq!(source.as_fixed(), None);
}
