// The whole layer step in one launch: conv, gates, recurrence, gated RMS norm.
//   gdn_fused         a cluster of CLUSTER CTAs per (row, value head), each V / CLUSTER rows
//   gdn_fused_stream  persistent; bulk copies keep STAGES pieces in flight (sm_90 and later)
//   gdn_fused_any     any K and V, any alignment; one CTA per (row, value head)
// Value heads that share a q/k head each compute its conv; the owner writes its ring entry. The
// entry written is never one that another head uses, and each head has its own phase.
#include "core.cuh"
#ifndef WARPS
#define WARPS 8
#endif
#ifndef ROWS
#define ROWS 4
#endif
#ifndef STAGES
#define STAGES 4
#endif
#ifndef CLUSTER
#define CLUSTER 1
#endif

DEV float2 gates_of(const PackedParams& p, u32 row, u32 hv) {
  float a = to_f(reinterpret_cast<const act_t*>(p.a)[row * p.a_stride + hv]);
  float b = to_f(reinterpret_cast<const act_t*>(p.bb)[row * p.b_stride + hv]);
  return make_float2(expf(gate_log(a, p.neg_exp_a[hv], p.dt_bias[hv])), gate_beta(b, p.s.flags));
}

#if K_DIM > 0 && V_DIM > 0
// The channel of local index j over q, k and v of one head.
DEV u32 channel(const PackedParams& p, u32 h, u32 hv, u32 j) {
  return j < K_DIM ? h * K_DIM + j : j < 2 * K_DIM ? (p.h + h) * K_DIM + (j - K_DIM) : 2 * p.h * K_DIM + hv * V_DIM + (j - 2 * K_DIM);
}

#if WARPS * ROWS * CLUSTER == V_DIM && (WANT & 1)
// Grid: (hv * CLUSTER, y, z), cluster (CLUSTER, 1, 1), y * z >= b. Dynamic shared memory: sizeof(DirectShared).
constexpr int TILE = V_DIM / CLUSTER;
struct DirectShared {
  float q[K_DIM], k[K_DIM], v[TILE], wz[TILE], o[V_DIM], decay, beta;
  u64 all;  // all V outputs have arrived
};

