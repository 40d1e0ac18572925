"""The one schema of benchmark results: every file under benchmarks/results is written and read through it."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Case(BaseModel):
    """What was run."""

    model_config = ConfigDict(extra="forbid")

    B: int
    Hq: int
    Hk: int
    Sq: int
    Sk: int
    Dqk: int
    Dv: int
    dtype: str
    mask: str
    mods: str = ""
    kind: str = "forward"
    target: str


class SpeedRow(BaseModel):
    """A speed against peers; `ratio` is the best peer's graph time over ours."""

    model_config = ConfigDict(extra="forbid")

    case: Case
    ours_ms: float
    peers_ms: dict[str, float]
    ours_eager_ms: float
    peers_eager_ms: dict[str, float]
    ratio: float
    error_before: float
    error_after: float
    bound: str
    spread: float = 0.0
    repetitions: int = 0


class CorrectnessRow(BaseModel):
    """A verdict of the judge."""

    model_config = ConfigDict(extra="forbid")

    case: Case
    verdict: str
    checks: int
    worst_error: float
    bound: float
    detail: str = ""


class MatrixRow(BaseModel):
    """A cell of the compile and judge matrix."""

    model_config = ConfigDict(extra="forbid")

    case: Case
    verdict_cpu: str
    verdict_gpu: str
    spills: int
    compile_s: float
    error: str = ""
    program: str = ""  # digest of the generated source and what it was built for; cells may share one
    checks: int = 0  # on the GPU


class StudyRow(BaseModel):
    """A sample of a study: a request answered once, with its repairs; the lists have an entry for each attempt."""

    model_config = ConfigDict(extra="forbid")

    request: str
    stratum: str
    method: str
    sample: int
    target: str
    judged_on: str
    accepted_before: bool  # any repair
    accepted: bool
    repairs: int
    gates: list[dict[str, str]]
    codes: list[list[str]]
    kinds: list[list[str]]
    causes: list[list[str]]
    input_tokens: int | None  # None: unknown
    output_tokens: int | None
    usd: float | None
    minutes: float
    transcript: str = ""
    taken_over: list[str] = Field(default_factory=list)  # stages answered by another method's sample


class Results(BaseModel):
    """A results file with its provenance."""

    model_config = ConfigDict(extra="forbid")

    name: str
    commit: str
    date: str
    device: str
    driver: str
    packages: dict[str, str]
    command: str
    rows: list[SpeedRow] | list[CorrectnessRow] | list[MatrixRow] | list[StudyRow] = Field(default_factory=list)
    summary: dict[str, Any] = Field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write the file, named after the benchmark."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        fields = self.model_dump(mode="json")
        lines = [json.dumps(row) for row in fields.pop("rows")]  # a row a line: small files, and differences that read
        head = json.dumps(fields, indent=1).removesuffix("\n}")
        rows = ",\n  ".join(lines)
        path.write_text(f'{head},\n "rows": [\n  {rows}\n ]\n}}\n' if lines else f"{head}\n}}\n", "utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file."""
        return cls.model_validate_json(path.read_text("utf-8"))


def provenance(name: str, commit: str | None = None) -> Results:
    """Begin a results file: what machine, what versions, what command."""
    import torch

    found = commit or _run(["git", "rev-parse", "HEAD"]) or "unknown"
    driver = _run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).split("\n")[0]
    packages = {
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }
    return Results(
        name=name,
        commit=found,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        device=torch.cuda.get_device_name(),
        driver=driver,
        packages=packages,
        command=" ".join(["python", *sys.argv]),
        rows=[],
        summary={},
    )


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except OSError:
        return ""
