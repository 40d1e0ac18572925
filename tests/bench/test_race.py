"""A race without a GPU: what is called, what is compared, and what becomes of a candidate that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qimeng_attention.bench import race
from qimeng_attention.bench.race import BEST, CALL, CANDIDATE, TIMING, read_race, run_race, waiting
from qimeng_attention.bench.timing import Times
from qimeng_attention.errors import LaunchError, SpecError
from qimeng_attention.runtime import GridAxis, Manifest, Scalar, Tensor
from qimeng_attention.runtime.bundle import Bundle
from qimeng_attention.runtime.manifest import REQUIRED
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.store import write_bundle

SPEC = AttentionSpec.make(Hq=8, Dqk=64, mask="causal", tensors={"gate": {"dims": ["Hq"], "dtype": "f32"}})


def bundle(place: Path, name: str, factor: float, spec: AttentionSpec | None = SPEC, dtype: str = "f32") -> None:
    """Write a bundle whose stand-in multiplies Q by a factor."""
    tensors = [Tensor(n, "bf16", ("B", "Sq" if n in ("Q", "Out") else "Sk", 8, 64), "input") for n in ("Q", "K", "V")]
    tensors += [Tensor("Gate", dtype, (8,), "input"), Tensor("Out", "bf16", ("B", "Sq", 8, 64), "output")]
    manifest = Manifest(
        kernel="gqa",
        target="H200",
        arch="sm_90a",
        built_arch="sm_90a",
        threads=128,
        shared_bytes=0,
        grid=(GridAxis("block", 0, "Sq"),),
        tensors=tuple(tensors),
        sizes=("B", "Sq", "Sk"),
        scalars=(Scalar("scale", "f32", ">", 0.0),),
        default_scale=0.125,
    )
    fields = None if spec is None else spec.model_dump(mode="json")
    files = dict.fromkeys(REQUIRED, b"{}") | {"kernel.cubin": b"\x7fELF", "kernel.cu": str(factor).encode()}
    files |= {"code.tl": b"", "scheduled.tl": b"", "spec.json": json.dumps(fields).encode()}
    files.pop("manifest.json", None)
    write_bundle(place, files, manifest, name=name)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a machine whose GPU is a CPU, on which a kernel's time is its factor."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    cuda = SimpleNamespace(get_device_name=lambda: "a GPU", synchronize=lambda: None)
    names = ("float32", "bfloat16", "float16", "full", "randn", "from_numpy", "isfinite", "equal", "Generator")
    fake = SimpleNamespace(cuda=cuda, __version__="2", **{name: getattr(torch, name) for name in names})
    called: list[dict[str, Any]] = []

    def launch(self: Bundle, tensors: Mapping[str, Any], sizes: Mapping[str, int], scalars: Mapping[str, Any]) -> None:
        factor = float(self.files["kernel.cu"])
        if factor < 0:
            raise LaunchError("too many threads", hint="take fewer")
        called.append({"sizes": dict(sizes), "scalars": dict(scalars), "gate": tensors["Gate"]})
        tensors["Out"].copy_(tensors["Q"] * (1 if factor < 5 else factor))

    def times(calls: Mapping[str, Sequence[Callable[[], Any]]], rounds: int) -> dict[str, Times]:
        for variants in calls.values():
            for call in variants:
                call()
        return {name: Times(0.5 if name == CANDIDATE else 1.0, 0.0, 9, (0.5 if name == CANDIDATE else 1.0,) * rounds)
                for name in calls}  # fmt: skip

    monkeypatch.setattr(race, "DEVICE", "cpu")
    monkeypatch.setattr(race, "gpu_torch", lambda: fake)
    monkeypatch.setattr(race, "time_graphs", times)
    monkeypatch.setattr(race, "_clock_under", lambda torch, runner: 1500)
    monkeypatch.setattr(race, "_asked", lambda field: "580")
    monkeypatch.setattr(race, "judge_bundle", lambda path, spec, **_: SimpleNamespace(verdict="accepted"))
    monkeypatch.setattr(Bundle, "launch", launch)
    return called


def pair(place: Path, factor: float | None, spec: AttentionSpec | None = SPEC, **sizes: int) -> Path:
    bundle(place, BEST, 1, spec)
    if factor is not None:
        bundle(place, CANDIDATE, factor, spec)
    (place / CALL).write_text(json.dumps(sizes or {"B": 2, "S": 64}))
    return place


def test_both_are_called_on_the_same_and_the_finding_is_read_back(machine: Any, tmp_path: Path) -> None:
    place = pair(tmp_path / "a", 2)
    assert waiting(tmp_path) == [place]
    found = run_race(place)

    assert read_race(place) == found
    assert waiting(tmp_path) == []
    assert found.gain is not None
    assert found.gain.ratio == 2.0
    assert found.ms == {"best": 1.0, "candidate": 0.5, "best again": 1.0}
    assert found.difference == 0.0
    assert found.verdict == "accepted"
    assert found.flops == pytest.approx(2 * 2 * 8 * 128 * 64 * 65 / 2)
    assert machine[0]["sizes"] == {"B": 2, "Sq": 64, "Sk": 64}
    assert machine[0]["scalars"] == {"scale": 0.125}
    assert machine[0]["gate"] is machine[-1]["gate"]


def test_alone_it_has_a_time_and_no_gain(machine: Any, tmp_path: Path) -> None:
    found = run_race(pair(tmp_path, None))

    assert found.gain is None
    assert found.error == ""
    assert len(found.same) == race.ROUNDS
    assert read_race(tmp_path) == found


@pytest.mark.parametrize(
    ("factor", "said"), [(6, "its outputs differ from the best's by 5 of their norm"), (-1, "cannot be launched")]
)
def test_a_wrong_candidate_has_no_time(machine: Any, tmp_path: Path, factor: float, said: str) -> None:
    found = run_race(pair(tmp_path, factor))

    assert said in found.error
    assert found.gain is None
    assert read_race(tmp_path) == found


def test_what_the_judge_rejects_is_not_timed(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "judge_bundle", lambda path, spec, **_: SimpleNamespace(verdict="rejected"))
    found = run_race(pair(tmp_path, 2))

    assert found.error == "the judge on the GPU: rejected"
    assert CANDIDATE not in found.ms


def test_a_candidate_that_breaks_the_gpu_is_written_down_before_the_process_ends(
    machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access\nmore words")

    monkeypatch.setattr(race, "time_graphs", broken)
    with pytest.raises(LaunchError, match="illegal memory access"):
        run_race(pair(tmp_path / "a", 2))
    found = read_race(tmp_path / "a")
    assert found is not None
    assert found.error == "it failed: CUDA error: an illegal memory access"
    assert found.gain is None
    with pytest.raises(LaunchError):
        run_race(pair(tmp_path / "b", None))
    assert waiting(tmp_path) == [tmp_path / "b"]


def test_without_a_description_sizes_and_numbers_are_enough(machine: Any, tmp_path: Path) -> None:
    found = run_race(pair(tmp_path, 2, None, B=1, Sq=3, Sk=5))

    assert found.gain is not None
    assert (found.flops, found.verdict) == (None, "")
    assert machine[0]["sizes"] == {"B": 1, "Sq": 3, "Sk": 5}


def test_what_cannot_be_called_is_said(machine: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nothing says how large Sk is"):
        run_race(pair(tmp_path / "a", 2, None, B=1, Sq=3))
    bundle(tmp_path / "b", BEST, 1, None, "i32")
    (tmp_path / "b" / CALL).write_text('{"B": 1, "S": 8}')
    with pytest.raises(SpecError, match="nobody can guess what Gate holds"):
        run_race(tmp_path / "b")
    with pytest.raises(SpecError, match="no one length"):
        run_race(pair(tmp_path / "c", 2, AttentionSpec.make(Hq=8, Dqk=64, varlen=True)))
    assert not (tmp_path / "b" / TIMING).exists()
