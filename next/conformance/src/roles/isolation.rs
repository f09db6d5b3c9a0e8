//! Objects of other names, kinds and namespaces: rule L8.

use tenure_core::{NewItem, Session};

use super::scene::*;
use super::{Held, Role};
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::tools::*;

/// Names that look like `a`, nest with it, or contain it.
const ALIKE: [&str; 8] = ["a/b", "a/c", "a/", "A", "aa", " a", "a:a", "\u{e4}"];

/// Acquires all parts of an object that must be free; `None` if the store does not have the primitive.
async fn free(role: Role, session: &Session, name: &str, what: &str) -> Step<Option<Held>> {
    if offered(done(what, role.prepare(session, name)).await)?.is_none() {
        return Ok(None);
    }
    let mut held: Option<Held> = None;
    while held.as_ref().is_none_or(|held| held.parts().len() < role.units()) {
        match (offered(done(what, role.attempt(session, name)).await)?, &mut held) {
            (None, _) => return Ok(None),
            (Some(None), _) => return Err(Outcome::violated(format!("{what} was not free"))),
            (Some(Some(more)), Some(held)) => held.join(more),
            (Some(more), None) => held = more,
        }
    }
    Ok(held)
}

/// Checks L8: other names of one kind, and other kinds of one name, are independent. Each ends without the others.
pub(crate) async fn names_are_apart(harness: &dyn Harness, role: Role) -> Verdict {
    let (holder, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    done("enqueue", role.prepare(&holder, "a")).await?;
    let held = done("a grant of what is free", role.acquire(&holder, "a")).await?;
    if role.is_of_a_queue() {
        // Each queue gets an item that a queue of another name must not deliver.
        done("enqueue", role.prepare(&holder, "a")).await?;
        for name in ALIKE {
            let found = done("an answer to a try", role.attempt(&other, name)).await?;
            ensure!(found.is_none(), "`{name}` delivered what was enqueued elsewhere");
        }
    }
    let (mut alike, mut count) = (Vec::new(), 0);
    for name in ALIKE {
        let what = format!("beside a {} `a`, one `{name}`", role.word());
        alike.extend(free(role, &other, name, &what).await?);
        count += 1;
    }
    for kind in Role::ALL {
        if kind.primitive() == role.primitive() && kind.is_of_a_queue() == role.is_of_a_queue() {
            // The two barriers are different kinds.
            if kind == role || !matches!(role, Role::Hold | Role::Participant) {
                continue;
            }
        }
        let what = format!("beside a {} `a`, a {} `a`", role.word(), kind.word());
        if let Some(free) = free(kind, &other, "a", &what).await? {
            done(&what, free.finish()).await?;
            count += 1;
        }
    }
    let stm = other.stm();
    if offered(done("put", stm.put("a", "data")).await)?.is_some() {
        let read = done("get", stm.get("a")).await?;
        ensure!(
            read.is_some(),
            "data key `a` was not read back beside a {} `a`",
            role.word()
        );
        done("delete", stm.delete("a")).await?;
    }
    if role.is_of_a_queue() {
        let rest = done("a dequeue", role.acquire(&other, "a")).await?;
        done("an acknowledgement", rest.finish()).await?;
    }
    for held in alike {
        done("a release of another", held.finish()).await?;
    }
    is_kept(role, &other, "a", "after other names and kinds had come and gone").await?;
    ensure!(held.is_valid(), "it was lost: {:?}", held.loss());
    end(held).await?;
    held!("{count} others of like names and other kinds came and went")
}

/// Checks L8: the same name in another namespace is another object.
pub(crate) async fn namespaces_are_apart(harness: &dyn Harness, role: Role) -> Verdict {
    let name = "a";
    let (holder, here) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let elsewhere = done("a connection", harness.elsewhere()).await?;
    let (there, also_there) = (open_on(&elsewhere, LONG).await?, open_on(&elsewhere, LONG).await?);
    done("enqueue", role.prepare(&holder, name)).await?;
    if role.is_of_a_queue() {
        let found = done("an answer to a try", role.attempt(&there, name)).await?;
        ensure!(found.is_none(), "an item was delivered in another namespace");
        // An item id belongs to one queue of one namespace.
        for session in [&holder, &there] {
            let queue = session.queue("ids");
            done("enqueue", queue.enqueue(NewItem::new("work").id("same"))).await?;
            let found = done("a try", queue.try_dequeue()).await?;
            let dropped = "an item was dropped for the id of another namespace's item";
            let delivery = found.ok_or_else(|| Outcome::violated(dropped))?;
            done("an acknowledgement", delivery.ack()).await?;
        }
    }
    for (session, value) in [(&here, "here"), (&there, "there")] {
        let stm = session.stm();
        if offered(done("put", stm.put(name, value)).await)?.is_some() {
            let entry = done("entry", stm.entry(name)).await?;
            let own = entry.is_some_and(|entry| entry.version == 1 && &*entry.value == value.as_bytes());
            ensure!(own, "a data key met one of another namespace");
            let deleted = value == "here" || done("delete", stm.delete(name)).await?;
            ensure!(deleted, "a key that is there was not deleted");
        }
    }
    if let Some(value) = offered(done("get", here.stm().get_string(name)).await)? {
        ensure!(
            value.as_deref() == Some("here"),
            "a deletion in another namespace left {value:?}"
        );
    }
    let held = done("a grant of what is free", role.acquire(&holder, name)).await?;
    let what = "what is free in another namespace";
    let other = free(role, &there, name, what).await?;
    is_kept(role, &here, name, "beside another namespace").await?;
    is_kept(role, &also_there, name, "beside another namespace").await?;
    // A release in one namespace releases nothing in the other, and neither does a close.
    if let Some(other) = other {
        done("a release", other.finish()).await?;
    }
    is_kept(role, &here, name, "after a release in another namespace").await?;
    let again = free(role, &there, name, what).await?;
    done("close", there.close()).await?;
    is_kept(role, &here, name, "after a close in another namespace").await?;
    drop(again);
    end(becomes_free(role, &also_there, name, PROMPT, "after a close").await?).await?;
    ensure!(held.is_valid(), "it was lost: {:?}", held.loss());
    end(held).await?;
    held!("held, released and closed in two namespaces without a meeting")
}
