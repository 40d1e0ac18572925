// Device functions of kernels that are made of roles: warpgroups that run their own statements and meet at barriers in
// shared memory. Tiles are moved by the copy engine (TMA) and multiplied by wgmma; sm_90a only.
//
// A warpgroup is four warps. Its register tiles have 64 rows; warp w of the group owns rows [16 w, 16 w + 16), laid out
// as the Accumulator and Operand of sm80.cuh.
#pragma once

#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/arch/mma_sm90_gmma_ext.hpp>
#include <cute/numeric/integer_sequence.hpp>

#include "memory.cuh"

namespace tl {

constexpr int kGroupThreads = 128;
constexpr int kGroupRows = 64;

__device__ inline int group_index() { return __shfl_sync(0xffffffff, threadIdx.x / kGroupThreads, 0); }
__device__ inline int group_warp() { return threadIdx.x / 32 % 4; }
/// The thread that speaks for its warpgroup.
__device__ inline bool leads_group() { return threadIdx.x % kGroupThreads == 0; }
__device__ inline uint32_t shared_address(void const* p) { return uint32_t(__cvta_generic_to_shared(p)); }

/// Row of the group's tile that holds fragment row r.
__device__ inline int group_row(int r) { return group_warp() * 16 + r * 8 + lane_index() / 4; }

// ---------------------------------------------------------------------------------------------
// Tiles in shared memory
// ---------------------------------------------------------------------------------------------

/// Tile (kRows, kCols) as the copy engine writes it and wgmma reads it: panels of kSwizzle bytes a row, one behind the
/// other, the last one completed. 16-byte chunk c of row r is stored at chunk c ^ (r % 8) of 128 bytes, or at
/// c ^ (r / 2 % 4) of 64.
template <class Element_, int kRows_, int kCols_, int kSwizzle_ = 128>
struct PanelTile {
  using Element = Element_;
  static constexpr int kRows = kRows_;
  static constexpr int kCols = kCols_;
  static constexpr int kSwizzle = kSwizzle_;
  static constexpr int kPanel = kSwizzle / 2;  // columns
  static constexpr int kPanels = (kCols + kPanel - 1) / kPanel;
  static constexpr int kPanelBytes = kRows * kSwizzle;
  static constexpr int kBytes = kPanels * kPanelBytes;
  static_assert(kSwizzle == 128 || kSwizzle == 64, "rows of a panel are 128 or 64 bytes");
  static_assert(sizeof(Element) == 2 && kCols % 16 == 0 && kRows % 8 == 0, "panels of whole swizzle units");

  Element* data;  // aligned to 8 * kSwizzle bytes
};

template <class Element, int kRows, int kCols, int kSwizzle>
__device__ inline PanelTile<Element, kRows, kCols, kSwizzle> stage(PanelTile<Element, kRows, kCols, kSwizzle> tile,
                                                                   int slot) {
  return {tile.data + slot * (tile.kBytes / 2)};
}

// ---------------------------------------------------------------------------------------------
// Registers of a role
// ---------------------------------------------------------------------------------------------

template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---------------------------------------------------------------------------------------------
// Rings, turns and barriers
// ---------------------------------------------------------------------------------------------

__device__ inline void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}
__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void barrier_wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

/// A tile's stages, each with a barrier that says it is full and one that says it is empty. `uses` counts the uses of
/// the ring by one role; use n has stage n % kStages and is the (n / kStages)-th of that stage.
template <int kStages>
struct Ring {
  uint64_t* barriers;  // kStages that say full, then kStages that say empty

  __device__ static int slot(int uses) { return uses % kStages; }
  __device__ static int round(int uses) { return uses / kStages & 1; }
  __device__ void init(int consumers) const {
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      barrier_init(barriers + i, 1);
      barrier_init(barriers + kStages + i, consumers);
    }
  }
  __device__ uint64_t* full(int uses) const { return barriers + slot(uses); }
  __device__ void wait_full(int uses) const { barrier_wait(full(uses), round(uses)); }
  /// A fresh barrier counts as passed for the opposite parity: every stage begins empty.
  __device__ void wait_empty(int uses) const { barrier_wait(barriers + kStages + slot(uses), round(uses) ^ 1); }
  __device__ void release(int uses) const {
    if (leads_group()) barrier_arrive(barriers + kStages + slot(uses));
  }
};

