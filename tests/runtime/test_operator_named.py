"""Operators of kernels with named tensors, on the CPU: a stand-in for the launch; skipped without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime import Bundle, Manifest, read_folder
from qimeng_attention.runtime.manifest import GridAxis, Tensor

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'qimeng-attention[gpu]'")

TENSORS = (
    Tensor("Q", "bf16", ("Tq", 8, 64), "input"),
    Tensor("K", "bf16", ("Tk", 2, 64), "input"),
    Tensor("V", "bf16", ("Tk", 2, 64), "input"),
    Tensor("StartQ", "i32", (("+", "B", 1),), "input"),
    Tensor("StartK", "i32", (("+", "B", 1),), "input"),
    Tensor("Out", "bf16", ("Tq", 8, 64), "output"),
    Tensor("Lse", "f32", (8, "Tq"), "output"),
)


class OnTheCpu(Bundle):
    """A bundle whose launch says which sequence each row belongs to."""

    def __call__(self, q: Any, k: Any, v: Any, *, return_lse: bool = False, tensors: Any = None, **given: Any) -> Any:
        lengths = tensors["cu_seqlens_q"].diff()
        rows = torch.arange(len(lengths)).repeat_interleave(lengths, output_size=q.shape[0])
        out = rows[:, None, None].to(q.dtype).expand(q.shape).contiguous()
        return (out, torch.zeros(q.shape[1], q.shape[0])) if return_lse else out


@pytest.fixture
def operator(tmp_path: Path, manifest: Manifest, rewrite: Callable[[Path, Manifest], None]) -> Any:
    call = {"q": "Q", "k": "K", "v": "V", "cu_seqlens_q": "StartQ", "cu_seqlens_k": "StartK"}
    grid = (GridAxis("slot", 0, ("+", ("//", "Tq", 128), "B")), GridAxis("head", 0, 8))
    changed = replace(
        manifest, kernel="packed", tensors=TENSORS, sizes=("B", "Tq", "Tk"), grid=grid, call=call, requires=()
    )
    rewrite(tmp_path / "packed", changed)
    return OnTheCpu(read_folder(tmp_path / "packed")).operator()


def inputs() -> tuple[list[Any], dict[str, Any]]:
    tensors = [torch.zeros(30, h, 64, dtype=torch.bfloat16) for h in (8, 2, 2)]
    starts = torch.tensor([0, 10, 12, 30], dtype=torch.int32)
    return tensors, {"cu_seqlens_q": starts, "cu_seqlens_k": starts}


def test_named_tensors_reach_the_bundle(operator: Any) -> None:
    tensors, named = inputs()

    out, lse = operator(*tensors, **named, return_lse=True)

    assert out[:, 0, 0].tolist() == [0] * 10 + [1] * 2 + [2] * 18
    assert lse.shape == (8, 30)


def test_a_program_is_traced_whole(operator: Any) -> None:
    tensors, named = inputs()

    def model(q: Any, k: Any, v: Any, starts: Any) -> Any:
        return operator(q, k, v, cu_seqlens_q=starts, cu_seqlens_k=starts) + 1

    traced = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)

    with torch.no_grad():
        torch.testing.assert_close(traced(*tensors, named["cu_seqlens_q"]), model(*tensors, named["cu_seqlens_q"]))


def test_the_registration_is_sound(operator: Any) -> None:
    tensors, named = inputs()

    torch.library.opcheck(operator.plain, tuple(tensors), named)
    torch.library.opcheck(operator.with_lse, tuple(tensors), named)


def test_shapes_are_known_without_running(operator: Any) -> None:
    tensors, named = inputs()
    meta = [x.to("meta") for x in tensors]

    out = operator(*meta, **{n: x.to("meta") for n, x in named.items()})

    assert (out.shape, out.device.type) == ((30, 8, 64), "meta")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cu_seqlens_k": torch.zeros(3, dtype=torch.int32, device="meta")}, "cu_seqlens_k is 3"),
        ({"cu_seqlens_k": torch.zeros(4, dtype=torch.int64, device="meta")}, "cu_seqlens_k"),
        ({"cu_seqlens_k": torch.zeros(1, 4, dtype=torch.int32, device="meta")}, "cu_seqlens_k"),
    ],
)
def test_offsets_of_the_wrong_form_are_refused_while_tracing(
    operator: Any, changed: dict[str, Any], words: str
) -> None:
    tensors, named = inputs()
    meta = {n: x.to("meta") for n, x in named.items()} | changed

    with pytest.raises(LaunchError, match=words):
        operator(*[x.to("meta") for x in tensors], **meta)
