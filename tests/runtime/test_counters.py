"""Tile counters: launches that may run at the same time never share one."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime import counters as module
from qimeng_attention.runtime.counters import BYTES, Counters


class Memory:
    """The driver's allocator, as Counters calls it."""

    def __init__(self) -> None:
        self.pages: list[int] = []

    def __call__(self, name: str, *arguments: Any) -> int | None:
        if name == "cuMemAlloc":
            self.pages.append(0x1000_0000 * (len(self.pages) + 1))
            return self.pages[-1]
        return None


def test_a_stream_keeps_its_counter() -> None:
    counters = Counters(Memory())

    assert counters.at(7, False) == counters.at(7, False) != counters.at(8, False)


def test_each_captured_launch_has_its_own() -> None:
    counters = Counters(Memory())
    eager = counters.at(7, False)

    found = [counters.at(7, True) for _ in range(3)]

    assert len({eager, *found}) == 4
    assert counters.at(7, False) == eager


def test_threads_do_not_share_a_streams_counter() -> None:
    counters, found = Counters(Memory()), []

    other = threading.Thread(target=lambda: found.append(counters.at(0, False)))
    other.start()
    other.join()

    assert found[0] != counters.at(0, False)


def test_a_capture_cannot_allocate_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", 2)
    memory = Memory()
    counters = Counters(memory)
    taken = {counters.at(0, True), counters.at(0, True)}
    assert max(taken) - min(taken) == BYTES

    with pytest.raises(LaunchError, match="all tile counters are taken"):
        counters.at(0, True)

    assert counters.at(0, False) not in taken
    assert len(memory.pages) == 2
