// mqa_causal_scored_d64_bf16: made from TL 2b91aefa71c23083 for A100 (sm_80).
// launch: 128 threads, 49152 bytes of shared memory, for A100
// mqa_causal_scored_d64_bf16: 8 query heads, 1 key/value heads (8 query heads share one), head dim 64 (values 64), bf16
// tensors (B, S, H, D), B = any, Sq = any, Sk = any, any strides with a last one of 1
// score = scale * (q . k), scale given at each call (positive), 0.125 by default
// then score = score - exp2(-8 * (h + 1) / Hq) * (q_idx + Sk - Sq - kv_idx)
// visible keys: kv_idx <= q_idx + Sk - Sq; the last query is aligned with the last key
// weights: softmax over the visible keys; a row that sees none gives O = 0 and LSE = -inf
// outputs: O, LSE (LSE is a natural logarithm, of the modified scores)
#include "memory.cuh"

extern "C" __global__ void __launch_bounds__(128, 2) mqa_causal_scored_d64_bf16(
    tl::bf16 const* __restrict__ const gQ, int64_t const gQ_stride_0, int64_t const gQ_stride_1, int64_t const gQ_stride_2,
    tl::bf16 const* __restrict__ const gK, int64_t const gK_stride_0, int64_t const gK_stride_1, int64_t const gK_stride_2,
    tl::bf16 const* __restrict__ const gV, int64_t const gV_stride_0, int64_t const gV_stride_1, int64_t const gV_stride_2,
    tl::bf16* __restrict__ const gOut, int64_t const gOut_stride_0, int64_t const gOut_stride_1, int64_t const gOut_stride_2,
    float* __restrict__ const gLse, int64_t const gLse_stride_0, int64_t const gLse_stride_1,
    int const B, int const Sq, int const Sk, int const Hq, int const Hk,
    float const scale
) {
  constexpr int D = 64, BM = 128, BN = 128;
  constexpr int kThreads = 128;

  // tl:13 Grid head = 0 : Hq, block = 0 : ceildiv(Sq, BM) down, batch = 0 : B
  int const head = int(blockIdx.x);
  int const block = int(gridDim.y - 1 - blockIdx.y);
  int const batch = int(blockIdx.z);

  extern __shared__ __align__(1024) unsigned char shared_memory[];  // 49152 bytes
  // tl:20 Allocate Q in shared (BM q, D) bf16 swizzle 128
  tl::SharedTile<tl::bf16, 128, 64> const sQ{reinterpret_cast<tl::bf16*>(shared_memory + 0)};
  // tl:21 Allocate K in shared (BN k, D) bf16 swizzle 128
  tl::SharedTile<tl::bf16, 128, 64> const sK{reinterpret_cast<tl::bf16*>(shared_memory + 16384)};
  // tl:22 Allocate V in shared (BN k, D) bf16 swizzle 128
  tl::SharedTile<tl::bf16, 128, 64> const sV{reinterpret_cast<tl::bf16*>(shared_memory + 32768)};
  // tl:23 Allocate O_staged in shared (BM q, D) bf16 swizzle 128 over Q
  tl::SharedTile<tl::bf16, 128, 64> const sO_staged{reinterpret_cast<tl::bf16*>(shared_memory + 0)};

  // tl:24 Allocate S in register (BM q, BN k) f32
  tl::Accumulator<32, 128> rS;
  // tl:25 Allocate O in register (BM q, D) f32 = 0
  tl::Accumulator<32, 64> rO;
  rO.fill(0.0f);
  // tl:26 Allocate m in register (BM q) f32 = -inf
  tl::RowVector<32> rm;
  rm.fill(-tl::infinity());
  // tl:27 Allocate l in register (BM q) f32 = 0
  tl::RowVector<32> rl;
  rl.fill(0.0f);
  // tl:28 Let head_k = head // (Hq // Hk)
  int const head_k = tl::floor_div(head, tl::floor_div(Hq, Hk));
  tl::bf16 const* const gQ_at = gQ + int64_t(batch) * gQ_stride_0 + int64_t(head) * gQ_stride_2;
  // tl:30 Copy Q (BM, D) in coordinate [batch, q = block * BM, head] from global to shared async
  tl::copy_async_bounded<kThreads>(sQ, gQ_at + int64_t(block * BM) * gQ_stride_1, gQ_stride_1, Sq - block * BM);
  // tl:31 Let last = min(ceildiv(Sk, BN), ceildiv(block * BM + BM + Sk - Sq, BN))
  int const last = tl::min(tl::ceildiv(Sk, BN), tl::ceildiv(block * BM + BM + Sk - Sq, BN));
  tl::bf16 const* const gK_at = gK + int64_t(batch) * gK_stride_0 + int64_t(head_k) * gK_stride_2;
  int const gK_at_rows = (tl::inside(head_k, Hk) ? Sk : 0);
  // tl:32 if 0 < last
  if (0 < last) {
    // tl:33 Copy K (BN, D) in coordinate [batch, k = 0, head_k] from global to shared async
    tl::copy_async_bounded<kThreads>(sK, gK_at, gK_stride_1, gK_at_rows);
  }
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
  // tl:39 Commit
  tl::commit();
  // tl:40 Let masked = clamp(min((block * BM + Sk - Sq + 1) // BN, Sk // BN), 0, last)
  int const masked = tl::clamp(tl::min(tl::floor_div(block * BM + Sk - Sq + 1, BN), tl::floor_div(Sk, BN)), 0, last);
  tl::bf16 const* const gV_at = gV + int64_t(batch) * gV_stride_0 + int64_t(head_k) * gV_stride_2;
  int const gV_at_rows = (tl::inside(head_k, Hk) ? Sk : 0);
  // tl:41 for i = 0 : last
  #pragma unroll 1
  for (int i = 0; i < last; ++i) {
    // tl:42 Wait copies pending 0
    tl::wait<0>();
    // tl:43 Barrier
    tl::sync();
    // tl:44 Copy V (BN, D) in coordinate [batch, k = i * BN, head_k] from global to shared async
    tl::copy_async_bounded<kThreads>(sV, gV_at + int64_t(i * BN) * gV_stride_1, gV_stride_1, gV_at_rows - i * BN);
    // tl:45 Commit
    tl::commit();
    // tl:46 Compute GEMM Q, K.T at [k = i * BN] and get S
    tl::gemm_shared<true, false>(rS, sQ, sK);
    // tl:47 Wait copies pending 0
    tl::wait<0>();
    // tl:48 Barrier
    tl::sync();
    // tl:49 if i + 1 < last
    if (i + 1 < last) {
      // tl:50 Copy K (BN, D) in coordinate [batch, k = (i + 1) * BN, head_k] from global to shared async
      tl::copy_async_bounded<kThreads>(sK, gK_at + int64_t((i + 1) * BN) * gK_stride_1, gK_stride_1, gK_at_rows - (i + 1) * BN);
    }
    // tl:51 Commit
    tl::commit();
    // tl:52 Compute S * scale - exp2(-8 * (head + 1) / Hq) * (q + Sk - Sq - k) and get new S
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
    // tl:53 if i >= masked
    if (i >= masked) {
      // tl:54 Compute Mask S where k <= q + Sk - Sq and k < Sk
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
    // tl:55 Compute max(m, RowMax(S)) and get m_new
    #pragma unroll
    for (int r = 0; r < rm_new.kR; ++r) {
      rm_new(r) = tl::max(rm(r), tl::row_max(rS, r));
    }
    tl::RowVector<32> rm_safe;
    // tl:56 Compute where(m_new == -inf, 0, m_new) and get m_safe
    #pragma unroll
    for (int r = 0; r < rm_safe.kR; ++r) {
      rm_safe(r) = (rm_new(r) == -tl::infinity() ? 0.0f : rm_new(r));
    }
    tl::RowVector<32> ralpha;
    // tl:57 Compute exp2(m * log2e - m_safe * log2e) and get alpha
    #pragma unroll
    for (int r = 0; r < ralpha.kR; ++r) {
      ralpha(r) = tl::exp2(rm(r) * 1.4426950408889634f - rm_safe(r) * 1.4426950408889634f);
    }
    // tl:58 Compute exp2(S * log2e - m_safe * log2e) and get new S
    #pragma unroll
    for (int r = 0; r < rS.kR; ++r) {
      float const row_0 = rm_safe(r) * 1.4426950408889634f;
      #pragma unroll
      for (int c = 0; c < rS.kC; ++c) {
        rS(r, c) = tl::exp2(rS(r, c) * 1.4426950408889634f - row_0);
      }
    }
    // tl:59 Compute l * alpha + RowSum(S) and get new l
    #pragma unroll
    for (int r = 0; r < rl.kR; ++r) {
      rl(r) = rl(r) * ralpha(r) + tl::row_sum(rS, r);
    }
    // tl:60 Compute O * alpha and get new O
    #pragma unroll
    for (int r = 0; r < rO.kR; ++r) {
      #pragma unroll
      for (int c = 0; c < rO.kC; ++c) {
        rO(r, c) = rO(r, c) * ralpha(r);
      }
    }
    // tl:61 Compute m_new and get new m
    #pragma unroll
    for (int r = 0; r < rm.kR; ++r) {
      rm(r) = rm_new(r);
    }
    tl::Operand<tl::bf16, 32, 128> rP;
    // tl:62 Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as bf16 and get P
    rP = tl::to_operand<tl::bf16>(rS);
    // tl:63 Compute GEMM P, V at [k = i * BN] and accumulate O
    tl::gemm_operand<false, true>(rO, rP, sV);
  }
  // tl:65 Compute where(l == 0, 0, O / l) and get new O
  #pragma unroll
  for (int r = 0; r < rO.kR; ++r) {
    float const row_0 = tl::reciprocal(rl(r));
    #pragma unroll
    for (int c = 0; c < rO.kC; ++c) {
      rO(r, c) = (rl(r) == 0 ? 0.0f : rO(r, c) * row_0);
    }
  }
  // tl:66 Wait copies pending 5
  tl::wait<5>();
  // tl:67 Barrier
  tl::sync();
  // tl:68 Copy O from register to shared O_staged
  tl::stage_rows(sO_staged, rO);
  // tl:69 Barrier
  tl::sync();
  tl::bf16* const gOut_at = gOut + int64_t(batch) * gOut_stride_0 + int64_t(head) * gOut_stride_2;
  // tl:70 Copy O_staged (BM, D) in coordinate [batch, q = block * BM, head] from shared to global Out
  tl::store_tile<kThreads>(gOut_at + int64_t(block * BM) * gOut_stride_1, gOut_stride_1, sO_staged, Sq - block * BM);
  tl::RowVector<32> rlse;
  // tl:71 Compute where(l == 0, -inf, m + ln(l)) and get lse
  #pragma unroll
  for (int r = 0; r < rlse.kR; ++r) {
    rlse(r) = (rl(r) == 0 ? -tl::infinity() : rm(r) + tl::log(rl(r)));
  }
  float* const gLse_at = gLse + int64_t(batch) * gLse_stride_0 + int64_t(head) * gLse_stride_1;
  // tl:72 Copy lse (BM) in coordinate [batch, head, q = block * BM] from register to global Lse
  tl::store_vector(gLse_at + int64_t(block * BM), 1, rlse, Sq - block * BM);
}
