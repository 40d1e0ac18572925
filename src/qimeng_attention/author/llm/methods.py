"""Methods of writing a kernel with a model, as data: which prompts, in which order, and what an answer holds."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from qimeng_attention.errors import SpecError

Language = Literal["TL", "CUDA"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One prompt and its answer; gates look at an answer that is a whole program, and repairs are asked for there."""

    name: Literal["sketch", "code", "atoms", "translation"]
    language: Language = "TL"

    @property
    def whole(self) -> bool:
        """Tell whether the answer is a program: a sketch and a choice of instructions are passed on unjudged."""
        return self.name in ("code", "translation")

    @property
    def fence(self) -> str:
        """Give the word behind the fence of the answer's block."""
        return self.language.lower()


SKETCH, CODE = Stage("sketch"), Stage("code")
ATOMS, TRANSLATION = Stage("atoms", "CUDA"), Stage("translation", "CUDA")
IN_CUDA = Stage("code", "CUDA")


@dataclass(frozen=True, slots=True)
class Method:
    """One way from an operator to a kernel."""

    name: str
    stages: tuple[Stage, ...]  # an answer each; those after the first see what came of the ones before
    doc: str
    steps: bool = False  # the prompt asks to think step by step

    @property
    def language(self) -> Language:
        """Give what the kernel is written in."""
        return self.stages[-1].language

    @property
    def parts(self) -> list[tuple[Stage, ...]]:
        """Give the stages up to each whole program: one conversation ends with it, and its repairs."""
        ends = [0, *(n + 1 for n, stage in enumerate(self.stages) if stage.whole)]
        return [self.stages[a:b] for a, b in pairwise(ends)]


METHODS = {
    m.name: m
    for m in (
        Method("two-stage", (SKETCH, CODE), "A sketch first, then every parameter: the paper's method."),
        Method("one-stage", (CODE,), "TL code at once, with the rules of both stages in one prompt."),
        Method("vanilla", (IN_CUDA,), "CUDA against the launcher's signature, without TL."),
        Method("cot", (IN_CUDA,), "CUDA as well, after thinking step by step.", steps=True),
        Method(
            "translated",
            (SKETCH, CODE, ATOMS, TRANSLATION),
            "TL as in two-stage, then the GPU's instructions for it, then CUDA: the model translates, no compiler.",
        ),
    )
}


def method(name: str) -> Method:
    """Find a method by name.

    Raises:
        SpecError: an unknown name.
    """
    if name not in METHODS:
        raise SpecError(
            f"unknown method '{name}'",
            hint=f"take one of {', '.join(METHODS)}",
            field="method",
            value=name,
            allowed=list(METHODS),
        )
    return METHODS[name]
