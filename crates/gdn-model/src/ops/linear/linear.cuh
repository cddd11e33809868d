// y = x * w^T for a list of rows of x, and what an expert makes of its tokens.
//
// One order of sums for all kernels and tiles here, which K alone decides: K falls into units of 64,
// units into PARTS runs; a run adds its products of k16 one after another, runs are added in order.
// In a product a lane has 4 neighbours of k, which lie together in 8 bytes. Products know nothing of
// the other rows of w and x in them. So the bits of a sum depend on its row of w and its row of x.
#pragma once
#include "mma.cuh"

#ifndef SWIGLU
#define SWIGLU 0
#endif
#ifndef OUT_F32
#define OUT_F32 0
#endif
#ifndef PARTIAL  // tiles with a half or a quarter of their pairs compute no more than these
#define PARTIAL 0
#endif
#if OUT_F32
typedef float out_t;
#else
typedef act_t out_t;
#endif

constexpr u32 PARTS = 4;
// Outputs of 16 rows of w. With SWIGLU these are 8 gate rows and the 8 up rows that belong to them, so
// that both sums of an output meet in one lane.
constexpr u32 OUTS = SWIGLU ? 8 : 16;

struct Job {
  const bf16* w;     // [outputs, k]; with SWIGLU [2 * outputs, k], gate rows first
  const act_t* x;
  out_t* y;
  const i32* order;  // the pairs, or null: 0, 1, 2, ...
  i64 x_stride, y_stride;
  u32 count;         // pairs
  u32 places;        // pair i reads row i / places of x and writes row i of y
  u32 outputs, k;
  __device__ __forceinline__ u32 pair(u32 i) const { return order ? (u32)order[i] : i; }
  __device__ __forceinline__ const act_t* row(u32 i) const { return x + (i64)(pair(i) / places) * x_stride; }
};

DEV float silu(float x) { return x * rcp(1.f + expf(-x)); }
DEV u32 part_start(u32 k, u32 part) { return (k + 63) / 64 * part / PARTS; }
DEV u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }

// Row of w that is row `r` of the products whose outputs start at n. Rows of w beyond the end are
// those whose output is.
DEV u32 weight_output(u32 n, u32 r) { return SWIGLU ? n + r / 16 * 8 + r % 8 : n + r; }
DEV u32 weight_row(const Job& job, u32 n, u32 r) { return weight_output(n, r) + (SWIGLU && r % 16 >= 8 ? job.outputs : 0); }

DEV uint2 load8(const void* p) { return *reinterpret_cast<const uint2*>(p); }
DEV void product(float* c, const uint2& lo, const uint2& hi, const uint2& x) {
  const u32 a[4] = {lo.x, hi.x, lo.y, hi.y}, b[2] = {x.x, x.y};
  mma_bf16(c, a, b);
}

// A lane's 4 of x for two products. Of one row in a group of lanes they are loaded as they lie. Of many,
// loads of 8 bytes take too long: even lanes load 8 neighbours of the first product, odd ones of the
// second, and each gives away the half that is its neighbour's.
template <bool MANY> DEV u32 x_start(u32 q) { return MANY ? (q / 2 + q % 2 * 2) * 8 : q * 4; }
template <bool MANY> DEV uint4 load_x(const act_t* x) {
  if (MANY) return *reinterpret_cast<const uint4*>(x);
  const uint2 first = load8(x), second = load8(x + 16);
  return uint4{first.x, first.y, second.x, second.y};
}
template <bool MANY> DEV void split_x(const uint4& v, uint2& first, uint2& second) {
  first = uint2{v.x, v.y}, second = uint2{v.z, v.w};
  if (!MANY) return;
  const bool odd = threadIdx.x & 1;
  const uint2 given = odd ? first : second;
  const uint2 got = {__shfl_xor_sync(FULL, given.x, 1), __shfl_xor_sync(FULL, given.y, 1)};
  if (odd) first = got;
  else second = got;
}

