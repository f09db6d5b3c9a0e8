//! A server whose scripts read a clock that the test sets, and leave their messages in a list.

use redis::{Connection, Value};
use tenure_testbed::{RedisOptions, RedisServer};

/// The root of the keys.
pub(crate) const ROOT: &str = "{tenure/hunt}/2/";

macro_rules! lua {
    ($($part:literal)*) => { concat!($(include_str!(concat!("../../../lua/", $part, ".lua")), "\n"),*) };
}

const SOURCES: [(&str, &str); 4] = [
    ("wait", lua!("fast" "prelude" "wait_queue" "wait")),
    ("sweep", lua!("prelude" "wait_queue" "sweep")),
    ("lease", lua!("prelude" "lease")),
    ("admin", lua!("prelude" "wait_queue" "admin")),
];

/// Returns the messages since the last call, then for each path its holders and waiters: member, score, deadline, entry.
const STATE: &str = "
local root, answer = KEYS[1], {redis.call('LRANGE', KEYS[1] .. 'MESSAGES', 0, -1)}
redis.call('DEL', root .. 'MESSAGES')
for _, path in ipairs(ARGV) do
  for _, key in ipairs({'/holders', '/waiters'}) do
    local flat, places = redis.call('ZRANGE', root .. path .. key, 0, -1, 'WITHSCORES'), {}
    for i = 1, #flat, 2 do
      local session, nonce = string.match(flat[i], '^([^:]+):([^:]+):')
      places[#places + 1] = {flat[i], flat[i + 1], redis.call('HGET', root .. 'session/' .. session, 'deadline') or '0',
        redis.call('HGET', root .. 'held/' .. session, nonce) or redis.call('HGET', root .. 'kept/' .. session, nonce) or ''}
    end
    answer[#answer + 1] = places
  end
end
return answer";

/// A server of the test's own.
pub(crate) struct Server {
    _server: RedisServer,
    pub(crate) connection: Connection,
}

impl Server {
    pub(crate) fn start() -> Self {
        let server = RedisServer::start(RedisOptions::default().without_persistence()).unwrap();
        let connection = server.admin().connection().unwrap();
        Self {
            _server: server,
            connection,
        }
    }

    pub(crate) fn run(&mut self, command: &redis::Cmd) -> Value {
        command.query(&mut self.connection).expect("an answer")
    }

    /// Loads the scripts, with the changes of `bug`.
    pub(crate) fn load(&mut self, budget: u32, bug: Option<&Bug>) -> Scripts {
        let mut found = bug.is_none();
        let mut load = |name: &str, source: &str| {
            let clock = "{math.floor(redis.call('GET', KEYS[1] .. 'CLOCK') / 1000000), redis.call('GET', KEYS[1] .. 'CLOCK') % 1000000}";
            let mut source = source
                .replace("redis.call('TIME')", clock)
                .replace("redis.call('SPUBLISH', ", "redis.call('RPUSH', root .. 'MESSAGES', ")
                .replace("local most = 100", &format!("local most = {budget}"))
                .replace("budget = {}, 100", &format!("budget = {{}}, {budget}"));
            if let Some(Bug(_, changes)) = bug {
                for (before, after) in *changes {
                    found |= source.contains(before);
                    source = source.replace(before, after);
                }
            }
            let loaded = redis::cmd("SCRIPT")
                .arg("LOAD")
                .arg(&source)
                .query(&mut self.connection);
            loaded.unwrap_or_else(|error| panic!("{name}.lua: {error}"))
        };
        let [wait, sweep, lease, admin] = SOURCES.map(|(name, source)| load(name, source));
        let state = load("state", STATE);
        assert!(
            found,
            "the planted bug changes nothing: {}",
            bug.map_or("", |bug| bug.0)
        );
        Scripts {
            wait,
            sweep,
            lease,
            admin,
            state,
        }
    }
}

/// A defect: its name, and the texts that it replaces in the scripts.
pub(crate) struct Bug(
    pub(crate) &'static str,
    pub(crate) &'static [(&'static str, &'static str)],
);

/// The names of the loaded scripts.
#[derive(Clone)]
pub(crate) struct Scripts {
    pub(crate) wait: String,
    pub(crate) sweep: String,
    pub(crate) lease: String,
    pub(crate) admin: String,
    pub(crate) state: String,
}

/// Reads an answer as text.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        Value::Nil => String::new(),
        other => format!("{other:?}"),
    }
}

pub(crate) fn list(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) => values,
        _ => &[],
    }
}
