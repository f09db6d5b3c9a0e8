//! Locks whose names are keys.

use tenure_core::{ErrorKind, SessionOptions};
use tenure_redis::connect;
use tenure_testbed::{RedisOptions, RedisServer};

use crate::connection::config;

/// Such a lock would be a key of a namespace itself, and end its commits or its tokens.
#[tokio::test]
async fn names_of_keys_of_a_namespace_are_refused() {
    let server = RedisServer::start(RedisOptions::default().without_persistence()).unwrap();
    let store = connect(config(&format!("{}?interop=true", server.url())))
        .await
        .unwrap();
    let session = store.open(SessionOptions::new()).await.unwrap();
    for name in [
        "{tenure/default}/2/revision",
        "{tenure/default}/2/",
        "{tenure/another}/layout",
    ] {
        let refused = session.try_lock(name).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidName, "{name}: {}", refused.chain());
        let refused = session.lock(name).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidName, "{name}: {}", refused.chain());
    }
    // A cluster needs the hash tag in the names.
    for name in ["{tenure/default}orders", "orders{tenure/default}/x"] {
        session.lock(name).await.unwrap().release().await.unwrap();
    }
    assert_eq!(server.admin().keys("*/interop/*").unwrap(), Vec::<String>::new());
}
