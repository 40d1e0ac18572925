// Device functions shared by every generated kernel that uses sm_80 instructions.
//
// A block works on tiles. A tile in shared memory is a SharedTile; a tile in registers is an
// Accumulator (fp32, written by mma.sync), an Operand (16 bit, read by mma.sync) or a RowVector /
// ColVector (one value per row / column). Every warp owns kRows contiguous rows of the block's
// register tiles: warp w owns rows [w * kRows, (w + 1) * kRows).
//
// Not here: loops over tiles, masks, softmax. The generated kernel spells those out.
#pragma once

#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/mma_sm80.hpp>

namespace tl {

using bf16 = cute::bfloat16_t;
using fp16 = cute::half_t;
using Vector16B = cute::uint128_t;  // unit of every shared-memory and global-memory transfer

constexpr int kChunk = 8;                // elements of a 16-bit type in one 16-byte chunk
constexpr int kAllColumns = 0x7fffffff;  // a tensor as wide as its tiles, or wider

__device__ inline int lane_index() { return threadIdx.x % 32; }
__device__ inline int warp_index() { return threadIdx.x / 32; }
__device__ inline float negative_infinity() { return __int_as_float(0xff800000); }

// ---------------------------------------------------------------------------------------------
// Tiles
// ---------------------------------------------------------------------------------------------

/// Tile (kRows, kCols) of 16-bit elements in shared memory, rows contiguous and made of spans of
/// kSwizzle bytes, the last one completed. In spans of 128 bytes, 16-byte chunk c of row r is stored
/// at chunk c ^ (r % 8), in spans of 64 at c ^ (r / 2 % 4) where a row is an odd number of them:
/// eight rows of one chunk column touch all 32 banks once.
template <class Element_, int kRows_, int kCols_, int kSwizzle = 128>
struct SharedTile {
  using Element = Element_;
  static constexpr int kRows = kRows_;
  static constexpr int kCols = kCols_;
  static constexpr int kSpan = kSwizzle / 16;  // chunks
  static constexpr int kSpans = (kCols + kSpan * kChunk - 1) / (kSpan * kChunk);
  static constexpr int kPitch = kSpans * kSpan * kChunk;  // elements from row to row
  static constexpr int kBytes = kRows * kPitch * int(sizeof(Element));
  static_assert(sizeof(Element) == 2, "elements are 16 bit");
  static_assert(kSwizzle == 128 || kSwizzle == 64, "a span is 128 or 64 bytes");
  static_assert(kCols % (2 * kChunk) == 0, "a row is whole steps of an MMA");

  Element* data;  // aligned to 128 bytes

  /// What the chunks of a row are exchanged by.
  __device__ static constexpr int turn(int row) { return row / (8 / kSpan) % kSpan; }
  /// Offset in elements of chunk `chunk` of row `row`.
  __device__ static constexpr int offset(int row, int chunk) {
    return row * kPitch + (chunk / kSpan) * (kSpan * kChunk) +
           ((chunk % kSpan) ^ turn(row)) * kChunk;
  }
  /// Chunk (row0 + row, chunk0 + chunk). The compiler knows `row0`, a multiple of 8 unless a single
  /// warp copies (then of 4, and `row` is below 4), and `chunk0`;
  /// `row` and `chunk` (under kSpan, no bit shared with chunk0 % kSpan) differ lane by lane.
  /// Addresses of one lane pattern then differ by immediates, and take at most four registers.
  __device__ Vector16B& chunk(int row0, int chunk0, int row, int chunk) const {
    Element* lane = data + row * kPitch + ((chunk0 % kSpan) ^ (chunk ^ turn(row0 % 8 + row))) * kChunk;
    return *reinterpret_cast<Vector16B*>(lane + row0 * kPitch +
                                         chunk0 / kSpan * (kSpan * kChunk));
  }
  /// Whether chunk `chunk` of span `span` is one of the first `columns` columns: known when compiled
  /// for all spans but the one that they end in.
  __device__ static constexpr bool reaches(int columns, int span, int chunk) {
    return (span + 1) * kSpan * kChunk <= columns || (span * kSpan + chunk) * kChunk < columns;
  }
  __device__ Element& operator()(int row, int col) const {
    return data[offset(row, col / kChunk) + col % kChunk];
  }
};

/// Columns of a tile that a tensor of kColumns columns has.
template <class Tile, int kColumns>
constexpr int kHeld = kColumns < Tile::kCols ? kColumns : Tile::kCols;

/// One value per row of a tile. Element r belongs to tile row tile_row<kRows>(r); the four lanes
/// of a quad hold copies.
template <int kRows_>
struct RowVector {
  static constexpr int kRows = kRows_;
  static constexpr int kR = kRows / 8;  // values per lane
  float data[kR];

