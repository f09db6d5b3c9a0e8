//! Values as text and as JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

pub(super) fn text(key: &str, value: Vec<u8>) -> Result<String> {
    // Only `Utf8Error`: `FromUtf8Error` would carry the value's bytes.
    String::from_utf8(value).map_err(|error| unreadable(key, "is not UTF-8").with_source(error.utf8_error()))
}

pub(super) fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|error| {
        // Report only the position: the parser's message quotes the value.
        let what = match error.is_data() {
            true => "is JSON of another type",
            false => "is not JSON",
        };
        let (line, column) = (error.line(), error.column());
        unreadable(key, &format!("{what} (line {line}, column {column})"))
    })
}

pub(super) fn encode<T: Serialize + ?Sized>(key: &str, value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| {
        Error::new(ErrorKind::Config, "the value cannot be written as JSON")
            .on(key)
            .with_source(error)
    })
}

fn unreadable(key: &str, why: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("the value {why}")).on(key)
}