/// What was written to barriers is seen by all threads and by the copy engine.
__device__ inline void rings_are_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
}

__device__ inline void named_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ inline void named_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Named barriers of a block: 0 is __syncthreads, then one for each instance's turn, one that nobody arrives at, and one
// for each warpgroup.
constexpr int kTurnBarriers = 1;
constexpr int kNoBarrier = 8;
constexpr int kGroupBarriers = 9;

/// Turns of kTurns instances of a role: number 0 has the first one, given to it by the last instance.
template <int kTurns>
__device__ inline void open_turns(int instance) {
  if (instance == kTurns - 1) named_arrive(kTurnBarriers, 2 * kGroupThreads);
}
__device__ inline void wait_turn(int instance) { named_sync(kTurnBarriers + instance, 2 * kGroupThreads); }
template <int kTurns>
__device__ inline void pass_turn(int instance) {
  named_arrive(kTurnBarriers + (instance + 1) % kTurns, 2 * kGroupThreads);
}

/// The warps of one group meet.
__device__ inline void group_sync(int group) { named_sync(kGroupBarriers + group, kGroupThreads); }
__device__ inline void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---------------------------------------------------------------------------------------------
// Tiles of a persistent block
// ---------------------------------------------------------------------------------------------

/// The tile of a round: the blocks take tiles in rounds, every other round in reverse order, so that work of falling
/// length evens out.
__device__ inline int tile_of_round(int round) {
  return round * int(gridDim.x) + (round % 2 ? int(gridDim.x - 1 - blockIdx.x) : int(blockIdx.x));
}

/// Division of numbers from 0 by one that is known before the tiles begin: a product with its reciprocal, which is one
/// too small at most.
struct Divisor {
  uint32_t by, reciprocal;

  __device__ explicit Divisor(int count) : by(count), reciprocal(0xffffffff / uint32_t(count)) {}
  /// Give the rest, and leave the quotient in n.
  __device__ int split(uint32_t& n) const {
    uint32_t quotient = __umulhi(n, reciprocal), rest = n - quotient * by;
    if (rest >= by) {
      ++quotient;
      rest -= by;
    }
    n = quotient;
    return int(rest);
  }
};

/// The next tile that no block has, handed from the role that starts copies to the others of its block.
///
/// The counter is two integers in global memory, 0 before the launch: tiles taken behind the first one of each block,
/// and blocks that have ended. The last block to end sets both to 0 for the next launch.
struct TileQueue {
  uint64_t* barriers;  // full, empty
  int volatile* slot;
  int* counter;

  __device__ void init(int readers) const {
    barrier_init(barriers, 1);
    barrier_init(barriers + 1, readers);
  }
  /// Tiles taken so far; the next one follows the first tiles of all blocks.
  __device__ int take() const { return atomicAdd(counter, 1); }
  __device__ void publish(int tile, int uses) const {
    barrier_wait(barriers + 1, (uses & 1) ^ 1);
    *slot = tile;
    barrier_arrive(barriers);
  }
  __device__ int read(int uses) const {
    barrier_wait(barriers, uses & 1);
    int const tile = __shfl_sync(0xffffffff, *slot, 0);
    if (lane_index() == 0) barrier_arrive(barriers + 1);
    return tile;
  }
  __device__ void close() const {
    if (atomicAdd(counter + 1, 1) == int(gridDim.x) - 1) {
      counter[0] = 0;
      counter[1] = 0;
    }
  }
};

// ---------------------------------------------------------------------------------------------
// The copy engine
// ---------------------------------------------------------------------------------------------

/// A tensor's address, extents, strides and box, as cuTensorMapEncodeTiled makes it.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

/// Fill a tile with the box at (column 0, i1, i2, i3), innermost first, zeros outside of the tensor; completes `full`.
template <class Tile>
__device__ inline void load_tile(Tile tile, TensorMap const& map, uint64_t* full, int i1, int i2, int i3) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(full)), "r"(Tile::kBytes)
               : "memory");
