#!/usr/bin/env bash
# Prints the lines of each crate beside its budget, the files above 350 lines, and with `--public` the number of
# public items of core (which compiles it, and needs jq).
#
# `src` counts the lines of Rust, Lua and SQL in `src/`, `tests` those of `tests/`, `benches/` and `examples/`. `over` is a
# budget exceeded by more than a tenth: a mechanism may be there twice.
set -euo pipefail
cd "$(dirname "$0")/.."

# crate, folder, budget of `src`
budgets='tenure . 500
tenure-core core 6800
tenure-memory backend-memory 1700
tenure-etcd backend-etcd 4000
tenure-redis backend-redis 4000
tenure-postgres backend-postgres 4200
tenure-conformance conformance 10000
tenure-testbed testbed 3000
tenure-cli cli 4000
extra extra 2500'

sources() { find "$@" -type f \( -name '*.rs' -o -name '*.lua' -o -name '*.sql' \) -not -path '*/target/*' 2>/dev/null || true; }
lines() { sources "$@" | tr '\n' '\0' | xargs -0 -r cat | wc -l; }

printf '%-20s %7s %7s %7s\n' crate src budget tests
all_src=0 all_tests=0
while read -r crate folder budget; do
    [ -e "$folder" ] || continue
    if [ "$crate" = extra ]; then
        src=$(lines "$folder") tests=0
    else
        src=$(lines "$folder/src") tests=$(lines "$folder/tests" "$folder/benches" "$folder/examples")
    fi
    [ "$((src + tests))" -gt 0 ] || continue
    note=
    [ "$src" -le "$((budget * 11 / 10))" ] || note=over
    printf '%-20s %7s %7s %7s %s\n' "$crate" "$src" "$budget" "$tests" "$note"
    all_src=$((all_src + src)) all_tests=$((all_tests + tests))
done <<<"$budgets"
printf '%-20s %7s %7s %7s\n\n' all "$all_src" 40700 "$all_tests"

echo 'files above 350 lines:'
sources . | tr '\n' '\0' | xargs -0 -r wc -l | awk '$2 != "total" && $1 > 350 { print "  " $1, $2; any = 1 } END { if (!any) print "  none" }' | sort -rn

# Modules, types, traits, functions, methods, constants, variants and public fields that a user of the crate can name, by rustdoc.
if [ "${1:-}" = --public ]; then
    RUSTC_BOOTSTRAP=1 cargo rustdoc -q -p tenure-core -- -Z unstable-options --output-format json
    jq -r '[.index[] | select(.crate_id == 0 and (.visibility == "public" or (.inner | has("variant")))) | .inner]
        | map(select(has("use") | not)) | "public items of core: \(length + (map(.trait.items // [] | length) | add))"' \
        "${CARGO_TARGET_DIR:-target}/doc/tenure_core.json"
fi
