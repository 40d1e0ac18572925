// gqa_causal: made from TL a3ed0ccb668b1577 for H200 (sm_90a).
// launch: 384 threads, 196688 bytes of shared memory, for H200
// Causal grouped-query attention, forward, for an H200, scheduled: gqa_h200.tl with its Schedule written out.
// A producer warp fills rings through the copy engine; two consumer warpgroups take 64 rows each and issue their GEMMs in
// turn, so that the one's exponentials run under the other's GEMMs. Within a warpgroup the GEMM of S for this tile runs
// beside the GEMM of the previous tile's P and V, and the row statistics of this tile beside the latter.
// 384 threads: 24 * 128 + 240 * 256 = 64,512 of 65,536 registers.
#include "sm90.cuh"

extern "C" __global__ void __launch_bounds__(384, 1) gqa_causal(
    tl::bf16 const* __restrict__ const gQ, int64_t const gQ_stride_0, int64_t const gQ_stride_1, int64_t const gQ_stride_2,
    tl::bf16 const* __restrict__ const gK, int64_t const gK_stride_0, int64_t const gK_stride_1, int64_t const gK_stride_2,
    tl::bf16 const* __restrict__ const gV, int64_t const gV_stride_0, int64_t const gV_stride_1, int64_t const gV_stride_2,
    tl::bf16* __restrict__ const gOut, int64_t const gOut_stride_0, int64_t const gOut_stride_1, int64_t const gOut_stride_2,
    float* __restrict__ const gLse, int64_t const gLse_stride_0, int64_t const gLse_stride_1,
    int const B, int const Sq, int const Sk, int const Hq, int const Hk,
    float const scale,
    __grid_constant__ tl::TensorMap const mQ_1x128x1x64,
    __grid_constant__ tl::TensorMap const mK_1x128x1x64,
    __grid_constant__ tl::TensorMap const mV_1x128x1x64,
    __grid_constant__ tl::TensorMap const mOut_1x64x1x64
) {
  constexpr int D = 128, BM = 128, BN = 128;
  constexpr int kThreads = 384;

  // tl:11 Grid head = 0 : Hq, block = 0 : ceildiv(Sq, BM) down, batch = 0 : B persistent
  int const head_count = Hq;
  int const block_count = tl::ceildiv(Sq, BM);
  int const batch_count = B;
  tl::Divisor const head_divisor(head_count);
  tl::Divisor const block_divisor(block_count);
  int const tiles = head_count * block_count * batch_count;

  extern __shared__ __align__(1024) unsigned char shared_memory[];  // 196688 bytes
  // tl:17 Allocate Q in shared (BM q, D) bf16 swizzle 128
  tl::PanelTile<tl::bf16, 128, 128> const sQ{reinterpret_cast<tl::bf16*>(shared_memory + 0)};
  // tl:18 Allocate K in shared (BN k, D) bf16 stages 2 swizzle 128
  tl::PanelTile<tl::bf16, 128, 128> const sK{reinterpret_cast<tl::bf16*>(shared_memory + 32768)};
  // tl:19 Allocate V in shared (BN k, D) bf16 stages 2 swizzle 128
  tl::PanelTile<tl::bf16, 128, 128> const sV{reinterpret_cast<tl::bf16*>(shared_memory + 98304)};
  // tl:20 Allocate O_staged in shared (64 q, D) bf16 stages 2 swizzle 128
  tl::PanelTile<tl::bf16, 64, 128> const sO_staged{reinterpret_cast<tl::bf16*>(shared_memory + 163840)};

  // the rings' barriers: full by one copy, empty when every warpgroup that reads has released
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared_memory + 196608);
  tl::Ring<1> const Q_ring{barriers + 0};
  tl::Ring<2> const K_ring{barriers + 2};
  tl::Ring<2> const V_ring{barriers + 6};
  if (threadIdx.x == 0) {
    Q_ring.init(2);
    K_ring.init(2);
    V_ring.init(2);
  }
  tl::rings_are_ready();
  int const group = tl::group_index();

  // tl:21 role producer registers 24
  if (group < 1) {
    tl::give_registers<24>();
    int Q_uses = 0;
    int K_uses = 0;
    int V_uses = 0;
    // one thread waits and starts copies
    if (tl::leads_group()) {
      // tl:22 for t in tiles
      for (int t_round = 0, t = int(blockIdx.x); t < tiles; t = tl::tile_of_round(++t_round)) {
        uint32_t t_rest = t;
        int const head = head_divisor.split(t_rest);
        int const block = block_count - 1 - block_divisor.split(t_rest);
        int const batch = int(t_rest);
        // tl:23 Let head_k = head // (Hq // Hk)
        int const head_k = tl::floor_div(head, tl::floor_div(Hq, Hk));
        // tl:24 Let first = 0
        int const first = 0;
        // tl:25 Let last = ceildiv(clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN)
        int const last = tl::ceildiv(tl::clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN);
        // tl:26 Wait Q.empty
        Q_ring.wait_empty(Q_uses);
        // tl:27 Copy Q (BM, D) in coordinate [batch, q = block * BM, head] from global to shared async signals Q.full
        tl::load_tile(sQ, mQ_1x128x1x64, Q_ring.full(Q_uses), head, block * BM, batch);
        ++Q_uses;
        // tl:28 for i = first : last + 1
        #pragma unroll 1
        for (int i = first; i < last + 1; ++i) {
          // tl:29 if i < last
          if (i < last) {
            // tl:30 Wait K.empty
            K_ring.wait_empty(K_uses);
            // tl:31 Copy K (BN, D) in coordinate [batch, k = i * BN, head_k] from global to shared async signals K.full
            tl::load_tile(tl::stage(sK, K_ring.slot(K_uses)), mK_1x128x1x64, K_ring.full(K_uses), head_k, i * BN, batch);
            ++K_uses;
          }
          // tl:32 if i > first
          if (i > first) {
            // tl:33 Wait V.empty
            V_ring.wait_empty(V_uses);
            // tl:34 Copy V (BN, D) in coordinate [batch, k = (i - 1) * BN, head_k] from global to shared async signals V.full
            tl::load_tile(tl::stage(sV, V_ring.slot(V_uses)), mV_1x128x1x64, V_ring.full(V_uses), head_k, (i - 1) * BN, batch);
            ++V_uses;
          }
        }
      }
    }
  }

  // tl:37 role consumer w = 0 : 2 registers 240
  else {
    tl::take_registers<240>();
    int const w = group - 1;
    int Q_uses = 0;
    int K_uses = 0;
    int V_uses = 0;
    tl::open_turns<2>(group - 1);
    // tl:38 for t in tiles
    for (int t_round = 0, t = int(blockIdx.x); t < tiles; t = tl::tile_of_round(++t_round)) {
      uint32_t t_rest = t;
      int const head = head_divisor.split(t_rest);
      int const block = block_count - 1 - block_divisor.split(t_rest);
      int const batch = int(t_rest);
      // tl:39 Allocate S in register (64 q, BN k) f32
      tl::Accumulator<16, 128> rS;
      // tl:40 Allocate O in register (64 q, D) f32 = 0
      tl::Accumulator<16, 128> rO;
      rO.fill(0.0f);
      // tl:41 Allocate m in register (64 q) f32 = -inf
      tl::RowVector<16> rm;
      rm.fill(-tl::infinity());
      // tl:42 Allocate l in register (64 q) f32 = 0
      tl::RowVector<16> rl;
      rl.fill(0.0f);
      // tl:43 Let first = 0
      int const first = 0;
      // tl:44 Let last = ceildiv(clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN)
      int const last = tl::ceildiv(tl::clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN);
      // tl:45 Let masked = clamp(min((block * BM + Sk - Sq + 1) // BN, Sk // BN), 0, last)
      int const masked = tl::clamp(tl::min(tl::floor_div(block * BM + Sk - Sq + 1, BN), tl::floor_div(Sk, BN)), 0, last);
      // tl:46 Wait Q.full
      Q_ring.wait_full(Q_uses);
      tl::Operand<tl::bf16, 16, 128> rP;
      // tl:47 if first < last
      if (first < last) {
        // tl:48 Wait K.full
        K_ring.wait_full(K_uses);
        // tl:49 Wait turn w
        tl::wait_turn(w);
        // tl:50 Compute GEMM Q[w * 64 : (w + 1) * 64], K.T at [k = first * BN] and get S async
        tl::start_gemm<true, false>(rS, sQ, w * 64, tl::stage(sK, K_ring.slot(K_uses)));
        // tl:51 Pass turn
        tl::pass_turn<2>(group - 1);
        // tl:52 Wait gemm pending 0
        tl::wait_gemm<0>();
        tl::landed(rS);
        // tl:53 Release K
        K_ring.release(K_uses++);
        // tl:54 if first >= masked
        if (first >= masked) {
          // tl:55 Compute Mask S where k <= q + Sk - Sq and k < Sk
          #pragma unroll
          for (int r = 0; r < rS.kR; ++r) {
            int const q = block * BM + w * 64 + tl::group_row(r);
            #pragma unroll
            for (int c = 0; c < rS.kC; ++c) {
              int const k = first * BN + tl::tile_col(c);
              rS(r, c) = k <= q + Sk - Sq && k < Sk ? rS(r, c) : tl::negative_infinity();
            }
          }
        }
        tl::RowVector<16> rm_new;
        // tl:56 Compute max(m, RowMax(S)) and get m_new
        #pragma unroll
        for (int r = 0; r < rm_new.kR; ++r) {
          rm_new(r) = tl::max(rm(r), tl::row_max(rS, r));
        }
        tl::RowVector<16> rm_safe;
        // tl:57 Compute where(m_new == -inf, 0, m_new) and get m_safe
        #pragma unroll
        for (int r = 0; r < rm_safe.kR; ++r) {
          rm_safe(r) = (rm_new(r) == -tl::infinity() ? 0.0f : rm_new(r));
        }
        tl::RowVector<16> ralpha;
        // tl:58 Compute exp2(m * (scale * log2e) - m_safe * (scale * log2e)) and get alpha
        #pragma unroll
        for (int r = 0; r < ralpha.kR; ++r) {
          ralpha(r) = tl::exp2(rm(r) * (scale * 1.4426950408889634f) - rm_safe(r) * (scale * 1.4426950408889634f));
        }
        // tl:59 Compute exp2(S * (scale * log2e) - m_safe * (scale * log2e)) and get new S
        #pragma unroll
        for (int r = 0; r < rS.kR; ++r) {
          float const factor_0 = scale * 1.4426950408889634f;
          float const row_1 = rm_safe(r) * factor_0;
          #pragma unroll
          for (int c = 0; c < rS.kC; ++c) {
            rS(r, c) = tl::exp2(rS(r, c) * factor_0 - row_1);
          }
        }
        // tl:60 Compute l * alpha + RowSum(S) and get new l
        #pragma unroll
        for (int r = 0; r < rl.kR; ++r) {
          rl(r) = rl(r) * ralpha(r) + tl::row_sum(rS, r);
        }
        // tl:61 Compute m_new and get new m
        #pragma unroll
        for (int r = 0; r < rm.kR; ++r) {
          rm(r) = rm_new(r);
        }
        // tl:62 Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as bf16 and get P
        rP = tl::to_operand<tl::bf16>(rS);
        // tl:63 for i = first + 1 : last
        #pragma unroll 1
        for (int i = first + 1; i < last; ++i) {
          // tl:64 Wait K.full
          K_ring.wait_full(K_uses);
          // tl:65 Wait turn w
          tl::wait_turn(w);
          // tl:66 Compute GEMM Q[w * 64 : (w + 1) * 64], K.T at [k = i * BN] and get S async
          tl::start_gemm<true, false>(rS, sQ, w * 64, tl::stage(sK, K_ring.slot(K_uses)));
          // tl:67 Wait V.full
          V_ring.wait_full(V_uses);
          // tl:68 Compute GEMM P, V at [k = (i - 1) * BN] and accumulate O async
          tl::start_gemm<false, true>(rO, rP, tl::stage(sV, V_ring.slot(V_uses)));
          // tl:69 Pass turn
          tl::pass_turn<2>(group - 1);
          // tl:70 Wait gemm pending 1
          tl::wait_gemm<1>();
          tl::landed(rS);
          // tl:71 Release K
          K_ring.release(K_uses++);
          // tl:72 if i >= masked
          if (i >= masked) {
            // tl:73 Compute Mask S where k <= q + Sk - Sq and k < Sk
            #pragma unroll
            for (int r = 0; r < rS.kR; ++r) {
              int const q = block * BM + w * 64 + tl::group_row(r);
              #pragma unroll
              for (int c = 0; c < rS.kC; ++c) {
                int const k = i * BN + tl::tile_col(c);
                rS(r, c) = k <= q + Sk - Sq && k < Sk ? rS(r, c) : tl::negative_infinity();
              }
            }
          }
          // tl:74 Compute max(m, RowMax(S)) and get m_new
          #pragma unroll
          for (int r = 0; r < rm_new.kR; ++r) {
            rm_new(r) = tl::max(rm(r), tl::row_max(rS, r));
          }
          // tl:75 Compute where(m_new == -inf, 0, m_new) and get m_safe
          #pragma unroll
          for (int r = 0; r < rm_safe.kR; ++r) {
            rm_safe(r) = (rm_new(r) == -tl::infinity() ? 0.0f : rm_new(r));
          }
          // tl:76 Compute exp2(m * (scale * log2e) - m_safe * (scale * log2e)) and get alpha
          #pragma unroll
          for (int r = 0; r < ralpha.kR; ++r) {
            ralpha(r) = tl::exp2(rm(r) * (scale * 1.4426950408889634f) - rm_safe(r) * (scale * 1.4426950408889634f));
          }
          // tl:77 Compute exp2(S * (scale * log2e) - m_safe * (scale * log2e)) and get new S
          #pragma unroll
          for (int r = 0; r < rS.kR; ++r) {
            float const factor_0 = scale * 1.4426950408889634f;
            float const row_1 = rm_safe(r) * factor_0;
            #pragma unroll
            for (int c = 0; c < rS.kC; ++c) {
              rS(r, c) = tl::exp2(rS(r, c) * factor_0 - row_1);
            }
          }
          // tl:78 Compute l * alpha + RowSum(S) and get new l
          #pragma unroll
          for (int r = 0; r < rl.kR; ++r) {
            rl(r) = rl(r) * ralpha(r) + tl::row_sum(rS, r);
          }
          // tl:79 Compute m_new and get new m
          #pragma unroll
          for (int r = 0; r < rm.kR; ++r) {
            rm(r) = rm_new(r);
          }
          // tl:80 Wait gemm pending 0
          tl::wait_gemm_behind<0>(rm(rm.kR - 1));
          tl::landed(rO);
          // tl:81 Release V
          V_ring.release(V_uses++);
          // tl:82 Compute O * alpha and get new O
          #pragma unroll
          for (int r = 0; r < rO.kR; ++r) {
            #pragma unroll
            for (int c = 0; c < rO.kC; ++c) {
              rO(r, c) = rO(r, c) * ralpha(r);
            }
          }
          // tl:83 Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as bf16 and get P
          rP = tl::to_operand<tl::bf16>(rS);
        }
      }
      // tl:85 Release Q
      Q_ring.release(Q_uses++);
      // tl:86 if first < last
      if (first < last) {
        // tl:87 Wait V.full
        V_ring.wait_full(V_uses);
        // tl:88 Compute GEMM P, V at [k = (last - 1) * BN] and accumulate O async
        tl::start_gemm<false, true>(rO, rP, tl::stage(sV, V_ring.slot(V_uses)));
        // tl:89 Wait gemm pending 0
        tl::wait_gemm<0>();
        tl::landed(rO);
        // tl:90 Release V
        V_ring.release(V_uses++);
      }
      // tl:91 Compute where(l == 0, 0, O / l) and get new O
      #pragma unroll
      for (int r = 0; r < rO.kR; ++r) {
        float const row_0 = tl::reciprocal(rl(r));
        #pragma unroll
        for (int c = 0; c < rO.kC; ++c) {
          rO(r, c) = (rl(r) == 0 ? 0.0f : rO(r, c) * row_0);
        }
      }
      // tl:92 Wait stores pending 0
      tl::wait_stores<0>();
      // tl:93 Barrier
      tl::group_sync(group);
      // tl:94 Copy O from register to shared O_staged slot w
      tl::stage_rows(tl::stage(sO_staged, w), rO);
      // tl:95 Fence async
      tl::fence_async();
      // tl:96 Barrier
      tl::group_sync(group);
      // tl:97 Copy O_staged (64, D) in coordinate [batch, q = block * BM + w * 64, head] from shared to global Out slot w async
      tl::store_tile(tl::stage(sO_staged, w), mOut_1x64x1x64, head, block * BM + w * 64, batch);
      tl::RowVector<16> rlse;
      // tl:98 Compute where(l == 0, -inf, m * scale + ln(l)) and get lse
      #pragma unroll
      for (int r = 0; r < rlse.kR; ++r) {
        rlse(r) = (rl(r) == 0 ? -tl::infinity() : rm(r) * scale + tl::log(rl(r)));
      }
      // tl:99 Copy lse (64) in coordinate [batch, head, q = block * BM + w * 64] from register to global Lse
      tl::store_group_vector(gLse + int64_t(batch) * gLse_stride_0 + int64_t(head) * gLse_stride_1 + int64_t(block * BM + w * 64), 1, rlse, Sq - (block * BM + w * 64));
    }
    // tl:101 Wait stores pending 0
    tl::wait_stores<0>();
  }
}
