// x += delta; out = x / sqrt(mean(x^2) + eps) * factor, a CTA of 256 threads a row.
// gdn_experts_norm: delta is what a row's places say, each times its share, added in their order.
// With `picked`, row r of out is that of row picked[r], zeros where there is none, and x stays.
// Grid: y * z >= rows. A thread's elements, and so the order of the sum, depend on HIDDEN alone.
#include "common.cuh"

struct Params {
  float* x;             // [of, HIDDEN] the residual stream
  const act_t* delta;   // [of, HIDDEN] or null; of experts: [of, places, HIDDEN]
  const float* shares;  // [of, places] of experts; what belongs to a share of 0 is not used
  const i32* picked;    // [rows] or null: all rows
  const float* factor;  // [HIDDEN]
  act_t* out;           // [rows, HIDDEN]
  u32 rows, of;
  u32 places;
  float eps;
};
static_assert(sizeof(Params) == PARAMS_BYTES, "cuda.rs has another Params");
static_assert(HIDDEN % 4 == 0, "rows are read by four");

template <bool EXPERTS> DEV void norm(const Params& p) {
  constexpr int QUADS = (HIDDEN / 4 + 255) / 256;
  const u32 to = blockIdx.y + blockIdx.z * gridDim.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  if (to >= p.rows) return;
  act_t* out = p.out + (u64)to * HIDDEN;
  float v[QUADS][4], w[QUADS][4], sum = 0.f;
#pragma unroll
  for (int q = 0; q < QUADS; q++) {
    const int i = (q * 256 + threadIdx.x) * 4;
    if (i < HIDDEN) Quad<f32>::load(p.factor + i).get(w[q]);
  }
  pdl_wait();
  pdl_trigger();
  const u32 row = p.picked ? p.picked[to] : to;
  if (row >= p.of) {
    const float zeros[4] = {};
    for (int i = threadIdx.x * 4; i < HIDDEN; i += 256 * 4) Quad<act_t>::of(zeros).store(out + i);
    return;
  }
  float* x = p.x + (u64)row * HIDDEN;
#pragma unroll
  for (int q = 0; q < QUADS; q++) {
    const int i = (q * 256 + threadIdx.x) * 4;
    if (i >= HIDDEN) continue;
    Quad<f32>::load(x + i).get(v[q]);
    if (p.delta) {
      float d[4] = {};
      if constexpr (EXPERTS) {
        const act_t* part = p.delta + (u64)row * p.places * HIDDEN + i;
        const float* shares = p.shares + (u64)row * p.places;
        // Loads do not wait for shares.
#pragma unroll 4
        for (u32 s = 0; s < p.places; s++) {
          float f[4];
          Quad<act_t>::load(part + (u64)s * HIDDEN).get(f);
          const float share = shares[s];
#pragma unroll
          for (int n = 0; n < 4; n++) d[n] = share != 0.f ? d[n] + share * f[n] : d[n];
        }
      } else {
        Quad<act_t>::load(p.delta + (u64)row * HIDDEN + i).get(d);
      }
#pragma unroll
      for (int n = 0; n < 4; n++) v[q][n] += d[n];
      if (!p.picked) Quad<f32>::of(v[q]).store(x + i);
    }
#pragma unroll
    for (int n = 0; n < 4; n++) sum = fmaf(v[q][n], v[q][n], sum);
  }
  float* sums = reinterpret_cast<float*>(smem_base());
#pragma unroll
  for (int n = 16; n > 0; n /= 2) sum += __shfl_xor_sync(FULL, sum, n);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  sum = 0.f;
#pragma unroll
  for (int n = 0; n < 8; n++) sum += sums[n];
  const float scale = rsqrtf(sum / (float)HIDDEN + p.eps);
#pragma unroll
  for (int q = 0; q < QUADS; q++) {
    const int i = (q * 256 + threadIdx.x) * 4;
    if (i >= HIDDEN) continue;
#pragma unroll
    for (int n = 0; n < 4; n++) v[q][n] *= scale * w[q][n];
    Quad<act_t>::of(v[q]).store(out + i);
  }
}

extern "C" __global__ void __launch_bounds__(256) gdn_add_norm(const __grid_constant__ Params p) { norm<false>(p); }
extern "C" __global__ void __launch_bounds__(256) gdn_experts_norm(const __grid_constant__ Params p) { norm<true>(p); }
