//! What a Redis user needs to be allowed.

use std::collections::BTreeSet;

use tenure_core::Namespace;

use crate::layout;
use crate::scripts;

/// What is sent beside the scripts. `get` finds the node of a cluster that serves the namespace.
const SENT: &[&str] = &[
    "eval",
    "evalsha",
    "get",
    "ping",
    "select",
    "subscribe",
    "unsubscribe",
    "set",
    "wait",
    "info",
    "cluster|slots",
];

/// The rules for a user of an access control list who may do all that tenure does in `namespace`, and
/// nothing else: `ACL SETUSER app on >password` and these.
///
/// Of the commands, `wait` is for `wait_replicas` (`wait_aof` needs `+waitaof` as well, which older
/// servers do not know), `info` is for
/// [`guarantees`](tenure_core::Store::guarantees), which takes what it may not see for the weakest,
/// and `cluster|slots` is for finding a cluster's nodes when those in the URL are gone.
///
/// Not among them is `config|get`, without which the guarantees say nothing of `appendfsync`: it also shows
/// `requirepass` and `masterauth`, with which its user may do everything.
pub fn acl_rules(namespace: &Namespace) -> String {
    let root = pattern(&layout::root(namespace));
    let mut commands: BTreeSet<String> = SENT.iter().map(|&name| name.to_owned()).collect();
    for script in scripts::all() {
        commands.extend(called_by(&script.source));
    }
    let commands: Vec<_> = commands.iter().map(|name| format!("+{name}")).collect();
    format!("~{root}* &{root}* {}", commands.join(" "))
}

/// The commands that a script calls.
fn called_by(source: &str) -> impl Iterator<Item = String> {
    source
        .split("redis.call('")
        .skip(1)
        .chain(source.split("redis.pcall('").skip(1))
        .filter_map(|rest| rest.split('\'').next())
        .map(str::to_ascii_lowercase)
}

/// A text that matches itself alone, in a pattern of an access control list. There is no way to write a
/// space there: `?` is any one character.
fn pattern(text: &str) -> String {
    let mut pattern = String::new();
    for char in text.chars() {
        match char {
            '*' | '?' | '[' | ']' | '\\' | '^' => pattern.extend(['\\', char]),
            char if char.is_whitespace() => pattern.extend((0..char.len_utf8()).map(|_| '?')),
            char => pattern.push(char),
        }
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_call_nothing_by_another_way() {
        for script in scripts::all() {
            let named = script.source.matches("redis.call('").count()
                + script.source.matches("redis.pcall('").count();
            let calls = script.source.matches("redis.call").count()
                + script.source.matches("redis.pcall").count();
            assert_eq!(
                named, calls,
                "{}: a command by a variable name",
                script.name
            );
        }
    }

    /// Redis names the line of what it refuses; which command that is, follows from there alone.
    #[test]
    fn scripts_have_one_call_a_line() {
        for script in scripts::all() {
            for line in script.source.lines() {
                let calls =
                    line.matches("redis.call(").count() + line.matches("redis.pcall(").count();
                assert!(calls <= 1, "{}: {line}", script.name);
            }
        }
    }

    #[test]
    fn the_documented_rule_is_the_one() {
        let documented = include_str!("../../docs/redis.md");
        let rules = acl_rules(&Namespace::new("orders").unwrap());
        assert!(documented.contains(&rules), "docs must show: {rules}");
    }

    #[test]
    fn the_rule_shows_no_passwords() {
        let rules = acl_rules(&Namespace::new("orders").unwrap());
        for right in ["config", "acl", "@", "debug", "monitor"] {
            assert!(!rules.contains(&format!("+{right}")), "{right}: {rules}");
        }
    }

    #[test]
    fn patterns_match_the_namespace_alone() {
        let rules = acl_rules(&Namespace::new("a*b c").unwrap());
        assert!(
            rules.starts_with("~{tenure/1/a\\*b?c}/* &{tenure/1/a\\*b?c}/* +"),
            "{rules}"
        );
    }
}
