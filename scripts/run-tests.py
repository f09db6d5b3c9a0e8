#!/usr/bin/env python3
"""Builds all tests and runs their binaries, two at a time.

Tests wait most of the time, for leases to end above all, and cargo runs one binary after the other. What a binary
printed appears when it has ended. Arguments go to the binaries. Ends with 1 if any of them failed; all of them run.
"""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SELECTION = ["--workspace", "--all-features", "--locked"]
AT_ONCE = 2
# Those that take longest come first, so that none of them is left over at the end.
LONGEST = ["conformance", "rights", "interop", "storm", "setups", "storm_mutants", "transactions", "primitives", "etcd"]
printing = threading.Lock()


def build():
    """The test binaries, each with its package's folder."""
    command = ["cargo", "test", *SELECTION, "--no-run", "--message-format=json-render-diagnostics"]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        sys.exit(built.returncode)
    messages = (json.loads(line) for line in built.stdout.splitlines() if line.startswith("{"))
    binaries = {
        Path(message["executable"]): Path(message["manifest_path"]).parent
        for message in messages
        if message.get("executable") and message["profile"]["test"]
    }
    return sorted(binaries.items(), key=lambda binary: rank(binary[0]))


def target(binary):
    """`storm` for `storm-0123456789abcdef`."""
    return binary.name.rsplit("-", 1)[0]


def rank(binary):
    name = target(binary)
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def run(binary, package, arguments):
    """Whether the binary's tests passed."""
    environment = {
        # Most of the suite's time is spent waiting, so more of its tests run at a time than there are processors.
        "RUST_TEST_THREADS": "16" if package.name == "conformance" else "4",
        **os.environ,
        "CARGO_MANIFEST_DIR": str(package),
    }
    started = time.monotonic()
    done = subprocess.run(
        [binary, *arguments],
        cwd=package,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    took = time.monotonic() - started
    with printing:
        print(f"\n     Running {package.name}/{target(binary)} (took {took:.0f} s, exit {done.returncode})", flush=True)
        sys.stdout.buffer.write(done.stdout)
        sys.stdout.flush()
    return done.returncode == 0


def main():
    arguments = sys.argv[1:]
    binaries = build()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        passed = list(pool.map(lambda binary: run(*binary, arguments), binaries))
    failed = [f"{package.name}/{target(binary)}" for (binary, package), ok in zip(binaries, passed) if not ok]
    # The tests in the documentation are built and run by rustdoc, as many at a time as there are processors.
    # The interleavings compile the sources of core a second time, under another name than the examples use.
    command = ["cargo", "test", *SELECTION, "--doc", "--no-fail-fast", "--exclude", "tenure-interleavings"]
    documents = subprocess.run([*command, "--", *arguments])
    if documents.returncode != 0:
        failed.append("documentation")
    print(f"\n{len(binaries)} test binaries: " + (f"failed: {', '.join(failed)}" if failed else "all passed"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
