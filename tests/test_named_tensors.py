"""Named tensors of a spec: what is declared, what is refused, and what programs make of it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.errors import SpecError
from qimeng_attention.judge.meaning import Operator
from qimeng_attention.named_tensors import Problem, own_sizes, parse
from qimeng_attention.spec import AttentionSpec

SLOPES = {"slopes": {"dims": ["Hq"], "dtype": "f32"}}
DOC = {"doc": {"dims": ["B", "Sk"], "dtype": "i32"}}


def made(**fields: Any) -> AttentionSpec:
    return AttentionSpec.make(**{"Hq": 4, "Hk": 2, "Dqk": 64, **fields})


def code(**fields: Any) -> str:
    return plan(made(**fields), targets.get("A100")).code


def test_a_spec_with_tensors_goes_through_yaml_and_back() -> None:
    spec = made(score="score + table[h, kv_idx]", tensors={"table": {"dims": ["Hq", "N", 3], "dtype": "f16"}})

    again = AttentionSpec.make(**yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json"))))

    assert again == spec
    assert own_sizes(spec.tensors) == ("N",)


def test_a_spec_describes_its_tensors() -> None:
    text = "\n".join(
        made(score="score + table[h, N - 1]", tensors={"table": {"dims": ["Hq", "N"], "dtype": "f16"}}).describe()
    )

    assert "table (Hq, N) fp16; N as each call has it; an element outside of one reads 0" in text


@pytest.mark.parametrize(
    ("tensors", "message", "nearest"),
    [
        ({"q": {"dims": ["Hq"], "dtype": "f32"}}, "has the name of something else", "q_values"),
        ({"copy": {"dims": ["Hq"], "dtype": "f32"}}, "has the name of something else", "copy_values"),
        ({"kv_idx": {"dims": ["Hq"], "dtype": "f32"}}, "has the name of something else", "kv_idx_values"),
        ({"a b": {"dims": ["Hq"], "dtype": "f32"}}, "is no name of a tensor", "a_b"),
        ({"a": {"dims": ["hq"], "dtype": "f32"}}, "the dimension 'hq' of tensor a is no size", "Hq"),
        ({"a": {"dims": [0], "dtype": "f32"}}, "neither a size nor a positive number", None),
        ({"a": {"dims": [], "dtype": "f32"}}, "needs 1 to 6 dims", None),
        ({"a": {"dims": ["Hq"], "dtype": "float32"}}, "the type 'float32' of tensor a is unknown", "f32"),
        ({"a": {"dims": ["Hq"]}}, "needs dims and dtype", None),
        ({"n": {"dims": ["N"], "dtype": "f32"}}, "the same name as a size", "n_values"),
        ({"ab": SLOPES["slopes"], "Ab": SLOPES["slopes"]}, "the same name as the tensor 'ab'", "Ab_values"),
        (["slopes"], "must map names", None),
    ],
)  # fmt: skip
def test_a_declaration_that_makes_no_sense_is_refused(tensors: Any, message: str, nearest: str | None) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        made(tensors=tensors)

    assert caught.value.hint
    assert caught.value.details["field"] == "tensors"
    assert caught.value.details["nearest"] == nearest


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"score": "score * slope[h]"}, "reads the unknown tensor 'slope'", "did you mean 'slopes'"),
        ({"score": "score * slopes[h, 0]"}, "reads 'slopes' with 2 indices, expected 1", r"slopes\[Hq\]"),
        ({"score": "score * slopes"}, "reads the tensor 'slopes' without indices", r"slopes\[Hq\]"),
        ({"score": "score * slopes[hq]"}, "reads the unknown name 'hq'", "did you mean"),
    ],
)
def test_author_and_judge_refuse_an_expression_that_misuses_a_tensor(
    fields: dict[str, Any], message: str, hint: str
) -> None:
    spec = made(tensors=SLOPES, **fields)

    for step in (lambda: plan(spec, targets.get("A100")), lambda: Operator.of(spec)):
        with pytest.raises(SpecError, match=message) as caught:
            step()
        assert caught.value.details["field"] == "score"
    with pytest.raises(SpecError, match=hint):
        plan(spec, targets.get("A100"))


def test_a_condition_is_no_number_and_an_index_no_fraction() -> None:
    gate = {"gate": {"dims": ["B", "Sk"], "dtype": "bool"}}

    for fields in ({"score": "score * gate[b, kv_idx]"}, {"mask": "gate[b, kv_idx / 2]"}):
        with pytest.raises(SpecError, match="is wrong"):
            Operator.of(made(tensors=gate, **fields))


def test_a_tensor_that_nothing_reads_is_refused() -> None:
    with pytest.raises(SpecError, match="'slopes' is read by neither"):
        plan(made(tensors=SLOPES), targets.get("A100"))


def test_programs_declare_tensors_and_the_sizes_that_only_they_have() -> None:
    text = code(score="score + table[h, kv_idx % N]", tensors={"table": {"dims": ["Hq", "N"], "dtype": "f16"}})

    assert "Size B, Sq, Sk, Hq, Hk, N  #" in text
    assert "Allocate Table in global (Hq, N) fp16\n" in text
    assert "Table[head, k % N]" in text


def test_as_many_key_heads_as_query_heads_are_one_size() -> None:
    text = code(Hk=4, score="score + bias[h, Hk - 1]", tensors={"bias": {"dims": ["Hk", "Hq"], "dtype": "f32"}})

    assert "Allocate Bias in global (Hq, Hq) f32\n" in text
    assert "Bias[head, Hq - 1]" in text


def test_the_part_of_a_mask_that_reads_no_tensor_bounds_what_is_looked_at() -> None:
    causal = "kv_idx <= q_idx + Sk - Sq"
    same = "doc[b, q_idx + Sk - Sq] == doc[b, kv_idx]"

    def last(mask: str) -> str:
        return next(line for line in code(mask=mask, tensors=DOC).splitlines() if line.startswith("Let last"))

    bounded = "Let last = min(ceildiv(Sk, BN), ceildiv(block * BM + BM + Sk - Sq, BN))"
    assert last(f"{causal} and {same}") == last(f"{same} and {causal}") == bounded
    assert last(f"{causal} or {same}") == last(same) == "Let last = ceildiv(Sk, BN)"


def test_the_form_of_the_command_line() -> None:
    assert parse("bias:Hq,Sq, Sk:f32") == ("bias", {"dims": ["Hq", "Sq", "Sk"], "dtype": "f32"})
    assert parse("table:32:i32") == ("table", {"dims": [32], "dtype": "i32"})
    with pytest.raises(Problem, match="is no tensor"):
        parse("slopes:Hq")


def test_a_tile_leaves_registers_for_what_tensors_need() -> None:
    bias = {"bias": {"dims": ["Hq", "Sq", "Sk"], "dtype": "bf16"}}

    def tile(**fields: Any) -> str:
        return next(line for line in code(Dqk=128, **fields).splitlines() if line.startswith("Tile")).split("  #")[0]

    assert tile() == tile(score="score * 2") == "Tile BM = 128, BN = 64"
    assert tile(score="score + bias[h, q_idx, kv_idx]", tensors=bias) == "Tile BM = 128, BN = 32"
