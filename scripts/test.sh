#!/usr/bin/env bash
# Installs what the tests need, builds everything and runs the tests. `scripts/test.sh soak` runs those that measure time
# on real servers or start whole clusters, for up to two hours; `scripts/test.sh install` only installs. Other arguments go
# to the test binaries: `scripts/test.sh --test-threads=1`.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'scripts/test.sh: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# Whether protoc is here and finds the definitions that come in a package of their own.
protoc_works() {
    local folder works=1
    folder=$(mktemp -d)
    printf 'syntax = "proto3";\nimport "google/protobuf/descriptor.proto";\n' >"$folder/x.proto"
    "${PROTOC:-protoc}" -I"$folder" --descriptor_set_out="$folder/out" "$folder/x.proto" 2>/dev/null || works=0
    rm -rf "$folder"
    [ "$works" = 1 ]
}

# Whether Python is here and has redis-py, whose locks are shared with ours in the tests. Debian's own
# Python: its packages are for no other.
redis_py_works() {
    "${TENURE_PYTHON:-/usr/bin/python3}" -I -c 'import redis' 2>/dev/null
}

# PostgreSQL's server is not in PATH on Debian: each version has a folder of its own.
has_postgres() {
    local programs=(/usr/lib/postgresql/*/bin/postgres)
    has "${TENURE_POSTGRES:-postgres}" || { [ -z "${TENURE_POSTGRES-}" ] && [ -x "${programs[0]}" ]; }
}

# Outside PATH on Debian for whoever is not root.
has_pgbouncer() {
    has pgbouncer || [ -x /usr/sbin/pgbouncer ]
}

# Debian's packages for what is missing: a real etcd, Redis and PostgreSQL for the tests, a pooler, redis-py, and the
# compiler of protocol buffers that building the etcd client needs.
missing_packages() {
    has "${TENURE_ETCD:-etcd}" || echo etcd-server
    has "${TENURE_ETCDCTL:-etcdctl}" || echo etcd-client
    has "${TENURE_REDIS_SERVER:-redis-server}" || echo redis-server
    has python3 || echo python3
    redis_py_works || echo python3-redis
    has_postgres || echo postgresql
    has_pgbouncer || echo pgbouncer
    protoc_works || printf '%s\n' protobuf-compiler libprotobuf-dev
}

install_missing() {
    local packages as_root=()
    mapfile -t packages < <(missing_packages)
    [ "${#packages[@]}" -gt 0 ] || return 0
    if ! has apt-get; then
        die "please install etcd and etcdctl (3.4 or later), redis-server (7.0 or later), redis-py for /usr/bin/python3 (or the one that TENURE_PYTHON names), postgresql (14 or later), pgbouncer and protoc, then run this again; missing here, by their names in Debian: ${packages[*]}"
    fi
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || die "please run as root: apt-get install ${packages[*]}"
        as_root=(sudo)
    fi
    say "installing ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # `env`, because sudo does not pass the variable on.
    "${as_root[@]}" apt-get update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "${packages[@]}"
    if [[ " ${packages[*]} " == *" etcd-server "* ]]; then
        # Not by its init script, whose `stop` ends every etcd of the machine.
        stop_service etcd /run/etcd.pid /usr/bin/etcd
    fi
    if [[ " ${packages[*]} " == *" redis-server "* ]]; then
        stop_service redis-server /run/redis/redis-server.pid /usr/bin/redis-server
    fi
    if [[ " ${packages[*]} " == *" pgbouncer "* ]]; then
        stop_service pgbouncer /run/postgresql/pgbouncer.pid /usr/sbin/pgbouncer
    fi
    if [[ " ${packages[*]} " == *" postgresql "* ]]; then
        local pidfile
        for pidfile in /run/postgresql/*-main.pid; do
            local version=${pidfile##*/}
            stop_service postgresql "$pidfile" "/usr/lib/postgresql/${version%-main.pid}/bin/postgres"
        done
    fi
}

# A package may start a server of its own. The tests start theirs on free ports: the one that came
# just now is not needed, and under systemd it is kept from coming back at the next boot.
stop_service() {
    local service=$1 pidfile=$2 program=$3
    say "stopping the service $service of the package, should it run; the tests start servers of their own"
    if [ -d /run/systemd/system ]; then
        "${as_root[@]}" systemctl disable --now "$service" || true
    elif [ -e "$pidfile" ]; then
        "${as_root[@]}" start-stop-daemon --stop --oknodo --quiet --retry 10 \
            --pidfile "$pidfile" --exec "$program" || true
    fi
}

