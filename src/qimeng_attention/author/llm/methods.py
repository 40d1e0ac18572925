"""Methods of writing a kernel with a model, as data: which prompts, in which order, and what an answer holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qimeng_attention.errors import SpecError

Stage = Literal["sketch", "code"]
Language = Literal["TL", "CUDA"]


@dataclass(frozen=True, slots=True)
class Method:
    """One way from an operator to a kernel."""

    name: str
    stages: tuple[Stage, ...]  # an answer each; those after the first see the answer before
    doc: str
    language: Language = "TL"  # of the answer that should hold a kernel
    steps: bool = False  # the prompt asks to think step by step

    @property
    def fence(self) -> str:
        """Give the word behind the fence of the answer's block."""
        return self.language.lower()


METHODS = {
    m.name: m
    for m in (
        Method("two-stage", ("sketch", "code"), "A sketch first, then every parameter: the paper's method."),
        Method("one-stage", ("code",), "TL code at once, with the rules of both stages in one prompt."),
        Method("vanilla", ("code",), "CUDA against the launcher's signature, without TL.", "CUDA"),
        Method("cot", ("code",), "CUDA as well, after thinking step by step.", "CUDA", steps=True),
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
