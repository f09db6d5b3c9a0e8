//! No step does more than so much, however much there is to be done. Counted, not timed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use tenure_core::ErrorKind;
use tenure_testbed::RedisServer;

use crate::common::*;

/// The most commands in one script. The longest look after 250 holdings, or bury a hundred.
const MOST_CALLS: usize = 1_500;

/// Watches what a server does, with the commands of its scripts.
struct Monitor {
    stream: TcpStream,
    reading: JoinHandle<Vec<Step>>,
}

/// One script that was run.
#[derive(Debug, Default)]
struct Step {
    calls: usize,
    published: usize,
}

impl Monitor {
    fn start(bed: &Bed<'_>) -> Self {
        let mut stream = TcpStream::connect(bed.server.address()).unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        assert_eq!(first, "+OK\r\n");
        let reading = std::thread::spawn(move || {
            let mut steps: Vec<Step> = Vec::new();
            let (mut line, mut inside) = (Vec::new(), false);
            while lines
                .read_until(b'\n', &mut line)
                .is_ok_and(|read| read > 0)
            {
                let text = String::from_utf8_lossy(&line).to_ascii_lowercase();
                if text.contains(" lua] ") {
                    assert!(inside, "a command of no script");
                    let step = steps.last_mut().unwrap();
                    step.calls += 1;
                    step.published += usize::from(text.contains(" lua] \"publish\""));
                } else {
                    inside = text.contains("] \"eval");
                    if inside {
                        steps.push(Step::default());
                    }
                }
                line.clear();
            }
            steps
        });
        Self { stream, reading }
    }

    fn end(mut self) -> Vec<Step> {
        // The server closes the connection once it has sent all that it has for it.
        self.stream.write_all(b"QUIT\r\n").unwrap();
        self.reading.join().unwrap()
    }
}

/// A server whose every step is ours.
fn alone() -> RedisServer {
    let server = RedisServer::builder().no_persistence().start();
    server.expect("Redis starts")
}

fn most(steps: &[Step], of: impl Fn(&Step) -> usize) -> usize {
    steps.iter().map(of).max().unwrap_or_default()
}

/// A thousand readers are let in by eleven steps of a hundred or less, each of which is begun by the last
/// one told.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_readers_are_told_a_hundred_at_a_time() {
    const READERS: usize = 1_000;
    let server = alone();
    let bed = Bed::on(&server, "told");
    let session = bed.session(secs(60)).await;
    let other = Arc::new(bed.session(secs(60)).await);
    let writer = session.rw_lock("x").unwrap().write().await.unwrap();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..READERS {
        let other = Arc::clone(&other);
        readers.spawn(async move { other.rw_lock("x").unwrap().read().await.unwrap() });
    }
    bed.until_in_line("rw_lock/x", READERS + 1).await;
    let monitor = Monitor::start(&bed);
    writer.release().await.unwrap();
    let guards = within(SOON, "all readers", readers.join_all()).await;
    let steps = monitor.end();
    assert_eq!(guards.len(), READERS);
    assert!(guards.iter().all(|guard| guard.is_valid()));
    let told: usize = steps.iter().map(|step| step.published).sum();
    assert!(told >= READERS, "{told} told");
    assert!(told < 2 * READERS, "{told} told: some over and over");
    let told = most(&steps, |step| step.published);
    assert!(told <= 100, "{told} told in one step");
    let calls = most(&steps, |step| step.calls);
    assert!(calls <= 500, "{calls} calls in one step");
    assert_eq!(bed.of("EXISTS", "rw_lock/x/telling", &[]), "0");
}

/// The one who is to go on telling goes: its place is what matters then, not its word.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_to_go_on_telling_may_go() {
    const READERS: usize = 250;
    let bed = Bed::new("telling");
    let session = bed.session(secs(60)).await;
    let (first, gone, last) = (
        Arc::new(bed.session(secs(60)).await),
        bed.session(secs(60)).await,
        Arc::new(bed.session(secs(60)).await),
    );
    let writer = session.rw_lock("x").unwrap().write().await.unwrap();
    let mut readers = tokio::task::JoinSet::new();
    let read = |session: &Arc<_>| {
        let session: Arc<tenure_core::Session<tenure_redis::RedisSession>> = Arc::clone(session);
        async move { session.rw_lock("x").unwrap().read().await.unwrap() }
    };
    for _ in 0..99 {
        readers.spawn(read(&first));
    }
    bed.until_in_line("rw_lock/x", 100).await;
    // The hundredth, which never looks: nobody polls it.
    let lock = gone.rw_lock("x").unwrap();
    let mut waiting = Box::pin(lock.read());
    while bed.in_line("rw_lock/x") < 101 {
        let _ = tokio::time::timeout(ms(5), &mut waiting).await;
    }
    for _ in 100..READERS {
        readers.spawn(read(&last));
    }
    bed.until_in_line("rw_lock/x", READERS + 1).await;
    writer.release().await.unwrap();
    let mut guards = Vec::new();
    for _ in 0..99 {
        let guard = within(SOON, "the first readers", readers.join_next()).await;
        guards.push(guard.unwrap().unwrap());
    }
    assert_eq!(bed.of("EXISTS", "rw_lock/x/telling", &[]), "1");
    drop(waiting);
    let rest = within(SOON, "those behind", readers.join_all()).await;
    assert_eq!(guards.len() + rest.len(), READERS - 1);
    assert_eq!(bed.of("EXISTS", "rw_lock/x/telling", &[]), "0");
}

