// Split decode: gates, q, k and v as steps of their own, then the recurrence.
//   gdn_gates, gdn_split_copy, gdn_split, gdn_split_any
#include "core.cuh"
#include "recur.cuh"

extern "C" __global__ void __launch_bounds__(256) gdn_gates(const __grid_constant__ GatesParams p) {
  const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  pdl_wait();
  pdl_trigger();
  if (i >= (u64)p.b * p.hv) return;
  const u32 row = (u32)(i / p.hv), hv = (u32)(i % p.hv);
  p.g[i] = gate_log(to_f(reinterpret_cast<const act_t*>(p.a)[row * p.a_stride + hv]), p.neg_exp_a[hv], p.dt_bias[hv]);
  p.beta[i] = gate_beta(to_f(reinterpret_cast<const act_t*>(p.bb)[row * p.b_stride + hv]), p.flags);
}

// Grid: (any, y, z), y * z >= b.
extern "C" __global__ void __launch_bounds__(256) gdn_split_copy(const __grid_constant__ SplitCopyParams p) {
  const u32 row = grid_row(), cols = 2 * p.qk + p.vv;
  pdl_wait();
  pdl_trigger();
  if (row >= p.b) return;
  const act_t* x = reinterpret_cast<const act_t*>(p.x) + row * p.x_stride;
  for (u32 c = blockIdx.x * blockDim.x + threadIdx.x; c < cols; c += gridDim.x * blockDim.x) {
    if (c < p.qk) reinterpret_cast<act_t*>(p.q)[(u64)row * p.qk + c] = x[c];
    else if (c < 2 * p.qk) reinterpret_cast<act_t*>(p.k)[(u64)row * p.qk + c - p.qk] = x[c];
    else reinterpret_cast<act_t*>(p.v)[(u64)row * p.vv + c - 2 * p.qk] = x[c];
  }
}

struct SplitSource {
  const SplitParams& p;
  __device__ __forceinline__ const act_t* q(u32 r, u32 h, u32 k) const { return reinterpret_cast<const act_t*>(p.q) + ((u64)r * p.h + h) * k; }
  __device__ __forceinline__ const act_t* k(u32 r, u32 h, u32 k) const { return reinterpret_cast<const act_t*>(p.k) + ((u64)r * p.h + h) * k; }
  __device__ __forceinline__ const act_t* v(u32 r, u32 hv, u32, u32 v) const { return reinterpret_cast<const act_t*>(p.v) + ((u64)r * p.hv + hv) * v; }
  struct Gate { float g, beta; };
  __device__ __forceinline__ Gate gate_load(u32 r, u32 hv) const {
    const u64 i = (u64)r * p.hv + hv;
    return {p.g[i], p.beta[i]};
  }
  __device__ __forceinline__ float2 gates(const Gate& g) const { return make_float2(expf(g.g), g.beta); }
};

#if K_DIM > 0 && V_DIM > 0 && (WANT & 1)
extern "C" __global__ void __launch_bounds__(WARPS * 32) gdn_split(const __grid_constant__ SplitParams p) {
  recur_direct(p, SplitSource{p});
}
#endif
#if WANT & 4
extern "C" __global__ void __launch_bounds__(256) gdn_split_any(const __grid_constant__ SplitParams p) {
  recur_any(p, SplitSource{p}, p.kd, p.vd);
}
#endif
