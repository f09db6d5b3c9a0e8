//! What somebody deleted by hand is missed, and never taken for something empty.

use tenure_core::{ErrorKind, Item};

use crate::common::*;

#[tokio::test]
async fn an_item_without_its_value_is_an_error_and_the_others_come() {
    let bed = Bed::new("no-value");
    let session = bed.session(secs(30)).await;
    let queue = session.queue("jobs").unwrap();
    for item in ["one", "two", "three", "", "five"] {
        queue.enqueue(item).await.unwrap();
    }
    let places = bed.of("ZRANGE", "queue/jobs/ready", &["0", "-1"]);
    let places: Vec<_> = places.lines().map(str::to_owned).collect();
    for place in [&places[0], &places[2]] {
        assert_eq!(bed.of("HDEL", "queue/jobs/values", &[place]), "1");
    }
    let names = |error: &tenure_core::Error, place: &str| {
        assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
        let text = error.chain().to_string();
        assert!(
            text.contains(place) && text.contains("queue/jobs/values"),
            "{text}"
        );
    };
    names(&queue.peek().await.unwrap_err(), &places[0]);
    names(&queue.dequeue().await.unwrap_err(), &places[0]);
    // In a batch with others: these go back, undelivered.
    names(&queue.dequeue_many(5).await.unwrap_err(), &places[2]);
    let rest = within(SOON, "the rest", async {
        loop {
            let rest = queue.dequeue_many(5).await.unwrap();
            if rest.len() == 3 {
                return rest;
            }
            for item in rest {
                item.nack().await.unwrap();
            }
        }
    });
    let rest = rest.await;
    let values: Vec<_> = rest
        .iter()
        .map(|item| String::from_utf8_lossy(item.value()).into_owned())
        .collect();
    assert_eq!(values, ["two", "", "five"], "and an empty one is one");
    for item in rest {
        item.ack().await.unwrap();
    }
    bed.until_gone("queue/jobs/").await;
}

/// One who waits is told as well, and one who has dead letters does not move what is not there.
#[tokio::test]
async fn who_waits_for_an_item_hears_of_the_damage() {
    let bed = Bed::new("no-value-waits");
    let session = bed.session(secs(30)).await;
    let queue = session.queue("jobs").unwrap();
    queue.enqueue("one").await.unwrap();
    let item = queue.dequeue().await.unwrap();
    let waiting = {
        let queue = queue.clone();
        tokio::spawn(async move { queue.dequeue().await })
    };
    bed.until_in_line("queue/jobs/line", 1).await;
    assert_eq!(bed.of("DEL", "queue/jobs/values", &[]), "1");
    item.nack().await.unwrap();
    let error = within(SOON, "an answer", waiting)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
    queue.enqueue(Item::from("two")).await.unwrap();
    let next = within(SOON, "the next", queue.dequeue()).await.unwrap();
    assert_eq!(next.value(), b"two");
}

#[tokio::test]
async fn a_leader_without_its_value_is_an_error_until_it_proclaims() {
    let bed = Bed::new("no-leader-value");
    let session = bed.session(secs(30)).await;
    let election = session.election("e").unwrap();
    let lead = election.campaign("me").await.unwrap();
    assert_eq!(bed.of("DEL", "election/e/values", &[]), "1");
    let error = election.leader().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
    assert!(
        error.chain().to_string().contains("election/e/values"),
        "{error}"
    );
    let seen = within(SOON, "an answer", election.observe().next()).await;
    assert_eq!(seen.unwrap().unwrap_err().kind(), ErrorKind::Foreign);
    lead.proclaim("again").await.unwrap();
    assert_eq!(election.leader().await.unwrap().unwrap().text(), "again");
    lead.proclaim("").await.unwrap();
    assert_eq!(election.leader().await.unwrap().unwrap().text(), "");
}