  __device__ float& operator()(int r) { return data[r]; }
  __device__ float operator()(int r) const { return data[r]; }
  __device__ void fill(float value) {
#pragma unroll
    for (int r = 0; r < kR; ++r) data[r] = value;
  }
};

/// One value per column of a tile. Element c belongs to tile column tile_col(c); the eight lanes
/// of equal lane % 4 hold copies.
template <int kCols_>
struct ColVector {
  static constexpr int kCols = kCols_;
  static constexpr int kC = kCols / 4;  // values per lane
  float data[kC];

  __device__ float& operator()(int c) { return data[c]; }
  __device__ float operator()(int c) const { return data[c]; }
  __device__ void fill(float value) {
#pragma unroll
    for (int c = 0; c < kC; ++c) data[c] = value;
  }
};

/// fp32 tile of one warp, (kRows, kCols), laid out as the C operand of mma.m16n8k16. A lane holds
/// kR rows times kC columns of it; (r, c) is in tile row tile_row<kRows>(r), column tile_col(c).
template <int kRows_, int kCols_>
struct Accumulator {
  static constexpr int kRows = kRows_;
  static constexpr int kCols = kCols_;
  static constexpr int kR = kRows / 8;
  static constexpr int kC = kCols / 4;
  static_assert(kRows % 16 == 0 && kCols % 16 == 0, "a tile is whole 16x16 blocks");

  float data[kRows / 16][kCols / 8][4];

  __device__ float& operator()(int r, int c) {
    return data[r / 2][c / 2][(r % 2) * 2 + c % 2];
  }
  __device__ float operator()(int r, int c) const {
    return data[r / 2][c / 2][(r % 2) * 2 + c % 2];
  }
  __device__ void fill(float value) {
#pragma unroll
    for (int r = 0; r < kR; ++r)
#pragma unroll
      for (int c = 0; c < kC; ++c) (*this)(r, c) = value;
  }
};

/// Row of the block's tile that holds fragment row r of a warp owning kRows rows.
template <int kRows>
__device__ inline int tile_row(int r) {
  return warp_index() * kRows + (r / 2) * 16 + (r % 2) * 8 + lane_index() / 4;
}

/// Column of the tile that holds fragment column c.
__device__ inline int tile_col(int c) {
  return (c / 2) * 8 + (lane_index() % 4) * 2 + c % 2;
}

/// 16-bit tile of one warp, (kRows, kCols), laid out as the A operand of mma.m16n8k16.
template <class Element_, int kRows_, int kCols_>
struct Operand {
  using Element = Element_;
  static constexpr int kRows = kRows_;
  static constexpr int kCols = kCols_;
  uint32_t data[kCols / 16][kRows / 16][4];
};

// ---------------------------------------------------------------------------------------------
// Scalars
// ---------------------------------------------------------------------------------------------

/// 2^x in one instruction; 2^-inf is 0, results under 2^-126 are 0.
__device__ inline float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float exp(float x) { return exp2(x * 1.4426950408889634f); }

/// log2 x; log2 0 is -inf.
__device__ inline float log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float log(float x) { return log2(x) * 0.6931471805599453f; }

/// 1 / x; 1 / inf is 0.
__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// tanh x as 1 - 2 / (1 + e^2x): exact limits at both ends; absolute error a few 1e-7, by the error
/// bounds of the three instructions.
__device__ inline float tanh(float x) {
  return fmaf(-2.0f, reciprocal(1.0f + exp2(x * 2.8853900817779268f)), 1.0f);
}

/// 2^x for x below 128 without the special-function unit, off by at most 2^-13 of its value; 0 for x up to -127. The sum
/// with 1.5 * 2^23, rounded down, has floor(x) in its last bits; the polynomial's value takes them to its exponent.
__device__ inline float exp2_fma(float x) {
  float held, shifted;
#if __CUDA_ARCH__ >= 800
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(held) : "f"(x), "f"(-127.0f));
#else
  held = x < -127.0f ? -127.0f : x;
#endif
  asm("add.rm.f32 %0, %1, %2;" : "=f"(shifted) : "f"(held), "f"(12582912.0f));
  float const f = held - (shifted - 12582912.0f);
  float const p = fmaf(fmaf(fmaf(0.07706707f, f, 0.22764496f), f, 0.69511679f), f, 1.0f);
  return __int_as_float((__float_as_int(shifted) << 23) + __float_as_int(p));
}

