//! The scripts: one for each step, put together from parts that several share.

use std::sync::LazyLock;

/// Parts that a script may name in its first line, `-- uses: line, queue`; `all` is all of them.
const PARTS: &[(&str, &str)] = &[("line", include_str!("../lua/line.lua"))];

const PRELUDE: &str = include_str!("../lua/prelude.lua");

/// One script, ready to be sent.
pub(crate) struct Script {
    /// The file's name, for errors.
    pub(crate) name: &'static str,
    pub(crate) source: String,
    /// By which Redis knows it once it has seen it.
    pub(crate) hash: String,
}

impl Script {
    fn assemble(name: &'static str, body: &str) -> Self {
        let mut source = PRELUDE.to_owned();
        let uses = body
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("-- uses: "));
        for (part, text) in PARTS {
            let wanted = uses.is_some_and(|uses| {
                uses == "all" || uses.split(',').any(|wanted| wanted.trim() == *part)
            });
            if wanted {
                source.push_str(text);
            }
        }
        source.push_str(body);
        let hash = redis::Script::new(&source).get_hash().to_owned();
        Self { name, source, hash }
    }
}

macro_rules! scripts {
    ($($NAME:ident $file:literal;)*) => {
        $(pub(crate) static $NAME: LazyLock<Script> = LazyLock::new(|| {
            Script::assemble($file, include_str!(concat!("../lua/", $file, ".lua")))
        });)*

        const ALL: &[&LazyLock<Script>] = &[$(&$NAME),*];
    };
}

scripts! {
    OPEN "open";
    RENEW "renew";
    REVOKE "revoke";
    BURY "bury";
    WITHDRAW "withdraw";
    JOIN "join";
    LOOK "look";
    LEAVE "leave";
}

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static Script> {
    ALL.iter().map(|script| &***script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_says_what_it_uses() {
        for script in ALL {
            let body = script.source.strip_prefix(PRELUDE).unwrap();
            for (part, text) in PARTS {
                let declares = |word: &str| body.contains(word);
                if *part == "line" && declares("standing(") {
                    assert!(body.contains(text), "{} uses {part}", script.name);
                }
            }
            assert!(script.hash.len() == 40, "{}", script.name);
        }
    }
}
