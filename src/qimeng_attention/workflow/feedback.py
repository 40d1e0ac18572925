"""What a model is told of a gate's findings: all of a diagnostic, and of a verdict no value that was expected.

A judge that told expected values would teach a program to give them. It names the case, the output, the worst element
and by how much its bound was missed; non-finite values are named, since they say what went wrong.
"""

from __future__ import annotations

import re
from collections import Counter

from qimeng_attention.build import CompileError
from qimeng_attention.errors import Diagnostic, DiagnosticError, JudgeError, QimengError
from qimeng_attention.judge import Verdict
from qimeng_attention.judge.rule import without_values

SCHEDULED = "scheduled.tl"  # a program behind its schedule, as stages name it
_MOST_CASES = 6
_MOST_DIAGNOSTICS = 8
_RAISED = re.compile(r"( raises \w+): .*?( \([^()]*\))?$", re.DOTALL)
_ELEMENT = re.compile(r"\[([\d, ]*)\] is (\S+?)[, ]")


def of_error(error: QimengError, source: str) -> str:
    """Write an error for a model: every finding with its line, or the sentence and the way out."""
    if isinstance(error, DiagnosticError):
        # behind the schedule the lines are others: a finding of there is shown with the line that it speaks of
        behind = error.file == SCHEDULED and bool(error.source)
        text, file = (error.source, SCHEDULED) if behind else (source, "code.tl")
        shown = [d.render(text, file) for d in error.diagnostics[:_MOST_DIAGNOSTICS]]
        more = len(error.diagnostics) - len(shown)
        said = [f"({SCHEDULED} is the program with its schedule written out.)"] if behind else []
        return "\n".join([*said, *shown, *([f"and {more} more"] if more > 0 else [])])
    if isinstance(error, CompileError) and error.diagnostics:
        return "\n".join(
            ["NVRTC refused the source:", *(_of_compiler(d) for d in error.diagnostics[:_MOST_DIAGNOSTICS])]
        )
    message = error.message
    if isinstance(error, JudgeError):
        # SAFETY: the words of an exception are the reference's: they may tell values that it expects, or anything.
        message = _RAISED.sub(r"\1\2", message)
    return message + (f"\nhint: {error.hint}" if error.hint else "")


def _of_compiler(found: Diagnostic) -> str:
    """Write an error of the compiler: its words, and the line of the source that it belongs to."""
    return f"- {found.message}\n    {found.hint.removeprefix('see ')}"


def codes_of(error: QimengError) -> tuple[str, ...]:
    """Give the codes of an error's findings, for the statistics of failures."""
    if isinstance(error, DiagnosticError):
        return tuple(dict.fromkeys(d.code for d in error.diagnostics))
    return (error.code,)


def of_verdict(verdict: Verdict) -> str:
    """Write a verdict for a model: what failed where, and what held; no expected value."""
    failed = [c for c in verdict.checks if not c.passed]
    properties = [p for p in verdict.properties if p.applies and not p.passed]
    lines = [f"{len(failed)} of {len(verdict.checks)} comparisons with a float64 reference failed."] if failed else []
    worst = sorted(failed, key=lambda c: -c.worst_error if c.worst_error == c.worst_error else float("-inf"))
    for check in worst[:_MOST_CASES]:
        if check.diagnostics:
            lines += [f"- {check.case}: the interpreter stopped: {d['message']}" for d in check.diagnostics[:1]]
            continue
        if not check.output:  # it gave none: a launch that failed, or one that wrote where it must not
            lines.append(f"- {check.case}: {without_values(check.reason)}")
            continue
        element = _ELEMENT.search(check.reason)
        at = f" at {check.output}[{element[1]}]" if element else ""
        value = f", which is {element[2]}" if element and element[2].lstrip("-") in ("nan", "inf") else ""
        lines.append(
            f"- {check.case}: {check.output}{at}{value}: error {check.worst_error:.3g}, allowed {check.bound:.3g}"
        )
    held = [c.case for c in verdict.checks if c.passed]
    if failed and held:
        lines.append(f"It held in {len(held)}, for example in {'; '.join(dict.fromkeys(held[:3]))}.")
    lines += [f"- property {p.name}: error {p.worst_error:.3g}, allowed {p.bound:.3g}" for p in properties]
    if pattern := _pattern(verdict):
        lines.append(pattern)
    return "\n".join(lines) or f"{verdict.verdict}: {without_values(verdict.reason)}"


def _pattern(verdict: Verdict) -> str:
    """Say what all failures share and no success has: kinds of input, or lengths."""
    outcome: dict[str, Counter[bool]] = {}
    for check in verdict.checks:
        family = check.case.split(",")[0]
        outcome.setdefault(f"inputs '{family}'", Counter())[check.passed] += 1
        sizes = dict(re.findall(r"(\w+)=(\d+)", check.case))
        if {"Sq", "Sk"} <= sizes.keys():
            q, k = int(sizes["Sq"]), int(sizes["Sk"])
            relation = "more queries than keys" if q > k else "fewer queries than keys" if q < k else "Sq = Sk"
            outcome.setdefault(relation, Counter())[check.passed] += 1
    always = [name for name, count in outcome.items() if count[False] and not count[True]]
    never = [name for name, count in outcome.items() if count[True] and not count[False]]
    if not always or not never:
        return ""
    return f"Every comparison failed with {', '.join(always)}; none with {', '.join(never)}."
