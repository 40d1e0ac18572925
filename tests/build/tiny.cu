// Sums n products of a 16x16 tile of A and a 16x8 tile of B in one warp, and stores 2 to that power.
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/mma_sm80.hpp>
#include <cute/tensor.hpp>

using namespace cute;

extern "C" __global__ void __launch_bounds__(32)
tiny(half_t const* A,  // (n, 16, 16)
     half_t const* B,  // (n, 8, 16), packed by lane
     float* C,         // (32, 4)
     int n) {
  __shared__ alignas(16) half_t sA[16 * 16];
  int const lane = threadIdx.x;
  // tl:4 Allocate C in register
  float acc[4] = {0.f, 0.f, 0.f, 0.f};
  // tl:5 for i = 0 : n
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    // tl:6 Copy A in coordinate [L = i] from global to shared
    using Vector = uint128_t;
    SM80_CP_ASYNC_CACHEGLOBAL<Vector>::copy(reinterpret_cast<Vector const*>(A + i * 256)[lane],
                                            reinterpret_cast<Vector*>(sA)[lane]);
    cp_async_fence();
    cp_async_wait<0>();
    __syncthreads();
    uint32_t a[4];
    SM75_U32x4_LDSM_N::copy(reinterpret_cast<Vector const*>(sA)[(lane % 16) * 2 + lane / 16], a[0], a[1], a[2], a[3]);
    // tl:7 Compute GEMM A, B.T and accumulate C
    uint32_t const* b = reinterpret_cast<uint32_t const*>(B + i * 128);
    SM80_16x8x16_F32F16F16F32_TN::fma(acc[0], acc[1], acc[2], acc[3], a[0], a[1], a[2], a[3], b[lane], b[lane + 32],
                                      acc[0], acc[1], acc[2], acc[3]);
    __syncthreads();
  }
  // tl:9 Copy C from register to global
  for (int v = 0; v < 4; ++v) C[lane * 4 + v] = exp2f(acc[v]);
}