// What a lane has of 16 rows, 8 pairs: outputs n and, without SWIGLU, n + 8; pairs i and i + 1.
DEV void emit(const Job& job, u32 n, u32 end, u32 i, float4 v) {
#pragma unroll
  for (u32 j = 0; j < 2; j++) {
    if (i + j >= job.count) continue;
    const float lo = j ? v.y : v.x, hi = j ? v.w : v.z;
    out_t* y = job.y + (i64)job.pair(i + j) * job.y_stride;
    if (SWIGLU) {
      if (n < end) y[n] = Num<out_t>::of(silu(lo) * hi);
    } else {
      if (n < end) y[n] = Num<out_t>::of(lo);
      if (n + 8 < end) y[n + 8] = Num<out_t>::of(hi);
    }
  }
}

// ---- few pairs: w streams past them ----
// A CTA of PARTS warps, one a part of K, for outputs first to last in tiles of MT * 16 rows, all pairs
// 8 * NT at a time. Each warp copies what it needs of w itself, DEPTH units ahead: no barrier of the
// CTA, but for the sum over parts at the end of a tile. Rows of x come through L1. A row's 32 of w
// are 64 bytes of shared memory; every second two rows have their halves swapped, so that 16 lanes
// reach all banks.
template <int MT, int NT, int DEPTH> struct Stream {
  static constexpr u32 SLOT = MT * 4 * 512, SUMS = PARTS * MT * NT * 512;
  static constexpr u32 BYTES = PARTS * DEPTH * SLOT + 2 * SUMS;

  DEV void run(const Job& job, u32 first, u32 last, bool wait) {
    const u32 lane = threadIdx.x & 31, part = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
    const u32 start = part_start(job.k, part), units = part_start(job.k, part + 1) - start;
    const u32 chunks = ceil_div(job.count, 8 * NT), tiles = ceil_div(last - first, OUTS * MT);
    const u32 steps = chunks * tiles * units;
    char* fifo = smem_base() + part * DEPTH * SLOT;
    const u32 to_w = g * 64 + (q ^ (g & 2)) * 16, from_w = g * 64 + (g & 2) * 16 + q * 8;
    float4* sums = reinterpret_cast<float4*>(smem_base() + PARTS * DEPTH * SLOT);
    // Tiles share the outputs evenly: a last one of few rows would load little.
    auto tile_start = [&](u32 tile) { return first + (last - first) * tile / tiles; };

    u32 ahead = 0, ahead_unit = 0, ahead_tile = 0, ahead_slot = 0;
    const bf16* rows[2 * MT];
    bool valid[2 * MT];
    auto load = [&] {
      if (ahead < steps) {
        if (ahead_unit == 0) {
          const u32 n = tile_start(ahead_tile), end = tile_start(ahead_tile + 1);
#pragma unroll
          for (u32 r = 0; r < 2 * MT; r++) {
            valid[r] = weight_output(n, r * 8 + g) < end;
            rows[r] = job.w + (valid[r] ? (u64)weight_row(job, n, r * 8 + g) * job.k : 0) + start * 64 + q * 8;
          }
        }
        char* to = fifo + ahead_slot * SLOT + to_w;
#pragma unroll
        for (u32 r = 0; r < 2 * MT; r++)
#pragma unroll
          for (u32 h = 0; h < 2; h++)
            cp_async16_if(to + (r * 2 + h) * 512, rows[r] + ahead_unit * 64 + h * 32, valid[r] && (start + ahead_unit) * 64 + h * 32 < job.k);
        ahead++;
        if (++ahead_slot == DEPTH) ahead_slot = 0;
        if (++ahead_unit == units) {
          ahead_unit = 0;
          if (++ahead_tile == tiles) ahead_tile = 0;
        }
      }
      cp_async_commit();
    };
#pragma unroll 1
    for (int i = 0; i < DEPTH - 1; i++) load();
    if (wait) pdl_wait();
    pdl_trigger();

    u32 slot = 0, set = 0;
#pragma unroll 1
    for (u32 c = 0; c < chunks; c++) {
      const act_t* x[NT];
#pragma unroll
      for (int n = 0; n < NT; n++) {
        const u32 i = (c * NT + n) * 8 + g;
        x[n] = i < job.count ? job.row(i) + start * 64 + x_start<(NT > 1)>(q) : nullptr;
      }
      uint4 next[NT][2];
      auto load_next = [&](u32 unit) {
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (u32 h = 0; h < 2; h++) {
            next[n][h] = uint4{0, 0, 0, 0};
            if (x[n] && (start + unit) * 64 + h * 32 < job.k) next[n][h] = load_x<(NT > 1)>(x[n] + unit * 64 + h * 32);
          }
      };
      if (units) load_next(0);
#pragma unroll 1
      for (u32 tile = 0; tile < tiles; tile++) {
        float acc[MT][NT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
          for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) acc[m][n][e] = 0.f;
#pragma unroll 2
        for (u32 u = 0; u < units; u++) {
          cp_async_wait<DEPTH - 2>();
          __syncwarp();
          load();
          uint2 xs[NT][4];
#pragma unroll
          for (int n = 0; n < NT; n++)
#pragma unroll
            for (u32 h = 0; h < 2; h++) split_x<(NT > 1)>(next[n][h], xs[n][h * 2], xs[n][h * 2 + 1]);
          load_next(u + 1 < units ? u + 1 : 0);
          const char* at = fifo + slot * SLOT;
          if (++slot == DEPTH) slot = 0;
#pragma unroll
          for (u32 p = 0; p < 4; p++)
#pragma unroll
            for (int m = 0; m < MT; m++) {
              const char* from = at + (m * 4 + p / 2) * 512 + (from_w ^ p % 2 * 32);
              const uint2 lo = load8(from), hi = load8(from + 1024);
#pragma unroll
              for (int n = 0; n < NT; n++) product(acc[m][n], lo, hi, xs[n][p]);
            }
        }
        float4* mine = sums + set * (SUMS / 16);
        set ^= 1;
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
          for (int n = 0; n < NT; n++) {
            const float* a = acc[m][n];
            mine[((part * MT + m) * NT + n) * 32 + lane] = float4{a[0], a[1], a[2], a[3]};
          }
        // The other set is free: all have read it before they come here.
        __syncthreads();
        const u32 n0 = tile_start(tile), end = tile_start(tile + 1);
#pragma unroll
        for (u32 f = threadIdx.x; f < MT * NT * 32; f += PARTS * 32) {
          float4 v = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
          for (u32 s = 0; s < PARTS; s++) {
            const float4 a = mine[s * MT * NT * 32 + f];
            v.x += a.x; v.y += a.y; v.z += a.z; v.w += a.w;
          }
          const u32 m = f / (NT * 32), n = f / 32 % NT;
          emit(job, n0 + m * OUTS + (f & 31) / 4, end, (c * NT + n) * 8 + (f & 3) * 2, v);
        }
      }
    }
    cp_async_wait<0>();
  }
};

