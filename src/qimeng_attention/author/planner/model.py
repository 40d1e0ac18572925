"""What a tile costs on each pipe of a streaming multiprocessor: the planner's analytic model.

Clocks for one tile of M queries by N keys in one block, from the target's rates:
    tensor   2 M N (Dqk + Dv) / tensor FLOPs a clock that mma.sync reaches
    shared   bytes that ldmatrix and the copies move / 128 bytes a clock: each warp reads its rows of Q and all of K
    and V special  M N exponentials (and those of score expressions) / 16 a clock
    issue    about 4.5 lanes' instructions an element of S, one an element of O / 128 lanes a clock
Where there is no asynchronous copy, K and V of a tile pass through the registers of the block's threads, which must
have room for them beside the fragments.
A block alone does its GEMMs and its softmax one after the other; r resident blocks overlap. So a tile takes
    max(tensor, shared, special, issue, (tensor + max(special, issue)) / r).
Head dims are those of the tiles: whole MMA steps, and in shared memory rows of whole swizzled pieces (widths.py).
These are predictions; what is measured stands in benchmarks/results.
"""

from __future__ import annotations

from dataclasses import dataclass

from qimeng_attention.author.planner.widths import MOST_LANES, copying_lanes, padded, row_elements
from qimeng_attention.targets import Target

SHARED_BYTES_A_CLOCK = 128  # 32 banks of 4 bytes
ISSUE_AN_ELEMENT = 4.5  # scale and subtract, max, exponential, sum, half a conversion
OTHER_REGISTERS = (
    44  # addresses and temporaries: with it the tiles that ptxas compiled without spills fit, the others do not
)
ROW_VECTORS = 4  # m, l, m_new, alpha
CLOSE = 5  # where rows lie in 64-byte pieces, estimates this close to what a thread has (252 of 255, 164 of 168)
# compile to 4 to 56 bytes of spills; at D = 64 and 128 on an A100 such tiles are kept: nothing else is as fast, and the
# build compiles what spills in another way (docs/design/0015-spills.md)
MMA_SHARE_HOPPER = (
    0.62  # of the tensor rate that mma.sync reaches where wgmma exists (Luo et al. 2024, Dissecting Hopper)
)
THREADS_A_WARP = 32
WARPS_CHOICES = (4, 8)
ROWS_CHOICES = (64, 128)
COLUMNS_CHOICES = (32, 64, 96, 128)
NARROW_COLUMNS = 16  # tried beside them where K and V pass through registers: what fits at the largest head dims
MOST_BLOCKS = 4  # more resident blocks than this hide nothing more


@dataclass(frozen=True)
class Tiling:
    """One way to tile: M by N, warps, blocks that fit an SM, and what a tile costs."""

    rows: int
    columns: int
    warps: int
    blocks: int
    registers: int  # estimated a thread
    shared_bytes: int
    tensor: float  # clocks a tile on each pipe
    shared: float
    special: float
    issue: float
    crowded: bool  # ptxas may keep an address in memory: taken only where nothing else costs as little

    @property
    def clocks(self) -> float:
        """Give the clocks a tile takes."""
        alone = self.tensor + max(self.special, self.issue)
        return max(self.tensor, self.shared, self.special, self.issue, alone / self.blocks)

    @property
    def clocks_a_key(self) -> float:
        """Give the clocks for 1,000 elements of the score matrix: what tilings are compared by."""
        return 1000 * self.clocks / (self.rows * self.columns)

    @property
    def bound(self) -> str:
        """Name what binds."""
        alone = (self.tensor + max(self.special, self.issue)) / self.blocks
        pipes = {
            "tensor cores": self.tensor,
            "shared memory": self.shared,
            "special functions": self.special,
            "issue": self.issue,
            "latency of one block": alone,
        }
        return max(pipes, key=lambda p: pipes[p])

    def describe(self) -> str:
        """Write the costs in a line."""
        return (
            f"{self.rows} x {self.columns}, {self.warps} warps, {self.blocks} blocks an "
            f"SM: tensor {self.tensor:.0f}, shared {self.shared:.0f}, "
            f"special {self.special:.0f}, issue {self.issue:.0f} clocks a tile, bound by {self.bound}"
        )


