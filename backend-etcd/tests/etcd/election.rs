//! Elections: who leads, what it says, and what others see of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, CompactionOptions};
use tenure_core::backend::{Kind, path};
use tenure_core::{ErrorKind, Leader, LossReason, Name};
use tenure_etcd::{EtcdConfig, EtcdElection};
use tenure_testbed::{Direction, EtcdServer, Flow, Proxy};
use tokio::task::JoinSet;

use crate::common::*;

type Observer = tenure_core::Observer<EtcdElection>;

impl Bed {
    fn election(&self, name: &str) -> String {
        let name = Name::new(name).unwrap();
        format!("{}/", path(&self.namespace, Kind::Election, &name))
    }

    async fn candidates(&self, name: &str) -> Vec<(String, i64)> {
        self.list(self.election(name)).await
    }

    async fn until_candidates(&self, name: &str, count: usize) {
        let what = format!("{count} candidates");
        eventually(&what, LATER, async || {
            self.candidates(name).await.len() == count
        })
        .await;
    }
}

/// The next state that an observer shows.
async fn next(observer: &mut Observer) -> Option<Leader> {
    let next = within(SOON, "the next state", observer.next()).await;
    next.expect("it goes on").unwrap()
}

async fn says(observer: &mut Observer) -> Option<String> {
    let leader = next(observer).await;
    leader.map(|leader| leader.text().into_owned())
}

/// Nothing more to see for now.
async fn nothing_new(observer: &mut Observer) {
    let next = tokio::time::timeout(ms(200), observer.next()).await;
    assert!(next.is_err(), "{next:?}");
}

