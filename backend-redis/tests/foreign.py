"""redis-py's Lock, moved by the lines of standard input; one answer a line.

    acquire NAME SECONDS   waits; `-` for SECONDS is the default, a lock that never expires
    try NAME SECONDS       does not wait
    release NAME
    storm NAME TIMES       takes the lock so often, and looks whether it is alone
"""

import sys

import redis
from redis.exceptions import LockNotOwnedError

client = redis.Redis(host="127.0.0.1", port=int(sys.argv[1]))
locks = {}


def lock(name, seconds, blocking):
    made = client.lock(name, timeout=None if seconds == "-" else float(seconds))
    if not made.acquire(blocking=blocking):
        return "busy"
    locks[name] = made
    return "acquired"


def release(name):
    try:
        locks.pop(name).release()
        return "released"
    except LockNotOwnedError:
        return "lost"


def storm(name, times):
    for _ in range(int(times)):
        with client.lock(name, timeout=60, sleep=0.002):
            if client.incr("inside") != 1:
                return "not alone"
            client.decr("inside")
    return "done"


def answer(word, name, *more):
    if word == "acquire":
        return lock(name, more[0], True)
    if word == "try":
        return lock(name, more[0], False)
    if word == "release":
        return release(name)
    return storm(name, more[0])


client.ping()
print("ready", flush=True)
for line in sys.stdin:
    print(answer(*line.split()), flush=True)
