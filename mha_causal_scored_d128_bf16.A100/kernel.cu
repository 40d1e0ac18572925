// mha_causal_scored_d128_bf16: made from TL 22d315af4b1e86a5 for A100 (sm_80).
// launch: 128 threads, 65536 bytes of shared memory, for A100
// mha_causal_scored_d128_bf16: 8 query heads, 8 key/value heads (one for each query head), head dim 128 (values 128), bf16
// tensors (B, S, H, D), B = any, Sq = any, Sk = any, any strides with a last one of 1
// score = scale * (q . k), scale given at each call (positive), 0.0883883 by default
// then score = score - exp2(-8 * (h + 1) / Hq) * (q_idx + Sk - Sq - kv_idx)
// visible keys: kv_idx <= q_idx + Sk - Sq; the last query is aligned with the last key
// weights: softmax over the visible keys; a row that sees none gives O = 0 and LSE = -inf
// outputs: O, LSE (LSE is a natural logarithm, of the modified scores)
#include "memory.cuh"

extern "C" __global__ void __launch_bounds__(128, 2) mha_causal_scored_d128_bf16(
    tl::bf16 const* __restrict__ const gQ, int64_t const gQ_stride_0, int64_t const gQ_stride_1, int64_t const gQ_stride_2,
    tl::bf16 const* __restrict__ const gK, int64_t const gK_stride_0, int64_t const gK_stride_1, int64_t const gK_stride_2,
    tl::bf16 const* __restrict__ const gV, int64_t const gV_stride_0, int64_t const gV_stride_1, int64_t const gV_stride_2,
    tl::bf16* __restrict__ const gOut, int64_t const gOut_stride_0, int64_t const gOut_stride_1, int64_t const gOut_stride_2,
    float* __restrict__ const gLse, int64_t const gLse_stride_0, int64_t const gLse_stride_1,
    int const B, int const Sq, int const Sk, int const Hq,
    float const scale
) {
  constexpr int D = 128, BM = 128, BN = 64;
  constexpr int kThreads = 128;

  // tl:13 Grid head = 0 : Hq, block = 0 : ceildiv(Sq, BM) down, batch = 0 : B
  int const head = int(blockIdx.x);
  int const block = int(gridDim.y - 1 - blockIdx.y);
  int const batch = int(blockIdx.z);

  extern __shared__ __align__(1024) unsigned char shared_memory[];  // 65536 bytes
  // tl:20 Allocate Q in shared (BM q, D) bf16 swizzle 128
  tl::SharedTile<tl::bf16, 128, 128> const sQ{reinterpret_cast<tl::bf16*>(shared_memory + 0)};
  // tl:21 Allocate K in shared (BN k, D) bf16 swizzle 128
  tl::SharedTile<tl::bf16, 64, 128> const sK{reinterpret_cast<tl::bf16*>(shared_memory + 32768)};
  // tl:22 Allocate V in shared (BN k, D) bf16 swizzle 128
  tl::SharedTile<tl::bf16, 64, 128> const sV{reinterpret_cast<tl::bf16*>(shared_memory + 49152)};
  // tl:23 Allocate O_staged in shared (BM q, D) bf16 swizzle 128 over Q
  tl::SharedTile<tl::bf16, 128, 128> const sO_staged{reinterpret_cast<tl::bf16*>(shared_memory + 0)};

  // tl:24 Allocate S in register (BM q, BN k) f32
  tl::Accumulator<32, 64> rS;
  // tl:25 Allocate O in register (BM q, D) f32 = 0
  tl::Accumulator<32, 128> rO;
  rO.fill(0.0f);
  // tl:26 Allocate m in register (BM q) f32 = -inf
  tl::RowVector<32> rm;
  rm.fill(-tl::infinity());
  // tl:27 Allocate l in register (BM q) f32 = 0
  tl::RowVector<32> rl;
  rl.fill(0.0f);
  tl::bf16 const* const gQ_at = gQ + int64_t(batch) * gQ_stride_0 + int64_t(head) * gQ_stride_2;
  // tl:29 Copy Q (BM, D) in coordinate [batch, q = block * BM, head] from global to shared async
  tl::copy_async_bounded<kThreads>(sQ, gQ_at + int64_t(block * BM) * gQ_stride_1, gQ_stride_1, Sq - block * BM);
  // tl:30 Let last = min(ceildiv(Sk, BN), ceildiv(block * BM + BM + Sk - Sq, BN))
  int const last = tl::min(tl::ceildiv(Sk, BN), tl::ceildiv(block * BM + BM + Sk - Sq, BN));
  tl::bf16 const* const gK_at = gK + int64_t(batch) * gK_stride_0 + int64_t(head) * gK_stride_2;
  // tl:31 if 0 < last
  if (0 < last) {
    // tl:32 Copy K (BN, D) in coordinate [batch, k = 0, head] from global to shared async
    tl::copy_async_bounded<kThreads>(sK, gK_at, gK_stride_1, Sk);
  }
  // tl:33 Commit
  tl::commit();
  // tl:34 Commit
  tl::commit();
  // tl:35 Commit
  tl::commit();
  // tl:36 Commit
  tl::commit();
  // tl:37 Commit
  tl::commit();
  // tl:38 Commit
  tl::commit();
  // tl:39 Let masked = clamp(min((block * BM + Sk - Sq + 1) // BN, Sk // BN), 0, last)
  int const masked = tl::clamp(tl::min(tl::floor_div(block * BM + Sk - Sq + 1, BN), tl::floor_div(Sk, BN)), 0, last);
  tl::bf16 const* const gV_at = gV + int64_t(batch) * gV_stride_0 + int64_t(head) * gV_stride_2;
  // tl:40 for i = 0 : last
  #pragma unroll 1
  for (int i = 0; i < last; ++i) {
    // tl:41 Wait copies pending 0
    tl::wait<0>();
    // tl:42 Barrier
    tl::sync();
    // tl:43 Copy V (BN, D) in coordinate [batch, k = i * BN, head] from global to shared async
    tl::copy_async_bounded<kThreads>(sV, gV_at + int64_t(i * BN) * gV_stride_1, gV_stride_1, Sk - i * BN);
    // tl:44 Commit
    tl::commit();
    // tl:45 Compute GEMM Q, K.T at [k = i * BN] and get S
    tl::gemm_shared<true, false>(rS, sQ, sK);
    // tl:46 Wait copies pending 0
    tl::wait<0>();
    // tl:47 Barrier
    tl::sync();
    // tl:48 if i + 1 < last
    if (i + 1 < last) {
      // tl:49 Copy K (BN, D) in coordinate [batch, k = (i + 1) * BN, head] from global to shared async
      tl::copy_async_bounded<kThreads>(sK, gK_at + int64_t((i + 1) * BN) * gK_stride_1, gK_stride_1, Sk - (i + 1) * BN);
    }
    // tl:50 Commit
    tl::commit();
    // tl:51 Compute S * scale - exp2(-8 * (head + 1) / Hq) * (q + Sk - Sq - k) and get new S
    #pragma unroll
    for (int r = 0; r < rS.kR; ++r) {
      int const q = block * BM + tl::tile_row<32>(r);
      float const factor_0 = tl::exp2(float(-8 * (head + 1)) * tl::reciprocal(float(Hq)));
      #pragma unroll
      for (int c = 0; c < rS.kC; ++c) {
        int const k = i * BN + tl::tile_col(c);
        rS(r, c) = rS(r, c) * scale - factor_0 * float(q + Sk - Sq - k);
      }
    }
    // tl:52 if i >= masked
    if (i >= masked) {
      // tl:53 Compute Mask S where k <= q + Sk - Sq and k < Sk
      #pragma unroll
      for (int r = 0; r < rS.kR; ++r) {
        int const q = block * BM + tl::tile_row<32>(r);
        #pragma unroll
        for (int c = 0; c < rS.kC; ++c) {
          int const k = i * BN + tl::tile_col(c);
          rS(r, c) = k <= q + Sk - Sq && k < Sk ? rS(r, c) : tl::negative_infinity();
        }
      }
    }
    tl::RowVector<32> rm_new;
    // tl:54 Compute max(m, RowMax(S)) and get m_new
    #pragma unroll
    for (int r = 0; r < rm_new.kR; ++r) {
      rm_new(r) = tl::max(rm(r), tl::row_max(rS, r));
    }
    tl::RowVector<32> rm_safe;
    // tl:55 Compute where(m_new == -inf, 0, m_new) and get m_safe
    #pragma unroll
    for (int r = 0; r < rm_safe.kR; ++r) {
      rm_safe(r) = (rm_new(r) == -tl::infinity() ? 0.0f : rm_new(r));
    }
    tl::RowVector<32> ralpha;
    // tl:56 Compute exp2(m * log2e - m_safe * log2e) and get alpha
    #pragma unroll
    for (int r = 0; r < ralpha.kR; ++r) {
      ralpha(r) = tl::exp2(rm(r) * 1.4426950408889634f - rm_safe(r) * 1.4426950408889634f);
    }
    // tl:57 Compute exp2(S * log2e - m_safe * log2e) and get new S
    #pragma unroll
    for (int r = 0; r < rS.kR; ++r) {
      float const row_0 = rm_safe(r) * 1.4426950408889634f;
      #pragma unroll
      for (int c = 0; c < rS.kC; ++c) {
        rS(r, c) = tl::exp2(rS(r, c) * 1.4426950408889634f - row_0);
      }
    }
    // tl:58 Compute l * alpha + RowSum(S) and get new l
    #pragma unroll
    for (int r = 0; r < rl.kR; ++r) {
      rl(r) = rl(r) * ralpha(r) + tl::row_sum(rS, r);
    }
    // tl:59 Compute O * alpha and get new O
    #pragma unroll
    for (int r = 0; r < rO.kR; ++r) {
      #pragma unroll
      for (int c = 0; c < rO.kC; ++c) {
        rO(r, c) = rO(r, c) * ralpha(r);
      }
    }
    // tl:60 Compute m_new and get new m
    #pragma unroll
    for (int r = 0; r < rm.kR; ++r) {
      rm(r) = rm_new(r);
    }
    tl::Operand<tl::bf16, 32, 64> rP;
    // tl:61 Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as bf16 and get P
    rP = tl::to_operand<tl::bf16>(rS);
    // tl:62 Compute GEMM P, V at [k = i * BN] and accumulate O
    tl::gemm_operand<false, true>(rO, rP, sV);
  }
  // tl:64 Compute where(l == 0, 0, O / l) and get new O
  #pragma unroll
  for (int r = 0; r < rO.kR; ++r) {
    float const row_0 = tl::reciprocal(rl(r));
    #pragma unroll
    for (int c = 0; c < rO.kC; ++c) {
      rO(r, c) = (rl(r) == 0 ? 0.0f : rO(r, c) * row_0);
    }
  }
  // tl:65 Wait copies pending 5
  tl::wait<5>();
  // tl:66 Barrier
  tl::sync();
  // tl:67 Copy O from register to shared O_staged
  tl::stage_rows(sO_staged, rO);
  // tl:68 Barrier
  tl::sync();
  tl::bf16* const gOut_at = gOut + int64_t(batch) * gOut_stride_0 + int64_t(head) * gOut_stride_2;
  // tl:69 Copy O_staged (BM, D) in coordinate [batch, q = block * BM, head] from shared to global Out
  tl::store_tile<kThreads>(gOut_at + int64_t(block * BM) * gOut_stride_1, gOut_stride_1, sO_staged, Sq - block * BM);
  tl::RowVector<32> rlse;
  // tl:70 Compute where(l == 0, -inf, m + ln(l)) and get lse
  #pragma unroll
  for (int r = 0; r < rlse.kR; ++r) {
    rlse(r) = (rl(r) == 0 ? -tl::infinity() : rm(r) + tl::log(rl(r)));
  }
  float* const gLse_at = gLse + int64_t(batch) * gLse_stride_0 + int64_t(head) * gLse_stride_1;
  // tl:71 Copy lse (BM) in coordinate [batch, head, q = block * BM] from register to global Lse
  tl::store_vector(gLse_at + int64_t(block * BM), 1, rlse, Sq - block * BM);
}
