"""Many processes over one cache, killed at random: nothing corrupt is ever loaded, nothing waits for ever."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from qimeng_attention.build import Cache

WORKERS = 8
KEYS = 12
# Each worker takes random keys until its time is over; what a key holds follows from the key, so that a wrong
# byte shows. It spoils an entry now and then, as a bad disk would, and logs each build: two builds of a key
# that overlap would be two processes doing the same work.
WORKER = """
import hashlib, os, random, sys, time
from pathlib import Path
from qimeng_attention.build import Cache, CacheEntry

root, log, keys = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
rng, end, loads = random.Random(sys.argv[5]), time.monotonic() + float(sys.argv[4]), 0

def entry(key):
    return CacheEntry("// " + key, hashlib.sha512(key.encode()).digest() * 1500, {"key": key})

def build(key):
    line = f"{key} {time.monotonic()}"
    time.sleep(rng.uniform(0, 0.02))
    with log.open("a") as file:
        file.write(f"{line} {time.monotonic()}\\n")
    return entry(key)

while time.monotonic() < end:
    key = hashlib.sha256(str(rng.randrange(keys)).encode()).hexdigest()
    got, _ = Cache.open(root).get_or_build(key, lambda: build(key))
    if got != entry(key):
        print("corrupt", key, flush=True)
    loads += 1
    if rng.random() < 0.02:
        path = root / "entries" / key / "kernel.cubin"
        try:
            with path.open("r+b") as file:
                file.seek(rng.randrange(1000)); file.write(b"?")
        except FileNotFoundError:
            pass
print("loads", loads, flush=True)
"""


def start(root: Path, log: Path, seconds: float, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(root), str(log), str(KEYS), str(seconds), str(seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_at_random(root: Path, log: Path, seconds: float) -> tuple[list[subprocess.Popen[str]], int, list[str]]:
    """Keep eight workers going, killing about three a second; give the last ones, kills and outputs."""
    rng, end, kills, outputs = random.Random(5), time.monotonic() + seconds, 0, []
    workers = [start(root, log, seconds, seed) for seed in range(WORKERS)]
    while (left := end - time.monotonic()) > 1:
        time.sleep(rng.uniform(0.1, 0.6))
        number = rng.randrange(WORKERS)
        if workers[number].poll() is None:
            workers[number].send_signal(signal.SIGKILL)
            kills += 1
        outputs.append(workers[number].communicate()[0])
        workers[number] = start(root, log, max(left - 1, 0.5), 100 + kills)
    return workers, kills, outputs


@pytest.mark.parametrize(
    "seconds", [6, pytest.param(60, marks=pytest.mark.slow)], ids=lambda seconds: f"{seconds} seconds"
)
def test_killed_processes_leave_neither_damage_nor_locks(tmp_path: Path, seconds: float) -> None:
    root, log = tmp_path / "cache", tmp_path / "builds"

    workers, kills, outputs = kill_at_random(root, log, seconds)
    outputs += [worker.communicate(timeout=30)[0] for worker in workers]

    text = "".join(outputs)
    assert kills >= 3
    assert "corrupt" not in text
    assert "Traceback" not in text
    assert sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("loads")) > 100
    assert Cache.open(root).stats().entries > 0
    assert not overlapping(log.read_text().splitlines())


def overlapping(lines: list[str]) -> list[tuple[str, str]]:
    """Give builds of one key that were going on at the same time; each line is a key, a start and an end."""
    builds = sorted((key, float(begin), float(end), line) for line in lines for key, begin, end in [line.split()])
    return [(a[3], b[3]) for a, b in pairwise(builds) if a[0] == b[0] and b[1] < a[2]]
