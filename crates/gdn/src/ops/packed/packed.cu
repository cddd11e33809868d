// Packed decode: q, k, v by pointer arithmetic out of convolved mixed_qkv, gates and norms in
// registers, the state updated in place.
//   gdn_packed          one warp per ROWS rows, state straight to registers   (K_DIM, V_DIM > 0)
//   gdn_packed_stream   persistent; bulk copies keep STAGES pieces in flight  (sm_90 and later)
//   gdn_packed_any      any K and V, any alignment
#include "core.cuh"
#include "recur.cuh"

struct PackedSource {
  const PackedParams& p;
  __device__ __forceinline__ const act_t* row(u32 r) const { return reinterpret_cast<const act_t*>(p.x) + r * p.x_stride; }
  __device__ __forceinline__ const act_t* q(u32 r, u32 h, u32 k) const { return row(r) + (u64)h * k; }
  __device__ __forceinline__ const act_t* k(u32 r, u32 h, u32 k) const { return row(r) + (u64)(p.h + h) * k; }
  __device__ __forceinline__ const act_t* v(u32 r, u32 hv, u32 k, u32 v) const { return row(r) + (u64)2 * p.h * k + (u64)hv * v; }
  struct Gate { act_t a, b; float neg, dt; };
  __device__ __forceinline__ Gate gate_load(u32 r, u32 hv) const {
    return {reinterpret_cast<const act_t*>(p.a)[r * p.a_stride + hv], reinterpret_cast<const act_t*>(p.bb)[r * p.b_stride + hv], p.neg_exp_a[hv], p.dt_bias[hv]};
  }
  // decay and beta
  __device__ __forceinline__ float2 gates(const Gate& g) const {
    return make_float2(expf(gate_log(to_f(g.a), g.neg, g.dt)), gate_beta(to_f(g.b), p.s.flags));
  }
};

#if K_DIM > 0 && V_DIM > 0
#if WANT & 1
extern "C" __global__ void __launch_bounds__(WARPS * 32) gdn_packed(const __grid_constant__ PackedParams p) {
  recur_direct(p, PackedSource{p});
}
#endif
#if GDN_SM90 && (WANT & 2)
extern "C" __global__ void __launch_bounds__((WARPS + 2) * 32) gdn_packed_stream(const __grid_constant__ PackedParams p) {
  recur_stream(p, PackedSource{p});
}
#endif
#endif
#if WANT & 4
extern "C" __global__ void __launch_bounds__(256) gdn_packed_any(const __grid_constant__ PackedParams p) {
  recur_any(p, PackedSource{p}, p.kd, p.vd);
}
#endif
