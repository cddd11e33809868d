// The TOP_K experts of each token, by logit, the lower index first of equals; NaN is the lowest.
// Place TOP_K is the shared expert, number EXPERTS. Then (token, place) pairs in the order of experts.
//
// A token takes an expert once, so the tokens of an expert are bits of a mask: a pair's rank is a
// count of bits, and nothing depends on the order of atomics.
#include "common.cuh"

struct Params {
  const float* logits;   // [rows, stride]: those of the router, then the shared expert's gate
  const i32* sequences;  // [rows] negative: padding
  i32* experts;          // [rows, PLACES], -1 in padding
  float* shares;         // [rows, PLACES], 0 in padding
  i32* order;            // [rows * PLACES] pairs, token * PLACES + place; what padding leaves over is not written
  i32* starts;           // [EXPERTS + 2] where an expert's pairs start in order; the last: their number
  i32* active;           // [EXPERTS + 1] experts with pairs, ascending; beyond: not written
  i32* active_count;     // [1]
  u32 rows, stride;
  float renormalise;     // 1 or 0
  u32 pad;
};
static_assert(sizeof(Params) == PARAMS_BYTES, "cuda.rs has another Params");
static_assert(TOP_K <= 16 && TOP_K <= EXPERTS && EXPERTS <= 512, "a warp holds the logits, a lane a place");

constexpr int PLACES = TOP_K + 1, ALL = EXPERTS + 1, EACH = (EXPERTS + 31) / 32;
constexpr u32 CHUNK = 128;  // tokens of a CTA of gdn_route_sort

// Floats as integers of the same order. 0 is none.
DEV u32 key_of(float x) {
  const u32 u = f_bits(x + 0.f);  // no -0
  return x != x ? 1 : u >> 31 ? ~u : u | 0x80000000u;
}
DEV float of_key(u32 k) { return bits_f(k == 1 ? 0x7fffffffu : k >> 31 ? k & 0x7fffffffu : ~k); }

DEV float warp_sum(float x) {
#pragma unroll
  for (int n = 16; n > 0; n /= 2) x += __shfl_xor_sync(FULL, x, n);
  return x;
}

// A warp for a token; returns the expert of place `lane`, -1 where there is none.
DEV i32 choose(const Params& p, u32 row, u32 lane) {
  const float* logits = p.logits + (u64)row * p.stride;
  const u64 at = (u64)row * PLACES + lane;
  if (p.sequences[row] < 0) {
    if (lane < PLACES) { p.experts[at] = -1; p.shares[at] = 0.f; }
    return -1;
  }
  float v[EACH];
  u32 keys[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const u32 e = i * 32 + lane;
    v[i] = e < EXPERTS ? logits[e] : 0.f;
    keys[i] = e < EXPERTS ? key_of(v[i]) : 0;
  }
  const float gate = logits[EXPERTS];
  u32 key = 0, expert = 0;  // of this lane's place
  float max = 0.f;
#pragma unroll 1
  for (u32 place = 0; place < TOP_K; place++) {
    u32 best = keys[0], first = 0;
#pragma unroll
    for (int i = 1; i < EACH; i++)
      if (keys[i] > best) { best = keys[i]; first = i; }
    const u32 most = __reduce_max_sync(FULL, best);
    const u32 e = __reduce_min_sync(FULL, best == most ? first * 32 + lane : ~0u);
    if (place == 0) max = of_key(most);
    if (place == lane) { key = most; expert = e; }
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (i * 32 + lane == e) keys[i] = 0;
  }
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < EACH; i++)
    if (i * 32 + lane < EXPERTS) sum += expf(v[i] - max);
  float share = expf(of_key(key) - max) / warp_sum(sum);
  const float taken = warp_sum(lane < TOP_K ? share : 0.f);
  if (p.renormalise != 0.f) share *= 1.f / taken;
  if (lane == TOP_K) { expert = EXPERTS; share = 1.f / (1.f + expf(-gate)); }
  if (lane >= PLACES) return -1;
  p.experts[at] = expert;
  p.shares[at] = share;
  return expert;
}

