"""A bundle as a PyTorch operator: what torch.compile and torch.export keep whole instead of looking inside.

    attention = load("bundles/gqa_causal_d128_bf16.H200").operator()
    out, lse = attention(q, k, v, return_lse=True)  # as the bundle itself
    out = attention(q, k, v, seqused_k=lengths, page_table=table)  # what else the kernel takes, by name

Its name is `qimeng::<kernel>_<digest of the manifest>`: the same for the same bundle in every process, of two bundles
never the same. It has two overloads, `default` gives the output, `lse` the output and the LSE. Outputs are new and
contiguous, as those that the bundle allocates. There is no backward.

What shapes and types tell is checked while tracing; device, strides and memory, as ever, when the kernel is launched.

Not here: the call itself (bundle.py).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qimeng_attention.errors import EnvironmentMissing, LaunchError
from qimeng_attention.runtime.bundle import INSTALL, refuse_grad
from qimeng_attention.runtime.checks import COMPARE, named_arguments
from qimeng_attention.runtime.expressions import evaluate, show
from qimeng_attention.runtime.manifest import CALL, Manifest
from qimeng_attention.runtime.manifest_json import to_json
from qimeng_attention.runtime.plan import TORCH_TYPES, check_kind, layout_of

if TYPE_CHECKING:
    from qimeng_attention.runtime.bundle import Bundle

NAMESPACE = "qimeng"
_DIGITS = 16  # of the digest, in hexadecimal
_lock = threading.Lock()
_operators: dict[str, Operator] = {}  # by name: PyTorch registers a name once in a process
_library: Any = None  # kept: what it registered goes with it


class Operator:
    """One registered kernel; called as its bundle is, but without `out` and `lse`."""

    def __init__(self, name: str, plain: Any, with_lse: Any, named: Sequence[str] = ()) -> None:
        """Keep the overloads; `with_lse` is None where the kernel gives no LSE."""
        self.name = name  # as in torch.ops, "qimeng::gqa_causal_d128_bf16_0123456789abcdef"
        self.plain, self.with_lse = plain, with_lse  # torch._ops.OpOverload
        self.named = tuple(named)  # the tensors that a call gives besides

    def __call__(
        self, q: Any, k: Any, v: Any, *, scale: float | None = None, return_lse: bool = False, **named: Any
    ) -> Any:
        """Compute attention.

        Args:
            q: queries, (B, Sq, Hq, Dqk).
            k: keys, (B, Sk, Hk, Dqk).
            v: values, (B, Sk, Hk, Dv).
            scale: of the scores; None takes the bundle's.
            return_lse: give (out, lse).
            named: every other tensor of the kernel.

        Raises:
            LaunchError: tensors or scale that the kernel was not made for, or one that requires grad.
            EnvironmentMissing: no GPU.
        """
        given = dict(zip(self.named, named_arguments(self.named, None, named), strict=True))
        if not return_lse:
            return self.plain(q, k, v, scale=scale, **given)
        if self.with_lse is None:
            raise LaunchError(
                f"{self.name} gives no lse", hint="generate it with the outputs O and LSE", argument="lse"
            )
        return self.with_lse(q, k, v, scale=scale, **given)

    def __repr__(self) -> str:
        return f"<Operator {self.name}>"


def operator_of(bundle: Bundle) -> Operator:
    """Give the operator of a bundle, registered when its first is asked for.

    Raises:
        LaunchError: the kernel is no operator of q, k and v.
        EnvironmentMissing: no PyTorch.
    """
    if not bundle.manifest.call:
        raise LaunchError(
            f"{bundle.manifest.kernel} is no operator of q, k and v", hint="use launch(tensors, sizes, scalars)"
        )
    name = operator_name(bundle.manifest)
    with _lock:
        if name not in _operators:
            _operators[name] = _register(name, bundle)
        return _operators[name]


def operator_name(manifest: Manifest) -> str:
    """Give the name under which a bundle's operator is registered."""
    return f"{NAMESPACE}::{manifest.kernel}_{hashlib.sha256(to_json(manifest)).hexdigest()[:_DIGITS]}"


