"""Registers are counted where most tiles are held at once, not over all tiles of a program."""

from __future__ import annotations

import pytest

from qimeng_attention.errors import QimengError
from qimeng_attention.tl.checker import check_text

PROGRAM = """\
Kernel example for a100
Size B, Sq, Sk, H
Size D = 128
Scalar scale f32 > 0
Tile BM = 128, BN = 64
Grid block = 0 : ceildiv(Sq, BM), head = 0 : H, batch = 0 : B
Allocate Q in global (B, Sq, H, D) bf16
Allocate K in global (B, Sk, H, D) bf16
Allocate V in global (B, Sk, H, D) bf16
Allocate Out in global (B, Sq, H, D) bf16
Allocate O in register (BM q, D) f32 = 0
Copy Q (BM, D) in coordinate [batch, q = block * BM, head] from global to shared
for i = 0 : ceildiv(Sk, BN)
    Copy K (BN, D) in coordinate [batch, k = i * BN, head] from global to shared
    Copy V (BN, D) in coordinate [batch, k = i * BN, head] from global to shared
    Compute GEMM Q, K.T and get S
    Compute Mask S where k < Sk else 0
    Compute max(S * scale, 0) and get E
    Compute E * E and get F
    Reshape F from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as bf16 and get P
    Compute GEMM P, V and accumulate O
Copy O (BM, D) in coordinate [batch, q = block * BM, head] from register to global Out
"""


def refusal(text: str) -> str:
    with pytest.raises(QimengError) as caught:
        check_text(text)
    return str(caught.value)


def test_a_tile_that_nothing_reads_any_more_makes_room_for_the_next() -> None:
    check_text(PROGRAM)  # O 128, and of S, E and F, 64 each, one at a time


def test_tiles_that_are_read_again_are_counted_together() -> None:
    again = PROGRAM.replace("    Compute GEMM P, V", "    Compute F + S + E and get new F\n    Compute GEMM P, V")
    found = refusal(again)
    assert "TL502" in found
    assert "O 128, " in found


def test_what_a_loop_carries_is_held_through_all_of_it() -> None:
    carried = PROGRAM.replace("Copy Q (BM", "Allocate A in register (BM q, D) f32 = 0\nCopy Q (BM", 1)
    carried = carried.replace("    Compute GEMM Q", "    Compute A * 2 and get new A\n    Compute GEMM Q")
    carried = carried.replace("Copy O (BM", "Compute O + A and get new O\nCopy O (BM")
    found = refusal(carried)
    assert "TL502" in found
    assert "A 128, O 128" in found or "O 128, A 128" in found
