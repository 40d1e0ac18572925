"""What the command line shows: tables, panels and listings. Data goes to stdout, progress and notes to stderr.

Texts may be a model's or anybody's: what moves a cursor or turns a line around is shown as a sign.

Not here: what the commands do (cli.py).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from qimeng_attention.errors import QimengError
from qimeng_attention.plain_text import plain

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
_PAGE_WIDTH = 160  # columns of a page that goes to a file or a pipe


def page_console() -> Console:
    """Give the console for a page whose width matters: the terminal's, or a wide one in a file or a pipe."""
    return out if out.is_terminal else Console(highlight=False, width=_PAGE_WIDTH)


def own_command() -> str:
    """Give the command as it was typed: `qimeng` where a shell finds it, else its path."""
    typed = sys.argv[0]
    return typed if Path(typed).name == "qimeng" and shutil.which("qimeng") != typed else "qimeng"


def print_json(value: Any) -> None:
    """Print one JSON value to stdout."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def print_error(error: QimengError, as_json: bool) -> None:
    """Print an error: as JSON to stdout if asked for, else as text to stderr."""
    if as_json:
        print_json(error.to_json())
    else:
        err.print(plain(str(error)), style="red", markup=False)


def note(text: str) -> None:
    """Say something beside the result."""
    err.print(plain(f"note: {text}"), style="yellow", markup=False)


def heading(text: str) -> None:
    """Begin a part of the output."""
    out.print(plain(f"\n── {text} ") + "─" * max(0, 96 - len(text)), style="bold cyan", markup=False)


def listing(text: str) -> None:
    """Print a program as it is."""
    out.print(plain(text.rstrip()), markup=False)


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table."""
    made = Table(title=title or None, title_justify="left")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*[Text(plain(str(cell))) for cell in row])
    out.print(made)


def facts(values: Mapping[str, Any]) -> None:
    """Print names and values, a line each."""
    width = max((len(k) for k in values), default=0)
    for key, value in values.items():
        out.print(plain(f"  {key.ljust(width)}  {value}"), markup=False)


@contextmanager
def progress_bar(description: str, enabled: bool) -> Iterator[Any]:
    """Give a callback `(done, total, name)` that moves a bar on stderr."""
    if not enabled:
        yield lambda done, total, name: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[name]}"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(description, total=None, name="")
        yield lambda done, total, name: bar.update(task, completed=done, total=total, name=name)


def resources(report: Mapping[str, Any]) -> None:
    """Print a kernel's resource report."""
    counts = report.get("counts") or {}
    occupancy = report.get("occupancy") or {}
    shown = ("HMMA", "HGMMA", "LDSM", "LDGSTS", "UTMALDG", "MUFU.EX2", "STL", "LDL")
    facts(
        {
            "registers a thread": report.get("registers"),
            "spills": f"{report.get('spill_store_bytes')} bytes stored, {report.get('spill_load_bytes')} bytes loaded",
            "shared memory": f"{report.get('shared_dynamic_bytes', 0):,} bytes a block",
            "occupancy": f"{occupancy.get('blocks_per_sm')} block(s), {occupancy.get('warps_per_sm')} "
            f"warps an SM, limited by {occupancy.get('limited_by')}",
            "instructions": ", ".join(f"{name} {counts.get(name, 0)}" for name in shown),
        }
    )
    for line in [*(report.get("warnings") or []), *(report.get("notes") or [])]:
        note(str(line))
