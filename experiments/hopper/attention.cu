// An experiment, outside of the package: one attention kernel for Hopper, every choice a macro. Not shipped.
#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/arch/mma_sm90_gmma_ext.hpp>
#include <cute/numeric/integer_sequence.hpp>
#include <cutlass/bfloat16.h>

#ifndef HEAD
#define HEAD 128
#endif
#ifndef CAUSAL
#define CAUSAL 1
#endif
#ifndef NC
#define NC 2        // consumer warpgroups
#endif
#ifndef BN
#define BN 128
#endif
#ifndef STAGES
#define STAGES 2
#endif
#ifndef PINGPONG
#define PINGPONG 1
#endif
#ifndef OVERLAP
#define OVERLAP 1
#endif
#ifndef ORDER       // 0: a block a tile; 1: persistent, round robin; 2: snake; 3: counter
#define ORDER 0
#endif
#ifndef HEADS_FIRST // head fastest in the grid's order
#define HEADS_FIRST 1
#endif
#ifndef THRESHOLD   // of the O rescale, in log2; 0: always
#define THRESHOLD 0
#endif
#ifndef POLY        // of 8 exponentials, those on the FMA lanes
#define POLY 0
#endif
#ifndef OVER_Q      // O staged over Q
#define OVER_Q 0
#endif
#ifndef CREGS
#define CREGS (NC == 2 ? 240 : 160)
#endif
#ifndef PREGS
#define PREGS (NC == 2 ? 24 : 32)
#endif
#ifndef PARTS       // steps of P V before the maximum of the next S, 0: all
#define PARTS 0
#endif
#ifndef HOLD
#define HOLD 0
#endif
#ifndef ABLATE      // 1: no softmax at all; 2: no exponentials; 3: no maximum; 4: no rescale of O; 5: only S; 6: no P V
#define ABLATE 0
#endif
#ifndef RSC          // where the rescale of O stands among the exponentials
#define RSC 0
#endif
#ifndef SPLIT
#define SPLIT 1
#endif

#define INFINITY __int_as_float(0x7f800000)
using bf16 = cutlass::bfloat16_t;
struct alignas(64) TensorMap { unsigned char bytes[128]; };

constexpr int D = HEAD;
constexpr int BM = 64 * NC;
constexpr int kPanels = D / 64, kSteps = BN / 16;
constexpr int kQ = BM * D * 2, kKV = BN * D * 2;

__device__ inline unsigned smem(void const* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ inline void bar_init(uint64_t* b, int n) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem(b)), "r"(n)); }
__device__ inline void bar_arrive(uint64_t* b) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem(b)) : "memory"); }
__device__ inline void bar_expect(uint64_t* b, int bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem(b)), "r"(bytes) : "memory"); }
__device__ inline void bar_wait(uint64_t* b, int parity) {
  asm volatile(
      "{\n.reg .pred P1;\nLAB_WAIT:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 P1, [%0], %1;\n@P1 bra DONE;\nbra LAB_WAIT;\nDONE:\n}" ::"r"(smem(b)), "r"(parity) : "memory");
}
__device__ inline void tma_load(TensorMap const* map, uint64_t* bar, void* dst, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::
      "r"(smem(dst)), "l"(map), "r"(smem(bar)), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory");
}
__device__ inline void tma_store(TensorMap const* map, void const* src, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::
      "l"(map), "r"(smem(src)), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory");
}
__device__ inline void named_sync(int id, int n) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory"); }
__device__ inline void named_arrive(int id, int n) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory"); }

