// What every path shares: slots, gates, conv, and the update of state rows held in registers.
// Mul-adds that feed a result are written as fmaf, so that every kernel rounds alike.
#pragma once
#include "common.cuh"

// Row of this CTA; rows fill (y, z), so that b * hv has no limit below 2^31 * 65535.
DEV u32 grid_row() { return blockIdx.y + blockIdx.z * gridDim.y; }

// Slot of a row; -1 for padding and for a slot out of range, which is also reported.
DEV i64 slot_of(const GdnSlots& s, u32 row) {
  i64 n = (s.flags & GDN_SLOTS_I64) ? reinterpret_cast<const i64*>(s.slots)[row] : (i64)reinterpret_cast<const i32*>(s.slots)[row];
  if (n >= s.n_slots) {
    if (s.error) atomicCAS(s.error, 0ull, ((u64)row + 1) << 32 | (n > 0xffffffffll ? 0xffffffffull : (u64)n));
    n = -1;
  }
  return n;
}

// Integer division would sit between the slot and the loads. (i + 1/2) * m / n stays 1/(2n) away
// from any integer, far more than f32 rounds it by while heads number below 2^11.
DEV u32 qk_head(u32 hv_i, u32 h, u32 hv, u32 flags) {
  const bool tiled = flags & GDN_TILED;
  const u32 d = (u32)(((float)hv_i + 0.5f) * (tiled ? 1.f : (float)h) * rcp((float)(tiled ? h : hv)));
  return tiled ? hv_i - d * h : d;
}
// Of the value heads that share a q/k head, the one that writes its ring entry.
DEV bool qk_owner(u32 hv_i, u32 h, u32 hv, u32 flags) {
  return (flags & GDN_TILED) ? hv_i < h : qk_head(hv_i, h, hv, flags) * hv == hv_i * h;
}

// Moves a slot's ring, whose phase is ph, on by the inputs [t0, t0 + len) of a sequence: those channels
// that value head hv owns in a decode step. A fresh sequence starts from a ring of zeros. All threads of
// the CTA; the phase is theirs to move behind their next barrier.
template <class P> DEV void move_ring(const P& p, const GdnRing& r, u32 kd, u32 vd, i64 slot, u32 hv, u32 ph, i64 t0, i64 len, bool fresh) {
  const u32 h = qk_head(hv, p.h, p.hv, p.s.flags), n = qk_owner(hv, p.h, p.hv, p.s.flags) ? vd + 2 * kd : vd;
  const i64 c = 2ll * p.h * kd + (i64)p.hv * vd, keep = len < CONV_W ? len : CONV_W;
  const act_t* x = reinterpret_cast<const act_t*>(p.x) + t0 * p.x_stride;
  act_t* ring = reinterpret_cast<act_t*>(r.ring) + slot * r.pitch;
  for (u32 j = threadIdx.x; j < n; j += blockDim.x) {
    const u32 ch = j < vd ? 2 * p.h * kd + hv * vd + j : j < vd + kd ? h * kd + (j - vd) : (p.h + h) * kd + (j - vd - kd);
    for (u32 i = 0; i < CONV_W && fresh; i++) ring[i * c + ch] = Num<act_t>::of(0.f);
    for (i64 i = len - keep; i < len; i++) ring[(ph + (u32)i) % CONV_W * c + ch] = x[i * p.x_stride + ch];
  }
}

DEV float softplus(float x) { return x > 20.f ? x : log1pf(expf(x)); }
DEV float sigmoid(float x) { return rcp(1.f + expf(-x)); }
DEV float silu(float x) { return x * sigmoid(x); }
DEV float gate_log(float a, float neg_exp_a, float dt_bias) { return neg_exp_a * softplus(a + dt_bias); }
DEV float gate_beta(float b, u32 flags) {
  float x = sigmoid(b);
  return (flags & GDN_ROUND_BETA) ? to_f(Num<act_t>::of(x)) : x;
}

DEV float warp_sum(float x) {
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) x += __shfl_xor_sync(FULL, x, o);
  return x;
}

// How a warp lies over state rows: LPR lanes hold one row, each CH chunks of 16 bytes; one access
// of the warp covers RPA rows, each in whole 128-byte lines.
template <int K, class S> struct Lay {
  static constexpr int VEC = Vec<S>::N;
  static constexpr int LPR = K >= 256 ? 16 : 8;
  static constexpr int E = K / LPR;
  static constexpr int CH = E / VEC;
  static constexpr int RPA = 32 / LPR;
  static_assert(CH >= 1 && CH * VEC * LPR == K, "K does not fit the layout");
  DEV int elem(int c, int lane) { return (c * LPR + (lane & (LPR - 1))) * VEC; }
};

template <class L> DEV float row_sum(float x) {
#pragma unroll
  for (int o = 1; o < L::LPR; o <<= 1) x += __shfl_xor_sync(FULL, x, o);
  return x;
}

