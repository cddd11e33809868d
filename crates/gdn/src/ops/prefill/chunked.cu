// Whole sequences in chunks of 64 tokens, as matrix products on tensor cores. K = V = 128.
//   gdn_chunk_conv     the conv, and the norms of q and k
//   gdn_chunk_prepare  of each chunk and value head what does not depend on the state
//   gdn_chunk_state    the state of each (sequence, value head) from chunk to chunk, and the outputs;
//                      the ring, which the conv is done with
// notes.md has the formulas.
#include "core.cuh"
#include "pieces.cuh"
#ifndef WARPS
#define WARPS 4
#endif
#ifndef STAGES
#define STAGES 1
#endif
#ifndef SPLIT
#define SPLIT 1
#endif

// Normalised q and k: eleven bits, as tf32 has them, where those are enough.
template <bool> struct QkType { typedef f32 type; };
template <> struct QkType<false> { typedef f16 type; };
typedef QkType<EXACT>::type qk_t;

constexpr int CHUNK = 64, STRIP = 4;  // short strips: a piece of a prompt waits for one
constexpr int QK = K_DIM + 8, SQUARE = CHUNK + 8, VS = 16 * WARPS + 4;  // row strides in shared memory, free of conflicts

// Tokens [t0, t0 + n) of a sequence.
struct Chunk { u32 seq; i64 slot, t0; u32 n; };
DEV Chunk chunk_of(const GdnChunks& c, const GdnSlots& s, u32 chunk) {
  Chunk r;
  r.seq = c.seq[chunk];
  r.slot = slot_of(s, r.seq);
  r.t0 = c.cu[r.seq] + (i64)(chunk - c.first[r.seq]) * CHUNK;
  const i64 left = c.cu[r.seq + 1] - r.t0;
  r.n = left < CHUNK ? (u32)left : CHUNK;
  return r;
}

// Rows [0, 64) of COLS columns, zeros from row n on; thread i of so many. Not unrolled: addresses
// would fill the registers.
template <int COLS, int THREADS, class T> DEV void copy_rows(T* to, int stride, const T* from, i64 from_stride, u32 n, int i) {
  constexpr int PER = 16 / Num<T>::BYTES, PIECES = COLS / PER, STEP = THREADS / PIECES;
  static_assert(STEP * PIECES == THREADS, "a thread keeps its columns");
  from += i % PIECES * PER;
  to += i % PIECES * PER;
#pragma unroll 1
  for (u32 row = i / PIECES; row < CHUNK; row += STEP) cp_async16_if(to + row * stride, from + (row < n ? row : 0) * from_stride, row < n);
}

