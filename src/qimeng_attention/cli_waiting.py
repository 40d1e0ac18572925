"""`judge-waiting`: every kernel of a folder that waits for a GPU.

Not here: judging one program or bundle (cli.py), how they come to wait (workflow/gpu.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qimeng_attention import terminal
from qimeng_attention.cli_guard import Json, guarded


@guarded
def judge_waiting(
    folder: Annotated[
        Path, typer.Argument(help="Where kernels in CUDA wait: `gpu` of a run or a study.", show_default=False)
    ],
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="How many to judge at the same time.")] = 1,
    again: Annotated[bool, typer.Option("--again", help="Judge those with a verdict too.")] = False,
    as_json: Json = False,
) -> None:
    """Judge every kernel that waits in a folder, and put a verdict beside each (needs a GPU).

    What has a verdict is left alone, so the command may be stopped and begun again. Exit code 1: one could not be
    judged; 4: one is for another GPU.
    """
    from qimeng_attention.workflow.waiting import Judged
    from qimeng_attention.workflow.waiting import judge_waiting as judge_all

    def told(one: Judged, number: int, of: int) -> None:
        first = one.reason.splitlines()[0] if one.reason else ""
        taken = "had its verdict" if one.before else f"{one.seconds:.1f} s"
        terminal.listing(f"  {number}/{of}  {one.name}  {one.outcome} ({taken})  {first}")

    found = judge_all(folder, jobs=jobs, again=again, report=None if as_json else told)
    counts: dict[str, int] = {
        o: sum(one.outcome == o for one in found) for o in dict.fromkeys(one.outcome for one in found)
    }
    if as_json:
        terminal.print_json({"bundles": [one.to_json() for one in found], "counts": counts})
    else:
        terminal.facts(counts)
    if counts.get("failed"):
        raise typer.Exit(1)
    if counts.get("skipped"):
        raise typer.Exit(4)
