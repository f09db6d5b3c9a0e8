//! Rights, users and passwords that change while sessions are open.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tenure_core::url::StoreUrl;
use tenure_core::{ConnectOptions, Credentials, ErrorKind, LossReason, Namespace, SessionOptions};
use tenure_redis::{RedisConfig, acl_rules};
use tenure_testbed::{RedisOptions, RedisServer};

use super::{Scene, TTL, open, others_go_on, refusal, soon};

/// A server with a scene of the user `app`.
async fn scene_of_a_user(ttl: Duration) -> (RedisServer, Scene) {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let rules = acl_rules(&Namespace::new("scene").unwrap());
    server
        .admin()
        .set_user("app", &format!("reset on >secret {rules}"))
        .unwrap();
    let url = server.url().replace("://", "://app:secret@");
    let scene = Scene::set(&url, server.admin(), ttl).await;
    (server, scene)
}

fn end_connections(server: &RedisServer) {
    server.admin().execute(&["CLIENT", "KILL", "USER", "app"]).unwrap();
}

/// Redis asks for the password when a connection begins, and not later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_password_changes_nothing_for_open_connections() {
    let (server, scene) = scene_of_a_user(TTL).await;
    server.admin().set_user("app", "resetpass >new").unwrap();
    scene.wait_renewed(&mut server.admin().connection().unwrap());
    let refused = open(&scene.url, TTL).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{}", refused.chain());
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_password_ends_everything_when_the_connections_end() {
    let (server, scene) = scene_of_a_user(Duration::from_secs(2)).await;
    let greatest = scene.greatest_token();
    server.admin().set_user("app", "resetpass >new").unwrap();
    end_connections(&server);
    let url = scene.url.replace("secret", "new");
    scene.ends_everything(LossReason::Refused).await;
    others_go_on(&url, greatest).await;
}

/// The old password is right again before the deadline: the clients ask again without a request of the application.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_password_that_returns_in_time_costs_nothing() {
    let (server, scene) = scene_of_a_user(2 * TTL).await;
    server.admin().set_user("app", "resetpass >new").unwrap();
    end_connections(&server);
    let refused = refusal(&scene.guest, "user or the password").await;
    assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{}", refused.chain());
    server.admin().set_user("app", "resetpass >secret").unwrap();
    scene.wait_renewed(&mut server.admin().connection().unwrap());
    scene.goes_on().await;
}

/// A function that returns the credentials returns those of the moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotated_password_costs_nothing() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    server.admin().set_user("app", "reset on >first ~* &* +@all").unwrap();
    let password = Arc::new(Mutex::new("first"));
    let now = Arc::clone(&password);
    let options = ConnectOptions::new().credentials_from(move || {
        let password = *now.lock();
        async move { Ok(Credentials::new("app", password)) }
    });
    let url = StoreUrl::parse(&server.url()).unwrap().with(options);
    let store = tenure_redis::connect(RedisConfig::from_url(url).unwrap())
        .await
        .unwrap();
    let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    let guard = session.lock("lock").await.unwrap();
    server.admin().set_user("app", "resetpass >second").unwrap();
    *password.lock() = "second";
    end_connections(&server);
    let other = soon("a lock under the new password", session.lock("other"))
        .await
        .unwrap();
    assert_eq!(guard.loss(), None);
    other.release().await.unwrap();
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_are_taken_away_end_everything_at_the_deadline() {
    let (server, scene) = scene_of_a_user(Duration::from_secs(2)).await;
    let (url, greatest) = (scene.url.clone(), scene.greatest_token());
    server.admin().set_user("app", "-zadd").unwrap();
    let refused = scene.guest.try_lock("free").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{}", refused.chain());
    scene.ends_everything(LossReason::Refused).await;
    server.admin().set_user("app", "+zadd").unwrap();
    others_go_on(&url, greatest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_return_in_time_cost_nothing() {
    let (server, scene) = scene_of_a_user(2 * TTL).await;
    server.admin().set_user("app", "-evalsha").unwrap();
    let refused = scene.guest.try_lock("free").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{}", refused.chain());
    server.admin().set_user("app", "+evalsha").unwrap();
    scene.wait_renewed(&mut server.admin().connection().unwrap());
    scene.goes_on().await;
}

/// Redis ends the connections of a user that it removes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_user_loses_everything() {
    let (server, scene) = scene_of_a_user(Duration::from_secs(2)).await;
    let greatest = scene.greatest_token();
    server.admin().execute(&["ACL", "DELUSER", "app"]).unwrap();
    scene.ends_everything(LossReason::Refused).await;
    others_go_on(&format!("{}?namespace=scene", server.url()), greatest).await;
}
