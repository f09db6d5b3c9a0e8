//! A full memory, under `maxmemory-policy noeviction`.

use std::time::Duration;

use tenure_core::{Effect, ErrorKind, Session};
use tenure_testbed::{Proxy, RedisOptions, RedisServer, wait_until};

use super::{Guard, ROOT, Scene, TTL, on_a_server, open, soon, spawn};

fn fill(server: &RedisServer) {
    server.admin().set_config("maxmemory", "1").unwrap();
}

fn free(server: &RedisServer) {
    server.admin().set_config("maxmemory", "0").unwrap();
}

fn wait_for_places(server: &RedisServer, queue: &str, places: u64) {
    wait_until("a place in a wait queue", || {
        let found: u64 = server.admin().query(&["ZCARD", &format!("{ROOT}{queue}/waiters")])?;
        Ok((found == places).then_some(()))
    })
    .unwrap();
}

/// Steps that take memory are refused at once: no retry alone helps.
async fn refuses_what_is_new(scene: &Scene) {
    scene.refuses_places_at_once("maxmemory").await;
    let guest = &scene.guest;
    let refusals = [
        soon("a lock", guest.lock("free")).await.map(drop),
        soon("an entry", guest.double_barrier("free", 1).enter())
            .await
            .map(drop),
        soon("an item", guest.queue("refused").enqueue("item")).await,
        soon("a key", guest.stm().put("refused", "value")).await.map(drop),
    ];
    for refused in refusals {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
        assert_eq!(error.effect(), Effect::None, "{}", error.chain());
        assert!(error.chain().to_string().contains("maxmemory"), "{}", error.chain());
    }
    assert_eq!(guest.stm().get("refused").await.unwrap(), None);
    assert_eq!(guest.queue("refused").len().await.unwrap(), 0);
}

/// Nothing that gives memory back is refused, and nothing that is held or waits is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_memory_refuses_what_is_new_and_nothing_that_ends() {
    let (server, mut scene) = on_a_server(RedisOptions::default(), TTL).await;
    let guest = scene.guest.clone();
    guest.queue("returned").enqueue("returned").await.unwrap();
    let returned = guest.queue("returned").dequeue().await.unwrap();
    let downgraded = guest.write_lock("downgraded").await.unwrap();
    let other = open(&scene.url, TTL).await.unwrap();
    let gives_up = other.clone();
    let waiting = tokio::spawn(async move { gives_up.lock("lock").await });
    wait_for_places(&server, "lock/lock", 2);

    fill(&server);
    scene.wait_renewed(&mut server.admin().connection().unwrap());
    scene.check_kept();
    refuses_what_is_new(&scene).await;
    assert!(soon("a deletion", guest.stm().delete("key")).await.unwrap());
    waiting.abort();
    wait_for_places(&server, "lock/lock", 1);
    soon("the end of a session", other.close()).await.unwrap();
    scene.hand_over().await;
    soon("a return", returned.nack()).await.unwrap();
    let again = soon("a take", guest.queue("returned").dequeue()).await.unwrap();
    soon("an acknowledgement", again.ack()).await.unwrap();
    let read = soon("a downgrade", downgraded.downgrade()).await.unwrap();
    read.release().await.unwrap();

    free(&server);
    guest.stm().put("key", "1").await.unwrap();
    scene.end_well().await;
}

/// The leases of a store go on over its next connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_end_while_the_memory_is_full_are_replaced() {
    let (server, scene) = on_a_server(RedisOptions::default(), 2 * TTL).await;
    fill(&server);
    for sort in ["normal", "pubsub"] {
        server.admin().execute(&["CLIENT", "KILL", "TYPE", sort]).unwrap();
    }
    scene.wait_renewed(&mut server.admin().connection().unwrap());
    scene.check_kept();
    refuses_what_is_new(&scene).await;
    free(&server);
    scene.goes_on().await;
}

/// A store over a network that goes silent.
async fn over_a_proxy(server: &RedisServer) -> (Proxy, Session) {
    let proxy = Proxy::start(server.address()).unwrap();
    let url = format!("redis://{}?namespace=scene", proxy.address());
    let session = open(&url, Duration::from_secs(2)).await.unwrap();
    (proxy, session)
}

fn wait_swept(server: &RedisServer, session: &Session) {
    let keys = ["session", "held"].map(|key| format!("{ROOT}{key}/{}", session.id()));
    wait_until("a dead session that is swept", || {
        let left: u64 = server.admin().query(&["EXISTS", &keys[0], &keys[1]])?;
        Ok((left == 0).then_some(()))
    })
    .unwrap();
}

/// The places of a dead session go to those that wait, and its memory is free, whether another session waits for it or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_die_while_the_memory_is_full_are_swept() {
    let (server, scene) = on_a_server(RedisOptions::default(), TTL).await;
    let ((first, alone), (second, watched)) = (over_a_proxy(&server).await, over_a_proxy(&server).await);
    scene.guest.queue("alone").enqueue("item").await.unwrap();
    let _item = alone.queue("alone").dequeue().await.unwrap();
    let held = watched.lock("watched").await.unwrap();
    let waiter = scene.waiter.clone();
    let waiting = spawn(async move { waiter.lock("watched").await.map(Guard::Lock) });
    wait_for_places(&server, "lock/watched", 1);

    fill(&server);
    first.silence();
    wait_swept(&server, &alone);
    second.silence();
    let next = soon("the lock of a dead session", waiting).await.unwrap().unwrap();
    assert!(next.token() > held.token());
    wait_swept(&server, &watched);
    let item = soon("the item of a dead session", scene.guest.queue("alone").dequeue())
        .await
        .unwrap();
    assert_eq!(item.deliveries(), 2);
    item.ack().await.unwrap();
    next.end().await.unwrap();
    free(&server);
    scene.goes_on().await;
}