def _register(name: str, bundle: Bundle) -> Operator:
    torch = _torch()
    global _library
    if _library is None:
        _library = torch.library.Library(NAMESPACE, "FRAGMENT")

    has_lse = len(bundle.manifest.outputs) > 1

    def plain(q: Any, k: Any, v: Any, *, scale: float | None = None, **named: Any) -> Any:
        # NOTE: an LSE that nobody reads is allocated too: the memory that a direct call keeps for it could lie in the
        # private pool of a graph, which PyTorch's compiled graphs want back after each call.
        found = bundle(q, k, v, scale=scale, return_lse=has_lse, tensors=named)
        return found[0] if has_lse else found

    def with_lse(q: Any, k: Any, v: Any, *, scale: float | None = None, **named: Any) -> Any:
        return bundle(q, k, v, scale=scale, return_lse=True, tensors=named)

    named = [name for name in bundle.manifest.call if name not in CALL]
    arguments = f"(Tensor q, Tensor k, Tensor v, *, {''.join(f'Tensor {n}, ' for n in named)}float? scale=None)"
    short = name.removeprefix(f"{NAMESPACE}::")
    _define(torch, short, f"{arguments} -> Tensor", plain, _fake(torch, bundle.manifest, 1))
    if has_lse:
        schema = f"{arguments} -> (Tensor, Tensor)"
        _define(torch, f"{short}.lse", schema, with_lse, _fake(torch, bundle.manifest, 2))
    packet = getattr(getattr(torch.ops, NAMESPACE), short)
    return Operator(name, packet.default, packet.lse if has_lse else None, named)


def _define(torch: Any, name: str, schema: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> None:
    # The strides that a program was traced with are those that the kernel gets: no compiler may choose others.
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    _library.define(f"{name}{schema}", tags=tags)
    # NOTE: for every device, so that tensors on a wrong one meet the launch's own check and its sentence.
    _library.impl(name, launch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise EnvironmentMissing(f"an operator needs PyTorch: {INSTALL}") from None
    return torch


# ------------------------------------------------------------------------------------------ without running
def _fake(torch: Any, manifest: Manifest, results: int) -> Callable[..., Any]:
    """Make the function that gives outputs without values, as a launch would allocate them."""
    outputs = [manifest.tensor(name) for name in manifest.outputs[:results]]

    labels = tuple(manifest.call)

    def fake(q: Any, k: Any, v: Any, *, scale: float | None = None, **named: Any) -> Any:
        given = {"q": q, "k": k, "v": v, **named}
        tensors = tuple(given[label] for label in labels)
        if torch.is_grad_enabled():
            refuse_grad(tensors, labels)
        sizes = sizes_of(torch, manifest, tensors)
        made = [
            torch.empty(
                [evaluate(dim, sizes) for dim in output.dims],
                dtype=getattr(torch, TORCH_TYPES[output.dtype]),
                device=q.device,
            )
            for output in outputs
        ]
        return made[0] if results == 1 else tuple(made)

    return fake


def sizes_of(torch: Any, manifest: Manifest, tensors: Sequence[Any]) -> dict[str, Any]:
    """Give the sizes of a call's tensors, which may be symbolic, and check what is known of them.

    Args:
        torch: PyTorch.
        manifest: of the kernel.
        tensors: in the order of the manifest's `call`.

    Raises:
        LaunchError: tensors that no launch would take.
        RuntimeError: the same, found from symbolic sizes.
    """
    sizes: dict[str, Any] = {}
    pairs = [
        (manifest.tensor(manifest.call[label]), tensor, label)
        for label, tensor in zip(manifest.call, tensors, strict=True)
    ]
    for tensor, given, label in pairs:
        check_kind(tensor, layout_of(given, label), label)
        for dim, extent in zip(tensor.dims, given.shape, strict=True):
            if isinstance(dim, str):
                sizes.setdefault(dim, extent)
    for tensor, given, label in pairs:
        for axis, (dim, extent) in enumerate(zip(tensor.dims, given.shape, strict=True)):
            expected = evaluate(dim, sizes)
            _hold(
                torch, extent == expected, f"dimension {axis} of {label} is {extent}, expected {show(dim)} = {expected}"
            )
    for r in manifest.requires:
        text = f"the kernel needs {show(r.left)} {r.op} {show(r.right)}, which {_listed(sizes)} does not fulfil"
        _hold(torch, COMPARE[r.op](evaluate(r.left, sizes), evaluate(r.right, sizes)), text)
    return sizes


def _hold(torch: Any, condition: Any, message: str) -> None:
    """Check a condition; one of symbolic sizes becomes a guard, or a check when the program runs."""
    if isinstance(condition, torch.SymBool):
        torch._check(condition, lambda: message)
    elif not condition:
        raise LaunchError(message, hint="pass tensors of other sizes")


def _listed(sizes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in sizes.items())
