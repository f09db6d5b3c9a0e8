//! `tenure get`, `tenure put`, `tenure delete`, `tenure txn`.

use std::os::unix::ffi::OsStrExt as _;

use serde_json::{Value, json};
use tenure::{Entry, MAX_TRANSACTION_BYTES, MAX_VALUE_BYTES, OpResult, Session, TxnOutcome};

use crate::args::{Global, Key, Put};
use crate::exit::{self, Failure, say};
use crate::output::{self, Object};
use crate::script::{self, Script};
use crate::{input, store, work};

pub(crate) async fn get(global: &Global, args: &Key) -> Result<u8, Failure> {
    let key = store::name(&args.key)?;
    let question = async |session: &Session| session.stm()?.get(&key).await;
    work::ask(global, question, |entry| {
        match &entry {
            _ if global.json => found(key.as_str(), entry.as_ref()).print()?,
            Some(entry) => output::value(&entry.value)?,
            None => say(format_args!("{key:?} is absent")),
        }
        Ok(exit::of_answer(entry.is_some()))
    })
    .await
}

pub(crate) async fn put(global: &Global, args: &Put) -> Result<u8, Failure> {
    let key = store::name(&args.key)?;
    let mut value = args.value.as_bytes().to_vec();
    if value == b"-" && !args.literal {
        // Before anything is connected to, and before signals are listened to: Ctrl-C ends it.
        value = read(MAX_VALUE_BYTES, "the value")?;
    }
    let put = async |session: &Session| session.stm()?.put(&key, value.as_slice()).await;
    work::ask(global, put, |revision| {
        if global.json {
            let mut object = Object::new();
            object.set("key", key.as_str().into());
            object.set("revision", json!(revision));
            object.print()?;
        }
        Ok(exit::DONE)
    })
    .await
}

pub(crate) async fn delete(global: &Global, args: &Key) -> Result<u8, Failure> {
    let key = store::name(&args.key)?;
    let delete = async |session: &Session| session.stm()?.delete(&key).await;
    work::ask(global, delete, |deleted| {
        if global.json {
            let mut object = Object::new();
            object.set("key", key.as_str().into());
            object.set("deleted", Value::Bool(deleted));
            object.print()?;
        } else if !deleted {
            // It is gone in any case: done, but worth a word.
            say(format_args!("{key:?} was absent"));
        }
        Ok(exit::DONE)
    })
    .await
}

pub(crate) async fn txn(global: &Global) -> Result<u8, Failure> {
    // Every byte of it may be written as an escape.
    let text = read(4 * MAX_TRANSACTION_BYTES + 1024 * 1024, "the transaction")?;
    let script = script::parse(&text).map_err(Failure::usage)?;
    let Script {
        compares,
        then,
        or_else,
    } = script.clone();
    let commit = async |session: &Session| {
        let txn = session.stm()?.txn();
        txn.when(compares)
            .then(then)
            .or_else(or_else)
            .commit()
            .await
    };
    work::ask(global, commit, |outcome| {
        tell(global, &script, &outcome)?;
        Ok(exit::of_answer(outcome.succeeded))
    })
    .await
}

/// All of standard input.
fn read(limit: usize, what: &str) -> Result<Vec<u8>, Failure> {
    let read = input::all(limit).map_err(|error| Failure::os("read stdin", error))?;
    read.ok_or_else(|| Failure::usage(format!("{what} on stdin is larger than {limit} bytes")))
}

/// What the `get`s of the branch that was done have found, in their order.
fn tell(global: &Global, script: &Script, outcome: &TxnOutcome) -> Result<(), Failure> {
    let branch = if outcome.succeeded {
        &script.then
    } else {
        &script.or_else
    };
    let results = branch.iter().zip(&outcome.results);
    let gets = results.filter_map(|(op, result)| match result {
        OpResult::Get(entry) => Some((op.key(), entry.as_ref())),
        OpResult::Put | OpResult::Delete => None,
    });
    if !global.json {
        // An absent key is an empty line, so that every `get` has its own.
        return gets
            .into_iter()
            .try_for_each(|(_, entry)| output::value(entry.map_or(b"", |entry| &entry.value)));
    }
    for (key, entry) in gets {
        found(key, entry).print()?;
    }
    let mut object = Object::new();
    object.set("succeeded", Value::Bool(outcome.succeeded));
    object.set("revision", json!(outcome.revision));
    object.print()
}

fn found(key: &str, entry: Option<&Entry>) -> Object {
    let mut object = Object::new();
    object.set("key", key.into());
    object.set_bytes("value", entry.map(|entry| &*entry.value));
    object.set("version", json!(entry.map_or(0, |entry| entry.version)));
    object.set("created", json!(entry.map_or(0, |entry| entry.created)));
    object.set("modified", json!(entry.map_or(0, |entry| entry.modified)));
    object
}
