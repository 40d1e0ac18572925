"""Copies whose rows lie where an index tensor says: what they read, what is refused, what they become in C++."""

from __future__ import annotations

import numpy as np
import pytest

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.interpreter import interpret
from qimeng_attention.tl.parser import parse
from qimeng_attention.translate import translate

COORDINATE = "[Table[k // Page], k = i * BN : Length[0] at k % Page, 1]"
TEXT = """
Kernel gathers for {target}
Size Pages, Most
Size Page = 4, Heads = 2, D = 64
Tile BN = 64
Grid i = 0 : 1
Warps 4 along k
Allocate K in global (Pages, Page, Heads, D) fp16
Allocate Table in global (Most) i32
Allocate Length in global (1) i32
Allocate Out in global (64, D) fp16
Allocate K in shared (BN k, D) fp16 swizzle 128
Copy K (BN, D) in coordinate {coordinate} from global to shared
{rest}
"""
STORED = """Barrier
Copy K (BN, D) in coordinate [k = i * BN] from shared to global Out"""


def text_of(coordinate: str = COORDINATE, target: str = "a100", rest: str = STORED) -> str:
    return TEXT.format(coordinate=coordinate, target=target, rest=rest)


def read(table: list[int], length: int, pages: int = 5) -> np.ndarray:
    """Give the first column of what is read; row r of page p holds 10 p + r + 1 in the second head, 99 in the first."""
    (checked,) = check_text(text_of(), model=False)
    values = 10.0 * np.arange(pages)[:, None] + np.arange(4) + 1
    cache = np.stack([np.full((pages, 4), 99.0), values], axis=2)[..., None] * np.ones(64)
    inputs = {"K": cache.astype(np.float32), "Table": np.array(table), "Length": np.array([length])}
    return interpret(checked, {"Pages": pages, "Most": len(table)}, inputs)["Out"][:, 0]


def test_each_row_lies_in_its_own_page() -> None:
    found = read([3, 0, 4], 10)

    np.testing.assert_array_equal(found[:10], [31, 32, 33, 34, 1, 2, 3, 4, 41, 42])
    assert not found[10:].any()


@pytest.mark.parametrize("number", [-1, 5, (1 << 31) - 1])
def test_a_row_of_no_page_reads_as_zeros(number: int) -> None:
    np.testing.assert_array_equal(read([number, 2], 6)[:7], [0, 0, 0, 0, 21, 22, 0])


def test_what_lies_past_the_table_reads_its_element_as_0() -> None:
    np.testing.assert_array_equal(read([1], 6)[:6], [11, 12, 13, 14, 1, 2])


@pytest.mark.parametrize(
    ("coordinate", "code"),
    [
        ("[Table[k // Page] * 0.5, k = i * BN at k % Page, 1]", "TL107"),
        ("[Table[k // Page], k = i * BN, 1]", "TL101"),  # no `at`: the index is the block's, and k no name in it
        ("[Table[unknown], k = i * BN at k % Page, 1]", "TL101"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(coordinate: str, code: str) -> None:
    with pytest.raises(DiagnosticError) as refused:
        check_text(text_of(coordinate), model=False)

    assert code in [d.code for d in refused.value.diagnostics]


def test_a_store_to_rows_of_their_own_is_refused() -> None:
    place = "[Table[k // Page], k = i * BN at k % Page, 1]"
    rest = f"Barrier\nCopy K (BN, D) in coordinate {place} from shared to global K2\n{STORED}"
    text = text_of(rest=rest).replace(
        "Allocate Table", "Allocate K2 in global (Pages, Page, Heads, D) fp16\nAllocate Table"
    )

    with pytest.raises(DiagnosticError) as refused:
        check_text(text, model=False)

    assert "TL107" in [d.code for d in refused.value.diagnostics]


@pytest.mark.parametrize("target", ["a100", "t4"])
def test_a_gather_looks_each_row_up_and_tests_what_could_be_wrong(target: str) -> None:
    (made,) = translate(parse(text_of(target=target)))

    assert '#include "gather.cuh"' in made.source
    assert "tl::gather<kThreads>(sK, [&](int row) {" in made.source
    assert "k < " in made.source
    assert "tl::inside(at_Pages, Pages)" in made.source
    assert "tl::inside(at_Page," not in made.source  # a rest by Page lies within Page


def test_rows_that_lie_together_need_no_gather() -> None:
    (made,) = translate(parse(text_of("[Table[0], k = i * BN : Length[0], 1]")))

    assert "gather.cuh" not in made.source


def test_columns_with_places_of_their_own_are_refused() -> None:
    text = text_of("[Table[0], k = i * BN : Length[0], 1, D = 0 at D % 64]")

    with pytest.raises(DiagnosticError) as refused:
        translate(parse(text))

    assert [d.code for d in refused.value.diagnostics if d.severity == "error"] == ["TL701"]
