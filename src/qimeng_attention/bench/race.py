"""Two kernels for the same calls, timed against each other in one process: is the candidate faster than the best?

    square-1f2e3d4c5b6a/best/         a bundle: the fastest so far
    square-1f2e3d4c5b6a/candidate/    a bundle: what might be faster; not there where only the first is to be timed
    square-1f2e3d4c5b6a/call.json     the sizes of the calls
    square-1f2e3d4c5b6a/timing.json   what a machine with the GPU found, written by `qimeng race`

Both run on the same inputs, in turns, in an order that is drawn anew for each round; the best runs twice, so that every
race shows its own noise. Before and after, the outputs of both must agree; a candidate whose description is known is
judged on the GPU first, since nothing but its TL was judged so far.

Not here: what counts as faster (gain.py), who waits for a race (workflow/races.py).
"""

from __future__ import annotations

import datetime
import json
import math
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qimeng_attention.bench.against_sdpa import SETS, pairs_seen, refuse_untimed
from qimeng_attention.bench.gain import FEWEST, Gain, gain
from qimeng_attention.bench.timing import Times, time_graphs
from qimeng_attention.errors import BundleError, LaunchError, QimengError, SpecError
from qimeng_attention.judge import Call, Operator, judge_bundle
from qimeng_attention.judge.contents import Contents, draw
from qimeng_attention.judge.device import digest_of_bundle
from qimeng_attention.judge.meaning import own_sizes_of
from qimeng_attention.judge.process import Process
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.runtime import Bundle, Manifest, load
from qimeng_attention.runtime.bundle import gpu_torch
from qimeng_attention.runtime.plan import TORCH_TYPES
from qimeng_attention.spec import AttentionSpec

BEST, CANDIDATE, AGAIN = "best", "candidate", "best again"
DEVICE = "cuda"
CALL, TIMING = "call.json", "timing.json"
ROUNDS = 61  # at half a percent of spread a median's interval is then within 0.2 percent
MOST_DIFFERENCE = 2e-2  # relative, of two results in 16 bits
DRAWN = ("bf16", "fp16", "f32")
PLAIN_SCALE = 0.1  # of an operator that no description tells of
Sizes = Mapping[str, int]


