"""redis-py's Lock, told what to do by the lines of standard input, with one answer a line.

    acquire NAME SECONDS   waits; `-` for SECONDS is redis-py's default, a lock without an end
    try NAME SECONDS       does not wait
    release NAME
    storm NAME TIMES       acquires the lock so often, and checks each time that nobody else is inside
"""

import sys

import redis
from redis.exceptions import LockNotOwnedError

client = redis.Redis.from_url(sys.argv[1])
locks = {}


def acquire(name, seconds, blocking=True):
    lock = client.lock(name, timeout=None if seconds == "-" else float(seconds))
    if not lock.acquire(blocking=blocking):
        return "busy"
    locks[name] = lock
    return "acquired"


def release(name):
    try:
        locks.pop(name).release()
        return "released"
    except LockNotOwnedError:
        return "not owned"


def storm(name, times):
    for _ in range(int(times)):
        with client.lock(name, timeout=300, sleep=0.002):
            inside = client.incr(name + ":inside")
            if inside != 1:
                return f"{inside} are inside"
            client.decr(name + ":inside")
    return "done"


STEPS = {
    "acquire": acquire,
    "try": lambda name, seconds: acquire(name, seconds, blocking=False),
    "release": release,
    "storm": storm,
}

client.ping()
print("ready", flush=True)
for line in sys.stdin:
    word, *rest = line.split()
    print(STEPS[word](*rest), flush=True)
