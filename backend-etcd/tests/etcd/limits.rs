//! What etcd cannot do, or not any more.

use std::time::Duration;

use etcd_client::PutOptions;
use tenure_core::{ErrorKind, SessionOptions};
use tenure_testbed::EtcdServer;

use crate::common::*;

#[tokio::test]
async fn a_short_ttl_is_rounded_up_and_reported() {
    let bed = Bed::new("ttl").await;
    let store = bed.store().await;
    for (asked, granted) in [(ms(100), 2), (secs(1), 2), (ms(2_100), 3), (secs(7), 7)] {
        let session = open(&store, asked).await;
        assert_eq!(session.ttl(), secs(granted), "asked for {asked:?}");
        assert!(session.remaining() <= session.ttl());
        session.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_ttl_beyond_the_greatest_is_refused() {
    let bed = Bed::new("max").await;
    let store = bed.store().await;
    let long = Duration::from_secs(9_000_000_000);
    let refused = store.open(SessionOptions::new().ttl(long + ms(1))).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Config);
    let session = open(&store, long).await;
    assert_eq!(session.ttl(), long);
    session.close().await.unwrap();
}

#[tokio::test]
async fn a_namespace_in_another_layout_is_refused() {
    let bed = Bed::new("layout").await;
    let key = format!("{}/layout", bed.root());
    bed.raw.kv_client().put(key, "2", None).await.unwrap();
    let refused = tenure_etcd::connect(bed.config()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(
        refused.chain().to_string().contains("layout 2"),
        "{refused}"
    );
}

/// Puts things beside ours until etcd takes no more.
async fn fill(bed: &Bed) {
    let block = vec![0_u8; 256 * 1024];
    // etcd compares the quota with the size after its last commit to disk, every 100 ms: how many
    // of these pass is a matter of speed.
    let fill = async {
        for block_number in 0_u64.. {
            let key = format!("fill/{}", block_number % 64);
            let put = bed
                .raw
                .kv_client()
                .put(key, block.clone(), None::<PutOptions>)
                .await;
            if let Err(refused) = put {
                return refused;
            }
        }
        unreachable!("the loop has no end")
    };
    let refused = within(secs(30), "a full store", fill).await;
    assert!(refused.to_string().contains("space exceeded"), "{refused}");
}

#[tokio::test]
async fn a_full_store_says_so_and_still_lets_go() {
    // Small, and not flushed: filled in a moment.
    let server = EtcdServer::builder()
        .arg(format!("--quota-backend-bytes={}", 2 * 1024 * 1024))
        .start_async()
        .await
        .unwrap();
    let bed = Bed::on(&server, "full").await;
    let session = bed.session(secs(20)).await;
    let waiter = bed.session(secs(20)).await;
    let guard = session.locker("held").unwrap().lock().await.unwrap();
    let waiting = tokio::spawn(async move {
        let guard = waiter.locker("held").unwrap().lock().await.unwrap();
        guard.release().await
    });
    bed.until_in_line("held", 2).await;
    fill(&bed).await;
    for attempt in 0..3 {
        let refused = session.locker("new").unwrap().try_lock().await;
        let refused = within(SOON, "an answer", async { refused })
            .await
            .unwrap_err();
        assert_eq!(
            refused.kind(),
            ErrorKind::Unavailable,
            "{attempt}: {refused}"
        );
        assert!(!refused.is_retryable());
        assert!(refused.chain().to_string().contains("NOSPACE"), "{refused}");
    }
    // A lock that waits must not try for ever either.
    let refused = within(SOON, "lock", session.locker("new").unwrap().lock()).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
    guard.release().await.unwrap();
    within(SOON, "the waiter's turn", waiting)
        .await
        .unwrap()
        .unwrap();
    // What was refused left nothing, and is no ghost in the session's books either: when there is
    // room again, the plain key is used.
    server.run_etcdctl(&["del", "--prefix", "fill/"]).unwrap();
    let revision = bed.raw.kv_client().get("x", None).await.unwrap();
    let revision = revision.header().unwrap().revision();
    server
        .run_etcdctl(&["compact", &revision.to_string()])
        .unwrap();
    server.run_etcdctl(&["defrag"]).unwrap();
    server.run_etcdctl(&["alarm", "disarm"]).unwrap();
    let guard = session.locker("new").unwrap().lock().await.unwrap();
    assert_eq!(
        guard.key(),
        format!("{}{}", bed.prefix("new"), session.id())
    );
}

/// etcd counts no put inside a transaction of a transaction, which is where items are that share
/// a request; and refuses all of a request, of which acknowledgements alone would pass.
#[tokio::test]
async fn a_full_store_refuses_items_and_takes_acknowledgements() {
    let server = EtcdServer::builder()
        .arg(format!("--quota-backend-bytes={}", 2 * 1024 * 1024))
        .start_async()
        .await
        .unwrap();
    let bed = Bed::on(&server, "full-queue").await;
    let queue = bed.session(secs(60)).await.queue("x").unwrap();
    let items = ["1", "2", "3", "4"].map(tenure_core::Item::from);
    queue.enqueue_many(items).await.unwrap();
    let deliveries = queue.dequeue_many(4).await.unwrap();
    assert_eq!(deliveries.len(), 4);
    fill(&bed).await;
    for (round, delivery) in deliveries.into_iter().enumerate() {
        let both = async { tokio::join!(delivery.ack(), queue.enqueue("more")) };
        let (acknowledged, accepted) = within(SOON, "answers", both).await;
        let refused = accepted.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{round}: {refused}");
        assert!(!refused.is_retryable());
        // The first one learned with the store's refusal that it is full.
        if round > 0 {
            acknowledged.unwrap();
        }
    }
    let depth = queue.depth().await.unwrap();
    assert_eq!(depth.ready + depth.delayed, 0, "{depth:?}");
    assert!(depth.in_flight <= 1, "{depth:?}");
}

/// A claim is a put, which a full store refuses; what deletes alone is let through.
#[tokio::test]
async fn a_full_store_delivers_nothing_and_can_be_purged() {
    let server = EtcdServer::builder()
        .arg(format!("--quota-backend-bytes={}", 2 * 1024 * 1024))
        .start_async()
        .await
        .unwrap();
    let bed = Bed::on(&server, "full-purge").await;
    let store = bed.store().await;
    let session = open(&store, secs(6)).await;
    let queue = session.queue("x").unwrap();
    let items = ["1", "2", "3", "4"].map(tenure_core::Item::from);
    queue.enqueue_many(items).await.unwrap();
    let lead = session.election("e").unwrap().campaign("me").await.unwrap();
    fill(&bed).await;
    let opening = store.open(tenure_core::SessionOptions::new());
    let refused = [
        within(SOON, "a dequeue", queue.dequeue()).await.err(),
        within(SOON, "a session", opening).await.err(),
        within(SOON, "a proclamation", lead.proclaim("full"))
            .await
            .err(),
        within(SOON, "a commit", session.stm().unwrap().put("k", "v"))
            .await
            .err(),
    ];
    for (what, refused) in refused.into_iter().enumerate() {
        let refused = refused.unwrap_or_else(|| panic!("{what} went through"));
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{what}: {refused}");
        assert!(!refused.is_retryable(), "{what}: {refused}");
    }
    assert_eq!(queue.depth().await.unwrap().ready, 4, "nothing is lost");
    let purged = within(SOON, "an end", queue.purge()).await.unwrap();
    assert_eq!(purged, 4);
    assert_eq!(queue.depth().await.unwrap().ready, 0);
    // Renewals go on: a whole TTL from now, which began before the store was full.
    let until = tokio::time::Instant::now() + session.ttl();
    tokio::time::sleep_until(until).await;
    assert!(lead.is_valid(), "{:?}", session.loss());
    lead.resign().await.unwrap();
    session.close().await.unwrap();
}
