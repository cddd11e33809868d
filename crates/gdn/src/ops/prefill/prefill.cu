// Whole sequences, token by token, the state tile in registers throughout.
//   gdn_prefill, gdn_prefill_any            the recurrence, on convolved mixed_qkv
//   gdn_prefill_conv, then gdn_prefill_ring the conv before it, and the ring after it
// Convolved inputs and outputs are f32, and the state is rounded to its type after every token: so
// the bits are those of the fused step.
#include "core.cuh"
#ifndef WARPS
#define WARPS 4
#endif
#ifndef ROWS
#define ROWS 8
#endif

DEV float2 token_gates(const PackedParams& p, i64 t, u32 hv) {
  float a = to_f(reinterpret_cast<const act_t*>(p.a)[t * p.a_stride + hv]);
  float b = to_f(reinterpret_cast<const act_t*>(p.bb)[t * p.b_stride + hv]);
  return make_float2(expf(gate_log(a, p.neg_exp_a[hv], p.dt_bias[hv])), gate_beta(b, p.s.flags));
}

#if K_DIM > 0 && V_DIM > 0 && (WANT & 1)
// Raw inputs of one token, loaded a token ahead of their use.
template <class L> struct Token {
  Quad<f32> q[L::E / 4], k[L::E / 4];
  float v[ROWS / L::RPA];
  act_t a, b;
  __device__ __forceinline__ void load(const PackedParams& p, i64 t, u32 h, u32 hv, int v0, int lane) {
    const float* x = reinterpret_cast<const float*>(p.x) + t * p.x_stride;
#pragma unroll
    for (int i = 0; i < L::E; i += 4) {
      const int e = L::elem(i / L::VEC, lane) + i % L::VEC;
      q[i / 4] = Quad<f32>::load(x + h * K_DIM + e);
      k[i / 4] = Quad<f32>::load(x + (p.h + h) * K_DIM + e);
    }
#pragma unroll
    for (int g = 0; g < ROWS / L::RPA; g++) v[g] = x[2 * (i64)p.h * K_DIM + (i64)hv * V_DIM + v0 + g * L::RPA];
    a = reinterpret_cast<const act_t*>(p.a)[t * p.a_stride + hv];
    b = reinterpret_cast<const act_t*>(p.bb)[t * p.b_stride + hv];
  }
};

