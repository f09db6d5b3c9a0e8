//! Elections: values and observers.

use tenure_core::backend::{Joined, LeaderUpdate, Mode};
use tenure_core::{ErrorKind, Kind};
use tenure_memory::MemoryBackend;

use crate::support::{Client, kind, name, not_yet, soon};

rules! {
    value_arrives_with_the_grant_and_is_replaced: [ProclamationIgnored];
    late_proclamation_changes_nothing: [LateProclamationWins];
    proclamation_of_another_is_refused: [ProclaimUnfenced];
    observer_sees_each_leader_and_vacancy: [VacancyMissed];
    observer_never_goes_back: [ObserverGoesBack];
    observer_sees_the_death_of_the_leader: [];
    forgotten_election_keeps_its_order: [];
}

fn shown(update: &LeaderUpdate) -> Option<String> {
    update
        .leader
        .as_ref()
        .map(|leader| String::from_utf8(leader.value.to_vec()).unwrap())
}

async fn lead(client: &Client, value: &str) -> (tenure_core::backend::Request, tenure_core::backend::Grant) {
    let request = client.request(Kind::Election, "e");
    let joined = client
        .election()
        .join(&request, Mode::Exclusive, Some(value.as_bytes()), true)
        .await
        .unwrap();
    match joined {
        Joined::Granted(grant) => (request, grant),
        other => panic!("{other:?}"),
    }
}

async fn look(client: &Client, after: Option<u64>) -> LeaderUpdate {
    soon(client.election().observe(&name("e"), after)).await.unwrap()
}

async fn value_arrives_with_the_grant_and_is_replaced(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let (request, grant) = lead(&a, "1").await;
    let waits = b.request(Kind::Election, "e");
    b.election()
        .join(&waits, Mode::Exclusive, Some(b"waiting"), true)
        .await
        .unwrap();
    let first = look(&b, None).await;
    assert_eq!(
        (shown(&first).as_deref(), first.leader.as_ref().unwrap().token),
        (Some("1"), grant.token)
    );
    a.election().proclaim(&request, grant.token, 1, b"2").await.unwrap();
    let second = look(&b, Some(first.version)).await;
    assert_eq!(shown(&second).as_deref(), Some("2"));
    a.release(&request, grant.token).await;
    let third = look(&b, Some(second.version)).await;
    assert_eq!(shown(&third).as_deref(), Some("waiting"));
}

async fn late_proclamation_changes_nothing(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let (request, grant) = lead(&a, "0").await;
    for (number, value) in [(2, b"2"), (1, b"1"), (2, b"x")] {
        a.election()
            .proclaim(&request, grant.token, number, value)
            .await
            .unwrap();
    }
    assert_eq!(shown(&look(&a, None).await).as_deref(), Some("2"));
}

async fn proclamation_of_another_is_refused(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let (request, grant) = lead(&a, "a").await;
    let waits = b.queue_up(Kind::Election, "e", Mode::Exclusive).await;
    assert_eq!(
        kind(b.election().proclaim(&waits, grant.token, 9, b"b").await),
        ErrorKind::Lost
    );
    a.release(&request, grant.token).await;
    assert_eq!(
        kind(a.election().proclaim(&request, grant.token, 9, b"late").await),
        ErrorKind::Lost
    );
    assert_eq!(shown(&look(&b, None).await).as_deref(), Some(""));
}

async fn observer_sees_each_leader_and_vacancy(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let vacant = look(&b, None).await;
    assert_eq!(vacant.leader, None);
    not_yet(b.election().observe(&name("e"), Some(vacant.version))).await;
    let (request, grant) = lead(&a, "a").await;
    let led = look(&b, Some(vacant.version)).await;
    assert_eq!(shown(&led).as_deref(), Some("a"));
    let election = b.election();
    let waits = tokio::spawn(async move { election.observe(&name("e"), Some(led.version)).await });
    tokio::task::yield_now().await;
    a.release(&request, grant.token).await;
    let vacant = soon(waits).await.unwrap().unwrap();
    assert_eq!((vacant.leader, vacant.version > led.version), (None, true));
    assert_eq!(store.footprint().waiters, 0);
}

async fn observer_never_goes_back(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let (request, grant) = lead(&a, "0").await;
    let (mut version, mut last) = (None, String::new());
    for number in 1..9 {
        let value = number.to_string();
        a.election()
            .proclaim(&request, grant.token, number, value.as_bytes())
            .await
            .unwrap();
        let update = look(&a, version).await;
        assert!(version.is_none_or(|before| update.version > before));
        let value = shown(&update).unwrap();
        assert!(value > last, "{value} after {last}");
        (version, last) = (Some(update.version), value);
    }
}

async fn observer_sees_the_death_of_the_leader(store: MemoryBackend) {
    let a = Client::open(&store).await;
    lead(&a, "a").await;
    crate::support::pass(5.0).await;
    let b = Client::open(&store).await;
    let led = look(&b, None).await;
    let vacant = look(&b, Some(led.version)).await;
    assert_eq!(vacant.leader, None);
}

async fn forgotten_election_keeps_its_order(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let mut version = 0;
    for _ in 0..3 {
        let (request, grant) = lead(&a, "x").await;
        let led = look(&a, Some(version)).await;
        a.release(&request, grant.token).await;
        let vacant = look(&a, Some(led.version)).await;
        assert!(led.version > version && vacant.version > led.version);
        version = vacant.version;
        let (other, grant) = a.hold(Kind::Election, "other", Mode::Exclusive).await;
        a.release(&other, grant.token).await;
    }
    assert_eq!(store.footprint().objects, 0);
}
