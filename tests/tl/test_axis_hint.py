"""An axis named where nothing has it: the hint says what an axis is, not that it should be declared."""

from __future__ import annotations

import pytest

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.tl.checker import check_text

PROGRAM = """Kernel k for a100
Size B, Sq, D = 64
Tile BM = 64
Grid block = 0 : ceildiv(Sq, BM), batch = 0 : B
Allocate Q in global (B, Sq, D) bf16
Allocate Out in global (B, Sq, D) bf16
Copy Q (BM, D) in coordinate [batch, q = block * BM] from global to shared
Compute ln(2 + {name}) and get T
"""


def hint_for(name: str) -> str:
    with pytest.raises(DiagnosticError) as caught:
        check_text(PROGRAM.format(name=name), target="A100", file="k.tl")
    return next(d.hint for d in caught.value.diagnostics if d.code == "TL101")


def test_the_hint_for_an_axis_names_it_as_one() -> None:
    assert hint_for("q") == "'q' is an axis: write it in an expression with a register tile that has this axis"


def test_other_unknown_names_are_to_be_declared() -> None:
    assert "declare 'xyz'" in hint_for("xyz")