// ---- many pairs: tiles in shared memory ----
// A CTA of WM * WN warps for BM rows of w and BN pairs. A warp has MT * 16 neighbouring rows, and of
// the pairs every WN-th 8, so that few pairs are shared by all warps. A row's unit is 128 bytes of
// shared memory, swizzled so that all banks are reached.
// With SPLIT a cluster of PARTS CTAs has one part of K each, for where tiles are few.
// BY mma.sync; BY wgmma, which has the same sums, in groups of four warps (WN = MT = 1); or BY wgmma of
// warps that do nothing else, FED by four that copy.
enum { MMA, WGMMA, FED };
template <int WM, int WN, int MT, int NT, int STAGES, int SPLIT, int BY> struct Tile {
  static constexpr u32 BM = WM * MT * 16, BN = WN * NT * 8, THREADS = WM * WN * 32;
  static constexpr u32 ALL_THREADS = THREADS + (BY == FED ? 128 : 0);
  static constexpr u32 OUTPUTS = BM / 16 * OUTS, STAGE = (BM + BN) * 128, STEP = THREADS / 8;
  static constexpr u32 PITCH = OUTPUTS * sizeof(out_t) + 16;
  static constexpr u32 BYTES = SPLIT > 1 && BM * BN * 4 > STAGES * STAGE ? BM * BN * 4 : STAGES * STAGE + (BY == FED ? STAGES * 16 + 16 : 0);
  static constexpr int FEED_REGISTERS = 72, SUM_REGISTERS = 216;  // each of 384 threads starts with 168
  static constexpr int LEAD = STAGES - 1 - (BY == WGMMA);  // units loaded ahead: wgmma may still read the one before
  static constexpr u32 X_ROWS = (BN + STEP - 1) / STEP;  // of a thread
  static_assert(BM % STEP == 0, "threads copy whole rows");
  static_assert(BN * PITCH <= BYTES, "outputs take the place of operands");
  static_assert(BY == MMA || (WM % 4 == 0 && WN == 1 && MT == 1), "four warps have 64 rows");
  static_assert(BY != FED || (WM == 8 && SPLIT == 1), "registers are shared among three groups");

  float acc[MT][NT][4], total[MT][NT][4];

  __device__ __forceinline__ void add_part() {
    if constexpr (BY != MMA) wgmma_wait<NT * 4>(acc[0][0]);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) total[m][n][e] += acc[m][n][e], acc[m][n][e] = 0.f;
  }

  // Where 16 bytes of row r of a unit lie, so that products reach all banks.
  DEV u32 place(u32 r, u32 col) { return r * 128 + ((col ^ (BY != MMA ? r & 7 : (r & 3) << 1)) << 4); }

  // The products of the unit at `at`, with the first NA * WN * 8 pairs.
  template <int NA> __device__ __forceinline__ void unit(const char* at) {
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, wm = warp % WM, wn = warp / WM, g = lane >> 2, q = lane & 3;
    if constexpr (BY != MMA) {
      wgmma_begin();
#pragma unroll
      for (u32 p = 0; p < 4; p++) wgmma_bf16<NT>(acc[0][0], at + wm / 4 * 8192, at + BM * 128, p);
      wgmma_commit();
      return;
    }
    const char *w = at + (wm * MT * 16 + g) * 128 + q * 8, *x = at + (BM + wn * 8 + g) * 128 + q * 8;
#pragma unroll
    for (u32 p = 0; p < 4; p++) {
      const u32 col = (p ^ (g & 3)) * 32;
      uint2 xs[NA], lo[MT], hi[MT];
#pragma unroll
      for (int n = 0; n < NA; n++) xs[n] = load8(x + n * WN * 1024 + col);
#pragma unroll
      for (int m = 0; m < MT; m++) lo[m] = load8(w + m * 2048 + col), hi[m] = load8(w + m * 2048 + 1024 + col);
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NA; n++) product(acc[m][n], lo[m], hi[m], xs[n]);
    }
  }

  // Outputs n0 to n_end and the pairs from i0 on, BN of them, of which the first NA * WN * 8 are there.
  template <int NA> __device__ __forceinline__ void sum(const Job& job, u32 n0, u32 n_end, u32 i0, u32 part, bool wait) {
    const u32 begin = part_start(job.k, part), end = SPLIT > 1 ? part_start(job.k, part + 1) : ceil_div(job.k, 64);
    const u32 r = threadIdx.x / 8, col = threadIdx.x % 8;
    char* smem = smem_base();
    const bf16* w = job.w + (u64)weight_row(job, n0, r) * job.k + col * 8;
    const u32 out = weight_output(n0, r), to = place(r, col);
    constexpr u32 OUT_STEP = STEP / 16 * OUTS;
    if (wait) {
      // Only w may be read yet. What copies now would hold up the pairs' rows behind it.
#pragma unroll
      for (u32 j = 0; j < BM / STEP; j++)
        if (col < STAGES && begin + col < end && out + j * OUT_STEP < n_end)
          prefetch_l2(w + (u64)j * OUT_STEP * job.k - col * 8 + (begin + col) * 64);
      pdl_wait();
    }
    pdl_trigger();
    const act_t* x[X_ROWS];
#pragma unroll
    for (u32 j = 0; j < X_ROWS; j++) {
      const u32 i = i0 + r + j * STEP;
      x[j] = i < job.count ? job.row(i) + col * 8 : nullptr;
    }
    u32 ahead = begin, ahead_stage = 0;
    auto load = [&] {
      if (ahead < end) {
        const bool inside = ahead * 64 + col * 8 < job.k;
        char* stage = smem + ahead_stage * STAGE + to;
#pragma unroll
        for (u32 j = 0; j < BM / STEP; j++) {
          const bool valid = inside && out + j * OUT_STEP < n_end;
          cp_async16_if(stage + j * STEP * 128, valid ? w + (u64)j * OUT_STEP * job.k + ahead * 64 : job.w, valid);
        }
#pragma unroll
        for (u32 j = 0; j < X_ROWS; j++) {
          const bool valid = inside && x[j];
          if (BN % STEP == 0 || r + j * STEP < BN) cp_async16_if(stage + (BM + j * STEP) * 128, valid ? x[j] + ahead * 64 : job.x, valid);
        }
        ahead++;
        if (++ahead_stage == STAGES) ahead_stage = 0;
      }
      cp_async_commit();
    };
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) total[m][n][e] = acc[m][n][e] = 0.f;
#pragma unroll 1
    for (int i = 0; i < LEAD; i++) load();
    u32 stage = 0, next_part = part, part_end = begin;
