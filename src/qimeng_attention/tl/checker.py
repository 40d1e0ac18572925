"""From tree to checked program: every size, space, type and layout present, and everything legal that can be proved.

First each statement's own rule, in program order; then the block's budget; then a run on small sizes without numbers,
which finds loops that miss or repeat tiles, outputs uncovered or written twice, and faults of concurrency. All findings
are collected. Non-goal: whether the program computes what was asked (judge/).
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention import targets
from qimeng_attention.errors import Diagnostic, DiagnosticError, Span, SpecError
from qimeng_attention.targets import Target
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.budget import THREADS_A_WARP, check_budget, check_role_registers
from qimeng_attention.tl.coverage import Allowance, run_small
from qimeng_attention.tl.functions import WORD_OPERATORS
from qimeng_attention.tl.lists import write_out_lists
from qimeng_attention.tl.macros import expand, library
from qimeng_attention.tl.parser import parse_with_findings
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.statements import TABLE
from qimeng_attention.tl.traverse import statements, words_in
from qimeng_attention.tl.types import PIECES, Checked

SCHEDULED = (s.Role, s.Wait, s.Release, s.PassTurn, s.Commit, s.Barrier, s.Fence, s.Warps)
DEFAULT_WARPS = 4
ROLE_THREADS = 256  # code: two consumer warpgroups share the register tiles
WARPGROUP = 128  # scheduled code: threads of one instance of a role, which has register tiles of its own


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


def check_text(text: str, *, target: str | None = None, file: str = "<tl>", model: bool = True) -> list[Checked]:
    """Parse and check a TL text; a text that does not parse is not checked, for half a program has no meaning.

    Raises:
        DiagnosticError: with every finding of the one or the other.
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
    allowance = Allowance()
    if not program.kernels:
        findings.append(
            Diagnostic("TL100", "the program has no kernel", "begin it with `Kernel name for target`", Span(1, 1, 2))
        )
    for kernel in program.kernels:
        checked, found = _check_kernel(kernel, program.defines, target)
        if checked is not None and model:
            found = found + run_small(checked, allowance)
            checked = replace(checked, warnings=tuple(found))
        if checked is not None and not any(f.severity == "error" for f in found):
            passed.append(checked)
        findings += found
    return passed, sorted(findings, key=lambda f: (f.span, f.code))


def _check_kernel(
    kernel: s.Kernel, defines: tuple[s.Define, ...], target: str | None
) -> tuple[Checked | None, list[Diagnostic]]:
    scope = Scope()
    scope.target = _target(kernel, target, scope)
    level = level_of(kernel)
    kernel, found = expand(kernel, defines)
    kernel = write_out_lists(kernel)
    scope.findings += found
    scope.macros = [*library(), *(d.name for d in defines), *WORD_OPERATORS]
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
        scope.report("TL505", kernel.span, error.message, error.hint or f"take one of {', '.join(targets.names())}")
        return None


def _check_whole(kernel: s.Kernel, scope: Scope) -> None:
    """Check what concerns the kernel as a whole."""
    if scope.grid is None:
        scope.report("TL100", kernel.span, "the kernel has no Grid", "add `Grid block = 0 : ceildiv(Sq, BM), ...`")
    if not any(isinstance(n, s.Copy) and n.target == "global" for n in statements(kernel.body)):
        scope.report(
            "TL206",
            kernel.span,
            "the kernel stores nothing, expected a Copy to global memory",
            "end it with `Copy O (BM, D) in coordinate [...] from register to global Out`",
        )
    behind = next((i for i, n in enumerate(kernel.body) if isinstance(n, s.Role)), len(kernel.body))
    for n in kernel.body[behind:]:
        if not isinstance(n, s.Role):
            scope.report(
                "TL209",
                n.span,
                "this statement stands behind a role, expected inside one or above them",
                "move it into the role that should run it",
            )
    _check_pieces(kernel, scope)
    for n in kernel.body:
        if isinstance(n, s.Allocate) and n.space == "global" and n.name not in [*scope.read, *scope.written]:
            scope.report("TL206", n.span, f"tensor {n.name} is never used", "remove its Allocate, or use it", "warning")
    if scope.roles:
        check_budget(kernel, scope, WARPGROUP)
        check_role_registers(kernel, scope, WARPGROUP)
    else:
        check_budget(kernel, scope, _warps(kernel, scope) * THREADS_A_WARP)


def _check_pieces(kernel: s.Kernel, scope: Scope) -> None:
    """Report whatever else reads a register tile in pieces of rows, which is on its way to shared memory."""
    pieces = {t.name for t in scope.tiles.values() if t.role == PIECES}
    for n in statements(kernel.body) if pieces else ():
        if isinstance(n, s.Allocate | s.For | s.If | s.Role):
            continue
        if isinstance(n, s.Copy) and (n.source, n.target) in (("global", "register"), ("register", "shared")):
            continue
        for name in sorted(pieces & words_in(n)):
            scope.report(
                "TL207",
                n.span,
                f"{name} lies in pieces of rows, which only Copy moves, from global to shared memory",
                f"Copy it to shared, or leave `contiguous {scope.tiles[name].contiguous}` out of its Allocate",
            )


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
        kernel,
        level,
        tuple(scope.sizes),
        dict(scope.fixed),
        dict(scope.scalars),
        dict(scope.tensors),
        dict(scope.tiles),
        inputs,
        outputs,
        scope.grid,
        scope.target.name if scope.target else kernel.target,
        (scope.constant(warps.count) or DEFAULT_WARPS) if warps else DEFAULT_WARPS,
        warps.axis if warps else "",
        scope.constant(warps.blocks) if warps and warps.blocks is not None else None,
        tuple(scope.findings),
    )
