//! The check of the keys, and the harness of a server that others use too.

use std::time::Duration;

use tenure_conformance::{Harness, Need};
use tenure_core::{ErrorKind, Namespace, SessionOptions, Store};
use tenure_redis::{RedisBackend, RedisHarness, check_keys};
use tenure_testbed::{shared_redis, unique_name, wait_until};

use super::connection::config;

/// Executes a command, `{}` standing for the root of the namespace, and returns its answer as text.
fn redis(root: &str, command: &str) -> String {
    let words: Vec<_> = command.split(' ').map(|word| word.replace("{}", root)).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let answer: Vec<String> = match words[0] {
        "ZRANGE" | "HKEYS" => shared_redis().unwrap().admin().query(&words).unwrap(),
        _ => vec![shared_redis().unwrap().admin().query(&words).unwrap()],
    };
    answer.into_iter().next().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn keys_agree_while_all_is_held_and_waited_for_and_each_contradiction_is_found() {
    let namespace = Namespace::new(unique_name("keys")).unwrap();
    let root = format!("{{tenure/{namespace}}}/2/");
    let shared = shared_redis().unwrap();
    let backend = RedisBackend::connect(config(shared.url()).namespace(namespace))
        .await
        .unwrap();
    let store = Store::new(backend.clone());
    let open = || store.open(SessionOptions::new().ttl(Duration::from_secs(600)));
    let (a, b) = (open().await.unwrap(), open().await.unwrap());

    let _held = (
        a.lock("l").await.unwrap(),
        a.write_lock("r").await.unwrap(),
        a.election("e").campaign("me").await.unwrap(),
        a.barrier("b").hold().await.unwrap(),
    );
    a.barrier("closed").close().await.unwrap();
    a.stm().put("k", "v").await.unwrap();
    a.queue("q").enqueue_many(["one", "two"]).await.unwrap();
    let _delivery = a.queue("q").dequeue().await.unwrap();
    let waiting = tokio::spawn({
        let b = b.clone();
        async move {
            let (election, queue, double) = (b.election("e"), b.queue("empty"), b.double_barrier("d", 2));
            let _ = tokio::join!(
                b.lock("l"),
                b.read_lock("r"),
                election.campaign("too"),
                queue.dequeue(),
                double.enter(),
            );
        }
    });
    wait_until("five that wait", || {
        let index = format!("{root}held/{}", b.id());
        let waiting: u64 = shared.admin().query(&["HLEN", &index])?;
        Ok((waiting == 5).then_some(()))
    })
    .unwrap();
    assert_eq!(check_keys(&backend).await.unwrap(), Vec::<String>::new());

    let (a, b) = (a.id(), b.id());
    let take = |key: &str| redis(&root, &format!("ZRANGE {{}}{key} 0 0"));
    let contradictions = [
        (
            format!("ZREM {{}}lock/l/holders {}", take("lock/l/holders")),
            "in an index, in no object: lock/l",
        ),
        (format!("ZREM {{}}lock/l/waiters {}", take("lock/l/waiters")), ":x -"),
        (
            format!("ZADD {{}}rw_lock/r/holders 5 {}", take("rw_lock/r/holders")),
            "in an object, in no index: rw_lock/r",
        ),
        (
            "DEL {}election/e/values".into(),
            "a candidate without a value: election/e",
        ),
        (
            "HSET {}election/z/values a:1 v".into(),
            "a value without a candidate: election/z a:1",
        ),
        (
            format!("HDEL {{}}held/{a} barrier/b"),
            "in an object, in no index: barrier/b",
        ),
        ("SET {}data/k nonsense".into(), "data/k has no owner"),
        (
            format!("ZREM {{}}queue/q/ready {}", take("queue/q/ready")),
            "do not agree with places",
        ),
        ("DEL {}queue/q/items".into(), "do not agree with items"),
        ("DEL {}queue/q/claims".into(), "in an index, in no object: queue/q"),
        (
            "ZADD {}queue/y/ready 0 place".into(),
            "queue/y/ready is there without values",
        ),
        (
            "DEL {}queue/empty/consumers".into(),
            "queue/empty/wants is there without consumers",
        ),
        (format!("ZREM {{}}deadlines s/{a}"), "is never swept"),
        (format!("DEL {{}}session/{b}"), "belongs to no session"),
        ("SET {}stray x".into(), "stray is of no known kind"),
        (
            "ZADD {}lock/x/others 1 a:1:x".into(),
            "lock/x/others is no key of a wait queue",
        ),
    ];
    for (command, expected) in contradictions {
        let before = check_keys(&backend).await.unwrap();
        assert!(
            !before.iter().any(|found| found.contains(expected)),
            "{expected}: {before:#?}"
        );
        redis(&root, &command);
        let found = check_keys(&backend).await.unwrap();
        assert!(
            found.iter().any(|found| found.contains(expected)),
            "{command}: {found:#?}"
        );
    }
    waiting.abort();
}

#[tokio::test]
async fn harness_of_a_server_in_use_touches_its_namespaces_alone_and_removes_them() {
    let shared = shared_redis().unwrap();
    let harness = RedisHarness::on(config(shared.url())).unwrap();
    assert!(
        !harness.offers().iter().any(|need| need.wants_own_store()),
        "{:?}",
        harness.offers()
    );
    assert!(harness.offers().contains(&Need::Silence));
    let operator = harness.operator().unwrap();
    for refused in [
        operator.restart().await,
        operator.pause().await,
        operator.disturb().await,
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    }

    let (one, other) = (harness.connect().await.unwrap(), harness.elsewhere().await.unwrap());
    let name = unique_name("stays");
    for store in [one, other] {
        let session = store.open(SessionOptions::new()).await.unwrap();
        session.barrier(&name).close().await.unwrap();
        session.close().await.unwrap();
    }
    let barriers = || shared.admin().keys(&format!("*/barrier/{name}")).unwrap();
    let there = barriers();
    assert_eq!(there.len(), 2, "{there:?}");
    harness.clean_up().await.unwrap();
    assert_eq!(barriers(), Vec::<String>::new());
    for key in there {
        let (namespace, _) = key.split_once("}/").unwrap();
        let left = shared.admin().keys(&format!("{namespace}}}/*")).unwrap();
        assert_eq!(left, Vec::<String>::new());
    }
}