#if WANT & 4
// Grid: (ceil((2h + hv) / 8), y, z), y * z >= 4 * chunks; 256 threads: a warp has a strip of a head.
extern "C" __global__ void __launch_bounds__(256) gdn_chunk_conv(const __grid_constant__ ChunkConvParams f) {
  static_assert(K_DIM == 128 && V_DIM == 128, "a lane has four channels");
  const ConvParams& p = f.c;
  pdl_wait();
  pdl_trigger();
  const u32 strip = grid_row(), head = blockIdx.x * 8 + threadIdx.x / 32, ch = head * 128 + threadIdx.x % 32 * 4;
  const i64 c = 128ll * (2 * p.h + p.hv);
  if (strip >= f.chunks.count * (CHUNK / STRIP) || head >= 2 * p.h + p.hv) return;
  const Chunk chunk = chunk_of(f.chunks, p.s, strip / (CHUNK / STRIP));
  const u32 from = strip % (CHUNK / STRIP) * STRIP;
  if (chunk.slot < 0 || from >= chunk.n) return;
  const i64 t0 = chunk.t0 + from;
  const u32 before = (u32)(t0 - f.chunks.cu[chunk.seq]), left = chunk.n - from, n = left < STRIP ? left : STRIP;
  const act_t* x = reinterpret_cast<const act_t*>(p.x) + t0 * p.x_stride + ch;
  const act_t* ring = reinterpret_cast<const act_t*>(p.r.ring) + chunk.slot * p.r.pitch + ch;
  const u32 phase = p.r.phase[chunk.slot * p.hv] % CONV_W;
  Quad<act_t> tap[STRIP + CONV_W - 1];
#pragma unroll
  for (u32 i = 0; i < STRIP + CONV_W - 1; i++) {
    const u32 back = CONV_W - 1 - i;  // tokens before the strip, if i < CONV_W - 1
    const act_t* at = x;
    if (i >= CONV_W - 1) at += (i64)(i - (CONV_W - 1) < n ? i - (CONV_W - 1) : 0) * p.x_stride;
    else if (back <= before) at -= (i64)back * p.x_stride;
    else at = ring + (phase + CONV_W - (back - before)) % CONV_W * c;
    tap[i] = Quad<act_t>::load(at);
  }
  const float zero[4] = {0.f, 0.f, 0.f, 0.f};
  const Quad<f32> bias = p.r.bias ? Quad<f32>::load(p.r.bias + ch) : Quad<f32>::of(zero);
  float w[CONV_W][4];
#pragma unroll
  for (u32 i = 0; i < CONV_W; i++) Quad<f32>::load(p.r.weight + i * c + ch).get(w[i]);
#pragma unroll
  for (u32 t = 0; t < STRIP; t++) {
    if (t >= n) break;
    float y[4], e[4];
    bias.get(y);
#pragma unroll
    for (u32 i = 0; i < CONV_W; i++) {
      tap[t + i].get(e);
#pragma unroll
      for (int m = 0; m < 4; m++) y[m] = fmaf(w[i][m], e[m], y[m]);
    }
#pragma unroll
    for (int m = 0; m < 4; m++) y[m] = silu(y[m]);
    if (head >= 2 * p.h) {
      Quad<f32>::of(y).store(f.chunks.v + (t0 + t) * p.hv * 128 + (ch - p.h * 256));
      continue;
    }
    if (p.s.flags & GDN_L2NORM) {
      const float factor = rsqrtf(warp_sum(fmaf(y[0], y[0], fmaf(y[1], y[1], fmaf(y[2], y[2], y[3] * y[3])))) + 1e-6f);
#pragma unroll
      for (int m = 0; m < 4; m++) y[m] *= factor;
    }
    Quad<qk_t>::of(y).store(reinterpret_cast<qk_t*>(f.chunks.qk) + (t0 + t) * p.h * 256 + ch);
  }
}

constexpr int TS = CHUNK + 1;  // row stride of what single lanes read
// A right operand of gdn_chunk_state's.
DEV float kept(float x) { return EXACT ? x : bits_f(tf32(x)); }

