// The recurrence of one token, shared by the packed and the split path. "Source" says where a
// row's q, k, v, decay and beta are; P has s, state, state_pitch, out, h, hv and scale.
#pragma once
#ifndef WARPS
#define WARPS 4   // consumer warps of a CTA
#endif
#ifndef ROWS
#define ROWS 8    // state rows of a warp (direct) or of a warp in one piece (stream)
#endif
#ifndef STAGES
#define STAGES 4  // pieces in flight (stream)
#endif

#ifndef SPLIT
#define SPLIT 1   // items of a (row, value head) (stream)
#endif
#ifndef BULK_STORE
#define BULK_STORE 0  // new state leaves through shared memory (stream)
#endif

#if K_DIM > 0 && V_DIM > 0
// Grid: (hv * V / (WARPS * ROWS), y, z), y * z >= b. The state loads go out before anything that
// depends on the previous kernel, and their address needs the slot alone.
template <class P, class Src> DEV void recur_direct(const P& p, const Src& src) {
  typedef Lay<K_DIM, state_t> L;
  constexpr int G = ROWS / L::RPA, TILES = V_DIM / (WARPS * ROWS);
  static_assert(G >= 1 && G * L::RPA == ROWS && TILES * WARPS * ROWS == V_DIM, "tile does not fit");
  const u32 row = grid_row();
  if (row >= p.s.b) return;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const u32 hv = blockIdx.x / TILES;
  const int v0 = ((blockIdx.x % TILES) * WARPS + warp) * ROWS + lane / L::LPR;
  const i64 slot = slot_of(p.s, row);
  state_t* st = reinterpret_cast<state_t*>(p.state) + (slot < 0 ? 0 : slot) * p.state_pitch + ((i64)hv * V_DIM + v0) * K_DIM;
  act_t* out = reinterpret_cast<act_t*>(p.out) + ((i64)row * p.hv + hv) * V_DIM + v0;
  if (slot < 0) {
    if ((lane & (L::LPR - 1)) == 0)
#pragma unroll
      for (int g = 0; g < G; g++) out[g * L::RPA] = Num<act_t>::of(0.f);
    return;
  }
  uint4 raw[G][L::CH];
#pragma unroll
  for (int g = 0; g < G; g++)
#pragma unroll
    for (int c = 0; c < L::CH; c++) raw[g][c] = ld_state(st + g * L::RPA * K_DIM + L::elem(c, lane));
  pdl_wait();
  pdl_trigger();
  const u32 h = qk_head(hv, p.h, p.hv, p.s.flags);
  Qk<L> x;
  x.load(src.q(row, h, K_DIM), src.k(row, h, K_DIM), lane);
  const auto gl = src.gate_load(row, hv);
  const act_t* vp = src.v(row, hv, K_DIM, V_DIM) + v0;
  float v[G];
#pragma unroll
  for (int g = 0; g < G; g++) v[g] = to_f(vp[g * L::RPA]);
  const float2 gt = src.gates(gl);
  x.normalise(p.scale, p.s.flags);
#pragma unroll
  for (int g = 0; g < G; g++) {
    float o = step_raw<L, state_t>(raw[g], x, v[g], gt.x, gt.y);
#pragma unroll
    for (int c = 0; c < L::CH; c++) st_state(st + g * L::RPA * K_DIM + L::elem(c, lane), raw[g][c]);
    if ((lane & (L::LPR - 1)) == 0) out[g * L::RPA] = Num<act_t>::of(o);
  }
}

#if GDN_SM90
// One prepared (row, value head) in shared memory.
struct alignas(16) Prep {
  float q[K_DIM], k[K_DIM], v[V_DIM];
  float decay, beta;
  i64 slot;
};
constexpr int PIECE_ROWS = WARPS * ROWS, PIECES = V_DIM / PIECE_ROWS / SPLIT;
constexpr int PIECE_BYTES = PIECE_ROWS * K_DIM * Num<state_t>::BYTES;
static_assert(PIECES * PIECE_ROWS * SPLIT == V_DIM, "piece does not fit");
struct StreamShared {
  alignas(128) char stage[STAGES][PIECE_BYTES];
  Prep prep[2];
  u64 full[STAGES], empty[STAGES], ready[2], done[2];
};