def tilings(
    target: Target, dqk: int, dv: int, special_an_element: int, held: int = 0, on_their_way: int = 0
) -> list[Tiling]:
    """Give every tiling that fits the target, best first.

    Args:
        target: the GPU.
        dqk: head dim of queries and keys.
        dv: head dim of values.
        special_an_element: special-function results an element of S needs (1 for softmax alone).
        held: registers a thread that elements of named tensors take.
        on_their_way: registers a thread that ptxas may use besides for results on their way: tiles without room for
            them come behind those that cost the same.
    """
    found = []
    narrow = (NARROW_COLUMNS,) if carries(target) else ()
    for rows in ROWS_CHOICES:
        for columns in (*narrow, *COLUMNS_CHOICES):
            for warps in WARPS_CHOICES:
                t = _tiling(target, rows, columns, warps, dqk, dv, special_an_element, held)
                if t is not None:
                    found.append(t)
    most = target.max_registers_per_thread - on_their_way
    return sorted(found, key=lambda t: (round(t.clocks_a_key, 3), t.crowded, t.registers > most, -t.columns, t.warps))


def carries(target: Target) -> bool:
    """Tell whether copies to shared memory pass through registers: there are none that run by themselves."""
    return "async copy" not in target.capabilities


def _tiling(
    target: Target, rows: int, columns: int, warps: int, dqk: int, dv: int, special: int, held: int
) -> Tiling | None:
    threads = warps * THREADS_A_WARP
    copied = ((rows, dqk), (columns, dqk), (columns, dv))
    if rows % (16 * warps) or any(n % (threads // copying_lanes(d)) for n, d in copied):
        return None
    row_qk, row_v = row_elements(dqk), row_elements(dv)
    dqk, dv = padded(dqk), padded(dv)
    registers = held + (rows * columns + rows * dv) // threads + OTHER_REGISTERS + ROW_VECTORS * rows // (8 * warps)
    if carries(target):
        registers += columns * (dqk + dv) * 2 // (4 * threads)  # 16 bits an element
    if registers > target.max_registers_per_thread:
        return None
    shared_bytes = 2 * (rows * row_qk + columns * (row_qk + row_v))
    if shared_bytes > target.shared_per_block_bytes:
        return None
    by_shared = target.shared_per_sm_bytes // (shared_bytes + target.shared_reserved_bytes)
    by_registers = target.registers_per_sm // (
        threads * min(target.max_registers_per_thread + 1, -(-registers // 8) * 8)
    )
    blocks = min(by_shared, by_registers, target.max_threads_per_sm // threads, MOST_BLOCKS)
    if blocks < 1:
        return None
    elements = rows * columns
    rate = target.tensor_flops_per_clock * (MMA_SHARE_HOPPER if "wgmma" in target.capabilities else 1.0)
    in_pieces = any(copying_lanes(d) < MOST_LANES for d in (dqk, dv))
    fetched = warps * 2 * ((rows // warps) * dqk + columns * (dqk + dv)) + 2 * columns * (dqk + dv)
    return Tiling(
        rows,
        columns,
        warps,
        blocks,
        registers,
        shared_bytes,
        tensor=2 * elements * (dqk + dv) / rate,
        shared=fetched / SHARED_BYTES_A_CLOCK,
        special=elements * special / target.special_per_clock,
        issue=(ISSUE_AN_ELEMENT * elements + rows * dv) / target.fp32_lanes,
        crowded=registers + CLOSE * in_pieces
        > min(target.max_registers_per_thread, target.registers_per_sm // (threads * blocks) // 8 * 8),
    )