// Grid: (hv * V / (WARPS * ROWS), y, z), y * z >= sequences.
extern "C" __global__ void __launch_bounds__(WARPS * 32) gdn_prefill(const __grid_constant__ PrefillParams f) {
  typedef Lay<K_DIM, state_t> L;
  constexpr int G = ROWS / L::RPA, TILES = V_DIM / (WARPS * ROWS);
  static_assert(G >= 1 && G * L::RPA == ROWS && TILES * WARPS * ROWS == V_DIM, "tile does not fit");
  const PackedParams& p = f.p;
  const u32 seq = grid_row();
  if (seq >= p.s.b) return;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const u32 hv = blockIdx.x / TILES, h = qk_head(hv, p.h, p.hv, p.s.flags);
  const int v0 = ((blockIdx.x % TILES) * WARPS + warp) * ROWS + lane / L::LPR;
  const bool first = (lane & (L::LPR - 1)) == 0;
  const i64 slot = slot_of(p.s, seq), t0 = f.cu[seq], t1 = f.cu[seq + 1];
  float* out = reinterpret_cast<float*>(p.out) + (i64)hv * V_DIM + v0;
  const i64 out_stride = (i64)p.hv * V_DIM;
  if (t0 >= t1) return;
  if (slot < 0) {
    for (i64 t = t0; t < t1; t++)
#pragma unroll
      for (int g = 0; g < G; g++)
        if (first) out[t * out_stride + g * L::RPA] = 0.f;
    return;
  }
  state_t* st = reinterpret_cast<state_t*>(p.state) + slot * p.state_pitch + ((i64)hv * V_DIM + v0) * K_DIM;
  const bool fresh = f.fresh && f.fresh[seq];
  float s[G][L::E];
#pragma unroll
  for (int g = 0; g < G; g++)
#pragma unroll
    for (int i = 0; i < L::CH; i++) {
      if (fresh) {
#pragma unroll
        for (int n = 0; n < L::VEC; n++) s[g][i * L::VEC + n] = 0.f;
      } else {
        Vec<state_t>::unpack(ld_state(st + g * L::RPA * K_DIM + L::elem(i, lane)), &s[g][i * L::VEC]);
      }
    }
  Token<L> next;
  next.load(p, t0, h, hv, v0, lane);
  const float neg = p.neg_exp_a[hv], dt = p.dt_bias[hv];
  for (i64 t = t0; t < t1; t++) {
    const Token<L> now = next;
    if (t + 1 < t1) next.load(p, t + 1, h, hv, v0, lane);
    Qk<L> x;
#pragma unroll
    for (int i = 0; i < L::E / 4; i++) { now.q[i].get(x.q + 4 * i); now.k[i].get(x.k + 4 * i); }
    x.normalise(p.scale, p.s.flags);
    const float decay = expf(gate_log(to_f(now.a), neg, dt)), beta = gate_beta(to_f(now.b), p.s.flags);
#pragma unroll
    for (int g = 0; g < G; g++) {
      const float o = step_row<L>(s[g], x, now.v[g], decay, beta);
#pragma unroll
      for (int i = 0; i < L::E; i += L::VEC) Vec<state_t>::unpack(Vec<state_t>::pack(s[g] + i), s[g] + i);
      if (first) out[t * out_stride + g * L::RPA] = o;
    }
  }
#pragma unroll
  for (int g = 0; g < G; g++)
#pragma unroll
    for (int i = 0; i < L::CH; i++) st_state(st + g * L::RPA * K_DIM + L::elem(i, lane), Vec<state_t>::pack(&s[g][i * L::VEC]));
}
#endif

// Any K and V: one CTA of one warp per (sequence, value head, state row), the row in shared memory.
// Grid: (hv * V, y, z), y * z >= sequences; 32 threads. Dynamic shared memory: K floats.
extern "C" __global__ void __launch_bounds__(32) gdn_prefill_any(const __grid_constant__ PrefillParams f) {
  const PackedParams& p = f.p;
  const u32 seq = grid_row(), kd = p.kd, vd = p.vd, lane = threadIdx.x;
  if (seq >= p.s.b) return;
  const u32 hv = blockIdx.x / vd, v = blockIdx.x % vd, h = qk_head(hv, p.h, p.hv, p.s.flags);
  const i64 slot = slot_of(p.s, seq), t0 = f.cu[seq], t1 = f.cu[seq + 1];
  float* out = reinterpret_cast<float*>(p.out) + (i64)hv * vd + v;
  const i64 out_stride = (i64)p.hv * vd;
  if (t0 >= t1) return;
  if (slot < 0) {
    for (i64 t = t0 + lane; t < t1; t += 32) out[t * out_stride] = 0.f;
    return;
  }
  float* s = reinterpret_cast<float*>(smem_base());  // each lane touches its own elements alone
  state_t* st = reinterpret_cast<state_t*>(p.state) + slot * p.state_pitch + ((i64)hv * vd + v) * kd;
  const bool fresh = f.fresh && f.fresh[seq];
  for (u32 i = lane; i < kd; i += 32) s[i] = fresh ? 0.f : to_f(st[i]);
  for (i64 t = t0; t < t1; t++) {
    const float *q = reinterpret_cast<const float*>(p.x) + t * p.x_stride + (u64)h * kd, *k = q + (u64)p.h * kd;
    const float x = reinterpret_cast<const float*>(p.x)[t * p.x_stride + 2ll * p.h * kd + (i64)hv * vd + v];
    float qq = 0.f, kk = 0.f, qk = 0.f, a = 0.f, r = 0.f;
    for (u32 i = lane; i < kd; i += 32) {
      qq = fmaf(q[i], q[i], qq); kk = fmaf(k[i], k[i], kk); qk = fmaf(q[i], k[i], qk);
    }
    qq = warp_sum(qq); kk = warp_sum(kk); qk = warp_sum(qk);
    float qs = p.scale, ks = 1.f;
    if (p.s.flags & GDN_L2NORM) { qs = rsqrtf(qq + 1e-6f) * p.scale; ks = rsqrtf(kk + 1e-6f); }
    for (u32 i = lane; i < kd; i += 32) {
      a = fmaf(s[i], k[i] * ks, a); r = fmaf(s[i], q[i] * qs, r);
    }
    a = warp_sum(a); r = warp_sum(r);
    const float2 gt = token_gates(p, t, hv);
    const float u = gt.y * fmaf(-gt.x, a, x);
    for (u32 i = lane; i < kd; i += 32) s[i] = to_f(Num<state_t>::of(fmaf(u, k[i] * ks, gt.x * s[i])));
    if (lane == 0) out[t * out_stride] = fmaf(u, qk * qs * ks, gt.x * r);
  }
  for (u32 i = lane; i < kd; i += 32) st[i] = Num<state_t>::of(s[i]);
}