#pragma unroll
  for (int panel = 0; panel < Tile::kPanels; ++panel)
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
        "[%2];" ::"r"(shared_address(tile.data) + panel * Tile::kPanelBytes),
        "l"(&map), "r"(shared_address(full)), "r"(panel * Tile::kPanel), "r"(i1), "r"(i2), "r"(i3)
        : "memory");
}

/// Fill a tile with the box at (column 0, i1, i2, i3, i4) of a tensor of which one dimension is seen as two.
template <class Tile>
__device__ inline void load_tile(Tile tile, TensorMap const& map, uint64_t* full, int i1, int i2, int i3, int i4) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(full)), "r"(Tile::kBytes)
               : "memory");
#pragma unroll
  for (int panel = 0; panel < Tile::kPanels; ++panel)
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, "
        "%7}], [%2];" ::"r"(shared_address(tile.data) + panel * Tile::kPanelBytes),
        "l"(&map), "r"(shared_address(full)), "r"(panel * Tile::kPanel), "r"(i1), "r"(i2), "r"(i3), "r"(i4)
        : "memory");
}

/// Start storing a tile to the box at (column 0, i1, i2, i3); what lies outside of the tensor is not written.
template <class Tile>
__device__ inline void store_tile(Tile tile, TensorMap const& map, int i1, int i2, int i3) {
  if (leads_group()) {
#pragma unroll
    for (int panel = 0; panel < Tile::kPanels; ++panel)
      asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
                   "r"(shared_address(tile.data) + panel * Tile::kPanelBytes), "r"(panel * Tile::kPanel), "r"(i1),
                   "r"(i2), "r"(i3)
                   : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  }
}

