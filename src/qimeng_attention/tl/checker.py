"""From tree to checked program: every size, space, type and layout present, and everything legal that can be proved.

First each statement's own rule, in program order; then the block's budget; then a run on small sizes without numbers,
which finds loops that miss or repeat tiles, outputs uncovered or written twice, and faults of concurrency. All findings
are collected. Non-goal: whether the program computes what was asked (judge/).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qimeng_attention import targets
from qimeng_attention.errors import Diagnostic, DiagnosticError, SpecError
from qimeng_attention.targets import Target
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.budget import THREADS_A_WARP, check_budget
from qimeng_attention.tl.evaluate import Environment
from qimeng_attention.tl.interpreter import check_written, grid_points, make_machine
from qimeng_attention.tl.machine import Fault, Machine
from qimeng_attention.tl.macros import expand
from qimeng_attention.tl.numerics import Array
from qimeng_attention.tl.parser import parse_with_findings
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.small_model import small_sizes
from qimeng_attention.tl.statements import TABLE
from qimeng_attention.tl.traverse import names_in, statements
from qimeng_attention.tl.types import Checked

SCHEDULED = (s.Role, s.Wait, s.Release, s.PassTurn, s.Commit, s.Barrier, s.Fence, s.Warps)
MODEL_BLOCKS = 3  # points of each grid index tried on small sizes
DEFAULT_WARPS = 4
ROLE_THREADS = 256  # two consumer warpgroups share the register tiles


def level_of(kernel: s.Kernel) -> str:
    """Tell at which of the three levels a kernel is written."""
    body = list(statements(kernel.body))
    if any(isinstance(n, SCHEDULED) or (isinstance(n, s.Copy) and n.asynchronous) for n in body):
        return "scheduled"
    declared = any(isinstance(n, s.Allocate) or (isinstance(n, s.Copy) and n.dims) for n in body)
    return "code" if declared or kernel.name else "sketch"


def check(
    program: s.Program, *, target: str | None = None, source: str = "", file: str = "<tl>", model: bool = True
) -> list[Checked]:
    """Check every kernel of a program.

    Args:
        program: the tree.
        target: checks against this GPU instead of the one the program names.
        source: the text, for diagnostics.
        model: also run on small sizes.

    Raises:
        DiagnosticError: with every finding, of all kernels.
    """
    checked, findings = check_with_findings(program, target=target, model=model)
    if any(f.severity == "error" for f in findings):
        raise DiagnosticError(findings, source=source, file=file)
    return checked


def check_text(
    text: str, *, target: str | None = None, file: str = "<tl>", model: bool = True
) -> list[Checked]:
    """Parse and check a TL text; all findings of both at once.

    Raises:
        DiagnosticError: with every finding.
    """
    program, findings = parse_with_findings(text)
    if findings:
        raise DiagnosticError(findings, source=text, file=file)
    return check(program, target=target, source=text, file=file, model=model)


def check_with_findings(
    program: s.Program, *, target: str | None = None, model: bool = True
) -> tuple[list[Checked], list[Diagnostic]]:
    """Check every kernel; give those that passed, and all findings in order of place."""
    passed: list[Checked] = []
    findings: list[Diagnostic] = []
    if not program.kernels:
        findings.append(
            Diagnostic("TL100", "the program has no kernel", "begin it with `Kernel name for target`")
        )
    for kernel in program.kernels:
        checked, found = _check_kernel(kernel, program.defines, target)
        if checked is not None and model:
            found = found + run_small(checked)
        if checked is not None and not any(f.severity == "error" for f in found):
            passed.append(checked)
        findings += found
    return passed, sorted(findings, key=lambda f: (f.span, f.code))


def _check_kernel(
    kernel: s.Kernel, defines: tuple[s.Define, ...], target: str | None
) -> tuple[Checked | None, list[Diagnostic]]:
    scope = Scope()
    scope.target = _target(kernel, target, scope)
    kernel, scope.findings[len(scope.findings) :] = expand(kernel, defines)
    level = level_of(kernel)
    if level == "sketch":
        scope.report(
            "TL100",
            kernel.span,
            "this is a sketch: it has no sizes yet",
            "add Kernel, Size, Tile, Grid and Allocate, and a shape and coordinate to each Copy",
        )
        return None, scope.findings
    for n in kernel.body:
        TABLE[type(n)].check(n, scope)
    _check_whole(kernel, scope)
    if any(f.severity == "error" for f in scope.findings):
        return None, scope.findings
    return _checked(kernel, level, scope), scope.findings


def _target(kernel: s.Kernel, override: str | None, scope: Scope) -> Target | None:
    name = override or kernel.target
    if name is None:
        return None
    try:
        return targets.get(name)
    except SpecError as error:
        scope.report(
            "TL505", kernel.span, error.message, error.hint or f"take one of {', '.join(targets.names())}"
        )
        return None


def _check_whole(kernel: s.Kernel, scope: Scope) -> None:
    """Check what concerns the kernel as a whole."""
    if scope.grid is None:
        scope.report(
            "TL100", kernel.span, "the kernel has no Grid", "add `Grid block = 0 : ceildiv(Sq, BM), ...`"
        )
    if not scope.written:
        scope.report(
            "TL206", kernel.span, "the kernel stores nothing", "end it with a Copy from register to global"
        )
    for name in scope.tensors:
        if name not in scope.read and name not in scope.written:
            scope.report(
                "TL206",
                kernel.span,
                f"tensor {name} is never used",
                "remove its Allocate, or use it",
                "warning",
            )
    if scope.roles:
        check_budget(scope, kernel.span, ROLE_THREADS)
    else:
        check_budget(scope, kernel.span, _warps(kernel, scope) * THREADS_A_WARP)


def _warps(kernel: s.Kernel, scope: Scope) -> int:
    """Give the warps of a block: as stated, as the Schedule asks for, or the usual four."""
    if scope.warps is not None:
        return scope.constant(scope.warps.count) or DEFAULT_WARPS
    for choice in kernel.schedule:
        if choice.words[0] == "warps" and len(choice.words) > 1 and choice.words[1].isdigit():
            return max(1, int(choice.words[1]))
        if choice.words[0] == "roles":
            return ROLE_THREADS // THREADS_A_WARP
    return DEFAULT_WARPS


def _checked(kernel: s.Kernel, level: str, scope: Scope) -> Checked:
    assert scope.grid is not None
    outputs = tuple(scope.written)
    inputs = tuple(n for n in scope.tensors if n in scope.read and n not in outputs)
    warps = scope.warps
    return Checked(
        kernel, level, tuple(scope.sizes), dict(scope.fixed), dict(scope.scalars), dict(scope.tensors), dict(scope.tiles),
        inputs, outputs, scope.grid, scope.target.name if scope.target else kernel.target,
        (scope.constant(warps.count) or DEFAULT_WARPS) if warps else DEFAULT_WARPS, warps.axis if warps else "",
        scope.constant(warps.blocks) if warps and warps.blocks is not None else None, tuple(scope.findings),
    )  # fmt: skip


# ------------------------------------------------------------------ small sizes


def run_small(checked: Checked) -> list[Diagnostic]:
    """Run a program on small sizes without numbers and give the first fault of each kind."""
    found: dict[str, Diagnostic] = {}
    for sizes in small_sizes(checked):
        try:
            _run_once(checked, sizes)
        except Fault as fault:
            found.setdefault(
                fault.diagnostic.code,
                replace(fault.diagnostic, message=f"{fault.diagnostic.message} ({_shown(sizes)})"),
            )
        except (ValueError, KeyError, ZeroDivisionError, OverflowError) as error:
            found.setdefault(
                "TL103",
                Diagnostic(
                    "TL103",
                    f"a size has no value for {_shown(sizes)}: {error}",
                    "check the declarations",
                    checked.kernel.span,
                ),
            )
        if len(found) > 3:
            break
    return list(found.values())


def _shown(sizes: dict[str, int]) -> str:
    return "with " + ", ".join(f"{k} = {v}" for k, v in sizes.items())


def _run_once(checked: Checked, sizes: dict[str, int]) -> None:
    machine = make_machine(checked, sizes, {}, dict.fromkeys(checked.scalars, 1.0), numeric=False)
    total = 1
    for d in checked.grid.dims:
        total *= max(0, len(list(grid_points(replace(checked, grid=s.Grid((d,))), machine.sizes))))
    few = list(grid_points(checked, machine.sizes, MODEL_BLOCKS))
    for index in few:
        machine.run_block(index)
        _check_coverage(machine, index)
    if len(few) == total:
        check_written(machine)


def _check_coverage(machine: Machine, index: dict[str, int]) -> None:
    """No accumulating GEMM may sum over a stretch twice, nor miss one that a mask lets anyone see."""
    checked = machine.checked
    loop = next((n for n in statements(checked.kernel.body) if isinstance(n, s.For)), checked.kernel)
    by_axis: dict[str, set[int]] = {}
    seen: dict[str, list[int]] = {}
    for span, axis, start, size in machine.contracted:
        if start in seen.setdefault(axis, []) and _one_accumulation(checked, axis):
            raise Fault(
                "TL303",
                span,
                f"the stretch {axis} = {start} : {start + size} is summed over twice in one block",
                "let the loop visit each tile once",
            )
        seen[axis].append(start)
        by_axis.setdefault(axis, set()).update(range(start, start + size))
    for axis, needed in _needed(machine, index).items():
        missed = needed - by_axis.get(axis, set())
        if missed and _one_accumulation(checked, axis):
            raise Fault("TL302", loop.span, f"the loop misses {axis} = {min(missed)}, which no mask " "hides from block " f"{index}",
                        "widen the loop's bounds")  # fmt: skip


def _one_accumulation(checked: Checked, axis: str) -> bool:
    """Coverage is decided where one sum runs along the axis: split loops repeat its statement, they add no sum."""
    outs = {n.out for n in statements(checked.kernel.body) if isinstance(n, s.Gemm) and n.accumulate}
    gathers = any(isinstance(n, s.Copy) and any(c.axis == axis and (c.at is not None or _loads(c.start, checked)) for c in n.coordinate)
                  for n in statements(checked.kernel.body))  # fmt: skip
    return len(outs) == 1 and not gathers and not checked.grid.persistent


def _loads(e: s.Expr, checked: Checked) -> bool:
    return bool(names_in(e) & set(checked.tensors))


def _needed(machine: Machine, index: dict[str, int]) -> dict[str, set[int]]:
    """Give for each contracted axis the indices that some row of the block may see."""
    checked = machine.checked
    ints = {**checked.fixed, **machine.sizes, **index}
    needed: dict[str, set[int]] = {}
    rows = _row_ranges(machine, ints)
    columns = {axis for _, axis, _, _ in machine.contracted} | _contracted_axes(checked)
    for axis in columns:
        extent = _extent_of(axis, machine)
        if extent is None or not rows:
            continue
        masks = [
            n.condition
            for n in statements(checked.kernel.body)
            if isinstance(n, s.Mask) and axis in names_in(n.condition)
        ]
        needed[axis] = _visible(masks, axis, extent, rows, ints)
    return needed


def _contracted_axes(checked: Checked) -> set[str]:
    found = set()
    for n in statements(checked.kernel.body):
        if isinstance(n, s.Gemm) and n.accumulate:
            axes = checked.tiles[n.b.name].axis_names
            found.add(axes[1] if n.b.transposed else axes[0])
    return found


def _extent_of(axis: str, machine: Machine) -> int | None:
    """Give the extent of the tensor dimension that an axis walks along."""
    from qimeng_attention.tl.evaluate import integer

    for n in statements(machine.checked.kernel.body):
        if isinstance(n, s.Copy) and n.source == "global":
            tensor = machine.checked.tensors[n.name]
            for c, dim in zip(n.coordinate, tensor.dims, strict=False):
                if c.axis == axis and c.stop is None:
                    return integer(dim, {**machine.checked.fixed, **machine.sizes})
    return None


def _row_ranges(machine: Machine, ints: dict[str, int]) -> dict[str, Array]:
    """Give the valid row indices of the block, by axis, from where its outputs go."""
    from qimeng_attention.tl.evaluate import integer

    ranges: dict[str, Array] = {}
    for n in statements(machine.checked.kernel.body):
        if isinstance(n, s.Copy) and n.target == "global":
            tensor = machine.checked.tensors[n.to_name or n.name]
            extents = iter(n.dims)
            for c, dim in zip(n.coordinate, tensor.dims, strict=False):
                if c.axis is None:
                    continue
                size = next(extents, None)
                try:
                    start, end = integer(c.start, ints), integer(dim, ints)
                    width = integer(size.size, ints) if size else 1
                except (KeyError, ValueError):
                    return {}
                ranges[c.axis] = np.arange(start, min(start + width, end))
    return ranges


def _visible(
    masks: list[s.Expr], axis: str, extent: int, rows: dict[str, Array], ints: dict[str, int]
) -> set[int]:
    if any(len(r) == 0 for r in rows.values()) or extent == 0:
        return set()
    if not masks:
        return set(range(extent))
    visible = np.zeros(extent, bool)
    for condition in masks:
        try:
            value = Environment(ints, indices={**rows, axis: np.arange(extent)}).evaluate(condition)
        except (KeyError, ZeroDivisionError):
            return set()  # reads a tensor or a loop variable: not decided here
        data = np.asarray(value.data)
        if axis in value.axes:
            data = data.any(axis=tuple(i for i, a in enumerate(value.axes) if a != axis))
        visible |= np.broadcast_to(data, (extent,))
    return set(np.flatnonzero(visible).tolist())
