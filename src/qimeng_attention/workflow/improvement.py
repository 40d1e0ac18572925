"""Rounds in which a model makes a program faster: it sees what was measured, and proposes other tiles and schedules.

A round is one proposal, with a repair or two where a gate refuses it. A proposal passes the gates that every program
passes, and is then timed against the fastest program so far, in one process; it is kept only if it is faster by more
than the noise (bench/gain.py). The next round's prompt tells what became of each proposal before.

Not here: what a proposal may change (author/llm/rescheduled.py), the race (bench/race.py), where it waits (races.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qimeng_attention import __version__
from qimeng_attention.author.llm import render
from qimeng_attention.author.llm.answers import blocks, clean, program_of
from qimeng_attention.author.llm.rescheduled import TriedBefore, bare, changes, rescheduled
from qimeng_attention.bench.race import BEST, CANDIDATE, Race, call_of, known_sizes
from qimeng_attention.build import Cache
from qimeng_attention.errors import JudgeError
from qimeng_attention.judge import Verdict
from qimeng_attention.llm.chat import Client, Message, Reply, Request
from qimeng_attention.schedule import REWRITINGS
from qimeng_attention.tl.parser import parse
from qimeng_attention.workflow import stages
from qimeng_attention.workflow.attempts import Attempt, Gate, Truth, pass_gates
from qimeng_attention.workflow.authoring import judge_on_cpu
from qimeng_attention.workflow.generate import manifest_of
from qimeng_attention.workflow.kernel_facts import KernelFacts, facts_of
from qimeng_attention.workflow.races import Races, raced, same_kernel
from qimeng_attention.workflow.stages import Results

REPAIRS = 1  # of a proposal: what is refused is told to the next round besides
RECORD = "improve.json"
_MOST_WORDS = 1200  # of what a model says beside its program
_MOST_TOLD = 300  # of a finding, in a later prompt


@dataclass(frozen=True)
class Asking:
    """Who is asked, how often, and where what came of it is kept."""

    client: Client
    rounds: int
    races: Races
    repairs: int = REPAIRS
    folder: Path | None = None  # of the run: the record, and verdicts that need not be reached twice
    cache: Cache | None = None
    note: Callable[..., None] | None = None  # of a transcript: each round's outcome stands beside what was said


@dataclass
class Round:
    """One proposal: what it changes and why, and what came of it."""

    number: int
    why: str = ""  # the model's words
    changes: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    race: Race | None = None
    kept: bool = False
    outcome: str = ""  # in words, as the next prompt tells it
    model: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give what is kept of it."""
        race, gain = self.race, self.race.gain if self.race else None
        found: dict[str, Any] = {"round": self.number, "changes": self.changes, "why": self.why, "kept": self.kept}
        found |= {"outcome": self.outcome, "model": self.model}
        refused = [a for a in self.attempts if a.failed]
        found["refused"] = [{"stage": a.stage, "gate": a.failed, "codes": list(a.codes)} for a in refused]
        if race is not None:
            found |= {"ms": race.ms, "device": race.device, "date": race.date, "verdict_on_gpu": race.verdict}
        if gain is not None:
            found |= {"ratio": round(gain.ratio, 4), "interval": [round(gain.low, 4), round(gain.high, 4)]}
            found["needed"] = round(gain.needed, 4)
        return found


@dataclass
class Improved:
    """What rounds made of a program: the fastest one, every round, and how it stands to the first."""

    start: Results
    best: Results
    alone: Race  # the first program by itself
    rounds: list[Round] = field(default_factory=list)
    whole: Race | None = None  # the first program against the last; None where nothing was kept

    @property
    def kept(self) -> bool:
        """Tell whether the program is another one than at the start."""
        return self.best is not self.start

    @property
    def gain(self) -> float:
        """Give how much faster the program is than at the start."""
        found = self.whole.gain if self.whole is not None and self.kept else None
        return found.ratio if found is not None else 1.0

    @property
    def results(self) -> Results:
        """Give what a bundle is made of: the fastest program, and in its reasons every round."""
        before, record = dict(self.start.reasons or {}), {"improved": self.to_json()}
        if not self.kept:
            return replace(self.start, reasons=before | record)
        by = " and ".join(dict.fromkeys(r.model for r in self.rounds if r.kept))
        reasons = {"author": f"{before.get('author', '')}, improved by {by}", "reasons": []}
        return replace(self.best, reasons=before | reasons | record)

    def to_json(self) -> dict[str, Any]:
        """Give the record that a run and a bundle keep."""
        whole = self.whole.gain if self.whole is not None else None
        return {
            "sizes": dict(self.alone.sizes),
            "device": self.alone.device,
            "start_ms": self.alone.ms.get(BEST),
            "gain": round(self.gain, 4),
            "interval": [round(whole.low, 4), round(whole.high, 4)] if whole is not None else None,
            "rounds": [r.to_json() for r in self.rounds],
        }


