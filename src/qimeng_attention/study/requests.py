"""The requests of a study: words, the facts that words must fix, and a reference written by hand.

A request is a folder with `request.yaml` and `reference.py`, whose function `attention` takes the tensors and scalars
of a program by name and is what `qimeng judge FILE.tl --reference` takes.

Not here: who answers a request, and how an answer is judged (workflow/).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qimeng_attention.errors import SpecError

Stratum = Literal["known", "unseen"]
REFERENCE, FUNCTION = "reference.py", "attention"


class Named(BaseModel):
    """A tensor that the operator reads besides Q, K and V."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dims: list[str]
    dtype: str


class StudyRequest(BaseModel):
    """One request; `unseen` means that no program, page, example or prompt holds its operator."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    stratum: Stratum
    round: Literal[1, 2]
    words: str
    target: str
    dtype: Literal["bf16", "fp16"]
    heads: dict[Literal["Hq", "Hk"], int]
    head_dims: dict[Literal["Dqk", "Dv"], int]
    outputs: list[Literal["O", "LSE"]]
    tensors: dict[str, Named] = Field(default_factory=dict)
    new: Literal["", "mask", "score", "epilogue", "recurrence", "second accumulator"] = ""
    phrases: list[str] = Field(default_factory=list)  # that must stand nowhere else
    folder: Path = Field(default=Path(), exclude=True)

    @property
    def reference(self) -> str:
        """Name the reference as the judge takes it."""
        return f"{self.folder / REFERENCE}:{FUNCTION}"

    def declarations(self) -> list[str]:
        """Give the tensors and the scalar that the reference asks for and gives, as a program declares them.

        Sizes without a number are arguments of each call; the words say what they mean.
        """
        dqk, dv = self.head_dims["Dqk"], self.head_dims["Dv"]
        last = "D" if dqk == dv else "Dv"
        sizes = f"Size D = {dqk}" if dqk == dv else f"Size D = {dqk}, Dv = {dv}"
        found = ["Size B, Sq, Sk, Hq, Hk", sizes, "Scalar scale f32 > 0"]
        found += [
            f"Allocate Q in global (B, Sq, Hq, D) {self.dtype}",
            f"Allocate K in global (B, Sk, Hk, D) {self.dtype}",
        ]
        found += [f"Allocate V in global (B, Sk, Hk, {last}) {self.dtype}"]
        found += [f"Allocate {n} in global ({', '.join(t.dims)}) {t.dtype}" for n, t in self.tensors.items()]
        found += [f"Allocate Out in global (B, Sq, Hq, {last}) {self.dtype}"]
        return [*found, "Allocate Lse in global (B, Hq, Sq) f32"] if "LSE" in self.outputs else found


def load_request(folder: Path) -> StudyRequest:
    """Read one request.

    Raises:
        SpecError: a file is missing, or a field is.
    """
    path = folder / "request.yaml"
    try:
        fields: Any = yaml.safe_load(path.read_text("utf-8"))
        found = StudyRequest.model_validate({**fields, "folder": folder})
    except (OSError, TypeError, yaml.YAMLError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(
            f"{path} is no request: {reason}", hint="compare it with its neighbours", field="file"
        ) from None
    if not (folder / REFERENCE).is_file():
        raise SpecError(f"{folder} has no {REFERENCE}", hint=f"write `{FUNCTION}` in it", field="reference")
    if found.name != folder.name:
        raise SpecError(f"{path} is called {found.name}", hint=f"call it {folder.name}", field="name")
    return found


def load_requests(
    folder: Path, *, stratum: Stratum | None = None, rounds: tuple[int, ...] = (1, 2)
) -> list[StudyRequest]:
    """Read the requests of a folder, by name.

    Raises:
        SpecError: there is none, or one of them is broken.
    """
    places = sorted(p.parent for p in folder.glob("*/request.yaml"))
    found = [load_request(p) for p in places]
    found = [r for r in found if (stratum is None or r.stratum == stratum) and r.round in rounds]
    if not found:
        raise SpecError(
            f"{folder} holds no such request", hint="name a folder of folders with request.yaml", field="folder"
        )
    return found
