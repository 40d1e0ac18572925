// Transfers between memories that a program may ask for beside the asynchronous copy and the plain store of sm80.cuh.
#pragma once

#include "integer.cuh"
#include "sm80.cuh"

namespace tl {

/// Stage `slot` of a ring: the same tile, further on in shared memory.
template <class Element, int kRows, int kCols, int kSwizzle>
__device__ inline SharedTile<Element, kRows, kCols, kSwizzle> stage(SharedTile<Element, kRows, kCols, kSwizzle> tile,
                                                                    int slot) {
  return {tile.data + slot * (kRows * tile.kPitch)};
}

/// Copy rows [first, last) and columns [0, kColumns) of `source` into `tile`, zeros elsewhere, and wait for nothing:
/// sync() must follow.
template <int kThreads, int kColumns = kAllColumns, class Tile>
__device__ inline void copy(Tile tile, typename Tile::Element const* source, int64_t stride, int first, int last) {
  constexpr int kSpan = Tile::kSpan;
  constexpr int kPassRows = kThreads / kSpan;
  int const row = threadIdx.x / kSpan;
  int const chunk = threadIdx.x % kSpan;
#pragma unroll
  for (int i = 0; i < Tile::kRows / kPassRows; ++i) {
    int const at = row + i * kPassRows;
#pragma unroll
    for (int span = 0; span < Tile::kSpans; ++span) {
      Vector16B value{};
      if (Tile::reaches(kHeld<Tile, kColumns>, span, chunk) && at >= first && at < last)
        value = *reinterpret_cast<Vector16B const*>(source + at * stride + (span * kSpan + chunk) * kChunk);
      tile.chunk(i * kPassRows, span * kSpan, row, chunk) = value;
    }
  }
}

/// The asynchronous copy where rows before `first` do not exist either.
template <int kThreads, int kColumns = kAllColumns, class Tile>
__device__ inline void copy_async_between(Tile tile, typename Tile::Element const* source, int64_t stride, int first,
                                          int last) {
  constexpr int kSpan = Tile::kSpan;
  constexpr int kPassRows = kThreads / kSpan;
  int const row = threadIdx.x / kSpan;
  int const chunk = threadIdx.x % kSpan;
#pragma unroll
  for (int i = 0; i < Tile::kRows / kPassRows; ++i) {
    int const at = row + i * kPassRows;
#pragma unroll
    for (int span = 0; span < Tile::kSpans; ++span) {
      cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<Vector16B>::copy(
          *reinterpret_cast<Vector16B const*>(source + at * stride + (span * kSpan + chunk) * kChunk),
          tile.chunk(i * kPassRows, span * kSpan, row, chunk),
          Tile::reaches(kHeld<Tile, kColumns>, span, chunk) && at >= first && at < last);
    }
  }
}

/// Round a warp's accumulator rows into a shared tile; sync() must follow before other warps read it.
template <int kRows, int kCols, class Tile>
__device__ inline void stage_rows(Tile tile, Accumulator<kRows, kCols> const& acc) {
#pragma unroll
  for (int r = 0; r < kRows / 8; ++r)
#pragma unroll
    for (int c = 0; c < kCols / 4; c += 2)
      *reinterpret_cast<uint32_t*>(&tile(tile_row<kRows>(r), tile_col(c))) =
          pack<typename Tile::Element>(acc(r, c), acc(r, c + 1));
}

/// Write rows [0, rows) and columns [0, kColumns) of a shared tile to `target`, 16 bytes a lane and whole spans.
template <int kThreads, int kColumns = kAllColumns, class Tile>
__device__ inline void store_tile(typename Tile::Element* target, int64_t stride, Tile tile, int rows) {
  constexpr int kSpan = Tile::kSpan;
  constexpr int kPassRows = kThreads / kSpan;
  int const row = threadIdx.x / kSpan;
  int const chunk = threadIdx.x % kSpan;
#pragma unroll
  for (int i = 0; i < Tile::kRows / kPassRows; ++i) {
    int const at = row + i * kPassRows;
    if (at < rows) {
#pragma unroll
      for (int span = 0; span < Tile::kSpans; ++span)
        if (Tile::reaches(kHeld<Tile, kColumns>, span, chunk))
          *reinterpret_cast<Vector16B*>(target + at * stride + (span * kSpan + chunk) * kChunk) =
              tile.chunk(i * kPassRows, span * kSpan, row, chunk);
    }
  }
}

/// Tile (kRows, kCols) in pieces of 16 bytes, dealt to the registers of all kThreads threads as copy() visits them:
/// neighbours hold one span of kSwizzle bytes of a row.
template <class Element_, int kThreads_, int kRows_, int kCols_, int kSwizzle = 128>
struct Pieces {
  using Element = Element_;
  using Tile = SharedTile<Element_, kRows_, kCols_, kSwizzle>;  // which they are on their way to
  static constexpr int kThreads = kThreads_;
  static constexpr int kSpan = Tile::kSpan;
  static constexpr int kPassRows = kThreads / kSpan;  // rows held by all threads together, at a time
  static constexpr int kPasses = kRows_ / kPassRows;
  static constexpr int kSpans = Tile::kSpans;
  static_assert(kRows_ % kPassRows == 0, "the threads must divide the tile");

