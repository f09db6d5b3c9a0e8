//! Confirmation by replicas and the disk (`wait_replicas`, `wait_aof`).
//!
//! `WAIT` counts only the writes of its own connection, and holds up every request behind it. It has a connection of its own
//! to the same server, and writes something first: a replica with that write has all that the server acknowledged before, to
//! any client. One round answers for all requests that came before it.
//!
//! This narrows what a failover can lose, and does not exclude it: the promoted replica may be one that did not acknowledge.

use std::sync::Arc;

use redis::{Cmd, Value};
use tenure_core::{Effect, Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::socket::{Ended, Failure, Socket};
use crate::config::RedisConfig;
use crate::error::{self, unavailable};

/// Begins with a write that needs no memory: Redis then runs the rest although its memory is full, as it runs the renewal that
/// is to be confirmed.
pub(crate) const WRITE: &str = "redis.call('DEL', KEYS[1])\nredis.call('SET', KEYS[1], 1, 'PX', 60000)\nreturn 1";

type Outcome = std::result::Result<(), (ErrorKind, String)>;

/// The connection that asks for confirmations, in a task of its own.
pub(super) struct Replication {
    rounds: mpsc::UnboundedSender<oneshot::Sender<Outcome>>,
    socket: Arc<Socket>,
    task: AbortHandle,
}

impl Replication {
    /// Starts the task on the current runtime.
    pub(super) fn start(config: Arc<RedisConfig>, socket: Socket, root: &str) -> Self {
        let (rounds, requests) = mpsc::unbounded_channel();
        let socket = Arc::new(socket);
        let key = format!("{root}confirmed");
        let task = tokio::spawn(serve(config, Arc::clone(&socket), key, requests)).abort_handle();
        Self { rounds, socket, task }
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Returns when enough replicas, and the disk, have every write that the server acknowledged before.
    pub(super) async fn confirm(&self) -> Result<()> {
        let (answer, outcome) = oneshot::channel();
        let _ = self.rounds.send(answer);
        // The writes that are to be confirmed have happened, in every case.
        match outcome.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err((kind, message))) => Err(Error::new(kind, message).with_effect(Effect::Unknown)),
            Err(_) => {
                Err(unavailable("the connection was replaced before the confirmation").with_effect(Effect::Unknown))
            }
        }
    }
}

impl Drop for Replication {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    config: Arc<RedisConfig>,
    socket: Arc<Socket>,
    key: String,
    mut requests: mpsc::UnboundedReceiver<oneshot::Sender<Outcome>>,
) {
    let mut write = redis::cmd("EVAL");
    write.arg(WRITE).arg(1).arg(key);
    let question = question(&config);
    while let Some(first) = requests.recv().await {
        let mut asked = vec![first];
        while let Ok(next) = requests.try_recv() {
            asked.push(next);
        }
        let round = tokio::time::timeout(config.timeout, round(&config, &socket, &write, &question));
        let outcome = round.await.unwrap_or_else(|_| {
            socket.close(Ended::Silent(config.timeout));
            Err(error::unanswered(config.timeout))
        });
        let outcome = outcome.map_err(|error| (error.kind(), error.chain().to_string()));
        for answer in asked {
            let _ = answer.send(outcome.clone());
        }
    }
}

async fn round(config: &RedisConfig, socket: &Socket, write: &Cmd, question: &Cmd) -> Result<()> {
    socket.send(write).await.map_err(Failure::translate)?;
    let answer = socket.send(question).await.map_err(Failure::translate)?;
    let (flushed, replicas) = match &answer {
        Value::Int(replicas) => (0, *replicas),
        Value::Array(both) => match both[..] {
            [Value::Int(flushed), Value::Int(replicas)] => (flushed, replicas),
            _ => return Err(error::unexpected("WAITAOF", "no two numbers")),
        },
        _ => return Err(error::unexpected("WAIT", "no number")),
    };
    let wanted = config.wait_replicas;
    if flushed < i64::from(config.wait_aof) {
        return Err(unavailable(
            "the primary has not flushed the step to its disk yet, which `wait_aof` asks for",
        ));
    }
    if replicas < i64::from(wanted) {
        return Err(unavailable(format!(
            "{replicas} replicas have acknowledged the step, of {wanted} that `wait_replicas` asks for"
        )));
    }
    Ok(())
}

/// Returns the command that waits for half of the timeout: a connection that it holds up longer counts as silent.
fn question(config: &RedisConfig) -> Cmd {
    let mut command = redis::cmd(if config.wait_aof { "WAITAOF" } else { "WAIT" });
    if config.wait_aof {
        command.arg(1);
    }
    // Zero would wait for ever.
    let millis = (config.timeout / 2).as_millis().max(1);
    command
        .arg(config.wait_replicas)
        .arg(u64::try_from(millis).unwrap_or(u64::MAX));
    command
}