// Grid: (h * groups, y, z), y * z >= chunks; 128 threads. Dynamic shared memory: q and k, [64, QK]
// each, whose place the squares take later, 4 * 64 floats and the decays, [64, TS].
extern "C" __global__ void __launch_bounds__(128) gdn_chunk_prepare(const __grid_constant__ ChunkParams f) {
  const PackedParams& p = f.p;
  const u32 index = grid_row();
  const Chunk chunk = index < f.chunks.count ? chunk_of(f.chunks, p.s, index) : Chunk{0, -1, 0, 0};
  if (chunk.slot < 0) return pdl_wait();
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
  const u32 h = blockIdx.x / f.groups, group = blockIdx.x % f.groups, ratio = p.hv / p.h;
  qk_t *k = reinterpret_cast<qk_t*>(smem_base()), *q = k + CHUNK * QK;
  float *a = reinterpret_cast<float*>(k), *inv = reinterpret_cast<float*>(q), *small = reinterpret_cast<float*>(q + CHUNK * QK);
  float *gate = small, *beta = small + CHUNK, *cum = small + 2 * CHUNK, *last = small + 3 * CHUNK, *decay = small + 4 * CHUNK;
  auto value_head = [&](u32 r) { return (p.s.flags & GDN_TILED) ? r * p.h + h : h * ratio + r; };
  // The decay of row i since row j: sums from j on, as differences of sums cancel.
  auto decays = [&](u32 hv) {
    if (tid < CHUNK) {
      const i64 at = chunk.t0 + tid;
      const bool real = tid < chunk.n;
      gate[tid] = real ? gate_log(to_f(reinterpret_cast<const act_t*>(p.a)[at * p.a_stride + hv]), p.neg_exp_a[hv], p.dt_bias[hv]) : 0.f;
      beta[tid] = real ? gate_beta(to_f(reinterpret_cast<const act_t*>(p.bb)[at * p.b_stride + hv]), p.s.flags) : 0.f;
    }
    __syncthreads();
    const int j = tid & (CHUNK - 1), from = tid / CHUNK * (CHUNK / 2);
    float sum = 0.f;
    for (int i = j + 1; i < from; i++) sum += gate[i];
    const float first = expf(gate[0]);
    for (int i = from; i < from + CHUNK / 2; i++) {
      if (i > j) sum += gate[i];
      const float d = i < j ? 0.f : expf(sum);
      decay[i * TS + j] = d;
      if (j == 0) cum[i] = first * d;
      if (i == CHUNK - 1) last[j] = d;
    }
  };
  // The kernel before, gdn_chunk_conv, writes no gates.
  decays(value_head(group));
  pdl_wait();
  pdl_trigger();
  const i64 stride = 2ll * p.h * K_DIM;
  const qk_t* x = reinterpret_cast<const qk_t*>(f.chunks.qk) + chunk.t0 * stride + h * K_DIM;
  copy_rows<K_DIM, 128>(q, QK, x, stride, chunk.n, tid);
  copy_rows<K_DIM, 128>(k, QK, x + (i64)p.h * K_DIM, stride, chunk.n, tid);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  // Rows [16 * warp, 16 * warp + 16) of k k' and q k', up to the diagonal.
  const int top = 16 * warp, tiles = 2 * warp + 2;
  float kk[8][4] = {}, qk[8][4] = {};
#pragma unroll
  for (int i = 0; i < K_DIM; i += 32) {
    Four<qk_t> k0, k1, q0, q1, b;
    k0.load(k + top * QK + i, QK, lane); k1.load(k + (top + 8) * QK + i, QK, lane);
    q0.load(q + top * QK + i, QK, lane); q1.load(q + (top + 8) * QK + i, QK, lane);
    Left kl[4], ql[4];
#pragma unroll
    for (int m = 0; m < 4; m++) {
      kl[m].set(k0.get(m).x, k0.get(m).y, k1.get(m).x, k1.get(m).y);
      ql[m].set(q0.get(m).x, q0.get(m).y, q1.get(m).x, q1.get(m).y);
    }
#pragma unroll
    for (int n = 0; n < 8; n++) {
      if (n < tiles) {
        b.load(k + 8 * n * QK + i, QK, lane);
#pragma unroll
        for (int m = 0; m < 4; m++) { mul(kk[n], kl[m], b.get(m)); mul(qk[n], ql[m], b.get(m)); }
      }
    }
  }
  for (u32 r = group; r < ratio; r += f.groups) {
    const u32 hv = value_head(r);
    float* work = f.work + ((u64)index * p.hv + hv) * GDN_CHUNK_WORK;
    if (r != group) decays(hv);
    __syncthreads();
    if (tid < CHUNK) {
      float* each = work + 2 * CHUNK * CHUNK;
      each[tid] = cum[tid];
      each[CHUNK + tid] = p.scale * cum[tid];
      each[2 * CHUNK + tid] = last[tid];
      each[3 * CHUNK + tid] = cum[CHUNK - 1];
    }
#pragma unroll
    for (int n = 0; n < 8; n++) {
      if (n < tiles) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int i = top + g + 8 * half, j0 = 8 * n + 2 * t;
          float s[2];
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int j = j0 + e;
            const float d = decay[i * TS + j], y = p.scale * d * qk[n][2 * half + e];
            a[i * TS + j] = beta[i] * d * kk[n][2 * half + e];
            s[e] = j > i ? 0.f : kept(y);
          }
          *reinterpret_cast<float2*>(work + CHUNK * CHUNK + i * CHUNK + j0) = make_float2(s[0], s[1]);
        }
      }
    }
    __syncthreads();
    // (1 + a)^-1: pieces of 16 x 16 on the diagonal, then each warp those below its own.
    if (lane < 16) {
      float y[16];
#pragma unroll
      for (int i = 0; i < 16; i++) {
        float s = i == lane ? 1.f : 0.f;
#pragma unroll
        for (int m = 0; m < i; m++) s = fmaf(-a[(top + i) * TS + top + m], y[m], s);
        y[i] = s;
        inv[(top + i) * TS + top + lane] = s;
        work[(top + i) * CHUNK + top + lane] = kept(s * beta[top + lane]);
      }
    }
    __syncthreads();
    // Transposed, so that a product is the next one's left operand: -(sum of y[k]' a[row, k]') y[row]'.
    LeftOf<true> y[3][2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const float* x = inv + (top + 8 * e + 2 * t) * TS + top + g;
      y[0][e].set(x[0], x[TS], x[8], x[TS + 8]);
    }
