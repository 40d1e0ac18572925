"""FlexAttention's callables on PyTorch's own tensors: every operator of benchmarks/flex_mods.py, and refusals."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qimeng_attention.bench.timing import Times
from qimeng_attention.errors import SpecError
from qimeng_attention.integrations.flex import spec_from_flex

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'qimeng-attention[gpu]'")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def flex_mods() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("flex_mods")


@pytest.fixture(scope="module")
def flex_speed(flex_mods: ModuleType) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module("flex_speed")


def test_every_operator_is_what_its_callables_compute(flex_mods: ModuleType) -> None:
    small = flex_mods.SMALL
    errors = {n: flex_mods.difference(m, flex_mods.traced(n, m, small)) for n, m in flex_mods.accepted(small).items()}

    assert len(errors) >= 18
    assert {n: e for n, e in errors.items() if not e <= flex_mods.TOLERANCE} == {}


def test_another_operator_would_show(flex_mods: ModuleType) -> None:
    all_of_them = flex_mods.accepted(flex_mods.SMALL)
    other = flex_mods.traced("causal", all_of_them["causal"], flex_mods.SMALL)

    assert flex_mods.difference(all_of_them["sliding_window"], other) > 1


def test_what_no_description_can_hold_is_refused(flex_mods: ModuleType) -> None:
    reasons = {name: flex_mods.refusal(name, given) for name, given in flex_mods.refused(flex_mods.SMALL).items()}

    assert len(reasons) >= 4
    assert all(reasons.values())


def test_making_says_what_came_of_an_operator_and_is_not_done_again(flex_mods: ModuleType, tmp_path: Path) -> None:
    full, small = flex_mods.FULL, flex_mods.SMALL

    refused = flex_mods.make("gelu", flex_mods.refused(small)["gelu"], tmp_path)

    assert (refused["accepted"], refused["error"]) == (False, "score_mod calls gelu, which has no counterpart")
    assert json.loads((tmp_path / "mods" / "gelu.json").read_text())["name"] == "gelu"
    causal = flex_mods.accepted(small)["causal"]
    same = {"spec": flex_mods.digest(flex_mods.traced("causal", causal, full)), "made_by": flex_mods.package_digest()}
    (tmp_path / "mods" / "causal.json").write_text(json.dumps({"error": "", "verdict": "accepted", **same}))
    assert flex_mods.make("causal", causal, tmp_path)["verdict"] == "accepted"  # nothing is built in a test's time


def _timed(calls: dict[str, list[Any]], rounds: int) -> dict[str, Times]:
    return {name: Times(float(n + 1), 0.0, rounds) for n, name in enumerate(calls)}


def _bench(flex_speed: ModuleType, refuses: str = "") -> Any:
    """Time on the CPU: FlexAttention as it is when it is not compiled, but for a backend that it refuses."""

    def compiler(f: Any) -> Any:
        def compiled(*args: Any, kernel_options: dict[str, str], **options: Any) -> Any:
            if kernel_options["BACKEND"] == refuses:
                raise RuntimeError("this backend is not there\nand more")
            return f(*args, kernel_options=kernel_options, **options)

        return compiled

    times = {"time_calls": _timed, "time_eager": lambda call: 1.0}
    return flex_speed.Bench(device="cpu", rounds=3, compiler=compiler, **times)


def _dense(flex_speed: ModuleType, given: Any, scale: float = 1.0) -> Any:
    """Stand for our kernel by the dense reference, rounded as its output is."""

    def make(inputs: Any) -> Any:
        batch, _, heads, _ = inputs.ours[0].shape
        places = [(b, h) for b in range(batch) for h in range(heads)]

        def call() -> Any:
            out = flex_speed.reference(given, inputs, places).unflatten(0, (batch, heads))
            return (scale * out).transpose(1, 2).bfloat16()

        return call

    return make


@pytest.mark.parametrize("name", ["modalities", "relative_bias", "images", "hidden_keys", "documents"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_row_is_timed_beside_flexattention(flex_mods: ModuleType, flex_speed: ModuleType, name: str) -> None:
    sizes = flex_mods.SMALL
    given = flex_mods.accepted(sizes)[name]
    operator = flex_mods.traced(name, given, sizes)

    found = _bench(flex_speed).one(given, operator, given.sizes(sizes), _dense(flex_speed, given))

    assert found.left_out == {}
    assert (found.row.case.mods, found.row.case.Sk) == (name, given.sizes(sizes).Sk)
    assert found.row.peers_ms == {"FlexAttention (Triton)": 2.0, "FlexAttention (FA4)": 3.0}
    assert found.row.ratio == 2.0
    assert 0 < max(found.row.error_before, found.row.error_after) < 5e-3


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_what_is_wrong_or_fails_has_no_time(flex_mods: ModuleType, flex_speed: ModuleType) -> None:
    sizes = flex_mods.SMALL
    given = flex_mods.accepted(sizes)["causal"]
    operator = flex_mods.traced("causal", given, sizes)

    wrong = _bench(flex_speed).one(given, operator, sizes, _dense(flex_speed, given, 1.1))
    alone = _bench(flex_speed, refuses="FLASH").one(given, operator, sizes, _dense(flex_speed, given))

    assert wrong.row is None
    assert wrong.left_out == {"ours": "our output is off by 0.1"}
    assert alone.left_out == {"FlexAttention (FA4)": "RuntimeError: this backend is not there"}
    assert list(alone.row.peers_ms) == ["FlexAttention (Triton)"]


def test_a_campaign_takes_up_rows_of_the_same_bundles_only(flex_speed: ModuleType, tmp_path: Path) -> None:
    results = flex_speed.Results(
        name=flex_speed.NAME, commit="c", date="d", device="H200", driver="", packages={"torch": "2"}, command=""
    )
    made = {
        n: {"accepted": True, "error": "", "verdict": "accepted", "reason": "", "tensors": {}} for n in ("one", "two")
    }
    operator = SimpleNamespace(spec=SimpleNamespace(name="", mask="full", dtype="bf16"))
    times = {"ours": Times(1.0, 0.0, 9), "peer": Times(2.0, 0.1, 9)}
    first = flex_speed.Campaign(results, tmp_path, made, bundles={"one": "a", "two": "b"})
    for name in made:
        operator.spec.name = name
        first.rows[name] = flex_speed._row(operator, flex_speed.FULL, times, {"ours": 1.0, "peer": 2.0}, (0.0, 0.0))
        first.verdicts[name] = {"verdict": "accepted", "reason": ""}
    first.save()

    again = flex_speed.Campaign(results, tmp_path, made, bundles={"one": "a", "two": "changed"})
    again._take_up(flex_speed.Results.load(tmp_path / f"{flex_speed.NAME}.json"))
    other = flex_speed.Campaign(results.model_copy(update={"device": "H100"}), tmp_path, made, bundles=first.bundles)
    other._take_up(flex_speed.Results.load(tmp_path / f"{flex_speed.NAME}.json"))

    assert (list(again.rows), list(again.verdicts)) == (["one"], ["one"])
    assert (other.rows, other.verdicts) == ({}, {})


def test_tasks_beside_end_with_their_time(flex_speed: ModuleType) -> None:
    start = time.monotonic()

    found = dict(flex_speed._beside(2, 10.0, {"quick": (dict, {"a": "b"}), "hangs": (time.sleep, 60)}))

    assert found == {"quick": {"a": "b"}}
    assert time.monotonic() - start < 45


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
