#!/usr/bin/env bash
# Runs one test binary for cargo, with as many of its tests at a time as suit its package. Tests wait most of the
# time, for leases to end, the suite's cases above all; so more of them run at a time than there are processors.
# An argument (`--test-threads`) outranks the variable. The tests in the documentation are built and run by rustdoc, as
# many at a time as there are processors.
case "${CARGO_PKG_NAME-}" in
    tenure-conformance) threads=16 ;;
    *) threads=4 ;;
esac
RUST_TEST_THREADS=${RUST_TEST_THREADS:-$threads} exec "$@"
