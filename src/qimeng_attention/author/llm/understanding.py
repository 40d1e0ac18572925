"""Words to a description: what a model is asked, and what its answer must be.

The answer is data of a form that is checked field by field; it is shown to the person who asked, and confirmed, before
anything is made of it. What no description can say stays words, with sizes and the model's own formulas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic_core import PydanticUndefined

from qimeng_attention import targets
from qimeng_attention.author.llm import render
from qimeng_attention.author.llm.answers import NoProgram, clean, program_of
from qimeng_attention.author.llm.quoting import as_data, fence_of
from qimeng_attention.errors import QimengError, SpecError
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.weights import WEIGHTS

MOST_WORDS = 20_000  # characters
_KINDS = ("spec", "operator", "refused")
_KEYS = {"kind", "target", "spec", "meaning", "why"}
_FACE = {"name", "Hq", "Hk", "Dqk", "Dv", "dtype", "tensors", "outputs"}


class NotUnderstood(QimengError):
    """An answer that is no description; what is wrong with it is told to the model."""

    exit_code = 1
    code = "LM310"


@dataclass(frozen=True, slots=True)
class Understood:
    """What a request in words was taken to mean."""

    words: str
    spec: AttentionSpec  # for `beyond` its sizes, types and tensors alone
    target: str | None
    why: str  # what was assumed
    beyond: bool = False  # no description can say what is computed: `meaning` does
    meaning: str = ""


def prompt(words: str) -> str:
    """Ask what words mean.

    Raises:
        SpecError: no words, or too many.
    """
    words = clean(words).strip()
    if not words or len(words) > MOST_WORDS:
        raise SpecError(
            "there are no words" if not words else f"the request has over {MOST_WORDS:,} characters",
            hint="say in a few sentences what the kernel should compute, for which heads, head dim, type and GPU",
            field="request",
            value=words[:60],
        )
    return render.template("understand", {"words": as_data(words), "source": None, **_known()})


@dataclass(frozen=True, slots=True)
class Source:
    """A function that is asked for: its name, the text of its file, what it takes, and fields that are fixed."""

    name: str
    text: str
    parameters: tuple[str, ...]
    fixed: Mapping[str, Any]


def prompt_of_function(source: Source) -> str:
    """Ask what a function computes; its text is data, in a fence that it cannot close."""
    shown = {
        "name": source.name,
        "text": clean(source.text).strip("\n"),
        "marks": fence_of(source.text),
        "parameters": source.parameters,
        "fixed": {name: json.dumps(value) for name, value in source.fixed.items()},
    }
    return render.template("understand", {"words": "", "source": shown, **_known()})


def _known() -> dict[str, Any]:
    """Give what a prompt says of descriptions."""
    left_out = {"name", "B", "Sq", "Sk", "scale_sign"}
    fields = [
        (name, field.description, _default(field.default))
        for name, field in AttentionSpec.model_fields.items()
        if name not in left_out
    ]
    return {"fields": fields, "weights": list(WEIGHTS), "targets": targets.names()}


def _default(value: Any) -> str:
    return "" if value in (None, PydanticUndefined, "") or value is False else str(value)


def understood(answer: str, words: str, fixed: Mapping[str, Any] | None = None) -> Understood:
    """Read an answer; fields that are `fixed` are those of whoever asks, whatever it says.

    Raises:
        NotUnderstood: it is not of the form that was asked for; ask again with its words.
        SpecError: the model says that this cannot be made; the sentence is its own, marked as such.
    """
    data = _data(answer)
    why = clean(str(data.get("why") or "")).strip()
    if data["kind"] == "refused":
        raise SpecError(
            f"the model takes this for a request that cannot be made: {why or 'it gave no reason'}",
            hint="ask for the forward pass of an attention operator; without dropout",
            field="request",
            value=words[:200],
        )
    beyond = data["kind"] == "operator"
    meaning = clean(str(data.get("meaning") or "")).strip()
    if beyond and not meaning:
        raise NotUnderstood("kind is operator, and there is no `meaning`", hint="write the formulas of one row there")
    return Understood(words, _spec(data, beyond, fixed or {}), _target(data), why, beyond, meaning if beyond else "")


class _Plain(yaml.SafeLoader):
    """Reads YAML without aliases: a few lines of them stand for more text than a machine holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias, *name")
        return super().compose_node(parent, index)


def _data(answer: str) -> dict[str, Any]:
    try:
        block = program_of(answer, "yaml")
        if len(block) > MOST_WORDS:
            raise NotUnderstood(f"the block has over {MOST_WORDS:,} characters", hint="give the keys alone")
        data = yaml.load(block, _Plain)
    except NoProgram as none:
        raise NotUnderstood(none.message, hint="give one block fenced by ```yaml") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise NotUnderstood(f"the block is no YAML: {first}", hint="quote expressions") from None
    if not isinstance(data, dict) or data.get("kind") not in _KINDS:
        raise NotUnderstood("the block has no key `kind` of " + ", ".join(_KINDS), hint="begin with kind: spec")
    if unknown := sorted(map(str, data.keys() - _KEYS)):
        raise NotUnderstood(f"unknown keys {', '.join(unknown)}", hint=f"use {', '.join(sorted(_KEYS))}")
    return data


def _spec(data: dict[str, Any], beyond: bool, fixed: Mapping[str, Any]) -> AttentionSpec:
    fields = data.get("spec") or {}
    if not isinstance(fields, dict):
        raise NotUnderstood("`spec` is no mapping", hint="write fields below it, indented")
    if beyond and (more := sorted(map(str, fields.keys() - _FACE))):
        raise NotUnderstood(f"for an operator, `spec` has no {', '.join(more)}", hint="say it in `meaning`")
    try:
        return AttentionSpec.make(**{str(k): v for k, v in fields.items()} | dict(fixed))
    except SpecError as error:
        raise NotUnderstood(f"spec: {error.message}", hint=error.hint) from None


def _target(data: dict[str, Any]) -> str | None:
    name = data.get("target")
    if name is None:
        return None
    try:
        return targets.get(str(name)).name
    except SpecError as error:
        raise NotUnderstood(f"target: {error.message}", hint=error.hint) from None
