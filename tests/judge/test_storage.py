"""How the judge lays keys and values out: what lengths and tables lead to is what the reference knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qimeng_attention.judge.families import FAMILIES
from qimeng_attention.judge.inputs import CPU, cases, values
from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.judge.reference import truth
from qimeng_attention.judge.storage import stored, with_shared_pages
from qimeng_attention.spec import AttentionSpec

CALL = Call(4, 1, 50, 2, 1, 32, 32, 0.2, lens=(50, 17, -2, 33))


def spec_of(**fields: object) -> AttentionSpec:
    return AttentionSpec.make(**{"Hq": 2, "Hk": 1, "Dqk": 32, "Sq": 1, **fields})


def drawn(page: int | None, call: Call = CALL) -> dict[str, np.ndarray]:
    tensors = FAMILIES["normal"](np.random.default_rng(0), call, Operator.of(spec_of()))
    return with_shared_pages(page, call, tensors)


@pytest.mark.parametrize("page", [1, 16, 64])
def test_pages_hold_what_the_entries_have(page: int) -> None:
    tensors = drawn(page)
    found = stored(spec_of(page_size=page), CALL, tensors)
    table, lengths = found.tensors["PageTable"], found.tensors["SequsedK"]

    assert list(lengths) == list(CALL.lens)
    for b in range(CALL.B):
        for n in range(CALL.keys_of(b)):
            number = table[b, n // page]
            inside = 0 <= number < found.sizes["Pages"]
            read = found.tensors["K"][number, n % page] if inside else 0
            np.testing.assert_array_equal(read, tensors["K"][b, n])


def test_what_nobody_may_read_is_not_finite() -> None:
    found = stored(spec_of(page_size=16), CALL, drawn(16))
    table, keys = found.tensors["PageTable"], found.tensors["K"]
    used = {int(table[b, n]) for b in range(CALL.B) for n in range(-(-CALL.keys_of(b) // 16))}

    assert not np.isfinite(keys[sorted(set(range(len(keys))) - used)]).any()
    assert not np.isfinite(keys[table[3, 2], 1:]).any()  # entry 3 has 33 keys
    unused = table[2]
    assert ((unused < 0) | (unused >= len(keys))).all()


def test_equal_pages_are_one_and_a_page_of_zeros_may_be_none() -> None:
    call = replace(CALL, lens=())
    found = stored(spec_of(page_size=16), call, drawn(16, call))
    table = found.tensors["PageTable"]

    assert list(table[0, :2]) == list(table[1, :2])
    assert not 0 <= table[3, 1] < found.sizes["Pages"]


def test_lengths_alone_poison_what_lies_past_them() -> None:
    tensors = drawn(None)
    found = stored(spec_of(seqused_k=True), CALL, tensors).tensors

    for b in range(CALL.B):
        n = CALL.keys_of(b)
        np.testing.assert_array_equal(found["V"][b, :n], tensors["V"][b, :n])
        assert not np.isfinite(found["V"][b, n:]).any()


def test_a_length_beyond_the_cache_is_told_where_all_of_it_is_in_use() -> None:
    call = replace(CALL, Sk=48, lens=(53, 48, 20, 0))

    found = stored(spec_of(page_size=16), call, drawn(None, call))

    assert found.tensors["SequsedK"][0] == 53
    assert found.sizes["MaxPages"] * 16 == 48


def test_the_reference_knows_each_entry_by_its_own_length() -> None:
    spec = spec_of(mask="causal")
    tensors = drawn(None)
    whole = truth(Operator.of(spec), CALL, *(tensors[n] for n in "QKV"))

    for b in range(CALL.B):
        alone = replace(CALL, B=1, Sk=CALL.keys_of(b), lens=())
        one = {n: tensors[n][b : b + 1, : alone.Sk if n != "Q" else None] for n in "QKV"}
        expected = truth(Operator.of(spec), alone, *(one[n] for n in "QKV"))
        np.testing.assert_array_equal(whole.out[b], expected.out[0])
        np.testing.assert_array_equal(whole.lse[b], expected.lse[0])


def test_cases_visit_lengths_about_tiles_and_pages_none_all_and_outside() -> None:
    spec = spec_of(page_size=16)
    planned = cases(spec, (1, 64), CPU)
    lens = {n for c in planned for n in c.call.lens}

    assert {0, 1, 15, 16, 17, 63, 64, 65} <= lens
    assert min(lens) < 0
    assert any(n > c.call.Sk for c in planned for n in c.call.lens)
    assert any(not c.call.lens for c in planned)
    x = values(planned[3], Operator.of(spec), "bf16", 1)
    assert np.isfinite(x["K"]).all()
