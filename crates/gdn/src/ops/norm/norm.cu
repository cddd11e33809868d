// Gated RMS norm: y = o / sqrt(mean(o^2) + eps) * w * silu(z), a warp per (row, value head).
//   gdn_norm      o is of the activation type
//   gdn_norm_f32  o is f32
// Grid: ceil(b * hv / 4), 128 threads. Any v; o and out may be one buffer. A padding row is zero, whatever
// o and z are.
#include "core.cuh"

template <class O> DEV void norm(const NormParams& p) {
  constexpr int PER = V_DIM > 0 ? (V_DIM + 31) / 32 : 0;
  const int lane = threadIdx.x & 31;
  const u64 i = (u64)blockIdx.x * 4 + (threadIdx.x >> 5);
  if (i >= (u64)p.b * p.hv) return;
  const u32 row = (u32)(i / p.hv), hv = (u32)(i % p.hv);
  const bool padding = slot_of(p.s, p.owner ? (u32)p.owner[row] : row) < 0;
  const O* o = reinterpret_cast<const O*>(p.o) + row * p.o_stride + (u64)hv * p.v;
  const act_t* z = reinterpret_cast<const act_t*>(p.z) + row * p.z_stride + (u64)hv * p.v;
  act_t* out = reinterpret_cast<act_t*>(p.out) + i * p.v;
  if constexpr (PER > 0 && V_DIM % 32 == 0) {
    float wz[PER + 1], f[PER + 1], s = 0.f;
#pragma unroll
    for (int n = 0; n < PER; n++) wz[n] = p.weight[n * 32 + lane];
    pdl_wait();
    pdl_trigger();
#pragma unroll
    for (int n = 0; n < PER; n++) {
      f[n] = to_f(o[n * 32 + lane]);
      wz[n] *= silu(to_f(z[n * 32 + lane]));
      s = fmaf(f[n], f[n], s);
    }
    const float rstd = rsqrtf(warp_sum(s) / (float)V_DIM + p.eps);
#pragma unroll
    for (int n = 0; n < PER; n++) out[n * 32 + lane] = Num<act_t>::of(padding ? 0.f : gate_norm(f[n], rstd, wz[n]));
  } else {
    pdl_wait();
    pdl_trigger();
    float s = 0.f;
    for (u32 n = lane; n < p.v; n += 32) { const float f = to_f(o[n]); s = fmaf(f, f, s); }
    const float rstd = rsqrtf(warp_sum(s) / (float)p.v + p.eps);
    for (u32 n = lane; n < p.v; n += 32)
      out[n] = Num<act_t>::of(padding ? 0.f : gate_norm(to_f(o[n]), rstd, p.weight[n] * silu(to_f(z[n]))));
  }
}

extern "C" __global__ void __launch_bounds__(128) gdn_norm(const __grid_constant__ NormParams p) { norm<act_t>(p); }
extern "C" __global__ void __launch_bounds__(128) gdn_norm_f32(const __grid_constant__ NormParams p) { norm<f32>(p); }
