//! A server whose scripts read a clock that the test sets, and leave their messages in a list.

use std::collections::BTreeMap;
use std::rc::Rc;

use redis::{Connection, RedisResult, ToRedisArgs, Value};
use tenure_testbed::{RedisOptions, RedisServer};

/// The root of the keys.
pub(crate) const ROOT: &str = "{tenure/hunt}/2/";

macro_rules! lua {
    ($($part:literal)*) => { concat!($(include_str!(concat!("../../../lua/", $part, ".lua")), "\n"),*) };
}

const SOURCES: [(&str, &str); 8] = [
    ("wait", lua!("fast" "prelude" "wait_queue" "wait")),
    ("kv", lua!("prelude" "key_value" "kv")),
    ("work", lua!("prelude" "work_queue" "work")),
    (
        "sweep",
        lua!("prelude" "wait_queue" "interop" "key_value" "work_queue" "sweep"),
    ),
    ("lease", lua!("prelude" "lease")),
    ("admin", lua!("prelude" "wait_queue" "interop" "work_queue" "admin")),
    ("state", STATE),
    ("keys", KEYS),
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

/// Returns all keys, with their types and contents, and the messages since the last call.
const KEYS: &str = "
local root, answer = KEYS[1], {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind, content = redis.call('TYPE', key).ok, nil
  if kind == 'hash' then content = redis.call('HGETALL', key)
  elseif kind == 'zset' then content = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'list' then content = redis.call('LRANGE', key, 0, -1)
  else content = redis.call('GET', key) end
  answer[#answer + 1] = {string.sub(key, #root + 1), kind, content}
end
redis.call('DEL', root .. 'MESSAGES')
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

    /// Loads the scripts with their budgets, and with the changes of `bug`, each of which has to change something.
    pub(crate) fn load(&mut self, budget: u32, bug: Option<&Bug>) -> Scripts {
        let clock = "{math.floor(redis.call('GET', KEYS[1] .. 'CLOCK') / 1000000), redis.call('GET', KEYS[1] .. 'CLOCK') % 1000000}";
        let changes = bug.map_or(&[][..], |bug| bug.1);
        let mut found = vec![false; changes.len()];
        let mut scripts = BTreeMap::new();
        for (name, source) in SOURCES {
            let mut source = source
                .replace("redis.call('TIME')", clock)
                .replace("redis.call('SPUBLISH', ", "redis.call('RPUSH', root .. 'MESSAGES', ")
                .replace("local most = 100", &format!("local most = {budget}"))
                .replace("budget = {}, 100", &format!("budget = {{}}, {budget}"))
                .replace("purged_at_once = 50", &format!("purged_at_once = {budget}"))
                // Ids are forgotten after 3 s, two by each script.
                .replace("= 600 * 1000000, 64", "= 3000000, 2");
            for ((before, after), found) in changes.iter().zip(&mut found) {
                *found |= source.contains(before);
                source = source.replace(before, after);
            }
            let loaded = redis::cmd("SCRIPT")
                .arg("LOAD")
                .arg(&source)
                .query(&mut self.connection);
            let sha1: String = loaded.unwrap_or_else(|error| panic!("{name}: {error}"));
            scripts.insert(name, (sha1, source));
        }
        let name = bug.map_or("", |bug| bug.0);
        assert!(
            found.iter().all(|found| *found),
            "the planted bug changes nothing: {name}"
        );
        Scripts(Rc::new(scripts))
    }

    /// Runs a script of the namespace; one that the server has forgotten is sent again.
    pub(crate) fn script(
        &mut self,
        scripts: &Scripts,
        name: &str,
        arguments: impl Iterator<Item = impl ToRedisArgs> + Clone,
    ) -> RedisResult<Value> {
        let (sha1, source) = &scripts.0[name];
        let mut run = |command: &str, script: &str| {
            let mut command = redis::cmd(command);
            command.arg(script).arg(1).arg(ROOT);
            for argument in arguments.clone() {
                command.arg(argument);
            }
            command.query(&mut self.connection)
        };
        match run("EVALSHA", sha1) {
            Err(error) if error.code() == Some("NOSCRIPT") => run("EVAL", source),
            answer => answer,
        }
    }
}

/// A defect: its name, and the texts that it replaces in the scripts.
pub(crate) struct Bug(
    pub(crate) &'static str,
    pub(crate) &'static [(&'static str, &'static str)],
);

/// The loaded scripts: the name and the source of each.
#[derive(Clone)]
pub(crate) struct Scripts(Rc<BTreeMap<&'static str, (String, String)>>);

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
