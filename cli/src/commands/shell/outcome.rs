//! What `tenure shell` prints: a line for each thing that happened.

use serde_json::Value;
use tenure::{Leader, Name};

use crate::output::Object;
use crate::words;

/// What came of a command, or what happened to something held.
///
/// As text `VERB: STATE FIELD=VALUE...`, with ` @NAME` behind the verb when it is about another
/// object than the shell's own, or ` KEY` when it is about a key. Values are words: they are quoted where they could be taken for
/// something else.
#[derive(Debug)]
pub(super) struct Outcome {
    verb: String,
    name: Option<Name>,
    key: Option<Name>,
    state: &'static str,
    fields: Vec<(&'static str, Field)>,
    message: Option<String>,
}

#[derive(Debug)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Outcome {
    /// `verb` came out as `state`; the state may be empty if there are fields.
    pub(super) fn new(verb: &str, state: &'static str) -> Self {
        Self {
            verb: verb.to_owned(),
            name: None,
            key: None,
            state,
            fields: Vec::new(),
            message: None,
        }
    }

    /// `verb` failed.
    pub(super) fn error(verb: &str, why: impl ToString) -> Self {
        let mut outcome = Self::new(verb, "error");
        outcome.message = Some(why.to_string());
        outcome
    }

    /// Who leads.
    pub(super) fn of_leader(verb: &str, leader: Option<&Leader>) -> Self {
        match leader {
            Some(leader) => Self::new(verb, "")
                .bytes("leader", leader.value())
                .number("token", leader.token().get()),
            None => Self::new(verb, "no leader"),
        }
    }

    pub(super) fn number(mut self, field: &'static str, value: u64) -> Self {
        self.fields.push((field, Field::Number(value)));
        self
    }

    pub(super) fn bytes(mut self, field: &'static str, value: &[u8]) -> Self {
        self.fields.push((field, Field::Bytes(value.to_vec())));
        self
    }

    /// It is about the object called `name`.
    pub(super) fn on(mut self, name: &Name) -> Self {
        self.name = Some(name.clone());
        self
    }

    /// It is about `key`.
    pub(super) fn of_key(mut self, key: &Name) -> Self {
        self.key = Some(key.clone());
        self
    }

    /// The line.
    pub(super) fn line(&self, json: bool, usual: &Name) -> String {
        if json { self.json() } else { self.text(usual) }
    }

    fn text(&self, usual: &Name) -> String {
        let mut line = self.verb.clone();
        if let Some(name) = self.name.as_ref().filter(|name| *name != usual) {
            line = format!("{line} @{}", words::word(name.as_str().as_bytes()));
        }
        if let Some(key) = &self.key {
            line = format!("{line} {}", words::word(key.as_str().as_bytes()));
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(self.state);
        for (field, value) in &self.fields {
            let value = match value {
                Field::Number(number) => number.to_string(),
                Field::Bytes(bytes) => words::word(bytes),
            };
            if !line.ends_with(' ') {
                line.push(' ');
            }
            line = format!("{line}{field}={value}");
        }
        match &self.message {
            Some(message) => format!("{line}: {}", crate::output::printable(message)),
            None => line,
        }
    }

    fn json(&self) -> String {
        let mut object = Object::new();
        object.set("command", self.verb.as_str().into());
        if let Some(name) = &self.name {
            object.set("name", name.as_str().into());
        }
        if let Some(key) = &self.key {
            object.set("key", key.as_str().into());
        }
        if !self.state.is_empty() {
            object.set("outcome", self.state.into());
        }
        for (field, value) in &self.fields {
            match value {
                Field::Number(number) => object.set(field, Value::from(*number)),
                Field::Bytes(bytes) => object.set_bytes(field, Some(bytes)),
            }
        }
        if let Some(message) = &self.message {
            object.set("message", message.as_str().into());
        }
        object.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenure::FencingToken;

    #[test]
    fn lines() {
        let (usual, other) = (Name::new("demo").unwrap(), Name::new("a b").unwrap());
        let leader = Leader::new(&b"x\nquery: no leader"[..], FencingToken::new(5));
        let query = Outcome::of_leader("query", Some(&leader)).on(&usual);
        assert_eq!(
            query.line(false, &usual),
            r#"query: leader="x\nquery: no leader" token=5"#
        );
        assert_eq!(
            query.line(true, &usual),
            r#"{"command":"query","name":"demo","leader":"x\nquery: no leader","token":5}"#
        );
        let held = Outcome::new("lock", "held").number("token", 7).on(&other);
        assert_eq!(held.line(false, &usual), r#"lock @"a b": held token=7"#);
        let got = Outcome::new("get", "").bytes("value", b"").of_key(&other);
        assert_eq!(got.line(false, &usual), r#"get "a b": value="""#);
        let error = Outcome::error("frob", "no\nway");
        assert_eq!(error.line(false, &usual), r"frob: error: no\nway");
        assert_eq!(
            Outcome::error("", "what?").line(false, &usual),
            "error: what?"
        );
    }
}