/// tanh x, off by at most 2^-11 of its value.
__device__ inline float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float max(float a, float b) { return fmaxf(a, b); }
__device__ inline float min(float a, float b) { return fminf(a, b); }
__device__ inline int max(int a, int b) { return a > b ? a : b; }
__device__ inline int min(int a, int b) { return a < b ? a : b; }
__device__ inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

/// Two fp32 values rounded to nearest even, `low` in the low half of the register.
template <class Element>
__device__ inline uint32_t pack(float low, float high) {
  uint32_t packed;
  if constexpr (cute::is_same_v<Element, bf16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
#else
    asm("{.reg .f16 lo, hi; cvt.rn.f16.f32 lo, %2; cvt.rn.f16.f32 hi, %1; mov.b32 %0, {lo, hi};}"
        : "=r"(packed)
        : "f"(high), "f"(low));
#endif
  }
  return packed;
}

// ---------------------------------------------------------------------------------------------
// Global memory to shared memory
// ---------------------------------------------------------------------------------------------

/// Start copying rows [0, kRows) of `source` (row stride in elements, rows 16-byte aligned) into
/// `tile`. All kThreads threads of the block take part; neighbours copy one span of a row.
template <int kThreads, class Tile>
__device__ inline void copy_async(Tile tile, typename Tile::Element const* source,
                                  int64_t stride) {
  constexpr int kSpan = Tile::kSpan;
  constexpr int kPassRows = kThreads / kSpan;  // rows copied at a time; a multiple of 8
  static_assert(Tile::kRows % kPassRows == 0, "the threads must divide the tile");
  int const row = threadIdx.x / kSpan;
  int const chunk = threadIdx.x % kSpan;
  typename Tile::Element const* from = source + row * stride + chunk * kChunk;
#pragma unroll
  for (int i = 0; i < Tile::kRows / kPassRows; ++i) {
#pragma unroll
    for (int span = 0; span < Tile::kSpans; ++span) {
      if (!Tile::reaches(Tile::kCols, span, chunk)) continue;
      cute::SM80_CP_ASYNC_CACHEGLOBAL<Vector16B>::copy(
          *reinterpret_cast<Vector16B const*>(from + span * (kSpan * kChunk)),
          tile.chunk(i * kPassRows, span * kSpan, row, chunk));
    }
    from += kPassRows * stride;
  }
}