#[tokio::test]
async fn candidates_lead_in_turn() {
    let bed = Bed::new("elect").await;
    let (a, b) = (bed.session(secs(60)).await, bed.session(secs(60)).await);
    let (ours, theirs) = (a.election("x").unwrap(), b.election("x").unwrap());
    assert_eq!(ours.leader().await.unwrap(), None);
    let first = ours.campaign("a").await.unwrap();
    let candidates = bed.candidates("x").await;
    assert_eq!(
        candidates,
        [(first.key().to_owned(), first.token().get() as i64)]
    );
    assert!(
        first
            .key()
            .starts_with(&format!("{}{}-", bed.election("x"), a.id()))
    );
    let refused = theirs.try_campaign("b").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    assert_eq!(bed.candidates("x").await.len(), 1);

    let waiting = tokio::spawn({
        let theirs = theirs.clone();
        async move { theirs.campaign("b").await }
    });
    bed.until_candidates("x", 2).await;
    first.proclaim("a, ready").await.unwrap();
    first.proclaim("a, busy").await.unwrap();
    let leader = theirs.leader().await.unwrap().unwrap();
    assert_eq!(
        (&*leader.text(), leader.token()),
        ("a, busy", first.token())
    );
    let token = first.token();
    let resigned = Instant::now();
    first.resign().await.unwrap();
    let second = within(SOON, "the hand-over", waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(
        resigned.elapsed() < secs(5),
        "no TTL of 60 s was waited for"
    );
    assert!(second.token() > token);
    let leader = ours.leader().await.unwrap().unwrap();
    assert_eq!((&*leader.text(), leader.token()), ("b", second.token()));
    drop(second);
    bed.until_candidates("x", 0).await;
    let again = ours.try_campaign("").await.unwrap();
    assert_eq!(ours.leader().await.unwrap().unwrap().value(), b"");
    a.close().await.unwrap();
    b.close().await.unwrap();
    drop(again);
    bed.until_empty(SOON).await;
}

#[tokio::test]
async fn two_candidates_of_one_session_are_two() {
    let bed = Bed::new("elect-two").await;
    let session = bed.session(secs(60)).await;
    let election = session.election("x").unwrap();
    let first = election.campaign("1").await.unwrap();
    let waiting = tokio::spawn({
        let election = election.clone();
        async move { election.campaign("2").await }
    });
    bed.until_candidates("x", 2).await;
    assert!(!waiting.is_finished());
    first.resign().await.unwrap();
    let second = within(SOON, "its turn", waiting).await.unwrap().unwrap();
    assert_eq!(&*election.leader().await.unwrap().unwrap().text(), "2");
    second.resign().await.unwrap();
}

#[tokio::test]
async fn values_are_anything_within_the_limit() {
    let bed = Bed::new("elect-values").await;
    let session = bed.session(secs(60)).await;
    let election = session.election("x").unwrap();
    let largest = vec![0xff_u8; tenure_core::MAX_VALUE_BYTES];
    let mut observer = election.observe();
    assert_eq!(says(&mut observer).await, None);
    let lead = election.campaign(&largest).await.unwrap();
    assert_eq!(next(&mut observer).await.unwrap().value(), largest);
    lead.proclaim(b"\0").await.unwrap();
    assert_eq!(next(&mut observer).await.unwrap().value(), b"\0");
    lead.proclaim(&largest).await.unwrap();
    assert_eq!(election.leader().await.unwrap().unwrap().value(), largest);
    let more = [&largest[..], b"!"].concat();
    for refused in [
        lead.proclaim(&more).await.unwrap_err(),
        election.campaign(&more).await.unwrap_err(),
        election.try_campaign(&more).await.unwrap_err(),
    ] {
        assert_eq!(refused.kind(), ErrorKind::TooLarge);
    }
    assert!(lead.is_valid());
    lead.resign().await.unwrap();
}

#[tokio::test]
async fn an_observer_sees_what_changes() {
    let bed = Bed::new("observe").await;
    let (a, b, c) = (
        bed.session(secs(60)).await,
        bed.session(secs(60)).await,
        bed.session(secs(60)).await,
    );
    let watching = c.election("x").unwrap();
    let mut observer = watching.observe();
    assert_eq!(says(&mut observer).await, None);
    let first = a.election("x").unwrap().campaign("a").await.unwrap();
    assert_eq!(next(&mut observer).await.unwrap().token(), first.token());
    // A candidate that comes, and goes again, changes nothing.
    let waiting = tokio::spawn({
        let election = b.election("x").unwrap();
        async move { election.campaign("b").await }
    });
    bed.until_candidates("x", 2).await;
    nothing_new(&mut observer).await;
    first.proclaim("a2").await.unwrap();
    assert_eq!(says(&mut observer).await.unwrap(), "a2");
    first.proclaim("a2").await.unwrap();
    nothing_new(&mut observer).await;
    let late = watching.observe();
    first.resign().await.unwrap();
    let second = within(SOON, "b", waiting).await.unwrap().unwrap();
    assert_eq!(says(&mut observer).await.unwrap(), "b");
    second.resign().await.unwrap();
    assert_eq!(says(&mut observer).await, None);
    // One that starts late starts with the present.
    let mut late = late;
    assert_eq!(says(&mut late).await, None);
    // The same value, led by another, is another state.
    let third = b.election("x").unwrap().campaign("b").await.unwrap();
    assert_eq!(next(&mut observer).await.unwrap().token(), third.token());
    // The end of a session shows, too.
    b.close().await.unwrap();
    assert_eq!(says(&mut observer).await, None);
    c.close().await.unwrap();
    assert!(within(SOON, "the end", observer.next()).await.is_none());
}

/// How the observer is cut off.
#[derive(Clone, Copy, Debug)]
enum CutOff {
    Refused,
    Silent,
    Held,
}

async fn outlives(cut_off: CutOff) {
    let bed = Bed::new("cut").await;
    let proxy = Proxy::start(bed.address).unwrap();
    let store = connect(bed.through(proxy.address())).await;
    // A lease that ends meanwhile is no hindrance.
    let session = open(&store, secs(3)).await;
    let mut observer = session.election("x").unwrap().observe();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let first = bed.session(secs(60)).await;
    let leading = first.election("x").unwrap().campaign("0").await.unwrap();
    let observing = tokio::spawn({
        let seen = Arc::clone(&seen);
        async move {
            while let Some(state) = observer.next().await {
                let state = state.unwrap();
                seen.lock().unwrap().push((Instant::now(), state));
            }
        }
    });
    let shows = |value: &str| {
        let seen = seen.lock().unwrap();
        let last = seen.last().and_then(|(_, state)| state.as_ref());
        last.is_some_and(|leader| leader.text() == value)
    };
    eventually("the first", SOON, async || shows("0")).await;
    leading.proclaim("0, standing").await.unwrap();
    eventually("the first", SOON, async || shows("0, standing")).await;

    match cut_off {
        CutOff::Refused => {
            proxy.refuse(true);
            proxy.cut();
        }
        CutOff::Silent => proxy.silence(),
        CutOff::Held => proxy.set_both(Flow::Hold),
    }
    let mut leading = leading;
    for number in 1..=5 {
        let next = bed.session(secs(60)).await;
        let waiting = tokio::spawn(async move {
            let election = next.election("x").unwrap();
            (election.campaign(number.to_string()).await, next)
        });
        bed.until_candidates("x", 2).await;
        leading.resign().await.unwrap();
        let (next, session) = within(SOON, "its turn", waiting).await.unwrap();
        leading = next.unwrap();
        leading
            .proclaim(format!("{number}, settled"))
            .await
            .unwrap();
        // The sessions live on with their guards.
        drop(session);
        tokio::time::sleep(ms(300)).await;
    }
    // Long enough for whatever gives up to have given up.
    tokio::time::sleep(secs(3)).await;
    assert!(shows("0, standing"), "{cut_off:?}: not cut off");
    proxy.heal();
    let healed = Instant::now();
    eventually("the last", LATER, async || shows("5, settled")).await;
    let took = seen.lock().unwrap().last().unwrap().0 - healed;
    println!("{cut_off:?}: the last state {took:?} after the network's return");
    assert!(took < secs(2), "{cut_off:?}: {took:?}");
    leading.proclaim("more").await.unwrap();
    eventually("what follows", SOON, async || shows("more")).await;
    observing.abort();
    let seen = seen.lock().unwrap();
    let tokens: Vec<_> = seen
        .iter()
        .filter_map(|(_, state)| Some(state.as_ref()?.token()))
        .collect();
    assert!(tokens.is_sorted(), "{cut_off:?}: back: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_that_was_cut_off_sees_the_last_state() {
    tokio::join!(
        outlives(CutOff::Refused),
        outlives(CutOff::Silent),
        outlives(CutOff::Held),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_hides_nothing_from_an_observer() {
    let server = EtcdServer::start_async().await.unwrap();
    let bed = Bed::on(&server, "compact").await;
    let proxy = Proxy::start(bed.address).unwrap();
    let store = connect(bed.through(proxy.address())).await;
    let session = open(&store, secs(60)).await;
    let mut observer = session.election("x").unwrap().observe();
    let other = bed.session(secs(60)).await;
    let election = other.election("x").unwrap();
    let compact = async || {
        let mut raw = bed.raw.clone();
        let answer = raw.put("elsewhere", "", None).await.unwrap();
        let revision = answer.header().unwrap().revision();
        let physical = CompactionOptions::new().with_physical();
        raw.compact(revision, Some(physical)).await.unwrap();
    };
    assert_eq!(says(&mut observer).await, None);
    for round in 0..5 {
        let lead = election.campaign(format!("{round}")).await.unwrap();
        assert_eq!(says(&mut observer).await.unwrap(), format!("{round}"));
        // While it watches...
        compact().await;
        nothing_new(&mut observer).await;
        lead.proclaim(format!("{round}, compacted")).await.unwrap();
        let seen = says(&mut observer).await.unwrap();
        assert_eq!(seen, format!("{round}, compacted"));
        // ...and while it is away, so that what it missed is not there any more.
        proxy.set(Direction::Down, Flow::Hold);
        if round % 2 == 0 {
            proxy.refuse(true);
            proxy.cut();
        }
        lead.proclaim("missed").await.unwrap();
        lead.resign().await.unwrap();
        compact().await;
        proxy.heal();
        loop {
            match says(&mut observer).await {
                None => break,
                Some(missed) => assert_eq!(missed, "missed"),
            }
        }
    }
}

/// Leaders come and go as fast as they can; observers never go back, and end up at the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn observers_of_a_turmoil_never_go_back() {
    let bed = Bed::new("turmoil").await;
    let mut observers = JoinSet::new();
    for _ in 0..4 {
        let session = bed.session(secs(60)).await;
        observers.spawn(async move {
            let mut observer = session.election("x").unwrap().observe();
            let mut last = None;
            let mut seen = 0;
            loop {
                let Some(leader) = next(&mut observer).await else {
                    continue;
                };
                let state = (leader.token(), leader.text().parse::<u64>().unwrap());
                assert!(Some(state) > last, "{state:?} after {last:?}");
                (last, seen) = (Some(state), seen + 1);
                if state.1 == 1_000 {
                    return seen;
                }
            }
        });
    }
    let mut leaders = JoinSet::new();
    for _ in 0..4 {
        let session = bed.session(secs(60)).await;
        leaders.spawn(async move {
            for _ in 0..25 {
                let election = session.election("x").unwrap();
                let lead = election.campaign("0").await.unwrap();
                for number in 1..4 {
                    lead.proclaim(number.to_string()).await.unwrap();
                }
                lead.resign().await.unwrap();
            }
            session.close().await.unwrap();
        });
    }
    within(LATER, "the leaders", leaders.join_all()).await;
    let session = bed.session(secs(60)).await;
    let last = session.election("x").unwrap().campaign("1000").await;
    let seen = within(SOON, "the observers", observers.join_all()).await;
    println!("{seen:?} states seen of 401");
    last.unwrap().resign().await.unwrap();
}

#[tokio::test]
async fn a_deposed_leader_changes_nothing() {
    let bed = Bed::new("deposed").await;
    for by_key in [false, true] {
        let (a, b) = (bed.session(secs(60)).await, bed.session(secs(60)).await);
        let deposed = a.election("x").unwrap().campaign("a").await.unwrap();
        let gone = a.election("x").unwrap();
        let waiting = tokio::spawn({
            let election = b.election("x").unwrap();
            async move { election.campaign("b").await }
        });
        bed.until_candidates("x", 2).await;
        // Nobody told the deposed yet: the store must refuse it.
        if by_key {
            bed.delete(deposed.key()).await;
        } else {
            bed.revoke(&a).await;
        }
        let second = within(SOON, "the second", waiting).await.unwrap().unwrap();
        let before = bed.raw.kv_client().get(second.key(), None).await.unwrap();
        let refused = deposed.proclaim("a again").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Lost, "{refused}");
        assert_eq!(refused.operation(), Some("proclaim"));
        let refused = deposed.resign().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Lost, "{refused}");
        assert_eq!(refused.operation(), Some("resign"));
        let after = bed.raw.kv_client().get(second.key(), None).await.unwrap();
        let told = |kvs: &[etcd_client::KeyValue]| (kvs[0].value().to_vec(), kvs[0].mod_revision());
        assert_eq!(told(before.kvs()), told(after.kvs()));
        assert_eq!(bed.candidates("x").await.len(), 1);
        second.proclaim("b again").await.unwrap();
        let leader = b.election("x").unwrap().leader().await.unwrap().unwrap();
        assert_eq!(&*leader.text(), "b again");
        second.resign().await.unwrap();
        drop(gone);
    }
}

#[tokio::test]
async fn a_candidate_whose_session_died_is_never_elected() {
    let bed = Bed::new("dead").await;
    let (a, b, c) = (
        bed.session(secs(60)).await,
        bed.session(secs(60)).await,
        bed.session(secs(60)).await,
    );
    let lead = a.election("x").unwrap().campaign("a").await.unwrap();
    let mut waiting = Vec::new();
    for (number, session) in [&b, &c].into_iter().enumerate() {
        let election = session.election("x").unwrap();
        waiting.push(tokio::spawn(async move { election.campaign("next").await }));
        bed.until_candidates("x", number + 2).await;
    }
    // Go's Campaign would return success here.
    bed.revoke(&b).await;
    let c_leads = waiting.pop().unwrap();
    let dead = within(SOON, "an error", waiting.pop().unwrap()).await;
    let refused = dead.unwrap().unwrap_err();
    assert_eq!(refused.loss(), Some(LossReason::Revoked), "{refused}");
    assert!(!c_leads.is_finished());
    lead.resign().await.unwrap();
    let lead = within(SOON, "c", c_leads).await.unwrap().unwrap();
    assert_eq!(lead.session_id(), c.id());
    // The leader's session dies with a candidate of the same session behind it.
    let behind = tokio::spawn({
        let election = c.election("x").unwrap();
        async move { election.campaign("c too").await }
    });
    bed.until_candidates("x", 2).await;
    bed.revoke(&c).await;
    let refused = within(SOON, "an error", behind).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Lost);
    assert_eq!(a.election("x").unwrap().leader().await.unwrap(), None);
}

