// Attention for any activations and any HEAD_DIM that 32 divides, a warp a (head, row): for
// checking, not for speed. Grid: (heads, y, z), y * z >= rows. Positions, sequences and pages are
// not those of the kernel right before this one.
#include "attention.cuh"

constexpr int LANE = HEAD_DIM / 32;  // dims of a lane
static_assert(HEAD_DIM % 32 == 0, "dims are shared out to lanes");

extern "C" __global__ void __launch_bounds__(32) gdn_attention_plain(const __grid_constant__ Params p) {
  const u32 head = blockIdx.x, row = blockIdx.y + blockIdx.z * gridDim.y, lane = threadIdx.x;
  if (row >= p.rows) return;
  const i32 sequence = p.sequences[row], position = p.positions[row];
  pdl_wait();
  pdl_trigger();
  act_t* out = p.out + out_at(p, row, head);
  if (sequence < 0) {
    for (int d = lane; d < HEAD_DIM; d += 32) out[d] = Num<act_t>::of(0.f);
    return;
  }
  float* q = reinterpret_cast<float*>(smem_base());
  float* shares = q + HEAD_DIM;
  for (int d = lane; d < HEAD_DIM; d += 32) q[d] = to_f(p.q[out_at(p, row, head) + d]);
  __syncwarp();
  const u64 pitch = (u64)p.kv_heads * HEAD_DIM;
  float m = NEVER, l = 0.f, o[LANE] = {}, all_m = NEVER, all_l = 0.f, all[LANE] = {};
  for (i32 block = 0; block <= position / BLOCK; block++) {
    const u64 page = p.pages[(u64)sequence * p.max_pages + block];
    const u64 base = page * BLOCK * pitch + head / RATIO * HEAD_DIM;
    const int seen = least(position - block * BLOCK + 1, BLOCK);
    float s[2] = {NEVER, NEVER};
    for (int half = 0; half < 2; half++) {
      const int key = half * 32 + lane;
      if (key >= seen) continue;
      float sum = 0.f;
      for (int d = 0; d < HEAD_DIM; d += 4) {
        float k[4];
        Quad<act_t>::load(p.keys + base + key * pitch + d).get(k);
#pragma unroll
        for (int n = 0; n < 4; n++) sum = fmaf(q[d + n], k[n], sum);
      }
      s[half] = sum;
    }
    float top = fmaxf(s[0], s[1]);
#pragma unroll
    for (int n = 16; n > 0; n /= 2) top = fmaxf(top, __shfl_xor_sync(FULL, top, n));
    const float shrink = raise(m, top * p.scale);
    float sum = 0.f;
    for (int half = 0; half < 2; half++) {
      const float e = share(s[half], p.scale, m);
      shares[half * 32 + lane] = e;
      sum += e;
    }
#pragma unroll
    for (int n = 16; n > 0; n /= 2) sum += __shfl_xor_sync(FULL, sum, n);
    l = fmaf(l, shrink, sum);
    __syncwarp();
#pragma unroll
    for (int n = 0; n < LANE; n++) o[n] *= shrink;
    for (int key = 0; key < seen; key++) {
#pragma unroll
      for (int n = 0; n < LANE; n++) o[n] = fmaf(shares[key], to_f(p.values[base + key * pitch + n * 32 + lane]), o[n]);
    }
    __syncwarp();
    if (block % SPLIT != SPLIT - 1 && block != position / BLOCK) continue;
    const bool first = block < SPLIT;
    if (first) { all_m = m; all_l = l; }
    const Fold f = first ? Fold{} : fold(all_m, all_l, m, l);
#pragma unroll
    for (int n = 0; n < LANE; n++) {
      all[n] = first ? o[n] : folded(f, all[n], o[n]);
      o[n] = 0.f;
    }
    m = NEVER;
    l = 0.f;
  }
  const float inverse = 1.f / all_l;
  const act_t* gates = gate_at(p, row, head);
#pragma unroll
  for (int n = 0; n < LANE; n++) out[n * 32 + lane] = Num<act_t>::of(gated(all[n], inverse, to_f(gates[n * 32 + lane])));
}
