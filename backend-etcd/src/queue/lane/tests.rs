//! The lane over a store of which each test says what it answers. One thread, so that those who
//! join at once are seen at once.

use etcd_client::proto::{PbResponseOp, PbTxnResponse};
use tenure_core::{LossReason, Name, Namespace};

use super::super::keys::{created_at, delete};
use super::*;
use crate::layout::Layout;
use crate::session::EtcdBackend;

/// What the store will answer: `None` says that all comparisons hold.
type Replies = VecDeque<Option<Error>>;

/// The answers that are left, and what was asked.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<(Replies, Vec<String>)>>);

impl Script {
    fn new(replies: impl IntoIterator<Item = Option<Error>>) -> (Self, Arc<Lane>) {
        let script = Self(Arc::new(Mutex::new((
            replies.into_iter().collect(),
            Vec::new(),
        ))));
        let view = Arc::new(View::new(keys()));
        (
            script.clone(),
            Arc::new(Lane::new(script.clone(), keys(), view)),
        )
    }

    /// How many parts each request had, and whether there had to be room for it; 0 is a part that
    /// went by itself. No answer may be left.
    fn requests(&self) -> Vec<(usize, bool)> {
        let script = self.0.lock().unwrap();
        assert!(script.0.is_empty(), "not asked: {:?}", script.0);
        let room = format!("{:?}", keys().room().as_bytes());
        let parts = |request: &String| (request.matches(PART).count(), request.contains(&room));
        script.1.iter().map(parts).collect()
    }
}

const PART: &str = "RequestTxn(";

#[async_trait]
impl Carrier for Script {
    async fn carry(&self, txn: Txn) -> Result<TxnResponse> {
        let (reply, request) = (self.0.lock().unwrap().0.pop_front(), format!("{txn:?}"));
        let part = PbResponseOp {
            response: Some(PbTxnOpResponse::ResponseTxn(held(Vec::new()))),
        };
        let parts = vec![part; request.matches(PART).count()];
        self.0.lock().unwrap().1.push(request);
        match reply.expect("a request too many") {
            None => Ok(TxnResponse(held(parts))),
            Some(error) => Err(error),
        }
    }
}

fn held(responses: Vec<PbResponseOp>) -> PbTxnResponse {
    PbTxnResponse {
        succeeded: true,
        responses,
        ..PbTxnResponse::default()
    }
}

fn keys() -> Keys {
    let layout = Layout::new(Namespace::default(), false);
    Keys::new(&layout, &Name::new("x").unwrap())
}

fn unanswered() -> Option<Error> {
    Some(Error::new(ErrorKind::Unavailable, "no answer").with_effect(Effect::Unknown))
}

fn refused(kind: ErrorKind) -> Option<Error> {
    Some(match kind {
        ErrorKind::Lost => Error::lost(LossReason::Revoked),
        kind => Error::new(kind, "refused"),
    })
}

async fn end(lane: &Arc<Lane>, number: u64) -> Result<bool> {
    let claim = keys().claim((0, number));
    let txn = Txn::new()
        .when([created_at(claim.as_str(), 5)])
        .and_then([delete(claim)]);
    lane.end((0, number), txn).await
}

async fn enqueue(lane: &Arc<Lane>, lease: i64) -> Result<()> {
    let session = EtcdBackend::unmet_on(lease).await;
    let nonce = lease.unsigned_abs();
    lane.put_in(&session, nonce, || false, &[Item::new("x")])
        .await
}

fn verdict<T>(answer: Result<T>) -> Option<(ErrorKind, Effect)> {
    answer.err().map(|error| (error.kind(), error.effect()))
}

const GONE: Option<(ErrorKind, Effect)> = Some((ErrorKind::Lost, Effect::None));

#[tokio::test]
async fn what_is_refused_as_a_whole_is_sent_one_by_one() {
    let gone = || refused(ErrorKind::Lost);
    let (script, lane) = Script::new([gone(), None, gone(), None]);
    let answers = tokio::join!(end(&lane, 1), end(&lane, 2), enqueue(&lane, 3));
    assert!(answers.0.unwrap());
    assert_eq!((verdict(answers.1), verdict(answers.2)), (GONE, None));
    let single = (0, false);
    assert_eq!(script.requests(), [(3, true), single, single, single]);
}