#[tokio::test]
async fn a_leadership_is_taken_up_after_a_restart() {
    let bed = Bed::new("taken").await;
    let other = bed.session(secs(60)).await;
    let store = bed.store().await;
    let session = open(&store, secs(60)).await;
    let lead = session.election("x").unwrap().campaign("a").await.unwrap();
    lead.proclaim("a, ready").await.unwrap();
    let (token, key) = (lead.token(), lead.key().to_owned());
    let mut observer = other.election("x").unwrap().observe();
    assert_eq!(says(&mut observer).await.unwrap(), "a, ready");
    let mut before = lead;
    let mut id = session.detach().await.unwrap();
    // Twice: what was taken up can be left and taken up again.
    for round in 0..2 {
        // The one that was left has no say any more.
        let refused = before.proclaim("late").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Lost);
        let session = bed.store().await.resume(&id).await.unwrap();
        let election = session.election("x").unwrap();
        let wrong = election.resume(tenure_core::FencingToken::new(token.get() - 1));
        assert_eq!(wrong.await.unwrap_err().kind(), ErrorKind::Lost);
        let lead = election.resume(token).await.unwrap();
        assert_eq!((lead.token(), lead.key()), (token, &*key));
        assert_eq!(
            election.resume(token).await.unwrap_err().kind(),
            ErrorKind::Lost,
            "one leadership, one guard"
        );
        let leader = election.leader().await.unwrap().unwrap();
        if round == 0 {
            assert_eq!(&*leader.text(), "a, ready");
        }
        lead.proclaim(format!("taken up {round}")).await.unwrap();
        let seen = says(&mut observer).await.unwrap();
        assert_eq!(seen, format!("taken up {round}"));
        before = lead;
        id = session.detach().await.unwrap();
    }
    drop(before);
    let session = bed.store().await.resume(&id).await.unwrap();
    let lead = session.election("x").unwrap().resume(token).await.unwrap();
    let waiting = tokio::spawn({
        let election = other.election("x").unwrap();
        async move { election.campaign("b").await }
    });
    bed.until_candidates("x", 2).await;
    lead.resign().await.unwrap();
    let next = within(SOON, "b", waiting).await.unwrap().unwrap();
    assert!(next.token() > token);
    // Nobody leads under the old token now.
    let refused = session.election("x").unwrap().resume(token).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(says(&mut observer).await.unwrap(), "b");
    next.resign().await.unwrap();
    drop(observer);
    session.close().await.unwrap();
    other.close().await.unwrap();
    bed.until_empty(SOON).await;
}

