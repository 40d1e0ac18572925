"""Kernels of one bundle that run behind each other, on the caller's tensors and on memory between them.

What one kernel writes and a later one reads is nobody's argument: it lies in a workspace, kept for each stream. Sizes
that the caller's tensors do not tell are worked out as the program says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qimeng_attention.runtime.expressions import evaluate
from qimeng_attention.runtime.launcher import Launcher, Prepared, Where
from qimeng_attention.runtime.lists import Lists, check_lists, listed_tensors, listing_kernels, no_lists
from qimeng_attention.runtime.manifest import Manifest, Tensor, kernel_file
from qimeng_attention.runtime.packing import places_of
from qimeng_attention.runtime.plan import Plan, check_pointers, dense_layout, make_plan

_ALIGN = 256  # bytes: what PyTorch's own allocations begin at
_MOST_PREPARED = 4096


@dataclass(frozen=True, eq=False)
class _Steps:
    """What follows from one call's layouts: a plan for each kernel, and where its tensors lie."""

    plans: tuple[Plan, ...]
    places: tuple[tuple[int, ...], ...]  # of each kernel's tensors: of the caller's, or behind them in the workspace
    offsets: tuple[int, ...]  # bytes, of the tensors in the workspace: what is listed first
    workspace: int  # bytes
    listed: int  # bytes of what is listed
    sizes: Mapping[str, int]  # of the kernels that list


