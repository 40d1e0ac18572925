"""A finished kernel as a function of tensors.

    attention = load("bundles/gqa_causal_d128_bf16.A100")
    out = attention(q, k, v)                                 # (B, Sq, Hq, Dv)
    out, lse = attention(q, k, v, scale=0.1, return_lse=True)  # and (B, Hq, Sq), float32
    operator = attention.operator()                          # the same for torch.compile
    out = attention(q, k, v, slopes=slopes)                  # where the spec names the tensor slopes
    lists = attention.lists(q, k, v, doc=ids)                # which tiles a mask with tensors leaves, made once
    out = attention(q, k, v, doc=ids, lists=lists)           # for calls with the same tensors
    out = attention(q, k, v, cu_seqlens_q=starts, cu_seqlens_k=starts)  # (tokens, H, D), where it says varlen

A call runs on the tensors' device and PyTorch's current stream, neither waits nor copies, and can be captured
in a CUDA graph. What the kernel was not made for is a LaunchError, and nothing is launched.

Not here: the checks (checks.py), the driver (launcher.py), the files (folder.py), the operator (operator.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qimeng_attention.errors import EnvironmentMissing, LaunchError
from qimeng_attention.runtime import comparison, summary
from qimeng_attention.runtime.chain import Chain
from qimeng_attention.runtime.checks import check_names, check_scalar, check_sizes, named_arguments
from qimeng_attention.runtime.folder import Contents, read_folder
from qimeng_attention.runtime.launcher import Launcher, Prepared, Where
from qimeng_attention.runtime.lists import Lists, no_lists
from qimeng_attention.runtime.manifest import CALL, Manifest
from qimeng_attention.runtime.packing import places_of
from qimeng_attention.runtime.plan import (
    TORCH_TYPES,
    Layout,
    Plan,
    TensorLike,
    check_pointers,
    layout_of,
    make_plan,
)

if TYPE_CHECKING:
    from qimeng_attention.runtime.operator import Operator

_MOST_PLANS = 1024  # kept: one for each combination of layouts that was seen
_MOST_PREPARED = 4096  # kept: one for each combination of plan, addresses and scalars
_OUTPUTS = ("out", "lse")  # what a caller calls the manifest's outputs
CALL_ORDER = (*CALL, *_OUTPUTS)
INSTALL = "pip install 'qimeng-attention[gpu]'"


def load(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and check every digest; needs neither PyTorch nor a GPU.

    A bundle holds code that will run on the GPU: load only what you trust.

    Raises:
        BundleError: damaged, of another version, or no bundle.
    """
    return Bundle(read_folder(path))


@cache
def gpu_torch() -> Any:
    """Give PyTorch, with a GPU to use.

    Raises:
        EnvironmentMissing: one of the two is not there.
    """
    try:
        import torch
    except ImportError:
        raise EnvironmentMissing(f"running a kernel needs PyTorch: {INSTALL}") from None
    if not torch.cuda.is_available():
        raise EnvironmentMissing(
            "running a kernel needs an NVIDIA GPU that PyTorch can use: torch.cuda.is_available() is False"
        )
    return torch


