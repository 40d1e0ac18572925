"""A kernel in another process: what stands in for it here is a Python program that speaks the worker's language."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qimeng_attention.errors import EnvironmentMissing, JudgeError
from qimeng_attention.judge import Call, Operator, judge_candidate, truth
from qimeng_attention.judge.candidate import Stopped
from qimeng_attention.judge.device import Isolated, judge_bundle
from qimeng_attention.judge.inputs import CPU
from qimeng_attention.judge.launches import from_bits, to_bits
from qimeng_attention.judge.process import Process
from qimeng_attention.judge.worker import CANARY, GUARD, launched
from qimeng_attention.runtime import GridAxis, Manifest, Scalar, Tensor
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.numerics import round_to

SPEC = AttentionSpec.make(Hq=2, Hk=1, Dqk=16, mask="causal")
SIZES = ("B", "Sq", "Sk", "Hq", "Hk")
MANIFEST = Manifest(
    kernel="gqa",
    target="A100",
    arch="sm_80",
    built_arch="sm_80",
    threads=128,
    shared_bytes=0,
    grid=(GridAxis("block", 0, "Sq"),),
    tensors=(
        Tensor("Q", "bf16", ("B", "Sq", "Hq", 16), "input"),
        Tensor("K", "bf16", ("B", "Sk", "Hk", 16), "input"),
        Tensor("V", "bf16", ("B", "Sk", "Hk", 16), "input"),
        Tensor("Out", "bf16", ("B", "Sq", "Hq", 16), "output"),
        Tensor("Lse", "f32", ("B", "Hq", "Sq"), "output"),
    ),
    sizes=SIZES,
    scalars=(Scalar("scale", op=">"),),
)
CALL = Call(1, 3, 5, 2, 1, 16, 16, 0.25)
WORKER = """
import json, os, sys, time
from pathlib import Path
import numpy as np
from qimeng_attention.judge import Call, Operator, truth
from qimeng_attention.judge.launches import from_bits, to_bits
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.numerics import round_to
folder = Path(sys.argv[-1])
operator = Operator.of(AttentionSpec.make(Hq=2, Hk=1, Dqk=16, mask="causal"))
for line in sys.stdin:
    request = json.loads(line)
    x = {}
    for n, a in request["inputs"].items():
        x[n] = from_bits((folder / a["file"]).read_bytes(), a["dtype"]).reshape(a["shape"])
    sizes = request["sizes"]
    call = Call(sizes["B"], sizes["Sq"], sizes["Sk"], sizes["Hq"], sizes["Hk"], 16, 16, request["scalars"]["scale"])
    want = truth(operator, call, x["Q"], x["K"], x["V"])
    runs = [{"Out": round_to(want.out, "bf16"), "Lse": want.lse.astype(np.float32)} for _ in range(2)]
    answer = {"damaged": [], "changed": [], "outputs": {"Out": ["Out.0", "Out.1"], "Lse": ["Lse.0", "Lse.1"]}}
    FAULT
    for n, run in enumerate(runs):
        (folder / f"Out.{n}").write_bytes(to_bits(run["Out"], "bf16").tobytes())
        (folder / f"Lse.{n}").write_bytes(to_bits(run["Lse"], "f32").tobytes())
    print(json.dumps(answer), flush=True)
