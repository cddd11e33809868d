// y = x * w^T, or with SWIGLU silu(gate) * up of it. FORM: 0 stream, 1 tile, 2 plain, 3 tile of wgmma.
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
#elif FORM == 1 || FORM == 3
// Grid: x CLUSTER * tiles of rows of x * tiles of outputs; neighbours share a tile of w.
typedef Tile<WARPS / 10, WARPS % 10, ROWS16, PAIRS8, AHEAD, CLUSTER, FORM == 3> Tiles;
extern "C" __global__ void __launch_bounds__(Tiles::THREADS, 1) gdn_linear_tile(const __grid_constant__ Params p) {
  const u32 id = blockIdx.x / CLUSTER, across = ceil_div(p.rows, Tiles::BN);
  const u32 first = id / across * p.per_tile, last = first + p.per_tile < p.outputs ? first + p.per_tile : p.outputs;
  Tiles::run(whole(p), first, last, id % across * Tiles::BN, CLUSTER > 1 ? blockIdx.x % CLUSTER : 0, true);
}
#else
// Grid: ceil(outputs / 4).
extern "C" __global__ void __launch_bounds__(128, 1) gdn_linear_plain(const __grid_constant__ Params p) {
  plain(whole(p), blockIdx.x * 4 + threadIdx.x / 32, true);
}
#endif
