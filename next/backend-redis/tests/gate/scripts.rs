//! The scripts of wait queues and leases on a real server, under random schedules and a virtual clock. After every script
//! the keys are compared with the rules. A failure prints its seed; `TENURE_SEED` repeats one schedule.

mod ends;
mod requests;
mod rules;
mod schedule;
mod server;
mod views;
mod world;

use server::{Bug, Server};

/// Runs schedules from `first` on. Returns the number of steps, or the first failure.
fn hunt(server: &mut Server, first: u64, schedules: u64, bug: Option<&Bug>) -> Result<u64, String> {
    let (small, usual) = (server.load(3, bug), server.load(100, bug));
    schedule::set_back_the_clock(server, usual.clone())?;
    let mut steps = 0;
    for seed in first..first + schedules {
        let scripts = if seed % 3 == 0 { &usual } else { &small };
        steps += schedule::run(server, scripts.clone(), seed)?;
    }
    Ok(steps)
}

fn seed() -> Option<u64> {
    std::env::var("TENURE_SEED").ok()?.parse().ok()
}

#[test]
fn scripts_under_random_schedules_keep_the_rules() {
    let mut server = Server::start();
    let (first, schedules) = seed().map_or((1, 120), |seed| (seed, 1));
    let hunted = hunt(&mut server, first, schedules, None);
    let steps = hunted.unwrap_or_else(|failure| panic!("{failure}"));
    println!("{schedules} schedules, {steps} steps");
}

#[test]
#[ignore = "soak: TENURE_SCHEDULES schedules from a random seed"]
fn scripts_under_long_random_schedules_keep_the_rules() {
    let mut server = Server::start();
    let schedules = std::env::var("TENURE_SCHEDULES")
        .ok()
        .and_then(|number| number.parse().ok());
    let first = seed().unwrap_or_else(|| tenure_core::clock::random() >> 20);
    let hunted = hunt(&mut server, first, schedules.unwrap_or(20_000), None);
    let steps = hunted.unwrap_or_else(|failure| panic!("{failure}"));
    println!("from seed {first}: {steps} steps");
}

/// Each defect breaks one rule, and the schedules find it.
const BUGS: &[Bug] = &[
    Bug(
        "a waiter is granted although its session ended",
        &[(
            "elseif left(session) <= 0 then\n      drop_dead(q, member)",
            "elseif false then\n      drop_dead(q, member)",
        )],
    ),
    Bug(
        "a release takes the mode from the client",
        &[
            (
                "    local modes = mode and {mode} or",
                "    local modes = mode and {'x'} or",
            ),
            ("' .. (mode or '')", ":x'"),
        ],
    ),
    Bug(
        "a repeated release acts again",
        &[("    if step == operation and number == nonce then", "    if false then")],
    ),
    Bug(
        "a waiter whose predecessor left is not notified",
        &[
            (
                "behind = last == member and redis.call('ZRANGE', q.waiters, 0, 0)[1] or nil",
                "",
            ),
            ("    behind = redis.call('ZRANGE', q.waiters, rank, rank)[1]\n", ""),
        ],
    ),
    Bug("a script does not say that work is left", &[("      again = 1\n", "")]),
    Bug(
        "a newcomer that fits overtakes",
        &[(
            "  elseif not rank then\n    return redis.call('ZRANGE', q.waiters, -1, -1)[1]\n",
            "",
        )],
    ),
    Bug(
        "tokens follow the clock alone",
        &[
            ("  if last >= first then", "  if false then"),
            ("if last >= now then", "if false then"),
        ],
    ),
    Bug(
        "a request of an older connection acts",
        &[
            (
                "  elseif tonumber(ARGV[3]) < tonumber(facts[1]) then",
                "  elseif false then",
            ),
            ("facts[1] == ARGV[3]", "facts[1]"),
        ],
    ),
    Bug(
        "a writer is granted beside readers",
        &[("return mode == 's' and its_mode == 's'", "return its_mode == 's'")],
    ),
    Bug(
        "a reader is granted beside a writer",
        &[("return mode == 's' and its_mode == 's'", "return mode == 's'")],
    ),
    Bug(
        "a dead holder is not removed by those behind it",
        &[(
            "    drop_dead(q, ahead)\n    advance(q, {})",
            "    do return {'waiting', 1000, 0} end",
        )],
    ),
    Bug(
        "a dead session comes back when the clock is set back",
        &[
            (
                "      if deadline > 0 then\n        redis.call('HSET'",
                "      if false then\n        redis.call('HSET'",
            ),
            (
                "        if deadline > 0 then\n          end_session(what)\n        end\n",
                "",
            ),
        ],
    ),
    Bug(
        "a removed place leaves its entry",
        &[
            (
                "  redis.call('HDEL', root .. 'held/' .. session, its_nonce)\n  most = most - 1",
                "  most = most - 1",
            ),
            (
                "    redis.call('HDEL', index, flat[i])",
                "    redis.call('HDEL', index, flat[i] .. '?')",
            ),
        ],
    ),
    Bug(
        "a group counts its dead",
        &[(
            "      if left((parts(other))) > 0 then\n        all",
            "      if true then\n        all",
        )],
    ),
    Bug(
        "a group is granted before it is complete",
        &[
            ("(rank and 0 or 1) >= size then", "(rank and 0 or 1) >= size - 1 then"),
            ("#all >= size then", "#all >= size - 1 then"),
        ],
    ),
    Bug(
        "one too many enters",
        &[("  if holder then\n    return {'full'}\n  end", "")],
    ),
    Bug(
        "a group of another size is accepted",
        &[("if its_mode ~= mode then", "if false then")],
    ),
    Bug(
        "a participant sees none inside while others are",
        &[("  return {'inside', math.ceil(rest / 1000)}", "  return {'none'}")],
    ),
    Bug(
        "a proclamation that arrives late replaces a later one",
        &[("if tonumber(ARGV[8]) > (tonumber(known) or 0) then", "if true then")],
    ),
    Bug(
        "a vacancy has the version of the leader before it",
        &[(
            "    if q.values and vacant then\n      next_token()",
            "    if false then\n      next_token()",
        )],
    ),
    Bug(
        "observers are not notified",
        &[("    if q.values or vacant then", "    if vacant then")],
    ),
    Bug(
        "a value stays after its candidate",
        &[("    redis.call('HDEL', q.values, field(member))", "    do end")],
    ),
    Bug(
        "a detachment keeps everything",
        &[("  if not free_some(me, held) then", "  if false then")],
    ),
    Bug(
        "a broken holding stays",
        &[(
            "  local _, behind = remove(q, member)\n  -- The mark",
            "  local behind\n  -- The mark",
        )],
    ),
    Bug(
        "an end of a session leaves what it kept",
        &[(" and free_some(session, root .. 'kept/' .. session) then", " then")],
    ),
];

#[test]
#[ignore = "soak: one to two minutes; TENURE_BUG selects by a part of the name"]
fn planted_bugs_are_found() {
    let mut server = Server::start();
    let schedules = std::env::var("TENURE_SCHEDULES")
        .ok()
        .and_then(|number| number.parse().ok())
        .unwrap_or(1_500);
    let mut missed = Vec::new();
    let only = std::env::var("TENURE_BUG").unwrap_or_default();
    for bug in BUGS.iter().filter(|bug| bug.0.contains(&only)) {
        match hunt(&mut server, 1, schedules, Some(bug)) {
            Ok(steps) => {
                println!("{}: NOT FOUND in {steps} steps", bug.0);
                missed.push(bug.0);
            }
            Err(found) => println!("{}: {}", bug.0, found.lines().next().unwrap_or_default()),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