class Race(BaseModel):
    """What a race found; times in milliseconds a call, ratios of a round are the best's time over the other's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundles: dict[str, str]  # the digest of each bundle that ran
    sizes: dict[str, int]
    device: str
    driver: str
    torch: str
    date: str
    clock_mhz: int | None = None  # of the multiprocessors, while the best ran
    ms: dict[str, float] = Field(default_factory=dict)  # medians
    same: tuple[float, ...] = ()  # ratios of the best to itself
    ratios: tuple[float, ...] = ()  # and to the candidate
    repetitions: int = 0  # of each kernel
    difference: float = 0.0  # of both outputs, relative, the greater of before and after
    flops: float | None = None  # of a call, of visible pairs
    verdict: str = ""  # of the judge on this GPU, on the candidate, or on the best where it ran alone
    error: str = ""  # why the candidate has no time

    @property
    def gain(self) -> Gain | None:
        """Weigh it; None where no candidate ran to its end."""
        return gain(self.ratios, self.same) if self.ratios and not self.error else None


# ------------------------------------------------------------------ the folder of a race
def digests_in(place: Path) -> dict[str, str]:
    """Give the digest of each bundle in a race's folder.

    Raises:
        BundleError: one is damaged, or the best is not there.
    """
    return {name: digest_of_bundle(bundle.manifest) for name, bundle in _bundles(place).items()}


def _bundles(place: Path) -> dict[str, Bundle]:
    names = [BEST, *([CANDIDATE] if (place / CANDIDATE).exists() else [])]
    return {name: load(place / name) for name in names}


def read_race(place: Path) -> Race | None:
    """Read what was found in a race; None where nobody has run it.

    Raises:
        BundleError: what lies there is no timing, or one of other bundles, or of other calls.
    """
    file = place / TIMING
    if not file.exists():
        return None
    try:
        race = Race.model_validate_json(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise _unusable(file, f"is no timing: {reason}") from None
    other = [name for name, digest in digests_in(place).items() if race.bundles.get(name) != digest]
    if other or race.sizes != _sizes_in(place):
        raise _unusable(file, f"is stale: it is of {f'another {other[0]}' if other else 'other calls'}")
    counted = [race.same, *([race.ratios] if CANDIDATE in race.bundles else [])]
    if not race.error and min(map(len, counted)) < FEWEST:
        raise _unusable(file, f"has fewer than {FEWEST} rounds")
    return race


def waiting(folder: Path) -> list[Path]:
    """Give the races below a folder that nobody has run."""
    return sorted(call.parent for call in folder.rglob(CALL) if not (call.parent / TIMING).exists())


def _unusable(file: Path, why: str) -> BundleError:
    return BundleError(f"{file} {why}", hint="remove it, and run the race again", file=str(file))


def _sizes_in(place: Path) -> dict[str, int]:
    file = place / CALL
    try:
        found = json.loads(file.read_text("utf-8"))
        return {str(name): int(size) for name, size in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        hint = 'write {"B": 4, "S": 4096}'
        raise BundleError(f"{file} does not say the sizes of the calls", hint=hint, file=str(file)) from None


# ------------------------------------------------------------------ a race
def run_race(place: Path, *, process: Process | None = None, rounds: int = ROUNDS) -> Race:
    """Run a race on the GPU at hand, and write what was found beside the bundles.

    Args:
        place: the race's folder.
        process: in which the judge's launches run; without one this race has its own.
        rounds: how often each kernel takes its turn.

    Raises:
        EnvironmentMissing: no PyTorch or no GPU.
        BundleError: a bundle is damaged.
        SpecError: the sizes do not say what to call it with.
    """
    torch, sizes = gpu_torch(), _sizes_in(place)
    bundles = _bundles(place)
    race = _begun(torch, place, sizes)
    given = inputs(torch, bundles[BEST], sizes)
    verdict = _judged(list(bundles.values())[-1], given.spec, process)
    race = race.model_copy(update={"verdict": verdict, "flops": given.flops})
    if verdict not in ("", "accepted") and CANDIDATE in bundles:
        return _written(place, race, {"error": f"the judge on the GPU: {verdict}"})
    try:
        return _written(place, race, _timed(torch, bundles, given, rounds))
    except _Fault as fault:
        return _written(place, race, {"error": str(fault)})
    except RuntimeError as error:  # of PyTorch, for what a kernel did: this process has no GPU any more
        if CANDIDATE in bundles:
            _written(place, race, {"error": f"it failed: {str(error).splitlines()[0][:200]}"})
        raise LaunchError(
            f"a kernel of {place} failed on the GPU: {str(error).splitlines()[0][:200]}",
            hint="run the same command again: it goes on with the other races",
        ) from error


def _written(place: Path, race: Race, found: Mapping[str, Any]) -> Race:
    made = race.model_copy(update=dict(found))
    (place / TIMING).write_text(made.model_dump_json(indent=1) + "\n", "utf-8")
    return made


class _Fault(Exception):
    """What keeps a candidate from having a time."""


def _judged(bundle: Bundle, spec: AttentionSpec | None, process: Process | None) -> str:
    return "" if spec is None else judge_bundle(bundle.path, spec, seed=1, process=process).verdict


def _timed(torch: Any, bundles: Mapping[str, Bundle], given: Inputs, rounds: int) -> dict[str, Any]:
    runners = {name: Runner(torch, bundle, given) for name, bundle in bundles.items()}
    runners[AGAIN] = Runner(torch, bundles[BEST], given)
    before = _difference(torch, runners)
    times = time_graphs({name: runner.calls for name, runner in runners.items()}, rounds)
    after = _difference(torch, runners)
    found = {
        "ms": {name: float(f"{t.median_ms:.5g}") for name, t in times.items()},
        "same": _ratios(times, AGAIN),
        "repetitions": times[BEST].repetitions,
        "difference": float(f"{max(before, after):.3g}"),
        "clock_mhz": _clock_under(torch, runners[BEST]),
    }
    return found | ({"ratios": _ratios(times, CANDIDATE)} if CANDIDATE in times else {})


def _ratios(times: Mapping[str, Times], name: str) -> tuple[float, ...]:
    pairs = zip(times[BEST].samples, times[name].samples, strict=True)
    return tuple(round(best / other, 5) for best, other in pairs)


def _difference(torch: Any, runners: Mapping[str, Runner]) -> float:
    """Compare what a candidate writes with what the best writes, on every set of inputs."""
    if CANDIDATE not in runners:
        return 0.0
    worst = 0.0
    for runner in (runners[BEST], runners[CANDIDATE]):
        try:
            runner.run_all()
            torch.cuda.synchronize()
        except QimengError as error:
            if runner is runners[BEST]:
                raise
            raise _Fault(f"it cannot be launched: {error.message}") from error
    for ours, theirs in zip(runners[CANDIDATE].outputs, runners[BEST].outputs, strict=True):
        worst = max([worst, *(difference(torch, ours[name], theirs[name]) for name in ours)])
    if worst > MOST_DIFFERENCE:
        raise _Fault(f"its outputs differ from the best's by {worst:.3g} of their norm")
    return worst


def difference(torch: Any, ours: Any, theirs: Any) -> float:
    """Give the relative distance of two results; infinity where not the same elements are finite."""
    a, b = ours.float(), theirs.float()
    finite = torch.isfinite(b)
    if not torch.equal(torch.isfinite(a), finite):
        return math.inf
    return float((a[finite] - b[finite]).norm() / b[finite].norm().clamp(min=1e-30)) if bool(finite.any()) else 0.0


# ------------------------------------------------------------------ what is called
@dataclass(frozen=True)
class Inputs:
    """What every kernel of a race is called with: tensors by the manifest's names, in several sets."""

    spec: AttentionSpec | None
    sets: Sequence[Mapping[str, Any]]
    sizes: Mapping[str, int]
    scale: float
    flops: float | None


