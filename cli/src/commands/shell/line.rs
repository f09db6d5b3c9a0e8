//! What can be typed in `tenure shell`: one command a line.

use tenure::Name;

use crate::words::{self, Word};

/// A command of the shell, for `help` and for completion.
#[derive(Debug)]
pub(super) struct Verb {
    pub(super) name: &'static str,
    /// What follows it.
    pub(super) words: &'static str,
    pub(super) does: &'static str,
}

const fn verb(name: &'static str, words: &'static str, does: &'static str) -> Verb {
    Verb { name, words, does }
}

/// All commands, in the order in which `help` lists them.
pub(super) const VERBS: [Verb; 25] = [
    verb(
        "elect",
        "[VALUE]",
        "stand as a candidate; waits to be elected",
    ),
    verb(
        "proclaim",
        "VALUE",
        "change the value of the own leadership",
    ),
    verb("resign", "", "give up the leadership, or the candidacy"),
    verb("query", "", "who leads now, and with which token"),
    verb("rev", "", "the token of the present leadership"),
    verb(
        "watch",
        "",
        "a line for every change of the leader from now on",
    ),
    verb("lock", "", "take the lock; waits in line"),
    verb("unlock", "", "release the lock, or give up waiting for it"),
    verb("r", "", "take the read-write lock to read"),
    verb("w", "", "take the read-write lock to write"),
    verb("runlock", "", "release it, or give up waiting to read"),
    verb("wunlock", "", "release it, or give up waiting to write"),
    verb("push", "VALUE", "put a value into the queue"),
    verb(
        "pushp",
        "PRIORITY VALUE",
        "the same; lower numbers come first",
    ),
    verb("pop", "", "take the first value; waits for one"),
    verb(
        "hold",
        "",
        "hold the barrier until it is released or this shell ends",
    ),
    verb("release", "", "release the barrier, whoever holds it"),
    verb("wait", "", "wait until the barrier is not held"),
    verb(
        "enter",
        "COUNT",
        "enter the double barrier; waits until COUNT have",
    ),
    verb(
        "leave",
        "",
        "leave it, or give up entering; waits until all have left",
    ),
    verb("get", "KEY", "what stands under a key"),
    verb("put", "KEY VALUE", "write a value under a key"),
    verb("del", "KEY", "delete a key"),
    verb("help", "", "this list"),
    verb("quit", "", "release everything, and end"),
];

/// One line, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) verb: &'static str,
    /// The object, if the line names one.
    pub(super) name: Option<Name>,
    pub(super) action: Action,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    Elect(Option<Vec<u8>>),
    Proclaim(Vec<u8>),
    Resign,
    Query,
    Rev,
    Watch,
    Lock,
    Unlock,
    Read,
    Write,
    ReadUnlock,
    WriteUnlock,
    Push { priority: u16, value: Vec<u8> },
    Pop,
    Hold,
    Release,
    Wait,
    Enter(u32),
    Leave,
    Get(Name),
    Put(Name, Vec<u8>),
    Delete(Name),
    Help,
    Quit,
}

impl Action {
    /// The key that it is about, if it is.
    pub(super) fn key(&self) -> Option<&Name> {
        match self {
            Self::Get(key) | Self::Put(key, _) | Self::Delete(key) => Some(key),
            _ => None,
        }
    }
}

/// A line that makes no sense: what it began with, as far as that can be told, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nonsense {
    pub(super) verb: Option<String>,
    pub(super) why: String,
}

/// Reads a line; `None` for one that is empty.
pub(super) fn parse(line: &[u8]) -> Result<Option<Line>, Nonsense> {
    let words = words::split_with_names(line).map_err(|why| Nonsense {
        verb: begun(line),
        why,
    })?;
    let Some((first, arguments)) = words.split_first() else {
        return Ok(None);
    };
    let nonsense = |why| Nonsense {
        verb: Some(words::word(&first.bytes)),
        why,
    };
    let verb = VERBS.iter().find(|verb| first.is(verb.name));
    let verb = verb.ok_or_else(|| nonsense("unknown command: try `help`".to_owned()))?;
    understand(verb, arguments).map(Some).map_err(nonsense)
}

/// The verb of a line whose words cannot be told apart: the first can, where it has no quotes.
fn begun(line: &[u8]) -> Option<String> {
    let (first, _) = words::first(line.trim_ascii_start(), |_| false).ok()?;
    Some(words::word(&first.bytes))
}

fn understand(verb: &'static Verb, arguments: &[Word]) -> Result<Line, String> {
    // `push @orders VALUE`; without other words `lock orders` will do.
    let (name, arguments) = match arguments {
        [first, rest @ ..] if first.named => (Some(name(&first.bytes)?), rest),
        [first, rest @ ..] if is_name(first) => (Some(name(&first.bytes[1..])?), rest),
        [only] if verb.words.is_empty() && takes_name(verb) => (Some(name(&only.bytes)?), &[][..]),
        _ => (None, arguments),
    };
    if arguments.iter().any(|word| word.named) {
        return Err(usage(verb));
    }
    let named = name.is_some();
    let action = match (verb.name, arguments) {
        ("elect", []) => Action::Elect(None),
        ("elect", [value]) => Action::Elect(Some(value.bytes.clone())),
        ("proclaim", [value]) => Action::Proclaim(value.bytes.clone()),
        ("resign", []) => Action::Resign,
        ("query", []) => Action::Query,
        ("rev", []) => Action::Rev,
        ("watch", []) => Action::Watch,
        ("lock", []) => Action::Lock,
        ("unlock", []) => Action::Unlock,
        ("r", []) => Action::Read,
        ("w", []) => Action::Write,
        ("runlock", []) => Action::ReadUnlock,
        ("wunlock", []) => Action::WriteUnlock,
        ("push", [value]) => Action::Push {
            priority: 0,
            value: value.bytes.clone(),
        },
        ("pushp", [priority, value]) => Action::Push {
            priority: number(priority, "PRIORITY is a number from 0 to 65535")?,
            value: value.bytes.clone(),
        },
        ("pop", []) => Action::Pop,
        ("hold", []) => Action::Hold,
        ("release", []) => Action::Release,
        ("wait", []) => Action::Wait,
        ("enter", [count]) => Action::Enter(number(count, "COUNT is a number")?),
        ("leave", []) => Action::Leave,
        ("get", [key]) if !named => Action::Get(self::name(&key.bytes)?),
        ("put", [key, value]) if !named => {
            Action::Put(self::name(&key.bytes)?, value.bytes.clone())
        }
        ("del", [key]) if !named => Action::Delete(self::name(&key.bytes)?),
        ("help", []) if !named => Action::Help,
        ("quit", []) if !named => Action::Quit,
        _ => return Err(usage(verb)),
    };
    let verb = verb.name;
    Ok(Line { verb, name, action })
}

