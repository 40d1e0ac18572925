"""Prompts from their templates: files in prompts/, and before them those in the folder that QIMENG_PROMPTS_DIR names.

What a model is told of the language comes from the tables of statements, functions and rewritings: a prompt cannot say
what the language does not. A prompt holds lines and rules, and no program.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined

from qimeng_attention.author.llm import cute
from qimeng_attention.author.llm.answers import clean
from qimeng_attention.author.llm.launch import signature
from qimeng_attention.author.llm.quoting import as_data, fence_of, in_a_line, shortened
from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.targets import Target
from qimeng_attention.tl import functions
from qimeng_attention.tl.statements import TABLE

OWN_PROMPTS = "QIMENG_PROMPTS_DIR"  # a folder of the user's, whose templates win
_PLAIN = ("ring", "prefetch", "store", "copies", "guard", "split", "carry", "warps", "grid")
# What blocks whose warps all do the same take on each kind of GPU, and what blocks of roles take.
_WARPS = (
    "approximate",
    "ring",
    "prefetch",
    "hold",
    "sums",
    "store",
    "copies",
    "guard",
    "unroll",
    "warps",
    "skip",
    "grid",
)
_CARRIED = ("approximate", "carry", "hold", "sums", "store", "guard", "unroll", "warps", "skip", "grid")
_ROLES = (
    *("approximate", "ring", "sums", "threshold", "guard", "roles", "ahead", "overlap", "rescale", "unswitch"),
    *("pingpong", "stage", "skip", "grid", "group"),
)
_NOT_WRITTEN = {"exp2_fma", "tanh_approx", "LaneSum"}  # what rewritings put for others


class Rewriting(Protocol):
    """What a prompt says of one line of a schedule."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def example(self) -> str: ...  # noqa: D102
    @property
    def doc(self) -> str: ...  # noqa: D102


@cache
def _environment(folder: Path | None) -> Environment:
    package = PackageLoader("qimeng_attention.author.llm", "prompts")
    loader = ChoiceLoader([FileSystemLoader(folder), package]) if folder else package
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)


def template(name: str, values: Mapping[str, Any]) -> str:
    """Fill in one template; a name that it uses and nobody gives is an error."""
    folder = Path(own) if (own := os.environ.get(OWN_PROMPTS)) else None
    return _environment(folder).get_template(f"{name}.j2").render(**values).strip() + "\n"


def language(target: Target) -> str:
    """Describe TL code: statements, rules, functions."""
    known = [f for f in functions.FUNCTIONS if f not in _NOT_WRITTEN]
    return template(
        "language",
        {
            "target": target.name.lower(),
            "statements": list(TABLE.values()),
            "functions": known,
            "constants": list(functions.CONSTANTS),
        },
    )


def facts(target: Target) -> str:
    """Describe the GPU, and which tiles fit it."""
    small = target.shared_per_block_bytes < 100 << 10
    return template("target", {"target": target, "rows": 64 if small else 128, "columns": 32 if small else 64})


def schedule(target: Target, rewritings: Sequence[Rewriting]) -> str:
    """Describe the lines of a schedule that programs without roles take on this GPU."""
    carried = "async copy" not in target.capabilities
    left_out = {"copies", "ring", "prefetch"} if carried else {"carry"}
    names = [n for n in _PLAIN if n not in left_out]
    chosen = [r for r in rewritings if r.name in names]
    advice = (
        "A good start: carry, store, guard, warps and grid as above."
        if carried
        else "A good start: ring with 1 stage each, prefetch, store, copies, guard, warps and grid as above."
    )
    advice += " `guard` needs a Mask in the loop. The names K, V, O, Q, i in them are those of your program."
    return template("schedule", {"rewritings": chosen, "advice": advice})


def sketch_prompt(wanted: Wanted) -> str:
    """Ask for a sketch."""
    known = [f for f in functions.FUNCTIONS if f not in _NOT_WRITTEN and not f.startswith("Row")]
    return template("sketch", {"request": as_data(wanted.words), "functions": known, "dtype": wanted.dtype})


def code_prompt(wanted: Wanted, target: Target, rewritings: Sequence[Rewriting], sketch: str, finding: str = "") -> str:
    """Ask for TL code; with a sketch to complete, or without one for all at once.

    `finding` is what the parser says of a sketch that is no TL.
    """
    finding = shortened(finding)
    return template(
        "code",
        {
            "request": as_data(wanted.words),
            "interface": wanted.interface(),
            "sketch": clean(sketch),
            "marks": fence_of(sketch),
            "finding": finding,
            "finding_marks": fence_of(finding),
            "language": language(target),
            "facts": facts(target),
            "schedule": schedule(target, rewritings),
        },
    )


def cuda_prompt(wanted: Wanted, target: Target, *, steps: bool = False) -> str:
    """Ask for CUDA against the launcher's signature; with `steps`, to think step by step before."""
    facts = {"request": as_data(wanted.words.strip()), "signature": signature(wanted), "target": target, "steps": steps}
    return template("vanilla", facts)


def atoms_prompt(wanted: Wanted, target: Target, arch: str, code: str) -> str:
    """Ask which of the GPU's instructions a program in TL should take."""
    mma, copies = cute.atom_lines(target, arch, wanted.dtype)
    asynchronous = target.has("async copy")
    facts = {"mma": mma, "copies": copies, "asynchronous": asynchronous, "dtype": wanted.dtype}
    return template("atoms", {"target": target, "code": code, **facts})


def translation_prompt(wanted: Wanted, target: Target, arch: str, code: str, atoms: str) -> str:
    """Ask for CUDA that does what a program in TL says, by the instructions chosen for it."""
    facts = {"request": as_data(wanted.words.strip()), "signature": signature(wanted), "target": target}
    mma, _ = cute.atom_lines(target, arch, wanted.dtype)
    said = {"code": code, "atoms": atoms, "mma": mma, "terms": cute.terms(target, wanted.dtype)}
    return template("translate", facts | said)


def repair_prompt(gate: str, findings: str, fence: str = "tl") -> str:
    """Tell what a gate found, and ask for the whole again."""
    told = in_a_line(findings) if gate == "answer" else shortened(findings)
    return template("repair", {"gate": gate, "findings": told, "fence": fence, "marks": fence_of(told)})


def improve_prompt(facts: Mapping[str, Any], target: Target, rewritings: Sequence[Rewriting], *, roles: bool) -> str:
    """Ask for other tiles and another schedule.

    Args:
        facts: what the template says of program, measurements, kernels and history.
        target: the GPU.
        rewritings: all of them; those that the target has are told.
        roles: the program's kernels all have roles: what others take is left out.
    """
    groups = "wgmma" in target.capabilities
    plain = not groups or not roles
    warps = _WARPS if "async copy" in target.capabilities else _CARRIED
    names = {*(_ROLES if groups else ()), *(warps if plain else ())}
    chosen = [r for r in rewritings if r.name in names]
    return template("improve", {**facts, "target": target, "rewritings": chosen, "groups": groups, "plain": plain})