extern "C" __global__ void __launch_bounds__(WARPS * 32) gdn_fused(const __grid_constant__ FusedParams f) {
  typedef Lay<K_DIM, state_t> L;
  constexpr int G = ROWS / L::RPA, T = WARPS * 32;
  static_assert(G >= 1 && G * L::RPA == ROWS, "tile does not fit the layout");
  const PackedParams& p = f.p;
  const u32 row = grid_row();
  if (row >= p.s.b) return;  // the whole cluster
  DirectShared& sh = *reinterpret_cast<DirectShared*>(smem_base());
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const u32 rank = blockIdx.x % CLUSTER, hv = blockIdx.x / CLUSTER;
  const i64 slot = slot_of(p.s, row);
#if CLUSTER > 1
  if (threadIdx.x == 0) {
    mbar_init(&sh.all, 1);
    mbar_init_fence();
    mbar_arrive_tx(&sh.all, V_DIM * 4);
  }
  cluster_arrive();
#endif
  // Units of four channels: q, k, this CTA's part of v, and its part of z. What depends on the
  // weights alone is loaded first, then what needs the slot, then the previous kernel's output.
  const i64 c = 2ll * p.h * K_DIM + (i64)p.hv * V_DIM;
  const u32 h = qk_head(hv, p.h, p.hv, p.s.flags);
  constexpr u32 QK = 2 * K_DIM / 4, CONV_UNITS = QK + TILE / 4, UNITS = CONV_UNITS + TILE / 4, PER = (UNITS + T - 1) / T;
  Conv4 cv[PER];
  Quad<f32> nw[PER];
  u32 ch[PER];
#pragma unroll
  for (u32 n = 0; n < PER; n++) {
    const u32 u = n * T + threadIdx.x;
    ch[n] = u < CONV_UNITS ? channel(p, h, hv, u < QK ? u * 4 : u * 4 + rank * TILE) : (u - CONV_UNITS) * 4 + rank * TILE;
    if (u < CONV_UNITS) cv[n].load_const(f.r, c, ch[n]);
    else if (u < UNITS) nw[n] = Quad<f32>::load(f.norm_weight + ch[n]);
  }
  act_t* out = reinterpret_cast<act_t*>(p.out) + ((i64)row * p.hv + hv) * V_DIM + rank * TILE;
  if (slot < 0) {
#if CLUSTER > 1
    cluster_wait();
#endif
    for (u32 i = threadIdx.x; i < TILE; i += T) out[i] = Num<act_t>::of(0.f);
    return;
  }
  act_t* ring = reinterpret_cast<act_t*>(f.r.ring) + slot * f.r.pitch;
  u32* phase = f.r.phase + slot * p.hv + hv;
  const u32 ph = *phase;
#pragma unroll
  for (u32 n = 0; n < PER; n++)
    if (n * T + threadIdx.x < CONV_UNITS) cv[n].load_ring(ring, c, ch[n]);
  const int v0 = warp * ROWS + lane / L::LPR;
  state_t* st = reinterpret_cast<state_t*>(p.state) + slot * p.state_pitch + ((i64)hv * V_DIM + rank * TILE + v0) * K_DIM;
  uint4 raw[G][L::CH];
#pragma unroll
  for (int g = 0; g < G; g++)
#pragma unroll
    for (int i = 0; i < L::CH; i++) raw[g][i] = ld_state(st + g * L::RPA * K_DIM + L::elem(i, lane));
  pdl_wait();
  pdl_trigger();
  const act_t* x = reinterpret_cast<const act_t*>(p.x) + row * p.x_stride;
  const act_t* z = reinterpret_cast<const act_t*>(f.z) + row * f.z_stride + (u64)hv * V_DIM;
#pragma unroll
  for (u32 n = 0; n < PER; n++) {
    const u32 u = n * T + threadIdx.x;
    if (u < UNITS) cv[n].load_new(u < CONV_UNITS ? x : z, ch[n]);
  }
  if (warp == WARPS - 1) {  // has the least to do below
    const float2 gt = gates_of(p, row, hv);
    if (lane == 0) { sh.decay = gt.x; sh.beta = gt.y; }
  }
#pragma unroll
  for (u32 n = 0; n < PER; n++) {
    const u32 u = n * T + threadIdx.x;
    float y[4], w[4];
    if (u < CONV_UNITS) {
      cv[n].finish(ph % CONV_W, y);
      Quad<f32>::of(y).store(sh.q + u * 4);
      if (u >= QK || (rank == 0 && qk_owner(hv, p.h, p.hv, p.s.flags))) cv[n].x.store(ring + (ph % CONV_W) * c + ch[n]);
    } else if (u < UNITS) {
      cv[n].x.get(y);
      nw[n].get(w);
#pragma unroll
      for (int i = 0; i < 4; i++) y[i] = w[i] * silu(y[i]);
      Quad<f32>::of(y).store(sh.q + u * 4);
    }
  }
  __syncthreads();
  Qk<L> qk;
  qk.load_f32(sh.q, sh.k, lane);
  qk.normalise(p.scale, p.s.flags);
  const float decay = sh.decay, beta = sh.beta;
#if CLUSTER > 1
  cluster_wait();
#endif
#pragma unroll
  for (int g = 0; g < G; g++) {
    const int r = v0 + g * L::RPA;
    const float o = step_raw<L, state_t>(raw[g], qk, sh.v[r], decay, beta);
    const u32 to = lane & (L::LPR - 1);
#if CLUSTER > 1
    if (to < CLUSTER) peer_store(&sh.o[rank * TILE + r], o, &sh.all, to);  // a lane of the row's group to each CTA
#else
    if (to == 0) sh.o[r] = o;
#endif
#pragma unroll
    for (int i = 0; i < L::CH; i++) st_state(st + g * L::RPA * K_DIM + L::elem(i, lane), raw[g][i]);
  }
#if CLUSTER > 1
  mbar_wait(&sh.all, 0);
#else
  __syncthreads();
#endif
  if (threadIdx.x == 0 && rank == 0) *phase = ph + 1;  // all of this head's CTAs have used it
  if (warp * 32 >= TILE) return;
  const float rstd = rsqrtf(sum_sq(sh.o, V_DIM, lane) / (float)V_DIM + f.eps);
  for (u32 i = threadIdx.x; i < TILE; i += T) out[i] = Num<act_t>::of(gate_norm(sh.o[rank * TILE + i], rstd, sh.wz[i]));
}
#endif

