//! Keys that an operator deletes, renames or overwrites by hand.

use tenure_core::{ErrorKind, Kind, LossReason, Session};
use tenure_testbed::{RedisOptions, RedisServer};

use super::super::backend;
use super::{Guard, ROOT, Scene, TTL, on_a_server, soon};

fn key(name: &str) -> String {
    format!("{ROOT}{name}")
}

fn delete(server: &RedisServer, names: &[&str]) {
    for name in names {
        let deleted: u64 = server.admin().query(&["DEL", &key(name)]).unwrap();
        assert_eq!(deleted, 1, "there is no {name}");
    }
}

/// Checks that the holder has lost everything, and only that: each waiter is granted then, and the item comes back. With
/// `at_once`, although the holder keeps its guards.
async fn only_the_holder_loses(mut scene: Scene, at_once: bool) {
    let guest: Session = scene.guest.clone();
    let mut waits = std::mem::take(&mut scene.waits).into_iter();
    for guard in std::mem::take(&mut scene.held) {
        let (name, token) = (guard.name().clone(), guard.token());
        assert_eq!(soon(name.as_str(), guard.lost()).await, LossReason::Revoked);
        let kept = if at_once { Some(guard) } else { drop_lost(guard).await };
        match waits.next() {
            Some(wait) => {
                let next = soon(name.as_str(), wait).await.unwrap().unwrap();
                assert!(next.token() > token, "the tokens of {name} do not rise");
                next.end().await.unwrap();
            }
            None => {
                if !at_once {
                    // Without the index, only the operator knows that it is in flight.
                    let operator = backend(&scene.url).await.unwrap();
                    assert!(operator.break_holding(Kind::Queue, &name, token).await.unwrap());
                }
                let item = soon("the item", guest.queue("taken").dequeue()).await.unwrap();
                assert_eq!((item.value(), item.deliveries()), (&b"taken"[..], 2));
                item.ack().await.unwrap();
            }
        }
        if let Some(guard) = kept {
            drop_lost(guard).await;
        }
    }
    let [first, second] = scene.inside;
    assert_eq!(soon("the participant", first.lost()).await, LossReason::Revoked);
    if !at_once {
        // Without the index, its place in a double barrier ends with the session.
        scene.holder.close().await.unwrap();
    }
    soon("the other participant", second.end()).await.unwrap();
    assert_eq!(scene.waiter.loss(), None);
    assert!(!scene.gate.is_finished() && !scene.empty.is_finished());
}

async fn drop_lost(guard: Guard) -> Option<Guard> {
    assert_eq!(guard.end().await.unwrap_err().kind(), ErrorKind::Lost);
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_session_loses_what_it_has_and_others_are_granted() {
    let (server, scene) = on_a_server(RedisOptions::default(), TTL).await;
    delete(&server, &[&format!("session/{}", scene.holder.id())]);
    only_the_holder_loses(scene, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
/// The holder knows of no end until it compares, and its guard frees the place.
async fn deleted_index_of_a_session_is_a_loss_of_what_it_named() {
    let (server, scene) = on_a_server(RedisOptions::default(), TTL).await;
    delete(&server, &[&format!("held/{}", scene.holder.id())]);
    only_the_holder_loses(scene, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_holders_are_lost_and_others_are_granted() {
    let (server, mut scene) = on_a_server(RedisOptions::default(), TTL).await;
    // That of the queue is another story, and the waiter is inside the double barrier too.
    delete(
        &server,
        &["lock/lock/holders", "rw_lock/rw/holders", "election/election/holders"],
    );
    let item = scene.held.pop().unwrap();
    let mut waits = std::mem::take(&mut scene.waits).into_iter();
    for guard in std::mem::take(&mut scene.held) {
        let (name, token) = (guard.name().clone(), guard.token());
        assert_eq!(soon(name.as_str(), guard.lost()).await, LossReason::Revoked);
        let next = soon(name.as_str(), waits.next().unwrap()).await.unwrap().unwrap();
        assert!(next.token() > token, "the tokens of {name} do not rise");
        next.end().await.unwrap();
    }
    scene.held.push(item);
    scene.hand_over().await;
    scene.end_well().await;
}

/// A name that is renamed is as good as deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renamed_holders_are_lost() {
    let (server, mut scene) = on_a_server(RedisOptions::default(), TTL).await;
    let admin = server.admin();
    admin
        .execute(&["RENAME", &key("lock/lock/holders"), &key("lock/lock/old")])
        .unwrap();
    let guard = scene.held.remove(0);
    assert_eq!(soon("the lock", guard.lost()).await, LossReason::Revoked);
    let next = soon("the lock", scene.waits.remove(0)).await.unwrap().unwrap();
    assert!(next.token() > guard.token());
    next.end().await.unwrap();
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_places_are_taken_again_by_those_that_wait() {
    let (server, scene) = on_a_server(RedisOptions::default(), TTL).await;
    delete(
        &server,
        &[
            "lock/lock/waiters",
            "rw_lock/rw/waiters",
            "election/election/waiters",
            "double_barrier/gate/waiters",
            "queue/empty/consumers",
        ],
    );
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn take_whose_want_is_deleted_is_served() {
    let (server, scene) = on_a_server(RedisOptions::default(), TTL).await;
    delete(&server, &["queue/empty/wants"]);
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_books_of_the_namespace_cost_nothing() {
    let (server, scene) = on_a_server(RedisOptions::default(), TTL).await;
    delete(&server, &["token", "deadlines", "revision"]);
    scene.wait_renewed(&mut server.admin().connection().unwrap());
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_of_another_type_is_foreign_and_its_holder_loses() {
    let (server, mut scene) = on_a_server(RedisOptions::default(), TTL).await;
    server
        .admin()
        .execute(&["SET", &key("lock/lock/holders"), "of others"])
        .unwrap();
    let guard: Guard = scene.held.remove(0);
    assert_eq!(soon("the lock", guard.lost()).await, LossReason::Revoked);
    let error = soon("the waiter", scene.waits.remove(0)).await.unwrap().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Foreign, "{}", error.chain());
    let error = scene.guest.try_lock("lock").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Foreign, "{}", error.chain());
    drop(guard);
    delete(&server, &["lock/lock/holders"]);
    let lock = soon("the lock", scene.guest.lock("lock")).await.unwrap();
    lock.release().await.unwrap();
    scene.goes_on().await;
}