@cache
def cuda_driver() -> Any:
    """Give the CUDA driver's functions.

    Raises:
        EnvironmentMissing: the bindings are not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError:
        raise EnvironmentMissing(f"running a kernel needs cuda-bindings: {INSTALL}") from None
    return driver


@cache
def stream_functions() -> tuple[Callable[[int], int], Callable[[], int], Callable[[], bool]]:
    """Give PyTorch's current stream by device, its current device, and whether its current stream is being captured.

    They are what PyTorch's own generated code calls; the public ways cost more, all together about a microsecond.
    """
    torch = gpu_torch()
    private, public = torch._C, torch.cuda
    return (
        getattr(private, "_cuda_getCurrentRawStream", lambda device: int(public.current_stream(device).cuda_stream)),
        getattr(private, "_cuda_getDevice", public.current_device),
        getattr(private, "_cuda_isCurrentStreamCapturing", public.is_current_stream_capturing),
    )


class Bundle:
    """One kernel, ready to be called."""

    def __init__(self, contents: Contents) -> None:
        self._contents, self._whole = contents, contents.manifest
        self._manifest = self._whole.face  # what a call is checked against
        self._alone = self._manifest is self._whole  # one kernel, which takes only what a caller gives
        self._names = [tensor.name for tensor in self._manifest.tensors]
        self._pointers, self._scalars = places_of(self._manifest)
        self._arguments = _arguments(self._manifest)
        self._named = tuple(name for name in self._manifest.call if name not in CALL)
        self._order = [(*CALL_ORDER, *self._named).index(name) for name in self._arguments or ()]
        self._default_scalars = (self._manifest.default_scale,) * len(self._scalars)
        self._results = [self._names.index(name) for name in self._manifest.outputs]
        self._plans: dict[Any, Plan] = {}
        self._prepared: dict[tuple[Plan, tuple[int, ...], tuple[float, ...]], Prepared] = {}
        self._unread: tuple[Plan, int, Any] | None = None  # of a plan on a stream

    @property
    def path(self) -> Path:
        """Give the bundle's folder."""
        return self._contents.path

    @property
    def manifest(self) -> Manifest:
        """Say how the kernel is launched and where it comes from."""
        return self._whole

    @property
    def files(self) -> Mapping[str, bytes]:
        """Give every file of the bundle but the manifest."""
        return self._contents.files

    def __repr__(self) -> str:
        return f"<Bundle {self._manifest.kernel} for {self._manifest.target} at {self.path}>"

    def __call__(
        self,
        q: TensorLike,  # (B, Sq, Hq, Dqk)
        k: TensorLike,  # (B, Sk, Hk, Dqk)
        v: TensorLike,  # (B, Sk, Hk, Dv)
        *,
        scale: float | None = None,
        out: TensorLike | None = None,  # (B, Sq, Hq, Dv)
        lse: TensorLike | None = None,  # (B, Hq, Sq) float32
        return_lse: bool = False,
        tensors: Mapping[str, TensorLike] | None = None,
        lists: Lists | None = None,
        **named: TensorLike,
    ) -> Any:
        """Compute attention; `out` and `lse` are filled where given.

        Args:
            q: queries.
            k: keys.
            v: values.
            scale: of the scores; None takes the bundle's.
            out: where to write the output; None allocates it.
            lse: where to write the natural logarithm of each row's sum; None allocates it.
            return_lse: give (out, lse).
            tensors: the kernel's named tensors; they may also be given by keyword.
            lists: what `lists` gave for the same named tensors and sizes; None makes them in the call.
            named: named tensors by keyword.

        Raises:
            LaunchError: tensors, scale or lists that the kernel was not made for.
            EnvironmentMissing: no PyTorch or no GPU.
        """
        torch, labels = gpu_torch(), self._labels_of_call(scale, lse, return_lse)
        given: tuple[Any, ...] = (q, k, v, out, lse)
        if self._named or named or tensors:
            given += named_arguments(self._named, tensors, named)
        ordered: list[Any] = [given[index] for index in self._order]
        try:  # what was seen before is taken at once; the checks are behind what was not
            seen = tuple([None if x is None else (x.shape, x.stride(), x.dtype, x.device) for x in ordered])
            plan = self._plans.get((seen, None))
        except (AttributeError, TypeError, RuntimeError):
            plan = None
        if plan is None:
            plan = self._plan(_layouts(ordered, labels), labels)
        where = self._where(plan.device)
        unread = None
        for index, tensor in enumerate(ordered):
            if tensor is not None:
                continue
            if labels[index] == "lse" and not return_lse:
                unread = ordered[index] = self._unread_lse(torch, plan, index, q, where)
            else:
                ordered[index] = self._allocated(torch, plan, index, q)
        scalars = self._default_scalars if scale is None else (scale,) * len(self._scalars)
        self._run(torch, plan, ordered, labels, scalars, where, lists=lists)
        if unread is not None and not where.capturing:
            self._unread = (plan, where.stream, unread)  # only now: a call that was refused may have made no memory
        if return_lse:
            return tuple([ordered[index] for index in self._results])
        return ordered[self._results[0]]

    def launch(self, tensors: Mapping[str, TensorLike], sizes: Mapping[str, int], scalars: Mapping[str, float]) -> None:
        """Launch the kernel on tensors (outputs too), sizes and scalars by the manifest's names.

        Raises:
            LaunchError: what the kernel was not made for.
            EnvironmentMissing: no PyTorch or no GPU.
        """
        torch = gpu_torch()
        check_names(tensors, self._names, "tensor")
        check_names(scalars, [scalar.name for scalar in self._manifest.scalars], "scalar")
        ordered = [tensors[name] for name in self._names]
        layouts = tuple(layout_of(tensor, name) for tensor, name in zip(ordered, self._names, strict=True))
        chosen = {name: sizes[name] for name in self._whole.chosen if name in sizes}
        check_sizes(list(chosen), chosen)
        own = {name: value for name, value in sizes.items() if name not in chosen}
        plan = self._plan(layouts, self._names, check_sizes(self._manifest.sizes, own))
        values = tuple(scalars[scalar.name] for scalar in self._manifest.scalars)
        self._run(torch, plan, ordered, self._names, values, self._where(plan.device), chosen)

    def lists(
        self,
        q: TensorLike,
        k: TensorLike,
        v: TensorLike,
        *,
        tensors: Mapping[str, TensorLike] | None = None,
        **named: TensorLike,
    ) -> Lists:
        """List the tiles that a mask with tensors leaves, for any number of calls with these tensors and sizes.

        They hold for the named tensors' present contents. Of q, k and v only the shapes matter. The kernels run on
        the current stream; calls on another one must wait for it.

        Args:
            q: queries, as a call takes them.
            k: keys.
            v: values.
            tensors: the kernel's named tensors; they may also be given by keyword.
            named: named tensors by keyword.

        Raises:
            LaunchError: tensors that the kernel was not made for, or a kernel that takes no lists.
            EnvironmentMissing: no PyTorch or no GPU.
        """
        torch, labels = gpu_torch(), self._labels_of_call(None, None, False)
        given: tuple[Any, ...] = (q, k, v, None, None, *named_arguments(self._named, tensors, named))
        ordered = [given[index] for index in self._order]
        plan = self._plan(_layouts(ordered, labels), labels)
        if self._alone:
            raise no_lists(self._manifest)
        pointers = tuple(0 if tensor is None else tensor.data_ptr() for tensor in ordered)
        allocate = partial(torch.empty, dtype=torch.uint8, device=ordered[0].device)
        return self._chain.list_tiles(plan, pointers, self._where(plan.device), allocate)

    def prepare(self, device: int = 0) -> None:
        """Load the kernel on a device, which its first call does otherwise; call it before a capture.

        Raises:
            LaunchError: the kernel is not for this device.
            EnvironmentMissing: no PyTorch or no GPU.
        """
        gpu_torch()
        (self._launcher if self._alone else self._chain).load(device)

    def operator(self) -> Operator:
        """Give the kernel as a PyTorch operator, which torch.compile and torch.export keep whole in their graphs.

        Raises:
            LaunchError: the kernel is no operator of q, k and v.
            EnvironmentMissing: no PyTorch.
        """
        from qimeng_attention.runtime.operator import operator_of

        return operator_of(self)

    def show(self) -> str:
        """Describe the kernel as text: operator, tiles, schedule, resources, verdict, speed."""
        return summary.describe(self._whole, self.files)

    def compare(
        self, q: TensorLike, k: TensorLike, v: TensorLike, *, scale: float | None = None, **named: TensorLike
    ) -> dict[str, Any]:
        """Measure error and time on these tensors.

        The reference is PyTorch's attention in float64, for full and causal masks without score modifiers;
        for other operators errors are "not available". Times are medians, in milliseconds of the GPU.
        """
        torch = gpu_torch()
        chosen = self._manifest.default_scale if scale is None else scale
        return comparison.compare(
            torch, lambda: self(q, k, v, scale=chosen, tensors=named), (q, k, v), chosen, self.files["spec.json"]
        )

    @cached_property
    def _launcher(self) -> Launcher:
        return Launcher(self._manifest, self.files["kernel.cubin"], cuda_driver())

    @cached_property
    def _chain(self) -> Chain:
        """Give the kernels behind each other."""
        return Chain(self._whole, self.files, cuda_driver())

    def _labels_of_call(self, scale: float | None, lse: TensorLike | None, return_lse: bool) -> list[str]:
        """Give what the caller calls each tensor, if the kernel is what was called for."""
        if self._arguments is None:
            raise LaunchError(
                f"{self._manifest.kernel} is no operator of q, k and v",
                hint="use launch(tensors, sizes, scalars)",
            )
        if (return_lse or lse is not None) and "lse" not in self._arguments:
            hint = "generate it with the outputs O and LSE"
            raise LaunchError(f"{self._manifest.kernel} gives no lse", hint=hint, argument="lse")
        if scale is not None and not self._scalars:
            hint = "leave scale out"
            raise LaunchError(f"{self._manifest.kernel} takes no scale", hint=hint, argument="scale")
        return self._arguments

    def _plan(
        self,
        layouts: tuple[Layout | None, ...],
        labels: Sequence[str],
        sizes: Mapping[str, int] | None = None,
    ) -> Plan:
        key = (layouts, None if sizes is None else tuple(sizes.values()))
        plan = self._plans.get(key)
        if plan is None:
            plan = make_plan(self._manifest, layouts, labels, sizes)
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def _where(self, device: int) -> Where:
        """Give PyTorch's current stream on a device, whether it is being captured, and if the device is current."""
        current_stream, current_device, is_capturing = stream_functions()
        stream = current_stream(device)
        if current_device() == device:  # PyTorch's answer is for its own stream there, and costs less
            return Where(stream, is_capturing(), True)
        result, status = cuda_driver().cuStreamIsCapturing(stream)
        return Where(stream, not result and int(status) != 0, False)

    def _allocated(self, torch: Any, plan: Plan, index: int, q: Any) -> Any:
        """Allocate an output."""
        if plan.alike[index] == self._manifest.call["q"]:  # which costs less to say
            return torch.empty_like(q)
        dtype = getattr(torch, TORCH_TYPES[self._manifest.tensors[index].dtype])
        return torch.empty(plan.layouts[index][0], dtype=dtype, device=q.device)

    def _unread_lse(self, torch: Any, plan: Plan, index: int, q: Any, where: Where) -> Any:
        """Give memory for an output that nobody reads: kept for the next such call on the same stream.

        A captured one is not: its memory is the graph's own.
        """
        kept = self._unread
        if kept is not None and kept[0] is plan and kept[1] == where.stream and not where.capturing:
            return kept[2]
        return self._allocated(torch, plan, index, q)

    def _run(
        self,
        torch: Any,
        plan: Plan,
        tensors: Sequence[Any],
        labels: Sequence[str],
        scalars: tuple[Any, ...],
        where: Where,
        chosen: Mapping[str, int] | None = None,
        lists: Lists | None = None,
    ) -> None:
        if torch.is_grad_enabled():
            refuse_grad(tensors, labels)
        pointers = _addresses(tensors, labels)
        if scalars is not self._default_scalars:
            known = zip(self._manifest.scalars, scalars, strict=True)
            scalars = tuple([value if type(value) is float else check_scalar(scalar, value) for scalar, value in known])
        if not self._alone:
            values = tuple([check_scalar(s, value) for s, value in zip(self._manifest.scalars, scalars, strict=True)])
            device = tensors[0].device
            allocate = partial(torch.empty, dtype=torch.uint8, device=device)
            self._chain.run(plan, pointers, values, labels, where, allocate, chosen, lists)
            return
        if lists is not None:
            raise no_lists(self._manifest)
        prepared = self._prepared.get((plan, pointers, scalars)) or self._prepare(plan, pointers, scalars, labels)
        if not plan.empty:
            self._launcher.launch(prepared, where)

    def _prepare(
        self, plan: Plan, pointers: tuple[int, ...], scalars: tuple[float, ...], labels: Sequence[str]
    ) -> Prepared:
        """Check what changes from call to call, and keep what follows for the next call with the same."""
        values = list(plan.values)
        for place, scalar, value in zip(self._scalars, self._manifest.scalars, scalars, strict=True):
            values[place] = check_scalar(scalar, value)
        check_pointers(self._manifest, plan, pointers, labels)
        for place, pointer in zip(self._pointers, pointers, strict=True):
            values[place] = pointer
        made = Prepared(plan.device, plan.grid, tuple(values), plan.boxes, pointers)
        if 0.0 not in scalars:  # which equals -0.0
            if len(self._prepared) >= _MOST_PREPARED:
                self._prepared.clear()
            self._prepared[plan, pointers, scalars] = made
        return made