/// What happens before a proclamation arrives that the network held back.
#[derive(Clone, Copy, Debug)]
enum Late {
    /// The same leader proclaims anew.
    BeforeAnother,
    /// The leadership is taken up by a resumed session.
    BeforeTakingUp,
}

/// Something is held back by the network, the next goes another way, and then the first arrives.
async fn arrives_late(late: Late) {
    let bed = Bed::new("said-late").await;
    let mut landed_late = 0;
    // Until a control has landed late, which is a race inside the server: most often at once.
    for round in 0..20 {
        if round >= 3 && landed_late > 0 {
            break;
        }
        let proxies = [(); 2].map(|()| Proxy::start(bed.address).unwrap());
        let [first, _] = &proxies;
        let config = EtcdConfig::new(proxies.iter().map(|proxy| proxy.address().to_string()))
            .starting_at(0)
            .namespace(bed.namespace.clone())
            .timeout(ms(700));
        let store = connect(config).await;
        let session = open(&store, secs(60)).await;
        let lead = session.election("x").unwrap().campaign("a").await.unwrap();
        let (token, key) = (lead.token(), lead.key().to_owned());
        let value = async || {
            let found = bed.raw.kv_client().get(key.as_str(), None).await.unwrap();
            let found = found.kvs().first().expect("the leader's key");
            String::from_utf8(found.value().to_vec()).unwrap()
        };
        let control = Client::connect([format!("http://{}", first.address())], None).await;
        let mut control = control.unwrap().kv_client();
        control.get("x", None).await.unwrap();
        let held = first.when(
            Direction::Up,
            key.clone().into_bytes(),
            Direction::Up,
            Flow::Hold,
        );
        let given_up = tokio::time::timeout(ms(200), lead.proclaim("late")).await;
        assert!(given_up.is_err());
        assert!(held.has_fired());
        let mut puts = JoinSet::new();
        let controls = format!("control/{}/{round}", bed.namespace);
        for number in 0..8 {
            let (mut control, key) = (control.clone(), format!("{controls}/{number}"));
            puts.spawn(async move {
                let put = control.put(key, "", None);
                assert!(tokio::time::timeout(ms(700), put).await.is_err());
            });
        }
        puts.join_all().await;
        let (next, left, session) = match late {
            Late::BeforeAnother => {
                let saying = within(SOON, "over the other", lead.proclaim("later"));
                saying.await.unwrap();
                (lead, None, session)
            }
            Late::BeforeTakingUp => {
                let id = within(SOON, "detached", session.detach()).await.unwrap();
                let resumed = bed.store().await.resume(&id).await.unwrap();
                let taking_up = resumed.election("x").unwrap().resume(token).await;
                (taking_up.unwrap(), Some(lead), resumed)
            }
        };
        let expected = value().await;
        assert_ne!(expected, "late", "{late:?}");
        let passed = first.bytes(Direction::Up);
        first.heal();
        eventually("what was held arrives", SOON, async || {
            first.bytes(Direction::Up) > passed
        })
        .await;
        tokio::time::sleep(ms(100)).await;
        assert_eq!(value().await, expected, "{late:?}");
        landed_late += bed.list(controls).await.len();
        assert_eq!(next.token(), token);
        next.proclaim("as ever").await.unwrap();
        next.resign().await.unwrap();
        drop(left);
        session.close().await.unwrap();
    }
    assert!(
        landed_late > 0,
        "no control landed: the fault proves nothing"
    );
    bed.until_empty(SOON).await;
}