# Prints the path of an etcd of a later suite of Debian, for a part of the suite: Debian 12's is past its end of life.
# It is unpacked in cargo's target folder. apt has sources, lists and a cache of its own there, so that nothing else can
# come from that suite and nothing is installed. Fails, with the reason, where there is none.
newer_etcd() {
    if [ -n "${TENURE_ETCD_NEWER-}" ]; then
        echo "$TENURE_ETCD_NEWER"
        return
    fi
    local folder binary
    folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/etcd-newer
    binary=$folder/usr/bin/etcd
    if ! "$binary" --version >/dev/null 2>&1; then
        fetch_newer_etcd "$folder" "$binary" || return
    fi
    echo "$binary"
}

fetch_newer_etcd() {
    local folder=$1 binary=$2 keys=/usr/share/keyrings/debian-archive-keyring.gpg mirror suite
    local release=''
    [ ! -r /etc/os-release ] || release=$(. /etc/os-release && echo "${ID-} ${VERSION_ID-}")
    if [ "$release" != 'debian 12' ] || ! has apt-get || [ ! -r "$keys" ]; then
        say "this is not Debian 12"
        return 1
    fi
    # The mirror that is configured here.
    # shellcheck disable=SC2016 # apt's own variables
    mirror=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "bookworm" || $1 == "stable" || $1 == "oldstable" { print $2; exit }')
    if [ -z "$mirror" ]; then
        say "apt has no source of Debian 12"
        return 1
    fi
    local options=(
        -o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder/cache"
        -o Acquire::Languages=none -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20
    )
    for suite in sid trixie; do
        rm -rf "$folder"
        mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
        echo "deb [signed-by=$keys] $mirror $suite main" >"$folder/sources.list"
        (
            cd "$folder"
            apt-get "${options[@]}" --quiet --quiet update
            apt-get "${options[@]}" --quiet --quiet download etcd-server
            dpkg-deb --extract etcd-server_*.deb .
        ) >&2 || true
        rm -rf "$folder/lists" "$folder/cache"
        if "$binary" --version >/dev/null 2>&1; then
            return
        fi
    done
    say "no suite of $mirror has an etcd that runs here"
    return 1
}

# Servers write to memory where there is room: a busy disk delays all of them.
use_memory() {
    local room
    room=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1) || return 0
    [ "${room:-0}" -ge 2097152 ] && [ -w /dev/shm ] || return 0
    TMPDIR=$(mktemp -d /dev/shm/tenure.XXXXXX)
    # PostgreSQL's servers run as another user.
    chmod 711 "$TMPDIR"
    trap 'rm -rf "$TMPDIR"' EXIT
    export TMPDIR
}

# A gate that was green on a clean tree is remembered.
note_green() {
    if command -v git >/dev/null && [ -z "$(git status --porcelain 2>/dev/null || echo unknown)" ]; then
        git rev-parse 'HEAD^{tree}' >"${CARGO_TARGET_DIR:-target}/gate.ok"
    fi
}

has cargo || die "please install Rust first: https://rustup.rs"
tier=gate
case "${1-}" in gate | soak | install) tier=$1; shift ;; esac
# `scripts/test.sh -- --test-threads=1` and `scripts/test.sh --test-threads=1` are the same.
[ "${1-}" != -- ] || shift
install_missing
[ "$tier" != install ] || exit 0
use_memory
rm -f "${CARGO_TARGET_DIR:-target}/gate.ok"

say "building and running the tests: $tier"
scripts/run-tests.py "$tier" "$@"
if [ "$tier" = gate ]; then
    [ $# -gt 0 ] || note_green
elif newer=$(newer_etcd); then
    say "running a part of the suite on another etcd: $("$newer" --version | head -n 1)"
    TENURE_ETCD_NEWER=$newer cargo test --workspace --all-features --locked --test setups -- \
        --ignored --exact a_newer_etcd_of_one_member --nocapture
else
    say "the part of the suite for a newer etcd is left out: name a binary in TENURE_ETCD_NEWER to run it"
fi
