"""Register tiles that say where they begin, and list elements that never skip."""

from __future__ import annotations

import numpy as np
import pytest

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.schedule import schedule
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.interpreter import interpret
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from qimeng_attention.tl.traverse import statements
from qimeng_attention.translate import translate

DISTANCES = """Kernel distances for a100
Size M, N
Tile BM = 16, BN = 32
Grid row = 0 : ceildiv(M, BM)
Allocate Weight in global (N) f32
Allocate Out in global (M) f32
Allocate far in register (BM q = row * BM, BN k = 3) f32 = 0
Compute where(k < N, Weight[k] * (q - k), 0.0) and get new far
Compute RowSum(far) and get total
Copy total (BM) in coordinate [q = row * BM] from register to global Out

Schedule
    warps 1 along q
"""


def test_a_place_parses_and_prints() -> None:
    printed = print_program(parse(DISTANCES))

    assert "Allocate far in register (BM q = row * BM, BN k = 3) f32 = 0" in printed
    assert parse(printed) == parse(print_program(parse(printed)))


@pytest.mark.parametrize("text", [DISTANCES, print_program(schedule(parse(DISTANCES)))], ids=["code", "scheduled"])
def test_expressions_read_where_a_tile_begins(text: str) -> None:
    weight = np.arange(1.0, 21, dtype=np.float32)

    found = interpret(check_text(text)[0], {"M": 40, "N": 20}, {"Weight": weight})

    q, k = np.arange(40)[:, None], np.arange(3, 20)
    assert found["Out"].tolist() == (weight[k] * (q - k)).sum(1).tolist()


def test_the_compiler_takes_the_place_for_the_first_index() -> None:
    (made,) = translate(schedule(parse(DISTANCES)))

    assert "int const q = row * BM + tl::tile_row<16>(r);" in made.source
    assert "int const k = 3 + tl::tile_col(c);" in made.source


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        ("row * BM, BN", "row * BM + Weight[0], BN", "TL107", "the place of far along q must be an integer"),
        ("[q = row * BM]", "[q = row * BM + 16]", "TL105", "far|total was computed at q = row"),
        ("total (BM)", "total (BM q = row * BM)", "TL110", "says where it begins"),
        (
            "in register (BM q = row * BM, BN k = 3) f32 = 0",
            "in shared (BM q = row * BM, BN k = 3) f32",
            "TL207",
            "begin where a Copy says",
        ),
    ],
)
def test_a_place_that_cannot_be_is_refused(old: str, new: str, code: str, said: str) -> None:
    assert old in DISTANCES
    with pytest.raises(DiagnosticError, match=said) as error:
        check_text(DISTANCES.replace(old, new))

    assert code in {d.code for d in error.value.diagnostics}


@pytest.mark.parametrize(("element", "guarded"), [("List[j]", True), ("max(List[j], 0)", False)])
def test_an_element_held_at_0_skips_no_iteration(element: str, guarded: bool) -> None:
    text = f"""Kernel gathered for a100
Size N, Sk
Tile BM = 16, BN = 16
Grid block = 0 : 1
Allocate List in global (N) i32
Allocate K in global (Sk) f32
Allocate Out in global (BN) f32
Allocate total in register (BN k) f32 = 0
for j = 0 : N
    Copy K (BN) in coordinate [k = {element} * BN] from global to register one
    Compute total + one and get new total
end
Compute total * 1 and get new total
Copy total (BN) in coordinate [k = 0] from register to global Out
"""
    kernel = check_text(text, model=False)[0].kernel

    assert any(isinstance(n, s.If) for n in statements(kernel.body)) is guarded
