// Types, conversions and machine operations. No CUDA headers: builds under nvcc, NVRTC and, with
// GDN_EMU, as plain C++ on a CPU (the emulator supplies the gdn_emu_* hooks and the CUDA names).
#pragma once
#include "params.cuh"

struct bf16 { u16 b; };
struct f16 { u16 b; };
typedef float f32;

#ifndef ACT
#define ACT bf16
#endif
#ifndef STATE
#define STATE f32
#endif
#ifndef K_DIM
#define K_DIM 128
#endif
#ifndef V_DIM
#define V_DIM 128
#endif
#ifndef CONV_W
#define CONV_W 4
#endif
// Which entries to compile, for a run-time compiler that needs one: 1 direct, 2 stream, 4 any, 8 chunked.
#ifndef WANT
#define WANT 15
#endif
typedef ACT act_t;
typedef STATE state_t;

#define DEV static __device__ __forceinline__
#if defined(GDN_EMU) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define GDN_SM90 1
#else
#define GDN_SM90 0
#endif
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define GDN_WGMMA 1
#else
#define GDN_WGMMA 0
#endif
#define FULL 0xffffffffu

#ifdef GDN_EMU
DEV float bits_f(u32 u) { float f; memcpy(&f, &u, 4); return f; }
DEV u32 f_bits(float f) { u32 u; memcpy(&u, &f, 4); return u; }
DEV u32 pack_bf16(float lo, float hi) {
  auto one = [](float f) -> u32 {
    u32 u = f_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  };
  return one(lo) | one(hi) << 16;
}
DEV float f16_f(u16 h) {
  u32 s = (u32)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023;
  if (e == 0) { float f = (float)m * 5.9604644775390625e-8f; return s ? -f : f; }
  return bits_f(s | (e == 31 ? 0x7f800000u : (e + 112) << 23) | m << 13);
}
DEV u16 f_f16(float f) {
  u32 u = f_bits(f), s = u >> 16 & 0x8000, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return 0x7fff;
  if (a >= 0x477ff000u) return (u16)(s | 0x7c00);
  if (a < 0x38800000u) {  // subnormal: let the adder round
    float r = bits_f(a) + 0.5f;
    return (u16)(s | (f_bits(r) - 0x3f000000u));
  }
  a += 0xfff + (a >> 13 & 1);
  return (u16)(s | ((a - 0x38000000u) >> 13));
}
DEV u32 pack_f16(float lo, float hi) { return f_f16(lo) | (u32)f_f16(hi) << 16; }
#else
DEV float bits_f(u32 u) { return __uint_as_float(u); }
DEV u32 f_bits(float f) { return __float_as_uint(f); }
DEV u32 pack_bf16(float lo, float hi) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
DEV float f16_f(u16 h) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h)); return f; }
DEV u32 pack_f16(float lo, float hi) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
#endif

DEV float to_f(f32 x) { return x; }
DEV float to_f(bf16 x) { return bits_f((u32)x.b << 16); }
DEV float to_f(f16 x) { return f16_f(x.b); }
template <class T> struct Num;
template <> struct Num<f32> {
  static constexpr int BYTES = 4;
  DEV f32 of(float x) { return x; }
};
template <> struct Num<bf16> {
  static constexpr int BYTES = 2;
  DEV bf16 of(float x) { bf16 r; r.b = (u16)pack_bf16(x, 0.f); return r; }
  DEV u32 pack(float lo, float hi) { return pack_bf16(lo, hi); }
  DEV float lo(u32 u) { return bits_f(u << 16); }
  DEV float hi(u32 u) { return bits_f(u & 0xffff0000u); }
};
template <> struct Num<f16> {
  static constexpr int BYTES = 2;
  DEV f16 of(float x) { f16 r; r.b = (u16)pack_f16(x, 0.f); return r; }
  DEV u32 pack(float lo, float hi) { return pack_f16(lo, hi); }
  DEV float lo(u32 u) { return f16_f((u16)u); }
  DEV float hi(u32 u) { return f16_f((u16)(u >> 16)); }
};

// 16 raw bytes <-> floats
template <class T> struct Vec {
  static constexpr int N = 8;
  DEV void unpack(uint4 u, float* f) {
    f[0] = Num<T>::lo(u.x); f[1] = Num<T>::hi(u.x); f[2] = Num<T>::lo(u.y); f[3] = Num<T>::hi(u.y);
    f[4] = Num<T>::lo(u.z); f[5] = Num<T>::hi(u.z); f[6] = Num<T>::lo(u.w); f[7] = Num<T>::hi(u.w);
  }
  DEV uint4 pack(const float* f) {
    uint4 u;
    u.x = Num<T>::pack(f[0], f[1]); u.y = Num<T>::pack(f[2], f[3]);
    u.z = Num<T>::pack(f[4], f[5]); u.w = Num<T>::pack(f[6], f[7]);
    return u;
  }
};
template <> struct Vec<f32> {
  static constexpr int N = 4;
  DEV void unpack(uint4 u, float* f) { f[0] = bits_f(u.x); f[1] = bits_f(u.y); f[2] = bits_f(u.z); f[3] = bits_f(u.w); }
#ifdef GDN_EMU
  DEV uint4 pack(const float* f) { return uint4{f_bits(f[0]), f_bits(f[1]), f_bits(f[2]), f_bits(f[3])}; }
#else
  DEV uint4 pack(const float* f) { return make_uint4(__float_as_uint(f[0]), __float_as_uint(f[1]), __float_as_uint(f[2]), __float_as_uint(f[3])); }
#endif
};

