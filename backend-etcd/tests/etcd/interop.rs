//! One lock for tenure, `etcdctl` and Go.

use tenure_core::{ErrorKind, NameIsolation, TokenOrder};
use tenure_testbed::{Process, Signal};

use crate::common::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_shared_with_etcdctl() {
    let bed = Bed::new("interop").await;
    let name = format!("{}/shared", bed.namespace);
    let store = connect(bed.config().interop(true)).await;
    assert!(
        bed.keys().await.is_empty(),
        "nothing of ours in their layout"
    );
    let session = open(&store, secs(20)).await;
    let lock = session.locker(&name).unwrap();
    let etcdctl = || Process::spawn(shared().etcdctl(&["lock", name.as_str()]).unwrap()).unwrap();

    // They hold, we wait.
    let mut theirs = etcdctl();
    let key = theirs.expect_line_async(&name, SOON).await.unwrap();
    assert_eq!(
        lock.try_lock().await.unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.lock().await }
    });
    let line = async || {
        let options = etcd_client::GetOptions::new().with_prefix();
        let mut kv = bed.raw.kv_client();
        let found = kv.get(format!("{name}/"), Some(options)).await;
        found.unwrap().count()
    };
    eventually("we stand behind", SOON, async || line().await == 2).await;
    assert!(!waiting.is_finished());
    theirs.signal(Signal::INT).unwrap(); // etcdctl lets go and ends
    let guard = within(SOON, "our turn", waiting).await.unwrap().unwrap();
    assert_eq!(guard.key(), format!("{name}/{}", session.id()));
    assert_ne!(guard.key(), key.trim());

    // We hold, they wait; and one more of ours behind them.
    let mut theirs = etcdctl();
    eventually("they stand behind", SOON, async || line().await == 2).await;
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.lock().await }
    });
    eventually("and so do we", SOON, async || line().await == 3).await;
    assert!(theirs.try_line().is_none());
    guard.release().await.unwrap();
    theirs.expect_line_async(&name, SOON).await.unwrap();
    assert!(!waiting.is_finished());
    theirs.signal(Signal::INT).unwrap();
    let guard = within(SOON, "our turn", waiting).await.unwrap().unwrap();
    guard.release().await.unwrap();
    eventually("nothing left", SOON, async || line().await == 0).await;

    let guarantees = store.guarantees().await.unwrap();
    assert_eq!(guarantees.token_order.value, TokenOrder::None);
    assert_eq!(guarantees.name_isolation.value, NameIsolation::Verbatim);
}