"""


@contextmanager
def isolated(fault: str = "pass", timeout_s: float = 60.0) -> Iterator[Isolated]:
    with Process([sys.executable, "-c", WORKER.replace("FAULT", fault)], timeout_s) as process:
        yield Isolated(MANIFEST, SPEC, process)


def drawn(call: Call = CALL) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {n: round_to(random.standard_normal(call.shapes()[n], np.float32), "bf16") for n in ("Q", "K", "V")}


def test_outputs_come_back() -> None:
    x = drawn()
    want = truth(Operator.of(SPEC), CALL, x["Q"], x["K"], x["V"])

    with isolated() as candidate:
        found = candidate.run(CALL, x, "contiguous")

    assert np.array_equal(found["Out"], round_to(want.out, "bf16"))
    assert np.array_equal(found["Lse"], want.lse.astype(np.float32))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("os.abort()", "SIGABRT"),
        ("sys.exit('out of memory')", "exit code 1: out of memory"),
        ("answer = {'error': 'LaunchError: too much shared memory'}", "the launch failed: LaunchError"),
        ("answer['damaged'] = ['Out']", "writes outside of Out"),
        ("answer['changed'] = ['K']", "changes its input K"),
        ("runs[1]['Out'][0, 0, 0, 3] += 1", "Out[0, 0, 0, 3] differs between two runs"),
        ("runs = [{**r, 'Lse': r['Lse'][..., :1]} for r in runs]", "Lse in another size"),
        ("answer['outputs']['Out'].pop()", "gave 1 runs of Out"),
    ],
)
def test_what_goes_wrong_in_the_process_stops_the_candidate(fault: str, says: str) -> None:
    with isolated(fault) as candidate, pytest.raises(Stopped) as caught:
        candidate.run(CALL, drawn(), "contiguous")

    assert says in caught.value.reason


def test_a_hang_is_killed_and_the_next_call_starts_anew(tmp_path: Path) -> None:
    flag = tmp_path / "hung"
    fault = f"Path({str(flag)!r}).exists() or (Path({str(flag)!r}).touch(), time.sleep(600))"
    with isolated(fault, timeout_s=6) as candidate:
        with pytest.raises(Stopped, match="hangs"):
            candidate.run(CALL, drawn(), "contiguous")

        assert "Out" in candidate.run(CALL, drawn(), "contiguous")


def test_one_process_runs_kernels_one_after_the_other_until_something_goes_wrong() -> None:
    fault = "answer |= {'damaged': ['Out'] * (request['bundle'][-1] == 'b')}; runs[0]['Lse'] += os.getpid() % 997 + 1"
    fault += "; runs[1]['Lse'] = runs[0]['Lse']"
    with Process([sys.executable, "-c", WORKER.replace("FAULT", fault)]) as process:
        first, second = (Isolated(MANIFEST, SPEC, process, path=p) for p in ("a", "b"))
        of_first = first.run(CALL, drawn(), "contiguous")["Lse"]
        with pytest.raises(Stopped, match="writes outside"):
            second.run(CALL, drawn(), "contiguous")
        of_third = first.run(CALL, drawn(), "contiguous")["Lse"]

    assert not np.array_equal(of_first, of_third)


def test_an_element_left_at_both_poisons_comes_back_as_nan() -> None:
    fault = f"runs[0]['Out'][0, 1, 1, 2] = np.nan; runs[1]['Out'][0, 1, 1, 2] = {CANARY['bf16']}"
    with isolated(fault) as candidate:
        found = candidate.run(CALL, drawn(), "contiguous")

    assert np.isnan(found["Out"][0, 1, 1, 2])
    assert np.count_nonzero(np.isnan(found["Out"])) == 1


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("pass", "accepted"),
        ("runs = [{**r, 'Out': r['Out'] * 1.02} for r in runs]", "rejected"),
        ("call.Sq == 1 or os.abort()", "rejected"),
    ],
)
def test_a_kernel_in_another_process_is_judged_like_any_other(fault: str, verdict: str) -> None:
    with isolated(fault) as candidate:
        found = judge_candidate(
            candidate, SPEC, (16, 16), seed=1, budget=replace(CPU, keys=100, failures=2), where="gpu"
        )

    assert found.verdict == verdict, found.reason
    assert found.where == "gpu"


def test_keys_and_tokens_stay_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with isolated("answer = {'error': ' '.join(sorted(os.environ))}") as candidate, pytest.raises(Stopped) as caught:
        candidate.run(CALL, drawn(), "contiguous")

    assert "CUDA_VISIBLE_DEVICES" in caught.value.reason
    assert "SOME_API_KEY" not in caught.value.reason


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "f32"])
def test_bits_keep_every_value(dtype: str) -> None:
    x = round_to(np.array([0.0, -1.5, 3e-8, 1e4, np.inf, -np.inf, np.nan], np.float32), dtype)

    assert np.array_equal(from_bits(to_bits(x, dtype).tobytes(), dtype), x, equal_nan=True)


@pytest.mark.parametrize(("dtype", "kind"), [("i32", np.int32), ("i64", np.int64), ("bool", np.bool_)])
def test_integers_and_conditions_travel_as_they_are(dtype: str, kind: type) -> None:
    x = round_to(np.array([0, 1, 1]) if dtype == "bool" else np.array([-1, 7, 1 << 30]), dtype)

    assert np.array_equal(np.frombuffer(to_bits(x, dtype).tobytes(), kind), x)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tensors": MANIFEST.tensors[:4]}, "Lse of gqa is missing"),
        ({"tensors": (*MANIFEST.tensors, Tensor("Slopes", "f32", ("Hq",), "input"))}, "Slopes is no tensor"),
        ({"sizes": (*SIZES, "Window")}, "the size Window"),
        ({"scalars": ()}, "takes no scale"),
    ],
)
def test_a_kernel_that_does_not_fit_the_spec_is_a_judge_error(change: dict[str, Any], says: str) -> None:
    with Process() as process, pytest.raises(JudgeError, match=says):
        Isolated(replace(MANIFEST, **change), SPEC, process)


# ------------------------------------------------------------------ the worker itself, on the CPU


class FakeBundle:
    """Fills its outputs with what it is told, and may do worse."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def launch(self, tensors: dict[str, Any], sizes: dict[str, int], scalars: dict[str, float]) -> None:
        self.act(tensors)