#if GDN_SM90 && CLUSTER == 1 && (WANT & 2)
constexpr int PIECE_ROWS = WARPS * ROWS, PIECES = V_DIM / PIECE_ROWS;
constexpr int PIECE_BYTES = PIECE_ROWS * K_DIM * Num<state_t>::BYTES;
static_assert(PIECES * PIECE_ROWS == V_DIM, "piece does not fit");
constexpr u32 STREAM_UNITS = (2 * K_DIM + 2 * V_DIM) / 4, PREP_WARPS = (STREAM_UNITS + 31) / 32;
struct alignas(16) FusedPrep {
  float q[K_DIM], k[K_DIM], v[V_DIM], wz[V_DIM];
  float decay, beta;
  i64 slot;
  u32 phase, pad;
};
struct StreamShared {
  alignas(128) char stage[STAGES][PIECE_BYTES];
  FusedPrep prep[2];
  float o[2][V_DIM];
  u64 full[STAGES], empty[STAGES], ready[2], done[2], sum;
};

// Persistent: CTA i of n takes (row, value head) pairs i, i + n, ... so that all sweep memory together. WARPS consumer warps,
// PREP_WARPS that run conv, gates and silu(z) an item ahead, one that issues the bulk copies.
// Grid: any (x, 1, 1). Dynamic shared memory: sizeof(StreamShared) where PIECE_BYTES divides a head.
extern "C" __global__ void __launch_bounds__((WARPS + PREP_WARPS + 1) * 32) gdn_fused_stream(const __grid_constant__ FusedParams f) {
  typedef Lay<K_DIM, state_t> L;
  constexpr int G = ROWS / L::RPA;
  const PackedParams& p = f.p;
  StreamShared& sh = *reinterpret_cast<StreamShared*>(smem_base());
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const u32 total = p.s.b * p.hv;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) { mbar_init(&sh.full[i], 1); mbar_init(&sh.empty[i], WARPS * WARP_ARRIVALS); }
    for (int i = 0; i < 2; i++) { mbar_init(&sh.ready[i], PREP_WARPS * WARP_ARRIVALS); mbar_init(&sh.done[i], WARPS * WARP_ARRIVALS); }
    mbar_init(&sh.sum, WARPS * WARP_ARRIVALS);
    mbar_init_fence();
  }
  __syncthreads();

  if (warp == WARPS + PREP_WARPS) {  // copies
    if (lane != 0) return;
    u32 stage = 0, parity = 0;
    for (u32 item = blockIdx.x; item < total; item += gridDim.x) {
      const u32 row = item / p.hv, hv = item % p.hv;
      const i64 slot = slot_of(p.s, row);
      if (slot < 0) continue;
      const char* st = reinterpret_cast<const char*>(reinterpret_cast<const state_t*>(p.state) + slot * p.state_pitch + (i64)hv * V_DIM * K_DIM);
      for (int j = 0; j < PIECES; j++) {
        mbar_wait(&sh.empty[stage], parity ^ 1);
        mbar_arrive_tx(&sh.full[stage], PIECE_BYTES);
        bulk_load(sh.stage[stage], st + (i64)j * PIECE_BYTES, PIECE_BYTES, &sh.full[stage]);
        if (++stage == STAGES) { stage = 0; parity ^= 1; }
      }
    }
    return;
  }
  const i64 c = 2ll * p.h * K_DIM + (i64)p.hv * V_DIM;
  if (warp >= WARPS) {  // preparation
    pdl_wait();
    pdl_trigger();
    const u32 u = threadIdx.x - WARPS * 32;
    u32 n = 0;
    i64 next = blockIdx.x < total ? slot_of(p.s, blockIdx.x / p.hv) : 0;
    for (u32 item = blockIdx.x; item < total; item += gridDim.x, n++) {
      const u32 row = item / p.hv, hv = item % p.hv, h = qk_head(hv, p.h, p.hv, p.s.flags);
      FusedPrep& pr = sh.prep[n & 1];
      const i64 slot = next;
      if (item + gridDim.x < total) next = slot_of(p.s, (item + gridDim.x) / p.hv);
      float y[4], w[4];
      float2 gt = make_float2(0.f, 0.f);
      u32 ph = 0;
      if (slot >= 0) {
        if (u < (2 * K_DIM + V_DIM) / 4) {
          const u32 ch = channel(p, h, hv, u * 4);
          act_t* ring = reinterpret_cast<act_t*>(f.r.ring) + slot * f.r.pitch;
          Conv4 cv;
          ph = f.r.phase[slot * p.hv + hv];
          cv.load_ring(ring, c, ch);
          cv.load_new(reinterpret_cast<const act_t*>(p.x) + row * p.x_stride, ch);
          cv.load_const(f.r, c, ch);
          cv.finish(ph % CONV_W, y);
          if (u >= 2 * K_DIM / 4 || qk_owner(hv, p.h, p.hv, p.s.flags)) cv.x.store(ring + (ph % CONV_W) * c + ch);
        } else if (u < STREAM_UNITS) {
          const u32 j = u * 4 - 2 * K_DIM - V_DIM;
          Quad<act_t>::load(reinterpret_cast<const act_t*>(f.z) + row * f.z_stride + (u64)hv * V_DIM + j).get(y);
          Quad<f32>::load(f.norm_weight + j).get(w);
#pragma unroll
          for (int i = 0; i < 4; i++) y[i] = w[i] * silu(y[i]);
        }
        if (u >= (PREP_WARPS - 1) * 32) gt = gates_of(p, row, hv);
      }
      mbar_wait(&sh.done[n & 1], (n >> 1 & 1) ^ 1);
      if (slot >= 0 && u < STREAM_UNITS) Quad<f32>::of(y).store(pr.q + u * 4);
      if (u == 0) { pr.slot = slot; pr.phase = ph; }
      if (u == (PREP_WARPS - 1) * 32) { pr.decay = gt.x; pr.beta = gt.y; }
      warp_arrive(&sh.ready[n & 1], lane);
    }
    return;
  }
  u32 stage = 0, parity = 0, sums = 0, n = 0;
  const int v0 = warp * ROWS + lane / L::LPR;
  for (u32 item = blockIdx.x; item < total; item += gridDim.x, n++) {
    const u32 hv = item % p.hv;
    const FusedPrep& pr = sh.prep[n & 1];
    float* o = sh.o[sums & 1];
    act_t* out = reinterpret_cast<act_t*>(p.out) + (i64)item * V_DIM;
    mbar_wait(&sh.ready[n & 1], n >> 1 & 1);
    const i64 slot = pr.slot;
    if (slot >= 0) {
      state_t* st = reinterpret_cast<state_t*>(p.state) + slot * p.state_pitch + ((i64)hv * V_DIM + v0) * K_DIM;
      // every preparing warp has read the phase before it said ready
      if (threadIdx.x == 0) f.r.phase[slot * p.hv + hv] = pr.phase + 1;
      Qk<L> x;
      x.load_f32(pr.q, pr.k, lane);
      const float decay = pr.decay, beta = pr.beta;
      x.normalise(p.scale, p.s.flags);
      for (int j = 0; j < PIECES; j++) {
        uint4 raw[G][L::CH];
        mbar_wait(&sh.full[stage], parity);
        const state_t* tile = reinterpret_cast<const state_t*>(sh.stage[stage]) + v0 * K_DIM;
#pragma unroll
        for (int g = 0; g < G; g++)
#pragma unroll
          for (int i = 0; i < L::CH; i++) raw[g][i] = *reinterpret_cast<const uint4*>(tile + g * L::RPA * K_DIM + L::elem(i, lane));
        warp_arrive(&sh.empty[stage], lane);
        if (++stage == STAGES) { stage = 0; parity ^= 1; }
#pragma unroll
        for (int g = 0; g < G; g++) {
          const int r = j * PIECE_ROWS + g * L::RPA;
          const float y = step_raw<L, state_t>(raw[g], x, pr.v[v0 + r], decay, beta);
#pragma unroll
          for (int i = 0; i < L::CH; i++) st_state(st + (i64)r * K_DIM + L::elem(i, lane), raw[g][i]);
          if ((lane & (L::LPR - 1)) == 0) o[v0 + r] = y;
        }
      }
      warp_arrive(&sh.sum, lane);
      mbar_wait(&sh.sum, sums & 1);
      sums++;
      const float rstd = rsqrtf(sum_sq(o, V_DIM, lane) / (float)V_DIM + f.eps);
      for (int i = threadIdx.x; i < V_DIM; i += WARPS * 32) out[i] = Num<act_t>::of(gate_norm(o[i], rstd, pr.wz[i]));
    } else {
      for (int i = threadIdx.x; i < V_DIM; i += WARPS * 32) out[i] = Num<act_t>::of(0.f);
    }
    warp_arrive(&sh.done[n & 1], lane);
  }
}
#endif
#endif

