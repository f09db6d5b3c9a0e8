//! One step: what goes into a script, and what comes out.

use redis::{Cmd, Value};
use tenure_core::{Error, FencingToken, Result};

use crate::error;

/// An argument of a script.
#[derive(Clone, Copy)]
pub(crate) enum Arg<'a> {
    Bytes(&'a [u8]),
    Text(&'a str),
    Int(u64),
}

impl Arg<'_> {
    /// How many bytes it has.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Text(text) => text.len(),
            Self::Int(_) => size_of::<u64>(),
        }
    }

    pub(crate) fn add_to(self, command: &mut Cmd) {
        match self {
            Self::Bytes(bytes) => command.arg(bytes),
            Self::Text(text) => command.arg(text),
            Self::Int(number) => command.arg(number),
        };
    }
}

impl<'a> From<&'a [u8]> for Arg<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a> From<&'a str> for Arg<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for Arg<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Arg<'_> {
    fn from(number: u64) -> Self {
        Self::Int(number)
    }
}

impl From<FencingToken> for Arg<'_> {
    fn from(token: FencingToken) -> Self {
        Self::Int(token.get())
    }
}

/// What a script answered: a status, and what comes with it.
pub(crate) struct Reply {
    script: &'static str,
    /// The number of the connection that carried it.
    connection: u64,
    status: String,
    fields: Vec<Value>,
}

impl Reply {
    pub(crate) fn parse(script: &'static str, connection: u64, value: Value) -> Result<Self> {
        let Value::Array(mut fields) = value else {
            return Err(error::unexpected(script, "no array"));
        };
        if fields.is_empty() {
            return Err(error::unexpected(script, "an empty array"));
        }
        let status = match fields.remove(0) {
            Value::BulkString(status) => String::from_utf8_lossy(&status).into_owned(),
            Value::SimpleString(status) => status,
            _ => return Err(error::unexpected(script, "no status")),
        };
        Ok(Self {
            script,
            connection,
            status,
            fields,
        })
    }

    /// The number of the connection that carried it: a higher one than before means that the server may have
    /// lost its newest writes in between.
    pub(crate) fn connection(&self) -> u64 {
        self.connection
    }

    pub(crate) fn status(&self) -> &str {
        &self.status
    }

    /// How many fields there are after the status.
    pub(crate) fn len(&self) -> usize {
        self.fields.len()
    }

    /// The error of a status that makes no sense here.
    pub(crate) fn unexpected(&self) -> Error {
        error::unexpected(self.script, format!("`{}`", self.status))
    }

    fn bad_field(&self, field: usize) -> Error {
        error::unexpected(self.script, format!("field {field} of `{}`", self.status))
    }

    /// A field as a number, whether it came as one or as text.
    pub(crate) fn int(&self, field: usize) -> Result<i64> {
        match self.fields.get(field) {
            Some(Value::Int(number)) => Ok(*number),
            Some(Value::BulkString(text)) => std::str::from_utf8(text)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| self.bad_field(field)),
            _ => Err(self.bad_field(field)),
        }
    }

    pub(crate) fn unsigned(&self, field: usize) -> Result<u64> {
        u64::try_from(self.int(field)?).map_err(|_| self.bad_field(field))
    }

    pub(crate) fn token(&self, field: usize) -> Result<FencingToken> {
        self.unsigned(field).map(FencingToken::new)
    }

    /// A field as bytes; nothing for nil.
    pub(crate) fn bytes(&self, field: usize) -> Result<Option<&[u8]>> {
        match self.fields.get(field) {
            Some(Value::BulkString(bytes)) => Ok(Some(bytes)),
            Some(Value::SimpleString(text)) => Ok(Some(text.as_bytes())),
            Some(Value::Nil | Value::Boolean(false)) => Ok(None),
            _ => Err(self.bad_field(field)),
        }
    }

    pub(crate) fn text(&self, field: usize) -> Result<&str> {
        self.bytes(field)?
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .ok_or_else(|| self.bad_field(field))
    }
}
