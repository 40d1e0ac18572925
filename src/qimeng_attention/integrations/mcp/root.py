"""The one folder that tools read and write in, and whether a user's functions may be run.

Not here: what is written there (work.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qimeng_attention.errors import EnvironmentMissing, SpecError


@dataclass(frozen=True, slots=True)
class Root:
    """What the server was started with."""

    folder: Path  # absolute, without links
    allow_references: bool = False

    @classmethod
    def of(cls, folder: str | Path, allow_references: bool = False) -> Root:
        """Open a folder.

        Raises:
            EnvironmentMissing: there is none.
        """
        try:
            found = Path(folder).resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise EnvironmentMissing(
                f"{folder} cannot be opened: {type(error).__name__}", hint="name a folder that is there: --root DIR"
            ) from None
        if not found.is_dir():
            raise EnvironmentMissing(f"{folder} is no folder", hint="name a folder that is there: --root DIR")
        return cls(found, allow_references)

    def inside(self, path: str, field: str) -> Path:
        """Give a path below the folder; links are followed first.

        Raises:
            SpecError: it leaves the folder, or is the folder itself.
        """
        try:
            found = (self.folder / path).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise SpecError(
                f"{field} cannot be followed: {type(error).__name__}", hint="name a path without loops", field=field
            ) from None
        if found == self.folder or not found.is_relative_to(self.folder):
            raise SpecError(
                f"{field} = {path!r} is not below the folder that the server works in",
                hint=f"name a path below {self.folder}, or start the server with another --root",
                field=field,
                value=path,
            )
        return found

    def relative(self, path: Path) -> str:
        """Give a path as tools take it."""
        return str(path.resolve().relative_to(self.folder))

    def reference(self, place: str) -> str:
        """Give `FILE.py:FUNCTION` with its file below the folder.

        Raises:
            SpecError: functions may not be run, or the file is elsewhere.
        """
        if not self.allow_references:
            raise SpecError(
                "a reference is a program of the user's, and this server may not run any",
                hint="the user may start it with `qimeng mcp --allow-references`; judge against a spec meanwhile",
                field="reference",
                value=place,
            )
        file, colon, name = place.rpartition(":")
        if not colon:
            raise SpecError(
                f"{place!r} names no function in a file", hint="write it as FILE.py:FUNCTION", field="reference"
            )
        return f"{self.inside(file, 'reference')}:{name}"