// Thread e has n pairs of expert e; returns where they start. Every CTA knows all, one writes it down.
DEV u32 place_experts(const Params& p, u32 n, u32* totals, bool write) {
  const u32 e = threadIdx.x, lane = e & 31, warp = e >> 5;
  u32 pairs = n, experts = n > 0;  // up to and with this one
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const u32 more = __shfl_sync(FULL, pairs, lane - by), others = __shfl_sync(FULL, experts, lane - by);
    if (lane >= by) { pairs += more; experts += others; }
  }
  if (lane == 31) { totals[2 * warp] = pairs; totals[2 * warp + 1] = experts; }
  __syncthreads();
  for (u32 w = 0; w < warp; w++) { pairs += totals[2 * w]; experts += totals[2 * w + 1]; }
  const u32 start = pairs - n;
  if (write && e < ALL) {
    p.starts[e] = start;
    if (n > 0) p.active[experts - 1] = e;
    if (e == ALL - 1) { p.starts[ALL] = pairs; *p.active_count = experts; }
  }
  return start;
}

// Everything for up to 32 tokens, in a CTA of at least a warp for each and a thread for each expert.
extern "C" __global__ void __launch_bounds__(1024) gdn_route_few(const __grid_constant__ Params p) {
  const u32 lane = threadIdx.x & 31, token = threadIdx.x >> 5;
  u32* masks = reinterpret_cast<u32*>(smem_base());  // [ALL] bit t: token t takes it
  u32 *starts = masks + ALL, *totals = starts + ALL;
  for (u32 e = threadIdx.x; e < ALL; e += blockDim.x) masks[e] = 0;
  pdl_wait();
  pdl_trigger();
  __syncthreads();
  const i32 expert = token < p.rows ? choose(p, token, lane) : -1;
  if (expert >= 0) atomicOr(&masks[expert], 1u << token);
  __syncthreads();
  const u32 n = threadIdx.x < ALL ? __popc(masks[threadIdx.x]) : 0;
  const u32 start = place_experts(p, n, totals, true);
  if (threadIdx.x < ALL) starts[threadIdx.x] = start;
  __syncthreads();
  if (expert >= 0) p.order[starts[expert] + __popc(masks[expert] & ((1u << token) - 1))] = token * PLACES + lane;
}

// The first half for more: a warp a token. Grid: y * z >= rows / 4.
extern "C" __global__ void __launch_bounds__(128) gdn_route_choose(const __grid_constant__ Params p) {
  const u32 token = (blockIdx.y + blockIdx.z * gridDim.y) * 4 + (threadIdx.x >> 5);
  pdl_wait();
  pdl_trigger();
  if (token < p.rows) choose(p, token, threadIdx.x & 31);
}

// The second half, CHUNK tokens a CTA of 1024 threads. Each counts the pairs of all tokens and of those
// before its own, and so knows where its own go.
extern "C" __global__ void __launch_bounds__(1024) gdn_route_sort(const __grid_constant__ Params p) {
  const u32 chunk = blockIdx.x, pairs = p.rows * PLACES;
  const u32 from = chunk * CHUNK * PLACES, next = from + CHUNK * PLACES, end = next < pairs ? next : pairs;
  u32* counts = reinterpret_cast<u32*>(smem_base());  // [ALL] of all pairs
  u32* starts = counts + ALL;                         // [ALL] first of the pairs before, then where its own go
  u32* masks = starts + ALL;                          // [ALL][CHUNK / 32]
  u32* totals = masks + ALL * (CHUNK / 32);
  for (u32 i = threadIdx.x; i < ALL * (2 + CHUNK / 32); i += 1024) counts[i] = 0;
  pdl_wait();
  pdl_trigger();
  __syncthreads();
#pragma unroll 4
  for (u32 i = threadIdx.x; i < pairs; i += 1024) {
    const i32 e = p.experts[i];
    if (e < 0) continue;
    atomicAdd(&counts[e], 1u);
    if (i < from) atomicAdd(&starts[e], 1u);
    const u32 token = i / PLACES - chunk * CHUNK;
    if (i >= from && i < end) atomicOr(&masks[e * (CHUNK / 32) + token / 32], 1u << (token & 31));
  }
  __syncthreads();
  const u32 n = threadIdx.x < ALL ? counts[threadIdx.x] : 0;
  const u32 start = place_experts(p, n, totals, chunk == 0);
  if (threadIdx.x < ALL) starts[threadIdx.x] += start;
  __syncthreads();
  for (u32 i = from + threadIdx.x; i < end; i += 1024) {
    const i32 e = p.experts[i];
    if (e < 0) continue;
    const u32 token = i / PLACES - chunk * CHUNK;
    u32 to = starts[e];
#pragma unroll
    for (u32 w = 0; w < CHUNK / 32; w++) {
      const u32 before = w < token / 32 ? ~0u : w == token / 32 ? (1u << (token & 31)) - 1 : 0;
      to += __popc(masks[e * (CHUNK / 32) + w] & before);
    }
    p.order[to] = i;
  }
}
