"""Results and errors as values with stable keys.

    {"ok": true, ...}                                                    what a tool found
    {"ok": false, "error": {"code", "message", "hint", "diagnostics", "details"}}    why it found nothing

Nothing escapes as a traceback; a fault of our own is a sentence with its place.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

from qimeng_attention.errors import DiagnosticError, EnvironmentMissing, QimengError
from qimeng_attention.integrations.mcp.hidden import cleaned

_MOST_LOG = 6_000  # characters of a compiler's words
_HINTS = {"Q200": "mend every finding where it stands, then check again"}


def success(fields: dict[str, Any]) -> dict[str, Any]:
    """Give what a tool found."""
    return {"ok": True, **_plain(fields)}


def failure(error: BaseException) -> dict[str, Any]:
    """Give why a tool found nothing."""
    return {"ok": False, "error": explained(error)}


def explained(error: BaseException) -> dict[str, Any]:
    """Give an error's code, sentence, way out, findings and details."""
    known = _known(error)
    fields = known.to_json()
    found = fields.pop("diagnostics", None) or []
    code, message, hint = (str(fields.pop(name)) for name in ("error", "message", "hint"))
    fields = {n: v[-_MOST_LOG:] if isinstance(v, str) else v for n, v in fields.items()}
    found = [d if isinstance(d, dict) else {"message": str(d)} for d in found]
    if isinstance(known, DiagnosticError):
        found = [{**d, "text": _line(known.source, d["line"])} for d in found]
    answer = {"code": code, "message": message, "hint": hint or _HINTS.get(code, ""), "diagnostics": found}
    plain: dict[str, Any] = _plain({**answer, "details": fields})
    return plain


def _line(source: str, number: int) -> str:
    """Give a line as the parser counts them: an agent may not have the text, where a stage wrote it."""
    lines = source.expandtabs(4).split("\n")
    return lines[number - 1] if 1 <= number <= len(lines) else ""


def _known(error: BaseException) -> QimengError:
    if isinstance(error, QimengError):
        return error
    if isinstance(error, OSError | MemoryError):
        return EnvironmentMissing(
            f"{type(error).__name__}: {error}", hint="check the path, its rights, the space and the memory left"
        )
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
    return QimengError(
        f"internal error at {where}: {type(error).__name__}: {error}", hint="please report it with the input"
    )


def _plain(value: dict[str, Any]) -> Any:
    """Give a value as JSON holds it: no infinity, no type of our own, nothing hidden."""
    return cleaned(json.loads(json.dumps(value, default=str), parse_constant=str))
