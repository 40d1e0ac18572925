"""Time variants of attention.cu against FA3 and cuDNN: bench.py CUBINS [case ...]; a cubin's name says its macros."""

import ctypes
import json
import os
import random
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from cuda.bindings import driver as cu
from torch.nn.attention import SDPBackend, sdpa_kernel

CUBINS = Path(sys.argv[1])


def ok(result):
    if result[0] != cu.CUresult.CUDA_SUCCESS:
        raise RuntimeError(str(result[0]))
    return result[1] if len(result) == 2 else result[1:]


def tensor_map(x, rows):  # (B, S, H, D) bf16
    B, S, H, D = x.shape
    sb, ss, sh, _ = x.stride()
    return ok(
        cu.cuTensorMapEncodeTiled(
            cu.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            4,
            x.data_ptr(),
            [cu.cuuint64_t(v) for v in (D, S, H, B)],
            [cu.cuuint64_t(v * 2) for v in (ss, sh, sb)],
            [cu.cuuint32_t(v) for v in (64, rows, 1, 1)],
            [cu.cuuint32_t(1)] * 4,
            cu.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            cu.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            cu.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            cu.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )


class Kernel:
    def __init__(self, path, opts):
        self.o = {"D": 128, "CAUSAL": 1, "NC": 2, "BN": 128, "STAGES": 2, "ORDER": 0, "OVER_Q": 0, **opts}
        self.module = ok(cu.cuModuleLoadData(path.read_bytes()))
        self.f = ok(cu.cuModuleGetFunction(self.module, b"attention"))
        o = self.o
        BM = 64 * o["NC"]
        self.smem = BM * o["D"] * 2 * (1 if o["OVER_Q"] else 2) + 2 * o["STAGES"] * o["BN"] * o["D"] * 2 + 128
        ok(
            cu.cuFuncSetAttribute(
                self.f, cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, self.smem
            )
        )
        self.threads = 128 * (o["NC"] + 1)
        self.BM = BM

    def bind(self, q, k, v, group=0):
        o = self.o
        B, Sq, Hq, D = q.shape
        Sk, Hk = k.shape[1:3]
        out = torch.empty_like(q)
        lse = torch.empty(B, Hq, Sq, device="cuda", dtype=torch.float32)
        counter = torch.zeros(1 << 16, device="cuda", dtype=torch.int32)
        maps = [tensor_map(q, self.BM), tensor_map(k, o["BN"]), tensor_map(v, o["BN"]), tensor_map(out, 64)]
        tiles = -(-Sq // self.BM) * Hq * B
        if not group:  # heads whose K and V fit in 24 MB
            group = max(1, min(Hq, (24 << 20) // (Sk * D * 4) * (Hq // Hk)))
            while (Hq * B) % group:
                group -= 1
        values = [ctypes.c_void_p(lse.data_ptr()), ctypes.c_void_p(counter.data_ptr())]
        values += [ctypes.c_int(x) for x in (B, Sq, Sk, Hq, Hk, group)] + [ctypes.c_float(D**-0.5)]
        addresses = [m.getPtr() for m in maps] + [ctypes.addressof(v) for v in values]
        params = (ctypes.c_void_p * len(addresses))(*addresses)
        grid = tiles if o["ORDER"] == 0 else min(tiles, 132)
        keep = (maps, values, lse, counter, q, k, v)

        def call():
            if o["ORDER"] == 3:
                counter[:1].zero_()
            stream = torch.cuda.current_stream().cuda_stream
            r = cu.cuLaunchKernel(
                self.f, grid, 1, 1, self.threads, 1, 1, self.smem, stream, ctypes.addressof(params), 0
            )
            if r[0] != cu.CUresult.CUDA_SUCCESS:
                raise RuntimeError(str(r[0]))
            return out

        call.keep = keep
        call.params = params
        return call


def graph(fn, n=1):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        fn()
        torch.cuda.synchronize()
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g, stream=stream):
            for _ in range(n):
                fn()
    torch.cuda.synchronize()
    return g


def reference(q, k, v, causal):  # one batch entry and head, fp32
    q, k, v = (x[0].float().transpose(0, 1) for x in (q, k, v))
    rep = q.shape[0] // k.shape[0]
    outs = []
    for h in (0, q.shape[0] - 1):
        s = q[h] @ k[h // rep].T * q.shape[-1] ** -0.5
        if causal:
            s = s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(1 + s.shape[1] - s.shape[0]), float("-inf"))
        outs.append(torch.softmax(s, -1).nan_to_num() @ v[h // rep])
    return torch.stack(outs)


def parse(name):
    opts = {}
    for part in name.split(":")[1].split(",") if ":" in name else []:
        key, value = part.split("=")
        opts[key] = int(value)
    return opts


def main():
    torch.zeros(1, device="cuda")
    reps = int(os.environ.get("REPS", "60"))
    names = [p.name[: -len(".cubin")] for p in sorted(CUBINS.glob("*.cubin"))]
    kernels = {}
    for n in names:
        kernels[n] = Kernel(CUBINS / f"{n}.cubin", json.loads((CUBINS / f"{n}.json").read_text()))
    import fa3_fwd_interface as fa3

    rows = []
    for case in sys.argv[2:]:
        D, S, causal, Hq, Hk = (int(x) for x in case.split(","))
        B = 16384 // S
        sets = 1 if S >= 4096 else 2
        data = [[torch.randn(B, S, h, D, device="cuda").to(torch.bfloat16) for h in (Hq, Hk, Hk)] for _ in range(sets)]
        calls, errors, bounds = {}, {}, {}
        ref = reference(*data[0], causal)
        for name, kern in kernels.items():
            if kern.o["D"] != D or kern.o["CAUSAL"] != causal:
                continue
            bound = [kern.bind(*x) for x in data]
            bounds[name] = bound[0]
            calls[name] = (lambda b: lambda: [c() for c in b])(bound)
            out = bound[0]()
            torch.cuda.synchronize()
            got = torch.stack([out[0, :, 0], out[0, :, -1]]).float()
            errors[name] = float((got - ref).norm() / ref.norm())
        calls["fa3"] = lambda: [fa3.flash_attn_func(*x, causal=bool(causal)) for x in data]
        if not os.environ.get("NOCUDNN"):
            t = [[y.transpose(1, 2) for y in x] for x in data]

            def cudnn():
                with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                    for x in t:
                        F.scaled_dot_product_attention(*x, is_causal=bool(causal), enable_gqa=Hq != Hk)

            calls["cudnn"] = cudnn
        graphs = {n: graph(f) for n, f in calls.items()}
        times = {n: [] for n in calls}
        order = random.Random(0)
        for _ in range(reps):
            for n, g in order.sample(sorted(graphs.items()), len(graphs)):
                a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                a.record()
                g.replay()
                b.record()
                times[n].append((a, b))
        torch.cuda.synchronize()
        clocks = {}
        for name, c in calls.items():
            if name in kernels:
                c()
                torch.cuda.synchronize()
                cnt = bounds[name].keep[3]
                clocks[name] = float(cnt[16 : 16 + 132].float().mean()) * 16
        ms = {n: statistics.median(a.elapsed_time(b) for a, b in t) / sets for n, t in times.items()}
        flops = 4 * B * Hq * S * S * D * (0.5 if causal else 1)
        best = min(ms[n] for n in ms if n in ("fa3", "cudnn"))
        print(f"D={D} S={S} causal={causal} {Hq}/{Hk}")
        for n in sorted(ms, key=ms.get):
            print(
                f"   {n:40} {flops / ms[n] / 1e9:6.1f} TF  {best / ms[n]:.3f}  {errors.get(n, 0):.4f}  {clocks.get(n, 0) / 1e3:8.1f} k  {clocks.get(n, 0) / ms[n] / 1e6:.3f} GHz",
                flush=True,
            )
        rows.append({"case": case, "ms": ms, "errors": errors})
        del graphs, calls, data
        torch.cuda.empty_cache()
    (Path(os.environ.get("OUT", ".")) / "rows.json").write_text(json.dumps(rows, indent=1))


main()