/// The same with rows from `rows` on and columns from kColumns on, a multiple of 8, filled with
/// zeros, and not read.
template <int kThreads, int kColumns = kAllColumns, class Tile>
__device__ inline void copy_async_bounded(Tile tile, typename Tile::Element const* source,
                                          int64_t stride, int rows) {
  constexpr int kSpan = Tile::kSpan;
  constexpr int kPassRows = kThreads / kSpan;
  static_assert(Tile::kRows % kPassRows == 0, "the threads must divide the tile");
  int const row = threadIdx.x / kSpan;
  int const chunk = threadIdx.x % kSpan;
  typename Tile::Element const* from = source + row * stride + chunk * kChunk;
#pragma unroll
  for (int i = 0; i < Tile::kRows / kPassRows; ++i) {
#pragma unroll
    for (int span = 0; span < Tile::kSpans; ++span) {
      cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<Vector16B>::copy(
          *reinterpret_cast<Vector16B const*>(from + span * (kSpan * kChunk)),
          tile.chunk(i * kPassRows, span * kSpan, row, chunk),
          Tile::reaches(kHeld<Tile, kColumns>, span, chunk) && row + i * kPassRows < rows);
    }
    from += kPassRows * stride;
  }
}

/// Close the group of copies started since the last commit.
__device__ inline void commit() { cute::cp_async_fence(); }

/// Wait until at most kPending groups of this thread are still under way. Other threads' copies
/// are visible only after sync() as well.
template <int kPending>
__device__ inline void wait() {
  cute::cp_async_wait<kPending>();
}

__device__ inline void sync() { __syncthreads(); }

// ---------------------------------------------------------------------------------------------
// Matrix products of one warp
// ---------------------------------------------------------------------------------------------

/// acc = a * b + c for one 16x8x16 block, by the instruction that does it whole.
struct Depth16 {
  template <class Element>
  __device__ static void mma(float (&acc)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1,
                             float c0, float c1, float c2, float c3) {
    using Atom = cute::conditional_t<cute::is_same_v<Element, bf16>,
                                     cute::SM80_16x8x16_F32BF16BF16F32_TN,
                                     cute::SM80_16x8x16_F32F16F16F32_TN>;
    Atom::fma(acc[0], acc[1], acc[2], acc[3], a[0], a[1], a[2], a[3], b0, b1, c0, c1, c2, c3);
  }
};

/// The 16x16 block at (row, 16 * k) of the warp's kRows rows of `tile` as an A operand.
template <int kRows, class Tile>
__device__ inline void load_a(uint32_t (&a)[4], Tile tile, int row, int k) {
  int const lane = lane_index();
  cute::SM75_U32x4_LDSM_N::copy(
      tile.chunk(row, 2 * k, warp_index() * kRows + lane % 16, lane / 16), a[0], a[1], a[2], a[3]);
}

/// The 16x16 block of `tile` (N, K) at (16 * n, 16 * k) as two B operands, of n 0-7 and 8-15.
template <class Tile>
__device__ inline void load_b_nt(uint32_t (&b)[4], Tile tile, int n, int k) {
  int const lane = lane_index();
  cute::SM75_U32x4_LDSM_N::copy(
      tile.chunk(16 * n, 2 * k, lane % 8 + lane / 16 * 8, lane / 8 % 2), b[0], b[1], b[2], b[3]);
}

/// The 16x16 block of `tile` (K, N) at (16 * k, 16 * n) as two B operands, of n 0-7 and 8-15.
template <class Tile>
__device__ inline void load_b_nn(uint32_t (&b)[4], Tile tile, int n, int k) {
  int const lane = lane_index();
  cute::SM75_U16x8_LDSM_T::copy(tile.chunk(16 * k, 2 * n, lane % 16, lane / 16), b[0], b[1], b[2],
                                b[3]);
}

/// The warp's rows of `tile` as an A operand.
template <class Element, int kRows, int kCols, class Tile>
__device__ inline void load_operand(Operand<Element, kRows, kCols>& a, Tile tile) {
#pragma unroll
  for (int k = 0; k < kCols / 16; ++k)
#pragma unroll
    for (int m = 0; m < kRows / 16; ++m)
      load_a<kRows>(a.data[k][m], tile, 16 * m, k);
}