#[tokio::test]
async fn what_arrives_late_changes_nothing() {
    tokio::join!(
        arrives_late(Late::BeforeAnother),
        arrives_late(Late::BeforeTakingUp),
    );
}

/// The answer to a request is lost, then the connection: each is repeated, and counts once.
#[tokio::test]
async fn lost_answers_are_made_good() {
    let bed = Bed::new("elect-lost").await;
    for round in 0..6 {
        let proxy = Proxy::start(bed.address).unwrap();
        let store = connect(bed.through(proxy.address()).timeout(ms(400))).await;
        let session = open(&store, secs(30)).await;
        let election = session.election("x").unwrap();
        let lose = |pattern: &str| {
            proxy.when(
                Direction::Up,
                pattern.as_bytes().to_vec(),
                Direction::Down,
                Flow::Drop,
            )
        };
        let heal = async |lost: tenure_testbed::Trigger| {
            eventually("the request passed", SOON, async || lost.has_fired()).await;
            tokio::time::sleep(ms(50)).await;
            proxy.cut();
            proxy.heal();
        };
        if round % 2 == 0 {
            let lost = lose("a-candidate");
            let waiting = tokio::spawn({
                let election = election.clone();
                async move { election.campaign("a-candidate").await }
            });
            bed.until_candidates("x", 1).await;
            let placed = bed.candidates("x").await;
            heal(lost).await;
            let lead = within(SOON, "elected", waiting).await.unwrap().unwrap();
            assert_eq!(lead.token().get() as i64, placed[0].1);
            assert_eq!(bed.candidates("x").await, placed);
            let lost = lose("a-proclamation");
            let (said, ()) = tokio::join!(lead.proclaim("a-proclamation"), heal(lost));
            said.unwrap();
            lead.proclaim("another").await.unwrap();
            let leader = election.leader().await.unwrap().unwrap();
            assert_eq!(&*leader.text(), "another");
            lead.resign().await.unwrap();
        } else {
            let lost = lose("a-candidate");
            let refused = election.try_campaign("a-candidate").await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unavailable);
            heal(lost).await;
        }
        bed.until_candidates("x", 0).await;
        session.close().await.unwrap();
    }
    bed.until_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_dropped_campaigns_leave_nothing() {
    let bed = Bed::new("elect-dropped").await;
    // A request that times out on a busy machine leaves its marker, rightly: none must here.
    let store = connect(bed.config().timeout(secs(30))).await;
    let mut sessions = Vec::new();
    for _ in 0..8 {
        sessions.push(open(&store, secs(30)).await);
    }
    let elected = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for number in 0..1_000_u64 {
        let election = sessions[number as usize % sessions.len()].election("x");
        let (election, elected) = (election.unwrap(), Arc::clone(&elected));
        // From "before the first message" to "leading", spread by a fixed scramble; later waves
        // are more patient, so that some get there on a busy machine, too.
        let most = 10_000 * (1 + number / 25);
        let patience = Duration::from_micros(number.wrapping_mul(7_919) % most);
        tasks.spawn(async move {
            let campaigning = async {
                let lead = election.campaign("me").await.unwrap();
                elected.fetch_add(1, Ordering::Relaxed);
                if number % 2 == 0 {
                    lead.proclaim("me!").await.unwrap();
                }
            };
            let _ = tokio::time::timeout(patience, campaigning).await;
        });
        if number % 50 == 49 {
            let wave = std::mem::take(&mut tasks);
            within(LATER, "a wave", wave.join_all()).await;
        }
    }
    bed.until_empty(SOON).await;
    assert!(elected.load(Ordering::Relaxed) > 0, "nobody came so far");
    assert!(sessions.iter().all(|session| session.is_valid()));
}
