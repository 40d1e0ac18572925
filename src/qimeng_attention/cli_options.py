"""Options that commands take, each with its help: what `generate` and others read from the command line.

Not here: what they do with them (cli.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TargetName = Annotated[
    str,
    typer.Option("--target", "-t", help="A GPU's name (see `qimeng targets`), or auto for the one present."),
]
Arch = Annotated[
    str | None,
    typer.Option("--arch", help="Build for another architecture, as sm_90 to run an A100 program on an H200."),
]
Framework = Annotated[
    str,
    typer.Option(
        "--framework", help="What the reference takes: numpy, torch, or auto: tensors if its file uses PyTorch."
    ),
]
Source = Annotated[
    str | None,  # no Path, which would write `h // 4` in a request as `h / 4`
    typer.Argument(
        help="A spec (YAML or JSON), a TL file to begin with, or, with --author, a request in words "
        "or a function, FILE.py:FUNCTION.",
        show_default=False,
    ),
]
Mask = Annotated[str | None, typer.Option(help="full, causal, window:LEFT, or a condition such as 'kv_idx <= q_idx'.")]
Weights = Annotated[
    str | None, typer.Option(help="What makes weights of scores: softmax, softmax+sink, sigmoid, relu, relu2, ...")
]
Tensors = Annotated[
    list[str] | None,
    typer.Option("--tensor", help="A named tensor, NAME:DIMS:TYPE, as slopes:Hq:f32; may be repeated."),
]
Varlen = Annotated[
    bool, typer.Option("--varlen", help="Packed sequences of different lengths, told by cu_seqlens_q and _k.")
]
Lengths = Annotated[
    bool | None, typer.Option("--seqused-k/--no-seqused-k", help="Calls say how many keys of each entry count.")
]
SpecFile = Annotated[Path | None, typer.Option("--spec", help="What a given TL file should compute, for the judge.")]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="FILE.py:FUNCTION of your own that computes the same, in PyTorch or NumPy."),
]
Emit = Annotated[str, typer.Option(help="Stop after: sketch, code, scheduled, cute, cubin, verdict or bundle.")]
