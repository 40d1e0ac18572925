"""FlexAttention's callables on PyTorch's own tensors: every operator of benchmarks/flex_mods.py, and refusals."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qimeng_attention.errors import SpecError
from qimeng_attention.integrations.flex import spec_from_flex

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'qimeng-attention[gpu]'")
FILE = Path(__file__).parents[2] / "benchmarks" / "flex_mods.py"


@pytest.fixture(scope="module")
def flex_mods() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flex_mods", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["flex_mods"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_operator_is_what_its_callables_compute(flex_mods: ModuleType) -> None:
    errors = {name: flex_mods.difference(given) for name, given in flex_mods.mods().items()}

    assert len(errors) >= 15
    assert {n: e for n, e in errors.items() if not e <= flex_mods.TOLERANCE} == {}


def test_another_operator_would_show(flex_mods: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    other = flex_mods.traced(flex_mods.Mods(mask_mod=flex_mods.window(8)))
    monkeypatch.setattr(flex_mods, "traced", lambda given: other)

    assert flex_mods.difference(flex_mods.Mods(mask_mod=flex_mods.window(9))) > 1


@pytest.mark.parametrize(
    ("mod", "message"),
    [
        (lambda s, b, h, q, k: s * torch.rand(()), r"draws random numbers \(rand\)"),
        (lambda s, b, h, q, k: torch.nn.functional.dropout(s), "dropout"),
        (lambda s, b, h, q, k: torch.erf(s), "calls erf, which has no counterpart"),
        (lambda s, b, h, q, k: s.add_(1), r"works in place \(add_\)"),
        (lambda s, b, h, q, k: torch.add(s, 1, out=torch.empty(())), "works in place"),
        (lambda s, b, h, q, k: s + torch.ones(3), r"computes with a whole tensor of shape \(3,\)"),
        (lambda s, b, h, q, k: s if q > k else -s, "decides in Python"),
        (lambda s, b, h, q, k: s + torch.tensor([1, 2])[:, None][q], "slice|once too often|as a number"),
        (lambda s, b, h, q, k: s + torch.ones(4, dtype=torch.float64)[h], "reads a tensor of torch.float64"),
        (lambda s, b, h, q, k: torch.stack([s, s]), "calls stack"),
    ],
)
def test_what_cannot_be_traced_is_refused_by_name(mod: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        spec_from_flex(mod, Hq=8, Dqk=64)

    assert caught.value.details["field"] == "score_mod"


def test_tensors_are_bound_by_the_names_of_their_variables() -> None:
    slopes, scale = torch.rand(8), torch.tensor(0.5)

    class Bias:
        def __init__(self) -> None:
            self.bias = torch.rand(2, 8)

        def __call__(self, score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
            return scale * score + self.bias[b, h] + slopes[h] + torch.tensor(2.0)

    bias = Bias()
    traced = spec_from_flex(bias, Hq=8, Dqk=64)

    assert traced.spec.score == "scale_values[0] * score + bias[b, h] + slopes[h] + 2.0"
    assert traced.tensors["bias"] is bias.bias
    assert traced.tensors["slopes"] is slopes
    assert traced.tensors["scale_values"].shape == (1,)
    assert traced.tensors["scale_values"].data_ptr() == scale.data_ptr()
