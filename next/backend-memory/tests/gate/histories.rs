//! Random histories: a name has one writer or readers, tokens rise, no item is lost, and nothing is left.

use std::collections::{BTreeMap, BTreeSet};

use tenure_core::backend::{EntryState, Item, Joined, Mode, TakeLimit};
use tenure_core::{FencingToken, Kind, Namespace};
use tenure_memory::MemoryBackend;

use crate::support::{Client, TTL, name, pass};

fn of_its_own(store: &MemoryBackend, seed: u64) -> MemoryBackend {
    store.in_namespace(Namespace::new(seed.to_string()).unwrap())
}

/// A repeatable source of numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

rules! {
    random_history_of_locks_keeps_the_rules: [ReaderBesideWriter, WriterBesideReaders, DeadWaiterGranted, TokenRepeated];
    random_history_of_a_queue_loses_and_doubles_nothing: [ItemToTwo, WithdrawalLosesItems, AckIgnored];
}

async fn random_history_of_locks_keeps_the_rules(store: MemoryBackend) {
    for seed in 0..40 {
        let (store, mut dice) = (of_its_own(&store, seed), Dice(seed));
        let mut clients = vec![
            Client::open(&store).await,
            Client::open(&store).await,
            Client::open(&store).await,
        ];
        let mut last = FencingToken::new(0);
        // By nonce of each client: its request and whether it is a writer's.
        let mut open: Vec<BTreeMap<_, _>> = vec![BTreeMap::new(), BTreeMap::new(), BTreeMap::new()];
        for _ in 0..150 {
            let one = dice.below(3) as usize;
            let client = &clients[one];
            match dice.below(8) {
                0..=3 => {
                    let request = client.request(Kind::RwLock, ["a", "b"][dice.below(2) as usize]);
                    let mode = [Mode::Exclusive, Mode::Shared][dice.below(2) as usize];
                    client.join(&request, mode, dice.below(2) == 0).await;
                    open[one].insert(request.nonce(), (request, mode));
                }
                4..=5 => {
                    let pick = dice.below(10) as usize;
                    if let Some(nonce) = open[one].keys().nth(pick).copied()
                        && let Some((request, _)) = open[one].remove(&nonce)
                    {
                        client.withdraw(&request).await;
                    }
                }
                6 => pass(dice.below(4) as f64).await,
                _ if dice.below(4) == 0 => {
                    pass(TTL.as_secs_f64()).await;
                    (clients[one], open[one]) = (Client::open(&store).await, BTreeMap::new());
                }
                _ => {}
            }
            let mut holders: BTreeMap<String, Vec<Mode>> = BTreeMap::new();
            for (client, open) in clients.iter_mut().zip(&mut open) {
                if client.session.renew().await.is_err() {
                    (*client, *open) = (Client::open(&store).await, BTreeMap::new());
                }
                for entry in client.entries().await {
                    let (_, mode) = &open[&entry.nonce];
                    if let EntryState::Granted(grants) = entry.state {
                        last = last.max(grants[0].token);
                        holders.entry(entry.name.to_string()).or_default().push(*mode);
                    }
                }
            }
            for (name, modes) in holders {
                let alone = modes.len() == 1 || modes.iter().all(|mode| *mode == Mode::Shared);
                assert!(alone, "seed {seed}: {modes:?} hold {name}");
            }
        }
        for client in &clients {
            client.session.revoke().await.unwrap();
        }
        let footprint = store.footprint();
        assert_eq!(
            (footprint.sessions, footprint.entries, footprint.objects),
            (0, 0, 0),
            "seed {seed}"
        );
        let (_, grant) = Client::open(&store).await.lock("a").await;
        assert!(grant.token > last);
    }
}

async fn random_history_of_a_queue_loses_and_doubles_nothing(store: MemoryBackend) {
    for seed in 0..40 {
        let (store, mut dice) = (of_its_own(&store, seed), Dice(seed));
        let mut clients = vec![Client::open(&store).await, Client::open(&store).await];
        let (mut accepted, mut done) = (0_u64, BTreeSet::new());
        let mut open = [Vec::new(), Vec::new()];
        for _ in 0..150 {
            let one = dice.below(2) as usize;
            match dice.below(8) {
                0..=1 => {
                    accepted += 1;
                    clients[one].enqueue("q", &[Item::new(accepted.to_be_bytes())]).await;
                }
                2..=3 => {
                    let request = clients[one].request(Kind::Queue, "q");
                    let limit = TakeLimit::new(1 + dice.below(3) as usize);
                    clients[one]
                        .queue()
                        .take(&request, &limit, dice.below(2) == 0)
                        .await
                        .unwrap();
                    open[one].push(request);
                }
                4..=5 if !open[one].is_empty() => {
                    let pick = dice.below(open[one].len() as u64) as usize;
                    let request = open[one].swap_remove(pick);
                    let taken = clients[one].queue().take(&request, &TakeLimit::new(1), false).await;
                    let Ok(Joined::Granted(items)) = taken else {
                        continue;
                    };
                    match dice.below(2) {
                        0 => clients[one].queue().leave(&[request]).await.unwrap(),
                        _ => {
                            for item in items {
                                let claim = tenure_core::backend::Claim::new(request.clone(), item.token);
                                clients[one].ack(claim).await;
                                let number = u64::from_be_bytes((*item.value).try_into().unwrap());
                                assert!(done.insert(number), "seed {seed}: {number} was delivered after its end");
                            }
                        }
                    }
                }
                6 if dice.below(4) == 0 => {
                    clients[one].session.revoke().await.unwrap();
                    (clients[one], open[one]) = (Client::open(&store).await, Vec::new());
                }
                _ => {}
            }
            let mut with = BTreeSet::new();
            for client in &clients {
                for entry in client.entries().await {
                    if let EntryState::Granted(grants) = entry.state {
                        assert!(grants.into_iter().all(|grant| with.insert(grant.token)), "seed {seed}");
                    }
                }
            }
            let depth = clients[0].queue().depth(&name("q")).await.unwrap();
            assert_eq!(depth.in_flight, with.len() as u64, "seed {seed}");
            assert_eq!(depth.total() + done.len() as u64, accepted, "seed {seed}");
        }
    }
}
