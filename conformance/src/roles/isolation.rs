//! Late releases, and things of other names, kinds and namespaces: rules L7 and L8.

use std::time::Duration;

use tenure_core::ErrorKind;
use tokio::time::Instant;

use super::scene::{Scene, becomes_free, end, is_kept};
use super::{Role, is_loss};
use crate::case::Verdict;
use crate::cases::tools::*;
use crate::harness::Harness;

/// L7: dropping what is held gives it back, though its session lives.
pub(crate) async fn a_drop_releases(harness: &dyn Harness, role: Role) -> Verdict {
    let mut scene = Scene::set(harness, role, LONG).await?;
    scene.is_kept("before the drop").await?;
    drop(std::mem::take(&mut scene.held));
    let took = scene.becomes_free(PROMPT, "after a drop").await?;
    ensure!(scene.holder.is_valid(), "the session ended");
    held!("free {took:?} after the drop")
}

/// L7: a release after the loss says so, and frees nothing of the next holder's.
pub(crate) async fn a_late_release_spares_the_next(harness: &dyn Harness, role: Role) -> Verdict {
    let (scene, link) = Scene::linked(harness, role, harness.ttl()).await?;
    let limit = scene.holder.ttl() + expiry_bound(harness).await? + SLACK;
    link.silence();
    let name = "stage";
    let next = becomes_free(role, &scene.other, name, limit, "in a silence").await?;
    link.heal();
    let third = open(harness, LONG).await?;
    let mut answers = Vec::new();
    for held in scene.held {
        let late = within(limit, "an answer to a late release", held.finish()).await?;
        match late {
            Err(error) if is_loss(&error) => answers.push(error.kind()),
            Err(error) => return Err(error.into()),
            Ok(()) => ensure!(false, "a release after the loss says Ok"),
        }
    }
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(600) {
        is_kept(role.opponent(), &third, name, "after a late release").await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(
        next.is_valid(),
        "the next holder lost it: {:?}",
        next.loss()
    );
    end(next).await?;
    held!("{answers:?} for late releases, which freed nothing")
}

/// Names that look like `name`, nest with it, or contain it.
const ALIKE: [&str; 8] = ["a/b", "a/c", "a/", "A", "aa", " a", "a:a", "\u{e4}"];

/// L8: other names of one kind, and other kinds of one name, are apart; each ends without the others.
pub(crate) async fn names_are_apart(harness: &dyn Harness, role: Role) -> Verdict {
    let (holder, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    promptly("enqueue", role.prepare(&holder, "a")).await??;
    let held = promptly("a grant of what is free", role.acquire(&holder, "a")).await??;
    let mut others: Vec<(Role, &str)> = ALIKE.map(|name| (role, name)).to_vec();
    let kin = |another: &Role| match role {
        Role::Reader | Role::Writer => !matches!(another, Role::Reader | Role::Writer),
        Role::Delivery | Role::Batch => !matches!(another, Role::Delivery | Role::Batch),
        _ => *another != role,
    };
    others.extend(
        Role::ALL
            .into_iter()
            .filter(kin)
            .map(|another| (another, "a")),
    );
    let is_queue = matches!(role, Role::Delivery | Role::Batch);
    if is_queue {
        // Something in each that a queue of another name must not find.
        promptly("enqueue", role.prepare(&holder, "a")).await??;
        for name in ALIKE {
            let found = promptly("an answer to a try", role.attempt(&other, name)).await??;
            ensure!(
                found.is_none(),
                "`{name}` delivered what was enqueued elsewhere"
            );
            promptly("enqueue", role.prepare(&holder, name)).await??;
        }
    }
    let (mut met, mut others_met) = (Vec::new(), 0);
    for (another, name) in others {
        let what = format!(
            "beside a {} `a`, a {} `{name}`",
            role.word(),
            another.word()
        );
        match promptly(&what, another.prepare(&other, name)).await? {
            Err(error) if error.kind() == ErrorKind::Unsupported => continue,
            prepared => prepared?,
        }
        let free = promptly(&what, another.attempt(&other, name)).await?;
        let free = match free {
            Err(error) if error.kind() == ErrorKind::Unsupported => continue,
            free => free?,
        };
        let Some(mut free) = free else {
            return Err(crate::case::Outcome::violated(format!(
                "{what} was not free"
            )));
        };
        while free.parts().len() < another.units() {
            let more = promptly(&what, another.attempt(&other, name)).await??;
            let Some(more) = more else {
                return Err(crate::case::Outcome::violated(format!(
                    "{what} was not whole"
                )));
            };
            free.join(more);
        }
        // A session cannot hold two kinds of one name: it may be the other side of the same lock.
        match another == role {
            true => met.push(free),
            false => promptly(&what, free.finish()).await??,
        }
        others_met += 1;
    }
    if let Ok(stm) = other.stm() {
        promptly("put", stm.put("a", "data")).await??;
        let read = promptly("get", stm.get("a")).await??;
        ensure!(
            read.is_some_and(|entry| entry.value == b"data"),
            "data key `a` was not read back beside a {} `a`",
            role.word()
        );
        ensure!(
            promptly("delete", stm.delete("a")).await??,
            "data key `a` was not there"
        );
    }
    if is_queue {
        let more = promptly("a dequeue", role.acquire(&other, "a")).await??;
        promptly("a release", more.finish()).await??;
    }
    for held in met {
        promptly("a release of another", held.finish()).await??;
    }
    is_kept(
        role,
        &other,
        "a",
        "after other names and kinds had come and gone",
    )
    .await?;
    ensure!(held.is_valid(), "it was lost: {:?}", held.loss());
    end(held).await?;
    held!("{others_met} others of like names and other kinds came and went")
}

/// L8: the same name in another namespace is another thing.
pub(crate) async fn namespaces_are_apart(harness: &dyn Harness, role: Role) -> Verdict {
    let name = "a";
    let holder = open(harness, LONG).await?;
    let elsewhere = harness.elsewhere().await?;
    let (there, also_there) = (
        promptly("open", open_on(&elsewhere, LONG)).await??,
        promptly("open", open_on(&elsewhere, LONG)).await??,
    );
    promptly("enqueue", role.prepare(&holder, name)).await??;
    if matches!(role, Role::Delivery | Role::Batch) {
        let found = promptly("an answer to a try", role.attempt(&there, name)).await??;
        ensure!(
            found.is_none(),
            "an item was delivered in another namespace"
        );
    }
    let held = promptly("a grant of what is free", role.acquire(&holder, name)).await??;
    promptly("enqueue", role.prepare(&there, name)).await??;
    let other = promptly("a grant in another namespace", role.acquire(&there, name)).await??;
    let here = open(harness, LONG).await?;
    is_kept(role, &here, name, "beside another namespace").await?;
    is_kept(role, &also_there, name, "beside another namespace").await?;
    ensure!(
        other.parts().len() == role.units(),
        "of a batch {} came",
        other.parts().len()
    );
    // Its end there is none here, and the other way round.
    promptly("a release", other.finish()).await??;
    is_kept(role, &here, name, "after a release in another namespace").await?;
    promptly("enqueue", role.prepare(&there, name)).await??;
    let again = promptly("a grant in another namespace", role.acquire(&there, name)).await??;
    promptly("close", there.close()).await??;
    is_kept(role, &here, name, "after a close in another namespace").await?;
    drop(again);
    let others = becomes_free(role, &also_there, name, PROMPT, "after a close").await?;
    end(others).await?;
    ensure!(held.is_valid(), "it was lost: {:?}", held.loss());
    end(held).await?;
    held!("held, released and closed in two namespaces without a meeting")
}
