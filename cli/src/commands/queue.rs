//! `tenure enqueue`, `tenure dequeue`, `tenure queue-len`, `tenure queue-peek`.

use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use serde_json::json;
use tenure::{Delivery, Error, ErrorKind, Item, MAX_BATCH, MAX_VALUE_BYTES, QueueHandle, Session};
use tokio::sync::mpsc;

use crate::args::{Dequeue, Enqueue, Global, Named};
use crate::child::{self, Ended, Orders};
use crate::exit::{self, Failure, say};
use crate::input::Line;
use crate::output::{self, Object};
use crate::signals::Signals;
use crate::work::Sessions;
use crate::{hold, input, store, work};

/// The most that one batch carries unless a single value is larger, in bytes: well below what a
/// store takes in one request.
const BATCH_BYTES: usize = 256 * 1024;

pub(crate) async fn enqueue(global: &Global, args: &Enqueue) -> Result<u8, Failure> {
    let name = store::name(&args.name)?;
    let item = |value: &[u8]| Item::new(value).priority(args.priority);
    work::in_session(global, async |session, signals| {
        let queue = session.queue(&name)?;
        let mut accepted = 0;
        let done = if args.value == "-" && !args.literal {
            enqueue_lines(&queue, signals, item, &mut accepted).await
        } else {
            let enqueued = queue.enqueue(item(args.value.as_bytes()));
            put(signals, enqueued, 1, &mut accepted).await
        };
        if done.is_err() && accepted > 0 {
            say(format_args!("{accepted} values before it were accepted"));
        }
        done?;
        if global.json {
            let mut object = Object::new();
            object.set("name", name.as_str().into());
            object.set("enqueued", json!(accepted));
            object.print()?;
        }
        Ok(exit::DONE)
    })
    .await
}

/// Waits for the store's word, and counts.
async fn put(
    signals: &mut Signals,
    putting: impl Future<Output = tenure::Result<()>>,
    items: usize,
    accepted: &mut usize,
) -> Result<(), Failure> {
    work::unless_told(signals, putting)
        .await?
        .map_err(Failure::waiting)?;
    *accepted += items;
    Ok(())
}

async fn enqueue_lines(
    queue: &QueueHandle,
    signals: &mut Signals,
    item: impl Fn(&[u8]) -> Item,
    accepted: &mut usize,
) -> Result<(), Failure> {
    let mut lines = read_lines()?;
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(line) => line,
            None => tokio::select! {
                biased;
                signal = signals.ending() => {
                    return Err(Failure::interrupted(signal, "stopped reading values"));
                }
                line = lines.recv() => match line {
                    Some(line) => line?,
                    None => return Ok(()),
                },
            },
        };
        // What is there already goes along, in its order. Nobody waits for a batch to fill.
        let mut bytes = first.len();
        let mut batch = vec![item(&first)];
        while batch.len() < MAX_BATCH {
            let Ok(line) = lines.try_recv() else { break };
            let line = line?;
            bytes += line.len();
            if bytes > BATCH_BYTES {
                next = Some(line);
                break;
            }
            batch.push(item(&line));
        }
        let items = batch.len();
        put(signals, queue.enqueue_many(batch), items, accepted).await?;
    }
}

type Read = Result<Vec<u8>, Failure>;