#pragma unroll 1
    for (u32 u = begin; u < end; u++) {
      if (u == part_end) {
        if (u > begin) add_part();
        do part_end = part_start(job.k, ++next_part);
        while (part_end == u);  // a part without units adds 0
      }
      cp_async_wait<LEAD - 1>();
      if constexpr (BY == WGMMA) wgmma_fence();
      __syncthreads();
      load();
      unit<NA>(smem + stage * STAGE);
      if constexpr (BY == WGMMA) wgmma_wait_one();
      if (++stage == STAGES) stage = 0;
    }
    add_part();
    cp_async_wait<0>();
    __syncthreads();
  }

#if GDN_SM90
  // What the four warps do that copy: units to stages that are free.
  DEV void feed(const Job& job, u32 n0, u32 n_end, u32 i0, u32 i_end, u64* full, u64* empty, u64* stored, bool wait) {
    constexpr u32 ROWS = 16, W_STEPS = BM / ROWS, X_STEPS = BN / ROWS;
    static_assert(BN % ROWS == 0, "threads copy whole rows");
    const u32 r = (threadIdx.x - THREADS) / 8, col = threadIdx.x % 8, units = ceil_div(job.k, 64);
    const bf16* first = job.w + (u64)weight_row(job, n0, r) * job.k + col * 8;
    const u32 out = weight_output(n0, r), to = place(r, col);
    if (wait) {
#pragma unroll
      for (u32 j = 0; j < W_STEPS; j++)
        if (col < STAGES && col < units && out + j * OUTS < n_end) prefetch_l2(first + (u64)j * OUTS * job.k + col * 56);
      pdl_wait();
    }
    pdl_trigger();
    u32 stage = 0, phase = 1, blocks = 0;
#pragma unroll 1
    for (; i0 < i_end; i0 += BN, blocks++) {
      if (blocks > 0) mbar_wait(stored, (blocks - 1) & 1);  // outputs lie where units go
      const act_t* x[X_STEPS];
#pragma unroll
      for (u32 j = 0; j < X_STEPS; j++) {
        const u32 i = i0 + r + j * ROWS;
        x[j] = i < i_end ? job.row(i) + col * 8 : nullptr;
      }
      const bf16* w = first;
#pragma unroll 1
      for (u32 u = 0; u < units; u++, w += 64) {
        mbar_wait(empty + stage, phase);
        const bool inside = u * 64 + col * 8 < job.k;
        char* at = smem_base() + stage * STAGE + to;
#pragma unroll
        for (u32 j = 0; j < W_STEPS; j++) {
          const bool valid = inside && out + j * OUTS < n_end;
          cp_async16_if(at + j * ROWS * 128, valid ? w + (u64)j * OUTS * job.k : job.w, valid);
        }
#pragma unroll
        for (u32 j = 0; j < X_STEPS; j++) {
          const bool valid = inside && x[j];
          cp_async16_if(at + (BM + j * ROWS) * 128, valid ? x[j] + u * 64 : job.x, valid);
        }
        cp_async_arrive(full + stage);
        if (++stage == STAGES) stage = 0, phase ^= 1;
      }
    }
    cp_async_commit();
    cp_async_wait<0>();
  }

  // What the others do.
  __device__ __forceinline__ void sum_fed(const Job& job, u32& stage, u32& phase, u64* full, u64* empty) {
    const u32 units = ceil_div(job.k, 64), lane = threadIdx.x & 31;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) total[0][n][e] = acc[0][n][e] = 0.f;
    u32 last = STAGES, next_part = 0, part_end = 0;