  Vector16B data[kPasses][kSpans];
};

/// Read rows [first, last) and columns [0, kColumns) of `source` into `pieces`, zeros elsewhere.
template <int kColumns = kAllColumns, class Pieces>
__device__ inline void load_pieces(Pieces& pieces, typename Pieces::Element const* source, int64_t stride, int first,
                                   int last) {
  using Tile = typename Pieces::Tile;
  constexpr int kSpan = Pieces::kSpan;
  int const row = threadIdx.x / kSpan;
  int const chunk = threadIdx.x % kSpan;
#pragma unroll
  for (int i = 0; i < Pieces::kPasses; ++i) {
    int const at = row + i * Pieces::kPassRows;
#pragma unroll
    for (int span = 0; span < Pieces::kSpans; ++span) {
      pieces.data[i][span] = Vector16B{};
      if (Tile::reaches(kHeld<Tile, kColumns>, span, chunk) && at >= first && at < last)
        pieces.data[i][span] =
            *reinterpret_cast<Vector16B const*>(source + at * stride + (span * kSpan + chunk) * kChunk);
    }
  }
}

/// Write `pieces` to `tile`; sync() must follow before other threads read it.
template <class Pieces, class Tile>
__device__ inline void store_pieces(Tile tile, Pieces const& pieces) {
  constexpr int kSpan = Pieces::kSpan;
  int const row = threadIdx.x / kSpan;
  int const chunk = threadIdx.x % kSpan;
#pragma unroll
  for (int i = 0; i < Pieces::kPasses; ++i)
#pragma unroll
    for (int span = 0; span < Pieces::kSpans; ++span)
      tile.chunk(i * Pieces::kPassRows, span * kSpan, row, chunk) = pieces.data[i][span];
}

/// Write a tile as elements of 32 bits to rows [0, rows) and columns [0, kColumns), a multiple of 8, of `target`.
template <int kColumns = kAllColumns, class Element, int kRows, int kCols>
__device__ inline void store_float(Element* target, int64_t stride, Accumulator<kRows, kCols> const& acc, int rows) {
#pragma unroll
  for (int r = 0; r < kRows / 8; ++r) {
    int const row = tile_row<kRows>(r);
    if (row < rows) {
#pragma unroll
      for (int c = 0; c < kCols / 4; ++c)
        if (c / 2 * 8 < kColumns) target[row * stride + tile_col(c)] = Element(acc(r, c));
    }
  }
}

/// Read a tile of fp32, zeros outside of rows [first, last) and columns [0, kColumns), a multiple of 8.
template <int kColumns = kAllColumns, int kRows, int kCols>
__device__ inline void load_float(Accumulator<kRows, kCols>& acc, float const* source, int64_t stride, int first,
                                  int last) {
#pragma unroll
  for (int r = 0; r < kRows / 8; ++r) {
    int const row = tile_row<kRows>(r);
#pragma unroll
    for (int c = 0; c < kCols / 4; c += 2) {
      bool const there = c / 2 * 8 < kColumns && row >= first && row < last;
      float2 const two = there ? *reinterpret_cast<float2 const*>(source + row * stride + tile_col(c)) : float2{};
      acc(r, c) = two.x;
      acc(r, c + 1) = two.y;
    }
  }
}

/// Write one value a row to rows [0, rows) of `target`; one lane of the four that share a row writes.
template <class Element, int kRows>
__device__ inline void store_vector(Element* target, int64_t stride, RowVector<kRows> const& values, int rows) {
#pragma unroll
  for (int r = 0; r < kRows / 8; ++r) {
    int const row = tile_row<kRows>(r);
    if (lane_index() % 4 == 0 && row < rows) target[row * stride] = Element(values(r));
  }
}

/// Read one value a row, 0 outside of rows [first, last).
template <class Element, int kRows>
__device__ inline void load_rows(RowVector<kRows>& values, Element const* source, int64_t stride, int first, int last) {
#pragma unroll
  for (int r = 0; r < kRows / 8; ++r) {
    int const row = tile_row<kRows>(r);
    values(r) = row >= first && row < last ? float(source[row * stride]) : 0.0f;
  }
}

/// Read one value a column, 0 outside of columns [first, last).
template <class Element, int kCols>
__device__ inline void load_columns(ColVector<kCols>& values, Element const* source, int64_t stride, int first,
                                    int last) {
#pragma unroll
  for (int c = 0; c < kCols / 4; ++c) {
    int const column = tile_col(c);
    values(c) = column >= first && column < last ? float(source[column * stride]) : 0.0f;
  }
}

// ---------------------------------------------------------------------------------------------
// Functions of TL that are no single instruction
// ---------------------------------------------------------------------------------------------

__device__ inline float sigmoid(float x) { return reciprocal(1.0f + exp(-x)); }
__device__ inline float softplus(float x) { return fmaxf(x, 0.0f) + log(1.0f + exp(-fabsf(x))); }
__device__ inline float sqrt(float x) { return sqrtf(x); }
__device__ inline float rsqrt(float x) { return rsqrtf(x); }

}  // namespace tl
