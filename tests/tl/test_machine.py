"""The machine's faults: scheduled code that is right runs in any order of its roles, and each thing left out is
found."""

from __future__ import annotations

import time

import numpy as np
import pytest

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.tl.checker import check_text, check_with_findings
from qimeng_attention.tl.interpreter import interpret
from qimeng_attention.tl.parser import parse
from tl.fuzzing import PROGRAMS

HEAD = """Kernel roles for h200
Size Sk
Size D = 64
Tile BM = 64, BN = 32
Grid block = 0 : 1
Allocate Q in global (BM, D) bf16
Allocate K in global (Sk, D) bf16
Allocate Out in global (BM, BN) f32
Allocate Q in shared (BM q, D) bf16
Allocate K in shared (BN k, D) bf16 stages 2
"""
PRODUCER = """role producer
    Copy Q (BM, D) in coordinate [q = 0] from global to shared async signals Q.full
    for i = 0 : ceildiv(Sk, BN)
        Wait K.empty
        Copy K (BN, D) in coordinate [k = i * BN] from global to shared async signals K.full
"""
CONSUMER = """role consumer
    Allocate Total in register (BM q, BN j) f32 = 0
    Wait Q.full
    for i = 0 : ceildiv(Sk, BN)
        Wait K.full
        Compute GEMM Q, K.T at [k = i * BN] and get S async
        Wait gemm pending 0
        Release K
        Compute Mask S where k < Sk else 0
        Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as bf16 and get P
    Release Q
    Copy Total (BM, BN) in coordinate [q = 0, j = 0] from register to global Out
"""
ROLES = HEAD + PRODUCER + CONSUMER
H200 = (PROGRAMS / "gqa_h200_scheduled.tl").read_text("utf-8")


def codes(text: str) -> set[str]:
    program = parse(text)
    return {d.code for d in check_with_findings(program)[1] if d.severity == "error"}


def edit(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def test_the_roles_as_written_have_no_fault() -> None:
    assert codes(ROLES) == set()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("        Wait K.full\n", ""), "TL402"),  # lost wait
        (("    Wait Q.full\n", ""), "TL402"),
        (("        Wait K.empty\n", ""), "TL404"),  # early refill
        (("        Wait gemm pending 0\n", ""), "TL404"),
        (("pending 0", "pending 1"), "TL404"),  # wrong pending count
        (("        Release K\n", ""), "TL404"),  # waited for again without release
        (
            ("        Wait gemm pending 0\n        Release K\n", "        Release K\n        Wait gemm pending 0\n"),
            "TL404",
        ),
        (("at [k = i * BN]", "at [k = i * BN + BN]"), "TL407"),  # out of step
        (
            (
                "        Wait gemm pending 0\n        Release K\n        Compute Mask S where k < Sk else 0\n",
                "        Compute Mask S where k < Sk else 0\n        Wait gemm pending 0\n        Release K\n",
            ),
            "TL406",
        ),
        (
            ("for i = 0 : ceildiv(Sk, BN)\n        Wait K.empty", "for i = 0 : Sk // BN\n        Wait K.empty"),
            "TL409",
        ),  # deadlock
        (("    Wait Q.full\n", "    Wait Q.full\n    Wait K.full\n    Release K\n"), "TL409"),
        (("signals K.full", ""), "TL409"),
    ],
)
def test_each_thing_left_out_is_found(change: tuple[str, str], code: str) -> None:
    assert code in codes(edit(ROLES, change))


@pytest.mark.parametrize("seed", range(6))
def test_the_order_of_roles_and_arrivals_changes_no_number(seed: int) -> None:
    (checked,) = check_text(H200.replace("D = 128", "D = 16"), model=False)
    rng = np.random.default_rng(1)
    sizes = {"B": 1, "Sq": 130, "Sk": 190, "Hq": 2, "Hk": 1}
    shapes = {"Q": (1, 130, 2, 16), "K": (1, 190, 1, 16), "V": (1, 190, 1, 16)}
    inputs = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}

    first = interpret(checked, sizes, inputs, {"scale": 0.1}, seed=1000)
    again = interpret(checked, sizes, inputs, {"scale": 0.1}, seed=seed)

    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


COPIES = """Kernel copies for a100
Size Sk
Size D = 64
Tile BM = 64, BN = 32
Grid block = 0 : 1
Warps 4 along q
Allocate Q in global (BM, D) bf16
Allocate K in global (Sk, D) bf16
Allocate Out in global (BM, D) bf16
Allocate K in shared (BN k, D) bf16 stages 2
Allocate Q in shared (BM q, D) bf16
Allocate Under in shared (BM q, D) bf16 over Q
Allocate O in register (BM q, D) f32 = 0
Copy Q (BM, D) in coordinate [q = 0] from global to shared async
Commit
Copy K (BN, D) in coordinate [k = 0] from global to shared slot 0 async
Commit
for i = 0 : ceildiv(Sk, BN)
    Copy K (BN, D) in coordinate [k = (i + 1) * BN] from global to shared slot (i + 1) % 2 async
    Commit
    Wait copies pending 1
    Barrier
    Compute GEMM Q, K.T slot i % 2 at [k = i * BN] and get S
    Compute Mask S where k < Sk else 0
    Barrier
end
Wait copies pending 0
Barrier
Copy O from register to shared Under
Barrier
Copy Under (BM, D) in coordinate [q = 0] from shared to global Out
"""