// Persistent: CTA i of n takes items i, i + n, ... so that all of them sweep memory together; an
// item is 1 / SPLIT of a (row, value head). WARPS consumer warps, then one that prepares q, k, v
// and the gates, then one that issues the bulk copies.
// Grid: any (x, 1, 1). Dynamic shared memory: sizeof(StreamShared).
template <class P, class Src> DEV void recur_stream(const P& p, const Src& src) {
  typedef Lay<K_DIM, state_t> L;
  constexpr int G = ROWS / L::RPA;
  static_assert(G >= 1 && G * L::RPA == ROWS, "piece does not fit the layout");
  StreamShared& sh = *reinterpret_cast<StreamShared*>(smem_base());
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const u32 total = p.s.b * p.hv * SPLIT;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) { mbar_init(&sh.full[i], 1); mbar_init(&sh.empty[i], WARPS * (BULK_STORE ? 1 : WARP_ARRIVALS)); }
    for (int i = 0; i < 2; i++) { mbar_init(&sh.ready[i], WARP_ARRIVALS); mbar_init(&sh.done[i], WARPS * WARP_ARRIVALS); }
    mbar_init_fence();
  }
  __syncthreads();

  if (warp == WARPS + 1) {  // copies
    if (lane != 0) return;
    u32 stage = 0, parity = 0;
    for (u32 item = blockIdx.x; item < total; item += gridDim.x) {
      const u32 head = item / SPLIT, row = head / p.hv, hv = head % p.hv;
      const i64 slot = slot_of(p.s, row);
      if (slot < 0) continue;
      const state_t* st = reinterpret_cast<const state_t*>(p.state) + slot * p.state_pitch + ((i64)hv * V_DIM + item % SPLIT * (PIECES * PIECE_ROWS)) * K_DIM;
      for (int j = 0; j < PIECES; j++) {
        mbar_wait(&sh.empty[stage], parity ^ 1);
        mbar_arrive_tx(&sh.full[stage], PIECE_BYTES);
        bulk_load(sh.stage[stage], st + j * PIECE_ROWS * K_DIM, PIECE_BYTES, &sh.full[stage]);
        if (++stage == STAGES) { stage = 0; parity ^= 1; }
      }
    }
    return;
  }
  if (warp == WARPS) {  // preparation
    pdl_wait();
    pdl_trigger();
    u32 n = 0;
    i64 next = blockIdx.x < total ? slot_of(p.s, blockIdx.x / SPLIT / p.hv) : 0;
    for (u32 item = blockIdx.x; item < total; item += gridDim.x, n++) {
      const u32 head = item / SPLIT, row = head / p.hv, hv = head % p.hv, h = qk_head(hv, p.h, p.hv, p.s.flags);
      Prep& pr = sh.prep[n & 1];
      const i64 slot = next;
      const act_t *q = src.q(row, h, K_DIM), *k = src.k(row, h, K_DIM), *v = src.v(row, hv, K_DIM, V_DIM);
      constexpr int U = 2 * K_DIM / 4 + V_DIM / 4, PER = (U + 31) / 32;
      Quad<act_t> t[PER];
#pragma unroll
      for (int i = 0; i < PER; i++) {
        const int c = (i * 32 + lane) * 4;
        if (c < 4 * U) t[i] = Quad<act_t>::load(c < K_DIM ? q + c : c < 2 * K_DIM ? k + (c - K_DIM) : v + (c - 2 * K_DIM));
      }
      const auto gl = src.gate_load(row, hv);
      if (item + gridDim.x < total) next = slot_of(p.s, (item + gridDim.x) / SPLIT / p.hv);
      const float2 gt = src.gates(gl);
      mbar_wait(&sh.done[n & 1], (n >> 1 & 1) ^ 1);
#pragma unroll
      for (int i = 0; i < PER; i++) {
        const int c = (i * 32 + lane) * 4;
        float f[4];
        if (c < 4 * U) { t[i].get(f); Quad<f32>::of(f).store(pr.q + c); }
      }
      if (lane == 0) { pr.decay = gt.x; pr.beta = gt.y; pr.slot = slot; }
      warp_arrive(&sh.ready[n & 1], lane);
    }
    return;
  }
  u32 stage = 0, parity = 0, n = 0;
  i32 held = -1;
  const int v0 = warp * ROWS + lane / L::LPR;
  for (u32 item = blockIdx.x; item < total; item += gridDim.x, n++) {
    const u32 head = item / SPLIT;
    const int part = item % SPLIT * (PIECES * PIECE_ROWS) + v0;
    const Prep& pr = sh.prep[n & 1];
    act_t* out = reinterpret_cast<act_t*>(p.out) + (i64)head * V_DIM + part;
    mbar_wait(&sh.ready[n & 1], n >> 1 & 1);
    const i64 slot = pr.slot;
    if (slot >= 0) {
      state_t* st = reinterpret_cast<state_t*>(p.state) + slot * p.state_pitch + ((i64)(head % p.hv) * V_DIM + part) * K_DIM;
      Qk<L> x;
      x.load_f32(pr.q, pr.k, lane);
      const float decay = pr.decay, beta = pr.beta;
      x.normalise(p.scale, p.s.flags);
      for (int j = 0; j < PIECES; j++) {
        uint4 raw[G][L::CH];
        mbar_wait(&sh.full[stage], parity);
        state_t* tile = reinterpret_cast<state_t*>(sh.stage[stage]) + v0 * K_DIM;
#pragma unroll
        for (int g = 0; g < G; g++)
#pragma unroll
          for (int c = 0; c < L::CH; c++) raw[g][c] = *reinterpret_cast<const uint4*>(tile + g * L::RPA * K_DIM + L::elem(c, lane));
#if !BULK_STORE
        warp_arrive(&sh.empty[stage], lane);
#endif
#pragma unroll
        for (int g = 0; g < G; g++) {
          const int r = j * PIECE_ROWS + g * L::RPA;
          float o = step_raw<L, state_t>(raw[g], x, pr.v[part + r], decay, beta);
#pragma unroll
          for (int c = 0; c < L::CH; c++)
#if BULK_STORE
            *reinterpret_cast<uint4*>(tile + g * L::RPA * K_DIM + L::elem(c, lane)) = raw[g][c];
#else
            st_state(st + (i64)r * K_DIM + L::elem(c, lane), raw[g][c]);
#endif
          if ((lane & (L::LPR - 1)) == 0) out[r] = Num<act_t>::of(o);
        }
#if BULK_STORE
        // the rows of this warp leave as one copy; its stage is free once that copy has read it
        bulk_store_fence();
        __syncwarp();
        if (lane == 0) {
          bulk_store(st + j * PIECE_ROWS * K_DIM, tile, ROWS * K_DIM * Num<state_t>::BYTES);
          bulk_store_wait<1>();
          if (held >= 0) mbar_arrive(&sh.empty[held]);
          held = (i32)stage;
        }
#endif
        if (++stage == STAGES) { stage = 0; parity ^= 1; }
      }
    } else if ((lane & (L::LPR - 1)) == 0) {
      for (int j = 0; j < PIECES; j++)
        for (int g = 0; g < G; g++) out[j * PIECE_ROWS + g * L::RPA] = Num<act_t>::of(0.f);
    }
    warp_arrive(&sh.done[n & 1], lane);
  }