def inputs(torch: Any, bundle: Bundle, sizes: Sizes) -> Inputs:
    """Draw inputs for calls of these sizes: B, and S or Sq and Sk; heads too where no description tells them.

    Raises:
        SpecError: a size is missing, calls say themselves how long sequences are, or a tensor's contents are unknown.
    """
    face = bundle.manifest.face
    spec, known = call_of(json.loads(bundle.files["spec.json"]), face, sizes)
    told = {n: known[n] for n in face.sizes}
    if spec is None:
        return Inputs(None, _sets(torch, face, known, {}), told, PLAIN_SCALE, None)
    own = tuple((n, known[n]) for n, _ in own_sizes_of(spec, 1))
    b, sq, sk = (_size(known, n) for n in ("B", "Sq", "Sk"))
    call = Call(b, sq, sk, spec.Hq, spec.Hk, spec.Dqk, spec.Dv, spec.default_scale, own)
    contents = draw(np.random.default_rng(0), spec.tensors, call.sizes, "documents")
    seen = pairs_seen(Operator.of(spec).bind(contents), call)
    flops = 2.0 * b * call.Hq * (call.Dqk + call.Dv) * sq * sk * seen
    return Inputs(spec, _sets(torch, face, known, contents), told, bundle.manifest.default_scale, flops)


def call_of(
    fields: Mapping[str, Any] | None, face: Manifest, sizes: Sizes
) -> tuple[AttentionSpec | None, dict[str, int]]:
    """Give a bundle's description, and every size of a call.

    Raises:
        SpecError: as of `inputs`.
    """
    spec, named = None, set[str]()
    if fields:
        refuse_untimed(fields)
        spec = AttentionSpec.make(**{k: v for k, v in fields.items() if k in AttentionSpec.model_fields})
        named = {kernel_name(n) for n in spec.tensors}
    known = known_sizes(spec, sizes)
    if spec is not None:
        known = dict(own_sizes_of(spec, known.get("Sk", 1))) | known
    for name in (*face.sizes, *(d for t in face.tensors for d in t.dims if isinstance(d, str))):
        _size(known, name)
    drawn = [t for t in face.tensors if t.role == "input" and t.name not in named]
    if unknown := [t.name for t in drawn if t.dtype not in DRAWN]:
        hint = "generate the kernel from a description"
        raise SpecError(f"nobody can guess what {unknown[0]} holds", hint=hint, field="at", value=unknown[0])
    return spec, known


