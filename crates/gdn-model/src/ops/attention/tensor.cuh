// The parts of attention on tensor cores, for bf16. In a product a row holds a (token, head), so
// that rows share keys and values; a row of a product knows nothing of the others.
#pragma once
#include "attention.cuh"
#include "mma.cuh"

constexpr int CHUNKS = HEAD_DIM / 8;        // of 16 bytes, in a row of q, keys or values
constexpr int PAGE = BLOCK * HEAD_DIM * 2;  // bytes of a tile of keys or values
static_assert(HEAD_DIM % 64 == 0, "chunks are swizzled by eight");
static_assert(RATIO <= 16, "the heads of a token share 16 rows");

// Where a chunk of a row lies in a tile of `chunks` a row: swizzled, so that eight rows of one
// column lie in different banks.
DEV u32 chunk_at(u32 row, u32 chunk, int chunks) { return row * chunks * 16 + ((chunk ^ (row & 7)) << 4); }

// Starts copying one page of a kv head; zeros from row `seen` on.
template <int THREADS> DEV void copy_page(char* to, const act_t* cache, const Params& p, u32 page, u32 kv_head, int seen) {
  const u64 pitch = (u64)p.kv_heads * HEAD_DIM;
  const act_t* from = cache + (u64)page * BLOCK * pitch + kv_head * HEAD_DIM;
#pragma unroll
  for (int i = threadIdx.x; i < BLOCK * CHUNKS; i += THREADS) {
    const int row = i / CHUNKS, chunk = i % CHUNKS;
    cp_async16_if(to + chunk_at(row, chunk, CHUNKS), from + (row < seen ? row : 0) * pitch + chunk * 8, row < seen);
  }
}

// 16 rows of a row-major tile, 16 columns from chunk 2 * k on, as the left matrix.
DEV void load_left(u32 a[4], const char* tile, u32 row, int k, int chunks) {
  const u32 lane = threadIdx.x & 31;
  ldmatrix_x4(a, tile + chunk_at(row + (lane & 15), 2 * k + (lane >> 4), chunks));
}

// scores of 16 rows and 16 keys += their dims 16 * k and on.
DEV void add_scores(float s[2][4], const u32 a[4], const char* keys, u32 key, int k) {
  const u32 lane = threadIdx.x & 31;
  u32 b[4];
  ldmatrix_x4(b, keys + chunk_at(key + (lane & 7) + (lane >> 4) * 8, 2 * k + (lane >> 3 & 1), CHUNKS));
  mma_bf16(s[0], a, b);
  mma_bf16(s[1], a, b + 2);
}

// 16 columns of values from `chunk` on: o += the shares of 16 keys from 16 * k on * values.
DEV void add_values(float o[2][4], const u32 a[4], const char* values, int k, u32 chunk) {
  const u32 lane = threadIdx.x & 31;
  u32 b[4];
  ldmatrix_x4_trans(b, values + chunk_at(16 * k + (lane & 15), chunk + (lane >> 4), CHUNKS));
  mma_bf16(o[0], a, b);
  mma_bf16(o[1], a, b + 2);
}

// The same for the sum of shares, which all columns of the product are.
DEV void add_sum(float sum[4], const u32 a[4]) {
  const u32 ones[2] = {0x3f803f80u, 0x3f803f80u};
  mma_bf16(sum, a, ones);
}

// The largest score of both rows of a lane, among the columns of its four lanes.
template <int TILES> DEV void row_peaks(float peak[2], const float (*s)[4]) {
  peak[0] = peak[1] = NEVER;
#pragma unroll
  for (int j = 0; j < TILES; j++) {
    peak[0] = fmaxf(peak[0], fmaxf(s[j][0], s[j][1]));
    peak[1] = fmaxf(peak[1], fmaxf(s[j][2], s[j][3]));
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    peak[r] = fmaxf(peak[r], __shfl_xor_sync(FULL, peak[r], 1));
    peak[r] = fmaxf(peak[r], __shfl_xor_sync(FULL, peak[r], 2));
  }
}

template <int TILES> DEV void shrink_rows(float (*o)[4], const float shrink[2]) {
#pragma unroll
  for (int j = 0; j < TILES; j++)
#pragma unroll
    for (int c = 0; c < 4; c++) o[j][c] *= shrink[c / 2];
}

// Two neighbours of a gated row.
DEV void store_gated(const Params& p, u32 row, u32 head, u32 column, u32 gates, float inverse, float o0, float o1) {
  const float g0 = bits_f(gates << 16), g1 = bits_f(gates & 0xffff0000u);
  *reinterpret_cast<u32*>(p.out + out_at(p, row, head) + column) = pack_bf16(gated(o0, inverse, g0), gated(o1, inverse, g1));
}
DEV u32 load_gates(const Params& p, u32 row, u32 head, u32 column) {
  return *reinterpret_cast<const u32*>(gate_at(p, row, head) + column);
}
