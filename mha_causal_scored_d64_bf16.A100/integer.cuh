// Integer arithmetic of TL, exact for negative numbers too, and tests of indices.
#pragma once

#include <cuda/std/cstdint>

namespace tl {

/// a // b and a % b rounded towards minus infinity; b > 0.
__device__ inline int floor_mod(int a, int b) {
  int const rest = a % b;
  return rest < 0 ? rest + b : rest;
}
__device__ inline int floor_div(int a, int b) { return (a - floor_mod(a, b)) / b; }
__device__ inline int ceildiv(int a, int b) { return -floor_div(-a, b); }

__device__ inline int clamp(int x, int low, int high) {
  int const raised = x < low ? low : x;
  return raised > high ? high : raised;
}
__device__ inline float clamp(float x, float low, float high) { return fminf(fmaxf(x, low), high); }

/// Whether an index lies within a dimension.
__device__ inline bool inside(int index, int extent) {
  return unsigned(index) < unsigned(extent);
}

/// The same for elements of 64 bits.
__device__ inline int64_t floor_mod(int64_t a, int64_t b) {
  int64_t const rest = a % b;
  return rest < 0 ? rest + b : rest;
}
__device__ inline int64_t floor_div(int64_t a, int64_t b) { return (a - floor_mod(a, b)) / b; }
__device__ inline int64_t ceildiv(int64_t a, int64_t b) { return -floor_div(-a, b); }
__device__ inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
__device__ inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return min(max(x, low), high); }
__device__ inline int64_t abs(int64_t x) { return x < 0 ? -x : x; }
__device__ inline bool inside(int64_t index, int extent) { return index >= 0 && index < extent; }

/// The last integer of [first, last) up to which `holds` does: narrowed to a 32nd at a time, a place for each lane. All
/// lanes of a warp must be here.
template <class Holds>
__device__ inline int find(int first, int last, Holds holds) {
  int count = last - first;
  while (count > 1) {
    int const step = (count + 31) / 32, offset = int(threadIdx.x % 32 + 1) * step;
    int const passed = __popc(__ballot_sync(0xffffffff, offset < count && holds(first + offset)));
    first += passed * step;
    count = count - passed * step < step ? count - passed * step : step;
  }
  return first;
}
/// The same by one thread alone.
template <class Holds>
__device__ inline int find_alone(int first, int last, Holds holds) {
  int count = last - first;
  while (count > 1) {
    int const step = (count + 31) / 32;
    int passed = 0;
#pragma unroll 4
    for (int offset = step; offset < count; offset += step) passed += holds(first + offset);
    first += passed * step;
    count = count - passed * step < step ? count - passed * step : step;
  }
  return first;
}

__device__ inline float infinity() { return __int_as_float(0x7f800000); }
__device__ inline float abs(float x) { return fabsf(x); }
__device__ inline int abs(int x) { return x < 0 ? -x : x; }

}  // namespace tl
