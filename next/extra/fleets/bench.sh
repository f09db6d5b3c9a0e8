#!/usr/bin/env bash
# Measures fleets of processes: `extra/fleets/bench.sh [ROW...]`, all rows if none is named. Each row is one run, in which the bare
# client and tenure take turns; the ratio is that of their medians. `run.sh list` prints the rows.
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-../../target/extra}
exec cargo run --quiet --release --locked -- "$@"
