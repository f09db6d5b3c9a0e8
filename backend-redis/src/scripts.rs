//! The scripts: one for each step, put together from parts that several share.

use std::sync::LazyLock;

/// Parts that a script may name in its first line, `-- uses: line, queue`; `all` is all of them that
/// free what is held.
const PARTS: &[(&str, &str)] = &[
    ("line", include_str!("../lua/line.lua")),
    ("election", include_str!("../lua/election.lua")),
    ("interop", include_str!("../lua/interop.lua")),
    ("barrier", include_str!("../lua/barrier.lua")),
    ("queue", include_str!("../lua/queue.lua")),
    ("stm", include_str!("../lua/stm.lua")),
    ("commit", include_str!("../lua/commit.lua")),
];

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
    /// Whether it goes ahead of whatever waits for its turn: the session's life depends on it.
    pub(crate) fn overtakes(&self) -> bool {
        matches!(self.name, "renew" | "renew_keys" | "revoke")
    }

    /// `first` comes even before the prelude. `with` names parts, as the first line of `body` may.
    fn assemble(name: &'static str, first: &str, with: &str, body: &str) -> Self {
        let mut source = first.to_owned() + PRELUDE;
        let uses = body
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("-- uses: "))
            .or(Some(with));
        for (part, text) in PARTS {
            let wanted = uses.is_some_and(|uses| {
                let frees = !matches!(*part, "stm" | "commit");
                let mut uses = uses.split(',').map(str::trim);
                uses.any(|wanted| wanted == *part || wanted == "all" && frees)
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
    ($($NAME:ident $file:literal $(after $first:literal)? $(with $with:literal)?;)*) => {
        $(pub(crate) static $NAME: LazyLock<Script> = LazyLock::new(|| {
            let first = concat!($(include_str!(concat!("../lua/", $first, ".lua")))?);
            Script::assemble($file, first, concat!($($with)?), include_str!(concat!("../lua/", $file, ".lua")))
        });)*

        const ALL: &[&LazyLock<Script>] = &[$(&$NAME),*];
    };
}

scripts! {
    OPEN "open";
    RENEW "renew";
    RENEW_KEYS "renew_keys";
    REVOKE "revoke";
    BURY "bury";
    WITHDRAW_LOCK "withdraw" with "line";
    WITHDRAW_INTEROP "withdraw" with "line, interop";
    WITHDRAW_ELECTION "withdraw" with "line, election";
    WITHDRAW_BARRIER "withdraw" with "barrier";
    JOIN "join";
    LOOK "look";
    LEAVE "leave";
    LOCK "join" after "take_alone";
    UNLOCK "leave" after "leave_alone";
    INDEX "index";
    GIVE_BACK_AGAIN "give_back_again";
    REPEAT "repeat";
    RAISE_TOKEN_FLOOR "raise_token_floor";
    RAISE_WAITERS "raise_waiters";
    SESSIONS "sessions";
    RECLAIM "reclaim";
    CAMPAIGN "campaign";
    PROCLAIM "proclaim";
    LEADER "leader";
    OBSERVE "observe";
    DOWNGRADE "downgrade";
    KEEP "keep";
    DETACH "detach";
    DROP "drop";
    RESUME "resume";
    AUDIT "audit";
    BARRIER_HOLD "barrier_hold";
    BARRIER_LIFT "barrier_lift";
    BARRIER_LOOK "barrier_look";
    BARRIER_UNHOLD "barrier_unhold";
    DOUBLE_BARRIER_ENTER "double_barrier_enter";
    DOUBLE_BARRIER_LEAVE "double_barrier_leave";
    DOUBLE_BARRIER_LOOK "double_barrier_look";
    STM_READ "stm_read";
    STM_COMMIT "stm_commit";
    STM_COMMIT_FENCED "stm_commit_fenced";
    STM_RESOLVE "stm_resolve";
    QUEUE_ENQUEUE "queue_enqueue";
    QUEUE_TAKE "queue_take";
    QUEUE_ACK "queue_ack";
    QUEUE_NACK "queue_nack";
    QUEUE_LEAVE "queue_leave";
    QUEUE_DEPTH "queue_depth";
    QUEUE_PEEK "queue_peek";
    QUEUE_PURGE "queue_purge";
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
            let (_, body) = script.source.split_once(PRELUDE).unwrap();
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