/// Wait until at most kPending stores of this group's leader may still read shared memory.
template <int kPending>
__device__ inline void wait_stores() {
  if (leads_group()) asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// ---------------------------------------------------------------------------------------------
// wgmma
// ---------------------------------------------------------------------------------------------

namespace gmma = cute::SM90::GMMA;

/// Where wgmma finds a tile swizzled over kSwizzle bytes; `leading` is the distance of panels for an operand whose
/// panels run along the result.
template <int kSwizzle>
__device__ inline uint64_t descriptor(uint32_t address, int leading) {
  constexpr uint64_t kLayout = uint64_t(kSwizzle == 128 ? 1 : 2) << 62, kEightRows = uint64_t(8 * kSwizzle >> 4) << 32;
  return uint64_t((address & 0x3ffff) >> 4) | uint64_t(leading >> 4) << 16 | kEightRows | kLayout;
}

/// Distance in bytes of step k of sixteen columns from the first, in a tile read along its rows.
template <class Tile>
__device__ constexpr int column_step(int k) {
  constexpr int kSteps = Tile::kPanel / 16;
  return k / kSteps * Tile::kPanelBytes + k % kSteps * 32;
}

template <class Element, int kCols, gmma::Major kMajor>
struct Atom;
#define TL_ATOM(N)                                                                              \
  template <gmma::Major kMajor>                                                                 \
  struct Atom<bf16, N, kMajor> {                                                                \
    using Shared = gmma::MMA_64x##N##x16_F32BF16BF16_SS<gmma::Major::K, kMajor>;                \
    using Registers = gmma::MMA_64x##N##x16_F32BF16BF16_RS<gmma::Major::K, kMajor>;             \
  };                                                                                            \
  template <gmma::Major kMajor>                                                                 \
  struct Atom<fp16, N, kMajor> {                                                                \
    using Shared = gmma::MMA_64x##N##x16_F32F16F16_SS<gmma::Major::K, kMajor>;                  \
    using Registers = gmma::MMA_64x##N##x16_F32F16F16_RS<gmma::Major::K, kMajor>;               \
  };
TL_ATOM(16)
TL_ATOM(32)
TL_ATOM(48)
TL_ATOM(64)
TL_ATOM(80)
TL_ATOM(96)
TL_ATOM(112)
TL_ATOM(128)
TL_ATOM(144)
TL_ATOM(160)
TL_ATOM(176)
TL_ATOM(192)
TL_ATOM(208)
TL_ATOM(224)
TL_ATOM(240)
TL_ATOM(256)
#undef TL_ATOM

/// Keep the compiler from moving uses of an accumulator over this point.
template <int kCols>
__device__ inline void landed(Accumulator<16, kCols>& acc) {
#pragma unroll
  for (int i = 0; i < kCols / 8; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) asm volatile("" : "+f"(acc.data[0][i][j])::"memory");
}

template <class Op, int kCols, int... kAt>
__device__ inline void issue(Accumulator<16, kCols>& acc, uint64_t a, uint64_t b, gmma::ScaleOut scale,
                             cute::integer_sequence<int, kAt...>) {
  Op::fma(a, b, acc.data[0][kAt / 4][kAt % 4]..., scale);
}
template <class Op, int kCols, int... kAt>
__device__ inline void issue(Accumulator<16, kCols>& acc, uint32_t const (&a)[4], uint64_t b, gmma::ScaleOut scale,
                             cute::integer_sequence<int, kAt...>) {
  Op::fma(a[0], a[1], a[2], a[3], b, acc.data[0][kAt / 4][kAt % 4]..., scale);
}

/// The second operand of a product: (N, K) tiles, read as they lie (kTransposed), or (K, N) tiles.
template <bool kTransposed, class Tile>
struct Columns {
  static constexpr gmma::Major kMajor = kTransposed ? gmma::Major::K : gmma::Major::MN;
  static constexpr int kInner = kTransposed ? Tile::kCols : Tile::kRows;
  uint64_t base;
  __device__ explicit Columns(Tile tile)
      : base(descriptor<Tile::kSwizzle>(shared_address(tile.data), kTransposed ? 16 : Tile::kPanelBytes)) {}
  /// Sixteen summed elements: 32 bytes of each row, or sixteen rows.
  __device__ uint64_t step(int k) const {
    return base + ((kTransposed ? column_step<Tile>(k) : k * 16 * Tile::kSwizzle) >> 4);
  }
};

/// Start acc = or += rows [row, row + 64) of a times b; a (M, K) and b lie in shared memory.
template <bool kTransposed, bool kAccumulate, int kCols, class TileA, class TileB>
__device__ inline void start_gemm(Accumulator<16, kCols>& acc, TileA a, int row, TileB b) {
  using From = Columns<kTransposed, TileB>;
  using Op = typename Atom<typename TileA::Element, kCols, From::kMajor>::Shared;
  From const columns(b);
  uint64_t const rows = descriptor<TileA::kSwizzle>(shared_address(a.data) + row * TileA::kSwizzle, 16);
  landed(acc);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int k = 0; k < From::kInner / 16; ++k)
    issue<Op>(acc, rows + (column_step<TileA>(k) >> 4), columns.step(k),
              kAccumulate || k ? gmma::ScaleOut::One : gmma::ScaleOut::Zero,
              cute::make_integer_sequence<int, kCols / 2>{});
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// The same with the first operand in registers.
template <bool kTransposed, bool kAccumulate, class Element, int kCols, int kInner, class TileB>
__device__ inline void start_gemm(Accumulator<16, kCols>& acc, Operand<Element, 16, kInner> const& a, TileB b) {
  using From = Columns<kTransposed, TileB>;
  using Op = typename Atom<Element, kCols, From::kMajor>::Registers;
  From const columns(b);
  landed(acc);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int k = 0; k < kInner / 16; ++k)
    issue<Op>(acc, a.data[k][0], columns.step(k), kAccumulate || k ? gmma::ScaleOut::One : gmma::ScaleOut::Zero,
              cute::make_integer_sequence<int, kCols / 2>{});
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Wait until at most kPending products of this group are under way.
template <int kPending>
__device__ inline void wait_gemm() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// The same, not before `value` is known, so that what comes before the wait in the program is not left behind it:
/// ptxas moves a wait up over anything but a barrier. The arrival never happens: no arithmetic gives this NaN.
template <int kPending>
__device__ inline void wait_gemm_behind(float value) {
  asm volatile(
      "{\n"
      ".reg .pred never;\n"
      "setp.eq.u32 never, %0, 0xffffffff;\n"
      "@never bar.arrive %1, %2;\n"
      "wgmma.wait_group.sync.aligned %3;\n"
      "}" ::"r"(__float_as_uint(value)),
      "n"(kNoBarrier), "n"(kGroupThreads), "n"(kPending)
      : "memory");
}

// ---------------------------------------------------------------------------------------------
// Registers to memory
// ---------------------------------------------------------------------------------------------

/// Round the group's rows into a shared tile; fence_async() and group_sync() must follow before it is stored.
template <int kCols, class Tile>
__device__ inline void stage_rows(Tile tile, Accumulator<16, kCols> const& acc) {
  using Element = typename Tile::Element;
  int const row = group_warp() * 16 + lane_index() % 16;
  constexpr int kSteps = Tile::kPanel / 16, kChunks = 2 * kSteps;  // of a panel's row
  uint32_t const base = shared_address(tile.data) + row * Tile::kSwizzle;
#pragma unroll
  for (int n = 0; n < kCols / 16; ++n) {
    float const(&left)[4] = acc.data[0][2 * n];
    float const(&right)[4] = acc.data[0][2 * n + 1];
    int const chunk = n % kSteps * 2 + lane_index() / 16;
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     base + n / kSteps * Tile::kPanelBytes + ((chunk ^ (row / (8 / kChunks) % kChunks)) * 16)),
                 "r"(pack<Element>(left[0], left[1])), "r"(pack<Element>(left[2], left[3])),
                 "r"(pack<Element>(right[0], right[1])), "r"(pack<Element>(right[2], right[3]))
                 : "memory");
  }
}

