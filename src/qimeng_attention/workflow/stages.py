"""The way from a request to a bundle, stage by stage: each takes the value before it and gives the next.

Not here: the order they run in and what is kept (generate.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qimeng_attention import targets
from qimeng_attention.author.planner import Plan, plan
from qimeng_attention.build import Built, Cache, build
from qimeng_attention.errors import SpecError
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.targets import Target
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from qimeng_attention.tl.types import Checked
from qimeng_attention.translate import Translation, translate
from qimeng_attention.workflow.present import detect

STAGES = ("spec", "sketch", "code", "scheduled", "cute", "cubin", "verdict", "bundle")


@dataclass(frozen=True)
class Handwritten:
    """A kernel in CUDA that came from no TL, with what a launcher must know of it."""

    name: str
    source: str
    threads: int
    shared_bytes: int  # dynamic shared memory of a block
    facts: dict[str, Any]  # grid and arguments, as in a bundle's manifest


@dataclass(frozen=True)
class Results:
    """What the stages have made so far; a stage fills in its own field."""

    target: Target
    arch: str  # what the cubin is built for
    spec: AttentionSpec | None = None
    sketch: str = ""
    code: str = ""
    reasons: dict[str, Any] | None = None
    kernels: tuple[Checked, ...] = ()  # those of the file, which run one behind the other
    scheduled: str = ""
    translations: tuple[Translation | Handwritten, ...] = ()
    builds: tuple[Built, ...] = ()
    verdict: Any = None

    @property
    def translation(self) -> Translation | Handwritten | None:
        """Give the first kernel in CuTe C++."""
        return self.translations[0] if self.translations else None

    @property
    def handwritten(self) -> bool:
        """Tell whether the kernel came from no TL."""
        return any(isinstance(t, Handwritten) for t in self.translations)

    @property
    def built(self) -> Built | None:
        """Give the first kernel's cubin."""
        return self.builds[0] if self.builds else None

    @property
    def source(self) -> str:
        """Give all kernels in CuTe C++."""
        return "\n".join(t.source for t in self.translations)


def find_target(name: str, arch: str | None = None) -> tuple[Target, str]:
    """Find a target by name, or the GPU that is present with `auto`, and the architecture to build for.

    Raises:
        SpecError: an unknown name or architecture.
        EnvironmentMissing: `auto` without a GPU.
    """
    target = detect() if name == "auto" else targets.get(name)
    built = arch or target.arch
    known = sorted({targets.get(n).arch for n in targets.names()} | {"sm_80", "sm_86", "sm_89", "sm_90"})
    if built not in known:
        raise SpecError(
            f"unknown architecture '{built}'",
            hint=f"take one of {', '.join(known)}",
            field="arch",
            value=built,
            allowed=known,
        )
    return target, built


def author(results: Results, spec: AttentionSpec) -> Results:
    """Write sketch and code for a specification."""
    made: Plan = plan(spec, results.target)
    return replace(results, spec=spec, sketch=made.sketch, code=made.code, reasons=made.to_json())


def with_author(results: Results, spec: AttentionSpec | None, sketch: str, reasons: dict[str, Any]) -> Results:
    """Add what is kept of a program that did not come from the planner."""
    return replace(results, spec=spec, sketch=sketch, reasons=reasons)


def check_code(results: Results) -> Results:
    """Check the code; only a checked program goes on."""
    return replace(results, kernels=tuple(check_text(results.code, target=results.target.name, file="code.tl")))


def apply_schedule(results: Results) -> Results:
    """Write the schedule's choices out as statements, and check the result."""
    program = schedule(parse(results.code, "code.tl"), target=results.target.name)
    text = print_program(program)
    kernels = check_text(text, target=results.target.name, file="scheduled.tl")
    return replace(results, scheduled=text, kernels=tuple(kernels))


def to_cute(results: Results) -> Results:
    """Translate scheduled TL to CuTe C++."""
    made = translate(parse(results.scheduled, "scheduled.tl"), target=results.target.name)
    return replace(results, translations=tuple(made))


def to_cubin(results: Results, cache: Cache | None = None) -> Results:
    """Compile the CuTe C++, each kernel by itself; one that came from no TL within a limit of time."""
    builds = [
        build(
            t.source,
            name=t.name,
            arch=results.arch,
            threads=t.threads,
            shared_bytes=t.shared_bytes,
            target=results.target,
            cache=cache,
            apart=isinstance(t, Handwritten),
        )
        for t in results.translations
    ]
    return replace(results, builds=tuple(builds))