/// Whether it is about an object that has a name beside its words.
pub(super) fn takes_name(verb: &Verb) -> bool {
    !matches!(verb.name, "get" | "put" | "del" | "help" | "quit")
}

/// How a command is written.
pub(super) fn form(verb: &Verb) -> String {
    let name = if !takes_name(verb) { "" } else { " [@NAME]" };
    let space = if verb.words.is_empty() { "" } else { " " };
    format!("{}{name}{space}{}", verb.name, verb.words)
}

fn usage(verb: &Verb) -> String {
    let hint = if verb.words.contains("VALUE") {
        "; a value with blanks, or that begins with @, goes in quotes, and a name with blanks behind its @"
    } else {
        ""
    };
    format!("expected `{}`{hint}", form(verb))
}

fn is_name(word: &Word) -> bool {
    !word.quoted && word.bytes.len() > 1 && word.bytes.starts_with(b"@")
}

fn name(bytes: &[u8]) -> Result<Name, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "a name has to be UTF-8".to_owned())?;
    Name::new(text).map_err(|error| error.to_string())
}

fn number<T: std::str::FromStr>(word: &Word, why: &str) -> Result<T, String> {
    let parsed = word.text().ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn understood(line: &str) -> Line {
        parse(line.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn every_verb_is_understood() {
        for verb in &VERBS {
            let words = verb.words.split_whitespace().map(|_| " 7");
            let line = format!("{}{}", verb.name, words.collect::<String>());
            assert_eq!(understood(&line).verb, verb.name);
        }
        assert!(parse(b"  ").unwrap().is_none());
    }

    #[test]
    fn another_object() {
        let name = |line| understood(line).name.map(|name| name.to_string());
        assert_eq!(name("lock"), None);
        assert_eq!(name("lock orders"), Some("orders".to_owned()));
        assert_eq!(name("lock \"a b\""), Some("a b".to_owned()));
        assert_eq!(name("lock @orders"), Some("orders".to_owned()));
        assert_eq!(name("push @jobs one"), Some("jobs".to_owned()));
        assert_eq!(name("push @\"a b\" one"), Some("a b".to_owned()));
        assert_eq!(name("lock @'a b'"), Some("a b".to_owned()));
        assert_eq!(name("lock @\"@x\""), Some("@x".to_owned()));
        assert_eq!(
            understood("elect @jobs").action,
            Action::Elect(None),
            "a name, no value"
        );
        assert_eq!(
            understood("elect \"@jobs\"").action,
            Action::Elect(Some(b"@jobs".to_vec()))
        );
    }

    #[test]
    fn nonsense_says_why() {
        for (line, verb, why) in [
            ("frobnicate", Some("frobnicate"), "unknown"),
            ("\"lock\"", Some("lock"), "unknown"),
            ("a\u{1b}[2J", Some("\"a\\u{1b}[2J\""), "unknown"),
            ("push a b", Some("push"), "quotes"),
            ("push", Some("push"), "push [@NAME] VALUE"),
            ("pushp x y", Some("pushp"), "65535"),
            ("enter many", Some("enter"), "number"),
            ("lock a b", Some("lock"), "expected"),
            ("get @x y", Some("get"), "expected `get KEY`"),
            ("lock \"\"", Some("lock"), "empty"),
            ("lock @\"\"", Some("lock"), "empty"),
            ("lock @\"a", Some("lock"), "closed"),
            ("push @\"a\"b x", Some("push"), "blank"),
            ("push @a @\"b\"", Some("push"), "push [@NAME] VALUE"),
            ("get @\"x\"", Some("get"), "expected `get KEY`"),
            ("push \"a", Some("push"), "closed"),
            ("  put k 'v", Some("put"), "closed"),
            ("put k \"\\q\"", Some("put"), "escape"),
            ("\"push a", None, "closed"),
        ] {
            let nonsense = parse(line.as_bytes()).unwrap_err();
            assert_eq!(nonsense.verb.as_deref(), verb, "{line}");
            assert!(nonsense.why.contains(why), "{line}: {}", nonsense.why);
        }
    }

    proptest! {
        /// A name can be typed as an outcome shows it.
        #[test]
        fn a_name_is_read_back_as_it_is_printed(text in any::<String>()) {
            if let Ok(wanted) = Name::new(&text) {
                let word = words::word(text.as_bytes());
                let line = understood(&format!("push @{word} x"));
                prop_assert_eq!(line.name, Some(wanted.clone()));
                let line = understood(&format!("get {word}"));
                prop_assert_eq!(line.action.key(), Some(&wanted));
            }
        }
    }
}
