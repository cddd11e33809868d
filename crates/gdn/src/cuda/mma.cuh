// Products of small matrices by a warp, and copies to shared memory that nobody waits for at once
// (sm_80 and later). In the emulator the sum of a product runs in the order of k.
#pragma once
#include "common.cuh"

#ifdef GDN_EMU
DEV float bf16_of(u32 pair, int i) { return bits_f(i & 1 ? pair & 0xffff0000u : pair << 16); }
struct MmaLane { u32 a[4], b[2]; };
DEV void mma_bf16(float* c, const u32* a, const u32* b) {
  const MmaLane* all = gdn_emu_gather(MmaLane{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  const u32 lane = threadIdx.x & 31;
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; k++) {
      const u32 left = all[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2], right = all[col * 4 + k % 8 / 2].b[k / 8];
      c[i] = fmaf(bf16_of(left, k), bf16_of(right, k), c[i]);
    }
  }
}
// Terms are added as mma_bf16 adds them where a lane has 4 neighbours of k.
template <int NT> DEV void wgmma_now(float* c, const char* a, const char* b, u32 k16) {
  struct Terms {
    float of[16];
    Terms(const char* rows, u32 row, u32 k16) {
      for (u32 term = 0; term < 16; term++) {
        const u32 k = k16 * 16 + term % 8 / 2 * 4 + term / 8 * 2 + term % 2;
        of[term] = bf16_of(*reinterpret_cast<const u16*>(rows + row * 128 + ((k / 8 ^ row % 8) << 4) + k % 8 * 2), 0);
      }
    }
  };
  const u32 lane = threadIdx.x & 31, top = threadIdx.x / 32 % 4 * 16 + lane / 4;
  const Terms left[2] = {{a, top, k16}, {a, top + 8, k16}};
  for (u32 i = 0; i < NT * 4; i++) {
    if (i % 4 > 1) continue;
    const Terms right(b, i / 4 * 8 + lane % 4 * 2 + i % 2, k16);
    for (u32 half = 0; half < 2; half++)
      for (u32 term = 0; term < 16; term++) c[i + 2 * half] = fmaf(left[half].of[term], right.of[term], c[i + 2 * half]);
  }
}
template <int NT> DEV void wgmma_bf16(float* c, const char* a, const char* b, u32 k16) { gdn_emu_product(wgmma_now<NT>, c, a, b, k16); }
DEV void wgmma_begin() {}
DEV void wgmma_commit() { gdn_emu_product_commit(); }
DEV void wgmma_wait_one() { gdn_emu_product_wait(1); }
template <int N> DEV void wgmma_wait(float*) { gdn_emu_product_wait(0); }
DEV void wgmma_fence() {}
template <int N> DEV void more_registers() {}
template <int N> DEV void fewer_registers() {}
template <int THREADS> DEV void sync_groups() { gdn_emu_sync_some(THREADS); }
DEV void cp_async_arrive(u64* b) {
  gdn_emu_copy_commit();
  gdn_emu_copy_wait(0);
  mbar_arrive(b);
}
DEV u32 tf32(float x) {
  const u32 u = f_bits(x);
  return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000) & ~0x1fffu;
}
DEV void mma_tf32(float* c, const u32* a, u32 b0, u32 b1) {
  const MmaLane* all = gdn_emu_gather(MmaLane{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
  for (int e = 0; e < 4; e++)
    for (int k = 0; k < 8; k++) {
      const u32 x = all[4 * g + k % 4].a[k / 4 * 2 + e / 2], y = all[4 * (2 * t + e % 2) + k % 4].b[k / 4];
      c[e] = fmaf(bits_f(x & ~0x1fffu), bits_f(y & ~0x1fffu), c[e]);
    }
}
DEV void ldmatrix_x4(u32* r, const void* row) {
  const void* const* rows = gdn_emu_gather(row);
  const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
  for (int m = 0; m < 4; m++) memcpy(r + m, static_cast<const char*>(rows[8 * m + g]) + 4 * t, 4);
}
DEV void ldmatrix_x4_trans(u32* r, const void* row) {
  const void* const* rows = gdn_emu_gather(row);
  const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
  for (int m = 0; m < 4; m++) {
    const u16 *lo = static_cast<const u16*>(rows[8 * m + 2 * t]), *hi = static_cast<const u16*>(rows[8 * m + 2 * t + 1]);
    r[m] = lo[g] | (u32)hi[g] << 16;
  }
}
DEV void cp_async16(void* smem, const void* global) { gdn_emu_copy_async(smem, global); }
DEV void cp_async16_if(void* smem, const void* global, bool wanted) { gdn_emu_copy_async(smem, wanted ? global : nullptr); }
DEV void cp_async16_cached(void* smem, const void* global, bool wanted) { cp_async16_if(smem, global, wanted); }
DEV void cp_async_commit() { gdn_emu_copy_commit(); }
template <int N> DEV void cp_async_wait() { gdn_emu_copy_wait(N); }
DEV void prefetch_l2(const void*) {}
DEV u32 cluster_rank() { return blockIdx.x % (u32)emu::ctas.size(); }
DEV void cluster_sync() { gdn_emu_cluster_sync(); }
DEV float4 peer_load(const float4* p, u32 rank) { return *(const float4*)gdn_emu_map_shared((void*)p, rank); }
#else
DEV u32 shared_addr(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// c += a * b: a is 16x16 and b 16x8, as PTX's mma.m16n8k16 has them in a warp.
DEV void mma_bf16(float* c, const u32* a, const u32* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// To the nearest, ties away from zero.
DEV u32 tf32(float x) { u32 r; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x)); return r; }
// c += a * b, 16x8 by 8x8.
DEV void mma_tf32(float* c, const u32* a, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Four 8x8 matrices: lane i points to 16 bytes, row i % 8 of matrix i / 8.
DEV void ldmatrix_x4(u32* r, const void* smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_addr(smem)) : "memory");
}
DEV void ldmatrix_x4_trans(u32* r, const void* smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_addr(smem)) : "memory");
}
DEV void cp_async16(void* smem, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(shared_addr(smem)), "l"(global) : "memory");
}
// Zeros where it is not wanted: nothing is read then.
DEV void cp_async16_if(void* smem, const void* global, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(shared_addr(smem)), "l"(global), "r"(wanted ? 16 : 0) : "memory");
}
DEV void cp_async16_cached(void* smem, const void* global, bool wanted) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" :: "r"(shared_addr(smem)), "l"(global), "r"(wanted ? 16 : 0) : "memory");
}
DEV void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until no more than N of this thread's groups are under way.
template <int N> DEV void cp_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
DEV void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p)); }
// Products of four warps (sm_90a alone; elsewhere these do nothing): c += a * b, 64 rows of a by 8 * NT rows
// of b, the k16-th 16 of their 64 k. Rows are 128 bytes of shared memory, swizzled by 8 (chunk of 16 bytes i
// of row r lies at i ^ r % 8), from a multiple of 1024 on. A warp has 16 rows of c, in its lanes as with
// mma_bf16. From wgmma_begin to a wait nobody else may touch c.
#define GDN_C4(c) "+f"((c)[0]), "+f"((c)[1]), "+f"((c)[2]), "+f"((c)[3])
#define GDN_C8(c) GDN_C4(c), GDN_C4((c) + 4)
#define GDN_C16(c) GDN_C8(c), GDN_C8((c) + 8)
#define GDN_C32(c) GDN_C16(c), GDN_C16((c) + 16)
#define GDN_R8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define GDN_R16 GDN_R8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define GDN_R32 GDN_R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define GDN_R48 GDN_R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define GDN_R64 GDN_R48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define GDN_WGMMA_ASM(n, regs, a, b, one, ...) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " one ", 0;\n" \
               "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" regs "}, " a ", " b ", p, 1, 1, 0, 0;\n}" \
               : __VA_ARGS__ : "l"(rows), "l"(cols), "r"(1))
