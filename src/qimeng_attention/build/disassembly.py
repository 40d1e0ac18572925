"""The text of `nvdisasm -c` to instructions and loops.

A loop is a natural loop of the control-flow graph: a branch back to a block that dominates it, and every
block that reaches the branch without passing that header. Addresses alone would not do: ptxas moves waiting
loops and rare paths behind the kernel's end, so a plain interval between a label and a branch back to it
would span half the kernel.

Not here: running nvdisasm, and what the counts mean (sass.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*)"
)
_LABEL = re.compile(r"^(?P<label>[.$\w]+):\s*$")
_TARGET = re.compile(r"`\((?P<quoted>[^)]+)\)|(?P<plain>\.L_x_\d+)")
_NEVER = frozenset({"!PT", "!UPT"})  # guards of padding that never runs
_JUMPS = frozenset({"BRA", "BRX", "JMP", "JMX", "WARPSYNC", "CALL"})
_ENDS = frozenset({"EXIT", "RET", "KILL", "BPT"})


@dataclass(frozen=True, slots=True)
class Instruction:
    """One SASS instruction; `labels` are those that stand right before it."""

    address: int
    guard: str  # "" where it always runs
    opcode: str  # with its modifiers, "MUFU.EX2"
    operands: str
    labels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Give the opcode without modifiers, but with the function of a special-function result."""
        parts = self.opcode.split(".")
        return ".".join(parts[:2]) if parts[0] == "MUFU" else parts[0]

    @property
    def targets(self) -> tuple[str, ...]:
        """Give the labels that the operands name."""
        return tuple(found["quoted"] or found["plain"] for found in _TARGET.finditer(self.operands))


@dataclass(frozen=True, slots=True)
class Loop:
    """A natural loop: where it starts, how deep it lies, and what one pass over all its blocks issues."""

    address: int  # of the header
    depth: int  # 1 for a loop in no other
    innermost: bool  # holds no other loop but those that only wait for a barrier
    waits: bool  # only waits for a barrier
    counts: Mapping[str, int]  # by Instruction.name

    @property
    def instructions(self) -> int:
        """How many instructions the loop's blocks hold."""
        return sum(self.counts.values())

    def count(self, *names: str) -> int:
        """Add up the counts of opcodes, 0 for those that do not occur."""
        return sum(self.counts.get(name, 0) for name in names)


def parse(text: str, kernel: str) -> list[Instruction]:
    """Read the instructions of one kernel from the whole listing; padding that never runs is left out."""
    instructions: list[Instruction] = []
    labels: list[str] = []
    inside = False
    for line in text.splitlines():
        if found := _LABEL.match(line):
            inside = found["label"] == f".text.{kernel}" or (inside and not found["label"].startswith(".text."))
            labels.append(found["label"])
        elif line.lstrip().startswith(".section"):
            inside = False
        elif inside and (found := _INSTRUCTION.match(line)) and (found["guard"] or "") not in _NEVER:
            place, guard = int(found["address"], 16), found["guard"] or ""
            instructions.append(Instruction(place, guard, found["opcode"], found["operands"].strip(), tuple(labels)))
            labels = []
    return instructions


def count(instructions: Iterable[Instruction]) -> Counter[str]:
    """Count opcodes by `Instruction.name`."""
    return Counter(instruction.name for instruction in instructions)


def find_loops(instructions: list[Instruction]) -> list[Loop]:
    """Find all loops, in the order of their headers' addresses."""
    return _Graph(instructions).loops() if instructions else []


