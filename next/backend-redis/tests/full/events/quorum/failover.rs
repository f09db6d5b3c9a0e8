//! A replica that takes over, promoted by sentinels.

use std::time::{Duration, Instant};

use tenure_core::LossReason;
use tenure_testbed::{RedisOptions, RedisSentinels, wait_until};

use crate::events::{Guard, ROOT, Scene, TTL, open, soon};

async fn scene(ttl: Duration) -> (RedisSentinels, Scene) {
    let sentinels = RedisSentinels::start(RedisOptions::default()).unwrap();
    let scene = Scene::set(&sentinels.url(), sentinels.pair.primary.admin(), ttl).await;
    sentinels.pair.wait_in_sync().unwrap();
    (sentinels, scene)
}

fn fail_over(sentinels: &RedisSentinels) {
    let primary = &sentinels.pair.primary;
    primary.kill().unwrap();
    sentinels.wait_for_failover(primary.address()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_to_a_replica_that_has_everything_costs_nothing() {
    let (sentinels, scene) = scene(5 * TTL).await;
    fail_over(&sentinels);
    scene.wait_renewed(&mut sentinels.pair.replica.admin().connection().unwrap());
    scene.goes_on().await;
}

/// The writes that the replica had not received are lost, and their holders receive `Lost`. The others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_to_a_replica_that_lags_loses_only_the_newest_grants() {
    let (sentinels, mut scene) = scene(5 * TTL).await;
    sentinels.pair.stop_replication();
    let guest = scene.guest.clone();
    // Handed on: the replica has the former holder.
    scene.held.remove(0).end().await.unwrap();
    let handed_on = soon("the lock", scene.waits.remove(0)).await.unwrap().unwrap();
    let late = [
        handed_on,
        Guard::Lock(guest.lock("late").await.unwrap()),
        Guard::Write(guest.rw_lock("late").write().await.unwrap()),
        Guard::Read(guest.rw_lock("late-too").read().await.unwrap()),
        Guard::Leader(guest.election("late").campaign("late").await.unwrap()),
        Guard::Inside(guest.double_barrier("late", 1).enter().await.unwrap()),
        Guard::Item(guest.queue("stored").dequeue().await.unwrap()),
    ];
    guest.stm().put("key", "late").await.unwrap();
    guest.queue("late").enqueue("late").await.unwrap();
    let greatest = late.iter().map(|guard| guard.token()).max().unwrap();
    fail_over(&sentinels);
    for guard in &late {
        let reason = soon(guard.name().as_str(), guard.lost()).await;
        assert_eq!(reason, LossReason::Revoked, "{}", guard.name());
    }
    // The replica has a place in the wait queue of what was handed on, which ends with its guard.
    drop(late);
    assert_eq!(guest.loss(), None, "a session that the replica had");
    let next = open(&scene.url, TTL).await.unwrap();
    let again = [
        Guard::Lock(soon("the lock", next.lock("lock")).await.unwrap()),
        Guard::Lock(soon("the late lock", next.lock("late")).await.unwrap()),
        Guard::Write(soon("the late write lock", next.rw_lock("late").write()).await.unwrap()),
        Guard::Leader(
            soon("the late election", next.election("late").campaign(""))
                .await
                .unwrap(),
        ),
    ];
    for guard in again {
        assert!(guard.token() > greatest, "the tokens of {} do not rise", guard.name());
        guard.end().await.unwrap();
    }
    assert_eq!(next.queue("late").len().await.unwrap(), 0);
    // With the key and the item as they were.
    scene.goes_on().await;
}

/// Measured from the moment at which the new primary has tenure's connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewal_and_comparison_follow_a_failover_within_a_second_alone() {
    // The next renewal is due after 20 s.
    let (sentinels, scene) = scene(Duration::from_secs(60)).await;
    sentinels.pair.stop_replication();
    let late = scene.guest.lock("late").await.unwrap();
    let lost = late.lost();
    let lost = tokio::spawn(async move {
        lost.await;
        Instant::now()
    });
    let replica = sentinels.pair.replica.admin();
    let record = format!("{ROOT}session/{}", scene.guest.id());
    let before: u64 = replica.query(&["HGET", &record, "renewals"]).unwrap();
    fail_over(&sentinels);
    let (mut connected, mut renewed) = (None, None);
    // Sentinels end the connections of a server that they promote.
    let mut admin = replica.connection().unwrap();
    wait_until("a renewal on the new primary", || {
        if connected.is_none() {
            let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut admin).unwrap();
            connected = list.contains(" name=tenure ").then(Instant::now);
        }
        let renewals: u64 = redis::cmd("HGET")
            .arg(&record)
            .arg("renewals")
            .query(&mut admin)
            .unwrap();
        renewed = (renewals > before).then(Instant::now);
        Ok(renewed)
    })
    .unwrap();
    let connected = connected.unwrap();
    let renewed = renewed.unwrap().duration_since(connected);
    let lost = soon("the loss", lost)
        .await
        .unwrap()
        .saturating_duration_since(connected);
    println!("after a failover: renewed within {renewed:?}, the lost grant was reported within {lost:?}");
    assert!(
        renewed < Duration::from_secs(1),
        "renewed {renewed:?} after the connection"
    );
    assert!(lost < Duration::from_secs(1), "compared {lost:?} after the connection");
    assert_eq!(scene.guest.loss(), None);
}