#pragma unroll 1
    for (u32 u = 0; u < units; u++) {
      if (u == part_end) {
        if (u > 0) add_part();
        do part_end = part_start(job.k, ++next_part);
        while (part_end == u);
      }
      mbar_wait(full + stage, phase);
      wgmma_fence();
      unit<NT>(smem_base() + stage * STAGE);
      wgmma_wait_one();
      if (last < STAGES) warp_arrive(empty + last, lane);
      last = stage;
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    add_part();
    if (last < STAGES) warp_arrive(empty + last, lane);
    sync_groups<THREADS>();
  }

  DEV void run_fed(const Job& job, u32 n0, u32 n_end, u32 i0, u32 i_end, bool wait) {
    u64 *full = reinterpret_cast<u64*>(smem_base() + STAGES * STAGE), *empty = full + STAGES, *stored = empty + STAGES;
    if (threadIdx.x == 0) {
      for (int s = 0; s < STAGES; s++) mbar_init(full + s, 128), mbar_init(empty + s, WM * WARP_ARRIVALS);
      mbar_init(stored, WM * WARP_ARRIVALS);
      mbar_init_fence();
    }
    __syncthreads();
    if (threadIdx.x >= THREADS) {
      fewer_registers<FEED_REGISTERS>();
      return feed(job, n0, n_end, i0, i_end, full, empty, stored, wait);
    }
    more_registers<SUM_REGISTERS>();
    if (wait) pdl_wait();
    pdl_trigger();
    u32 stage = 0, phase = 0;
#pragma unroll 1
    for (; i0 < i_end; i0 += BN) {
      Tile t;
      t.sum_fed(job, stage, phase, full, empty);
      t.store(job, n0, n_end, i0);
      warp_arrive(stored, threadIdx.x & 31);
    }
  }
