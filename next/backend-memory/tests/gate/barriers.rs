//! Double barriers.

use tenure_core::backend::{Departure, EndOutcome, Grant, Joined, Request};
use tenure_core::{ErrorKind, FencingToken, Kind, Result};
use tenure_memory::MemoryBackend;

use crate::support::{Client, kind, name, not_yet, pass, soon};

rules! {
    participants_enter_when_the_last_one_arrives: [EntersEarly];
    participants_leave_when_the_last_one_leaves: [LeavesEarly];
    one_too_many_is_refused: [OneTooMany];
    another_count_is_refused: [CountIgnored];
    participant_that_dies_before_it_entered_does_not_count: [DeadCount];
    participant_that_dies_inside_has_left: [];
    withdrawn_participant_does_not_count: [WithdrawalIgnored];
    barrier_can_be_used_again: [];
}

async fn try_enter(client: &Client, request: &Request, count: u32) -> Result<Joined> {
    client.barrier().enter(request, count.try_into().unwrap()).await
}

async fn arrive(client: &Client, count: u32) -> Request {
    let request = client.request(Kind::DoubleBarrier, "d");
    assert_eq!(try_enter(client, &request, count).await.unwrap(), Joined::Waiting);
    request
}

/// Enters as the last one.
async fn complete(client: &Client, count: u32) -> (Request, Grant) {
    let request = client.request(Kind::DoubleBarrier, "d");
    match try_enter(client, &request, count).await.unwrap() {
        Joined::Granted(grant) => (request, grant),
        joined => panic!("others are missing: {joined:?}"),
    }
}

async fn inside(client: &Client, request: &Request) -> Grant {
    soon(client.barrier().wait(request)).await.unwrap().unwrap()
}

async fn leave(client: &Client, request: &Request, token: FencingToken) -> EndOutcome {
    let departure = [Departure::release(request.clone(), token)];
    client.barrier().leave(client.marker(), &departure).await.unwrap()[0]
}

async fn all_left(client: &Client, token: FencingToken) {
    assert!(soon(client.barrier().all_left(&name("d"), token)).await.unwrap());
}

async fn participants_enter_when_the_last_one_arrives(store: MemoryBackend) {
    let (a, b, c) = (
        Client::open(&store).await,
        Client::open(&store).await,
        Client::open(&store).await,
    );
    let (one, two) = (arrive(&a, 3).await, arrive(&b, 3).await);
    not_yet(a.barrier().wait(&one)).await;
    let (_, third) = complete(&c, 3).await;
    let (first, second) = (inside(&a, &one).await, inside(&b, &two).await);
    assert!(first.token < second.token && second.token < third.token);
    assert_eq!(try_enter(&a, &one, 3).await.unwrap(), Joined::Granted(first));
}

async fn participants_leave_when_the_last_one_leaves(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let one = arrive(&a, 2).await;
    let (two, second) = complete(&b, 2).await;
    let first = inside(&a, &one).await;
    assert_eq!(
        leave(&a, &one, FencingToken::new(first.token.get() + 9)).await,
        EndOutcome::NotHeld
    );
    assert_eq!(leave(&a, &one, first.token).await, EndOutcome::Ended);
    not_yet(a.barrier().all_left(&name("d"), first.token)).await;
    assert_eq!(leave(&b, &two, second.token).await, EndOutcome::Ended);
    all_left(&a, first.token).await;
    all_left(&b, second.token).await;
    assert_eq!((store.footprint().objects, store.footprint().waiters), (0, 0));
}

async fn one_too_many_is_refused(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let one = arrive(&a, 2).await;
    complete(&b, 2).await;
    let late = b.request(Kind::DoubleBarrier, "d");
    assert_eq!(kind(try_enter(&b, &late, 2).await), ErrorKind::Conflict);
    let first = inside(&a, &one).await;
    leave(&a, &one, first.token).await;
    // The generation is not over yet.
    assert_eq!(kind(try_enter(&b, &late, 2).await), ErrorKind::Conflict);
    assert_eq!(b.entries().await.len(), 1);
}

async fn another_count_is_refused(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let one = arrive(&a, 3).await;
    let other = b.request(Kind::DoubleBarrier, "d");
    assert_eq!(kind(try_enter(&b, &other, 2).await), ErrorKind::Conflict);
    a.barrier()
        .leave(a.marker(), &[Departure::withdraw(one)])
        .await
        .unwrap();
    assert_eq!(try_enter(&b, &other, 2).await.unwrap(), Joined::Waiting);
}

async fn participant_that_dies_before_it_entered_does_not_count(store: MemoryBackend) {
    let dies = Client::open(&store).await;
    arrive(&dies, 2).await;
    pass(11.0).await;
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let one = arrive(&a, 2).await;
    complete(&b, 2).await;
    inside(&a, &one).await;
}

async fn participant_that_dies_inside_has_left(store: MemoryBackend) {
    let (dies, alive) = (Client::open(&store).await, Client::open(&store).await);
    arrive(&dies, 2).await;
    let (request, grant) = complete(&alive, 2).await;
    leave(&alive, &request, grant.token).await;
    let start = tokio::time::Instant::now();
    let live = async {
        loop {
            pass(3.0).await;
            alive.session.renew().await.unwrap();
        }
    };
    tokio::select! {
        () = all_left(&alive, grant.token) => assert_eq!(start.elapsed().as_secs(), 10),
        () = live => {}
    }
}

async fn withdrawn_participant_does_not_count(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let gives_up = arrive(&a, 2).await;
    let departure = [Departure::withdraw(gives_up.clone())];
    assert_eq!(
        a.barrier().leave(a.marker(), &departure).await.unwrap(),
        [EndOutcome::Ended]
    );
    arrive(&b, 2).await;
    assert_eq!(kind(a.barrier().wait(&gives_up).await), ErrorKind::Conflict);
}

async fn barrier_can_be_used_again(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let mut last = FencingToken::new(0);
    for _ in 0..3 {
        let one = arrive(&a, 2).await;
        // The end of an earlier generation is not the end of this one.
        all_left(&a, last).await;
        let (two, second) = complete(&b, 2).await;
        let first = inside(&a, &one).await;
        assert!(first.token > last);
        all_left(&a, last).await;
        leave(&a, &one, first.token).await;
        leave(&b, &two, second.token).await;
        all_left(&a, first.token).await;
        last = second.token;
    }
}
