"""Find: the last integer of a range up to which a condition holds."""

from __future__ import annotations

import numpy as np
import pytest

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.interpreter import interpret
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from qimeng_attention.tl.small_model import small_sizes, starts

TEXT = """Kernel look
Size B, N
Tile BM = 1
Grid row = 0 : N
Allocate Start in global (B + 1) i32
Allocate Names in global (N) f32
Allocate Out in global (N) f32
Find batch = 0 : B where Start[batch] <= row
Copy Names (BM) in coordinate [q = row] from global to register
Compute Names * 0 + batch and get found
Copy found (BM) in coordinate [q = row] from register to global Out
"""


def found(start: list[int], rows: int) -> list[int]:
    inputs = {"Start": np.array(start), "Names": np.zeros(rows, np.float32)}
    given = interpret(check_text(TEXT, model=False)[0], {"B": len(start) - 1, "N": rows}, inputs)
    return [int(x) for x in given["Out"]]


def test_a_search_parses_and_prints() -> None:
    program = parse(TEXT)

    assert print_program(program) == TEXT
    (search,) = [n for n in program.kernels[0].body if isinstance(n, s.Find)]
    assert (search.name, search.range) == ("batch", s.Range(s.Num(0), s.Name("B")))


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 100, 1025])
def test_the_last_integer_for_which_the_condition_holds_is_found(count: int) -> None:
    rng = np.random.default_rng(count)
    start = [0, *np.sort(rng.integers(0, 40, count)).tolist()]

    for row, batch in enumerate(found(start, 41)):
        assert batch == max(i for i in range(count) if start[i] <= row)


@pytest.mark.parametrize("start", [[7, 8, 9], [0]])
def test_the_first_integer_is_found_where_the_condition_never_holds(start: list[int]) -> None:
    assert found(start, 3) == [0, 0, 0]


@pytest.mark.parametrize("count", [3, 40, 1100])
def test_an_integer_of_the_range_is_found_whatever_the_contents(count: int) -> None:
    rng = np.random.default_rng(count)

    batches = found(rng.integers(-100, 100, count + 1).tolist(), 20)

    assert all(0 <= batch < count for batch in batches)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("Find batch = 0 : B where Start[batch]", "TL104"),
        ("Find batch = 0 : B / 2 where Start[batch] <= row", "TL107"),
        ("Find row = 0 : B where Start[row] <= 3", "TL102"),
        ("Find batch = 0 : B where Strat[batch] <= row", "TL101"),
        ("Find batch = 0 : B where q <= row", "TL101"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(line: str, code: str) -> None:
    text = TEXT.replace("Find batch = 0 : B where Start[batch] <= row", line)

    with pytest.raises(DiagnosticError) as refusal:
        check_text(text)

    assert code in {d.code for d in refusal.value.diagnostics}


def test_small_sizes_give_a_search_something_to_find() -> None:
    checked = check_text(TEXT)[0]

    for sizes in small_sizes(checked):
        rising = starts(checked, sizes)["Start"]
        assert len(rising) == sizes["B"] + 1 > 2
        assert (np.diff(rising) >= 0).all()
