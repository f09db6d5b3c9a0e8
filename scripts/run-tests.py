#!/usr/bin/env python3
"""Builds all tests of a tier, runs their binaries side by side, and repeats alone what could not be judged.

    scripts/run-tests.py [gate|soak] [ARGUMENTS OF THE TEST BINARIES]

The gate must not depend on the speed of the machine; `soak` has the tests that measure time on real servers or start
whole clusters. Each test, each binary and the whole run have a limit; a process that reaches its limit is killed with
its group, and the test is named. A test that fails with a counterexample is red and never repeated. One that was cut off, or
says `NOT JUDGED`, is repeated alone with doubled limits and printed as FLAKY. More than MOST_FLAKY of these are red, too.

Ends with 0 if everything passed, and 1 otherwise.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SELECTION = ["--workspace", "--all-features", "--locked"]
# Binaries that run side by side, and tests at a time in each. Most tests wait: for leases, or for servers.
BINARIES_AT_ONCE = 3
THREADS = 3
CASE_THREADS = 9

# Seconds. A case of the suite has a limit of its own, shorter than this one, and names itself when it reaches it.
TEST_LIMIT = 60
CASE_LIMIT = 150
BINARY_LIMIT = 600
RUN_LIMIT = {"gate": 900, "soak": 7200}
SOAK_FACTOR = 5
MOST_FLAKY = 3
REPETITIONS = 2

# Binaries that run the cases of the suite.
CASES = {"conformance/conformance", "conformance/storm_paused", "example-backend/conformance"}

# Whole binaries that are no part of the gate, and why.
SOAK = {
    "backend-memory/stress": "real time",
    "backend-postgres/capacity": "thousands of locks",
    "backend-postgres/crashes": "crashes, one after the other",
    "backend-postgres/growth": "growth over many rounds",
    "backend-postgres/holes": "upper bounds of time",
    "backend-postgres/neighbours": "upper bounds of time",
    "backend-postgres/waits": "upper bounds of time",
    "conformance/interop": "all cases of three primitives a second time, a server for each",
    "conformance/mutants": "planted defects that only a clock tells",
    "conformance/rights": "all cases on PostgreSQL a second time",
    "conformance/setups": "thirteen set-ups, many with a quorum",
    "conformance/storm": "twelve stress runs in real time",
    "conformance/storm_mutants": "real time",
}

# Single tests of other binaries that are no part of the gate, because they assert an upper bound of time, put a load on a
# server or start a quorum: `package/binary`, then parts of names.
SOAK_TESTS = {
    "backend-etcd/etcd": [
        "basics::lock_release_try_and_timeout",
        "election::an_observer_that_was_cut_off_sees_the_last_state",
        "faults::a_call_is_bounded",
        "faults::a_silent_network_is_a_loss_by_the_deadline",
        "line::a_server_that_stands_still_for_longer_than_the_ttl",
        "operators::a_member_that_stands_still_is_left_within_the_ttl",
        "operators::a_membership_change_costs_no_lock",
        "sessions::a_key_deleted_by_an_operator_alarms_its_holder",
        "sessions::a_revoked_lease_is_a_revoked_session",
        "storm::",
    ],
    "backend-memory/fairness": ["tasks_in_a_loop_leave_time_to_timers_and_renewals"],
    "backend-postgres/barrier": ["the_dead_let_nobody_in_and_keep_nobody"],
    "backend-postgres/election": ["observers_are_told_of_every_change_of_a_slow_election"],
    "backend-postgres/queue": [
        "a_delay_wakes_who_waits_and_not_before",
        "a_terminated_consumers_items_go_to_who_waits",
        "who_goes_away_after_being_told_tells_the_next",
    ],
    "backend-redis/redis": ["holders::", "load::", "storm::"],
    "cli/conform": [
        "set_ups_stand_beside_the_stores",
        "the_embedded_store_keeps_what_it_claims",
        "the_long_form_runs_on_the_embedded_store",
        "without_a_url_it_tries_what_is_here",
    ],
    "cli/etcd": ["a_killed_holder_is_replaced_within_the_ttl_and_two_seconds"],
    # The embedded store in real time. The gate holds it to the table under a paused clock (conformance/squares), and
    # README's first command to all cases.
    "conformance/conformance": ["case_1_memory"],
    "main/processes": [
        "a_killed_holders_lock_goes_to_the_next_at_once",
        "a_killed_waiter_delays_nobody",
        "a_waiter_killed_in_the_middle_of_the_line_is_passed_over",
        "a_waiter_whose_turn_comes_while_it_is_paused_past_its_ttl_is_never_granted",
    ],
    "testbed/process": ["an_end_is_told_at_once"],
    "testbed/proxy": ["delay_is_each_bytes_own_and_ends_when_changed"],
}

# Those that take longest come first, so that none of them is left over at the end.
LONGEST = ["conformance/conformance", "backend-etcd/etcd", "backend-redis/redis"]

printing = threading.Lock()
processes = set()
started = time.monotonic()


class Binary:
    def __init__(self, path, package):
        self.path = path
        self.package = package
        # `storm` for `storm-0123456789abcdef`.
        folder = "main" if (package / "Cargo.lock").exists() else package.name
        self.name = f"{folder}/{path.name.rsplit('-', 1)[0]}"

    def is_of_cases(self):
        return self.name in CASES

    def environment(self, **more):
        threads = CASE_THREADS if self.is_of_cases() else THREADS
        return {
            "RUST_TEST_THREADS": str(threads),
            **os.environ,
            "CARGO_MANIFEST_DIR": str(self.package),
            **more,
        }


class Failure:
    """A test that did not pass, or a whole binary where `test` is None."""

    def __init__(self, binary, test, why, judged):
        self.binary, self.test, self.why, self.judged = binary, test, why, judged

    def __str__(self):
        name = self.binary.name if self.test is None else f"{self.binary.name} {self.test}"
        return f"{name}: {self.why}"


def build():
    command = ["cargo", "test", *SELECTION, "--no-run", "--message-format=json-render-diagnostics"]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        sys.exit(built.returncode)
    messages = (json.loads(line) for line in built.stdout.splitlines() if line.startswith("{"))
    return [
        Binary(Path(message["executable"]), Path(message["manifest_path"]).parent)
        for message in messages
        if message.get("executable") and message["profile"]["test"]
    ]


def end(process):
    """Kills the process and all that it started in its group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