#else
  DEV void run_fed(const Job&, u32, u32, u32, u32, bool) {}
#endif

  // With as few products as the pairs that are there want.
  __device__ __forceinline__ void sum_first(const Job& job, u32 n0, u32 n_end, u32 i0, u32 there, u32 rank, bool wait) {
    const u32 used = ceil_div(there < BN ? there : BN, WN * 8);
    if (PARTIAL && BY == MMA && used <= (NT + 3) / 4) sum<(NT + 3) / 4>(job, n0, n_end, i0, rank, wait);
    else if (PARTIAL && BY == MMA && used <= (NT + 1) / 2) sum<(NT + 1) / 2>(job, n0, n_end, i0, rank, wait);
    else sum<NT>(job, n0, n_end, i0, rank, wait);
  }

  __device__ __forceinline__ void sync() {
    if constexpr (BY == FED) sync_groups<THREADS>();
    else __syncthreads();
  }

  __device__ __forceinline__ void store(const Job& job, u32 n0, u32 n_end, u32 i0) {
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, wm = warp % WM, wn = warp / WM, g = lane >> 2, q = lane & 3;
    char* smem = smem_base();
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        out_t* y = reinterpret_cast<out_t*>(smem + ((n * WN + wn) * 8 + q * 2 + j) * PITCH) + wm * MT * OUTS + g;
#pragma unroll
        for (int m = 0; m < MT; m++) {
          const float lo = total[m][n][j], hi = total[m][n][2 + j];
          y[m * OUTS] = Num<out_t>::of(SWIGLU ? silu(lo) * hi : lo);
          if (!SWIGLU) y[m * OUTS + 8] = Num<out_t>::of(hi);
        }
      }
    sync();
    constexpr u32 V = 16 / sizeof(out_t), PER_ROW = OUTPUTS / V;
    const bool aligned = ((u64)job.y | (u64)job.y_stride * sizeof(out_t)) % 16 == 0;