/// Transpose a 4 x 4 block of words over the four lanes that share a row: word w of lane l goes to word l of lane w.
__device__ inline void transpose_quad(uint32_t (&words)[4]) {
#pragma unroll
  for (int bit = 1; bit < 4; bit *= 2) {
    bool const upper = lane_index() & bit;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int const low = bit == 1 ? 2 * i : i, high = low + bit;
      uint32_t const got = __shfl_xor_sync(0xffffffff, upper ? words[low] : words[high], bit);
      words[low] = upper ? got : words[low];
      words[high] = upper ? words[high] : got;
    }
  }
}

/// Write the group's rows, rounded, to rows [0, rows) and columns [0, kColumns), a multiple of 8, of `target`: 16 bytes
/// a lane, 64 bytes of a row at a time.
template <int kColumns = kAllColumns, class Element, int kCols>
__device__ inline void store_group_rows(Element* target, int64_t stride, Accumulator<16, kCols> const& acc, int rows) {
  constexpr int kStored = kColumns < kCols ? kColumns : kCols;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    int const row = group_row(r);
#pragma unroll
    for (int part = 0; part < (kCols + 31) / 32; ++part) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int const c = 8 * part + 2 * i;
        words[i] = c < kCols / 4 ? pack<Element>(acc(r, c), acc(r, c + 1)) : 0;
      }
      transpose_quad(words);
      bool const stored = 32 * (part + 1) <= kStored || 32 * part + lane_index() % 4 * 8 < kStored;
      if (row < rows && stored)
        *reinterpret_cast<uint4*>(target + row * stride + 32 * part + lane_index() % 4 * 8) =
            make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

/// Write a warpgroup's rows as fp32 to rows [0, rows) and columns [0, kColumns), a multiple of 8, of `target`.
template <int kColumns = kAllColumns, int kCols>
__device__ inline void store_group_float(float* target, int64_t stride, Accumulator<16, kCols> const& acc, int rows) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    int const row = group_row(r);
#pragma unroll
    for (int c = 0; c < kCols / 4; c += 2)
      if (c / 2 * 8 < kColumns && row < rows)
        *reinterpret_cast<float2*>(target + row * stride + tile_col(c)) = make_float2(acc(r, c), acc(r, c + 1));
  }
}

/// Write one value a row to rows [0, rows) of `target`; one lane of the four that share a row writes.
template <class Element>
__device__ inline void store_group_vector(Element* target, int64_t stride, RowVector<16> const& values, int rows) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    int const row = group_row(r);
    if (lane_index() % 4 == 0 && row < rows) target[row * stride] = Element(values(r));
  }
}

/// Read one value a row, 0 outside of rows [first, last).
template <class Element>
__device__ inline void load_group_rows(RowVector<16>& values, Element const* source, int64_t stride, int first,
                                       int last) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    int const row = group_row(r);
    values(r) = row >= first && row < last ? float(source[row * stride]) : 0.0f;
  }
}

}  // namespace tl
