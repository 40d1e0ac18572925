"""How a tile's rows lie in shared memory: in pieces over which a swizzle exchanges 16 bytes, the last one completed.

Eight rows of a 16-byte column, which is what `ldmatrix` and `wgmma` read at a time, then lie in different banks
(32 banks of 4 bytes) whatever the row's length, and a piece is what the copy engine writes at a time.
"""

from __future__ import annotations

PIECES = (128, 64)  # bytes; the widest first
UNIT_BYTES = 32  # a row of 16-bit elements is whole steps of an MMA (k = 16)


def swizzle_for(row_bytes: int) -> int | None:
    """Give the bytes over which rows are swizzled: the pieces that leave least of the last one empty.

    Args:
        row_bytes: of the elements that lie side by side; a row that is no multiple of 32 bytes is not swizzled.
    """
    if row_bytes % UNIT_BYTES:
        return None
    return min(PIECES, key=lambda piece: completed(row_bytes, piece))


def completed(row_bytes: int, swizzle: int | None) -> int:
    """Give the bytes a row takes: whole pieces."""
    piece = swizzle or 1
    return -(-row_bytes // piece) * piece
