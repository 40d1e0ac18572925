"""What the tools do, stage by stage: each takes JSON, calls the stage as it is, and gives JSON.

Runs in a process beside the server (worker.py), with the server's folder as its working directory. Paths were looked at
before they came here.

Not here: arguments and their meaning (tools.py), errors as values (answers.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qimeng_attention.build import Built, build
from qimeng_attention.errors import Diagnostic, SpecError
from qimeng_attention.judge import Verdict, judge_function, judge_program, open_reference
from qimeng_attention.judge.rule import without_values
from qimeng_attention.report import understand
from qimeng_attention.report.page import page_of
from qimeng_attention.report.understood import Understood
from qimeng_attention.runtime import read_folder
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.parser import parse
from qimeng_attention.workflow import run
from qimeng_attention.workflow.generate import Outcome
from qimeng_attention.workflow.interpretation import interpret_file
from qimeng_attention.workflow.judgement import Against, agreeing, judge_path
from qimeng_attention.workflow.scheduling import schedule_file, translate_file
from qimeng_attention.workflow.stages import STAGES, find_target

Say = Callable[[int, int, str], None]  # done, of how many, what
Work = Callable[[dict[str, Any], Say], dict[str, Any]]

FILE = "program.tl"  # what findings call a text that came without a name
_MOST_SHOWN = 12  # checks that failed
_SEEN, _SOME, _HIDDEN = "█", "▒", "·"


def _check(a: dict[str, Any], say: Say) -> dict[str, Any]:
    kernels = check_text(a["program"], target=a["target"], file=FILE)
    return {
        "kernels": [
            {
                "name": k.kernel.name,
                "level": k.level,
                "sizes": k.sizes,
                "scalars": list(k.scalars),
                "inputs": k.inputs,
                "outputs": k.outputs,
                "warnings": [w.to_json(FILE) for w in k.warnings if isinstance(w, Diagnostic)],
            }
            for k in kernels
        ]
    }


def _interpret(a: dict[str, Any], say: Say) -> dict[str, Any]:
    return interpret_file(a["program"], FILE, a["sizes"], a["scalars"], a["seed"], None)


def _schedule(a: dict[str, Any], say: Say) -> dict[str, Any]:
    text, steps = schedule_file(a["program"], FILE, a["target"])
    return {"scheduled": text, "steps": steps}


def _translate(a: dict[str, Any], say: Say) -> dict[str, Any]:
    kernels = [
        {"name": t.name, "source": t.source, "threads": t.threads, "shared_bytes": t.shared_bytes}
        for t in translate_file(a["program"], FILE, a["target"])
    ]
    return {"kernels": kernels}


def _build(a: dict[str, Any], say: Say) -> dict[str, Any]:
    # SAFETY: TL alone: a C++ source could include any file that the compiler can read.
    named = next((k.target for k in parse(a["program"], FILE).kernels if k.target), None)
    target, arch = find_target(a["target"] or named or "auto", a["arch"])
    translations, kernels = translate_file(a["program"], FILE, target.name), []
    for number, t in enumerate(translations):
        say(number, len(translations), t.name)
        made = build(t.source, name=t.name, arch=arch, threads=t.threads, shared_bytes=t.shared_bytes, target=target)
        kernels.append(_built(made))
    return {"kernels": kernels}


def _built(built: Built) -> dict[str, Any]:
    return {"name": built.name, "arch": built.arch, "notes": list(built.notes), "report": built.report.to_json()}


def _judge(a: dict[str, Any], say: Say) -> dict[str, Any]:
    entropy = secrets.randbits(32) if a["seed"] is None else a["seed"]
    reference, framework = a["reference"], a["framework"]
    if a["bundle"]:
        return verdict_of(judge_path(Path(a["bundle"]), Against(None, reference, framework), entropy, say))
    kernels = check_text(a["program"], file=FILE)
    if a["spec"] is not None:
        spec = AttentionSpec.make(**a["spec"])
        with agreeing(reference, spec, framework, entropy, say) as own:
            return verdict_of(judge_program(kernels, spec, seed=entropy, progress=say, own=own))
    with open_reference(reference, framework) as function:
        return verdict_of(judge_function(kernels, function, seed=entropy, progress=say))


def verdict_of(v: Verdict) -> dict[str, Any]:
    """Give what an author needs of a verdict: what failed, where and by how much, and no value that was expected."""
    failed = [c for c in v.checks if not c.passed]
    broken = [p for p in v.properties if p.applies and not p.passed]
    worst = v.worst
    return {
        "verdict": v.verdict,
        "reason": without_values(v.reason),
        "where": v.where,
        "seed": v.entropy,
        "seconds": round(v.seconds, 1),
        "checks": len(v.checks) + sum(p.applies for p in v.properties),
        "failed": len(failed) + len(broken),
        "worst": worst
        and {"case": worst.case, "output": worst.output, "error": worst.worst_error, "bound": worst.bound},
        "failures": [
            {"case": c.case, "reason": without_values(c.reason), "diagnostics": c.diagnostics}
            for c in failed[:_MOST_SHOWN]
        ],
        "properties": [{"name": p.name, "reason": without_values(p.reason)} for p in broken],
        "clauses": [{"name": c.name, "caught_by": c.caught_by, "implied": c.implied} for c in v.clauses],
        "reference": v.reference,
    }


def _bench(a: dict[str, Any], say: Say) -> dict[str, Any]:
    from qimeng_attention.bench.against_sdpa import bench_bundle

    return {"measured": bench_bundle(Path(a["bundle"]), a["batch"], a["length"], keep=a["keep"], progress=say)}


def _generate(a: dict[str, Any], say: Say) -> dict[str, Any]:
    spec = None if a["spec"] is None else AttentionSpec.make(**a["spec"])
    stage = STAGES.index

    def report(name: str, results: Any, seconds: float) -> None:
        say(stage(name), len(STAGES), f"{name} is done")

    with agreeing(a["reference"], spec, a["framework"], progress=say) as own:
        outcome = run(
            spec,
            code=a["program"],
            target=a["target"] or "auto",
            arch=a["arch"],
            out=a["out"],
            until=a["until"],
            judge=a["judge"],
            overwrite=a["force"],
            report=report,
            progress=say,
            own=own,
        )
    return _outcome(outcome)


def _outcome(outcome: Outcome) -> dict[str, Any]:
    r = outcome.results
    return {
        "target": r.target.name,
        "arch": r.arch,
        "sketch": r.sketch,
        "code": r.code,
        "scheduled": r.scheduled,
        "reasons": r.reasons,
        "verdict": verdict_of(r.verdict) if r.verdict else None,
        "kernels": [_built(b) for b in r.builds],
        "bundle": str(outcome.folder.resolve().relative_to(Path.cwd())) if outcome.folder else None,
        "seconds": {name: round(s, 2) for name, s in outcome.seconds.items()},
        "notes": outcome.notes,
    }


def _show(a: dict[str, Any], say: Say) -> dict[str, Any]:
    page = page_of(read_folder(Path(a["bundle"])))
    parts = ("launch", "resources", "judged", "speed", "made_by")
    facts = {
        part: [{"what": what, "found": without_values(found)} for what, found in getattr(page, part)] for part in parts
    }
    programs = {"scheduled": "\n".join(page.tl), "cute": "\n".join(page.cpp), **dict(page.levels)}
    return {
        "kernel": page.kernel,
        "target": page.target,
        "understood": understood_as_json(page.understood) if page.understood else None,
        "reasons": [asdict(reason) for reason in page.reasons],
        "verdict": page.verdict,
        "predicted_speed": page.predicted,
        **facts,
        "programs": programs if a["programs"] else None,
    }


def _understand(a: dict[str, Any], say: Say) -> dict[str, Any]:
    spec = AttentionSpec.make(**a["spec"])
    return {"spec": spec.model_dump(mode="json"), "described": spec.describe(), **understood_as_json(understand(spec))}


def understood_as_json(u: Understood) -> dict[str, Any]:
    """Give formula, assumptions, the mask's picture as lines, and the example's weights."""
    rows = [
        "".join(_SEEN if share == 1 else _HIDDEN if share == 0 else _SOME for share in row) for row in u.picture.cells
    ]
    seen = zip(u.weights.values.tolist(), u.weights.visible.tolist(), strict=True)
    weights = [[round(v, 6) if s else None for v, s in zip(*row, strict=True)] for row in seen]
    lse = None if u.weights.lse is None else [round(float(x), 6) for x in u.weights.lse]
    return {
        "name": u.name,
        "formula": [{"what": what, "how": how} for what, how in u.formula],
        "assumptions": [{"of": of, "assumed": assumed} for of, assumed in u.assumptions],
        "mask": {
            "rows": rows,
            "legend": f"{_SEEN} seen, {_SOME} some, {_HIDDEN} not; a row for each q_idx, columns are kv_idx",
            "shown": u.picture.words(),
        },
        "example": {"inputs": u.weights.inputs, "weights": weights, "lse": lse},
    }


WORK: dict[str, Work] = {
    "understand": _understand,
    "check": _check,
    "interpret": _interpret,
    "schedule": _schedule,
    "translate": _translate,
    "show": _show,
    "build": _build,
    "judge": _judge,
    "bench": _bench,
    "generate": _generate,
}


def do(tool: str, arguments: dict[str, Any], say: Say) -> dict[str, Any]:
    """Do the work of a tool.

    Raises:
        QimengError: as the stage.
    """
    if tool not in WORK:
        raise SpecError(f"there is no work '{tool}'", hint=f"take one of {', '.join(WORK)}", field="tool", value=tool)
    return WORK[tool](arguments, say)