def worked(tmp_path: Path, act: Any, layout: str = "contiguous") -> dict[str, Any]:
    x = round_to(np.arange(2 * 3 * 2 * 8, dtype=np.float32).reshape(2, 3, 2, 8), "bf16")
    (tmp_path / "Q.in").write_bytes(to_bits(x, "bf16").tobytes())
    request = {
        "inputs": {"Q": {"file": "Q.in", "dtype": "bf16", "shape": [2, 3, 2, 8]}},
        "outputs": {"Out": {"dtype": "bf16", "shape": [2, 3, 2, 8]}},
        "layout": layout,
        "sizes": {},
        "scalars": {},
    }
    return json.loads(json.dumps(launched(FakeBundle(act), tmp_path, request, device="cpu")))


@pytest.mark.parametrize("layout", ["contiguous", "padded rows", "heads first"])
def test_the_worker_launches_twice_between_guards(layout: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")

    answer = worked(tmp_path, lambda t: t["Out"].copy_(t["Q"]), layout)

    assert (answer["damaged"], answer["changed"]) == ([], [])
    runs = [(tmp_path / f).read_bytes() for f in answer["outputs"]["Out"]]
    assert runs[0] == runs[1] == (tmp_path / "Q.in").read_bytes()


def test_the_worker_leaves_poison_where_nothing_was_written(tmp_path: Path) -> None:
    pytest.importorskip("torch")

    answer = worked(tmp_path, lambda t: None)

    first, second = (from_bits((tmp_path / f).read_bytes(), "bf16") for f in answer["outputs"]["Out"])
    assert np.isnan(first).all()
    assert np.all(second == CANARY["bf16"])


def test_the_worker_sees_changed_inputs_and_damaged_guards(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    def act(tensors: dict[str, Any]) -> None:
        tensors["Q"].view(torch.int16)[0, 0, 0, 0] ^= 1  # one bit
        whole = tensors["Out"].as_strided((GUARD + 1,), (1,), 0)
        whole[GUARD - 1] = 0.0

    answer = worked(tmp_path, act)

    assert (answer["damaged"], answer["changed"]) == (["Out"], ["Q"])


def test_without_a_gpu_a_bundle_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qimeng_attention import runtime

    monkeypatch.setattr(runtime, "load", lambda path: None)
    monkeypatch.setattr(
        "qimeng_attention.judge.device.runtime.load", lambda path: type("B", (), {"manifest": MANIFEST, "files": {}})
    )
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(EnvironmentMissing, match="PyTorch"):
        judge_bundle(tmp_path, SPEC)