// Raw input of a channel j tokens before the start of its sequence, j >= 1.
DEV float past(const act_t* ring, i64 c, u32 ch, u32 phase, u32 j) {
  return to_f(ring[((phase % CONV_W + CONV_W - j) % CONV_W) * c + ch]);
}

// Grid: (ceil(c / 256), y, z), y * z >= tokens.
extern "C" __global__ void __launch_bounds__(256) gdn_prefill_conv(const __grid_constant__ PrefillConvParams f) {
  const ConvParams& p = f.c;
  const u32 t = grid_row(), ch = blockIdx.x * 256 + threadIdx.x;
  const i64 c = 2ll * p.h * p.k + (i64)p.hv * p.v;
  if (t >= f.tokens || ch >= c) return;
  const u32 seq = f.token_seq[t], n = t - f.cu[seq];
  const i64 slot = slot_of(p.s, seq);
  float* y = reinterpret_cast<float*>(p.y) + t * p.y_stride + ch;
  if (slot < 0) { *y = 0.f; return; }
  const act_t* x = reinterpret_cast<const act_t*>(p.x) + ch;
  const act_t* ring = reinterpret_cast<const act_t*>(p.r.ring) + slot * p.r.pitch;
  const u32 phase = p.r.phase[slot * p.hv];
  const bool fresh = f.fresh && f.fresh[seq];
  float acc = p.r.bias ? p.r.bias[ch] : 0.f;
#pragma unroll
  for (u32 i = 0; i < CONV_W; i++) {
    const u32 back = CONV_W - 1 - i;
    const float tap = back <= n ? to_f(x[(i64)(t - back) * p.x_stride]) : fresh ? 0.f : past(ring, c, ch, phase, back - n);
    acc = fmaf(p.r.weight[i * c + ch], tap, acc);
  }
  *y = silu(acc);
}

// Moves each ring on by its sequence's length. A fresh sequence starts from a ring of zeros.
// Grid: (hv, y, z), y * z >= sequences; head hv owns the channels that it owns in a decode step.
extern "C" __global__ void __launch_bounds__(128) gdn_prefill_ring(const __grid_constant__ PrefillConvParams f) {
  const ConvParams& p = f.c;
  const u32 seq = grid_row(), hv = blockIdx.x, kd = p.k, vd = p.v;
  if (seq >= p.s.b) return;
  const i64 slot = slot_of(p.s, seq), t0 = f.cu[seq], len = f.cu[seq + 1] - t0;
  if (slot < 0 || len <= 0) return;
  u32* phase = p.r.phase + slot * p.hv + hv;
  const u32 ph = *phase;
  move_ring(p, p.r, kd, vd, slot, hv, ph, t0, len, f.fresh && f.fresh[seq]);
  __syncthreads();
  if (threadIdx.x == 0) *phase = ph + (u32)len;
}