#[tokio::test]
async fn the_claims_share_no_others_fate_either() {
    let gone = || refused(ErrorKind::Lost);
    for last in [None, gone()] {
        let due = last.as_ref().map(|_| (ErrorKind::Lost, Effect::None));
        let (script, lane) = Script::new([gone(), gone(), last]);
        let claiming = async {
            let passage = lane.enter().await;
            let places = HashSet::from([(0, 9)]);
            let claims = Txn::new().and_then([put(keys().claim((0, 9)), "", 7)]);
            passage.send(claims, 1, &places).await
        };
        let (ended, claimed) = tokio::join!(end(&lane, 1), claiming);
        assert_eq!((verdict(ended), verdict(claimed)), (GONE, due));
        assert_eq!(script.requests(), [(2, false), (0, false), (0, false)]);
    }
}

#[tokio::test]
async fn what_was_not_answered_is_not_sent_one_by_one() {
    for (error, effect) in [(unanswered(), Effect::Unknown), {
        let never_sent = Error::new(ErrorKind::Unavailable, "no connection").retryable(true);
        (Some(never_sent), Effect::None)
    }] {
        let (script, lane) = Script::new([error]);
        let (one, other) = tokio::join!(end(&lane, 1), end(&lane, 2));
        for answer in [one, other] {
            assert!(answer.as_ref().is_err_and(Error::is_retryable));
            assert_eq!(verdict(answer), Some((ErrorKind::Unavailable, effect)));
        }
        assert_eq!(script.requests(), [(2, false)]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_enqueue_that_went_unanswered_is_in_doubt_when_it_is_refused() {
    for kind in [
        ErrorKind::Unauthorized,
        ErrorKind::Lost,
        ErrorKind::TooLarge,
    ] {
        let (script, lane) = Script::new([refused(kind)]);
        let answer = verdict(enqueue(&lane, 3).await);
        assert_eq!(answer, Some((kind, Effect::None)));
        assert_eq!(script.requests().len(), 1);

        let (script, lane) = Script::new([unanswered(), unanswered(), refused(kind)]);
        let answer = verdict(enqueue(&lane, 3).await);
        assert_eq!(answer, Some((kind, Effect::Unknown)));
        assert_eq!(script.requests().len(), 3);
    }
}

#[tokio::test]
async fn no_producer_shares_anothers_fate() {
    let (script, lane) = Script::new([refused(ErrorKind::Lost), refused(ErrorKind::Lost), None]);
    let (one, other) = tokio::join!(enqueue(&lane, 3), enqueue(&lane, 4));
    assert_eq!((verdict(one), verdict(other)), (GONE, None));
    assert_eq!(script.requests().len(), 3);
}

/// Apart, a batch that has landed would not be known again.
#[tokio::test(start_paused = true)]
async fn a_batch_in_doubt_is_not_sent_apart() {
    let refusal = || refused(ErrorKind::Unauthorized);
    let in_doubt = Some((ErrorKind::Unauthorized, Effect::Unknown));
    let (script, lane) = Script::new([unanswered(), refusal()]);
    let (one, other) = tokio::join!(enqueue(&lane, 3), enqueue(&lane, 4));
    assert_eq!((verdict(one), verdict(other)), (in_doubt, in_doubt));
    assert_eq!(script.requests().len(), 2);

    // Except that the end of a lease tells that it has not landed, and will not.
    let gone = || refused(ErrorKind::Lost);
    let (script, lane) = Script::new([unanswered(), gone(), gone(), None]);
    let (one, other) = tokio::join!(enqueue(&lane, 3), enqueue(&lane, 4));
    let lost = Some((ErrorKind::Lost, Effect::Unknown));
    assert_eq!((verdict(one), verdict(other)), (lost, None));
    assert_eq!(script.requests().len(), 4);
}

/// A full store lets acknowledgements through, if nothing is with them that needs room.
#[tokio::test(start_paused = true)]
async fn a_full_store_gets_enqueues_by_themselves() {
    let full = || {
        let error = Error::new(ErrorKind::Unavailable, "no space").retryable(false);
        Some(error.with_effect(Effect::Unknown))
    };
    let (script, lane) = Script::new([full(), None, full(), None]);
    let both = || async { tokio::join!(end(&lane, 1), enqueue(&lane, 3)) };
    let in_doubt = Some((ErrorKind::Unavailable, Effect::Unknown));
    let (ended, accepted) = both().await;
    assert_eq!((verdict(ended), verdict(accepted)), (in_doubt, in_doubt));
    let (ended, accepted) = both().await;
    assert_eq!((verdict(ended), verdict(accepted)), (None, in_doubt));
    // `FULL` is over by the clock of the machine, not tokio's.
    *lane.full.lock().unwrap() = Some(Instant::now());
    let (ended, accepted) = both().await;
    assert_eq!((verdict(ended), verdict(accepted)), (None, None));
    let (shared, single) = ((2, true), (0, false));
    assert_eq!(script.requests(), [shared, single, single, shared]);
}
