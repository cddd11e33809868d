// What the attention kernels share. Every row's softmax has one order, which absolute positions
// alone decide: blocks of 64 keys, the pages of the cache, in ascending order; every SPLIT blocks
// it starts anew, and the splits are folded in ascending order. A block that a row sees nothing of
// changes no bit of it. So decode and prefill have the same bits, however rows come together.
#pragma once
#include "common.cuh"

struct Tile {
  u32 first, rows;  // of the launch: positions of one sequence that ascend by 1
  i32 sequence;     // negative = padding: zeros
  u32 pad;
};

struct Params {
  const act_t* q;        // [rows, heads, HEAD_DIM] normed and rotated
  const act_t* gates;    // [rows, heads, 2, HEAD_DIM] row by row at gate_stride; gates are the second halves
  const act_t* keys;     // [pages, 64, kv_heads, HEAD_DIM], those of the rows too
  const act_t* values;   // as keys; finite up to the last position of a row's tile
  const i32* pages;      // [sequences, max_pages] the page of each 64 positions
  const i32* positions;  // [rows]
  const i32* sequences;  // [rows] negative = padding: zeros (not read by prefill)
  act_t* out;            // [rows, heads, HEAD_DIM]
  const Tile* tiles;     // of prefill, those with most keys first
  float* partials;       // of decode, [max_items, RATIO * (HEAD_DIM + 2), to a multiple of 4]
  u32* counters;         // of decode, [rows, kv_heads]; 0 between launches
  i64 gate_stride;
  u32 rows, kv_heads, max_pages, max_items;
  float scale;           // of q·k, for powers of 2
  u32 pad;
};
static_assert(sizeof(Params) == PARAMS_BYTES, "cuda.rs has another Params");

#ifndef SPLIT_PAGES
#define SPLIT_PAGES 8
#endif
constexpr int BLOCK = 64, SPLIT = SPLIT_PAGES;
DEV int least(int a, int b) { return a < b ? a : b; }
#define NEVER bits_f(0xff800000u)

#ifdef GDN_EMU
DEV float ex2(float x) { return exp2f(x); }
DEV float load_fresh(const float* p) { return *p; }
DEV float4 load_fresh4(const float* p) { return *reinterpret_cast<const float4*>(p); }
template <class T> DEV T* in_memory(T* p) { return p; }
#else
DEV float ex2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
// What another CTA of this launch wrote: not from L1.
DEV float load_fresh(const float* p) { float v; asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p)); return v; }
DEV float4 load_fresh4(const float* p) {
  float4 v;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p));
  return v;
}
// An array that the compiler is not to keep in registers.
template <class T> DEV T* in_memory(T* p) { asm volatile("" : "+l"(p)); return p; }
#endif

// Takes a block's largest scaled score into the maximum m; returns what earlier shares shrink by:
// 1 to the bit where the maximum stays.
DEV float raise(float& m, float score) {
  const float before = m;
  m = fmaxf(m, score);
  return ex2(before - (m == NEVER ? 0.f : m));
}
DEV float share(float score, float scale, float m) { return ex2(fmaf(score, scale, m == NEVER ? 0.f : -m)); }

// Takes a split's maximum and sum to those of the splits before it.
struct Fold { float old, add; };
DEV Fold fold(float& m, float& l, float split_m, float split_l) {
  const float before = m;
  m = fmaxf(m, split_m);
  const Fold f = {ex2(before - m), ex2(split_m - m)};
  l = fmaf(split_l, f.add, l * f.old);
  return f;
}
DEV float folded(Fold f, float o, float split_o) { return fmaf(split_o, f.add, o * f.old); }

DEV float gated(float o, float inverse, float gate) {
  return o * inverse * (1.f / (1.f + ex2(gate * -1.4426950408889634f)));
}

DEV u64 out_at(const Params& p, u32 row, u32 head) { return ((u64)row * p.kv_heads * RATIO + head) * HEAD_DIM; }
DEV const act_t* gate_at(const Params& p, u32 row, u32 head) {
  return p.gates + (i64)row * p.gate_stride + (head * 2 + 1) * HEAD_DIM;
}
