"""What a tile costs where warpgroups compute and the copy engine copies (wgmma): the planner's model for such targets.

Each of W instances of the consumers has 64 rows. For one tile of N keys an instance needs, in clocks:
    tensor     2 * 64 N (Dqk + Dv) / tensor FLOPs a clock
    special    64 N exponentials (and those of score expressions) / 16 a clock
    issue      about 6.1 instructions an element of S, one an element of O / 128 lanes a clock
While one instance computes its statistics the others' GEMMs run, so that a block's tile takes
    max(W tensor, tensor + special + issue + latency)
and a little more where three instances share the pipes. Head dims are those of the tiles: whole MMA steps, and in
shared memory rows of whole swizzled pieces (widths.py). The constants were fitted to kernels timed on an H200 (each
named below); what comes out is a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

from qimeng_attention.author.planner.widths import padded, row_elements
from qimeng_attention.targets import Target

ROWS = 64  # of an instance: wgmma's m
STAGES = 2
COLUMNS_CHOICES = (64, 80, 96, 128)  # 144 to 176 at D = 128: slower below 16,384, docs/log.md
INSTANCES = {2: (24, 240), 3: (32, 160)}  # registers a thread of the producer and of each consumer
OTHER_REGISTERS = 31  # at 160 registers: 128 for tiles compile without spills, 136 do not
ISSUE_AN_ELEMENT = 6.1  # 390 instructions for 64 elements in the unmasked loop, counted in SASS at D = 128
LATENCY = 430  # clocks: 2,419 measured for 128 x 128 at D = 128, less tensor, special and issue
SHARING = {2: 1.0, 3: 1.18}  # 192 x 80 at D = 128 and 192 x 128 at D = 64, measured against the model without it
SELDOM = 3  # elements of O for one of S: +3.5 % at 3.2 (D = 256), -1 to -4 % at 1 and 0.5 (D = 128, 64), measured
BARRIER_BYTES = 256
CLOSE = 1.03  # tilings this close count as equal: the lower one leaves less at the ends


@dataclass(frozen=True)
class GroupTiling:
    """One way to tile for roles: instances of 64 rows by N keys, and what a tile costs."""

    instances: int
    columns: int
    shared_bytes: int  # with the staging tile and a second tile of queries, where they fit
    staged: bool
    ahead: bool  # there is room for a second tile of queries
    tensor: float  # clocks of one instance
    second: float  # of them, for P V
    special: float
    issue: float
    scaled: float  # elements of O for one of S: what scaling O costs beside the rest

    @property
    def rows(self) -> int:
        """Give the rows of the block's tile."""
        return ROWS * self.instances

    @property
    def registers(self) -> tuple[int, int]:
        """Give the registers a thread of the producer and of each consumer."""
        return INSTANCES[self.instances]

    @property
    def waits_early(self) -> bool:
        """Tell whether the wait for P V is best put before the row sums: P V is done by then, or little comes after."""
        return self.second <= self.special or self.scales_seldom

    @property
    def sums_run(self) -> bool:
        """Tell whether the exponentials bind: each is then best added to its row's sum as it is made."""
        return self.special >= self.tensor

    @property
    def rescales_late(self) -> bool:
        """Tell whether O is best scaled under the next S; with three instances the tensor cores never idle there."""
        return self.second <= self.special and self.instances == min(INSTANCES)

    @property
    def scales_seldom(self) -> bool:
        """Tell whether O is best left alone while no row's maximum has grown much: to test costs less than to scale."""
        return self.scaled >= SELDOM

    @property
    def clocks(self) -> float:
        """Give the clocks a tile of the block takes."""
        alone = self.tensor + self.special + self.issue + LATENCY
        return SHARING[self.instances] * max(self.instances * self.tensor, alone)

    @property
    def clocks_a_key(self) -> float:
        """Give the clocks for 1,000 elements of the score matrix: what tilings are compared by."""
        return 1000 * self.clocks / (self.rows * self.columns)

    @property
    def bound(self) -> str:
        """Name what binds."""
        full = self.instances * self.tensor >= self.tensor + self.special + self.issue + LATENCY
        return "tensor cores" if full else "one instance's statistics and GEMMs in a row"

    def describe(self) -> str:
        """Write the costs in a line."""
        return (
            f"{self.rows} x {self.columns}, {self.instances} instances: tensor {self.tensor:.0f}, special "
            f"{self.special:.0f}, issue {self.issue:.0f} clocks an instance, bound by {self.bound}"
        )


def group_tilings(target: Target, dqk: int, dv: int, special_an_element: int, held: int = 0) -> list[GroupTiling]:
    """Give every tiling that fits the target, best first.

    Args:
        target: a GPU with wgmma.
        dqk: head dim of queries and keys.
        dv: head dim of values.
        special_an_element: special-function results an element of S needs (1 for softmax alone).
        held: registers a thread that elements of named tensors take.
    """
    made = (
        _tiling(target, instances, columns, dqk, dv, special_an_element, held)
        for instances in INSTANCES
        for columns in COLUMNS_CHOICES
    )
    found = [t for t in made if t is not None]
    if not found:
        return []
    best = min(t.clocks_a_key for t in found)
    return sorted(
        found,
        key=lambda t: (t.clocks_a_key > CLOSE * best, t.rows if t.clocks_a_key <= CLOSE * best else t.clocks_a_key,
                       -t.columns),
    )  # fmt: skip


def _tiling(
    target: Target, instances: int, columns: int, dqk: int, dv: int, special: int, held: int
) -> GroupTiling | None:
    rows, elements = ROWS * instances, ROWS * columns
    row_qk, row_v = row_elements(dqk), row_elements(dv)
    dqk, dv = padded(dqk), padded(dv)
    fragments = columns // 2 + dv // 2 + columns // 4  # S, O and P: 128 threads hold 64 rows
    if fragments + OTHER_REGISTERS + held > INSTANCES[instances][1]:
        return None
    queries, staging = 2 * rows * row_qk, 2 * rows * row_v
    tiles = queries + 2 * STAGES * columns * (row_qk + row_v) + BARRIER_BYTES
    if tiles > target.shared_per_block_bytes:
        return None
    staged = tiles + staging <= target.shared_per_block_bytes
    held = tiles + staging * staged
    ahead = held + queries <= target.shared_per_block_bytes
    return GroupTiling(
        instances,
        columns,
        held + queries * ahead,
        staged,
        ahead,
        tensor=2 * elements * (dqk + dv) / target.tensor_flops_per_clock,
        second=2 * elements * dv / target.tensor_flops_per_clock,
        special=elements * special / target.special_per_clock,
        issue=(ISSUE_AN_ELEMENT * elements + ROWS * dv) / target.fp32_lanes,
        scaled=dv / columns,
    )
