"""Every error a user can meet, and the diagnostics that the gates speak in.

    QimengError
    ├── SpecError        a request that makes no sense                       exit code 2
    ├── DiagnosticError  a TL text that a gate refuses, all findings at once  exit code 1
    ├── BuildError       NVRTC or the tool chain refused                     exit code 3
    ├── JudgeError       the judge could not reach a verdict                 exit code 3
    ├── LaunchError      a call that must not be launched                    exit code 2
    ├── BundleError      a bundle that is damaged or of another version      exit code 2
    ├── EnvironmentMissing  a library, GPU or folder that is not there       exit code 3
    └── JobError         a job of the MCP server that died or is not known   exit code 3

Each is one sentence of what is wrong and one of what to do. A verdict "rejected" is no error: it is exit code 1.

Not here: who prints them (cli.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A place in a TL text; lines and columns count from 1, `end_column` is exclusive."""

    line: int = 0
    column: int = 0
    end_column: int = 0


NOWHERE = Span()


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding of a gate, written for a person and for a model in a repair loop."""

    code: str  # stable, e.g. "TL204"
    message: str  # one sentence: what is wrong, expected and found
    hint: str  # one sentence: what to write instead
    span: Span = NOWHERE
    severity: str = "error"  # "error" or "warning"

    def to_json(self, file: str = "") -> dict[str, Any]:
        """Give the same fields as the text form."""
        return {
            "code": self.code,
            "severity": self.severity,
            "file": file,
            "line": self.span.line,
            "column": self.span.column,
            "message": self.message,
            "hint": self.hint,
        }

    def render(self, source: str = "", file: str = "<tl>") -> str:
        """Give the text form: place, message, the line with a caret, hint."""
        head = f"{file}:{self.span.line}:{self.span.column}: {self.severity} {self.code}: {self.message}"
        lines = source.expandtabs(4).split("\n")  # as the parser counts lines and columns
        if 1 <= self.span.line <= len(lines):
            width = max(1, self.span.end_column - self.span.column)
            head += f"\n    {lines[self.span.line - 1]}\n    {' ' * (self.span.column - 1)}{'^' * width}"
        return head + (f"\n  hint: {self.hint}" if self.hint else "")


class QimengError(Exception):
    """Base of all; `code` is stable, `exit_code` is what the command line returns."""

    exit_code = 3
    code = "Q000"

    def __init__(self, message: str, *, hint: str = "", **details: Any) -> None:
        """Keep the sentence, the way out, and fields for JSON."""
        super().__init__(message)
        self.message, self.hint, self.details = message, hint, details

    def to_json(self) -> dict[str, Any]:
        """Give the same fields as the text form."""
        return {"error": self.code, "message": self.message, "hint": self.hint, **self.details}

    def __str__(self) -> str:
        return self.message + (f"\n  hint: {self.hint}" if self.hint else "")


class SpecError(QimengError):
    """A request that makes no sense; details name `field`, `value`, `allowed`, `nearest`."""

    exit_code, code = 2, "Q100"


class DiagnosticError(QimengError):
    """A TL text with findings; all of them are in `diagnostics`."""

    exit_code, code = 1, "Q200"

    def __init__(self, diagnostics: list[Diagnostic], *, source: str = "", file: str = "<tl>") -> None:
        """Keep every finding with the text it speaks of."""
        self.diagnostics, self.source, self.file = diagnostics, source, file
        super().__init__(f"{len(diagnostics)} finding(s) in {file}")

    def to_json(self) -> dict[str, Any]:
        """Give all findings."""
        return {
            "error": self.code,
            "message": self.message,
            "hint": self.hint,
            "diagnostics": [d.to_json(self.file) for d in self.diagnostics],
        }

    def __str__(self) -> str:
        return "\n".join(d.render(self.source, self.file) for d in self.diagnostics)


class BuildError(QimengError):
    """NVRTC or the tool chain refused; `log` holds its words, `diagnostics` those mapped to TL lines."""

    exit_code, code = 3, "Q300"


class JudgeError(QimengError):
    """The judge could not reach a verdict."""

    exit_code, code = 3, "Q400"


class LaunchError(QimengError):
    """A call that must not be launched."""

    exit_code, code = 2, "Q500"


class BundleError(QimengError):
    """A bundle that is damaged, or was made by another version."""

    exit_code, code = 2, "Q600"


class EnvironmentMissing(QimengError):
    """A library, GPU or writable folder that is not there."""

    exit_code, code = 3, "Q700"


class JobError(QimengError):
    """A job of the MCP server that died, was cancelled, or is not known."""

    exit_code, code = 3, "Q800"
