//! Defects that are planted into the scripts of keys. Those of the other scripts are in the soak tier.

use super::hunts::Bug;

/// Each defect of transactional memory breaks the model.
pub(crate) const KEYS: &[Bug] = &[
    Bug(
        "a key outlives its session",
        &[("found.owner ~= '-' and left(found.owner) <= 0 then", "false then")],
    ),
    Bug(
        "a removal leaves no revision",
        &[("known[path], removed = false, revision", "known[path] = false")],
    ),
    Bug(
        "a repeated commit acts again",
        &[(
            "  if before then\n    return {before == 'fence'",
            "  if false then\n    return {before == 'fence'",
        )],
    ),
    Bug(
        "a commit that was resolved arrives late and acts",
        &[(
            "  redis.call('HSET', record, 'd' .. slot, 'commit ' .. nonce .. ' aborted')\n",
            "",
        )],
    ),
    Bug(
        "a fence takes any token",
        &[("if token ~= wanted or its_path", "if not token or its_path")],
    ),
    Bug(
        "a fence takes any object",
        &[("token ~= wanted or its_path ~= path or", "token ~= wanted or")],
    ),
    Bug(
        "a fence takes a reader for a writer",
        &[("(alone == '1' and mode == 's')", "false")],
    ),
    Bug(
        "a leased key is in no index",
        &[(
            "    if to ~= '-' then redis.call('HSET', root .. 'held/' .. to, path, 'k') end\n",
            "",
        )],
    ),
    Bug(
        "a key stays in the index of its former owner",
        &[(
            "    if from ~= '-' then redis.call('HDEL', root .. 'held/' .. from, path) end\n",
            "",
        )],
    ),
    Bug(
        "a version does not rise",
        &[("int(found.version + 1)", "found.version")],
    ),
    Bug(
        "revisions follow the clock alone",
        &[("return int(math.max(last + 1, now()))", "return int(now())")],
    ),
    Bug(
        "observers of a removed key are not notified",
        &[(
            "  bind(path, owner, '-')\n  tell_observers(path)",
            "  bind(path, owner, '-')",
        )],
    ),
    Bug(
        "a prefix is greater than what it begins",
        &[("    return #a < #b\n", "    return #a > #b\n")],
    ),
    Bug(
        "a comparison after one that fails decides",
        &[(" and succeeded\n", "\n")],
    ),
    Bug(
        "the end of a lease is not announced",
        &[(
            "first_end = math.min(first_end or math.huge",
            "first_end = math.max(first_end or 0",
        )],
    ),
];