#if GDN_WGMMA
DEV u64 wgmma_rows(const char* p) { return (u64)(shared_addr(p) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
template <int NT> DEV void wgmma_bf16(float* c, const char* a, const char* b, u32 k16) {
  constexpr int BLOCK = NT % 16 == 0 ? 16 : NT % 12 == 0 ? 12 : NT % 8 == 0 ? 8 : NT % 4 == 0 ? 4 : NT % 2 == 0 ? 2 : 1;
  const u64 rows = wgmma_rows(a) + k16 * 2;
#pragma unroll
  for (int n = 0; n < NT; n += BLOCK) {
    const u64 cols = wgmma_rows(b) + n * 64 + k16 * 2;
    float* d = c + n * 4;
    if constexpr (BLOCK == 1) GDN_WGMMA_ASM("8", "%0, %1, %2, %3", "%4", "%5", "%6", GDN_C4(d));
    if constexpr (BLOCK == 2) GDN_WGMMA_ASM("16", GDN_R8, "%8", "%9", "%10", GDN_C8(d));
    if constexpr (BLOCK == 4) GDN_WGMMA_ASM("32", GDN_R16, "%16", "%17", "%18", GDN_C16(d));
    if constexpr (BLOCK == 8) GDN_WGMMA_ASM("64", GDN_R32, "%32", "%33", "%34", GDN_C32(d));
    if constexpr (BLOCK == 12) GDN_WGMMA_ASM("96", GDN_R48, "%48", "%49", "%50", GDN_C32(d), GDN_C16(d + 32));
    if constexpr (BLOCK == 16) GDN_WGMMA_ASM("128", GDN_R64, "%64", "%65", "%66", GDN_C32(d), GDN_C32(d + 32));
  }
}
DEV void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until only the last committed group may be under way.
DEV void wgmma_wait_one() { asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); }
// Until none is: the N sums at c may be read.
template <int N> DEV void wgmma_wait(float* c) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i]) :: "memory");
}
// Before the barrier behind which wgmma reads what this thread has written to shared memory.
DEV void wgmma_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Four warps give registers to others of the CTA, or take them.
template <int N> DEV void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N)); }
template <int N> DEV void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N)); }
// A barrier of so many threads.
template <int THREADS> DEV void sync_groups() { asm volatile("bar.sync 1, %0;" :: "n"(THREADS) : "memory"); }
// Arrives when this thread's copies so far have landed.
DEV void cp_async_arrive(u64* b) { asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" :: "r"(shared_addr(b)) : "memory"); }
#else
template <int N> DEV void more_registers() {}
template <int N> DEV void fewer_registers() {}
template <int THREADS> DEV void sync_groups() {}
DEV void cp_async_arrive(u64*) {}
template <int NT> DEV void wgmma_bf16(float*, const char*, const char*, u32) {}
DEV void wgmma_begin() {}
DEV void wgmma_commit() {}
DEV void wgmma_wait_one() {}
template <int N> DEV void wgmma_wait(float*) {}
DEV void wgmma_fence() {}
#endif
#if GDN_SM90
DEV u32 cluster_rank() { u32 r; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
// Shared memory written before is seen by the whole cluster behind it.
DEV void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DEV float4 peer_load(const float4* p, u32 rank) {
  float4 v;
  asm volatile("{\n.reg .u32 a;\nmapa.shared::cluster.u32 a, %4, %5;\nld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [a];\n}"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(smem_addr(p)), "r"(rank) : "memory");
  return v;
}
#endif
#endif
