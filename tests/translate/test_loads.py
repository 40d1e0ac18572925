"""Elements of named tensors are loaded as seldom as their indices allow, in the source and in the machine code."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.build import build
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.parser import parse
from qimeng_attention.translate import Translation, translate

DOCUMENTS: dict[str, Any] = {
    "mask": "kv_idx <= q_idx + Sk - Sq and doc[b, q_idx + Sk - Sq] == doc[b, kv_idx]",
    "tensors": {"doc": {"dims": ["B", "Sk"], "dtype": "i32"}},
}
SLOPES: dict[str, Any] = {
    "score": "score - slopes[h] * (q_idx + Sk - Sq - kv_idx)",
    "tensors": {"slopes": {"dims": ["Hq"], "dtype": "f32"}},
}


LISTED = 3  # elements of the list in an iteration: for V, for the next K, for the mask


def translated(target: str, **fields: Any) -> Translation:
    spec = AttentionSpec.make(**{"Hq": 4, "Hk": 2, "Dqk": 64, **fields})
    return translate(schedule(parse(plan(spec, targets.get(target)).code)))[-1]  # the attention stands last


def parts(source: str) -> tuple[str, str]:
    """Give what stands before the loop over keys that holds the mask, and what stands in it."""
    start = max(source.rfind(f"for (int {var} = ") for var in "ij")
    return source[:start], source[start:]


def test_rows_are_loaded_before_the_loop_and_columns_once_in_it() -> None:
    before, loop = parts(translated("A100", **DOCUMENTS).source)

    assert before.count("// Doc[batch, q + Sk - Sq]: once for each row") == 1
    assert loop.count("Doc[batch, q + Sk - Sq]: once") == 0
    assert loop.count("gDoc[") == loop.count("int32_t const rDoc_") == 1
    assert re.search(r"rDoc_\d\[r\] == rDoc_\d\D", loop)
    load = loop.index("int32_t const rDoc_")
    assert loop.rindex("c < rS.kC; ++c) {", 0, load) > loop.rindex("// tl:", 0, load)
    assert loop.index("r < rS.kR; ++r) {", load) < loop.index("// tl:", load)


def test_columns_of_a_mask_are_loaded_above_the_wait_for_the_product() -> None:
    """The mask needs the product, what it reads of tensors does not; at D = 128 a role has registers for it."""
    source = translated("H200", Dqk=128, **DOCUMENTS).source
    waits = [m.start() for m in re.finditer(r"tl::wait_gemm<\d>\(\);\n *tl::landed\(rS\)", source)]
    loads = [m.start() for m in re.finditer(r"// Doc\[batch, k\]: once for each column", source)]

    assert len(loads) == 2  # for the first tile, and in the loop with the mask
    assert all(load < wait for load, wait in zip(loads, waits, strict=False))
    assert source.count("int const k_first_") == 2  # where the tile lies is loaded once, too
    assert source.count("bool const kept = k < Sk;") == 2


def test_columns_wait_for_the_product_where_a_role_has_no_room() -> None:
    source = translated("H200", **DOCUMENTS).source  # three instances of 160 registers

    assert "// Doc[batch, k]: once for each column" not in source
    assert source.index("gDoc_stride_0 + k]") > source.index("tl::landed(rS)")


def test_a_loop_within_a_list_asks_for_no_bound() -> None:
    source = translated("H200", Dqk=128, **DOCUMENTS).source
    loop = source[source.index("for (int j = 1;") :]

    assert "tl::max(gList[" in loop[: loop.index("landed(rS)")]
    assert "tl::inside(j," not in loop[: loop.index("landed(rS)")]


@pytest.mark.parametrize("target", ["A100", "H200"])
def test_what_a_block_shares_is_loaded_once(target: str) -> None:
    before, loop = parts(translated(target, **SLOPES).source)

    assert before.count("float const rSlopes_0 = gSlopes[head];") == 1
    assert "gSlopes" not in loop


def test_an_index_of_the_grid_needs_no_test() -> None:
    source = translated("A100", **DOCUMENTS).source

    assert "tl::inside(batch, B)" not in source
    assert "(tl::inside(k, Sk) ? gDoc[int64_t(batch) * gDoc_stride_0 + k] : 0)" in source


def test_elements_of_rows_and_columns_are_read_where_they_are_used() -> None:
    tensors = {"bias": {"dims": ["Hq", "Sq", "Sk"], "dtype": "bf16"}}
    before, loop = parts(translated("A100", score="score + bias[h, q_idx, kv_idx]", tensors=tensors).source)

    assert "gBias[" not in before
    assert loop.count("float(gBias[") == 1
    assert "once for" not in loop


def test_a_tensor_that_indexes_another_is_held_for_itself() -> None:
    tensors = {"table": {"dims": [8, 8], "dtype": "f32"}, "kind": {"dims": ["Sk"], "dtype": "i32"}}
    score = "score + table[kind[q_idx], kind[kv_idx]]"
    before, loop = parts(translated("A100", score=score, tensors=tensors).source)

    assert "// Kind[q]: once for each row" in before
    assert loop.count("int32_t const rKind_") == 1
    assert re.search(r"gTable\[int64_t\(rKind_\d\[r\]\) \* gTable_stride_0 \+ rKind_\d\]", loop)


def test_two_statements_that_read_an_element_of_a_row_share_it() -> None:
    tensors = {"gain": {"dims": ["Sq"], "dtype": "f32"}}
    source = translated("A100", score="score * gain[q_idx]", mask="gain[q_idx] > 0.1", tensors=tensors).source

    assert source.count("gGain[") == 1


def test_elements_of_64_bits_are_computed_with_64_bits() -> None:
    tensors = {"ids": {"dims": ["B", "Sk"], "dtype": "i64"}}
    source = translated("A100", mask="ids[b, kv_idx] % 3 == max(0, ids[b, q_idx])", tensors=tensors).source

    assert "int64_t rIds_0[" in source
    assert re.search(r"tl::floor_mod\(int64_t\(rIds_\d\), int64_t\(3\)\)", source)
    assert re.search(r"tl::max\(int64_t\(0\), int64_t\(rIds_\d\[r\]\)\)", source)


@pytest.mark.cuda
def test_the_loop_loads_a_column_once_in_machine_code() -> None:
    """64 keys on 4 lanes a row are 16 loads a thread, whatever the number of rows."""
    t = translated("A100", **DOCUMENTS)
    built = build(t.source, name=t.name, arch="sm_80", threads=t.threads, shared_bytes=t.shared_bytes, target=t.target)
    loops = [loop for loop in built.report.loops if loop.counts.get("HMMA")]

    (columns,) = re.findall(r"BN = (\d+)", t.source)
    assert [loop.counts["LDG"] for loop in loops] == [int(columns) // 4 + LISTED]


def test_a_role_that_loads_its_bounds_holds_no_index_of_its_warpgroup() -> None:
    listed, plain = translated("H200", Dqk=128, **DOCUMENTS).source, translated("H200", Dqk=128, mask="causal").source

    assert "int const w = int(threadIdx.x) / 128 - 1;" in listed
    assert "int const w = group - 1;" in plain


@pytest.mark.cuda
def test_documents_spill_nothing_on_an_h200() -> None:
    made = translated("H200", Dqk=128, **DOCUMENTS)
    target = targets.get("H200")

    report = build(
        made.source, name=made.name, arch="sm_90a", threads=made.threads, shared_bytes=made.shared_bytes, target=target
    ).report

    assert report.spill_store_bytes == report.spill_load_bytes == 0