/// The one who is to go on telling dies: those behind find out by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_to_go_on_telling_may_die() {
    const READERS: usize = 150;
    let bed = Bed::new("telling-dies");
    let session = bed.session(secs(3)).await;
    let writer = session.rw_lock("x").unwrap().write().await.unwrap();
    let other = Arc::new(bed.session(secs(60)).await);
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..READERS {
        let other = Arc::clone(&other);
        readers.spawn(async move { other.rw_lock("x").unwrap().read().await.unwrap() });
    }
    bed.until_in_line("rw_lock/x", READERS + 1).await;
    // A place of a session that is no more, among them: it will be the hundredth that lives.
    let dead = "00000000000000000000000000000001";
    let path = format!("{}rw_lock/x", bed.root());
    let tenth = bed.ask(&["ZRANGE", &path, "99", "99", "WITHSCORES"]);
    let score = tenth.lines().nth(1).unwrap().to_owned();
    bed.of("HSET", &format!("session/{dead}"), &["connection", "1"]);
    let place = format!("{dead}:0000000000000001:r");
    bed.ask(&["ZADD", &path, &format!("{score}.5"), &place]);
    let rank = bed.ask(&["ZRANK", &path, &place]);
    assert_eq!(
        rank, "100",
        "right behind the writer and ninety-nine readers"
    );
    writer.release().await.unwrap();
    bed.of("DEL", &format!("session/{dead}"), &[]);
    let guards = within(SOON, "all readers", readers.join_all()).await;
    assert_eq!(guards.len(), READERS);
}

/// A session of ten thousand locks: taken, renewed, looked after, and ended.
#[tokio::test(flavor = "multi_thread")]
async fn no_step_of_a_large_session_does_more_than_so_much() {
    const LOCKS: usize = 10_000;
    let server = alone();
    let bed = Bed::on(&server, "bounded");
    let session = bed.session(secs(6)).await;
    let monitor = Monitor::start(&bed);
    let mut taking = tokio::task::JoinSet::new();
    for task in 0..50 {
        let session = session.clone();
        taking.spawn(async move {
            let mut guards = Vec::new();
            for number in (task..LOCKS).step_by(50) {
                let lock = session.locker(format!("lock{number}")).unwrap();
                guards.push(lock.lock().await.unwrap());
            }
            guards
        });
    }
    let guards: Vec<_> = taking.join_all().await.into_iter().flatten().collect();
    // Some rounds of the audit.
    tokio::time::sleep(secs(7)).await;
    assert!(guards.iter().all(|guard| guard.is_valid()));
    within(LATER, "close", session.close()).await.unwrap();
    let steps = monitor.end();
    let calls: usize = steps.iter().map(|step| step.calls).sum();
    assert!(calls > 4 * LOCKS, "{calls} calls seen");
    let most = most(&steps, |step| step.calls);
    println!("at most {most} calls in one of {} steps", steps.len());
    assert!(most <= MOST_CALLS, "{most} calls in one step");
    drop(guards);
}

/// More dead before a newcomer than one step buries: they are in nobody's way.
#[tokio::test]
async fn whoever_does_not_wait_is_not_turned_away_by_the_dead() {
    let bed = Bed::new("dead");
    let session = bed.session(secs(30)).await;
    let (lock, line) = (
        session.locker("x").unwrap(),
        format!("{}lock/x", bed.root()),
    );
    let shared = format!("{}rw_lock/x", bed.root());
    let election = format!("{}election/x", bed.root());
    for number in 1..=250 {
        let place = format!("dead{number}:{number:016x}:w");
        for path in [&line, &shared, &format!("{shared}/writers"), &election] {
            bed.ask(&["ZADD", path, &number.to_string(), &place]);
        }
    }
    let guard = lock.try_lock().await.unwrap();
    let shared = session.rw_lock("x").unwrap();
    let reader = shared.try_read().await.unwrap();
    let lead = session.election("x").unwrap().try_campaign("me").await;
    assert!(guard.is_valid() && reader.is_valid() && lead.unwrap().is_valid());
    // Among the living, one is turned away as ever.
    let refused = lock.try_lock().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
}
