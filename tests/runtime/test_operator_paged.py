"""The PyTorch operator of a kernel that takes lengths and a page table; skipped without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime import Bundle, Manifest, Tensor, read_folder

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'qimeng-attention[gpu]'")


class Noted(Bundle):
    """A bundle that notes what it is called with, and gives zeros."""

    def __call__(self, q: Any, k: Any, v: Any, *, return_lse: bool = False, **given: Any) -> Any:
        self.given = given
        out, lse = torch.zeros_like(q), torch.zeros(q.shape[0], q.shape[2], q.shape[1])
        return (out, lse) if return_lse else out


@pytest.fixture(scope="module")
def registered() -> list[Noted]:
    return []  # an operator is registered once in a process, with its first bundle


@pytest.fixture
def bundle(
    tmp_path: Path, manifest: Manifest, rewrite: Callable[[Path, Manifest], None], registered: list[Noted]
) -> Noted:
    if not registered:
        pages = tuple(replace(t, dims=("Pages", 16, *t.dims[2:])) if t.name in "KV" else t for t in manifest.tensors)
        more = (Tensor("SequsedK", "i32", ("B",), "input"), Tensor("PageTable", "i32", ("B", "MaxPages"), "input"))
        call = {**manifest.call, "seqused_k": "SequsedK", "page_table": "PageTable"}
        sizes = ("B", "Sq", "Pages", "MaxPages")
        made = replace(manifest, kernel="in_pages", tensors=pages + more, sizes=sizes, call=call, requires=())
        rewrite(tmp_path / "in_pages", made)
        registered.append(Noted(read_folder(tmp_path / "in_pages")))
    return registered[0]


def inputs(batch: int = 2, device: str = "cpu") -> tuple[Any, ...]:
    shapes = ((batch, 3, 8, 64), (5, 16, 2, 64), (5, 16, 2, 64))
    q, k, v = (torch.zeros(shape, dtype=torch.bfloat16, device=device) for shape in shapes)
    lengths, table = (torch.ones(shape, dtype=torch.int32, device=device) for shape in ((2,), (2, 4)))
    return q, k, v, lengths, table


def test_what_a_call_names_reaches_the_bundle(bundle: Noted) -> None:
    q, k, v, lengths, table = inputs()

    out, lse = bundle.operator()(q, k, v, seqused_k=lengths, page_table=table, scale=0.5, return_lse=True)

    assert (out.shape, lse.shape) == (q.shape, (2, 8, 3))
    assert bundle.given["scale"] == 0.5
    assert bundle.given["tensors"].keys() == {"seqused_k", "page_table"}
    assert bundle.given["tensors"]["page_table"] is table


def test_a_trace_keeps_it_whole(bundle: Noted) -> None:
    operator, tensors = bundle.operator(), inputs()

    def step(q: Any, k: Any, v: Any, lengths: Any, table: Any) -> Any:
        return operator(q, k, v, seqused_k=lengths, page_table=table) * 2

    with torch.no_grad():
        program = torch.export.export(_Module(step), tensors)

    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert sum("in_pages" in t for t in targets) == 1


class _Module(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, step: Callable[..., Any]) -> None:
        super().__init__()
        self.step = step

    def forward(self, *tensors: Any) -> Any:
        return self.step(*tensors)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"page_table": None}, "the tensor page_table is missing"),
        ({"seqused": 1}, "did you mean seqused_k"),
    ],
)
def test_names_are_checked(bundle: Noted, changed: dict[str, Any], message: str) -> None:
    q, k, v, lengths, table = inputs()
    given = {"seqused_k": lengths, "page_table": table, **changed}

    with pytest.raises(LaunchError) as refused:
        bundle.operator()(q, k, v, **{n: x for n, x in given.items() if x is not None})

    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("place", "tensor", "message"),
    [
        (3, lambda t: t.long(), "seqused_k is of torch.int64"),
        (3, lambda t: t[:1], "dimension 0 of seqused_k is 1"),
        (4, lambda t: t[0], "page_table has 1 dimensions"),
        (1, lambda t: t[:, :8], "dimension 1 of k is 8"),
    ],
)
def test_a_trace_refuses_what_a_launch_would(bundle: Noted, place: int, tensor: Any, message: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    operator = bundle.operator()
    with FakeTensorMode() as mode, torch.no_grad():
        tensors = [mode.from_tensor(t) for t in inputs()]
        tensors[place] = tensor(tensors[place])
        with pytest.raises(LaunchError) as refused:
            operator(*tensors[:3], seqused_k=tensors[3], page_table=tensors[4])

    assert message in str(refused.value)
