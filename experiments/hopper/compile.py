"""Compile variants of attention.cu to cubins: compile.py OUT NAME:KEY=V,KEY=V ..."""

import json
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from qimeng_attention.build import find_toolchain

HERE = Path(__file__).parent


def one(item):
    name, out = item
    label, _, opts = name.partition(":")
    from cuda.core import Program, ProgramOptions

    tc = find_toolchain()
    start = time.time()
    import io

    log = io.StringIO()
    defines = [tuple(o.split("=")) for o in opts.split(",") if o]
    opt = ProgramOptions(
        arch="sm_90a",
        std="c++17",
        device_as_default_execution_space=True,
        ptxas_options=["-v"],
        include_path=[str(p) for p in tc.includes],
        define_macro=[
            *((("HEAD" if k == "D" else k), v) for k, v in defines),
            ("_CUDA_STD___TUPLE_STRUCTURED_BINDINGS_H", "1"),
        ],
    )
    try:
        code = Program((HERE / "attention.cu").read_text(), "c++", opt).compile("cubin", logs=log)
    except Exception as e:
        return label, f"FAILED {str(e)[:300]}", time.time() - start
    Path(out, label + ".cubin").write_bytes(code.code)
    Path(out, label + ".json").write_text(json.dumps({k: int(v) for k, v in defines}))
    text = log.getvalue()
    keep = re.findall(r"Used \d+ registers|\d+ bytes spill stores|C7\d+[^\n]*|[^\n]*wgmma[^\n]*|setmaxnreg[^\n]*", text)
    return label, "; ".join(keep), time.time() - start


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        for label, text, s in pool.map(one, [(n, out) for n in sys.argv[2:]]):
            print(f"{label:24} {s:5.1f} s  {text}", flush=True)
