"""What is told of a kernel that is to run faster: its resources, its main loop by pipe, how its work is cut up.

Instructions are counted in the SASS of the loop that issues most tensor-core instructions; where it was written out
with and without a mask, in the shorter one, and the longer one's number stands beside it. Clocks of a pipe are what it
would need for one iteration of a block if nothing else ran: products at the GPU's rate, special functions and issue
slots by the counts. Iterations are counted from the loop's bounds at the sizes that are timed.

Not here: what was measured (bench/race.py), how it is said (author/llm/prompts/improve.j2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from qimeng_attention.build import Built, Loop
from qimeng_attention.build.sass import TENSOR_OPCODES
from qimeng_attention.targets import Target
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.checker import check
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.traverse import names_in, statements
from qimeng_attention.tl.types import Checked
from qimeng_attention.workflow.stages import Results

LANES, SCHEDULERS, PRODUCER_WARPS = 32, 4, 4
MOST_BLOCKS = 1 << 20  # whose loops are looked at one by one
SHOWN = {  # opcodes, by what a person calls them
    "wgmma": ("HGMMA",),
    "mma.sync": ("HMMA",),
    "exponentials and other special functions": ("MUFU",),
    "FMUL, FADD, FFMA": ("FMUL", "FADD", "FFMA"),
    "maxima": ("FMNMX",),
    "conversions": ("F2FP", "F2F", "I2F"),
    "comparisons and selections": ("FSETP", "ISETP", "FSEL", "SEL", "PLOP3"),
    "shuffles": ("SHFL",),
    "barriers": ("BAR", "SYNCS"),
    "copies": ("LDSM", "LDGSTS", "LDG", "STS", "LDS"),
    "local memory (spills)": ("LDL", "STL"),
}


@dataclass(frozen=True)
class KernelFacts:
    """What is known of one kernel without running it."""

    name: str
    threads: int
    registers: int | None
    spills: int | None  # bytes stored and loaded
    shared_kb: float
    blocks: int | None  # on a multiprocessor
    limited_by: str
    instructions: tuple[int, ...]  # of one warp in one iteration of the main loop, of each of its copies
    counts: tuple[tuple[str, int], ...]
    clocks: tuple[tuple[str, int], ...]  # of an iteration of a block, a pipe each
    tiles: int | None  # of the grid
    iterations: int | None  # of all tiles together
    pairs: int | None  # of rows and columns that an iteration computes

    @property
    def bound(self) -> int | None:
        """Give the clocks of the pipe that needs most."""
        return max((n for _, n in self.clocks), default=None)


def facts_of(results: Results, sizes: Mapping[str, int]) -> tuple[KernelFacts, ...]:
    """Look at every kernel of a program at the sizes of a call."""
    program = parse(results.code, "code.tl")
    codes = check(program, target=results.target.name, model=False)
    parts = zip(codes, results.kernels, results.builds, strict=True)
    return tuple(_facts(code, scheduled, built, results.target, sizes) for code, scheduled, built in parts)


def _facts(code: Checked, scheduled: Checked, built: Built, target: Target, sizes: Mapping[str, int]) -> KernelFacts:
    report, loops = built.report, _main_loops(built)
    loop = loops[0] if loops else None
    spills = (report.spill_store_bytes or 0) + (report.spill_load_bytes or 0)
    of = report.occupancy
    work = _main_work(code)
    tiles, iterations = _counted(code, work, sizes)
    return KernelFacts(
        name=code.kernel.name,
        threads=report.threads,
        registers=report.registers,
        spills=None if report.spill_store_bytes is None else spills,
        shared_kb=round((report.shared_dynamic_bytes + (report.shared_static_bytes or 0)) / 1024, 1),
        blocks=of.blocks_per_sm if of else None,
        limited_by=of.limited_by if of else "",
        instructions=tuple(dict.fromkeys(x.instructions for x in loops)),
        counts=_shown(loop) if loop else (),
        clocks=_clocks(code, work, loop, _computing_warps(scheduled, report.threads), target),
        tiles=tiles,
        iterations=iterations,
        pairs=_pairs(code, work),
    )


def _main_loops(built: Built) -> list[Loop]:
    """Give the copies of the main loop, the shortest first."""
    hottest = built.report.hottest_loop if built.report.loops is not None else None
    if hottest is None:
        return []
    products = hottest.count(*TENSOR_OPCODES)
    copies = [x for x in built.report.main_loops if x.count(*TENSOR_OPCODES) == products] if products else [hottest]
    return sorted(copies, key=lambda x: x.instructions)


def _shown(loop: Loop) -> tuple[tuple[str, int], ...]:
    counts = ((name, sum(_count(loop, o) for o in opcodes)) for name, opcodes in SHOWN.items())
    return tuple((name, n) for name, n in counts if n)


def _count(loop: Loop, opcode: str) -> int:
    return sum(n for name, n in loop.counts.items() if name.split(".")[0] == opcode)


def _computing_warps(scheduled: Checked, threads: int) -> int:
    """Count the warps of a block that compute: a role without a product copies."""
    roles = [n for n in scheduled.kernel.body if isinstance(n, s.Role)]
    idle = sum(not any(isinstance(x, s.Gemm) for x in statements(n.body)) for n in roles)
    return threads // LANES - PRODUCER_WARPS * idle


# ------------------------------------------------------------------ clocks of an iteration
def _main_work(code: Checked) -> s.For | None:
    """Give the loop with products."""
    loops = [n for n in code.kernel.body if isinstance(n, s.For)]
    return next((n for n in loops if any(isinstance(x, s.Gemm) for x in statements(n.body))), None)


def _products(work: s.For) -> list[s.Gemm]:
    return [n for n in statements(work.body) if isinstance(n, s.Gemm)]


def _extents(code: Checked, n: s.Gemm) -> tuple[int, int, int]:
    """Give rows, columns and summed elements of a product."""
    a, b = (code.tiles[o.name] for o in (n.a, n.b))
    rows, summed = (x.size for x in (a.axes[::-1] if n.a.transposed else a.axes)[-2:])
    columns = (b.axes[-2] if n.b.transposed else b.axes[-1]).size
    return rows, columns, summed


def _pairs(code: Checked, work: s.For | None) -> int | None:
    if work is None:
        return None
    rows, columns, _ = _extents(code, _products(work)[0])
    return rows * columns


def _clocks(
    code: Checked, work: s.For | None, loop: Loop | None, warps: int, target: Target
) -> tuple[tuple[str, int], ...]:
    if work is None:
        return ()
    flops = sum(2 * math.prod(_extents(code, n)) for n in _products(work))
    found = [("tensor cores", flops / target.tensor_flops_per_clock)]
    if loop is not None and loop.instructions:
        found.append(("special functions", _count(loop, "MUFU") * LANES * warps / target.special_per_clock))
        found.append(("issue slots", loop.instructions * warps / SCHEDULERS))
    return tuple((name, round(n)) for name, n in found)


# ------------------------------------------------------------------ how often the loop runs
def _counted(code: Checked, work: s.For | None, sizes: Mapping[str, int]) -> tuple[int | None, int | None]:
    """Count the grid's tiles and the iterations of all; None where bounds need what only the GPU reads."""
    known = dict(sizes) | code.fixed
    try:
        known |= {name: integer(value, known) for name, value in code.chosen.items()}
        extents = {d.name: range(integer(d.start, known), integer(d.stop, known)) for d in code.grid.dims}
        tiles = math.prod(len(r) for r in extents.values())
        if work is None:
            return tiles, None
        read = _read_by_bounds(code, work) & extents.keys()
        if math.prod(len(extents[n]) for n in read) > MOST_BLOCKS:
            return tiles, None
        alike = math.prod(len(r) for name, r in extents.items() if name not in read)
        return tiles, alike * sum(_iterations(code, work, known | place) for place in _places(extents, read))
    except (KeyError, ValueError, ZeroDivisionError):
        return None, None


def _read_by_bounds(code: Checked, work: s.For) -> set[str]:
    lets = [n for n in code.kernel.body if isinstance(n, s.Let)]
    return names_in(work.ranges).union(*(names_in(n.value) for n in lets))


def _places(extents: Mapping[str, range], read: set[str]) -> Iterator[dict[str, int]]:
    names = sorted(read)
    return (dict(zip(names, at, strict=True)) for at in product(*(extents[n] for n in names)))


def _iterations(code: Checked, work: s.For, known: dict[str, int]) -> int:
    for n in code.kernel.body:
        if isinstance(n, s.Let):
            known[n.name] = integer(n.value, known)
    return sum(max(0, integer(r.stop, known) - integer(r.start, known)) for r in work.ranges)
