"""Faults planted in the shipped causal GQA program are refused by the checker or rejected by the judge."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest

from mutation.equivalent import reason
from mutation.harness import Fate, fate, mutants
from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.build import Cache, build
from qimeng_attention.judge import judge_program
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from qimeng_attention.translate import translate

SAMPLE = 5  # of the mutants that are not named equivalent, each fifth runs by default
LEAST_KILLED = 150


def _shown(fates: list[Fate]) -> None:
    counts = Counter((f.family, f.by or "alive") for f in fates)
    for (family, by), count in sorted(counts.items()):
        print(f"{family:12} {by:8} {count}")
    print(f"{len(fates)} mutants: {sum(f.by != '' for f in fates)} killed, {sum(f.by == '' for f in fates)} alive")


def test_a_sample_of_the_mutants_is_killed() -> None:
    numbers = [n for n, m in enumerate(mutants()) if reason(m.name) is None][::SAMPLE]

    fates = [fate(n) for n in numbers]

    _shown(fates)
    assert [f.name for f in fates if not f.by] == []
    assert len(fates) >= LEAST_KILLED // SAMPLE


@pytest.mark.slow
def test_every_mutant_is_killed_or_computes_the_same() -> None:
    with ProcessPoolExecutor(2) as pool:
        fates = list(pool.map(fate, range(len(mutants())), chunksize=4))

    _shown(fates)
    alive = [f.name for f in fates if not f.by]
    assert [name for name in alive if reason(name) is None] == []
    assert sum(f.by != "" for f in fates) >= LEAST_KILLED


CHOICES = {
    "tile": ("BM = 128, BN = 64", "BM = 64, BN = 32"),
    "stages": ("ring K stages 1, V stages 1", "ring K stages 2, V stages 2"),
    "prefetch": ("prefetch K 1 ahead, V 0 ahead", "prefetch K 0 ahead, V 0 ahead"),
    "order": ("grid head fastest", "grid block fastest"),
    "warps": ("warps 4 along q, 2 blocks an SM", "warps 8 along q, 1 blocks an SM"),
    "layout": ("store O through shared over Q", "hold Q in register"),
    "sums": ("copies async", "copies async\n    sums per lane"),
    "split": ("guard Mask of loop i where it is all true", "split loop i where Mask is not all true"),
}


@pytest.mark.cuda
@pytest.mark.parametrize("name", CHOICES)
def test_a_schedule_mutant_agrees_and_changes_the_machine_code(name: str) -> None:
    pytest.importorskip("cuda.bindings", reason="needs the build extra")
    spec = AttentionSpec.make(Hq=4, Hk=2, Dqk=64, mask="causal")
    code = plan(spec, targets.get("A100")).code.replace("BM = 128, BN = 128", "BM = 128, BN = 64")
    old, new = CHOICES[name]
    assert old in code

    shipped, changed = (_scheduled(text) for text in (code, code.replace(old, new)))

    assert judge_program(check_text(changed)[0], spec, seed=7).verdict == "accepted"
    assert _machine_code(shipped) != _machine_code(changed)


def _scheduled(text: str) -> str:
    lines = [line.split("  #")[0] for line in text.splitlines() if not line.startswith("#")]
    return print_program(schedule(parse("\n".join(lines))))


def _machine_code(text: str) -> bytes:
    t = translate(parse(text))[0]
    built = build(
        t.source,
        name=t.name,
        arch="sm_80",
        threads=t.threads,
        shared_bytes=t.shared_bytes,
        target=t.target,
        cache=Cache.disabled(),
    )
    return built.cubin
