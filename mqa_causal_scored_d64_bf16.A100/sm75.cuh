// What kernels for sm_75 need beside memory.cuh: products by mma.m16n8k8.
#pragma once

#include <cute/arch/mma_sm75.hpp>

#include "memory.cuh"

namespace tl {

/// acc = a * b + c for one 16x8x16 block of fp16, in two steps of 8: the first half of a lane's registers of A and of B
/// is of inner index 0 to 7, the second of 8 to 15.
struct Depth8 {
  template <class Element>
  __device__ static void mma(float (&acc)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, float c0, float c1,
                             float c2, float c3) {
    static_assert(cute::is_same_v<Element, fp16>, "m16n8k8 multiplies fp16 here");
    using Atom = cute::SM75_16x8x8_F32F16F16F32_TN;
    Atom::fma(acc[0], acc[1], acc[2], acc[3], a[0], a[1], b0, c0, c1, c2, c3);
    Atom::fma(acc[0], acc[1], acc[2], acc[3], a[2], a[3], b1, acc[0], acc[1], acc[2], acc[3]);
  }
};

}  // namespace tl
