// y = x * w^T, or with SWIGLU silu(gate) * up of it. FORM: 0 stream, 1 tile by mma.sync, 2 plain, 3 tile
// by wgmma, 4 fed tile.
#include "linear.cuh"

struct Params {
  const bf16* w;          // [outputs, k]; with SWIGLU [2 * outputs, k], gate rows first
  const act_t* x;         // [rows, k]
  out_t* y;               // [rows, outputs]
  i64 x_stride, y_stride; // elements from row to row; of x a multiple of 16 bytes, as is x
  u32 outputs, k, rows;
  u32 per_tile;           // outputs of a tile: a multiple of 8, at most Tile::OUTPUTS
};
static_assert(sizeof(Params) == PARAMS_BYTES, "cuda.rs has another Params");

DEV Job whole(const Params& p) { return Job{p.w, p.x, p.y, nullptr, p.x_stride, p.y_stride, p.rows, 1, p.outputs, p.k}; }

#if FORM == 0
// Grid: any number of CTAs, which share the outputs.
extern "C" __global__ void __launch_bounds__(128, 1) gdn_linear_stream(const __grid_constant__ Params p) {
  const u32 first = (u32)((u64)p.outputs * blockIdx.x / gridDim.x), last = (u32)((u64)p.outputs * (blockIdx.x + 1) / gridDim.x);
  Stream<ROWS16, PAIRS8, AHEAD>::run(whole(p), first, last, true);
}
#elif FORM == 1 || FORM >= 3
typedef Tile<WARPS / 10, WARPS % 10, ROWS16, PAIRS8, AHEAD, CLUSTER, FORM == 1 ? MMA : FORM - 2> Tiles;
// Tiles of outputs that CTAs with neighbouring numbers have: with as many of x, these fit the second-level cache.
constexpr u32 BAND = FORM == 4 ? 16 : 1;
// Grid: x CLUSTER * tiles of rows of x * tiles of outputs.
extern "C" __global__ void __launch_bounds__(Tiles::ALL_THREADS, 1) gdn_linear_tile(const __grid_constant__ Params p) {
  const u32 id = blockIdx.x / CLUSTER, across = ceil_div(p.rows, Tiles::BN), tiles = ceil_div(p.outputs, p.per_tile);
  const u32 band = id / (BAND * across) * BAND, in = id % (BAND * across), size = tiles - band < BAND ? tiles - band : BAND;
  const u32 first = (band + in % size) * p.per_tile, last = first + p.per_tile < p.outputs ? first + p.per_tile : p.outputs;
  const u32 i0 = in / size * Tiles::BN, i_end = i0 + Tiles::BN < p.rows ? i0 + Tiles::BN : p.rows;
  Tiles::run(whole(p), first, last, i0, i_end, CLUSTER > 1 ? blockIdx.x % CLUSTER : 0, true);
}
#else
// Grid: ceil(outputs / 4).
extern "C" __global__ void __launch_bounds__(128, 1) gdn_linear_plain(const __grid_constant__ Params p) {
  plain(whole(p), blockIdx.x * 4 + threadIdx.x / 32, true);
}
#endif