#if BULK_STORE
  if (lane == 0) bulk_store_wait<0>();
#endif
  (void)held;
}
#endif
#endif

// Any K and V, any alignment: one CTA per (row, value head), a warp per state row.
// Grid: (hv, y, z), y * z >= b. Dynamic shared memory: 2 * K floats.
template <class P, class Src> DEV void recur_any(const P& p, const Src& src, u32 kd, u32 vd) {
  const u32 row = grid_row();
  if (row >= p.s.b) return;
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, hv = blockIdx.x;
  float *q = reinterpret_cast<float*>(smem_base()), *k = q + kd;
  const i64 slot = slot_of(p.s, row);
  act_t* out = reinterpret_cast<act_t*>(p.out) + ((i64)row * p.hv + hv) * vd;
  if (slot < 0) {
    for (u32 v = threadIdx.x; v < vd; v += blockDim.x) out[v] = Num<act_t>::of(0.f);
    return;
  }
  pdl_wait();
  pdl_trigger();
  const u32 h = qk_head(hv, p.h, p.hv, p.s.flags);
  const act_t *qp = src.q(row, h, kd), *kp = src.k(row, h, kd), *vp = src.v(row, hv, kd, vd);
  for (u32 i = threadIdx.x; i < kd; i += blockDim.x) { q[i] = to_f(qp[i]); k[i] = to_f(kp[i]); }
  __syncthreads();
  float qq = 0.f, kk = 0.f, qk = 0.f;
  for (u32 i = lane; i < kd; i += 32) {
    qq = fmaf(q[i], q[i], qq);
    kk = fmaf(k[i], k[i], kk);
    qk = fmaf(q[i], k[i], qk);
  }
  qq = warp_sum(qq); kk = warp_sum(kk); qk = warp_sum(qk);
  float qs = p.scale, ks = 1.f;
  if (p.s.flags & GDN_L2NORM) { qs = rsqrtf(qq + 1e-6f) * p.scale; ks = rsqrtf(kk + 1e-6f); }
  const float2 gt = src.gates(src.gate_load(row, hv));
  state_t* st = reinterpret_cast<state_t*>(p.state) + slot * p.state_pitch + (i64)hv * vd * kd;
  for (u32 v = warp; v < vd; v += warps) {
    state_t* s = st + (i64)v * kd;
    float a = 0.f, r = 0.f;
    for (u32 i = lane; i < kd; i += 32) {
      const float x = to_f(s[i]);
      a = fmaf(x, k[i] * ks, a);
      r = fmaf(x, q[i] * qs, r);
    }
    a = warp_sum(a); r = warp_sum(r);
    const float u = gt.y * fmaf(-gt.x, a, to_f(vp[v]));
    for (u32 i = lane; i < kd; i += 32) s[i] = Num<state_t>::of(fmaf(u, k[i] * ks, gt.x * to_f(s[i])));
    if (lane == 0) out[v] = Num<act_t>::of(fmaf(u, qk * qs * ks, gt.x * r));
  }
}
