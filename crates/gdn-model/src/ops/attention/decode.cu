// Decode: rows of one token each. An item is a split of a (row, kv head); CTAs take items in turn,
// so that the launch has one shape whatever the contexts are. What one split gives goes straight to
// `out`, and else to `partials`, which the CTA that comes last of its (row, kv head) folds. Where
// those don't suffice an item is a whole (row, kv head), with the same bits.
//
// Four warps a page share its work by columns: each has the scores of 16 keys, and then HEAD_DIM /
// WARPS columns of values. A step takes PAGES pages, first their keys and then their values; each
// of these halves lies in one of STAGES buffers, and the next ones are under way.
//
// Positions, sequences and pages are not those of the kernel right before this one.
#include "tensor.cuh"

constexpr int WARPS = 4 * PAGES, THREADS = 32 * WARPS;
constexpr int STEPS = HEAD_DIM / 16;          // of a sum over a head's dims
constexpr int TILES = HEAD_DIM / 8 / WARPS;   // of 8 columns, of a warp
constexpr int HALF = PAGES * PAGE;
constexpr int PARTIAL = (RATIO * (HEAD_DIM + 2) + 3) / 4 * 4;
static_assert(sizeof(act_t) == 2 && TILES % 2 == 0, "pairs of tiles are loaded at once");
static_assert(SPLIT % PAGES == 0 && STAGES >= 3, "q waits in the last buffer");

struct Shared {
  char halves[STAGES][HALF];
  char shares[PAGES][16 * BLOCK * 2];
  float peaks[16][WARPS];
  u32 counts[WARPS];
  u32 row, split, splits;
  bool last;
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "cuda.rs has another size");

DEV u32 splits_of(const Params& p, u32 row) {
  return p.sequences[row] < 0 ? 1 : p.positions[row] / (SPLIT * BLOCK) + 1;
}

// What a thread knows of the splits of all rows: those before its own rows, and the sum.
struct Census {
  u32 from, to;  // its rows
  u32 before, own, total;
};

DEV Census census(const Params& p, Shared& sh) {
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, each = (p.rows + THREADS - 1) / THREADS;
  Census c = {};
  c.from = least(threadIdx.x * each, p.rows);
  c.to = least(c.from + each, p.rows);
  for (u32 row = c.from; row < c.to; row++) c.own += splits_of(p, row);
  u32 sum = c.own;
#pragma unroll
  for (u32 n = 1; n < 32; n *= 2) {
    const u32 other = __shfl_xor_sync(FULL, sum, n);
    if (lane & n) c.before += other;
    sum += other;
  }
  if (lane == 0) sh.counts[warp] = sum;
  __syncthreads();
#pragma unroll
  for (u32 w = 0; w < WARPS; w++) {
    if (w < warp) c.before += sh.counts[w];
    c.total += sh.counts[w];
  }
  return c;
}

