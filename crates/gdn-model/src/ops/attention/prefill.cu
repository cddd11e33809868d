// Prefill: tiles of rows that follow one another in a sequence. Grid: (kv_heads, tiles). A product's
// row is a (token, head of the group), 16 of them a warp. Keys and values of a page lie in one of
// STAGES buffers each by turns; what a warp has of the splits before lies in local memory, since
// registers hold one split. Positions and pages are not those of the kernel right before this one.
#include "tensor.cuh"

constexpr int ROWS = 16 * WARPS, THREADS = 32 * WARPS;
constexpr int STEPS = HEAD_DIM / 16, TILES = HEAD_DIM / 8;
static_assert(sizeof(act_t) == 2, "tensor cores multiply bf16");

struct Shared {
  char q[ROWS * HEAD_DIM * 2];
  char halves[STAGES][PAGE];
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "cuda.rs has another size");

extern "C" __global__ void __launch_bounds__(THREADS, WARPS == 4 ? 2 : 1) gdn_attention_prefill(const __grid_constant__ Params p) {
  Shared& sh = *reinterpret_cast<Shared*>(smem_base());
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, kv_head = blockIdx.x;
  const Tile tile = p.tiles[blockIdx.y];
  pdl_wait();
  pdl_trigger();
  if (tile.sequence < 0) {
    for (u32 t = 0; t < tile.rows; t++) {
      u32* out = reinterpret_cast<u32*>(p.out + out_at(p, tile.first + t, kv_head * RATIO));
      for (int i = threadIdx.x; i < RATIO * HEAD_DIM / 2; i += THREADS) out[i] = 0;
    }
    return;
  }
  const i32 position = p.positions[tile.first], end = position + (int)tile.rows;
  const int blocks = (end - 1) / BLOCK + 1;

#pragma unroll
  for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
    const int r = i / CHUNKS, chunk = i % CHUNKS, token = r / RATIO;
    const bool wanted = token < (int)tile.rows;
    const act_t* from = p.q + out_at(p, tile.first + (wanted ? token : 0), kv_head * RATIO + r % RATIO) + chunk * 8;
    cp_async16_if(sh.q + chunk_at(r, chunk, CHUNKS), from, wanted);
  }
  // Halves in order: keys of block 0, its values, keys of block 1 ...
  const i32* table = p.pages + (u64)tile.sequence * p.max_pages;
  u32 id = 0, next = table[0];
  auto start = [&](int half) {
    const int block = half / 2;
    if (block < blocks) {
      if (half % 2 == 0) {
        id = next;
        next = block + 1 < blocks ? table[block + 1] : 0;
      }
      copy_page<THREADS>(sh.halves[half % STAGES], half % 2 ? p.values : p.keys, p, id, kv_head, end - block * BLOCK);
    }
    cp_async_commit();
  };
#pragma unroll
  for (int half = 0; half < STAGES - 1; half++) start(half);

  // A lane's rows, and what its warp sees.
  const u32 row = warp * 16 + lane / 4, rows[2] = {row, row + 8};
  const int sees_first = position + (int)(warp * 16 / RATIO), sees_last = least(position + (int)((warp * 16 + 15) / RATIO), end - 1);
  const bool works = sees_first < end;
  float o[TILES][4] = {}, sum[4] = {}, m[2] = {NEVER, NEVER};
  float4 memory[TILES];
  float4* all = in_memory(memory);
  float all_m[2] = {NEVER, NEVER}, all_l[2] = {};
  for (int block = 0; block < blocks; block++) {
    const bool sees = works && block * BLOCK <= sees_last;
    float s[8][4] = {};
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // the keys are there, and all are done with the values before
    start(2 * block + STAGES - 1);
    if (sees) {
      const char* keys = sh.halves[2 * block % STAGES];
#pragma unroll
      for (int k = 0; k < STEPS; k++) {
        u32 a[4];
        load_left(a, sh.q, warp * 16, k, CHUNKS);
#pragma unroll
        for (int j = 0; j < 8; j += 2) add_scores(s + j, a, keys, j * 8, k);
      }
    }
    u32 shares[BLOCK / 16][4];
    if (sees) {
      if (block * BLOCK + BLOCK - 1 > sees_first) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int seen = position + (int)(rows[r] / RATIO) - block * BLOCK + 1;
#pragma unroll
          for (int j = 0; j < 8; j++)
#pragma unroll
            for (int n = 0; n < 2; n++)
              if (j * 8 + (int)(lane % 4) * 2 + n >= seen) s[j][2 * r + n] = NEVER;
        }
      }
      float peak[2], shrink[2];
      row_peaks<8>(peak, s);
#pragma unroll
      for (int r = 0; r < 2; r++) shrink[r] = raise(m[r], peak[r] * p.scale);
      shrink_rows<TILES>(o, shrink);
      shrink_rows<1>(&sum, shrink);
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int r = 0; r < 2; r++)
          shares[j / 2][j % 2 * 2 + r] = pack_bf16(share(s[j][2 * r], p.scale, m[r]), share(s[j][2 * r + 1], p.scale, m[r]));
    }
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // the values are there, and all are done with the keys
    start(2 * block + STAGES);
    if (sees) {
      const char* values = sh.halves[(2 * block + 1) % STAGES];
#pragma unroll
      for (int k = 0; k < BLOCK / 16; k++) {
        add_sum(sum, shares[k]);
#pragma unroll
        for (int j = 0; j < TILES; j += 2) add_values(o + j, shares[k], values, k, j);
      }
    }
    if (block % SPLIT != SPLIT - 1 || block == blocks - 1 || !works) continue;
    // To local memory, for the next split to start anew.
    Fold f[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const bool fresh = block < SPLIT, nothing = m[r] == NEVER;
      if (fresh) { all_m[r] = m[r]; all_l[r] = sum[2 * r]; }
      f[r] = fresh || nothing ? Fold{1.f, 0.f} : fold(all_m[r], all_l[r], m[r], sum[2 * r]);
      m[r] = NEVER;
      sum[2 * r] = sum[2 * r + 1] = 0.f;
    }
#pragma unroll
    for (int j = 0; j < TILES; j++) {
      float4 v = {o[j][0], o[j][1], o[j][2], o[j][3]};
      if (block >= SPLIT) {
        v = all[j];
        v.x = folded(f[0], v.x, o[j][0]); v.y = folded(f[0], v.y, o[j][1]);
        v.z = folded(f[1], v.z, o[j][2]); v.w = folded(f[1], v.w, o[j][3]);
      }
      all[j] = v;
      o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0.f;
    }
  }
  if (!works) return;
  const bool several = blocks > SPLIT;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const u32 token = rows[r] / RATIO, head = kv_head * RATIO + rows[r] % RATIO;
    if (token >= tile.rows) continue;
    const bool nothing = m[r] == NEVER;
    Fold f = {1.f, 0.f};
    float l = sum[2 * r];
    if (several) {
      if (!nothing) f = fold(all_m[r], all_l[r], m[r], l);
      l = all_l[r];
    }
    const float inverse = 1.f / l;
#pragma unroll
    for (int j = 0; j < TILES; j++) {
      const u32 column = j * 8 + lane % 4 * 2;
      float o0 = o[j][2 * r], o1 = o[j][2 * r + 1];
      if (several) {
        const float4 v = all[j];
        o0 = folded(f, r ? v.z : v.x, o0);
        o1 = folded(f, r ? v.w : v.y, o1);
      }
      store_gated(p, tile.first + token, head, column, load_gates(p, tile.first + token, head, column), inverse, o0, o1);
    }
  }
}
