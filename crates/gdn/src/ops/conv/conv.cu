// conv update of one token per row, silu included; the ring takes the raw input.
//   gdn_conv      channels by fours      (K_DIM, V_DIM > 0)
//   gdn_conv_any  any K and V, any alignment
// One CTA per (row, value head): the v channels of that head and, where it owns the pair, the
// channels of its q and k heads. It reads and moves on its own copy of the phase.
// Grid: (hv, y, z), y * z >= b.
#include "core.cuh"

#if K_DIM > 0 && V_DIM > 0
extern "C" __global__ void __launch_bounds__(128) gdn_conv(const __grid_constant__ ConvParams p) {
  const u32 row = grid_row(), hv = blockIdx.x;
  if (row >= p.s.b) return;
  // Everything read here may come from a kernel that is still running, the last step's phase too;
  // and what triggers after this wait lets its successor read state before its own wait.
  pdl_wait();
  pdl_trigger();
  const i64 slot = slot_of(p.s, row), c = 2ll * p.h * K_DIM + (i64)p.hv * V_DIM;
  const u32 h = qk_head(hv, p.h, p.hv, p.s.flags);
  const u32 n = qk_owner(hv, p.h, p.hv, p.s.flags) ? (V_DIM + 2 * K_DIM) / 4 : V_DIM / 4;
  const act_t* x = reinterpret_cast<const act_t*>(p.x) + row * p.x_stride;
  act_t* y = reinterpret_cast<act_t*>(p.y) + row * p.y_stride;
  act_t* ring = reinterpret_cast<act_t*>(p.r.ring) + (slot < 0 ? 0 : slot) * p.r.pitch;
  u32* phase = p.r.phase + (slot < 0 ? 0 : slot) * p.hv + hv;
  const u32 ph = slot < 0 ? 0 : *phase;
  for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
    const u32 j = i * 4;
    const u32 ch = j < V_DIM ? 2 * p.h * K_DIM + hv * V_DIM + j
                 : j < V_DIM + K_DIM ? h * K_DIM + (j - V_DIM) : (p.h + h) * K_DIM + (j - V_DIM - K_DIM);
    float f[4] = {0.f, 0.f, 0.f, 0.f};
    if (slot >= 0) {
      Conv4 cv;
      cv.load_ring(ring, c, ch);
      cv.load_const(p.r, c, ch);
      cv.load_new(x, ch);
      cv.finish(ph % CONV_W, f);
      cv.x.store(ring + (ph % CONV_W) * c + ch);
    }
    Quad<act_t>::of(f).store(y + ch);
  }
  __syncthreads();
  if (slot >= 0 && threadIdx.x == 0) *phase = ph + 1;
}
#endif

extern "C" __global__ void __launch_bounds__(128) gdn_conv_any(const __grid_constant__ ConvParams p) {
  const u32 row = grid_row(), hv = blockIdx.x, kd = p.k, vd = p.v;
  if (row >= p.s.b) return;
  // Everything read here may come from a kernel that is still running, the last step's phase too;
  // and what triggers after this wait lets its successor read state before its own wait.
  pdl_wait();
  pdl_trigger();
  const i64 slot = slot_of(p.s, row), c = 2ll * p.h * kd + (i64)p.hv * vd;
  const u32 h = qk_head(hv, p.h, p.hv, p.s.flags);
  const u32 n = qk_owner(hv, p.h, p.hv, p.s.flags) ? vd + 2 * kd : vd;
  const act_t* x = reinterpret_cast<const act_t*>(p.x) + row * p.x_stride;
  act_t* y = reinterpret_cast<act_t*>(p.y) + row * p.y_stride;
  act_t* ring = reinterpret_cast<act_t*>(p.r.ring) + (slot < 0 ? 0 : slot) * p.r.pitch;
  u32* phase = p.r.phase + (slot < 0 ? 0 : slot) * p.hv + hv;
  const u32 ph = slot < 0 ? 0 : *phase;
  for (u32 j = threadIdx.x; j < n; j += blockDim.x) {
    const u32 ch = j < vd ? 2 * p.h * kd + hv * vd + j : j < vd + kd ? h * kd + (j - vd) : (p.h + h) * kd + (j - vd - kd);
    float f = 0.f;
    if (slot >= 0) {
      f = conv_any(p.r, ring, c, ch, ph, to_f(x[ch]));
      ring[(ph % CONV_W) * c + ch] = x[ch];
    }
    y[ch] = Num<act_t>::of(f);
  }
  __syncthreads();
  if (slot >= 0 && threadIdx.x == 0) *phase = ph + 1;
}