/// A tile rounded to 16 bit as an A operand, without leaving the registers.
template <class Element, int kRows, int kCols>
__device__ inline Operand<Element, kRows, kCols> to_operand(Accumulator<kRows, kCols> const& c) {
  Operand<Element, kRows, kCols> a;
#pragma unroll
  for (int k = 0; k < kCols / 16; ++k)
#pragma unroll
    for (int m = 0; m < kRows / 16; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a.data[k][m][i] = pack<Element>(c.data[m][2 * k + i / 2][i % 2 * 2],
                                        c.data[m][2 * k + i / 2][i % 2 * 2 + 1]);
  return a;
}

/// Step k of a product: acc (+)= a * b, `a` one column of 16x16 blocks, b read from `tile`.
template <class Depth, class Element, bool kTransposed, bool kFresh, int kRows, int kCols, class Tile>
__device__ inline void mma_step(Accumulator<kRows, kCols>& acc,
                                uint32_t const (&a)[kRows / 16][4], Tile tile, int k) {
#pragma unroll
  for (int n = 0; n < kCols / 16; ++n) {
    uint32_t b[4];
    if constexpr (kTransposed) {
      load_b_nt(b, tile, n, k);
    } else {
      load_b_nn(b, tile, n, k);
    }
#pragma unroll
    for (int m = 0; m < kRows / 16; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float(&c)[4] = acc.data[m][2 * n + half];
        if constexpr (kFresh) {
          Depth::template mma<Element>(c, a[m], b[2 * half], b[2 * half + 1], 0.0f, 0.0f, 0.0f, 0.0f);
        } else {
          Depth::template mma<Element>(c, a[m], b[2 * half], b[2 * half + 1], c[0], c[1], c[2], c[3]);
        }
      }
  }
}

/// acc = or += A * B^T (kTransposed, B is (N, K)) or A * B (B is (K, N)); A the warp's rows of a
/// shared tile (M, K), B a shared tile. Depth multiplies the blocks.
template <bool kTransposed, bool kAccumulate, class Depth = Depth16, int kRows, int kCols, class TileA, class TileB>
__device__ inline void gemm_shared(Accumulator<kRows, kCols>& acc, TileA a, TileB b) {
#pragma unroll
  for (int k = 0; k < TileA::kCols / 16; ++k) {
    uint32_t fragment[kRows / 16][4];
#pragma unroll
    for (int m = 0; m < kRows / 16; ++m)
      load_a<kRows>(fragment[m], a, 16 * m, k);
    if (!kAccumulate && k == 0) {
      mma_step<Depth, typename TileA::Element, kTransposed, true>(acc, fragment, b, k);
    } else {
      mma_step<Depth, typename TileA::Element, kTransposed, false>(acc, fragment, b, k);
    }
  }
}

/// The same with A in registers.
template <bool kTransposed, bool kAccumulate, class Depth = Depth16, class Element, int kRows, int kCols, int kInner,
          class TileB>
__device__ inline void gemm_operand(Accumulator<kRows, kCols>& acc,
                                    Operand<Element, kRows, kInner> const& a, TileB b) {
#pragma unroll
  for (int k = 0; k < kInner / 16; ++k) {
    if (!kAccumulate && k == 0) {
      mma_step<Depth, Element, kTransposed, true>(acc, a.data[k], b, k);
    } else {
      mma_step<Depth, Element, kTransposed, false>(acc, a.data[k], b, k);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// Reductions along rows
// ---------------------------------------------------------------------------------------------

/// Sum / maximum over the four lanes that share a row; every one of them gets it.
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

/// Whether a condition holds for any lane of the warp.
__device__ inline bool any_lane(bool holds) { return __any_sync(0xffffffff, holds); }

/// Sum / maximum of fragment row r over this lane's columns only.
template <int kRows, int kCols>
__device__ inline float lane_sum(Accumulator<kRows, kCols> const& acc, int r) {
  float x = acc(r, 0);
#pragma unroll
  for (int c = 1; c < kCols / 4; ++c) x += acc(r, c);
  return x;
}
/// The same, added to x element by element.
template <int kRows, int kCols>
__device__ inline float lane_sum(Accumulator<kRows, kCols> const& acc, int r, float x) {
#pragma unroll
  for (int c = 0; c < kCols / 4; ++c) x += acc(r, c);
  return x;
}
template <int kRows, int kCols>
__device__ inline float lane_max(Accumulator<kRows, kCols> const& acc, int r) {
  float x = acc(r, 0);
#pragma unroll
  for (int c = 1; c < kCols / 4; ++c) x = fmaxf(x, acc(r, c));
  return x;
}

/// Sum / maximum of fragment row r over all columns of the tile.
template <int kRows, int kCols>
__device__ inline float row_sum(Accumulator<kRows, kCols> const& acc, int r) {
  return quad_sum(lane_sum(acc, r));
}
template <int kRows, int kCols>
__device__ inline float row_max(Accumulator<kRows, kCols> const& acc, int r) {
  return quad_max(lane_max(acc, r));
}

// ---------------------------------------------------------------------------------------------
// Registers to memory
// ---------------------------------------------------------------------------------------------

/// Write a tile, rounded, to rows [0, rows) and columns [0, kColumns), a multiple of 8, of `target`
/// (row stride in elements): 4 bytes a lane.
template <int kColumns = kAllColumns, class Element, int kRows, int kCols>
__device__ inline void store_direct(Element* target, int64_t stride,
                                    Accumulator<kRows, kCols> const& acc, int rows) {
#pragma unroll
  for (int r = 0; r < kRows / 8; ++r) {
    int const row = tile_row<kRows>(r);
    if (row < rows) {
#pragma unroll
      for (int c = 0; c < kCols / 4; c += 2)
        if (c / 2 * 8 < kColumns)
          *reinterpret_cast<uint32_t*>(target + row * stride + tile_col(c)) =
              pack<Element>(acc(r, c), acc(r, c + 1));
    }
  }
}

/// The same through the warp's own rows of `stage`, 16 bytes a lane and whole spans.
/// No other warp may still read or write these rows of `stage`.
template <class Element, int kRows, int kCols, class Tile>
__device__ inline void store_staged(Element* target, int64_t stride,
                                    Accumulator<kRows, kCols> const& acc, int rows, Tile stage) {
  constexpr int kSpan = Tile::kSpan;
  int const lane = lane_index();
#pragma unroll
  for (int r = 0; r < kRows / 8; ++r)
#pragma unroll
    for (int c = 0; c < kCols / 4; c += 2)
      *reinterpret_cast<uint32_t*>(&stage(tile_row<kRows>(r), tile_col(c))) =
          pack<Element>(acc(r, c), acc(r, c + 1));
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kRows * kSpan / 32; ++i) {
    int const row = warp_index() * kRows + 32 / kSpan * i + lane / kSpan;
    if (row < rows) {
#pragma unroll
      for (int span = 0; span < Tile::kSpans; ++span)
        if (Tile::reaches(kCols, span, lane % kSpan))
          *reinterpret_cast<Vector16B*>(target + row * stride +
                                        (span * kSpan + lane % kSpan) * kChunk) =
              stage.chunk(0, span * kSpan, row, lane % kSpan);
    }
  }
}

/// Write one fp32 value a row to rows [0, rows) of `target`, contiguous.
template <int kRows>
__device__ inline void store_rows(float* target, RowVector<kRows> const& values, int rows) {
#pragma unroll
  for (int r = 0; r < kRows / 8; ++r) {
    int const row = tile_row<kRows>(r);
    if (lane_index() % 4 == 0 && row < rows) target[row] = values(r);
  }
}

}  // namespace tl