def improve(start: Results, truth: Truth, asking: Asking, *, report: Callable[[Round], None] | None = None) -> Improved:
    """Ask for a faster program, round by round; what comes back is never slower than `start`.

    Args:
        start: a built program that passed every gate.
        truth: what proposals are judged against.
        asking: who is asked, and where kernels are timed.
        report: called after each round.

    Raises:
        ClientFault: no answer came; Waiting where an answer or a time is to be given by somebody.
        SpecError: calls of these sizes cannot be made, or have no one length.
        JudgeError: the program is rejected on the GPU.
        BundleError: what lies in a race's folder is no timing, or a stale one.
        EnvironmentMissing: this machine cannot compile.
    """
    call_of(start.spec.model_dump() if start.spec else None, manifest_of(start).face, asking.races.sizes)
    earlier = _recorded(asking)
    alone = raced(start, None, asking.races)
    if alone.verdict == "rejected":
        raise JudgeError("the program is rejected on the GPU", hint="judge its bundle there: qimeng judge FOLDER")
    made = Improved(start, start, alone)
    latest, ms = alone, alone.ms[BEST]
    for number in range(1, asking.rounds + 1):
        done, found = _round(number, made, (latest, ms), truth, asking)
        made.rounds.append(done)
        if done.kept and done.race is not None:
            made.best, latest, ms = found, done.race, done.race.ms[CANDIDATE]
        _keep(made, asking)
        if asking.note is not None and done.to_json() not in earlier:
            asking.note("improve", **done.to_json())
        if report is not None:
            report(done)
    if made.kept:
        made.whole = raced(start, made.best, asking.races)
        whole = made.whole.gain
        if whole is None or whole.low <= 1:  # rounds that each seemed faster, and together are not
            made.best = start
    _keep(made, asking)
    return made


def _recorded(asking: Asking) -> list[Any]:
    """Read the rounds of a run that was stopped: what stands in its transcript is not written there twice."""
    file = asking.folder / RECORD if asking.folder is not None else None
    try:
        return list(json.loads(file.read_text("utf-8"))["rounds"]) if file is not None else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _keep(made: Improved, asking: Asking) -> None:
    if asking.folder is not None:
        asking.folder.mkdir(parents=True, exist_ok=True)
        (asking.folder / RECORD).write_text(json.dumps(made.to_json(), indent=1) + "\n", "utf-8")


# ------------------------------------------------------------------ one round
def _round(
    number: int, made: Improved, speed: tuple[Race, float], truth: Truth, asking: Asking
) -> tuple[Round, Results]:
    """Ask for a proposal, pass it through the gates, time it, and say what came of it."""
    done, best = Round(number), made.best
    said = [Message("user", prompt(made, speed, number, asking))]
    tried = {r.attempts[-1].program: r.number for r in made.rounds if r.attempts[-1].program}
    found = best
    for left in range(asking.repairs, -1, -1):
        stage = f"improve {number}" + (f" repair {asking.repairs - left}" if left < asking.repairs else "")
        reply = asking.client.complete(Request(tuple(said), stage))
        attempt, found = pass_gates(_gates(reply, best, truth, tried, asking), stage, _bare_results(best, reply))
        done.attempts.append(attempt)
        done.model = reply.model
        done.why = _words(reply.text) or done.why
        if not attempt.failed or not left:
            break
        again = render.repair_prompt(attempt.failed, attempt.findings)
        said += [Message("assistant", reply.text), Message("user", again)]
    last = done.attempts[-1]
    done.changes = changes(best.code, last.program) if last.program else []
    if last.failed:
        done.outcome = f"Refused ({last.failed}): {_first(last.findings)}"
    else:
        _time(done, best, found, asking)
    return done, found


def _time(done: Round, best: Results, found: Results, asking: Asking) -> None:
    """Race a proposal that passed every gate against the best, and decide."""
    if same_kernel(best) == same_kernel(found):
        done.outcome = "It compiles to the same kernel: dropped."
        return
    race = done.race = raced(best, found, asking.races)
    gain = race.gain
    if gain is None:
        done.outcome = f"Dropped: {race.error or 'it was not timed'}."
        return
    done.kept = gain.kept
    spills = sum((b.report.spill_store_bytes or 0) + (b.report.spill_load_bytes or 0) for b in found.builds)
    cost = f", with {spills} bytes of spills" if spills else ""
    done.outcome = (
        f"{gain.ratio:.3f} times as fast ({gain.low:.3f} to {gain.high:.3f}; more than {gain.needed:.3f} is needed)"
        f"{cost}: {'kept' if gain.kept else 'dropped'}."
    )


def _bare_results(best: Results, reply: Reply) -> Results:
    """Give what a proposal begins with: the operator, the GPU, and nothing that was made of the best program."""
    reasons = {"author": reply.model, "reasons": []}
    return Results(best.target, best.arch, best.spec, best.sketch, reasons=reasons)