/// The lines of stdin, without their ends. Read by a thread, because a read that has begun cannot be
/// given up.
fn read_lines() -> Result<mpsc::Receiver<Read>, Failure> {
    let (sender, lines) = mpsc::channel(MAX_BATCH);
    let read = move || {
        let mut stdin = std::io::stdin().lock();
        for number in 1_u64.. {
            let line = match input::line(&mut stdin, MAX_VALUE_BYTES) {
                Ok(Line::End) => return,
                Ok(Line::Whole(line)) => Ok(line),
                Ok(Line::TooLong) => Err(Failure::usage(format!(
                    "line {number} is longer than a value may be: {MAX_VALUE_BYTES} bytes"
                ))),
                Err(error) => Err(Failure::os("read stdin", error)),
            };
            let over = line.is_err();
            if sender.blocking_send(line).is_err() || over {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(read)
        .map_err(|error| Failure::os("read stdin", error))?;
    Ok(lines)
}

pub(crate) async fn dequeue(global: &Global, args: &Dequeue) -> Result<u8, Failure> {
    let (name, command) = args.subject()?;
    let name = store::name(name)?;
    let done = work::in_sessions(global, args.wait, async |sessions: &mut Sessions<'_>| {
        let kill_after = args.hold.kill_after(sessions.session.ttl())?;
        let url = global.url_for_child(&args.hold);
        let take = async |session: &Session, limit: Option<Duration>| {
            take(&session.queue(&name)?, limit).await
        };
        for _ in 0..args.count {
            let stopped = format!("stopped waiting for an item of {name:?}");
            let delivery = sessions.take(args.wait, &stopped, take).await?;
            let (ttl, signals) = (sessions.session.ttl(), &mut sessions.signals);
            let code = if command.is_empty() {
                print(global, &delivery, signals).await?;
                acknowledge(delivery, signals).await?;
                exit::DONE
            } else {
                let orders = Orders {
                    command,
                    input: None,
                    kill_after,
                    process_group: args.hold.process_group,
                    url: &url,
                };
                run(orders, ttl, delivery, signals).await?
            };
            if code != exit::DONE {
                return Ok(code);
            }
        }
        Ok(exit::DONE)
    });
    let recoded =
        |failure: Failure| failure.recoded(args.hold.not_acquired_code, args.hold.lost_code);
    done.await.map_err(recoded)
}

async fn take(queue: &QueueHandle, wait: Option<Duration>) -> tenure::Result<Delivery> {
    match wait {
        None => queue.dequeue().await,
        Some(Duration::ZERO) => queue.try_dequeue().await?.ok_or_else(|| {
            Error::new(ErrorKind::WouldBlock, "there is no item")
                .during("dequeue")
                .on(queue.name().as_str())
        }),
        Some(limit) => queue.dequeue_timeout(limit).await,
    }
}

/// Prints the value before it is acknowledged: should that fail, the item goes back.
async fn print(global: &Global, delivery: &Delivery, signals: &mut Signals) -> Result<(), Failure> {
    let value = delivery.value().to_vec();
    let json = global.json.then(|| described(delivery));
    let printing = output::aside(move || match json {
        Some(object) => object.print(),
        None => output::value(&value),
    });
    tokio::select! {
        biased;
        printed = printing => printed,
        signal = signals.ending() => {
            Err(Failure::interrupted(signal, "interrupted before the value was printed"))
        }
    }
}

fn described(delivery: &Delivery) -> Object {
    let mut object = Object::new();
    object.set("name", delivery.name().as_str().into());
    object.set_bytes("value", Some(delivery.value()));
    object.set("priority", json!(delivery.priority()));
    object.set("deliveries", json!(delivery.count()));
    object.set("token", json!(delivery.token().get()));
    object
}

/// Runs the command with the value as its input; returns its exit code.
async fn run(
    orders: Orders<'_>,
    ttl: Duration,
    delivery: Delivery,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let orders = Orders {
        input: Some(delivery.value()),
        ..orders
    };
    let ended = child::run(orders, ttl, &delivery, signals).await;
    let status = match ended {
        Ok(Ended::Itself(status)) => status,
        Ok(Ended::Lost(reason, status)) => {
            say(format_args!("the command was ended: {status}"));
            return Err(hold::lost(&delivery, reason));
        }
        Err(failure) => {
            give_back(delivery, signals).await;
            return Err(failure);
        }
    };
    if status.success() {
        acknowledge(delivery, signals).await?;
    } else {
        give_back(delivery, signals).await;
    }
    Ok(exit::of_child(status))
}

/// What is not acknowledged is delivered again: that it failed must not pass for success.
async fn acknowledge(delivery: Delivery, signals: &mut Signals) -> Result<(), Failure> {
    let name = delivery.name().clone();
    tokio::select! {
        biased;
        done = delivery.ack() => done.map_err(|error| match error.kind() {
            ErrorKind::Unavailable => unacknowledged(&error),
            _ => error.into(),
        }),
        _ = signals.hurry() => {
            let message = "interrupted before the store had confirmed it";
            let error = Error::new(ErrorKind::Unavailable, message);
            Err(unacknowledged(&error.during("ack").on(name.as_str())))
        }
    }
}

fn unacknowledged(error: &Error) -> Failure {
    let error = exit::described(error);
    let message = format!("{error}; the item may be delivered again");
    Failure::new(exit::UNREACHABLE, message)
}

/// Gives the item back to its place. Should the store not hear it, the end of the session does it.
async fn give_back(delivery: Delivery, signals: &mut Signals) {
    tokio::select! {
        biased;
        done = delivery.nack() => {
            if let Err(error) = done {
                say(error);
            }
        }
        _ = signals.hurry() => {}
    }
}

pub(crate) async fn len(global: &Global, args: &Named) -> Result<u8, Failure> {
    let name = store::name(&args.name)?;
    let question = async |session: &Session| session.queue(&name)?.depth().await;
    work::ask(global, question, |depth| {
        if global.json {
            let mut object = Object::new();
            object.set("name", name.as_str().into());
            object.set("len", json!(depth.total()));
            object.set("ready", json!(depth.ready));
            object.set("in_flight", json!(depth.in_flight));
            object.set("delayed", json!(depth.delayed));
            object.print()?;
        } else {
            output::line(&depth.total().to_string())?;
        }
        Ok(exit::DONE)
    })
    .await
}

pub(crate) async fn peek(global: &Global, args: &Named) -> Result<u8, Failure> {
    let name = store::name(&args.name)?;
    let question = async |session: &Session| session.queue(&name)?.peek().await;
    work::ask(global, question, |peeked| {
        let peeked = peeked.as_ref();
        if global.json {
            let mut object = Object::new();
            object.set("name", name.as_str().into());
            object.set_bytes("value", peeked.map(|item| &*item.value));
            object.set("priority", json!(peeked.map(|item| item.priority)));
            object.set("deliveries", json!(peeked.map(|item| item.deliveries)));
            object.print()?;
        } else if let Some(item) = peeked {
            output::value(&item.value)?;
        } else {
            say(format_args!(
                "{name:?} has no item that could be delivered now"
            ));
        }
        Ok(exit::of_answer(peeked.is_some()))
    })
    .await
}
