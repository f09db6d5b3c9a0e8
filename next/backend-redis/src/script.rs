//! The scripts, their arguments and their answers.

use std::sync::LazyLock;

use redis::{Cmd, Value};
use sha1_smol::Sha1;
use tenure_core::{Error, FencingToken, Result};

use crate::error::unexpected;

/// A script.
pub(crate) struct Script {
    pub(crate) source: String,
    /// In hexadecimal digits.
    pub(crate) sha1: String,
    /// The operations whose granted effect has to be confirmed by replicas and the disk, if the configuration asks for that.
    pub(crate) confirmed: &'static [&'static str],
}

impl Script {
    fn new(parts: &[&str], confirmed: &'static [&'static str]) -> Self {
        let source = parts.join("\n");
        Self {
            sha1: Sha1::from(&source).digest().to_string(),
            source,
            confirmed,
        }
    }
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $constant:ident [$($part:literal)*] $confirmed:expr;)*) => {
        $($(#[$doc])* pub(crate) static $constant: LazyLock<Script> = LazyLock::new(|| {
            Script::new(&[$(include_str!(concat!("../lua/", $part, ".lua"))),*], $confirmed)
        });)*

        /// All scripts, for the rule of least privilege.
        pub(crate) fn all() -> Vec<&'static Script> {
            vec![$(&*$constant),*]
        }
    };
}

/// The steps of wait queues that grant or change something. A release needs no confirmation: if it is lost, the holding is
/// found by the next comparison, or ends with the lease.
const GRANTS: &[&str] = &["join", "campaign", "enter", "downgrade", "proclaim"];

scripts! {
    /// Connections and leases.
    LEASE ["prelude" "lease"] &["open", "renew", "resume"];
    /// Steps of wait queues.
    WAIT ["fast" "prelude" "wait_queue" "wait"] GRANTS;
    /// Steps of locks whose keys are shared with other programs.
    WAIT_INTEROP ["prelude" "wait_queue" "interop" "wait"] GRANTS;
    /// Steps of transactional memory.
    KEY_VALUE ["prelude" "key_value" "kv"] &["commit", "resolve"];
    /// Steps of work queues.
    WORK_QUEUE ["prelude" "work_queue" "work"] &["enqueue", "take", "ack", "purge"];
    /// Frees what has ended.
    SWEEP ["prelude" "wait_queue" "interop" "key_value" "work_queue" "sweep"] &["detach"];
    /// An operator's acts.
    ADMIN ["prelude" "wait_queue" "interop" "work_queue" "admin"] &["floor"];
}

/// An argument of a script.
#[derive(Clone, Debug)]
pub(crate) enum Argument {
    Bytes(Vec<u8>),
    Text(String),
    Int(u64),
}

impl Argument {
    pub(crate) fn add_to(&self, command: &mut Cmd) {
        match self {
            Self::Bytes(bytes) => command.arg(bytes),
            Self::Text(text) => command.arg(text),
            Self::Int(number) => command.arg(number),
        };
    }
}

impl From<&str> for Argument {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Argument {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Argument {
    fn from(number: u64) -> Self {
        Self::Int(number)
    }
}

impl From<FencingToken> for Argument {
    fn from(token: FencingToken) -> Self {
        Self::Int(token.get())
    }
}

impl From<&[u8]> for Argument {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

/// The answer of a script: a word, then its fields.
pub(crate) struct Answer {
    operation: &'static str,
    fields: Vec<Value>,
}

impl Answer {
    /// Reads the answer of `operation`.
    pub(crate) fn read(operation: &'static str, value: Value) -> Result<Self> {
        match value {
            Value::Array(fields) if !fields.is_empty() => Ok(Self { operation, fields }),
            _ => Err(unexpected(operation, "no list")),
        }
    }

    /// Returns the word that says how the step ended.
    pub(crate) fn word(&self) -> Result<&str> {
        self.text(0)
    }

    /// Returns the number of fields, with the word.
    pub(crate) fn len(&self) -> usize {
        self.fields.len()
    }

    pub(crate) fn bytes(&self, index: usize) -> Result<&[u8]> {
        match self.fields.get(index) {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            Some(Value::SimpleString(text)) => Ok(text.as_bytes()),
            _ => Err(self.unexpected()),
        }
    }

    pub(crate) fn text(&self, index: usize) -> Result<&str> {
        std::str::from_utf8(self.bytes(index)?).map_err(|_| self.unexpected())
    }

    /// Returns an integer, which scripts send as such or as text.
    pub(crate) fn number(&self, index: usize) -> Result<u64> {
        match self.fields.get(index) {
            Some(Value::Int(number)) => u64::try_from(*number).map_err(|_| self.unexpected()),
            _ => self.text(index)?.parse().map_err(|_| self.unexpected()),
        }
    }

    pub(crate) fn token(&self, index: usize) -> Result<FencingToken> {
        self.number(index).map(FencingToken::new)
    }

    /// Returns whether the flag at `index` is set; a missing one is not.
    pub(crate) fn flag(&self, index: usize) -> bool {
        self.number(index).is_ok_and(|number| number == 1)
    }

    /// Returns the error for an answer that no version of the script gives.
    pub(crate) fn unexpected(&self) -> Error {
        // The word is the script's own; the fields may have payloads.
        unexpected(self.operation, self.text(0).unwrap_or("no word"))
    }
}

/// Reads what a channel received: text of a script of ours.
pub(crate) fn message(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}
