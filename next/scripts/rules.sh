#!/usr/bin/env bash
# Checks rules of the sources that neither the compiler nor a test can see. Prints each breach as `file:line: rule: text`, and
# ends with 1 if there is one.
#
# - Words: those of the list below, in sources, tests and documentation.
# - Openings: no line of a doc comment begins with `What`, `That`, `So` or `Of`.
# - Real time, in `tests/gate/`: no `sleep`, and no upper bound on a duration other than 30 s, unless the test has a paused
#   clock. Helpers may sleep, to look again for a condition. A line with the comment `// real time: REASON` is let through.
# - Imports: no circle among the modules of a crate, and in core one direction only: data <- backend <- runtime <- primitives,
#   session, store <- runners. A primitive may add its methods to the session; circles are refused there too.
set -euo pipefail
cd "$(dirname "$0")/.."

# The modules of core by their layer. A module that is not named is a primitive, or the session or the store.
data='clock|compare|credentials|error|executor|fence_gate|guarantees|name|options|sync|token|url|value'
runners='runner'

for module in ${data//|/ } $runners; do
    [ -e "core/src/$module.rs" ] || [ -d "core/src/$module" ] || { echo "scripts/rules.sh: core has no module $module" >&2; exit 1; }
done

words='nobody|somebody|whoever|anew|once more|lets? go|is told|are told|hears?|stands? in line|bury|buries|buried|dear'
words+='|bargains?|weather|ghosts?|everybody|everyone'

status=0
report() { [ -z "$1" ] || { printf '%s\n' "$1"; status=1; }; }

files() { find . -name target -prune -o -name '.?*' -prune -o -type f \( "$@" \) -print | sed 's|^\./||' | LC_ALL=C sort; }

check_words() {
    files -name '*.rs' -o -name '*.md' -o -name '*.lua' -o -name '*.sql' -o -name '*.sh' -o -name '*.toml' |
        grep -vx 'scripts/rules.sh' | tr '\n' '\0' |
        xargs -0 -r grep -nwiE "$words" /dev/null | sed -E 's/^([^:]*:[0-9]+:) */\1 word: /' || true
}

check_openings() {
    files -name '*.rs' | tr '\n' '\0' |
        xargs -0 -r grep -nE '^ *//[/!] (What|That|So|Of)\b' /dev/null | sed -E 's/^([^:]*:[0-9]+:) */\1 opening: /' || true
}

check_real_time() {
    files -path '*/tests/gate/*.rs' | tr '\n' '\0' | xargs -0 -r awk '
        function breach(rule) { printf "%s:%d: %s: %s\n", FILENAME, FNR, rule, $0 }
        # Helpers precede the first test of a file, or have a file of their own.
        FNR == 1 { clock = "none" }
        /^ *#\[(tokio::)?test/ { clock = /start_paused *= *true/ ? "paused" : "real" }
        /^ *\/\// || /\/\/ real time: / { next }
        # Not `clock.sleep`, whose clock may be a manual one.
        clock == "real" && /(^|[^.A-Za-z_])sleep(_until)?\(/ { breach("sleep on real time") }
        clock == "paused" && /thread::sleep\(/ { breach("sleep on real time") }
        clock != "paused" && /elapsed\(\)\)* *<[^<]/ && !/< Duration::from_secs\(30\)/ { breach("upper bound on real time") }
    '
}

# Prints `file:line importer imported` for each path that begins with `crate::` in the crate at $1.
imports() {
    local root=$1 names
    # `Name module` for what the root of the crate exports again.
    names=$(sed 's|//.*||' "$root/lib.rs" 2>/dev/null | tr '\n' ' ' | tr ';' '\n' |
        sed -nE 's/.*\b(pub|pub\([a-z]+\)) use ([a-z_]+)::(.*)/\2 \3/p' |
        awk '{ module = $1; gsub(/[{},]/, " "); $1 = ""; n = split($0, it, " "); for (i = 1; i <= n; i++) print it[i], module }')
    find "$root" -name '*.rs' -not -path "$root/lib.rs" -not -path "$root/main.rs" | LC_ALL=C sort | tr '\n' '\0' |
        NAMES=$names ROOT=$root/ xargs -0 -r awk '
        BEGIN {
            n = split(ENVIRON["NAMES"], it, "\n")
            for (i = 1; i <= n; i++) { split(it[i], pair, " "); home[pair[1]] = pair[2] }
        }
        function edge(path) {
            gsub(/^[ \t]+/, "", path)
            if (!match(path, /^[A-Za-z_0-9]+/)) return
            path = substr(path, 1, RLENGTH)
            if (path in home) path = home[path]
            if (path ~ /^[a-z]/ && path != own) print FILENAME ":" FNR, own, path
        }
        FNR == 1 {
            own = substr(FILENAME, length(ENVIRON["ROOT"]) + 1)
            sub(/\.rs$/, "", own); sub(/\/.*/, "", own)
            depth = 0
        }
        { sub(/\/\/.*/, "") }
        {
            rest = $0
            while (depth > 0 || match(rest, /(^|[^A-Za-z_$])crate::/)) {
                if (depth == 0) {
                    rest = substr(rest, RSTART + RLENGTH)
                    if (rest !~ /^\{/) { edge(rest); continue }
                    depth = 1; rest = substr(rest, 2); first = ""
                }
                # Inside `crate::{...}`: an entry begins after `{` and after each comma of the first level.
                for (i = 1; i <= length(rest) && depth > 0; i++) {
                    c = substr(rest, i, 1)
                    if (c == "{") depth++
                    if (c == "}") depth--
                    if (depth == 1 && c == "," || depth == 0) { edge(first); first = "" }
                    else if (depth == 1) first = first c
                }
                if (depth > 0) break
                rest = substr(rest, i)
            }
        }
    '
}

check_imports() {
    local root edges circle
    for root in src */src; do
        [ -d "$root" ] || continue
        edges=$(imports "$root")
        [ -n "$edges" ] || continue
        circle=$(cut -d ' ' -f 2- <<<"$edges" | LC_ALL=C sort -u | tsort 2>&1 >/dev/null |
            sed -n 's/^tsort: \([a-z_0-9]*\)$/\1/p' | tr '\n' ' ' || true)
        # A case, its stage and its role are described in terms of each other.
        [ -z "$circle" ] || [ "$root" = conformance/src ] || printf '%s: import circle: %s\n' "$root" "$circle"
        [ "$root" = core/src ] || continue
        awk -v data="^($data)$" -v runners="^($runners)$" '
            function layer(module) {
                if (module ~ data) return 0
                if (module == "backend") return 1
                if (module == "runtime") return 2
                if (module ~ runners) return 4
                return 3
            }
            layer($2) < layer($3) { print $1 ": import against the order: " $2 " uses " $3 }
        ' <<<"$edges"
    done
}

report "$(check_words)"
report "$(check_openings)"
report "$(check_real_time)"
report "$(check_imports)"
exit "$status"