#pragma unroll
    for (int d = 1; d < 4; d++) {
      const int row = top + 16 * d;
      if (row >= CHUNK) break;
      float m[2][4] = {}, z[2][4] = {};
#pragma unroll
      for (int b = 0; b < d; b++)
#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
          for (int n = 0; n < 2; n++) {
            const float* x = a + (row + 8 * n + g) * TS + top + 16 * b + 8 * e + 2 * t;
            mul(m[n], y[b][e], make_float2(x[0], x[1]));
          }
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const LeftOf<true> l = LeftOf<true>::of(m[e]);
#pragma unroll
        for (int n = 0; n < 2; n++) {
          const float* x = inv + (row + 8 * n + g) * TS + row + 8 * e + 2 * t;
          mul(z[n], l, make_float2(-x[0], -x[1]));
        }
      }
#pragma unroll
      for (int n = 0; n < 2; n++) {
        if (d < 3) y[d][n] = LeftOf<true>::of(z[n]);
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int col = top + g + e / 2 * 8;
          work[(row + 8 * n + 2 * t + e % 2) * CHUNK + col] = kept(z[n][e] * beta[col]);
        }
      }
    }
    __syncthreads();
  }
}
#endif

#if WANT & 8
// What a chunk brings along, STAGES times: for the state, and for the outputs.
struct Inward {
  qk_t k[CHUNK * QK];
  float v[CHUNK * VS], inv[CHUNK * SQUARE], each[4 * CHUNK];
};
struct Outward {
  qk_t q[CHUNK * QK];
  float qk[CHUNK * SQUARE], each[4 * CHUNK];
};
// From those warps that have the state to those that have the outputs: pieces as they lie in lanes.
struct Mail { float4 s[K_DIM / 8][32], u[CHUNK / 8][32]; };
struct Shared {
  Inward in[STAGES];
  Outward out[STAGES];
#if SPLIT > 1
  Mail mail[2][WARPS];
#endif
};

// Who has the outputs has the time to fetch chunks too.
constexpr int FETCHING = WARPS * 32;
DEV void copy_square(float* to, const float* from, int i) {
  const u32 col = i % (CHUNK / 4) * 4;
#pragma unroll 1
  for (u32 row = i / (CHUNK / 4); row < CHUNK; row += FETCHING / (CHUNK / 4))
    if (col <= (row | 7)) cp_async16_if(to + row * SQUARE + col, from + row * CHUNK + col, true);  // the rest nobody reads
}
DEV void copy_each(float* to, const float* from, int i) {
#pragma unroll 1
  for (; i < CHUNK; i += FETCHING) cp_async16_if(to + 4 * i, from + 4 * i, true);
}

