"""Registers that do not suffice: what ptxas keeps in local memory at its usual effort, it often does not at a lesser.

At -O3 ptxas moves loads and exponentials far up over products, as far as registers go, and where a tile takes nearly
all of them it may go too far: an address or two land in local memory. At -O1 it moves less. Kernels of 252 estimated
registers (128 x 128 at D = 64, 128 x 64 at D = 128) then spill nothing; what that costs, and what else was tried, is in
docs/design/0015-spills.md. Kernels of roles are left alone: of eleven that spill, -O1 made eight worse and mended one.

Not here: choosing tiles that fit (author/planner/model.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from qimeng_attention.build.nvrtc import CompileOptions, CompileResult

RULE = "ptxas -O1 where -O3 spills, without roles"  # part of the cache's key: what an entry was made by
_OTHER_EFFORT = "--ptxas-options=-O1"
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def spilled(log: str) -> int:
    """Give the bytes a thread that all kernels of a log store to local memory for lack of registers."""
    return sum(int(stores) for stores, _ in _SPILLS.findall(log))


def compile_without_spills(
    compile_with: Callable[[CompileOptions], CompileResult], options: CompileOptions, roles: bool = False
) -> tuple[CompileResult, str]:
    """Compile; where ptxas spills, compile once more at -O1, and keep that if it spills less.

    Args:
        compile_with: compiles one source with given options.
        options: the user's; options for ptxas among them are not second-guessed.
        roles: the source is a kernel of roles, which is compiled once.

    Returns:
        the result, whose seconds are those of both compilations, and a remark on what was done, "" for nothing.
    """
    first = compile_with(options)
    before = spilled(first.log)
    if not before or roles or any("ptxas" in one for one in options.extra):
        return first, ""
    second = compile_with(replace(options, extra=(*options.extra, _OTHER_EFFORT)))
    after, seconds = spilled(second.log), first.seconds + second.seconds
    if after >= before:
        return replace(first, seconds=seconds), f"ptxas spills {before} bytes a thread at -O3, and {after} at -O1"
    return replace(second, seconds=seconds), f"compiled by ptxas -O1: it spills {after} bytes a thread, -O3 {before}"
