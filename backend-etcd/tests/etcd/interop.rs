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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_election_is_shared_with_etcdctl() {
    let bed = Bed::new("elect-interop").await;
    let name = format!("{}/shared", bed.namespace);
    let store = connect(bed.config().interop(true)).await;
    let session = open(&store, secs(20)).await;
    let election = session.election(&name).unwrap();
    let etcdctl = |arguments: &[&str]| {
        let arguments = [&["elect"], arguments].concat();
        Process::spawn(shared().etcdctl(&arguments).unwrap()).unwrap()
    };
    let leader = async || {
        let leader = election.leader().await.unwrap();
        leader.map(|leader| leader.text().into_owned())
    };
    let candidates = async || bed.list(format!("{name}/")).await.len();
    let campaign = |value: &'static str| {
        let election = election.clone();
        tokio::spawn(async move { election.campaign(value).await })
    };
    let mut observer = election.observe();
    let mut seen = async |expected: Option<&str>| {
        let next = within(SOON, "the next state", observer.next()).await;
        let next = next.unwrap().unwrap();
        assert_eq!(
            next.as_ref().map(|leader| leader.text()).as_deref(),
            expected
        );
    };
    seen(None).await;
    let mut listening = etcdctl(&["-l", &name]);

    // They lead, we stand behind.
    let mut theirs = etcdctl(&[&name, "their value"]);
    theirs.expect_line_async(&name, SOON).await.unwrap();
    theirs.expect_line_async("their value", SOON).await.unwrap();
    assert_eq!(leader().await.as_deref(), Some("their value"));
    seen(Some("their value")).await;
    listening
        .expect_line_async("their value", SOON)
        .await
        .unwrap();
    let refused = election.try_campaign("ours").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    let waiting = campaign("our value");
    eventually("we stand behind", SOON, async || candidates().await == 2).await;
    assert!(!waiting.is_finished());
    theirs.signal(Signal::INT).unwrap(); // etcdctl resigns and ends
    let lead = within(SOON, "our turn", waiting).await.unwrap().unwrap();
    seen(Some("our value")).await;
    let line = listening.expect_line_async(&name, SOON).await.unwrap();
    assert_eq!(line.trim(), lead.key());
    listening
        .expect_line_async("our value", SOON)
        .await
        .unwrap();
    lead.proclaim("our news").await.unwrap();
    listening.expect_line_async("our news", SOON).await.unwrap();
    seen(Some("our news")).await;

    // We lead, they stand behind; and one more of ours behind them.
    let mut theirs = etcdctl(&[&name, "their turn"]);
    eventually("they stand behind", SOON, async || candidates().await == 2).await;
    let waiting = campaign("the last");
    eventually("and so do we", SOON, async || candidates().await == 3).await;
    assert!(theirs.try_line().is_none());
    lead.resign().await.unwrap();
    theirs.expect_line_async("their turn", SOON).await.unwrap();
    listening
        .expect_line_async("their turn", SOON)
        .await
        .unwrap();
    assert_eq!(leader().await.as_deref(), Some("their turn"));
    seen(Some("their turn")).await;
    assert!(!waiting.is_finished());
    theirs.signal(Signal::INT).unwrap();
    let lead = within(SOON, "our turn", waiting).await.unwrap().unwrap();
    seen(Some("the last")).await;
    lead.resign().await.unwrap();
    seen(None).await;
    eventually("nothing left", SOON, async || candidates().await == 0).await;
    listening.signal(Signal::INT).unwrap();
}
