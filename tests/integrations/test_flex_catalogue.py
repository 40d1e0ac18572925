"""Every operator of benchmarks/flex_catalogue.py through the tracer, without PyTorch: a stand-in takes its place."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from integrations.stand_in import modules, places
from qimeng_attention.errors import SpecError
from qimeng_attention.integrations.flex import FlexOperator, spec_from_flex
from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.tl.parser import parse_expression

FILE = Path(__file__).parents[2] / "benchmarks" / "flex_catalogue.py"
DIM = 64
LEAST = 1e-9  # both sides compute in float64
NEEDS_TORCH = {"dropout"}  # its random numbers are PyTorch's
REASONS = {
    "latent_positions": "score_mod calls dot, which has no counterpart",
    "python_list": "mask_mod asks for the number of h, which differs from score to score",
    "t5_in_place": "score_mod rounds a floating value to an integer",
    "gelu": "score_mod calls gelu, which has no counterpart",
    "row_maximum": "score_mod reduces a score with max",
    "z_order": "mask_mod combines the bits of numbers (&)",
    "python_branch": "score_mod decides in Python (if, and, or, not, min, a < b < c) by q_idx >= kv_idx",
}


@pytest.fixture(scope="module")
def catalogue() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("flex_catalogue_without_torch", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        with pytest.MonkeyPatch.context() as importing:
            for name, stand_in in modules().items():
                importing.setitem(sys.modules, name, stand_in)
            spec.loader.exec_module(module)
        yield module


def traced(name: str, given: Any, sizes: Any) -> FlexOperator:
    return spec_from_flex(given.score_mod, given.mask_mod, Hq=sizes.H, Dqk=DIM, dims=given.dims, name=name)


def dense(given: Any, b: int, h: int, scores: np.ndarray) -> np.ndarray:
    """Evaluate the callables at all places of one head, hidden ones as -inf."""
    rows, keys = np.ogrid[: scores.shape[0], : scores.shape[1]]
    at, found = (b, h, places(rows), places(keys)), scores
    with np.errstate(invalid="ignore"):
        if given.score_mod is not None:
            found = given.score_mod(places(scores), *at)
        if given.mask_mod is not None:
            found = np.where(given.mask_mod(*at), found, -np.inf)
    return np.broadcast_to(np.asarray(found), scores.shape)


def expression(operator: FlexOperator, call: Call, b: int, h: int, scores: np.ndarray) -> np.ndarray:
    """Evaluate the traced expressions there."""
    meaning = Operator.of(operator.spec).bind({kernel_name(n): t.data for n, t in operator.tensors.items()})
    at = (call, b, h, np.arange(call.Sq), np.arange(call.Sk))
    return np.where(meaning.visible(*at), meaning.modified(*at, scores), -np.inf)


def test_every_operator_is_what_its_callables_compute(catalogue: ModuleType) -> None:
    small, random = catalogue.SMALL, np.random.default_rng(1)
    wrong = []
    for name, given in catalogue.accepted(small).items():
        n = given.sizes(small)
        operator = traced(name, given, small)
        call = Call(n.B, n.Sq, n.Sk, n.H, n.H, DIM, DIM, 1.0)
        for b, h in ((0, 0), (n.B - 1, 1), (0, n.H - 1)):
            scores = 3 * random.standard_normal((n.Sq, n.Sk))
            eager, found = dense(given, b, h, scores), expression(operator, call, b, h, scores)
            if not np.allclose(eager, found, rtol=0, atol=LEAST):
                wrong.append((name, b, h))

    assert wrong == []


def test_the_catalogue_is_as_long_as_was_asked(catalogue: ModuleType) -> None:
    accepted, refused = catalogue.accepted(catalogue.SMALL), catalogue.refused(catalogue.SMALL)

    assert len(accepted) >= 18
    assert len(refused) >= 4
    assert not accepted.keys() & refused.keys()
    assert sum(bool(m.dims) for m in accepted.values()) >= 12  # that capture tensors


def test_what_no_description_can_hold_is_refused_by_name(catalogue: ModuleType) -> None:
    refused = catalogue.refused(catalogue.SMALL)

    assert refused.keys() == REASONS.keys() | NEEDS_TORCH
    for name, reason in REASONS.items():
        with pytest.raises(SpecError) as caught:
            traced(name, refused[name], catalogue.SMALL)
        assert caught.value.message.startswith(reason)
        assert caught.value.hint


def test_every_captured_tensor_has_named_dimensions_where_it_follows_the_call(catalogue: ModuleType) -> None:
    """A bundle serves calls of any length: no extent of the sizes of a call is left as a number."""
    sizes = catalogue.Sizes(B=5, H=6, Sq=704, Sk=704)
    for name, given in catalogue.accepted(sizes).items():
        operator = traced(name, given, sizes)
        extents = {d for t in operator.spec.tensors.values() for d in t.dims}
        assert not extents & {5, 6, 704}, (name, extents)
        assert parse_expression(operator.spec.mask) if operator.spec.mask != "full" else True
