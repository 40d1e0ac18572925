// gqa_causal_d64_fp16: made from TL cfcaa5f28181797d for T4 (sm_75).
// launch: 128 threads, 32768 bytes of shared memory, for T4
// gqa_causal_d64_fp16: 8 query heads, 2 key/value heads (4 query heads share one), head dim 64 (values 64), fp16
// tensors (B, S, H, D), B = any, Sq = any, Sk = any, any strides with a last one of 1
// score = scale * (q . k), scale given at each call (positive), 0.125 by default
// visible keys: kv_idx <= q_idx + Sk - Sq; the last query is aligned with the last key
// weights: softmax over the visible keys; a row that sees none gives O = 0 and LSE = -inf
// outputs: O, LSE (LSE is a natural logarithm, of the modified scores)
#include "sm75.cuh"

extern "C" __global__ void __launch_bounds__(128, 2) gqa_causal_d64_fp16(
    tl::fp16 const* __restrict__ const gQ, int64_t const gQ_stride_0, int64_t const gQ_stride_1, int64_t const gQ_stride_2,
    tl::fp16 const* __restrict__ const gK, int64_t const gK_stride_0, int64_t const gK_stride_1, int64_t const gK_stride_2,
    tl::fp16 const* __restrict__ const gV, int64_t const gV_stride_0, int64_t const gV_stride_1, int64_t const gV_stride_2,
    tl::fp16* __restrict__ const gOut, int64_t const gOut_stride_0, int64_t const gOut_stride_1, int64_t const gOut_stride_2,
    float* __restrict__ const gLse, int64_t const gLse_stride_0, int64_t const gLse_stride_1,
    int const B, int const Sq, int const Sk, int const Hq, int const Hk,
    float const scale
) {
  constexpr int D = 64, BM = 64, BN = 96;
  constexpr int kThreads = 128;

  // tl:12 Grid head = 0 : Hq, block = 0 : ceildiv(Sq, BM) down, batch = 0 : B
  int const head = int(blockIdx.x);
  int const block = int(gridDim.y - 1 - blockIdx.y);
  int const batch = int(blockIdx.z);

  extern __shared__ __align__(1024) unsigned char shared_memory[];  // 32768 bytes
  // tl:19 Allocate Q in shared (BM q, D) fp16 swizzle 128
  tl::SharedTile<tl::fp16, 64, 64> const sQ{reinterpret_cast<tl::fp16*>(shared_memory + 0)};
  // tl:20 Allocate K in shared (BN k, D) fp16 swizzle 128
  tl::SharedTile<tl::fp16, 96, 64> const sK{reinterpret_cast<tl::fp16*>(shared_memory + 8192)};
  // tl:21 Allocate V in shared (BN k, D) fp16 swizzle 128
  tl::SharedTile<tl::fp16, 96, 64> const sV{reinterpret_cast<tl::fp16*>(shared_memory + 20480)};
  // tl:22 Allocate O_staged in shared (BM q, D) fp16 swizzle 128 over Q
  tl::SharedTile<tl::fp16, 64, 64> const sO_staged{reinterpret_cast<tl::fp16*>(shared_memory + 0)};

  // tl:23 Allocate S in register (BM q, BN k) f32
  tl::Accumulator<16, 96> rS;
  // tl:24 Allocate O in register (BM q, D) f32 = 0
  tl::Accumulator<16, 64> rO;
  rO.fill(0.0f);
  // tl:25 Allocate m in register (BM q) f32 = -inf
  tl::RowVector<16> rm;
  rm.fill(-tl::infinity());
  // tl:26 Allocate l in register (BM q) f32 = 0
  tl::RowVector<16> rl;
  rl.fill(0.0f);
  // tl:27 Let head_k = head // (Hq // Hk)
  int const head_k = tl::floor_div(head, tl::floor_div(Hq, Hk));
  tl::fp16 const* const gQ_at = gQ + int64_t(batch) * gQ_stride_0 + int64_t(head) * gQ_stride_2;
  // tl:29 Copy Q (BM, D) in coordinate [batch, q = block * BM, head] from global to shared
  tl::copy<kThreads>(sQ, gQ_at + int64_t(block * BM) * gQ_stride_1, gQ_stride_1, 0, Sq - block * BM);
  // tl:30 Let last = min(ceildiv(Sk, BN), ceildiv(block * BM + BM + Sk - Sq, BN))
  int const last = tl::min(tl::ceildiv(Sk, BN), tl::ceildiv(block * BM + BM + Sk - Sq, BN));
  tl::fp16 const* const gK_at = gK + int64_t(batch) * gK_stride_0 + int64_t(head_k) * gK_stride_2;
  int const gK_at_rows = (tl::inside(head_k, Hk) ? Sk : 0);
  // tl:31 if 0 < last
  if (0 < last) {
    // tl:32 Copy K (BN, D) in coordinate [batch, k = 0, head_k] from global to shared
    tl::copy<kThreads>(sK, gK_at, gK_stride_1, 0, gK_at_rows);
  }
  // tl:33 Barrier
  tl::sync();
  // tl:34 Let masked = clamp(min((block * BM + Sk - Sq + 1) // BN, Sk // BN), 0, last)
  int const masked = tl::clamp(tl::min(tl::floor_div(block * BM + Sk - Sq + 1, BN), tl::floor_div(Sk, BN)), 0, last);
  tl::fp16 const* const gV_at = gV + int64_t(batch) * gV_stride_0 + int64_t(head_k) * gV_stride_2;
  int const gV_at_rows = (tl::inside(head_k, Hk) ? Sk : 0);
  // tl:35 for i = 0 : last
  #pragma unroll 1
  for (int i = 0; i < last; ++i) {
    // tl:36 Allocate K_next in register (BN k, D) fp16 contiguous D
    tl::Pieces<tl::fp16, kThreads, 96, 64> rK_next;
    // tl:37 if i + 1 < last
    if (i + 1 < last) {
      // tl:38 Copy K (BN, D) in coordinate [batch, k = (i + 1) * BN, head_k] from global to register K_next
      tl::load_pieces(rK_next, gK_at + int64_t((i + 1) * BN) * gK_stride_1, gK_stride_1, 0, gK_at_rows - (i + 1) * BN);
    }
    // tl:39 Allocate V_next in register (BN k, D) fp16 contiguous D
    tl::Pieces<tl::fp16, kThreads, 96, 64> rV_next;
    // tl:40 Copy V (BN, D) in coordinate [batch, k = i * BN, head_k] from global to register V_next
    tl::load_pieces(rV_next, gV_at + int64_t(i * BN) * gV_stride_1, gV_stride_1, 0, gV_at_rows - i * BN);
    // tl:41 Compute GEMM Q, K.T at [k = i * BN] and get S
    tl::gemm_shared<true, false, tl::Depth8>(rS, sQ, sK);
    // tl:42 Barrier
    tl::sync();
    // tl:43 if i + 1 < last
    if (i + 1 < last) {
      // tl:44 Copy K_next from register to shared K
      tl::store_pieces(sK, rK_next);
    }
    // tl:45 if i >= masked
    if (i >= masked) {
      // tl:46 Compute Mask S where k <= q + Sk - Sq and k < Sk
      #pragma unroll
      for (int r = 0; r < rS.kR; ++r) {
        int const q = block * BM + tl::tile_row<16>(r);
        #pragma unroll
        for (int c = 0; c < rS.kC; ++c) {
          int const k = i * BN + tl::tile_col(c);
          rS(r, c) = k <= q + Sk - Sq && k < Sk ? rS(r, c) : tl::negative_infinity();
        }
      }
    }
    tl::RowVector<16> rm_new;
    // tl:47 Compute max(m, RowMax(S)) and get m_new
    #pragma unroll
    for (int r = 0; r < rm_new.kR; ++r) {
      rm_new(r) = tl::max(rm(r), tl::row_max(rS, r));
    }
    tl::RowVector<16> rm_safe;
    // tl:48 Compute where(m_new == -inf, 0, m_new) and get m_safe
    #pragma unroll
    for (int r = 0; r < rm_safe.kR; ++r) {
      rm_safe(r) = (rm_new(r) == -tl::infinity() ? 0.0f : rm_new(r));
    }
    tl::RowVector<16> ralpha;
    // tl:49 Compute exp2(m * (scale * log2e) - m_safe * (scale * log2e)) and get alpha
    #pragma unroll
    for (int r = 0; r < ralpha.kR; ++r) {
      ralpha(r) = tl::exp2(rm(r) * (scale * 1.4426950408889634f) - rm_safe(r) * (scale * 1.4426950408889634f));
    }
    // tl:50 Compute exp2(S * (scale * log2e) - m_safe * (scale * log2e)) and get new S
    #pragma unroll
    for (int r = 0; r < rS.kR; ++r) {
      float const factor_0 = scale * 1.4426950408889634f;
      float const row_1 = rm_safe(r) * factor_0;
      #pragma unroll
      for (int c = 0; c < rS.kC; ++c) {
        rS(r, c) = tl::exp2(rS(r, c) * factor_0 - row_1);
      }
    }
    // tl:51 Compute l * alpha + RowSum(S) and get new l
    #pragma unroll
    for (int r = 0; r < rl.kR; ++r) {
      rl(r) = rl(r) * ralpha(r) + tl::row_sum(rS, r);
    }
    // tl:52 Compute O * alpha and get new O
    #pragma unroll
    for (int r = 0; r < rO.kR; ++r) {
      #pragma unroll
      for (int c = 0; c < rO.kC; ++c) {
        rO(r, c) = rO(r, c) * ralpha(r);
      }
    }
    // tl:53 Compute m_new and get new m
    #pragma unroll
    for (int r = 0; r < rm.kR; ++r) {
      rm(r) = rm_new(r);
    }
    // tl:54 Copy V_next from register to shared V
    tl::store_pieces(sV, rV_next);
    tl::Operand<tl::fp16, 16, 96> rP;
    // tl:55 Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as fp16 and get P
    rP = tl::to_operand<tl::fp16>(rS);
    // tl:56 Barrier
    tl::sync();
    // tl:57 Compute GEMM P, V and accumulate O
    tl::gemm_operand<false, true, tl::Depth8>(rO, rP, sV);
  }
  // tl:59 Compute where(l == 0, 0, O / l) and get new O
  #pragma unroll
  for (int r = 0; r < rO.kR; ++r) {
    float const row_0 = tl::reciprocal(rl(r));
    #pragma unroll
    for (int c = 0; c < rO.kC; ++c) {
      rO(r, c) = (rl(r) == 0 ? 0.0f : rO(r, c) * row_0);
    }
  }
  // tl:60 Copy O from register to shared O_staged
  tl::stage_rows(sO_staged, rO);
  // tl:61 Barrier
  tl::sync();
  tl::fp16* const gOut_at = gOut + int64_t(batch) * gOut_stride_0 + int64_t(head) * gOut_stride_2;
  // tl:62 Copy O_staged (BM, D) in coordinate [batch, q = block * BM, head] from shared to global Out
  tl::store_tile<kThreads>(gOut_at + int64_t(block * BM) * gOut_stride_1, gOut_stride_1, sO_staged, Sq - block * BM);
  tl::RowVector<16> rlse;
  // tl:63 Compute where(l == 0, -inf, m * scale + ln(l)) and get lse
  #pragma unroll
  for (int r = 0; r < rlse.kR; ++r) {
    rlse(r) = (rl(r) == 0 ? -tl::infinity() : rm(r) * scale + tl::log(rl(r)));
  }
  float* const gLse_at = gLse + int64_t(batch) * gLse_stride_0 + int64_t(head) * gLse_stride_1;
  // tl:64 Copy lse (BM) in coordinate [batch, head, q = block * BM] from register to global Lse
  tl::store_vector(gLse_at + int64_t(block * BM), 1, rlse, Sq - block * BM);
}
