"""Packed sequences in descriptions: what may be asked for, what is said of it, and what a bundle then takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.errors import SpecError
from qimeng_attention.report import understand
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text
from qimeng_attention.workflow.generate import run
from qimeng_attention.workflow.interpretation import interpret_file


def spec_of(**fields: Any) -> AttentionSpec:
    return AttentionSpec.make(**{"Hq": 4, "Hk": 2, "Dqk": 64, "mask": "causal", "varlen": True, **fields})


def tensors(name: str, dims: list[Any]) -> dict[str, Any]:
    return {"score": f"score + {name}[b]", "tensors": {name: {"dims": dims, "dtype": "f32"}}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"Sq": 128}, "Sq = 128 is fixed, but with varlen each sequence has its own length"),
        ({"Sk": 1}, "Sk = 1 is fixed"),
        (tensors("bias", ["Sk"]), "has the dimension Sk, which differs from sequence to sequence"),
        (tensors("bias", ["B", "Sq"]), "has the dimension Sq"),
        (tensors("cu_seqlens_q", ["B"]), "packed sequences name themselves"),
        (tensors("bias", ["Tq"]), "packed sequences name themselves"),
        (tensors("startQ", ["B"]), "packed sequences name themselves"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        spec_of(**fields)


def test_dense_descriptions_may_use_these_names() -> None:
    assert spec_of(varlen=False, **tensors("startQ", ["Sk"])).tensors
    assert spec_of(varlen=False).model_copy().varlen is False


def test_the_description_says_how_sequences_lie() -> None:
    lines = "\n".join(spec_of(B=3).describe())

    assert "gqa_causal_varlen_d64_bf16" in lines
    assert "tensors (tokens, H, D), one sequence behind the other" in lines
    assert "B = 3 sequences, Sq and Sk those of each" in lines


def test_what_was_understood_names_sequences_and_offsets() -> None:
    said = dict(understand(spec_of()).assumptions)

    assert said["layout"].startswith("(tokens, H, D)")
    assert "sees no other" in said["sequences"]
    assert "held within the tensors" in said["offsets"]
    assert "sequences" not in dict(understand(spec_of(varlen=False)).assumptions)


@pytest.mark.parametrize("target", ["A100", "L40S", "T4", "H200"])
@pytest.mark.parametrize("mask", ["full", "window:100"])
def test_every_target_gets_a_program_without_a_longest_length(target: str, mask: str) -> None:
    (kernel,) = check_text(plan(spec_of(mask=mask, dtype="fp16"), targets.get(target)).code, target=target)

    assert kernel.sizes == ("B", "Tq", "Tk", "Hq", "Hk")
    assert set(kernel.inputs) == {"Q", "K", "V", "StartQ", "StartK"}


def test_lengths_are_uneven_whatever_the_mask() -> None:
    code = plan(spec_of(mask="full"), targets.get("H200")).code

    assert "grid persistent by counter" in code
    assert "skip blocks past the end" in code


def test_a_batch_may_be_fixed() -> None:
    (kernel,) = check_text(plan(spec_of(B=3), targets.get("A100")).code)

    assert kernel.fixed["B"] == 3


def test_a_program_is_interpreted_on_even_lengths(tmp_path: Path) -> None:
    code = plan(spec_of(), targets.get("A100")).code
    sizes = {"B": 3, "Tq": 70, "Tk": 70, "Hq": 2, "Hk": 1}

    interpret_file(code, "code.tl", sizes, {"scale": 0.1}, 0, tmp_path / "saved.npz")

    saved = np.load(tmp_path / "saved.npz")
    assert saved["StartQ"].tolist() == [0, 23, 46, 70]
    assert np.isfinite(saved["Out"]).all()


@pytest.mark.cuda
def test_a_bundle_is_called_with_offsets(tmp_path: Path) -> None:
    outcome = run(spec_of(name="packed"), target="H200", judge=False, out=tmp_path / "packed")

    assert outcome.results.built is not None
    assert (outcome.results.built.report.spill_store_bytes or 0) == 0
    from qimeng_attention.runtime import load

    manifest = load(tmp_path / "packed").manifest
    assert manifest.call["cu_seqlens_q"] == "StartQ"
    assert manifest.call["cu_seqlens_k"] == "StartK"
    assert all(box.ragged for box in manifest.maps)
