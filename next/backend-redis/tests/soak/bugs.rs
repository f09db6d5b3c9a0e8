//! Defects that are planted into the scripts of wait queues and work queues.

use super::hunts::Bug;

/// Each defect of wait queues and leases breaks one rule, and the schedules find it.
pub(crate) const WAIT_QUEUES: &[Bug] = &[
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
                "  redis.call('HDEL', root .. 'held/' .. session, its_nonce)\n  -- A detached",
                "  -- A detached",
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
            "  local _, behind = remove(q, member)\n  local facts",
            "  local behind\n  local facts",
        )],
    ),
    Bug(
        "an end of a session leaves what it kept",
        &[(" and free_some(session, root .. 'kept/' .. session) then", " then")],
    ),
];

/// Each defect of work queues breaks a rule.
pub(crate) const WORK_QUEUES: &[Bug] = &[
    Bug(
        "an available item is not served",
        &[(
            "local function make_available(q, place, delay)\n  to_serve[q.path] = q\n",
            "local function make_available(q, place, delay)\n",
        )],
    ),
    Bug(
        "a claim stays when it has ended",
        &[("  redis.call('HDEL', q.claims, found)\n", "")],
    ),
    Bug(
        "a withdrawn delivery counts",
        &[("set_item(q, place, math.max(deliveries - 1, 0), counts, id)", "do end")],
    ),
    Bug(
        "a consumer is not notified of its items",
        &[(
            "        leave_consumers(q, member)\n        notify(session, its_nonce)\n",
            "        leave_consumers(q, member)\n",
        )],
    ),
    Bug(
        "a dead consumer is served",
        &[(
            "    if left(session) <= 0 then\n      leave_consumers",
            "    if false then\n      leave_consumers",
        )],
    ),
    Bug(
        "an id keeps none out",
        &[(
            "return kept and (kept == 'inf' or tonumber(kept) > now())",
            "return false",
        )],
    ),
    Bug(
        "an id is forgotten with its item",
        &[(
            "    redis.call('ZADD', q.ids, due, id)\n",
            "    redis.call('ZREM', q.ids, id)\n",
        )],
    ),
    Bug(
        "ids of an unused queue stay",
        &[(
            "    redis.call('ZADD', deadlines, 'LT', due, 'q/' .. q.path)\n  end\nend",
            "  end\nend",
        )],
    ),
    Bug(
        "one delivery too many",
        &[("after > 0 and deliveries >= after", "after > 0 and deliveries > after")],
    ),
    Bug(
        "a dead letter has no id",
        &[(
            "redis.call('HGET', q.values, place), 0, '0', id)",
            "redis.call('HGET', q.values, place), 0, '0', '')",
        )],
    ),
    Bug(
        "a repeated end acts again",
        &[("    return {'ended', before, 0}\n", "    do end\n")],
    ),
    Bug(
        "the last item is taken first",
        &[(
            "local place = redis.call('ZRANGE', q.ready, 0, 0)[1]\n    if not place then\n      break",
            "local place = redis.call('ZRANGE', q.ready, -1, -1)[1]\n    if not place then\n      break",
        )],
    ),
    Bug(
        "a take has no limit of bytes",
        &[("if bytes < 0 and #claims > 0 then", "if false then")],
    ),
    Bug(
        "work that is left is not noted",
        &[(
            "    redis.call('ZADD', deadlines, int(now()), 'q/' .. q.path)\n    again = 1\n",
            "    again = 0\n",
        )],
    ),
    Bug(
        "a delay ends and none looks",
        &[("  elseif first[1] then\n", "  elseif false then\n")],
    ),
    Bug(
        "a newcomer overtakes those who wait",
        &[("    if redis.call('ZCARD', q.consumers) == 0 then", "    if true then")],
    ),
    Bug(
        "a purge takes what came after it began",
        &[(
            "if tonumber(string.sub(place, 7)) < tonumber(limit) then",
            "if true then",
        )],
    ),
    Bug(
        "a purge leaves the takes",
        &[(
            "        drop_claim(root .. 'held/' .. session, q, its_nonce, token)\n",
            "        redis.call('HDEL', q.claims, place)\n",
        )],
    ),
    Bug(
        "a purge begins again at each part",
        &[("    remember(int(count) .. ' ' .. page[1] .. ' ' .. limit)\n", "")],
    ),
    Bug(
        "a broken claim takes the others of its take along",
        &[(
            "  elseif #rest == 0 then\n    redis.call('HDEL', index, its_nonce)",
            "  elseif true then\n    redis.call('HDEL', index, its_nonce)",
        )],
    ),
    Bug(
        "a session ends and keeps its items",
        &[("    give_back(q, claims)\n", "    do end\n")],
    ),
    Bug(
        "a fence takes a claim that has ended",
        &[(
            "string.find(',' .. claims, ',' .. wanted .. '@', 1, true) ~= nil",
            "true",
        )],
    ),
];
