// Each expert's products with the rows that are routed to it: with SWIGLU silu(gate) * up of a token,
// else down of a pair. FORM as in linear.cu. Grid: x tiles of outputs, y first the tiles of the shared
// expert's pairs, which may be all tokens, then routed experts, as many as there may be.
#define PARTIAL 1
#include "linear.cuh"

struct Params {
  const bf16* w;          // [experts, (2 with SWIGLU) * outputs, k]
  const bf16* shared_w;   // [(2) * shared_outputs, shared_k]
  const act_t* x;         // a row for each token (up) or pair (down)
  act_t* y;               // a row for each pair
  const i32* order;       // pairs by expert
  const i32* starts;      // [experts + 2] where an expert's pairs start
  const i32* active;      // experts that have some, ascending
  const i32* active_count;
  i64 x_stride, y_stride; // elements from row to row
  u32 outputs, shared_outputs, k, shared_k;
  u32 experts;            // the shared one has this number
  u32 places;             // rows of x are pairs / places
  u32 per_cta;            // outputs of a CTA
  u32 shared_tiles;
};
static_assert(sizeof(Params) == PARAMS_BYTES, "cuda.rs has another Params");

// Down runs behind up, which runs behind the routing: when down starts, the routing is complete, and
// what it says may be read ahead of the wait.
constexpr bool EARLY = !SWIGLU;

// The work of blockIdx.y, if there is some. CTAs of the shared expert take `most` pairs each.
DEV bool find(const Params& p, u32 most, Job& job) {
  const bool shared = blockIdx.y < p.shared_tiles;
  const u32 slot = blockIdx.y - p.shared_tiles;
  if (!shared && slot >= (u32)*p.active_count) return false;
  const u32 expert = shared ? p.experts : (u32)p.active[slot];
  if (!shared && expert >= p.experts) return false;
  u32 begin = (u32)p.starts[expert], end = (u32)p.starts[expert + 1];
  if (shared) {
    begin += blockIdx.y * most;
    end = begin + most < end ? begin + most : end;
  }
  const u32 outputs = shared ? p.shared_outputs : p.outputs, k = shared ? p.shared_k : p.k;
  if (begin >= end || blockIdx.x * p.per_cta >= outputs) return false;
  const bf16* w = shared ? p.shared_w : p.w + (u64)expert * (1 + SWIGLU) * outputs * k;
  job = Job{w, p.x, p.y, p.order + begin, p.x_stride, p.y_stride, end - begin, p.places, outputs, k};
  return true;
}

DEV bool start(const Params& p, u32 most, Job& job) {
  if (!EARLY) pdl_wait();
  const bool some = find(p, most, job);
  // Who has no work waits too: what runs behind this kernel counts on what ran before it.
  if (EARLY && !some) pdl_wait();
  return some;
}

#if FORM == 0
extern "C" __global__ void __launch_bounds__(128, 1) gdn_experts_stream(const __grid_constant__ Params p) {
  Job job;
  if (!start(p, PAIRS8 * 8, job)) return;
  const u32 first = blockIdx.x * p.per_cta, last = first + p.per_cta < job.outputs ? first + p.per_cta : job.outputs;
  Stream<ROWS16, PAIRS8, AHEAD>::run(job, first, last, EARLY);
}
#elif FORM == 1 || FORM >= 3
typedef Tile<WARPS / 10, WARPS % 10, ROWS16, PAIRS8, AHEAD, 1, FORM == 1 ? MMA : FORM - 2> Tiles;
extern "C" __global__ void __launch_bounds__(Tiles::ALL_THREADS, 1) gdn_experts_tile(const __grid_constant__ Params p) {
  Job job;
  if (!start(p, Tiles::BN, job)) return;
  const u32 first = blockIdx.x * p.per_cta, last = first + p.per_cta < job.outputs ? first + p.per_cta : job.outputs;
  Tiles::run(job, first, last, 0, job.count, 0, EARLY);
}
#else
extern "C" __global__ void __launch_bounds__(128, 1) gdn_experts_plain(const __grid_constant__ Params p) {
  Job job;
  if (!start(p, 8, job)) return;
  plain(job, blockIdx.x * 4 + threadIdx.x / 32, EARLY);
}
#endif
