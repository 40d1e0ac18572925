"""`qimeng show`: a bundle, or a run of a model, as a page on the terminal, as HTML, as JSON.

Not here: what a page holds (report/).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from qimeng_attention import terminal
from qimeng_attention.cli_guard import Json, guarded
from qimeng_attention.errors import SpecError

RUNS = Path("runs")  # where `generate --author` puts runs
TRANSCRIPT = "transcript.jsonl"
_MOST_LISTED = 40


@guarded
def show(
    what: Annotated[
        Path | None,
        typer.Argument(
            help="A bundle's folder, a run's folder or transcript, or the name of a recorded run; "
            "without it those that there are are listed.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write one HTML file that loads nothing else.")] = None,
    program: Annotated[
        bool, typer.Option(help="Show TL beside the CuTe C++ it became; of a run, the program written.")
    ] = True,
    full: Annotated[bool, typer.Option("--full", help="Of a run, show every prompt and every answer too.")] = False,
    as_json: Json = False,
) -> None:
    """Show a bundle (operator, reasons, resources, verdict, speed, TL beside CuTe C++), or a model's run (all calls,
    what came of each answer, repairs, cost, outcome).
    """
    if what is None:
        _list(as_json)
    elif (transcript := _transcript(what)) is not None:
        _show_run(transcript, html, program, full, as_json)
    else:
        _show_bundle(what, html, program, as_json)


def _write_html(html: Path | None, text: Callable[[], str]) -> None:
    if html is not None:
        html.write_text(text(), "utf-8", errors="replace")
        terminal.note(f"written: {html}")


def _show_bundle(folder: Path, html: Path | None, program: bool, as_json: bool) -> None:
    from qimeng_attention.report import page_of, show_page, to_html
    from qimeng_attention.runtime import read_folder

    contents = read_folder(folder)
    _write_html(html, lambda: to_html(page_of(contents)))
    if as_json:
        files = sorted(contents.path.glob("*.json"))
        terminal.print_json({p.stem: json.loads(p.read_text("utf-8")) for p in files})
    elif html is None:
        show_page(terminal.page_console(), page_of(contents), program=program)


def _show_run(transcript: Path, html: Path | None, program: bool, full: bool, as_json: bool) -> None:
    from qimeng_attention.llm.transcript import load
    from qimeng_attention.report import run_page, run_to_html, show_run

    page = run_page(load(transcript), _name(transcript), _of_study(transcript))
    _write_html(html, lambda: run_to_html(page))
    if as_json:
        terminal.print_json(page.to_json(full=full))
    elif html is None:
        show_run(terminal.page_console(), page, program=program, full=full)


def _of_study(transcript: Path) -> list[tuple[str, str]]:
    """Give what the samples beside a study's transcripts say of one; nothing where it is of no study."""
    from qimeng_attention.llm.transcript import SUFFIX
    from qimeng_attention.study.run import transcript_of
    from qimeng_attention.study.samples import SampleStore

    folders = transcript.absolute().parents
    for path in sorted(folders[3].glob(f"*{SUFFIX}")) if len(folders) > 3 else ():
        try:
            samples = SampleStore(path).samples()
        except (SpecError, OSError):
            continue  # another file of JSON lines
        for sample in samples:
            if transcript_of(folders[2], sample.key) == transcript.absolute():
                last = sample.attempts[-1]
                end = "accepted" if sample.accepted else f"failed ({last.refused_by or last.fault})"
                on = f", judged on {sample.judged_on}" * bool(sample.judged_on)
                return [("in the study", f"{end} after {sample.repairs} repairs, for {sample.target}{on}")]
    return []


# ------------------------------------------------------------------ which run
def _transcript(what: Path) -> Path | None:
    """Find the transcript that is meant; None where it is a bundle.

    Raises:
        SpecError: there is no such file or folder, and no recorded run of that name.
    """
    from qimeng_attention.llm.transcript import SUFFIX
    from qimeng_attention.runtime.manifest import MANIFEST

    if what.is_file():
        return what
    if (what / MANIFEST).is_file():
        return None
    if what.is_dir():
        if (what / TRANSCRIPT).is_file():
            return what / TRANSCRIPT
        held = sorted(what.rglob(f"*{SUFFIX}"))
        if not held:
            return None  # said by whoever reads bundles
        if len(held) == 1:
            return held[0]
        names = [str(path) for path in held[:_MOST_LISTED]]
        raise SpecError(
            f"{what} holds {len(held)} transcripts",
            hint=f"name one: {', '.join(names)}" + (", ..." if len(held) > len(names) else ""),
            field="run",
            value=str(what),
            allowed=names,
        )
    known = {_name(path): path for path in _recorded()}
    if str(what) in known:
        return known[str(what)]
    near = difflib.get_close_matches(str(what), known, n=1, cutoff=0.5)
    raise SpecError(
        f"there is no bundle, run or transcript {what}, and no recorded run of that name",
        hint=f"did you mean {near[0]}?" if near else f"recorded runs: {', '.join(known) or 'none'}",
        field="run",
        value=str(what),
        allowed=list(known),
    )


def _recorded() -> Iterator[Path]:
    """Give the transcripts that come with the package, and those of runs below the working directory."""
    from qimeng_attention.llm.clients import SHIPPED
    from qimeng_attention.llm.transcript import SUFFIX

    yield from sorted(SHIPPED.rglob(f"*{SUFFIX}"))
    yield from sorted(RUNS.glob(f"*/{TRANSCRIPT}"))


def _name(transcript: Path) -> str:
    return transcript.parent.name if transcript.name == TRANSCRIPT else transcript.stem


def _list(as_json: bool) -> None:
    from qimeng_attention.llm.clients import SHIPPED
    from qimeng_attention.llm.transcript import TranscriptError, load

    rows: list[dict[str, Any]] = []
    for path in _recorded():
        try:
            record = load(path)
        except TranscriptError:
            continue  # `show` says what is wrong with it
        ships = SHIPPED in path.parents
        rows.append({"name": _name(path), "words": record.words, "date": record.date, "ships": ships})
    if as_json:
        terminal.print_json(rows)
        return
    columns = [[r["name"], r["words"], r["date"][:10], "the package" if r["ships"] else str(RUNS)] for r in rows]
    terminal.table("runs that can be shown", ["name", "request", "date", "in"], columns)
