//! The text of a transaction, as `tenure txn` reads it: comparisons, what is done if they hold, and
//! what is done if not; three blocks, each ended by a blank line. The same three that `etcdctl txn`
//! reads.

use tenure::{Compare, Name, Op, Relation, Target};

use crate::words::{self, Word};

/// A transaction, as it was written down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) compares: Vec<Compare>,
    pub(crate) then: Vec<Op>,
    pub(crate) or_else: Vec<Op>,
}

/// Reads a transaction. What is wrong with it is said with the number of its line.
pub(crate) fn parse(text: &[u8]) -> Result<Script, String> {
    let mut script = Script::default();
    let mut block = 0;
    let mut empty = true;
    for (number, line) in (1_usize..).zip(text.split(|&byte| byte == b'\n')) {
        let line = line.trim_ascii();
        if line.is_empty() {
            block += 1;
            continue;
        }
        empty = false;
        let read = match block {
            0 => compare(line).map(|compare| script.compares.push(compare)),
            1 => operation(line).map(|op| script.then.push(op)),
            2 => operation(line).map(|op| script.or_else.push(op)),
            _ => Err(
                "there are three blocks: nothing may follow the blank line that ends the third"
                    .to_owned(),
            ),
        };
        read.map_err(|why| format!("line {number}: {why}"))?;
    }
    if empty {
        return Err("the transaction is empty: write comparisons, a blank line, what is done if they hold, a blank line, what is done if not".to_owned());
    }
    Ok(script)
}

const COMPARISON: &str = "expected a comparison: value(\"KEY\") = \"VALUE\"; or version, create, mod with a number; one of =, !=, <, >";

/// `value("k") = "v"`
fn compare(line: &[u8]) -> Result<Compare, String> {
    let wrong = || COMPARISON.to_owned();
    let open = line
        .iter()
        .position(|&byte| byte == b'(')
        .ok_or_else(wrong)?;
    let what = line[..open].trim_ascii();
    let (key, rest) = words::first(line[open + 1..].trim_ascii_start(), |byte| byte == b')')?;
    let rest = rest.trim_ascii_start();
    let rest = rest
        .strip_prefix(b")")
        .ok_or_else(wrong)?
        .trim_ascii_start();
    let (relation, rest) = relation(rest).ok_or_else(wrong)?;
    let rest = rest.trim_ascii_start();
    if rest.is_empty() {
        return Err(wrong());
    }
    let (wanted, rest) = words::first(rest, |_| false)?;
    if !rest.trim_ascii_start().is_empty() {
        return Err(
            "there is something behind the comparison: quote a value with blanks".to_owned(),
        );
    }
    let target = match what {
        b"value" => Target::Value(wanted.bytes),
        b"version" => Target::Version(number(&wanted)?),
        b"create" => Target::Created(number(&wanted)?),
        b"mod" => Target::Modified(number(&wanted)?),
        _ => return Err(wrong()),
    };
    Ok(Compare::new(name(&key)?, target, relation))
}

fn relation(text: &[u8]) -> Option<(Relation, &[u8])> {
    let relations = [
        (&b"!="[..], Relation::NotEqual),
        (b"=", Relation::Equal),
        (b"<", Relation::Less),
        (b">", Relation::Greater),
    ];
    let (relation, rest) = relations
        .into_iter()
        .find_map(|(sign, relation)| Some((relation, text.strip_prefix(sign)?)))?;
    // `==`, `<=`, `=>`: not what it looks like.
    let another = rest.first().is_some_and(|byte| b"=<>!".contains(byte));
    (!another).then_some((relation, rest))
}

/// `put KEY VALUE`
fn operation(line: &[u8]) -> Result<Op, String> {
    let words = words::split(line)?;
    match words.as_slice() {
        [verb, key] if verb.is("get") => Ok(Op::Get(name(key)?)),
        [verb, key] if verb.is("delete") => Ok(Op::Delete(name(key)?)),
        [verb, key, value] if verb.is("put") => Ok(Op::Put(name(key)?, value.bytes.clone())),
        [verb, _, _, _, ..] if verb.is("put") => {
            Err("put takes a key and a value: quote a value with blanks".to_owned())
        }
        _ => Err("expected `put KEY VALUE`, `get KEY` or `delete KEY`".to_owned()),
    }
}