class _Graph:
    """Basic blocks of a kernel, numbered in the order of addresses."""

    def __init__(self, instructions: list[Instruction]) -> None:
        jumped_to = {label for i in instructions for label in i.targets}
        self.blocks: list[list[Instruction]] = []
        fresh = True
        for instruction in instructions:
            if fresh or jumped_to.intersection(instruction.labels):
                self.blocks.append([])
            self.blocks[-1].append(instruction)
            fresh = _opcode(instruction) in _JUMPS | _ENDS | {"BSYNC"}
        self.at_label = {label: n for n, block in enumerate(self.blocks) for label in block[0].labels}

    @cached_property
    def successors(self) -> dict[int, tuple[int, ...]]:
        """Follow the branches from the entry; only blocks that can be reached have an entry."""
        found: dict[int, tuple[int, ...]] = {}
        pending: list[tuple[int, dict[str, str]]] = [(0, {})]
        while pending:
            number, joins = pending.pop()
            if number in found or number >= len(self.blocks):
                continue
            # NOTE: BSYNC jumps to the label that the BSSY of the same register named on the way here.
            joins = joins | {
                i.operands.split(",")[0]: i.targets[0]
                for i in self.blocks[number]
                if _opcode(i) == "BSSY" and i.targets
            }
            found[number] = self._after(number, joins)
            pending.extend((n, joins) for n in found[number])
        return found

    def _after(self, number: int, joins: Mapping[str, str]) -> tuple[int, ...]:
        last = self.blocks[number][-1]
        opcode, targets = _opcode(last), last.targets
        if opcode == "BSYNC":
            targets = (joins[last.operands],) if last.operands in joins else ()
        jumps = tuple(self.at_label[t] for t in targets if t in self.at_label)
        if opcode in _ENDS:
            return () if not last.guard else (number + 1,)
        if opcode not in _JUMPS | {"BSYNC"}:
            return (number + 1,) if number + 1 < len(self.blocks) else ()
        # A branch falls through if it is guarded, by a predicate before or among its operands, or comes back.
        certain = not last.guard and opcode in {"BRA", "BRX", "JMP", "JMX", "BSYNC"} and "," not in last.operands
        return jumps if certain and jumps else (*jumps, number + 1)

    @cached_property
    def predecessors(self) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {number: set() for number in self.successors}
        for number, following in self.successors.items():
            for n in following:
                if n in found:
                    found[n].add(number)
        return found

    def dominators(self) -> dict[int, int]:
        """Give each reachable block's dominators as a bit set."""
        everything = sum(1 << n for n in self.successors)
        found = dict.fromkeys(self.successors, everything)
        found[0] = 1
        changed = True
        while changed:
            changed = False
            for number in sorted(found)[1:]:
                common = everything
                for before in self.predecessors[number]:
                    common &= found[before]
                changed |= found[number] != (common := common | 1 << number)
                found[number] = common
        return found

    def loops(self) -> list[Loop]:
        bodies: dict[int, set[int]] = {}
        for number, above in self.dominators().items():
            for header in self.successors[number]:
                if above >> header & 1:
                    bodies.setdefault(header, set()).update(self._body(header, number))
        counts = {h: count(i for n in body for i in self.blocks[n]) for h, body in bodies.items()}
        waiting = {h for h in bodies if _only_waits(counts[h])}
        loops = []
        for header, body in sorted(bodies.items()):
            inner = {h for h in bodies if h in body and h != header}
            depth = sum(header in other for other in bodies.values())
            waits = header in waiting
            innermost = not waits and inner <= waiting
            address = self.blocks[header][0].address
            loops.append(Loop(address, depth, innermost, waits, dict(sorted(counts[header].items()))))
        return loops

    def _body(self, header: int, end: int) -> set[int]:
        body, pending = {header}, [end]
        while pending:
            number = pending.pop()
            if number not in body:
                body.add(number)
                pending.extend(self.predecessors[number])
        return body


def _opcode(instruction: Instruction) -> str:
    return instruction.opcode.split(".")[0]


# What stands in a loop around a barrier's try_wait, as ptxas emits it for sm_90 and later.
_WAITING = frozenset(
    {"BRA", "BSSY", "BSYNC", "ISETP", "MOV", "NANOSLEEP", "NOP", "PLOP3", "SEL", "SYNCS", "WARPSYNC", "YIELD"}
)


def _only_waits(counts: Counter[str]) -> bool:
    """Whether a loop asks a barrier (SYNCS) until it may go on, and does nothing else."""
    return counts["SYNCS"] > 0 and counts.keys() <= _WAITING