// Memory that is aligned to its elements alone (GDN_UNALIGNED) is read and written by the element.
#ifdef GDN_UNALIGNED
DEV u32 ld_pair(const u16* p) { return p[0] | (u32)p[1] << 16; }
DEV void st_pair(u16* p, u32 v) { p[0] = (u16)v; p[1] = (u16)(v >> 16); }
#endif

// Four neighbouring activations, kept raw until they are needed: 8 bytes, or 16 for f32.
template <class T> struct Quad {
  uint2 u;
#ifdef GDN_UNALIGNED
  DEV Quad load(const T* p) { Quad q; q.u.x = ld_pair(&p->b); q.u.y = ld_pair(&p[2].b); return q; }
  __device__ __forceinline__ void store(T* p) const { st_pair(&p->b, u.x); st_pair(&p[2].b, u.y); }
#else
  DEV Quad load(const T* p) { Quad q; q.u = *reinterpret_cast<const uint2*>(p); return q; }
  __device__ __forceinline__ void store(T* p) const { *reinterpret_cast<uint2*>(p) = u; }
#endif
  __device__ __forceinline__ void get(float* f) const {
    f[0] = Num<T>::lo(u.x); f[1] = Num<T>::hi(u.x); f[2] = Num<T>::lo(u.y); f[3] = Num<T>::hi(u.y);
  }
  __device__ __forceinline__ void pick(bool c, const Quad& o) { u.x = c ? o.u.x : u.x; u.y = c ? o.u.y : u.y; }
  DEV Quad of(const float* f) { Quad q; q.u.x = Num<T>::pack(f[0], f[1]); q.u.y = Num<T>::pack(f[2], f[3]); return q; }
};
template <> struct Quad<f32> {
  float4 u;
#ifdef GDN_UNALIGNED
  DEV Quad load(const f32* p) { return of(p); }
  __device__ __forceinline__ void store(f32* p) const { get(p); }
#else
  DEV Quad load(const f32* p) { Quad q; q.u = *reinterpret_cast<const float4*>(p); return q; }
  __device__ __forceinline__ void store(f32* p) const { *reinterpret_cast<float4*>(p) = u; }
#endif
  __device__ __forceinline__ void get(float* f) const { f[0] = u.x; f[1] = u.y; f[2] = u.z; f[3] = u.w; }
  __device__ __forceinline__ void pick(bool c, const Quad& o) {
    u.x = c ? o.u.x : u.x; u.y = c ? o.u.y : u.y; u.z = c ? o.u.z : u.z; u.w = c ? o.u.w : u.w;
  }
  DEV Quad of(const float* f) { Quad q; q.u.x = f[0]; q.u.y = f[1]; q.u.z = f[2]; q.u.w = f[3]; return q; }
};

