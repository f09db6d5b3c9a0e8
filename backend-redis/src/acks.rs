//! Acknowledgement by replicas, and by the disk, before anything counts (`wait_replicas`, `wait_aof`).
//!
//! `WAIT` asks about the writes of its own connection, and holds up whatever comes after it. So it
//! has a connection of its own, to the same server, and writes something first: whoever has that has
//! all that the server wrote before, whoever it was for. One question answers for all who came
//! before it.
//!
//! This narrows what a failover can lose, and does not close it: nothing makes the one that is
//! promoted the one that acknowledged.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use redis::{Cmd, Value};
use tenure_core::{Effect, Error, ErrorKind, Result};
use tokio::sync::Mutex;

use crate::config::{Address, RedisConfig};
use crate::endpoint::{self, Directory, Wire};
use crate::error;

/// Begins with a write that needs no memory: so Redis lets it pass when its memory is full, as it does
/// with the renewal that is to be confirmed.
const WRITE: &str =
    "redis.call('DEL', KEYS[1]) redis.call('SET', KEYS[1], 1, 'PX', 60000) return 1";

/// The connection that asks.
pub(crate) struct Acks {
    wire: Wire,
    key: String,
    /// How many have come to ask.
    asked: AtomicU64,
    last: Mutex<Round>,
    broken: AtomicBool,
}

/// The last question: for whom it was, and whether enough have acknowledged.
#[derive(Default)]
struct Round {
    upto: u64,
    answer: Option<Error>,
}

impl Acks {
    /// Whether any acknowledgement is asked for.
    pub(crate) fn wanted(config: &RedisConfig) -> bool {
        config.wait_replicas > 0 || config.wait_aof
    }

    /// Whether an answer of a script has to be confirmed. Not those of scripts that give something
    /// up: were that forgotten, it would be held until its session ends. Nor answers that nothing
    /// follows from.
    pub(crate) fn needed(script: &str, status: &str) -> bool {
        !matches!(script, "leave" | "revoke" | "withdraw" | "bury" | "index")
            && !matches!(status, "wait" | "none")
    }

    pub(crate) async fn connect(
        config: &RedisConfig,
        address: &Address,
        root: String,
    ) -> Result<Self> {
        Ok(Self {
            wire: Directory::another(config, address, endpoint::settings()).await?,
            key: root + "confirmed",
            asked: AtomicU64::new(0),
            last: Mutex::default(),
            broken: AtomicBool::new(false),
        })
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Returns once enough have what the server has done so far.
    pub(crate) async fn confirm(&self, config: &RedisConfig) -> Result<()> {
        let mine = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut last = self.last.lock().await;
        if last.upto < mine {
            // Before the question: who comes from now on is not covered by it.
            last.upto = self.asked.load(Ordering::Acquire);
            // Should this be dropped in between, nobody takes the answer before for this one's.
            last.answer = Some(too_few(0, config));
            last.answer = self.ask(config).await.err();
        }
        match &last.answer {
            None => Ok(()),
            Some(error) => Err(Error::new(error.kind(), error.chain().to_string())
                .with_effect(error.effect())
                .retryable(error.is_retryable())),
        }
    }

    async fn ask(&self, config: &RedisConfig) -> Result<()> {
        let patience = config.timeout / 2;
        let mut write = redis::cmd("EVAL");
        write.arg(WRITE).arg(1).arg(&self.key);
        self.send(config, &write).await?;
        let answer = self.send(config, &question(config, patience)).await?;
        let (flushed, replicas) = match &answer {
            Value::Int(replicas) => (0, *replicas),
            Value::Array(both) => match both[..] {
                [Value::Int(flushed), Value::Int(replicas)] => (flushed, replicas),
                _ => return Err(error::unexpected("WAITAOF", "no two numbers")),
            },
            _ => return Err(error::unexpected("WAIT", "no number")),
        };
        match flushed >= i64::from(config.wait_aof) && replicas >= config.wait_replicas.into() {
            true => Ok(()),
            false => Err(too_few(replicas, config)),
        }
    }

    async fn send(&self, config: &RedisConfig, command: &Cmd) -> Result<Value> {
        let mut redis = self.wire.redis.clone();
        let sent = tokio::time::timeout(config.timeout, redis.send_packed_command(command)).await;
        let answer = match sent {
            Ok(answer) => answer
                .and_then(Value::extract_error)
                .map_err(error::from_redis),
            Err(_) => Err(error::unanswered(config.timeout)),
        };
        answer.map_err(|error| {
            self.broken.store(true, Ordering::Release);
            // The step that is to be confirmed has been done, whatever became of this.
            error.with_effect(Effect::Unknown)
        })
    }
}

fn question(config: &RedisConfig, patience: Duration) -> Cmd {
    let mut command = redis::cmd(if config.wait_aof { "WAITAOF" } else { "WAIT" });
    if config.wait_aof {
        command.arg(1);
    }
    // Zero would be for ever.
    let millis = patience.as_millis().max(1);
    command
        .arg(config.wait_replicas)
        .arg(u64::try_from(millis).unwrap_or(u64::MAX));
    command
}

fn too_few(replicas: i64, config: &RedisConfig) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "{replicas} replicas have acknowledged, of {} that `wait_replicas` asks for{}",
            config.wait_replicas,
            if config.wait_aof {
                ", or the disk has not"
            } else {
                ""
            }
        ),
    )
    .with_effect(Effect::Unknown)
}
