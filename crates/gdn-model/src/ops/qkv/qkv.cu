// q and k of each row are normed per head and rotated, k and v go to their page. A row of p is
// [heads][q HEAD_DIM | gate HEAD_DIM], then k and v, [kv_heads][HEAD_DIM] each.
// A warp a head; a CTA of 8 warps, x over (heads + 2 * kv_heads) / 8, y * z >= rows.
#include "common.cuh"

struct Params {
  const act_t* p;            // [rows, stride]
  const float* q_norm;       // [HEAD_DIM]
  const float* k_norm;       // [HEAD_DIM]
  const float* frequencies;  // [HALF] radians a position
  const i32* positions;      // [rows]
  const i32* sequences;      // [rows] negative: padding, for which nothing is written
  const i32* table;          // [sequences, max_pages], negative: none
  act_t* q;                  // [rows, heads, HEAD_DIM]
  act_t* keys;               // [pages, 64, kv_heads, HEAD_DIM]
  act_t* values;             // the same
  u64 stride;
  u32 rows, heads, kv_heads;
  u32 max_pages, pages;
  float eps;
};
static_assert(sizeof(Params) == PARAMS_BYTES, "cuda.rs has another Params");
static_assert(HEAD_DIM % 32 == 0 && HEAD_DIM <= 256 && 2 * HALF <= HEAD_DIM, "a warp holds a head");

constexpr int N = HEAD_DIM / 32;  // neighbouring elements of a lane

template <class T> DEV void load(const T* p, float* v) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) Quad<T>::load(p + i).get(v + i);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = to_f(p[i]);
  }
}
DEV void store(act_t* p, const float* v) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) Quad<act_t>::of(v + i).store(p + i);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) p[i] = Num<act_t>::of(v[i]);
  }
}

extern "C" __global__ void __launch_bounds__(256) gdn_qkv(const __grid_constant__ Params p) {
  const u32 row = blockIdx.y + blockIdx.z * gridDim.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  if (row >= p.rows) return;
  const u32 head = blockIdx.x * 8 + warp, all = p.heads + 2 * p.kv_heads, at = lane * N;
  float* sines = reinterpret_cast<float*>(smem_base());  // [HALF]
  float *cosines = sines + HALF, *x = cosines + HALF + warp * 2 * HALF;  // and what is rotated, per warp
  const bool is_q = head < p.heads, is_v = head >= p.heads + p.kv_heads;
  const u64 from = is_q ? (u64)head * 2 * HEAD_DIM : (u64)(p.heads + head) * HEAD_DIM;
  float v[N], factor[N];
  if (!is_v) load((is_q ? p.q_norm : p.k_norm) + at, factor);
  pdl_wait();
  pdl_trigger();
  if (head < all) load(p.p + row * p.stride + from + at, v);
  const i32 sequence = p.sequences[row];
  const u32 position = p.positions[row];
  if (sequence < 0) return;
  for (u32 i = threadIdx.x; i < HALF; i += 256)
    sincosf((float)position * p.frequencies[i], &sines[i], &cosines[i]);
  __syncthreads();
  if (head >= all) return;

  act_t* to = p.q + ((u64)row * p.heads + head) * HEAD_DIM;
  if (!is_q) {
    if (position / 64 >= p.max_pages) return;
    const u32 page = p.table[(u64)sequence * p.max_pages + position / 64];
    if (page >= p.pages) return;
    const u32 kv_head = head - p.heads - (is_v ? p.kv_heads : 0);
    to = (is_v ? p.values : p.keys) + (((u64)page * 64 + position % 64) * p.kv_heads + kv_head) * HEAD_DIM;
  }
  if (is_v) return store(to + at, v);
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < N; i++) sum = fmaf(v[i], v[i], sum);
#pragma unroll
  for (int n = 16; n > 0; n /= 2) sum += __shfl_xor_sync(FULL, sum, n);
  const float scale = rsqrtf(sum / (float)HEAD_DIM + p.eps);
#pragma unroll
  for (int i = 0; i < N; i++) {
    v[i] *= scale * factor[i];
    if (at + i < 2 * HALF) x[at + i] = v[i];
  }
  __syncwarp();
  // Dim i goes with dim i + HALF.
#pragma unroll
  for (int i = 0; i < N; i++) {
    const u32 d = at + i;
    if (d < HALF) v[i] = v[i] * cosines[d] - x[d + HALF] * sines[d];
    else if (d < 2 * HALF) v[i] = v[i] * cosines[d - HALF] + x[d - HALF] * sines[d - HALF];
  }
  store(to + at, v);
}
