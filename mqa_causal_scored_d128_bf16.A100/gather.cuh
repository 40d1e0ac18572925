// Copies whose rows lie anywhere, as those of a cache in pages do.
#pragma once

#include "memory.cuh"

namespace tl {

/// A row of global memory, or none: then the address means nothing, and nothing is read there.
template <class Element>
struct Row {
  Element const* data;
  bool exists;
};

template <class Element>
__device__ inline Row<Element> row_if(bool exists, Element const* data) {
  return {data, exists};
}

/// Visit the 16-byte chunks of a tile as copy() does, each with where it is read from: `source(row)` gives a Row, looked
/// up once for all its chunks.
template <int kThreads, int kColumns, class Tile, class Source, class Take>
__device__ inline void for_each_gathered(Source const& source, Take const& take) {
  constexpr int kSpan = Tile::kSpan;
  constexpr int kPassRows = kThreads / kSpan;
  static_assert(Tile::kRows % kPassRows == 0, "the threads must divide the tile");
  int const row = threadIdx.x / kSpan;
  int const chunk = threadIdx.x % kSpan;
#pragma unroll
  for (int i = 0; i < Tile::kRows / kPassRows; ++i) {
    Row<typename Tile::Element> const from = source(row + i * kPassRows);
#pragma unroll
    for (int span = 0; span < Tile::kSpans; ++span) {
      bool const held = from.exists && Tile::reaches(kHeld<Tile, kColumns>, span, chunk);
      take(i, span, row, chunk, reinterpret_cast<Vector16B const*>(from.data + (span * kSpan + chunk) * kChunk), held);
    }
  }
}

/// Copy the rows that `source` gives and columns [0, kColumns) of them into `tile`, zeros elsewhere, and wait for
/// nothing: sync() must follow.
template <int kThreads, int kColumns = kAllColumns, class Tile, class Source>
__device__ inline void gather(Tile tile, Source const& source) {
  for_each_gathered<kThreads, kColumns, Tile>(
      source, [&](int i, int span, int row, int chunk, Vector16B const* from, bool held) {
        Vector16B value{};
        if (held) value = *from;
        tile.chunk(i * (kThreads / Tile::kSpan), span * Tile::kSpan, row, chunk) = value;
      });
}

/// The same, asynchronously.
template <int kThreads, int kColumns = kAllColumns, class Tile, class Source>
__device__ inline void gather_async(Tile tile, Source const& source) {
  for_each_gathered<kThreads, kColumns, Tile>(
      source, [&](int i, int span, int row, int chunk, Vector16B const* from, bool held) {
        cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<Vector16B>::copy(
            *from, tile.chunk(i * (kThreads / Tile::kSpan), span * Tile::kSpan, row, chunk), held);
      });
}

/// Read the rows that `source` gives and columns [0, kColumns) of them into `pieces`, zeros elsewhere.
template <int kColumns = kAllColumns, class Pieces, class Source>
__device__ inline void gather_pieces(Pieces& pieces, Source const& source) {
  for_each_gathered<Pieces::kThreads, kColumns, typename Pieces::Tile>(
      source, [&](int i, int span, int, int, Vector16B const* from, bool held) {
        pieces.data[i][span] = Vector16B{};
        if (held) pieces.data[i][span] = *from;
      });
}

}  // namespace tl
