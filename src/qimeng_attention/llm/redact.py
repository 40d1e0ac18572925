"""Take secrets out of a text before it is kept.

A secret is the value of an environment variable whose name says so, or has the shape of a key. What is taken out is
replaced by the variable's name, so that a reader sees what stood there.

Not here: what is kept (transcript.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?(_|$)|(^|_)AUTH(_|$)", re.IGNORECASE)
LEAST_LENGTH = 8  # a shorter value ("1", "true") is a setting, and would be found everywhere
SHAPES = (
    re.compile(r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}"),  # OpenAI, Anthropic, DeepSeek
    re.compile(r"(?<=Bearer )[A-Za-z0-9._~+/-]{8,}=*"),
)


def redactor(environ: Mapping[str, str] | None = None) -> Callable[[Any], Any]:
    """Give a function that takes secrets out of strings, however deep in lists and dictionaries they are."""
    found = os.environ if environ is None else environ
    values = [(v.strip(), name) for name, v in found.items() if NAMES.search(name) and len(v.strip()) >= LEAST_LENGTH]
    escaped = [(json.dumps(value)[1:-1], name) for value, name in values]  # as it stands in a provider's raw answer
    secrets = sorted({*values, *escaped}, key=lambda pair: (-len(pair[0]), pair))  # one may be a part of another

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            for secret, name in secrets:
                value = value.replace(secret, f"[{name}]")
            for shape in SHAPES:
                value = shape.sub("[key]", value)
            return value
        if isinstance(value, Mapping):
            return {clean(k): clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        return value

    return clean
