"""Rounds of improvement on three programs of the planner's, by hand-carried prompts and a GPU somewhere else.

    python benchmarks/improve.py --work out/improve          # anywhere: goes as far as it can, says what it waits for
    python benchmarks/improve.py --work out/improve --race   # on an H200: times every pair that waits
    python benchmarks/improve.py --work out/improve --out benchmarks/results   # at the end: the results file

Prompts are in WORK/answers, each to be answered beside it by a model that sees nothing else (its name in model.txt);
pairs of kernels are in WORK/races. The first command is run again after each answer and each race, and asks and times
nothing twice. A program has one prompt or one race open at a time, so one visit serves all three.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qimeng_attention.bench.race import TIMING, Race, run_race, waiting
from qimeng_attention.bench.results import Results
from qimeng_attention.judge.process import Process

if TYPE_CHECKING:
    from qimeng_attention.workflow.improvement import Improved

# Operators whose tiles the planner chooses by a model that was fitted to others: a window of a few tiles, a head dim
# between those that were timed, weights without an exponential.
PROGRAMS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "sink_window_d64": (
        {"Hq": 64, "Hk": 8, "Dqk": 64, "mask": "window:127", "weights": "softmax+sink"},
        {"B": 4, "S": 4096},
    ),
    "causal_d96": ({"Hq": 32, "Dqk": 96, "mask": "causal"}, {"B": 2, "S": 4096}),
    "relu2_d64": ({"Hq": 32, "Dqk": 64, "weights": "relu2"}, {"B": 4, "S": 4096}),
}


def advance(name: str, work: Path, target: str, rounds: int) -> Improved | str:
    """Run a program's rounds as far as they go; what they wait for is said."""
    from qimeng_attention.llm.chat import Waiting
    from qimeng_attention.llm.clients import careful
    from qimeng_attention.llm.file import FileClient
    from qimeng_attention.llm.transcript import Transcript
    from qimeng_attention.spec import AttentionSpec
    from qimeng_attention.workflow import run
    from qimeng_attention.workflow.attempts import Truth
    from qimeng_attention.workflow.improvement import Asking, improve
    from qimeng_attention.workflow.races import Races

    fields, sizes = PROGRAMS[name]
    spec = AttentionSpec.make(name=name, **fields)
    start = run(spec, target=target, until="cubin").results
    folder = work / name
    with Transcript(folder / "transcript.jsonl", words=spec.describe()[0], facts={"method": "improve"}) as transcript:
        client = careful(FileClient(work / "answers"), transcript)
        asking = Asking(client, rounds, Races(work / "races", sizes), folder=folder, note=transcript.note)
        try:
            return improve(start, Truth(spec=spec), asking)
        except Waiting as fault:
            return fault.message


def race(work: Path) -> None:
    """Time every pair that waits; those of one visit share the judge's process."""
    with Process() as process:
        for place in waiting(work / "races"):
            found = run_race(place, process=process)
            gain = found.gain
            told = f"{gain.ratio:.4f} ({gain.low:.4f} to {gain.high:.4f})" if gain else found.error or "alone"
            print(f"{place.name}  {found.ms}  {found.verdict}  {told}", flush=True)


def results(done: dict[str, Improved], work: Path, commit: str | None) -> Results:
    """Collect the records of all programs, and what machine timed them."""
    machines = {(r.device, r.driver, r.torch, r.date) for r in _races(work)}
    devices = {m[0] for m in machines}
    head = commit or subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    programs = {name: {"spec": PROGRAMS[name][0], **made.to_json()} for name, made in done.items()}
    for name, made in done.items():
        programs[name] |= {"tl_before": made.start.code, "tl_after": made.best.code}
    return Results(
        name="improve_h200",
        commit=head,
        date=max(m[3] for m in machines),
        device=" and ".join(sorted(devices)),
        driver=" and ".join(sorted({m[1] for m in machines})),
        packages={"torch": " and ".join(sorted({m[2] for m in machines}))},
        command=" ".join(["python", *sys.argv]),
        summary={"gain": {name: round(made.gain, 4) for name, made in done.items()}, "programs": programs},
    )


def _races(work: Path) -> list[Race]:
    found = sorted((work / "races").rglob(TIMING))
    return [Race.model_validate_json(path.read_text("utf-8")) for path in found]


def told(name: str, made: Improved | str, work: Path) -> str:
    """Say how far a program has come."""
    record = work / name / "improve.json"
    rounds = json.loads(record.read_text())["rounds"] if record.exists() else []
    lines = [f"{name}: " + (made if isinstance(made, str) else f"done, {made.gain:.4f} times as fast")]
    return "\n".join(lines + [f"  round {r['round']}: {'; '.join(r['changes'])}: {r['outcome']}" for r in rounds])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--race", action="store_true", help="time what waits, on the GPU at hand")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--target", default="H200")
    parser.add_argument("--out", type=Path, help="where the results file goes once all is done")
    parser.add_argument("--commit")
    args = parser.parse_args()
    if args.race:
        race(args.work)
        return
    made = {name: advance(name, args.work, args.target, args.rounds) for name in PROGRAMS}
    print("\n".join(told(name, found, args.work) for name, found in made.items()))
    if places := waiting(args.work / "races"):
        print(f"{len(places)} pair(s) wait to be timed: --race on the GPU, and bring each {TIMING} back")
    done = {name: found for name, found in made.items() if not isinstance(found, str)}
    if args.out and len(done) == len(PROGRAMS):
        print(results(done, args.work, args.commit).save(args.out))


if __name__ == "__main__":
    main()