#if WANT & 4
// Grid: (hv, y, z), y * z >= b. Dynamic shared memory: (2 * K + V) floats.
extern "C" __global__ void __launch_bounds__(256) gdn_fused_any(const __grid_constant__ FusedParams f) {
  const PackedParams& p = f.p;
  const u32 row = grid_row(), hv = blockIdx.x, kd = p.kd, vd = p.vd;
  if (row >= p.s.b) return;
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  float *q = reinterpret_cast<float*>(smem_base()), *k = q + kd, *o = k + kd;
  const i64 slot = slot_of(p.s, row);
  act_t* out = reinterpret_cast<act_t*>(p.out) + ((i64)row * p.hv + hv) * vd;
  if (slot < 0) {
    for (u32 v = threadIdx.x; v < vd; v += blockDim.x) out[v] = Num<act_t>::of(0.f);
    return;
  }
  pdl_wait();
  pdl_trigger();
  const i64 c = 2ll * p.h * kd + (i64)p.hv * vd;
  const u32 h = qk_head(hv, p.h, p.hv, p.s.flags);
  const bool owner = qk_owner(hv, p.h, p.hv, p.s.flags);
  const act_t* x = reinterpret_cast<const act_t*>(p.x) + row * p.x_stride;
  act_t* ring = reinterpret_cast<act_t*>(f.r.ring) + slot * f.r.pitch;
  u32* phase = f.r.phase + slot * p.hv + hv;
  const u32 ph = *phase;
  for (u32 j = threadIdx.x; j < 2 * kd + vd; j += blockDim.x) {
    const u32 ch = j < kd ? h * kd + j : j < 2 * kd ? (p.h + h) * kd + (j - kd) : 2 * p.h * kd + hv * vd + (j - 2 * kd);
    q[j] = conv_any(f.r, ring, c, ch, ph, to_f(x[ch]));
    if (j >= 2 * kd || owner) ring[(ph % CONV_W) * c + ch] = x[ch];
  }
  __syncthreads();
  if (threadIdx.x == 0) *phase = ph + 1;
  float qq = 0.f, kk = 0.f, qk = 0.f;
  for (u32 i = lane; i < kd; i += 32) {
    qq = fmaf(q[i], q[i], qq);
    kk = fmaf(k[i], k[i], kk);
    qk = fmaf(q[i], k[i], qk);
  }
  qq = warp_sum(qq); kk = warp_sum(kk); qk = warp_sum(qk);
  float qs = p.scale, ks = 1.f;
  if (p.s.flags & GDN_L2NORM) { qs = rsqrtf(qq + 1e-6f) * p.scale; ks = rsqrtf(kk + 1e-6f); }
  const float2 gt = gates_of(p, row, hv);
  state_t* st = reinterpret_cast<state_t*>(p.state) + slot * p.state_pitch + (i64)hv * vd * kd;
  for (u32 v = warp; v < vd; v += warps) {
    state_t* s = st + (i64)v * kd;
    float a = 0.f, r = 0.f;
    for (u32 i = lane; i < kd; i += 32) {
      const float y = to_f(s[i]);
      a = fmaf(y, k[i] * ks, a);
      r = fmaf(y, q[i] * qs, r);
    }
    a = warp_sum(a); r = warp_sum(r);
    const float u = gt.y * fmaf(-gt.x, a, o[v]);
    for (u32 i = lane; i < kd; i += 32) s[i] = Num<state_t>::of(fmaf(u, k[i] * ks, gt.x * to_f(s[i])));
    __syncwarp();
    if (lane == 0) o[v] = fmaf(u, qk * qs * ks, gt.x * r);  // o takes the place of v
  }
  __syncthreads();
  const float rstd = rsqrtf(sum_sq(o, (int)vd, lane) / (float)vd + f.eps);
  const act_t* z = reinterpret_cast<const act_t*>(f.z) + row * f.z_stride + (u64)hv * vd;
  for (u32 v = threadIdx.x; v < vd; v += blockDim.x) out[v] = Num<act_t>::of(gate_norm(o[v], rstd, f.norm_weight[v] * silu(to_f(z[v]))));
}
#endif