class Chain:
    """Launches the kernels of a bundle in order."""

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes], driver: Any) -> None:
        self._manifest, self._face, self._kernels = manifest, manifest.face, manifest.kernels
        self._launchers = [
            Launcher(kernel, files[kernel_file(number, "cubin")], driver) for number, kernel in enumerate(self._kernels)
        ]
        self._listing, self._listed = listing_kernels(manifest), listed_tensors(manifest)
        behind = {tensor.name for kernel in self._kernels[self._listing :] for tensor in kernel.tensors}
        kept = {tensor.name for tensor in self._face.tensors}.union(self._listed)
        self._alone = behind <= kept  # the kernels behind lists need no memory but these
        self._steps: dict[tuple[Plan, tuple[int, ...]], _Steps] = {}
        self._prepared: dict[tuple[_Steps, tuple[int, ...], tuple[float, ...]], list[Prepared]] = {}
        self._workspaces: dict[tuple[int, int], Any] = {}  # by device and stream

    def load(self, device: int) -> None:
        """Load every kernel on a device.

        Raises:
            LaunchError: the kernels are not for this device.
        """
        for launcher in self._launchers:
            launcher.load(device)

    def run(
        self,
        plan: Plan,
        pointers: tuple[int, ...],
        scalars: tuple[float, ...],
        labels: Sequence[str],
        where: Where,
        allocate: Callable[[int], Any],
        sizes: Mapping[str, int] | None = None,
        lists: object = None,
    ) -> None:
        """Launch every kernel, or those behind the lists that are given.

        Args:
            plan: of the caller's tensors.
            pointers: of the caller's tensors.
            scalars: checked.
            labels: what the caller calls the tensors.
            where: the stream.
            allocate: gives memory of so many bytes on the plan's device, with a `data_ptr`.
            sizes: values for sizes that the launcher would work out.
            lists: what `list_tiles` gave for such a call.

        Raises:
            LaunchError: tensors that share memory, lists of another call, or a launch that the driver refused.
        """
        steps = self._steps_of(plan, sizes or {})
        made = None
        if lists is not None:
            if not self._listed:
                raise no_lists(self._manifest)
            made = check_lists(lists, self._manifest, plan.device, steps.sizes).memory
        if made is not None and self._alone:  # the others, which write behind them, are not launched
            between = tuple(int(made.data_ptr()) + offset for offset in steps.offsets)
        else:
            between = self._between(steps, plan.device, where, allocate, made)
        whole = (*pointers, *between)
        prepared = self._prepared.get((steps, whole, scalars))
        if prepared is None:
            check_pointers(self._face, plan, pointers, labels)
            prepared = self._prepare(steps, whole, scalars)
        self._launch(prepared, range(0 if made is None else self._listing, len(prepared)), where)

    def list_tiles(self, plan: Plan, pointers: tuple[int, ...], where: Where, allocate: Callable[[int], Any]) -> Lists:
        """Launch the kernels that list; arguments as of `run`, outputs have no pointer.

        Raises:
            LaunchError: there are none, or a launch that the driver refused.
        """
        if not self._listed:
            raise no_lists(self._manifest)
        steps = self._steps_of(plan, {})
        memory = allocate(max(steps.listed, 1))
        whole = (*pointers, *self._between(steps, plan.device, where, allocate, memory))
        scalars = (self._manifest.default_scale,) * len(self._face.scalars)
        self._launch(self._prepare(steps, whole, scalars), range(self._listing), where)
        return Lists(self._manifest.kernel, self._manifest.files, plan.device, steps.sizes, memory)

    def _launch(self, prepared: Sequence[Prepared], places: range, where: Where) -> None:
        for place in places:
            if 0 not in prepared[place].grid:
                self._launchers[place].launch(prepared[place], where)

    def _steps_of(self, plan: Plan, given: Mapping[str, int]) -> _Steps:
        key = (plan, tuple(given.values()))
        steps = self._steps.get(key)
        if steps is None:
            if len(self._steps) >= _MOST_PREPARED:
                self._steps.clear()
            steps = self._steps[key] = self._plan(plan, given)
        return steps

    def _between(
        self, steps: _Steps, device: int, where: Where, allocate: Callable[[int], Any], made: Any
    ) -> tuple[int, ...]:
        """Give the addresses of the tensors between kernels: in memory that holds lists, where there is one, or in
        the workspace."""
        count = len(self._listed)
        workspace = self._workspace(device, where, steps.workspace, allocate)
        base = int(workspace.data_ptr()) if workspace is not None else 0
        first = base if made is None else int(made.data_ptr())
        return tuple((first if n < count else base) + offset for n, offset in enumerate(steps.offsets))

    def _workspace(self, device: int, where: Where, size: int, allocate: Callable[[int], Any]) -> Any:
        """Give memory between the kernels: the stream's own, or a graph's while one is captured."""
        if size == 0:
            return None
        if where.capturing:
            return allocate(size)
        kept = self._workspaces.get((device, where.stream))
        if kept is None or kept.numel() < size:
            kept = self._workspaces[device, where.stream] = allocate(size)
        return kept

    # ------------------------------------------------------------------ planning
    def _plan(self, plan: Plan, given: Mapping[str, int]) -> _Steps:
        sizes = dict(zip(self._face.sizes, plan.sizes, strict=True))
        sizes |= {name: evaluate(e, sizes) for name, e in self._manifest.chosen.items()}
        sizes |= given
        known = [tensor.name for tensor in self._face.tensors]
        between: dict[str, Tensor] = {}
        for kernel in self._kernels:
            between |= {t.name: t for t in kernel.tensors if t.name not in known and t.name not in between}
        between = {name: between[name] for name in (*self._listed, *between)}
        layouts = dict(zip(known, plan.layouts, strict=True))
        offsets, end, listed = [], 0, 0
        for number, tensor in enumerate(between.values()):
            layouts[tensor.name] = dense_layout(tensor, sizes, plan.layouts[0][3])
            offsets.append(end)
            end += -(-math.prod(layouts[tensor.name][0]) * tensor.item_bytes // _ALIGN) * _ALIGN
            listed = end if number < len(self._listed) else listed
        order = [*known, *between]
        plans, places = [], []
        for kernel in self._kernels:
            names = [tensor.name for tensor in kernel.tensors]
            own = {name: sizes[name] for name in kernel.sizes}
            plans.append(make_plan(replace(kernel, requires=()), [layouts[n] for n in names], names, own))
            places.append(tuple(order.index(name) for name in names))
        asked = {name for kernel in self._kernels[: self._listing] for name in kernel.sizes}
        own = {name: value for name, value in sizes.items() if name in asked}
        return _Steps(tuple(plans), tuple(places), tuple(offsets), end, listed, own)

    def _prepare(self, steps: _Steps, pointers: tuple[int, ...], scalars: tuple[float, ...]) -> list[Prepared]:
        """Put each kernel's arguments together, and keep them for the next call with the same."""
        named = dict(zip([scalar.name for scalar in self._face.scalars], scalars, strict=True))
        made = []
        for kernel, plan, places in zip(self._kernels, steps.plans, steps.places, strict=True):
            own = tuple(pointers[place] for place in places)
            values, (at_pointers, at_scalars) = list(plan.values), places_of(kernel)
            for place, pointer in zip(at_pointers, own, strict=True):
                values[place] = pointer
            for place, scalar in zip(at_scalars, kernel.scalars, strict=True):
                values[place] = named[scalar.name]
            made.append(Prepared(plan.device, plan.grid, tuple(values), plan.boxes, own))
        if 0.0 not in scalars:  # which equals -0.0
            if len(self._prepared) >= _MOST_PREPARED:
                self._prepared.clear()
            self._prepared[steps, pointers, scalars] = made
        return made
