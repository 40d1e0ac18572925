"""A request that is a function: a model says what it computes, and the function itself is asked whether that is so.

The source is what is asked for, and stands in the first prompt alone: what comes after it is written from what was
understood. A description is compared with the function on sampled inputs, an operator's interface by calling it on
small shapes; where they differ the model is told, and says again what it takes the function for.

Not here: words (request.py), opening functions (judge/reference_process.py), what becomes of the answer (modelled.py).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_attention.author.llm import render, understanding
from qimeng_attention.author.llm.quoting import in_a_line
from qimeng_attention.author.llm.understanding import NotUnderstood, Understood
from qimeng_attention.errors import JudgeError, SpecError
from qimeng_attention.judge import OwnFunction, Reference, agree, open_reference
from qimeng_attention.judge.user_function import Asked
from qimeng_attention.llm.chat import Client, Message, Request
from qimeng_attention.named_tensors import kernel_name, own_sizes
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.numerics import INTEGER_TYPES, Array
from qimeng_attention.workflow import feedback
from qimeng_attention.workflow.request import TRIES, readable

_SMALL = ({"B": 1, "Sq": 3, "Sk": 5}, {"B": 2, "Sq": 6, "Sk": 4})  # calls that show an interface
_OWN_SIZE = 4  # of a dimension that only a named tensor has
# What is the function's own fault, whatever is said of it.
_NO_FAULT_OF_WORDS = re.compile(
    r" (gives other numbers when|exits the process|ends its process|gives nothing within|needs more memory"
    r"|changes its input|takes \w+ by its place|answers something)"
)


@dataclass(frozen=True)
class FunctionAsked:
    """A function that is asked for: its place, what it takes, and the fields that whoever asks has fixed."""

    place: str  # FILE.py:FUNCTION
    framework: str = "auto"
    fixed: Mapping[str, Any] = field(default_factory=dict)  # fields of the description: Hq, Dqk, dtype ...

    @property
    def words(self) -> str:
        """Name the request."""
        file, _, name = self.place.rpartition(":")
        return f"the operator that the function {name} of {Path(file).name} computes"


def understand_function(asked: FunctionAsked, client: Client, number: int = 0) -> Understood:
    """Ask a model what a function computes, until the function agrees.

    Args:
        asked: the function.
        client: who answers.
        number: of the sample.

    Raises:
        SpecError: no such file or function, one that takes no q, k and v, or nothing that could be made.
        JudgeError: the function does something wrong, or differs from what three answers took it for.
        NotUnderstood: three answers were no description.
        ClientFault: no answer came.
    """
    source = _source(asked)
    with open_reference(asked.place, asked.framework) as function:
        _require_arrays(function)
        shown = understanding.Source(function.__name__, source, tuple(function.__signature__.parameters), asked.fixed)
        messages: tuple[Message, ...] = (Message("user", understanding.prompt_of_function(shown)),)
        for left in range(TRIES - 1, -1, -1):
            reply = client.complete(Request(messages, "understand", number))
            try:
                found = readable(understanding.understood(reply.text, asked.words, asked.fixed))
                _compare(found, function)
            except (NotUnderstood, JudgeError) as fault:
                if not left or _NO_FAULT_OF_WORDS.search(fault.message):
                    raise
                message, _, hint = feedback.of_error(fault, "").partition("\nhint: ")
                again = render.template("again", {"message": in_a_line(message), "hint": in_a_line(hint)})
                messages = (*messages, Message("assistant", reply.text), Message("user", again))
            else:
                return found
    raise AssertionError("the loop returns or raises")


def _source(asked: FunctionAsked) -> str:
    """Read the file.

    Raises:
        SpecError: it is not there, is no text, or is longer than a prompt takes.
    """
    file = Path(asked.place.rpartition(":")[0])
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"cannot read {file}: {type(error).__name__}",
            hint="name a function as FILE.py:FUNCTION",
            field="function",
            value=asked.place,
        ) from None
    if len(text) > understanding.MOST_WORDS:
        raise SpecError(
            f"{file.name} has over {understanding.MOST_WORDS:,} characters",
            hint="put the function and what it calls into a file of their own",
            field="function",
            value=asked.place,
        )
    return text


def _require_arrays(function: Reference) -> None:
    parameters = function.__signature__.parameters
    missing = [n for n in ("q", "k", "v") if n not in parameters and n.upper() not in parameters]
    if missing and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise SpecError(
            f"{function.__name__} takes ({', '.join(parameters)}), and no {' and no '.join(missing)}",
            hint="let it take q (B, Sq, Hq, Dqk), k (B, Sk, Hk, Dqk) and v (B, Sk, Hk, Dv) by these names",
            field="function",
            value=function.__name__,
        )


# ------------------------------------------------------------------ is it so?
def _compare(found: Understood, function: Reference) -> None:
    """Ask the function whether it is what it was taken for.

    Raises:
        JudgeError: it is not.
    """
    if found.beyond:
        call_small(function, found.spec)
    else:
        agree(OwnFunction(function, found.spec), seed=secrets.randbits(32))


def call_small(function: Reference, spec: AttentionSpec) -> None:
    """Call a function on small shapes of an operator's interface, and look at what it gives.

    Raises:
        JudgeError: it asks for what the interface does not have, raises, or gives other outputs.
    """
    asked = Asked(function)
    for sizes in _SMALL:
        given, outputs = small_call(spec, sizes)
        place = " ".join(f"{name}={value}" for name, value in sizes.items())
        asked.call(given, outputs, place)


def small_call(
    spec: AttentionSpec, sizes: Mapping[str, int], draw: int = 0
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Give what a function is called with under a program's names, and the shapes of the outputs."""
    random = np.random.default_rng(draw)
    known = {"Hq": spec.Hq, "Hk": spec.Hk, **sizes, **dict.fromkeys(own_sizes(spec.tensors), _OWN_SIZE)}
    B, Sq, Sk = (known[n] for n in ("B", "Sq", "Sk"))
    given: dict[str, Any] = {
        "Q": random.standard_normal((B, Sq, spec.Hq, spec.Dqk)),
        "K": random.standard_normal((B, Sk, spec.Hk, spec.Dqk)),
        "V": random.standard_normal((B, Sk, spec.Hk, spec.Dv)),
    }
    for name, tensor in spec.tensors.items():
        shape = tuple(d if isinstance(d, int) else known[d] for d in tensor.dims)
        given[kernel_name(name)] = _drawn(random, shape, tensor.dtype)
    head_dims = {"D": spec.Dqk} if spec.Dqk == spec.Dv else {"D": spec.Dqk, "Dv": spec.Dv}
    given |= {**known, **head_dims, "scale": spec.default_scale}
    outputs: dict[str, tuple[int, ...]] = {"Out": (B, Sq, spec.Hq, spec.Dv)}
    outputs |= {"Lse": (B, spec.Hq, Sq)} if "LSE" in spec.outputs else {}
    return given, outputs


def _drawn(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    if dtype == "bool":
        return random.random(shape) < 0.5
    if dtype in INTEGER_TYPES:
        return random.integers(0, 2, shape)
    return random.standard_normal(shape)