// Folds all splits of a (row, kv head), which lie `pitch` floats apart.
DEV void fold_partials(const Params& p, const float* partial, u64 pitch, u32 splits, u32 row, u32 kv_head) {
  for (int i = threadIdx.x; i < RATIO * HEAD_DIM / 4; i += THREADS) {
    const u32 head = i / (HEAD_DIM / 4), column = i % (HEAD_DIM / 4) * 4;
    const float* at = partial + head * HEAD_DIM + column;
    const float* ml = partial + RATIO * HEAD_DIM + head * 2;
    float m = load_fresh(ml), l = load_fresh(ml + 1);
    float4 o = load_fresh4(at);
#pragma unroll 8
    for (u32 s = 1; s < splits; s++) {
      const float4 add = load_fresh4(at + s * pitch);
      const Fold f = fold(m, l, load_fresh(ml + s * pitch), load_fresh(ml + s * pitch + 1));
      o.x = folded(f, o.x, add.x); o.y = folded(f, o.y, add.y);
      o.z = folded(f, o.z, add.z); o.w = folded(f, o.w, add.w);
    }
    const float inverse = 1.f / l;
    const u32 h = kv_head * RATIO + head;
    store_gated(p, row, h, column, load_gates(p, row, h, column), inverse, o.x, o.y);
    store_gated(p, row, h, column + 2, load_gates(p, row, h, column + 2), inverse, o.z, o.w);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, PAGES == 1 ? 2 : 1) gdn_attention_decode(const __grid_constant__ Params p) {
  Shared& sh = *reinterpret_cast<Shared*>(smem_base());
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, page = warp >> 2;
  const Census c = census(p, sh);
  const bool by_split = c.total * (u64)p.kv_heads <= p.max_items;
  const u32 items = (by_split ? c.total : p.rows) * p.kv_heads;
  pdl_wait();
  pdl_trigger();

  for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
    const u32 unit = item / p.kv_heads, kv_head = item % p.kv_heads;
    __syncthreads();  // all are done with the item before
    if (by_split) {
      if (c.before <= unit && unit < c.before + c.own) {
        u32 row = c.from, split = unit - c.before;
        for (; split >= splits_of(p, row); row++) split -= splits_of(p, row);
        sh.row = row; sh.split = split; sh.splits = splits_of(p, row);
      }
    } else if (threadIdx.x == 0) {
      sh.row = unit; sh.split = 0; sh.splits = splits_of(p, unit);
    }
    __syncthreads();
    const u32 row = sh.row, split = sh.split, splits = sh.splits;
    const i32 sequence = p.sequences[row], position = p.positions[row];
    if (sequence < 0) {
      u32* out = reinterpret_cast<u32*>(p.out + out_at(p, row, kv_head * RATIO));
      for (int i = threadIdx.x; i < RATIO * HEAD_DIM / 2; i += THREADS) out[i] = 0;
      continue;
    }
    const bool alone = by_split && splits > 1;  // one split of several
    const int first = split * SPLIT, last = alone ? least(first + SPLIT - 1, position / BLOCK) : position / BLOCK;
    const int steps = (last - first) / PAGES + 1;

    char* q_tile = sh.halves[STAGES - 1];
    for (int i = threadIdx.x; i < 16 * CHUNKS; i += THREADS) {
      const int head = i / CHUNKS, chunk = i % CHUNKS;
      const act_t* from = p.q + out_at(p, row, kv_head * RATIO + (head < RATIO ? head : 0)) + chunk * 8;
      cp_async16_if(q_tile + chunk_at(head, chunk, CHUNKS), from, head < RATIO);
    }
    cp_async_commit();

    const i32* table = p.pages + (u64)sequence * p.max_pages + first;
    u32 ids[PAGES], next[PAGES];
    auto look_up = [&](int step) {
#pragma unroll
      for (int g = 0; g < PAGES; g++) next[g] = first + step * PAGES + g <= last ? table[step * PAGES + g] : 0;
    };
    look_up(0);
    // Halves in order: keys of step 0, its values, keys of step 1 ...
    auto start = [&](int half) {
      const int step = half / 2;
      if (step < steps) {
        if (half % 2 == 0) {
#pragma unroll
          for (int g = 0; g < PAGES; g++) ids[g] = next[g];
          look_up(step + 1);
        }
#pragma unroll
        for (int g = 0; g < PAGES; g++) {
          const int block = first + step * PAGES + g;
          if (block <= last)
            copy_page<THREADS>(sh.halves[half % STAGES] + g * PAGE, half % 2 ? p.values : p.keys, p, ids[g], kv_head, position - block * BLOCK + 1);
        }
      }
      cp_async_commit();
    };
#pragma unroll
    for (int half = 0; half < STAGES - 1; half++) start(half);

    cp_async_wait<STAGES - 1>();
    __syncthreads();
    u32 q[STEPS][4];
#pragma unroll
    for (int k = 0; k < STEPS; k++) load_left(q[k], q_tile, 0, k, CHUNKS);

    // A lane's heads and its first column.
    const u32 heads[2] = {lane / 4, lane / 4 + 8}, column = warp * TILES * 8 + lane % 4 * 2;
    u32 gates[2][TILES];
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
      for (int j = 0; j < TILES; j++)
        gates[r][j] = alone || heads[r] >= RATIO ? 0 : load_gates(p, row, kv_head * RATIO + heads[r], column + j * 8);
    float o[TILES][4] = {}, sum[4] = {}, m[2] = {NEVER, NEVER};
    float all[TILES][4], all_m[2], all_l[2];
    for (int step = 0; step < steps; step++) {
      const int block = first + step * PAGES;
      cp_async_wait<STAGES - 2>();
      __syncthreads();  // the keys are there, and all are done with the values before
      start(2 * step + STAGES - 1);
      float s[2][4] = {};
      const bool here = block + (int)page <= last;
      if (here) {
        const char* keys = sh.halves[2 * step % STAGES] + page * PAGE;
#pragma unroll
        for (int k = 0; k < STEPS; k++) add_scores(s, q[k], keys, warp % 4 * 16, k);
      }
      const int seen = here ? position - (block + page) * BLOCK + 1 : 0;
#pragma unroll
      for (int j = 0; j < 2; j++)
#pragma unroll
        for (int n = 0; n < 4; n++)
          if ((int)(warp % 4 * 16 + j * 8 + lane % 4 * 2 + n % 2) >= seen) s[j][n] = NEVER;
      float peak[2], shrink[PAGES][2], base[2];
      row_peaks<2>(peak, s);
      if (lane % 4 == 0) {
        sh.peaks[heads[0]][warp] = peak[0];
        sh.peaks[heads[1]][warp] = peak[1];
      }
      __syncthreads();
#pragma unroll
      for (int g = 0; g < PAGES; g++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const float* of = sh.peaks[heads[r]] + g * 4;
          shrink[g][r] = raise(m[r], fmaxf(fmaxf(of[0], of[1]), fmaxf(of[2], of[3])) * p.scale);
          if (g == (int)page) base[r] = m[r];
        }
#pragma unroll
      for (int j = 0; j < 2; j++)
#pragma unroll
        for (int r = 0; r < 2; r++)
          *reinterpret_cast<u32*>(sh.shares[page] + chunk_at(heads[r], warp % 4 * 2 + j, 8) + lane % 4 * 4) =
              pack_bf16(share(s[j][2 * r], p.scale, base[r]), share(s[j][2 * r + 1], p.scale, base[r]));

      cp_async_wait<STAGES - 2>();
      __syncthreads();  // the values are there, and the shares
      start(2 * step + STAGES);
#pragma unroll
      for (int g = 0; g < PAGES; g++) {
        if (block + g > last) break;
        const char* values = sh.halves[(2 * step + 1) % STAGES] + g * PAGE;
        shrink_rows<TILES>(o, shrink[g]);
        shrink_rows<1>(&sum, shrink[g]);
#pragma unroll
        for (int k = 0; k < BLOCK / 16; k++) {
          u32 a[4];
          load_left(a, sh.shares[g], 0, k, 8);
          add_sum(sum, a);
#pragma unroll
          for (int j = 0; j < TILES; j += 2) add_values(o + j, a, values, k, warp * TILES + j);
        }
      }
      if (alone || (block % SPLIT + PAGES != SPLIT && step != steps - 1)) continue;
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const bool only = block < SPLIT;
        if (only) { all_m[r] = m[r]; all_l[r] = sum[2 * r]; }
        const Fold f = only ? Fold{} : fold(all_m[r], all_l[r], m[r], sum[2 * r]);
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
          for (int n = 2 * r; n < 2 * r + 2; n++) {
            all[j][n] = only ? o[j][n] : folded(f, all[j][n], o[j][n]);
            o[j][n] = 0.f;
          }
        m[r] = NEVER;
        sum[2 * r] = sum[2 * r + 1] = 0.f;
      }
    }

    if (!alone) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        if (heads[r] >= RATIO) continue;
        const float inverse = 1.f / all_l[r];
        const u32 head = kv_head * RATIO + heads[r];
#pragma unroll
        for (int j = 0; j < TILES; j++)
          store_gated(p, row, head, column + j * 8, gates[r][j], inverse, all[j][2 * r], all[j][2 * r + 1]);
      }
      continue;
    }
    float* partial = p.partials + (u64)item * PARTIAL;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      if (heads[r] >= RATIO) continue;
#pragma unroll
      for (int j = 0; j < TILES; j++)
        *reinterpret_cast<float2*>(partial + heads[r] * HEAD_DIM + column + j * 8) = make_float2(o[j][2 * r], o[j][2 * r + 1]);
      if (warp == 0 && lane % 4 == 0)
        *reinterpret_cast<float2*>(partial + RATIO * HEAD_DIM + heads[r] * 2) = make_float2(m[r], sum[2 * r]);
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      u32* counter = p.counters + row * p.kv_heads + kv_head;
      sh.last = atomicAdd(counter, 1u) == splits - 1;
      if (sh.last) *counter = 0;
      __threadfence();
    }
    __syncthreads();
    if (sh.last) fold_partials(p, p.partials + (u64)(item - split * p.kv_heads) * PARTIAL, (u64)p.kv_heads * PARTIAL, splits, row, kv_head);
  }
}