#pragma unroll 1
    for (u32 f = threadIdx.x; f < BN * PER_ROW; f += THREADS) {
      const u32 i = i0 + f / PER_ROW, n = n0 + f % PER_ROW * V;
      if (i >= job.count || n >= n_end) continue;
      const out_t* from = reinterpret_cast<const out_t*>(smem + f / PER_ROW * PITCH) + f % PER_ROW * V;
      out_t* y = job.y + (i64)job.pair(i) * job.y_stride + n;
      if (aligned && n + V <= n_end) *reinterpret_cast<uint4*>(y) = *reinterpret_cast<const uint4*>(from);
      else for (u32 e = 0; e < V && n + e < n_end; e++) y[e] = from[e];
    }
  }

  // Sums the parts that lie in the shared memory of the cluster, a quarter of them in each CTA.
  __device__ __forceinline__ void store_split(const Job& job, u32 n0, u32 n_end, u32 i0, u32 rank) {
#if GDN_SM90
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float4* sums = reinterpret_cast<float4*>(smem_base());
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < NT; n++) {
        const float* a = total[m][n];
        sums[((warp * MT + m) * NT + n) * 32 + lane] = float4{a[0], a[1], a[2], a[3]};
      }
    cluster_sync();
    constexpr u32 QUARTER = WM * WN * MT * NT * 32 / PARTS;
    for (u32 f = rank * QUARTER + threadIdx.x; f < (rank + 1) * QUARTER; f += THREADS) {
      float4 v = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (u32 s = 0; s < PARTS; s++) {
        const float4 a = peer_load(sums + f, s);
        v.x += a.x; v.y += a.y; v.z += a.z; v.w += a.w;
      }
      const u32 w = f / (MT * NT * 32), m = f / (NT * 32) % MT, n = f / 32 % NT;
      emit(job, n0 + (w % WM * MT + m) * OUTS + (f & 31) / 4, n_end, i0 + (n * WN + w / WM) * 8 + (f & 3) * 2, v);
    }
    cluster_sync();  // others may read this CTA's sums still
#endif
  }

  // Outputs n0 to n_end, OUTPUTS at most, of the pairs from i0 to i_end.
  DEV void run(const Job& job, u32 n0, u32 n_end, u32 i0, u32 i_end, u32 rank, bool wait) {
    if constexpr (BY == FED) {
      run_fed(job, n0, n_end, i0, i_end, wait);
    } else {
#pragma unroll 1
      for (u32 i = i0; i < i_end; i += BN) {
        if (i > i0) __syncthreads();
        Tile t;
        t.sum_first(job, n0, n_end, i, i_end - i, rank, wait && i == i0);
        if (SPLIT > 1) t.store_split(job, n0, n_end, i, rank);
        else t.store(job, n0, n_end, i);
      }
    }
  }
};

// ---- f32: plain sums, a warp an output ----
// A CTA of 4 warps, 8 pairs at a time. Lane l adds up elements 4l of every 128, lanes are added as a tree.
template <class T> DEV float dot4(const T* x, const float* w, float sum) {
  float v[4];
  Quad<T>::load(x).get(v);
#pragma unroll
  for (int e = 0; e < 4; e++) sum = fmaf(v[e], w[e], sum);
  return sum;
}
DEV void plain(const Job& job, u32 n, bool wait) {
  const u32 lane = threadIdx.x & 31;
  if (wait) pdl_wait();
  pdl_trigger();
  if (n >= job.outputs) return;
  for (u32 i0 = 0; i0 < job.count; i0 += 8) {
    float sums[8][2] = {};
    const act_t* x[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) x[i] = job.row(i0 + i < job.count ? i0 + i : i0);
    for (u32 k = lane * 4; k < job.k; k += 128) {
      float w[2][4];
#pragma unroll
      for (u32 r = 0; r < 1 + SWIGLU; r++) Quad<bf16>::load(job.w + (u64)(n + r * job.outputs) * job.k + k).get(w[r]);
#pragma unroll
      for (u32 i = 0; i < 8; i++)
#pragma unroll
        for (u32 r = 0; r < 1 + SWIGLU; r++) sums[i][r] = dot4(x[i] + k, w[r], sums[i][r]);
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
#pragma unroll
      for (u32 r = 0; r < 1 + SWIGLU; r++)
#pragma unroll
        for (int m = 16; m > 0; m /= 2) sums[i][r] += __shfl_xor_sync(FULL, sums[i][r], m);
      if (lane == i && i0 + i < job.count) job.y[(i64)job.pair(i0 + i) * job.y_stride + n] = Num<out_t>::of(SWIGLU ? silu(sums[i][0]) * sums[i][1] : sums[i][0]);
    }
  }
}