def _arguments(manifest: Manifest) -> list[str] | None:
    """Give what a caller of q, k, v calls each tensor of the manifest, None where there is no such call."""
    if not manifest.call:
        return None
    known = {tensor: name for name, tensor in manifest.call.items()}
    known |= dict(zip(manifest.outputs, _OUTPUTS, strict=False))
    return [known[tensor.name] for tensor in manifest.tensors]


def _layouts(tensors: Sequence[Any], labels: Sequence[str]) -> tuple[Layout | None, ...]:
    """Take the layouts of a call's tensors; an output that is not given has none."""
    return tuple(
        None if tensor is None and label in _OUTPUTS else layout_of(tensor, label)
        for tensor, label in zip(tensors, labels, strict=True)
    )


def refuse_grad(tensors: Sequence[Any], labels: Sequence[str]) -> None:
    """Refuse a tensor that a backward would be asked for.

    Raises:
        LaunchError: one requires grad.
    """
    for tensor, label in zip(tensors, labels, strict=True):
        if tensor.requires_grad:
            raise LaunchError(
                f"{label} requires grad, and the kernel has no backward",
                hint=f"call it under torch.no_grad(), or pass {label}.detach()",
                argument=label,
            )


def _addresses(tensors: Sequence[Any], labels: Sequence[str]) -> tuple[int, ...]:
    try:
        return tuple([tensor.data_ptr() for tensor in tensors])
    except RuntimeError:
        problem = f"one of {', '.join(labels)} has no memory of its own"
        raise LaunchError(problem, hint="pass dense tensors; in a traced program call bundle.operator()") from None