def _gates(reply: Reply, best: Results, truth: Truth, tried: Mapping[str, int], asking: Asking) -> dict[str, Gate]:
    def answer(attempt: Attempt, found: Results) -> tuple[Attempt, Results]:
        return replace(attempt, program=program_of(reply.text)), found

    def same_statements(attempt: Attempt, found: Results) -> tuple[Attempt, Results]:
        proposal, attempt = attempt.program, replace(attempt, program="")
        code = rescheduled(best.code, proposal)
        changed = changes(best.code, code)
        if not changed:
            raise TriedBefore("the program is the one that is there", hint="change a tile or the Schedule")
        earlier = next((n for program, n in tried.items() if not changes(program, code)), None)
        if earlier is not None:
            raise TriedBefore(f"the program was tried in round {earlier}", hint="propose something else")
        return replace(attempt, program=code), replace(found, code=code)

    def judge(attempt: Attempt, found: Results) -> tuple[Attempt, Results]:
        return attempt, replace(found, verdict=_judged(found, truth, asking.folder))

    return {
        "answer": answer,
        "statements": same_statements,
        "check": lambda a, r: (a, stages.check_code(r)),
        "schedule": lambda a, r: (a, stages.apply_schedule(r)),
        "translate": lambda a, r: (a, stages.to_cute(r)),
        "build": lambda a, r: (a, stages.to_cubin(r, asking.cache)),
        "judge": judge,
    }


def _judged(found: Results, truth: Truth, folder: Path | None) -> Verdict:
    """Judge on the CPU, once: a run that goes on after a stop finds the verdict it had."""
    if folder is None:
        return judge_on_cpu(found, truth)
    spec = truth.spec.model_dump(mode="json") if truth.spec is not None else str(truth.function)
    key = hashlib.sha256(json.dumps([__version__, spec, found.scheduled]).encode()).hexdigest()[:16]
    file = folder / "verdicts" / f"{key}.json"
    if file.exists():
        return Verdict.model_validate_json(file.read_text("utf-8"))
    verdict = judge_on_cpu(found, truth)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(verdict.to_json()) + "\n", "utf-8")
    return verdict


def _words(text: str) -> str:
    """Give what stands beside the program in an answer: the model's reasons."""
    for _, content in blocks(text):
        text = text.replace("\r\n", "\n").replace(content, "")
    lines = (line.strip() for line in clean(text).splitlines())
    return " ".join(line for line in lines if line and not line.startswith(("```", "~~~")))[:_MOST_WORDS]


def _first(findings: str) -> str:
    text = " ".join(findings.split())
    return text if len(text) <= _MOST_TOLD else f"{text[:_MOST_TOLD]}..."


# ------------------------------------------------------------------ what a prompt tells
def prompt(made: Improved, speed: tuple[Race, float], number: int, asking: Asking) -> str:
    """Write a round's prompt."""
    best, (race, ms) = made.best, speed
    kernels = facts_of(best, known_sizes(best.spec, asking.races.sizes))
    facts = {
        "number": number,
        "rounds": asking.rounds,
        "program": bare(best.code),
        "speed": _speed(best, race, ms),
        "kernels": [_kernel(k, race, ms, best) for k in kernels],
        "history": made.rounds,
    }
    roles = all(any(c.words[0] == "roles" for c in k.schedule) for k in parse(best.code, "code.tl").kernels)
    return render.improve_prompt(facts, best.target, list(REWRITINGS.values()), roles=roles)


def _speed(best: Results, race: Race, ms: float) -> dict[str, Any]:
    dtype = best.spec.dtype if best.spec is not None else "bf16"
    same = sorted(abs(x - 1) for x in race.same)
    return {
        "ms": ms,
        "sizes": ", ".join(f"{name} = {size}" for name, size in race.sizes.items()),
        "device": race.device,
        "tflops": round(race.flops / ms / 1e9) if race.flops else None,
        "peak": round(best.target.tensor_tflops[dtype]) if _on_target(best, race) else None,
        "clock": race.clock_mhz,
        "noise": round(100 * same[len(same) // 2], 2) if same else None,
    }


def _on_target(best: Results, race: Race) -> bool:
    """Tell whether the GPU that timed a kernel is the one that it was made for: else its rates are another's."""
    return best.target.name.lower() in race.device.lower()


def _kernel(k: KernelFacts, race: Race, ms: float, best: Results) -> dict[str, Any]:
    """Give the facts of a kernel, with what needs its time: one that runs alone has it to itself."""
    found = {name: getattr(k, name) for name in k.__dataclass_fields__} | {"took": None, "computed": ""}
    spec, iterations = best.spec, k.iterations
    if len(best.builds) > 1 or not iterations:
        return found
    if race.clock_mhz is not None and _on_target(best, race):
        found["took"] = round(ms * 1e3 * race.clock_mhz * best.target.sms / iterations)
    if race.flops and spec is not None and k.pairs:
        found["computed"] = f"{iterations * k.pairs / (race.flops / (2 * (spec.Dqk + spec.Dv))):.2f}"
    return found