def test_the_copies_as_written_have_no_fault() -> None:
    text = COPIES.replace("(BM q, D) f32 over Q", "(BM q, D) bf16 over Q").replace(
        "Out in global (BM, D) f32", "Out in global (BM, D) bf16"
    )

    assert codes(text) == set()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("    Wait copies pending 1\n", ""), "TL402"),
        (("pending 1", "pending 2"), "TL402"),
        (("    Commit\n", ""), "TL402"),  # the count is of groups that are not there
        (("    Barrier\n    Compute GEMM", "    Compute GEMM"), "TL403"),
        (("    Barrier\nend", "end"), "TL404"),  # early refill
        (("slot (i + 1) % 2", "slot i % 2"), "TL405"),
        (("end\nWait copies pending 0\n", "end\n"), "TL405"),
        (("end\nWait copies pending 0\nBarrier\n", "end\nWait copies pending 0\n"), "TL405"),
        (("Under\nBarrier\n", "Under\n"), "TL403"),
        (("slot i % 2 at", "slot i at"), "TL408"),
        (("slot i % 2 at", "slot (i + 1) % 2 at"), "TL402"),
    ],
)
def test_each_fault_of_copies_is_found(change: tuple[str, str], code: str) -> None:
    text = COPIES.replace("(BM q, D) f32 over Q", "(BM q, D) bf16 over Q").replace(
        "Out in global (BM, D) f32", "Out in global (BM, D) bf16"
    )

    assert code in codes(edit(text, change))


def test_a_fault_while_interpreting_carries_its_line() -> None:
    (checked,) = check_text(edit(ROLES, ("        Wait K.full\n", "")), model=False)
    inputs = {"Q": np.zeros((64, 64), np.float32), "K": np.zeros((70, 64), np.float32)}

    with pytest.raises(DiagnosticError) as caught:
        interpret(checked, {"Sk": 70}, inputs)

    (found,) = caught.value.diagnostics
    assert found.code == "TL402"
    assert ROLES.split("\n")[found.span.line].startswith("        Compute GEMM")  # it moved up by one line


def test_an_output_that_is_not_written_is_a_fault_while_interpreting_too() -> None:
    text = (
        HEAD.split("Allocate Q in shared")[0]
        + """Allocate O in register (32 q, BN j) f32 = 0
Copy O (32, BN) in coordinate [q = 0, j = 0] from register to global Out
"""
    )
    (checked,) = check_text(text, model=False)

    with pytest.raises(DiagnosticError) as caught:
        interpret(checked, {"Sk": 1}, {})

    assert [d.code for d in caught.value.diagnostics] == ["TL301"]


@pytest.mark.parametrize(
    "text",
    [
        "Size N = 1000000\nTile T = 1000000\nGrid b = 0 : 1\nAllocate X in global "
        "(N, N) f32\nAllocate x in register (T r, T c) f32 = 0\n"
        "Copy x (T, T) in coordinate [r = 0, c = 0] from register to global X",
        "Size N = 1000000\nGrid b = 0 : N * N * N\nAllocate X in global (N, "
        "N, N) f32\nAllocate x in register (16 c) f32 = 0\n"
        "Copy x (16) in coordinate [b, b, c = 0] from register to global X",
        "Size N\nGrid b = 0 : 1\nAllocate X in global (N * 1000000000000, "
        "16) f32\nAllocate x in register (16 c) f32 = 0\n"
        "for i = 0 : 1000000\n    for j = 0 : 1000000\n        Compute x + 1 and get new x\n"
        "Copy x (16) in coordinate [0, c = 0] from register to global X",
        "Size N\nGrid b = 0 : N * 1000000000\nAllocate X in global (N, 16) f32\nAllocate x in register (16 c) f32 = 0\n"
        "Let a = 4000000000 * N\nLet b2 = a * a\nLet c2 = b2 * b2\nCopy x (16) "
        "in coordinate [c2, c = 0] from register to global X",
        "Size A, B, C, D, E, F, G, H, I, J, N\nGrid b = 0 : N persistent\nAllocate "
        "X in global (A, B, C, D, E, F, G, H, I, J, N, 16) f32\n"
        "Allocate x in register (16 c) f32 = 0\nCopy x (16) in coordinate [0, 0, 0, "
        "0, 0, 0, 0, 0, 0, 0, b, c = 0] from register to global X",
    ],
    ids=["tiles of a million", "a grid of 10^18", "loops of 10^12", "numbers that grow", "many sizes"],
)
def test_the_run_on_small_sizes_is_bounded(text: str) -> None:
    start = time.process_time()
    _, found = check_with_findings(parse("Kernel large\n" + text))

    assert time.process_time() - start < 2
    assert all(d.span.line >= 1 for d in found)
