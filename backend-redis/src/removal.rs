//! The end of a namespace.

use redis::{Value, cmd};
use tenure_core::{Error, ErrorKind, Result};

use crate::client::Client;
use crate::config::RedisConfig;
use crate::{endpoint, layout};

/// How many keys a request looks at, or removes.
const SOME: usize = 500;

/// Removes all keys of the configured namespace: data, items of queues, and everything that is held or waited for. For
/// a namespace that nobody uses any more, as that of a test: whoever still does loses what it has there, and is told
/// so. Names that are shared with others
/// ([interop](RedisConfig::interop)) are in no namespace, and stay.
///
/// **Tokens begin anew at the server's clock.** They are greater than those before unless that clock was set back
/// since, or another server with an earlier one took over: do not use the namespace again for what a resource
/// remembers tokens of.
///
/// The user needs the right to `SCAN`, besides those of [`acl_rules`](crate::acl_rules): all keys of the server are
/// looked at, some hundred at a time.
///
/// # Errors
///
/// As of [`connect`](crate::connect); `Unauthorized` for a right that is missing. A part may be removed by then.
///
/// # Cancel safety
///
/// When the future is dropped, a part may be removed.
pub async fn remove_namespace(config: RedisConfig) -> Result<()> {
    let pattern = literally(&layout::root(&config.namespace)) + "*";
    let client = Client::new(config);
    let connection = client.connection().await?;
    let mut cursor = "0".to_owned();
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(&cursor).arg("MATCH").arg(&pattern);
        scan.arg("COUNT").arg(SOME);
        let (next, keys) = match client.send(&connection, &scan).await? {
            Value::Array(answer) => match <[Value; 2]>::try_from(answer) {
                Ok([next, Value::Array(keys)]) => (next, keys),
                _ => return Err(unreadable()),
            },
            _ => return Err(unreadable()),
        };
        for some in keys.chunks(SOME) {
            let mut unlink = cmd("UNLINK");
            for key in some {
                match key {
                    Value::BulkString(key) => unlink.arg(key),
                    _ => return Err(unreadable()),
                };
            }
            client.send(&connection, &unlink).await?;
        }
        cursor = endpoint::text(&next);
        if cursor == "0" {
            return Ok(());
        }
    }
}

fn unreadable() -> Error {
    Error::new(ErrorKind::Internal, "an answer to SCAN that makes no sense")
}

/// A glob that matches this text and nothing else.
fn literally(text: &str) -> String {
    let mut glob = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            glob.push('\\');
        }
        glob.push(character);
    }
    glob
}
