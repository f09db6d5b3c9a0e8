#!/usr/bin/env bash
# Explores the scenarios: `extra/interleavings/run.sh [SCENARIO]`, those whose names contain SCENARIO, or all of them.
#
# TENURE_SEED is the first seed, 1 if it is not set; TENURE_SCHEDULES the number of schedules of each scenario and scheduler. A
# failure prints its schedule: `run.sh --replay SCENARIO SCHEDULE` runs it again.
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-../../target/extra}
RUSTFLAGS="${RUSTFLAGS-} --cfg shuttle" exec cargo run --quiet --locked -- "$@"
