"""What a cubin asks of the GPU and what it issues: registers, spills, occupancy, counts of SASS instructions.

Registers and spills come from ptxas's lines in the compiler's log, or, where there is no log, from
`cuobjdump`; counts, overall and per loop, from `nvdisasm`. A part that is not there leaves its fields None
and a note.

Not here: how loops are found (disassembly.py), how blocks are counted (occupancy.py).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qimeng_attention.build.disassembly import Loop, count, find_loops, parse
from qimeng_attention.build.occupancy import Occupancy, occupancy
from qimeng_attention.build.toolchain import Toolchain
from qimeng_attention.errors import BuildError
from qimeng_attention.targets import Target

TENSOR_OPCODES = ("HMMA", "HGMMA", "QMMA", "QGMMA", "OMMA", "IMMA", "IGMMA", "UTCHMMA", "UTCQMMA")
LOCAL_OPCODES = ("LDL", "STL")  # traffic to local memory: spills, or arrays that are indexed at run time
_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class ResourceReport:
    """Resources of one kernel; None where the part that would tell is not installed, with a note."""

    kernel: str
    threads: int  # per block
    shared_dynamic_bytes: int  # per block, as given
    registers: int | None  # per thread
    spill_store_bytes: int | None  # per thread
    spill_load_bytes: int | None
    stack_bytes: int | None  # per thread
    shared_static_bytes: int | None  # per block
    occupancy: Occupancy | None
    counts: Mapping[str, int] | None = None  # SASS instructions by opcode, "MUFU.EX2" by function
    loops: tuple[Loop, ...] | None = None
    warnings: tuple[str, ...] = ()  # of ptxas, such as serialised wgmma
    notes: tuple[str, ...] = ()  # what could not be found out, and why

    @property
    def main_loops(self) -> tuple[Loop, ...]:
        """Give the innermost loops that issue tensor-core instructions; BuildError if nvdisasm was missing.

        Loops that only wait for a barrier do not count as inner ones.
        """
        return tuple(loop for loop in self._loops() if loop.innermost and loop.count(*TENSOR_OPCODES))

    @property
    def hottest_loop(self) -> Loop | None:
        """Give the innermost loop that issues most tensor-core instructions, else the longest, if any."""
        innermost = [loop for loop in self._loops() if loop.innermost]
        return max(innermost, key=lambda loop: (loop.count(*TENSOR_OPCODES), loop.instructions), default=None)

    def count(self, *names: str) -> int:
        """Add up the counts of opcodes in the whole kernel; BuildError if nvdisasm was missing."""
        if self.counts is None:
            raise self._unread()
        return sum(self.counts.get(name, 0) for name in names)

    def to_json(self) -> dict[str, Any]:
        """Give all fields as plain values."""
        plain = {**asdict(self), "counts": None if self.counts is None else dict(self.counts)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def _loops(self) -> tuple[Loop, ...]:
        if self.loops is None:
            raise self._unread()
        return self.loops

    def _unread(self) -> BuildError:
        return BuildError(
            f"the SASS of {self.kernel} was not read",
            hint="install nvdisasm: pip install 'qimeng-attention[build]'",
        )


def report(
    cubin: bytes,
    *,
    kernel: str,
    threads: int,
    shared_dynamic_bytes: int,
    target: Target,
    toolchain: Toolchain,
    log: str = "",
) -> ResourceReport:
    """Describe one kernel of a cubin.

    Args:
        cubin: the ELF file.
        kernel: its name in the cubin.
        threads: per block.
        shared_dynamic_bytes: per block, what the launch will ask for.
        target: whose limits the occupancy is computed with.
        toolchain: where nvdisasm and cuobjdump are.
        log: the compiler's, which alone knows of spills.
    """
    notes: list[str] = []
    usage = _from_log(log, kernel) or _from_cuobjdump(cubin, kernel, toolchain, notes)
    sass = _run(toolchain.nvdisasm, ["-c"], cubin, notes)
    instructions = parse(sass, kernel) if sass is not None else None
    return ResourceReport(
        kernel=kernel,
        threads=threads,
        shared_dynamic_bytes=shared_dynamic_bytes,
        registers=usage.registers,
        spill_store_bytes=usage.spill_stores,
        spill_load_bytes=usage.spill_loads,
        stack_bytes=usage.stack,
        shared_static_bytes=usage.shared,
        occupancy=_occupancy(target, usage, threads, shared_dynamic_bytes),
        counts=dict(sorted(count(instructions).items())) if instructions is not None else None,
        loops=tuple(find_loops(instructions)) if instructions is not None else None,
        warnings=_warnings(log),
        notes=tuple(notes),
    )


def entries(log: str) -> list[str]:
    """Give the names of the kernels that ptxas compiled, as they are in the cubin."""
    return _ENTRY.findall(log)


@dataclass(frozen=True, slots=True)
class _Usage:
    registers: int | None = None
    stack: int | None = None
    shared: int | None = None
    spill_stores: int | None = None
    spill_loads: int | None = None


_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_WARNING = re.compile(r"^ptxas (?:warning\s*: |info\s*: (?=.*Performance Loss))(?P<text>.*)$")
_RES_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")


def _from_log(log: str, kernel: str) -> _Usage | None:
    """Read ptxas's lines on one kernel; None if the log has none."""
    start = log.find(f"Compiling entry function '{kernel}'")
    if start < 0:
        return None
    end = log.find("Compiling entry function", start + 1)
    lines = log[start : end if end >= 0 else None]
    stack, registers, shared = _STACK.search(lines), _REGISTERS.search(lines), _SHARED.search(lines)
    if not stack or not registers:
        return None
    return _Usage(
        registers=int(registers[1]),
        stack=int(stack[1]),
        shared=int(shared[1]) if shared else 0,  # ptxas leaves out what is zero
        spill_stores=int(stack[2]),
        spill_loads=int(stack[3]),
    )


def _from_cuobjdump(cubin: bytes, kernel: str, toolchain: Toolchain, notes: list[str]) -> _Usage:
    notes.append("no compiler log: spills are unknown")
    listing = _run(toolchain.cuobjdump, ["-res-usage"], cubin, notes) or ""
    _, _, rest = listing.partition(f"Function {kernel}:")
    found = _RES_USAGE.search(rest)
    return _Usage(*map(int, found.groups())) if found else _Usage()


def _run(program: Path | None, options: list[str], cubin: bytes, notes: list[str]) -> str | None:
    """Run a program of the tool chain on a cubin; None and a note if it is not there or fails."""
    if program is None:
        name = "cuobjdump" if "-res-usage" in options else "nvdisasm"
        notes.append(f"{name} is not installed: what it would tell is left out")
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), *options, file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            notes.append(f"{program.name} failed: {type(error).__name__}")
            return None
    return done.stdout


def _occupancy(target: Target, usage: _Usage, threads: int, dynamic_bytes: int) -> Occupancy | None:
    if usage.registers is None or usage.shared is None:
        return None
    shared = usage.shared + dynamic_bytes
    return occupancy(target, registers=usage.registers, shared_bytes=shared, threads=threads)


def _warnings(log: str) -> tuple[str, ...]:
    found = (_WARNING.match(line) for line in log.splitlines())
    return tuple(dict.fromkeys(match["text"] for match in found if match))