template <class L> struct Qk {
  float q[L::E], k[L::E], qs, ks, kq;  // raw values, their factors, and the scaled k.q
  // n activations or floats from p, 8 bytes at least at a time
  __device__ __forceinline__ void load(const act_t* qp, const act_t* kp, int lane) {
#pragma unroll
    for (int c = 0; c < L::CH; c++) {
#pragma unroll
      for (int i = 0; i < L::VEC; i += 4) {
        Quad<act_t>::load(qp + L::elem(c, lane) + i).get(q + c * L::VEC + i);
        Quad<act_t>::load(kp + L::elem(c, lane) + i).get(k + c * L::VEC + i);
      }
    }
  }
  __device__ __forceinline__ void load_f32(const float* qp, const float* kp, int lane) {
#pragma unroll
    for (int c = 0; c < L::CH; c++) {
#pragma unroll
      for (int i = 0; i < L::VEC; i += 4) {
        Quad<f32>::load(qp + L::elem(c, lane) + i).get(q + c * L::VEC + i);
        Quad<f32>::load(kp + L::elem(c, lane) + i).get(k + c * L::VEC + i);
      }
    }
  }
  // Off the path of S.k and S.q, which take the factors after their own sums.
  __device__ __forceinline__ void normalise(float scale, u32 flags) {
    float qq = 0.f, kk = 0.f, qk = 0.f;
#pragma unroll
    for (int i = 0; i < L::E; i++) {
      qq = fmaf(q[i], q[i], qq);
      kk = fmaf(k[i], k[i], kk);
      qk = fmaf(q[i], k[i], qk);
    }
    qq = row_sum<L>(qq); kk = row_sum<L>(kk); qk = row_sum<L>(qk);
    qs = scale; ks = 1.f;
    if (flags & GDN_L2NORM) { qs = rsqrtf(qq + 1e-6f) * scale; ks = rsqrtf(kk + 1e-6f); }
    kq = qk * qs * ks;
  }
};

// One row a lane group: s is the old row and becomes the new one; returns o.
template <class L> DEV float step_row(float* s, const Qk<L>& x, float v, float decay, float beta) {
  float p = 0.f, r = 0.f;
#pragma unroll
  for (int i = 0; i < L::E; i++) { p = fmaf(s[i], x.k[i], p); r = fmaf(s[i], x.q[i], r); }
  p = row_sum<L>(p) * x.ks; r = row_sum<L>(r) * x.qs;
  const float u = beta * fmaf(-decay, p, v), uk = u * x.ks;
#pragma unroll
  for (int i = 0; i < L::E; i++) s[i] = fmaf(uk, x.k[i], decay * s[i]);
  return fmaf(u, x.kq, decay * r);
}
// The same on raw state as it lies in memory.
template <class L, class S> DEV float step_raw(uint4* raw, const Qk<L>& x, float v, float decay, float beta) {
  float s[L::E];
#pragma unroll
  for (int c = 0; c < L::CH; c++) Vec<S>::unpack(raw[c], s + c * L::VEC);
  float o = step_row<L>(s, x, v, decay, beta);
#pragma unroll
  for (int c = 0; c < L::CH; c++) raw[c] = Vec<S>::pack(s + c * L::VEC);
  return o;
}

// Four channels of the conv. All W ring entries are read before the phase is known, so that no
// load waits for another; the entry that this token replaces is read and not used.
struct Conv4 {
  Quad<act_t> e[CONV_W], x;
  Quad<f32> w[CONV_W], b;
  __device__ __forceinline__ void load_const(const GdnRing& r, i64 c, u32 ch) {
#pragma unroll
    for (int i = 0; i < CONV_W; i++) w[i] = Quad<f32>::load(r.weight + i * c + ch);
    const float zero[4] = {0.f, 0.f, 0.f, 0.f};
    b = r.bias ? Quad<f32>::load(r.bias + ch) : Quad<f32>::of(zero);
  }
  __device__ __forceinline__ void load_new(const act_t* row, u32 ch) { x = Quad<act_t>::load(row + ch); }
  __device__ __forceinline__ void load_ring(const act_t* ring, i64 c, u32 ch) {
#pragma unroll
    for (int i = 0; i < CONV_W; i++) e[i] = Quad<act_t>::load(ring + i * c + ch);
  }
  // at = phase % W
  __device__ __forceinline__ void finish(u32 at, float* y) const {
    float acc[4], t[4], f[4];
    b.get(acc);
#pragma unroll
    for (int i = 0; i < CONV_W; i++) {
      Quad<act_t> tap = x;
      if (i < CONV_W - 1) {
        u32 j = at + 1 + i;
        j = j >= CONV_W ? j - CONV_W : j;
        tap = e[0];
#pragma unroll
        for (int n = 1; n < CONV_W; n++) tap.pick(j == (u32)n, e[n]);
      }
      tap.get(t);
      w[i].get(f);
#pragma unroll
      for (int n = 0; n < 4; n++) acc[n] = fmaf(f[n], t[n], acc[n]);
    }
#pragma unroll
    for (int n = 0; n < 4; n++) y[n] = silu(acc[n]);
  }
};

// Sum of squares of n floats in shared memory; the same tree whoever asks.
DEV float sum_sq(const float* o, int n, int lane) {
  float s = 0.f;
  for (int i = lane; i < n; i += 32) s = fmaf(o[i], o[i], s);
  return warp_sum(s);
}
DEV float gate_norm(float o, float rstd, float wz) { return o * rstd * wz; }

// One channel of the conv; xn is this token's raw input.
DEV float conv_any(const GdnRing& r, const act_t* ring, i64 c, u32 ch, u32 phase, float xn) {
  float acc = r.bias ? r.bias[ch] : 0.f;
#pragma unroll
  for (int i = 0; i < CONV_W - 1; i++) acc = fmaf(r.weight[i * c + ch], to_f(ring[((phase % CONV_W + 1 + i) % CONV_W) * c + ch]), acc);
  return silu(fmaf(r.weight[(CONV_W - 1) * c + ch], xn, acc));
}
