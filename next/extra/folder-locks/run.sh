#!/usr/bin/env bash
# Holds the folder to the conformance suite: `extra/folder-locks/run.sh [ARGUMENT...]`, with arguments for libtest.
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-../../target/extra}
exec cargo test --quiet --locked --test conformance -- "$@"