fn name(word: &Word) -> Result<String, String> {
    let text = word.text()?;
    Name::new(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn number(word: &Word) -> Result<u64, String> {
    let text = word.text()?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number.ok_or_else(|| format!("{} is not a number", words::quote(&word.bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Script {
        parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_three_blocks() {
        let script = parsed(
            "value(\"state\") = \"open\"\nversion(\"n\") < 3\n\nput state \"closed now\"\nget n\n\ndelete 'a b'\n",
        );
        assert_eq!(
            script,
            Script {
                compares: vec![
                    Compare::value("state").eq("open"),
                    Compare::version("n").lt(3)
                ],
                then: vec![Op::put("state", "closed now"), Op::get("n")],
                or_else: vec![Op::delete("a b")],
            }
        );
    }

    #[test]
    fn blocks_may_be_empty_or_missing() {
        let get = vec![Op::get("a")];
        assert_eq!(parsed("\nget a").then, get);
        assert_eq!(parsed("\n\nget a\n").or_else, get);
        assert_eq!(parsed("\nget a\n\n\n\n").then, get);
        assert_eq!(parsed("mod(\"a\") > 1").compares.len(), 1);
        // Also as it comes from another system.
        assert_eq!(parsed("mod(\"a\") > 1\r\n\r\nget a\r\n").then, get);
    }

    #[test]
    fn all_comparisons() {
        let one = |text: &str| parsed(text).compares.remove(0);
        assert_eq!(one("value(k)=v"), Compare::value("k").eq("v"));
        assert_eq!(
            one("value ( \"k\" ) != 'v w'"),
            Compare::value("k").ne("v w")
        );
        assert_eq!(one("value(\"a)b\") > \"\""), Compare::value("a)b").gt(""));
        assert_eq!(one("value(\"k\") = =").key(), "k");
        assert_eq!(one("create(\"k\") = \"0\""), Compare::create("k").eq(0));
        assert_eq!(one("mod(k) < 7"), Compare::modified("k").lt(7));
        assert_eq!(one("version(k) > 2"), Compare::version("k").gt(2));
        assert_eq!(
            one(r#"value("\u{43a}") = "\xff\n""#),
            Compare::value("к").eq(b"\xff\n")
        );
    }

    #[test]
    fn errors_name_their_line() {
        for (text, line, why) in [
            ("value(\"k\") = \"v\"\nvalue(\"k\")", 2, "comparison"),
            ("value(\"k\") == \"v\"", 1, "comparison"),
            ("value(\"k\") <= \"v\"", 1, "comparison"),
            ("colour(\"k\") = \"v\"", 1, "comparison"),
            ("put a b", 1, "comparison"),
            ("value(\"k\" = \"v\"", 1, "comparison"),
            ("value(\"k\") = \"v", 1, "not closed"),
            ("value(\"k\") = a b", 1, "quote"),
            ("version(\"k\") > two", 1, "\"two\" is not a number"),
            ("version(\"k\") > -1", 1, "number"),
            ("version(\"k\") > 99999999999999999999", 1, "number"),
            ("value(\"\") = a", 1, "empty"),
            ("\nput a b c", 2, "quote"),
            ("\nput a", 2, "put KEY VALUE"),
            ("\nfrob a", 2, "put KEY VALUE"),
            ("\nget a\n\nvalue(\"k\") = \"v\"", 4, "put KEY VALUE"),
            ("\n\n\nget a", 4, "three blocks"),
            ("\nget \"\\xff\"", 2, "UTF-8"),
        ] {
            let said = parse(text.as_bytes()).unwrap_err();
            assert!(
                said.starts_with(&format!("line {line}: ")),
                "{text:?}: {said}"
            );
            assert!(said.contains(why), "{text:?}: {said}");
            assert!(!said.contains('\n'));
        }
        assert!(parse(b" \n\n").unwrap_err().contains("empty"));
    }

    fn written(script: &Script) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        for compare in &script.compares {
            let key = words::quote(compare.key().as_bytes());
            let (what, wanted) = match compare.target() {
                Target::Value(value) => ("value", words::quote(value)),
                Target::Version(number) => ("version", number.to_string()),
                Target::Created(number) => ("create", number.to_string()),
                Target::Modified(number) => ("mod", number.to_string()),
            };
            writeln!(text, "{what}({key}) {} {wanted}", compare.relation()).unwrap();
        }
        for branch in [&script.then, &script.or_else] {
            writeln!(text).unwrap();
            for op in branch {
                let key = words::word(op.key().as_bytes());
                match op {
                    Op::Get(_) => writeln!(text, "get {key}").unwrap(),
                    Op::Put(_, value) => {
                        writeln!(text, "put {key} {}", words::word(value)).unwrap();
                    }
                    Op::Delete(_) => writeln!(text, "delete {key}").unwrap(),
                }
            }
        }
        text
    }

    fn key() -> impl Strategy<Value = String> {
        "[\u{1}-\u{24f}\"'\\\\() =]{1,8}"
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..8)
    }

    fn comparison() -> impl Strategy<Value = Compare> {
        let target = prop_oneof![
            bytes().prop_map(Target::Value),
            any::<u64>().prop_map(Target::Version),
            any::<u64>().prop_map(Target::Created),
            any::<u64>().prop_map(Target::Modified),
        ];
        let relation = prop::sample::select(vec![
            Relation::Equal,
            Relation::NotEqual,
            Relation::Less,
            Relation::Greater,
        ]);
        (key(), target, relation)
            .prop_map(|(key, target, relation)| Compare::new(key, target, relation))
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            key().prop_map(Op::Get),
            key().prop_map(Op::Delete),
            (key(), bytes()).prop_map(|(key, value)| Op::Put(key, value)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            compares in prop::collection::vec(comparison(), 0..4),
            then in prop::collection::vec(op(), 0..4),
            or_else in prop::collection::vec(op(), 1..4),
        ) {
            let script = Script { compares, then, or_else };
            prop_assert_eq!(parse(written(&script).as_bytes()).unwrap(), script);
        }

        #[test]
        fn nothing_panics(
            noise in prop::collection::vec(any::<u8>(), 0..60),
            tricky in "(value|mod|put|get|[(\"') =!<>\\\\a1\n]){0,24}",
        ) {
            let _ = parse(&noise);
            let _ = parse(tricky.as_bytes());
        }
    }
}