// c = a * rows' and, if there are others, d = a * others'; a [16, K] in pieces that `left` has.
template <bool TWO, class F> DEV void times_rows(float (*c)[4], const qk_t* rows, float (*d)[4], const qk_t* others, F left, int lane) {
#pragma unroll
  for (int i = 0; i < K_DIM; i += 32) {
    Left l[4];
#pragma unroll
    for (int m = 0; m < 4; m++) l[m] = left(i / 8 + m);
    // Eight sums at a time: one alone would wait for each product.
    constexpr int G = TWO || EXACT ? 4 : 8;
#pragma unroll
    for (int n = 0; n < CHUNK / 8; n += G) {
      Four<qk_t> x[G], y[TWO ? G : 1];
#pragma unroll
      for (int e = 0; e < G; e++) {
        x[e].load(rows + 8 * (n + e) * QK + i, QK, lane);
        if (TWO) y[e].load(others + 8 * (n + e) * QK + i, QK, lane);
      }
#pragma unroll
      for (int m = 0; m < 4; m++)
#pragma unroll
        for (int e = 0; e < G; e++) {
          mul(c[n + e], l[m], x[e].get(m));
          if (TWO) mul(d[n + e], l[m], y[e].get(m));
        }
    }
  }
}
// Row n, column j of a square in pieces of 8 x 8.
DEV float2 piece(const float* square, int n, int j, int lane) {
  return *reinterpret_cast<const float2*>(square + (8 * n + (lane >> 2)) * SQUARE + 8 * j + 2 * (lane & 3));
}
// c += a * b', b lower triangular.
template <class F> DEV void times_lower(float (*c)[4], F left, const float* b, int lane) {
#pragma unroll
  for (int j = 0; j < CHUNK / 8; j++) {
    const Left l = left(j);
#pragma unroll
    for (int n = j; n < CHUNK / 8; n++) mul(c[n], l, piece(b, n, j, lane));
  }
}
// r = r * b', b lower triangular: from the back, where no other column needs what is replaced.
DEV void times_lower(float (*r)[4], const float* b, int lane) {
  Left l[CHUNK / 8];
#pragma unroll
  for (int j = 0; j < CHUNK / 8; j++) l[j] = Left::of(r[j]);
#pragma unroll
  for (int n = CHUNK / 8 - 4; n >= 0; n -= 4) {
#pragma unroll
    for (int e = 0; e < 4; e++) r[n + e][0] = r[n + e][1] = r[n + e][2] = r[n + e][3] = 0.f;
#pragma unroll
    for (int j = 0; j < n + 4; j++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (j <= n + e) mul(r[n + e], l[j], piece(b, n + e, j, lane));
  }
}

// Grid: (hv * V / (16 * WARPS), y, z), y * z >= sequences. A warp has 16 rows of the state, [V, K]
// throughout: products are [V, tokens], and each is the next one's left operand. With SPLIT 2 as many
// warps more make the outputs of the chunk before.
extern "C" __global__ void __launch_bounds__(WARPS * SPLIT * 32) gdn_chunk_state(const __grid_constant__ ChunkParams f) {
  constexpr int PARTS = V_DIM / (16 * WARPS);
  static_assert(PARTS * 16 * WARPS == V_DIM && K_DIM % 32 == 0 && STAGES >= SPLIT, "tile does not fit");
  const PackedParams& p = f.p;
  const u32 seq = grid_row();
  const bool some = seq < p.s.b;
  const i64 slot = some ? slot_of(p.s, seq) : -1, t0 = some ? f.chunks.cu[seq] : 0, tokens = some ? f.chunks.cu[seq + 1] - t0 : 0;
  // What runs behind this kernel counts on what ran before it.
  if (slot < 0 || tokens <= 0) return pdl_wait();
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 % WARPS, g = lane >> 2, t = lane & 3;
  const bool has_state = SPLIT == 1 || threadIdx.x < WARPS * 32;
  const u32 hv = blockIdx.x / PARTS, h = qk_head(hv, p.h, p.hv, p.s.flags), first = f.chunks.first[seq];
  const int v0 = blockIdx.x % PARTS * 16 * WARPS, v = v0 + 16 * warp + g;
  state_t* st = reinterpret_cast<state_t*>(p.state) + slot * p.state_pitch + ((i64)hv * V_DIM + v) * K_DIM + 2 * t;
  const i64 qk_stride = 2ll * p.h * K_DIM, v_stride = (i64)p.hv * V_DIM;
  float* out = reinterpret_cast<float*>(p.out) + (i64)hv * V_DIM + v;
  const qk_t* q = reinterpret_cast<const qk_t*>(f.chunks.qk) + h * K_DIM;
  Shared& sh = *reinterpret_cast<Shared*>(smem_base());
  const u32 chunks = (u32)((tokens + CHUNK - 1) / CHUNK);
  auto load = [&](u32 c, bool inward) {
    const i64 at = t0 + (i64)c * CHUNK, left = t0 + tokens - at;
    const u32 n = left < CHUNK ? (u32)left : CHUNK;
    const float* work = f.work + ((u64)(first + c) * p.hv + hv) * GDN_CHUNK_WORK;
    const int i = threadIdx.x - (SPLIT - 1) * WARPS * 32;
    if (i < 0) return;
    if (inward) {
      Inward& in = sh.in[c % STAGES];
      copy_rows<K_DIM, FETCHING>(in.k, QK, q + (i64)p.h * K_DIM + at * qk_stride, qk_stride, n, i);
      copy_rows<16 * WARPS, FETCHING>(in.v, VS, f.chunks.v + at * v_stride + (i64)hv * V_DIM + v0, v_stride, n, i);
      copy_square(in.inv, work, i);
      copy_each(in.each, work + 2 * CHUNK * CHUNK, i);
    } else {
      Outward& in = sh.out[c % STAGES];
      copy_rows<K_DIM, FETCHING>(in.q, QK, q + at * qk_stride, qk_stride, n, i);
      copy_square(in.qk, work + CHUNK * CHUNK, i);
      copy_each(in.each, work + 2 * CHUNK * CHUNK, i);
    }
  };
  // The outputs of chunk c, from those of the state before it and from the new values.
  auto outputs = [&](u32 c, float (*o)[4], auto values) {
    const Outward& in = sh.out[c % STAGES];
#pragma unroll
    for (int n = 0; n < CHUNK / 8; n++) {
      const float2 d = *reinterpret_cast<const float2*>(in.each + CHUNK + 8 * n + 2 * t);
      o[n][0] *= d.x; o[n][1] *= d.y; o[n][2] *= d.x; o[n][3] *= d.y;
    }
    times_lower(o, values, in.qk, lane);
    i64 left = tokens - (i64)c * CHUNK - 2 * t;
    float* to = out + (t0 + tokens - left) * v_stride;
#pragma unroll
    for (int n = 0; n < CHUNK / 8; n++, left -= 8, to += 8 * v_stride) {
      if (left > 0) { to[0] = o[n][0]; to[8] = o[n][2]; }
      if (left > 1) { to[v_stride] = o[n][1]; to[v_stride + 8] = o[n][3]; }
    }
  };
  // The kernels before, which are gdn_chunk_prepare and gdn_chunk_conv, write no states.
  float s[K_DIM / 8][4];
  if (has_state)
#pragma unroll
    for (int i = 0; i < K_DIM / 8; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[i][e] = to_f(st[e / 2 * 8 * K_DIM + 8 * i + e % 2]);
  pdl_wait();
  pdl_trigger();
  load(0, true);
  if (SPLIT == 1) load(0, false);
  cp_async_commit();
  const bool moves = blockIdx.x % PARTS == 0;
  u32* phase = f.r.phase + slot * p.hv + hv;
  const u32 ph = *phase;
  if (moves) move_ring(p, f.r, K_DIM, V_DIM, slot, hv, ph, t0, tokens, false);
  for (u32 c = 0; c < chunks + (SPLIT - 1); c++) {
    cp_async_wait<0>();
    __syncthreads();
    // Into what was read before the barrier.
    if (STAGES > 1 && c + 1 < chunks) load(c + 1, true);
    if (SPLIT > 1 ? c < chunks : STAGES > 1 && c + 1 < chunks) load(SPLIT > 1 ? c : c + 1, false);
    cp_async_commit();
    const Inward& in = sh.in[c % STAGES];
    if (has_state && c < chunks) {
      float u[CHUNK / 8][4] = {}, o[CHUNK / 8][4] = {};
      times_rows<SPLIT == 1>(u, in.k, o, sh.out[c % STAGES].q, [&](int i) { return Left::of(s[i]); }, lane);
#pragma unroll
      for (int n = 0; n < CHUNK / 8; n++) {
        const float* x = in.v + (8 * n + 2 * t) * VS + 16 * warp + g;
        const float2 d = *reinterpret_cast<const float2*>(in.each + 8 * n + 2 * t);
        u[n][0] = fmaf(-d.x, u[n][0], x[0]); u[n][1] = fmaf(-d.y, u[n][1], x[VS]);
        u[n][2] = fmaf(-d.x, u[n][2], x[8]); u[n][3] = fmaf(-d.y, u[n][3], x[VS + 8]);
      }
      times_lower(u, in.inv, lane);
#if SPLIT > 1
      Mail& mail = sh.mail[c & 1][warp];
#pragma unroll
      for (int i = 0; i < K_DIM / 8; i++) mail.s[i][lane] = Quad<f32>::of(s[i]).u;
#pragma unroll
      for (int j = 0; j < CHUNK / 8; j++) mail.u[j][lane] = Quad<f32>::of(u[j]).u;
#else
      outputs(c, o, [&](int j) { return Left::of(u[j]); });
#endif
      Left l[CHUNK / 8];
#pragma unroll
      for (int j = 0; j < CHUNK / 8; j++) {
        const float2 x = *reinterpret_cast<const float2*>(in.each + 2 * CHUNK + 8 * j + 2 * t);
        l[j].set(u[j][0] * x.x, u[j][1] * x.y, u[j][2] * x.x, u[j][3] * x.y);
      }
      const float decay = in.each[3 * CHUNK];
      constexpr int G = EXACT ? 4 : 8;
#pragma unroll
      for (int i = 0; i < K_DIM / 8; i += G) {
        // Apart from the state, to which an adder adds it that rounds to the nearest: tensor cores cut off.
        float d[G][4] = {};
#pragma unroll
        for (int j = 0; j < CHUNK / 8; j += 4) {
          Four<qk_t> k[G];
#pragma unroll
          for (int n = 0; n < G; n++) k[n].load_t(in.k + 8 * j * QK + 8 * (i + n), QK, lane);
#pragma unroll
          for (int m = 0; m < 4; m++)
#pragma unroll
            for (int n = 0; n < G; n++) mul(d[n], l[j + m], k[n].get(m));
        }
#pragma unroll
        for (int n = 0; n < G; n++)
#pragma unroll
          for (int e = 0; e < 4; e++) s[i + n][e] = fmaf(decay, s[i + n][e], d[n][e]);
        __syncwarp();  // a compiler that loads ahead of this spills
      }
    }
#if SPLIT > 1
    if (!has_state && c > 0) {
      const Mail& mail = sh.mail[(c - 1) & 1][warp];
      const auto of = [](float4 x) { Left l; l.set(x.x, x.y, x.z, x.w); return l; };
      float o[CHUNK / 8][4] = {};
      times_rows<false>(o, sh.out[(c - 1) % STAGES].q, o, nullptr, [&](int i) { return of(mail.s[i][lane]); }, lane);
      outputs(c - 1, o, [&](int j) { return of(mail.u[j][lane]); });
    }
#endif
    if (STAGES == 1 && c + 1 < chunks) {
      __syncthreads();
      load(c + 1, true);
      load(c + 1, false);
      cp_async_commit();
    }
  }
  if (has_state)
#pragma unroll
    for (int i = 0; i < K_DIM / 8; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) st[e / 2 * 8 * K_DIM + 8 * i + e % 2] = Num<state_t>::of(s[i][e]);
  if (moves && threadIdx.x == 0) *phase = ph + (u32)tokens;
}
#endif