__device__ inline void wg_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wg_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ inline void wg_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
template <int N> __device__ inline void hold(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

using Major = cute::SM90::GMMA::Major;
template <int N> struct Ops;
#define OPS(N) template <> struct Ops<N> { \
  using SS = cute::SM90::GMMA::MMA_64x##N##x16_F32BF16BF16_SS<Major::K, Major::K>; \
  using RS = cute::SM90::GMMA::MMA_64x##N##x16_F32BF16BF16_RS<Major::K, Major::MN>; };
OPS(64) OPS(80) OPS(96) OPS(112) OPS(128) OPS(144) OPS(160) OPS(176) OPS(192) OPS(208) OPS(224) OPS(256)

__device__ inline uint64_t desc(unsigned addr, int lbo, int sbo) {
  return (uint64_t)((addr & 0x3ffff) >> 4) | (uint64_t)(lbo >> 4) << 16 | (uint64_t)(sbo >> 4) << 32 | (uint64_t)1 << 62;
}
template <class Op, int N, int... I>
__device__ inline void ss(float (&d)[N], uint64_t a, uint64_t b, cute::SM90::GMMA::ScaleOut s, cute::integer_sequence<int, I...>) { Op::fma(a, b, d[I]..., s); }
template <class Op, int N, int... I>
__device__ inline void rs(float (&d)[N], uint32_t const (&a)[4], uint64_t b, cute::SM90::GMMA::ScaleOut s, cute::integer_sequence<int, I...>) {
  Op::fma(a[0], a[1], a[2], a[3], b, d[I]..., s);
}

__device__ inline float ex2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ inline float lg2(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ inline float ex2_poly(float x) {
  x = fmaxf(x, -127.0f);
  float const big = 12582912.0f;               // 1.5 * 2^23: rounds to an integer in the low bits
  float const r = x + big;
  float const f = x - (r - big);               // [-0.5, 0.5]
  float p = fmaf(f, 0.055171f, 0.240153f);     // degree 3
  p = fmaf(p, f, 0.693147f);
  p = fmaf(p, f, 1.0f);
  return __int_as_float(__float_as_int(p) + (__float_as_int(r) << 23));
}
__device__ inline uint32_t pack(float lo, float hi) { uint32_t r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }

struct Tile { int block, head, batch; };
__device__ inline Tile tile_of(int t, int blocks, int Hq, int group) {
  Tile r;
#if HEADS_FIRST == 1          // heads fastest, then blocks (longest first), then batch
  r.head = t % Hq; t /= Hq; r.block = blocks - 1 - t % blocks; r.batch = t / blocks;
#elif HEADS_FIRST == 2        // groups of heads, within: head of the group fastest, then blocks
  int const per = group * blocks, g = t / per, in = t % per;
  int const hb = g * group + in % group;
  r.head = hb % Hq; r.batch = hb / Hq; r.block = blocks - 1 - in / group;
#elif HEADS_FIRST == 3        // heads fastest, then batch, then blocks
  r.head = t % Hq; t /= Hq; int const batches = group; r.batch = t % batches; r.block = blocks - 1 - t / batches;
#else                         // blocks fastest
  r.block = blocks - 1 - t % blocks; t /= blocks; r.head = t % Hq; r.batch = t / Hq;
#endif
  return r;
}

extern "C" __global__ void __launch_bounds__(128 * (NC + 1), 1) attention(
    const __grid_constant__ TensorMap mQ, const __grid_constant__ TensorMap mK, const __grid_constant__ TensorMap mV,
    const __grid_constant__ TensorMap mO, float* Lse, int* counter, int B, int Sq, int Sk, int Hq, int Hk, int group, float scale) {
  extern __shared__ __align__(1024) unsigned char raw[];
  unsigned char* sQ = raw;
  unsigned char* sK = sQ + kQ;
  unsigned char* sV = sK + STAGES * kKV;
#if OVER_Q
  unsigned char* sO = sQ;
  uint64_t* bars = (uint64_t*)(sV + STAGES * kKV);
#else
  unsigned char* sO = sV + STAGES * kKV;
  uint64_t* bars = (uint64_t*)(sO + kQ);
#endif
  uint64_t *fullQ = bars, *emptyQ = bars + 1, *fullK = bars + 2, *emptyK = fullK + STAGES, *fullV = emptyK + STAGES, *emptyV = fullV + STAGES;
  uint64_t *fullT = emptyV + STAGES, *emptyT = fullT + 1;
  int volatile* next_tile = (int*)(emptyT + 1);
  int const blocks = (Sq + BM - 1) / BM;
  int const tiles = blocks * Hq * B;
  int const wg = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  long long const began = clock64();
  if (threadIdx.x == 0) {
    bar_init(fullQ, 1); bar_init(emptyQ, NC);
    for (int i = 0; i < STAGES; ++i) { bar_init(fullK + i, 1); bar_init(emptyK + i, NC); bar_init(fullV + i, 1); bar_init(emptyV + i, NC); }
    bar_init(fullT, 1); bar_init(emptyT, NC);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();

  if (wg == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PREGS));
    if (threadIdx.x == 0) {
      int nK = 0, nQ = 0;
#if ORDER == 0
      { int t = blockIdx.x;
#elif ORDER == 1
      for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
#elif ORDER == 2
      for (int round = 0, t = blockIdx.x; t < tiles; ++round, t = round * gridDim.x + ((round & 1) ? gridDim.x - 1 - blockIdx.x : blockIdx.x)) {
#else
      int t = blockIdx.x;
      for (;; ) {
        bar_wait(emptyT, (nQ & 1) ^ 1);
        *next_tile = t;
        bar_arrive(fullT);
        if (t >= tiles) break;
        int const following = atomicAdd(counter, 1) + gridDim.x;
#endif
        Tile const at = tile_of(t, blocks, Hq, HEADS_FIRST == 3 ? B : group);
        int const head_k = at.head / (Hq / Hk);
#if CAUSAL
        int const last = max(0, min((at.block + 1) * BM + Sk - Sq, Sk) + BN - 1) / BN;
#else
        int const last = (Sk + BN - 1) / BN;
#endif
        bar_wait(emptyQ, (nQ & 1) ^ 1);
        bar_expect(fullQ, kQ);
        for (int p = 0; p < kPanels; ++p) tma_load(&mQ, fullQ, sQ + p * BM * 128, p * 64, at.block * BM, at.head, at.batch);
        ++nQ;
        for (int j = 0; j <= last; ++j) {   // K runs one ahead of V
          if (j < last) {
            int const s = (nK + j) % STAGES, ph = (nK + j) / STAGES & 1;
            bar_wait(emptyK + s, ph ^ 1);
            bar_expect(fullK + s, kKV);
            for (int p = 0; p < kPanels; ++p) tma_load(&mK, fullK + s, sK + s * kKV + p * BN * 128, p * 64, (last - 1 - j) * BN, head_k, at.batch);
          }
          if (j > 0) {
            int const s = (nK + j - 1) % STAGES, ph = (nK + j - 1) / STAGES & 1;
            bar_wait(emptyV + s, ph ^ 1);
            bar_expect(fullV + s, kKV);
            for (int p = 0; p < kPanels; ++p) tma_load(&mV, fullV + s, sV + s * kKV + p * BN * 128, p * 64, (last - j) * BN, head_k, at.batch);
          }
        }
        nK += last;
#if ORDER == 3
        t = following;
#endif
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CREGS));
    int const w = wg - 1;
    int const tid = threadIdx.x % 128, warp = tid / 32, lane = tid % 32;
    float const c = scale * 1.4426950408889634f;
    int nK = 0, nQ = 0;
#if PINGPONG
    if (w == NC - 1) named_arrive(2 + 0, 256);    // the turn begins with warpgroup 0
#endif
    auto turn = [&] { if (PINGPONG) named_sync(2 + w, 256); };
    auto pass = [&] { if (PINGPONG) named_arrive(2 + (w + 1) % NC, 256); };
    uint64_t const dQ = desc(smem(sQ) + w * 64 * 128, 16, 1024), dK = desc(smem(sK), 16, 1024), dV = desc(smem(sV), BN * 128, 1024);

#if ORDER == 0
    { int t = blockIdx.x;
#elif ORDER == 1
    for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
#elif ORDER == 2
    for (int round = 0, t = blockIdx.x; t < tiles; ++round, t = round * gridDim.x + ((round & 1) ? gridDim.x - 1 - blockIdx.x : blockIdx.x)) {
#else
    for (;;) {
      bar_wait(fullT, nQ & 1);
      int const t = *next_tile;
      __syncwarp();
      named_sync(10 + w, 128);
      if (tid == 0) bar_arrive(emptyT);
      if (t >= tiles) break;
#endif
      Tile const at = tile_of(t, blocks, Hq, HEADS_FIRST == 3 ? B : group);
#if CAUSAL
      int const last = max(0, min((at.block + 1) * BM + Sk - Sq, Sk) + BN - 1) / BN;
      int const masked = max(0, min(min((at.block * BM + Sk - Sq + 1) / BN, Sk / BN), last));
#else
      int const last = (Sk + BN - 1) / BN;
      int const masked = Sk / BN;
#endif
      float S[BN / 2], O[D / 2];
      uint32_t P[BN / 16][4];
      float m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0}, alpha[2];
#pragma unroll
      for (int i = 0; i < D / 2; ++i) O[i] = 0;

      auto gemm_s = [&](int s) {
        hold(S);
        uint64_t const at_s = dK + s * (kKV >> 4);
        wg_fence();
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
          uint64_t const a = dQ + (((k / 4) * BM * 128 + (k % 4) * 32) >> 4);
          uint64_t const b = at_s + (((k / 4) * BN * 128 + (k % 4) * 32) >> 4);
          ss<typename Ops<BN>::SS>(S, a, b, k == 0 ? cute::SM90::GMMA::ScaleOut::Zero : cute::SM90::GMMA::ScaleOut::One, cute::make_integer_sequence<int, BN / 2>{});
        }
        wg_commit();
      };
      auto gemm_o = [&](int s, int from, int to) {
        hold(O);
        uint64_t const at_s = dV + s * (kKV >> 4);
        wg_fence();
#pragma unroll
        for (int k = 0; k < BN / 16; ++k) {
          if (k < from || k >= to) continue;
          uint64_t const b = at_s + (k * 2048 >> 4);
          rs<typename Ops<D>::RS>(O, P[k], b, cute::SM90::GMMA::ScaleOut::One, cute::make_integer_sequence<int, D / 2>{});
        }
        wg_commit();
      };
      auto release = [&](uint64_t* b) { if (tid == 0) bar_arrive(b); };
      auto release_q = [&] { if (!OVER_Q) release(emptyQ); };
      auto mask = [&](int i) {
#pragma unroll
        for (int n = 0; n < BN / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            int const q = at.block * BM + w * 64 + warp * 16 + lane / 4 + (e / 2) * 8;
            int const k = i * BN + n * 8 + (lane % 4) * 2 + e % 2;
            bool const visible = (!CAUSAL || k <= q + Sk - Sq) && k < Sk;
            S[n * 4 + e] = visible ? S[n * 4 + e] : -INFINITY;
          }
      };
      bool rescale = true;
      float used[2];
      auto maximum = [&] {
        if (ABLATE == 1) { alpha[0] = alpha[1] = 1; l[0] = l[1] = 1; return; }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float x = S[r * 2];
          if (ABLATE != 3)
#pragma unroll
          for (int n = 0; n < BN / 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e) x = fmaxf(x, S[n * 4 + r * 2 + e]);
          x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
          x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
          float now = fmaxf(m[r], x);
#if THRESHOLD
          now = (now - m[r]) * c > float(THRESHOLD) ? now : m[r];   // m = -inf: inf > 8
#endif
          float const safe = now == -INFINITY ? 0.0f : now;
          alpha[r] = ex2((m[r] - safe) * c);
          used[r] = safe * c;
          m[r] = now;
        }
#if THRESHOLD
        rescale = __any_sync(0xffffffff, alpha[0] != 1.0f || alpha[1] != 1.0f);
#endif
      };
      float part[2];
      auto exps = [&](int from, int to) {   // 16 columns a step
        if (ABLATE == 1) return;
#pragma unroll
        for (int n = 0; n < BN / 8; ++n) {
          if (n / 2 < from || n / 2 >= to) continue;
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float const x = S[n * 4 + e] * c - used[e / 2];
            S[n * 4 + e] = ABLATE == 2 ? x : (POLY && (n * 4 + e) % 8 < POLY) ? ex2_poly(x) : ex2(x);
            part[e / 2] = n == 0 && e % 2 == 0 ? S[n * 4 + e] : part[e / 2] + S[n * 4 + e];
          }
        }
      };
      auto sums = [&] {
        if (ABLATE == 1) return;
#pragma unroll
        for (int r = 0; r < 2; ++r) l[r] = l[r] * alpha[r] + part[r];
      };
      auto convert = [&](int from, int to) {
#pragma unroll
        for (int k = 0; k < BN / 16; ++k) {
          if (k < from || k >= to) continue;
#pragma unroll
          for (int i = 0; i < 4; ++i) P[k][i] = pack(S[(2 * k + i / 2) * 4 + i % 2 * 2], S[(2 * k + i / 2) * 4 + i % 2 * 2 + 1]);
        }
      };
      auto scale_o = [&](int from, int to) {   // of kSteps
        if (rescale && ABLATE != 4) {
#pragma unroll
          for (int i = 0; i < D / 2; ++i)
            if (i >= from * (D / 2) / kSteps && i < to * (D / 2) / kSteps) O[i] *= alpha[i % 4 / 2];
        }
      };
      auto stage = [&](int n) { return n % STAGES; };
      auto phase = [&](int n) { return n / STAGES & 1; };

      bar_wait(fullQ, nQ & 1);
      ++nQ;
      if (last > 0) {
#if OVERLAP
        bar_wait(fullK + stage(nK), phase(nK));
        turn();
        gemm_s(stage(nK));
        pass();
        wg_wait<0>();
        hold(S);
        release(emptyK + stage(nK));
        if (masked < last) mask(last - 1);
        maximum();
        exps(0, kSteps); sums();
        convert(0, kSteps);
        int n = nK + 1;
        auto body = [&](int i, bool check) {
          bar_wait(fullK + stage(n), phase(n));
          turn();
          gemm_s(stage(n));
          bar_wait(fullV + stage(n - 1), phase(n - 1));
          gemm_o(stage(n - 1), 0, BN / 16);
          pass();
          wg_wait<1>();
          hold(S);
          release(emptyK + stage(n));
          if (check) mask(i);
          maximum();
          auto landed = [&] {
            wg_wait<0>();
            hold(O);
            release(emptyV + stage(n - 1));
          };
#if RSC == 0
          exps(0, kSteps); sums(); landed(); scale_o(0, kSteps); convert(0, kSteps);
#elif RSC == 1
          landed(); scale_o(0, kSteps); exps(0, kSteps); sums(); convert(0, kSteps);
#elif RSC == 2
          exps(0, kSteps / 2); landed(); scale_o(0, kSteps); exps(kSteps / 2, kSteps); sums(); convert(0, kSteps);
#elif RSC == 3
          exps(0, kSteps / 4); landed(); scale_o(0, kSteps); exps(kSteps / 4, kSteps); sums(); convert(0, kSteps);
#elif RSC == 4
          exps(0, kSteps / 2); landed(); convert(0, kSteps / 2); scale_o(0, kSteps); exps(kSteps / 2, kSteps); sums(); convert(kSteps / 2, kSteps);
#elif RSC == 5
          landed();
#pragma unroll
          for (int k = 0; k < kSteps; ++k) { exps(k, k + 1); scale_o(k, k + 1); convert(k, k + 1); }
          sums();
#elif RSC == 6   // exactly interleaved: nothing crosses a step
          landed();
#pragma unroll
          for (int k = 0; k < kSteps; ++k) { exps(k, k + 1); scale_o(k, k + 1); if (k) convert(k - 1, k); asm volatile("" ::: "memory"); }
          convert(kSteps - 1, kSteps);
          sums();
#endif
          ++n;
        };
        int i = last - 2;
#if SPLIT
#pragma unroll 1
        for (; i >= masked; --i) body(i, true);
#pragma unroll 1
        for (; i >= 0; --i) body(i, false);
#else
#pragma unroll 1
        for (; i >= 0; --i) body(i, i >= masked);
#endif
        release_q();
        bar_wait(fullV + stage(n - 1), phase(n - 1));
        gemm_o(stage(n - 1), 0, BN / 16);
        wg_wait<0>();
        hold(O);
        release(emptyV + stage(n - 1));
#else
        int n = nK;
        auto body = [&](int i, bool check) {
          bar_wait(fullK + stage(n), phase(n));
          turn();
          gemm_s(stage(n));
          wg_wait<0>();
          hold(S);
          pass();
          release(emptyK + stage(n));
          if (check) mask(i);
          maximum();
          exps(0, kSteps); sums();
          scale_o(0, kSteps);
          convert(0, kSteps);
          bar_wait(fullV + stage(n), phase(n));
          gemm_o(stage(n), 0, BN / 16);
          wg_wait<0>();
          hold(O);
          release(emptyV + stage(n));
          ++n;
        };
        int i = last - 1;
#pragma unroll 1
        for (; i >= masked; --i) body(i, true);
#pragma unroll 1
        for (; i >= 0; --i) body(i, false);
        release_q();
#endif
        nK += last;
      } else {
        release_q();
      }
      // epilogue
      float inv[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        l[r] += __shfl_xor_sync(0xffffffff, l[r], 1);
        l[r] += __shfl_xor_sync(0xffffffff, l[r], 2);
        inv[r] = l[r] == 0 ? 0.0f : 1.0f / l[r];
      }
      unsigned char* mine = sO + w * 64 * 128;   // panels of BM rows, as Q's
      // the last tile's store has read the staging tile
      if (!OVER_Q && tid == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
      named_sync(10 + w, 128);
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {     // stmatrix x4: 16 columns
        uint32_t const r0 = pack(O[n * 8 + 0] * inv[0], O[n * 8 + 1] * inv[0]), r1 = pack(O[n * 8 + 2] * inv[1], O[n * 8 + 3] * inv[1]);
        uint32_t const r2 = pack(O[n * 8 + 4] * inv[0], O[n * 8 + 5] * inv[0]), r3 = pack(O[n * 8 + 6] * inv[1], O[n * 8 + 7] * inv[1]);
        int const row = warp * 16 + lane % 16, chunk = (n % 4) * 2 + lane / 16;
        unsigned const dst = smem(mine) + (n / 4) * BM * 128 + row * 128 + ((chunk ^ (row % 8)) * 16);
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(dst), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
      }
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      named_sync(10 + w, 128);
      if (tid == 0) {
        for (int p = 0; p < kPanels; ++p) tma_store(&mO, mine + p * BM * 128, p * 64, at.block * BM + w * 64, at.head, at.batch);
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        if (OVER_Q) {
          asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
          bar_arrive(emptyQ);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        int const q = at.block * BM + w * 64 + warp * 16 + lane / 4 + r * 8;
        if (lane % 4 == 0 && q < Sq) Lse[((int64_t)at.batch * Hq + at.head) * Sq + q] = l[r] == 0 ? -INFINITY : m[r] * scale + lg2(l[r]) * 0.6931471805599453f;
      }
    }
    if (tid == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    if (threadIdx.x == 128) counter[16 + blockIdx.x] = int((clock64() - began) >> 4);
  }
}