COUNTS = re.compile(r"^test result: \S+ (\d+) passed; (\d+) failed", re.MULTILINE)
RESULT = re.compile(r"^test (\S+)(?: - [\w ]+)? \.\.\. (ok|FAILED|ignored)")
SLOW = re.compile(r"^test (\S+) has been running for over 60 seconds")
SECTION = re.compile(r"^---- (\S+)(?: stdout)? ----$")
NOT_JUDGED = re.compile(r"NOT JUDGED: (.*)")


class Run:
    """One process of a test binary."""

    def __init__(self, binary, arguments, limit, test_limit, environment):
        self.output = tempfile.TemporaryFile()
        self.binary = binary
        self.results, self.slow, self.cut_off, self.overrun = {}, {}, set(), False
        self.process = subprocess.Popen(
            [binary.path, *arguments],
            cwd=binary.package,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        processes.add(self.process)
        begun, read, partial = time.monotonic(), 0, b""
        while self.process.poll() is None:
            time.sleep(0.05)
            new = os.pread(self.output.fileno(), 1 << 20, read)
            read += len(new)
            *lines, partial = (partial + new).split(b"\n")
            for line in lines:
                self.note(line.decode(errors="replace"))
            now = time.monotonic()
            # libtest says so after 60 seconds; a longer limit counts on from there.
            late = {test for test, since in self.slow.items() if now - since >= test_limit - 60}
            self.cut_off = {test for test in late if test not in self.results}
            self.overrun = now - begun > limit
            if self.cut_off or self.overrun:
                break
        end(self.process)
        self.process.wait()
        processes.discard(self.process)
        self.output.seek(0)
        self.text = self.output.read().decode(errors="replace")
        for line in self.text.splitlines():
            self.note(line)
        self.took = time.monotonic() - begun

    def note(self, line):
        if result := RESULT.match(line):
            self.results[result[1]] = result[2]
        elif slow := SLOW.match(line):
            self.slow.setdefault(slow[1], time.monotonic())

    def failures(self):
        sections, test = {}, None
        for line in self.text.splitlines():
            if section := SECTION.match(line):
                test = section[1]
            elif line == "failures:" or line.startswith("test result:"):
                test = None
            elif test:
                sections.setdefault(test, []).append(line)
        for test, result in self.results.items():
            if result == "FAILED":
                said = sections.get(test, [])
                excuse = next(filter(None, map(NOT_JUDGED.search, said)), None)
                panic = next((i for i, line in enumerate(said) if " panicked at " in line), None)
                words = " ".join(said if panic is None else said[panic + 1 :])
                why = words.split("stack backtrace:")[0][:500].strip()
                yield Failure(self.binary, test, excuse[1] if excuse else why, judged=not excuse)

    def passed(self):
        """How many tests passed; of a process that was killed, as far as it said so."""
        if counts := COUNTS.search(self.text):
            return int(counts[1])
        return list(self.results.values()).count("ok")

    def show(self):
        with printing:
            code = self.process.returncode
            print(f"\n     Running {self.binary.name} (took {self.took:.0f} s, exit {code})", flush=True)
            sys.stdout.write(self.text)
            sys.stdout.flush()


def run(binary, arguments, tier):
    """Runs all chosen tests of a binary; returns the failures, and how many tests passed."""
    factor = SOAK_FACTOR if tier == "soak" else 1
    test_limit = (CASE_LIMIT if binary.is_of_cases() else TEST_LIMIT) * factor
    left = BINARY_LIMIT * factor
    failures, passed, done = [], 0, set()
    chosen = arguments
    while True:
        this = Run(binary, chosen, left, test_limit, binary.environment())
        left -= this.took
        this.show()
        failures += this.failures()
        passed += this.passed()
        for test in this.cut_off:
            # It may hang, or the machine is busy: the repetition tells.
            failures.append(Failure(binary, test, f"cut off after {test_limit} s", judged=False))
        if this.overrun:
            running = ", ".join(sorted(set(this.slow) - set(this.results))) or "not known which test"
            why = f"cut off after the {BINARY_LIMIT * factor} s of a binary, while running: {running}"
            failures.append(Failure(binary, None, why, judged=True))
        elif this.process.returncode != 0 and not this.cut_off and not any(True for _ in this.failures()):
            failures.append(Failure(binary, None, f"ended with {this.process.returncode}", judged=True))
        if not this.cut_off:
            return failures, passed
        # A process that was killed because of one test did not get to all others.
        done |= {*this.results, *this.cut_off}
        remaining = [test for test in tests_of(binary, arguments) if test not in done]
        if not remaining:
            return failures, passed
        chosen = ["--exact", *remaining]


def tests_of(binary, arguments):
    """The names of the tests that these arguments choose."""
    command = [binary.path, *arguments, "--list", "--format", "terse"]
    listed = subprocess.run(
        command, cwd=binary.package, env=binary.environment(), capture_output=True, text=True, timeout=60
    )
    return [line.removesuffix(": test") for line in listed.stdout.splitlines() if line.endswith(": test")]


def repeat(failure, factor):
    """Repeats a test alone that could not be judged; returns the last failure, or None if it passed."""
    for _ in range(REPETITIONS):
        limit = 2 * factor * (CASE_LIMIT if failure.binary.is_of_cases() else TEST_LIMIT)
        environment = failure.binary.environment(TENURE_TEST_PATIENCE="2")
        this = Run(failure.binary, ["--exact", failure.test], limit, limit, environment)
        this.show()
        if this.process.returncode == 0 and this.passed() == 1:
            print(f"FLAKY {failure}", flush=True)
            return None
        if this.cut_off or this.overrun:
            return Failure(failure.binary, failure.test, f"cut off after {limit} s, alone", judged=True)
        again = next(iter(this.failures()), failure)
        if again.judged:
            return again
        failure = again
    return failure


def of_tier(binaries, tier):
    """The binaries of the tier, each with the arguments that choose its tests."""
    for binary in binaries:
        tests = SOAK_TESTS.get(binary.name, [])
        if tier == "gate" and binary.name not in SOAK:
            yield binary, [word for test in tests for word in ("--skip", test)]
        if tier == "soak" and (binary.name in SOAK or tests):
            yield binary, tests


def end_all(tier):
    """Ends the run at its limit."""
    with printing:
        names = ", ".join(sorted(Path(process.args[0]).name for process in list(processes)))
        print(f"\nred: the run was cut off after {RUN_LIMIT[tier]} s, while running: {names}", flush=True)
    for process in list(processes):
        end(process)
    os._exit(1)


def documentation(arguments):
    """Runs the tests in the documentation, which rustdoc builds."""
    # The sources of core are compiled a second time for the interleavings, under another name than the examples use.
    skip = ["--skip", "tenure-interleavings"]
    command = ["cargo", "test", *SELECTION, "--doc", "--no-fail-fast", "--", *skip, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    processes.add(process)
    code = process.wait()
    processes.discard(process)
    return code == 0


def main():
    tier = sys.argv[1] if sys.argv[1:] and sys.argv[1] in RUN_LIMIT else "gate"
    arguments = [word for word in sys.argv[1:] if word != tier]
    binaries = build()
    built = time.monotonic() - started
    stop = threading.Timer(RUN_LIMIT[tier], end_all, [tier])
    stop.daemon = True
    stop.start()
    begun = time.monotonic()
    names = {binary.name for binary in binaries}
    for name in [*SOAK, *SOAK_TESTS, *CASES]:
        if name not in names:
            sys.exit(f"scripts/run-tests.py: there is no binary {name}")
    chosen = sorted(of_tier(binaries, tier), key=lambda it: (it[0].name not in LONGEST, it[0].name))
    with ThreadPoolExecutor(BINARIES_AT_ONCE) as pool:
        runs = list(pool.map(lambda it: run(it[0], [*arguments, *it[1]], tier), chosen))
    failures = [failure for failed, _ in runs for failure in failed]
    passed = sum(count for _, count in runs)
    red = [str(failure) for failure in failures if failure.judged]
    flaky = [failure for failure in failures if not failure.judged]
    if len(flaky) > MOST_FLAKY:
        red += [f"{failure} (not judged, one of more than {MOST_FLAKY})" for failure in flaky]
    elif not red:
        for failure in flaky:
            still = repeat(failure, SOAK_FACTOR if tier == "soak" else 1)
            if still:
                # The run is red, and a test that hangs costs twice its limit.
                red.append(str(still))
                break
            passed += 1
    else:
        red += [f"{failure} (not judged)" for failure in flaky]
    if tier == "gate" and not documentation(arguments):
        red.append("the tests in the documentation failed")
    print(f"\n{tier}: built in {built:.0f} s, ran {len(chosen)} binaries in {time.monotonic() - begun:.0f} s")
    for line in red:
        print(f"red: {line}")
    print(f"{passed} passed, {len(red)} failed", flush=True)
    sys.exit(1 if red else 0)


def stop_all(number, _frame):
    for process in list(processes):
        end(process)
    os._exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop_all)
    signal.signal(signal.SIGTERM, stop_all)
    main()