def _sets(torch: Any, face: Manifest, known: Sizes, contents: Contents) -> list[dict[str, Any]]:
    """Draw what is not given, for each set anew; what a named tensor holds is the same in all."""
    drawn = [t for t in face.tensors if t.role == "input" and t.name not in contents]
    types = {t.name: getattr(torch, TORCH_TYPES[t.dtype]) for t in face.tensors}
    shapes = {t.name: tuple(known[d] if isinstance(d, str) else d for d in t.dims) for t in drawn}
    named = {n: torch.from_numpy(np.array(x)).to(DEVICE, types[n]) for n, x in contents.items()}
    generator = torch.Generator(DEVICE).manual_seed(0)
    made = []
    for _ in range(SETS):
        random = {n: torch.randn(s, generator=generator, device=DEVICE).to(types[n]) for n, s in shapes.items()}
        made.append(named | random)
    return made


def known_sizes(spec: AttentionSpec | None, sizes: Sizes) -> dict[str, int]:
    """Give all sizes that are known of a call: S stands for Sq and Sk, a description's own numbers win."""
    known = {"Sq": sizes["S"], "Sk": sizes["S"], **sizes} if "S" in sizes else dict(sizes)
    if spec is None:
        return known
    return known | {n: v for n in ("B", "Sq", "Sk", "Hq", "Hk") if (v := getattr(spec, n)) is not None}


def _size(known: Sizes, name: str) -> int:
    if name not in known:
        raise SpecError(f"nothing says how large {name} is", hint=f"add it: --at ...,{name}=NUMBER", field="at")
    return known[name]


class Runner:
    """One kernel with outputs of its own, one for each set of inputs; calls take the sets in turn."""

    def __init__(self, torch: Any, bundle: Bundle, given: Inputs) -> None:
        face = bundle.manifest.face
        self.outputs: list[dict[str, Any]] = []
        self.calls: list[Callable[[], None]] = []
        scalars = {s.name: given.scale for s in face.scalars}
        for tensors in given.sets:
            made = {}
            for t in face.tensors:
                if t.role == "output":
                    shape = tuple(given.sizes[d] if isinstance(d, str) else d for d in t.dims)
                    made[t.name] = torch.full(
                        shape, math.nan, device=DEVICE, dtype=getattr(torch, TORCH_TYPES[t.dtype])
                    )
            self.outputs.append(made)
            self.calls.append(_call(bundle, {**tensors, **made}, given.sizes, scalars))

    def run_all(self) -> None:
        """Call it once on each set."""
        for call in self.calls:
            call()


def _call(bundle: Bundle, tensors: Mapping[str, Any], sizes: Sizes, scalars: Mapping[str, float]) -> Callable[[], None]:
    return lambda: bundle.launch(tensors, sizes, scalars)


# ------------------------------------------------------------------ the machine
def _begun(torch: Any, place: Path, sizes: dict[str, int]) -> Race:
    """Say what runs and where, before anything has."""
    return Race(
        bundles=digests_in(place),
        sizes=sizes,
        device=torch.cuda.get_device_name(),
        driver=_asked("driver_version"),
        torch=str(torch.__version__),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def _asked(field: str) -> str:
    try:
        command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.split("\n")[0]
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _clock_under(torch: Any, runner: Runner) -> int | None:
    """Ask for the clock while a kernel runs: a chip that is bound by power clocks lower than its boost."""
    try:
        command = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"]
        asked = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None
    for _ in range(2000):
        if asked.poll() is not None:
            break
        runner.run_all()
        torch.cuda.synchronize()
    said = asked.communicate(timeout=20)[0].split("\n")[0].strip()
    return int(said) if said.isdigit() else None
