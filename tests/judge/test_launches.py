"""A kernel that hangs: how often it is launched, without a GPU."""

from __future__ import annotations

import pytest

from qimeng_attention.judge.candidate import Stopped
from qimeng_attention.judge.launches import MOST_HANGS, Launches
from qimeng_attention.judge.process import Hung
from qimeng_attention.runtime import GridAxis, Manifest

FACE = Manifest(
    kernel="k", target="A100", arch="sm_80", built_arch="sm_80", threads=32, shared_bytes=0,
    grid=(GridAxis("x", 0, 1),), tensors=(), sizes=(), scalars=(),
)  # fmt: skip


class Hangs:
    """A process whose kernel never ends."""

    def __init__(self) -> None:
        self.asked = 0

    def ask(self, request: object) -> dict[str, object]:
        self.asked += 1
        raise Hung("no answer within 60 s: the kernel hangs, its process was killed")


def test_a_kernel_that_hangs_is_not_launched_for_every_case() -> None:
    process = Hangs()
    launches = Launches(FACE, process, "bundle")  # type: ignore[arg-type]
    said = []
    for _ in range(6):
        with pytest.raises(Stopped) as stopped:
            launches.run({}, {}, {}, {}, "plain")
        said.append(str(stopped.value))

    assert process.asked == MOST_HANGS
    assert "hangs" in said[0]
    assert said[-1] == "not launched: the kernel hung 2 times before"