// ---- machine operations ----
#ifdef GDN_UNALIGNED
DEV uint4 ld_state(const void* p) {
  const u16* e = reinterpret_cast<const u16*>(p);
  uint4 v;
  v.x = ld_pair(e); v.y = ld_pair(e + 2); v.z = ld_pair(e + 4); v.w = ld_pair(e + 6);
  return v;
}
DEV void st_state(void* p, uint4 v) {
  u16* e = reinterpret_cast<u16*>(p);
  st_pair(e, v.x); st_pair(e + 2, v.y); st_pair(e + 4, v.z); st_pair(e + 6, v.w);
}
#elif defined(GDN_EMU)
DEV uint4 ld_state(const void* p) { return *reinterpret_cast<const uint4*>(p); }
DEV void st_state(void* p, uint4 v) { *reinterpret_cast<uint4*>(p) = v; }
#endif
#ifdef GDN_EMU
DEV char* smem_base() { return gdn_emu_smem(); }
DEV void pdl_wait() {}
DEV void pdl_trigger() {}
DEV void cluster_arrive() {}
DEV void cluster_wait() { gdn_emu_cluster_sync(); }
struct MbarBits { u64 phase : 1, count : 15, left : 16, tx : 32; };
DEV void mbar_flip(MbarBits& m) { if (m.left == 0 && m.tx == 0) { m.phase ^= 1; m.left = m.count; } }
DEV void mbar_init(u64* b, u32 n) { MbarBits m{}; m.count = n; m.left = n; memcpy(b, &m, 8); }
DEV void mbar_init_fence() {}
DEV void mbar_arrive(u64* b) { MbarBits& m = *(MbarBits*)b; m.left--; mbar_flip(m); }
DEV void mbar_arrive_tx(u64* b, u32 bytes) { MbarBits& m = *(MbarBits*)b; m.tx += bytes; m.left--; mbar_flip(m); }
DEV void mbar_wait(u64* b, u32 parity) { while (((volatile MbarBits*)b)->phase == parity) gdn_emu_yield(); }
DEV void bulk_load(void* dst, const void* src, u32 bytes, u64* b) {
  memcpy(dst, src, bytes);
  MbarBits& m = *(MbarBits*)b; m.tx -= bytes; mbar_flip(m);
}
DEV void peer_store(float* p, float v, u64* b, u32 rank) {
  *(float*)gdn_emu_map_shared(p, rank) = v;
  MbarBits& m = *(MbarBits*)gdn_emu_map_shared(b, rank); m.tx -= 4; mbar_flip(m);
}
DEV void bulk_store(void* dst, const void* src, u32 bytes) { memcpy(dst, src, bytes); }
DEV void bulk_store_fence() {}
template <int N> DEV void bulk_store_wait() {}
DEV float rcp(float x) { return 1.f / x; }
#else
// What L2 is told about the state, which is read once and written once:
//   0 nothing, 1 stores stream out first, 2 loads are kept until the store, which streams out first,
//   3 loads and stores stream out first, 4 loads skip caches and stores write through
#ifndef HINT
#define HINT 1
#endif
DEV u64 policy_first() { u64 p; asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p)); return p; }
DEV u64 policy_last() { u64 p; asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(p)); return p; }
DEV u64 load_policy() { return HINT == 2 ? policy_last() : policy_first(); }
#ifndef GDN_UNALIGNED
DEV uint4 ld_state(const void* p) {
  uint4 v;
#if HINT == 2 || HINT == 3
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p), "l"(load_policy()));
#elif HINT == 4
  asm volatile("ld.global.cv.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
#else
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
#endif
  return v;
}
DEV void st_state(void* p, uint4 v) {
#if HINT == 0
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" :: "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#elif HINT == 1
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" :: "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#elif HINT == 4
  asm volatile("st.global.wt.v4.u32 [%0], {%1, %2, %3, %4};" :: "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#else
  asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;" :: "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "l"(policy_first()) : "memory");
#endif
}
#endif
DEV char* smem_base() {
  extern __shared__ __align__(1024) char gdn_smem[];
  return gdn_smem;
}
DEV void pdl_wait() {
#if GDN_SM90
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEV void pdl_trigger() {
#if GDN_SM90
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
#if GDN_SM90
DEV u32 smem_addr(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// Split barrier: a peer's shared memory may be touched only once that peer runs. Relaxed, since a
// releasing arrive waits for every store to global memory; mbar_init_fence publishes the mbarriers.
DEV void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
DEV void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// Stores v to p of the CTA of that rank, and counts its 4 bytes on that CTA's b.
DEV void peer_store(float* p, float v, u64* b, u32 rank) {
  asm volatile(
      "{\n.reg .u32 a, m;\nmapa.shared::cluster.u32 a, %0, %3;\nmapa.shared::cluster.u32 m, %2, %3;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [a], %1, [m];\n}"
      :: "r"(smem_addr(p)), "r"(__float_as_uint(v)), "r"(smem_addr(b)), "r"(rank) : "memory");
}
DEV void bulk_store(void* dst, const void* src, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\ncp.async.bulk.commit_group;"
               :: "l"(dst), "r"(smem_addr(src)), "r"(bytes) : "memory");
}
DEV void bulk_store_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// All but the last N stores of this thread have read their source.
template <int N> DEV void bulk_store_wait() { asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(N) : "memory"); }
DEV void mbar_init(u64* b, u32 n) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(smem_addr(b)), "r"(n) : "memory"); }
DEV void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEV void mbar_arrive(u64* b) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" :: "r"(smem_addr(b)) : "memory"); }
DEV void mbar_arrive_tx(u64* b, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" :: "r"(smem_addr(b)), "r"(bytes) : "memory");
}
// Returns once the phase of that parity is over.
DEV void mbar_wait(u64* b, u32 parity) {
  asm volatile(
      "{\n.reg .pred p;\nW_%=: mbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n@!p bra W_%=;\n}"
      :: "r"(smem_addr(b)), "r"(parity) : "memory");
}
DEV void bulk_load(void* dst, const void* src, u32 bytes, u64* b) {
#if HINT == 2 || HINT == 3
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
               :: "r"(smem_addr(dst)), "l"(src), "r"(bytes), "r"(smem_addr(b)), "l"(load_policy()) : "memory");
  return;
#endif
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :: "r"(smem_addr(dst)), "l"(src), "r"(bytes), "r"(smem_addr(b)) : "memory");
}
#endif
DEV float rcp(float x) { float y; asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
#endif

// One arrival a warp, for what all its lanes have done. Race checkers follow single threads: for
// them every lane arrives.
#if GDN_SM90
#ifdef GDN_ALL_ARRIVE
constexpr u32 WARP_ARRIVALS = 32;
DEV void warp_arrive(u64* b, int) { mbar_arrive(b); }
#else
constexpr u32 WARP_ARRIVALS = 1;
DEV void warp_arrive(u64* b, int lane) {
  __syncwarp();
  if (lane == 0) mbar_arrive(b);
}
#endif
#endif
