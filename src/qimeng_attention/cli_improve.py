"""`generate --improve`, and `race`: a model makes a program faster, and kernels that wait are timed.

Not here: the rounds (workflow/improvement.py), a race (bench/race.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from qimeng_attention import terminal
from qimeng_attention.cli_guard import Json, guarded
from qimeng_attention.errors import EnvironmentMissing, SpecError

PLANNER = "planner"

Rounds = Annotated[
    int,
    typer.Option(
        "--improve",
        min=0,
        max=50,
        help="Rounds in which a model proposes other tiles and another Schedule; each is timed on the GPU, "
        "and kept only if it is faster.",
    ),
]
Improver = Annotated[
    str | None,
    typer.Option("--improver", help="Who proposes, as in --author; the author if none: a planner's program needs one."),
]
At = Annotated[str, typer.Option("--at", help="The sizes of the calls that --improve times: S stands for Sq and Sk.")]
DEFAULT_AT = "B=4,S=4096"


def sizes_of(text: str) -> dict[str, int]:
    """Read the sizes of a call.

    Raises:
        SpecError: something else stands there.
    """
    found: dict[str, int] = {}
    for item in text.split(","):
        name, mark, value = (part.strip() for part in item.partition("="))
        if not (mark and name.isidentifier() and value.isdigit() and int(value) > 0):
            raise SpecError(f"'{item}' is no size of a call", hint="write B=4,S=4096", field="at", value=text)
        found[name] = int(value)
    return found


def refuse(given: dict[str, Any], spec: Any) -> None:
    """Refuse what cannot be improved, before anything is made.

    Raises:
        SpecError: nobody is to propose, nothing is built, or no program in TL comes of it.
    """
    what, hint = "", ""
    if given["author"] == PLANNER and given["improver"] is None:
        what, hint = "nobody is named who proposes", "name a model: --improver anthropic:MODEL, file:FOLDER or others"
    elif given["emit"] != "bundle" or not given["judge"]:
        what, hint = "only a program that is judged and built can be timed", "leave --emit and --no-judge out"
    elif given["author"] == PLANNER and spec is None:
        what, hint = "nothing says what proposals should compute", "name --spec FILE beside the TL file"
    elif given["author"] != PLANNER and given["method"] in ("vanilla", "cot"):
        what, hint = "a kernel without TL has no Schedule to change", "take the method two-stage"
    if what:
        raise SpecError(f"--improve: {what}", hint=hint, field="improve", value=given["improve"])
    sizes_of(given["at"])


def refiner(given: dict[str, Any], client: Any, transcript: Any, verbose: bool) -> Callable[[Any, Any], Any]:
    """Give what makes a built program faster: a function of results and of what they are judged against."""
    from qimeng_attention.bench.race import run_race
    from qimeng_attention.workflow.improvement import Asking, improve
    from qimeng_attention.workflow.judgement import runs_here
    from qimeng_attention.workflow.races import Races

    def refine(results: Any, truth: Any) -> Any:
        folder = transcript.path.parent
        measure = run_race if runs_here(results.arch) else None
        races = Races(folder / "races", sizes_of(given["at"]), measure)
        asking = Asking(client, given["improve"], races, folder=folder, note=transcript.note)
        made = improve(results, truth, asking, report=_report if verbose else None)
        if verbose:
            terminal.heading("improved" if made.kept else "not improved")
            terminal.listing(f"  {made.gain:.3f} times as fast as the first program, at {given['at']}")
        return made.results

    return refine


def improve_planned(outcome: Any, truth: Any, given: dict[str, Any], words: str) -> None:
    """Let a model improve a program that stages made, and write its bundle.

    Raises:
        EnvironmentMissing: there is no compiler, so nothing to time.
        ClientFault: no answer came, or one is awaited.
    """
    from qimeng_attention.cli_author import new_run
    from qimeng_attention.llm.budget import Budget
    from qimeng_attention.llm.clients import careful, open_client
    from qimeng_attention.llm.transcript import Transcript
    from qimeng_attention.workflow.generate import save

    if outcome.results.built is None:
        raise EnvironmentMissing("; ".join(outcome.notes) or "nothing was built", hint="see `qimeng doctor`")
    if outcome.results.verdict.accepted:
        folder = given["run"] or new_run(f"improve {words}")
        budget = Budget(given["max_usd"], given["max_tokens"], given["max_calls"])
        verbose = not given["quiet"] and not given["as_json"]
        with Transcript(folder / "transcript.jsonl", words=words, facts={"method": "improve"}) as transcript:
            client = careful(open_client(given["improver"]), transcript, budget)
            outcome.results = refiner(given, client, transcript, verbose)(outcome.results, truth)
    outcome.folder = save(outcome, given["out"], given["force"])


def _report(done: Any) -> None:
    terminal.heading(f"improve, round {done.number}")
    if done.why:
        terminal.listing(f"  {done.why}")
    terminal.listing("\n".join(f"  {line}" for line in [*done.changes, done.outcome]))


@guarded
def race(
    folders: Annotated[list[Path], typer.Argument(help="Folders of races, or of runs that hold some.")],
    as_json: Json = False,
) -> None:
    """Time every pair of kernels that `generate --improve` left waiting (needs the GPU they were made for)."""
    from qimeng_attention.bench.race import run_race, waiting
    from qimeng_attention.judge.process import Process

    found: list[dict[str, Any]] = []
    with Process() as process:
        for place in [place for folder in folders for place in waiting(folder)]:
            timed = run_race(place, process=process)
            gain = timed.gain
            row = {"race": str(place), "ms": timed.ms, "error": timed.error, "verdict": timed.verdict}
            found.append(row | ({"ratio": gain.ratio, "interval": [gain.low, gain.high]} if gain else {}))
            if not as_json:
                ratio = f"{gain.ratio:.4f} ({gain.low:.4f} to {gain.high:.4f})" if gain else timed.error or "alone"
                terminal.listing(f"  {place.name}  {timed.ms}  {ratio}")
    if as_json:
        terminal.print_json(found)
    elif not found:
        terminal.note("nothing waits to be timed")
