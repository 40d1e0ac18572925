"""Tile counters: for each launch that may run beside others of the same kernel, two integers in global memory.

A kernel finds its counter at 0 and leaves it so. Launches on one stream follow each other and share one; a launch that
is captured in a CUDA graph gets one of its own, since nobody knows on which stream the graph will run. Two launches of
one graph do not overlap.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from qimeng_attention.errors import LaunchError

BYTES = 8
_PAGE = 8192  # counters allocated at a time


class Counters:
    """The tile counters of one kernel on one device."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        # by thread and stream: the per-thread default stream is one a thread
        self._streams: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()
        self._next = self._end = 0
        self.more()

    def more(self) -> None:
        """Allocate a page of counters and set them to 0."""
        start = int(self._call("cuMemAlloc", _PAGE * BYTES))
        self._call("cuMemsetD8", start, 0, _PAGE * BYTES)
        self._next, self._end = start, start + _PAGE * BYTES

    def at(self, stream: int, capturing: bool) -> int:
        """Give the address of the counter for a launch on a stream, which may be being captured."""
        key = (threading.get_ident(), stream)
        known = self._streams.get(key)
        if known is not None and not capturing:
            return known
        with self._lock:
            if self._next == self._end:
                if capturing:
                    raise LaunchError(
                        "all tile counters are taken, and a capture forbids to allocate more",
                        hint="call the kernel once outside of a capture, then capture again",
                    )
                self.more()
            found, self._next = self._next, self._next + BYTES
        if not capturing:
            self._streams[key] = found
        return found
