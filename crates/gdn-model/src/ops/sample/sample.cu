// The next token of each row of logits: see mod.rs. cpu.rs has the same arithmetic.
//
// gdn_sample_scan finds the best token of every chunk of a row: by logit where the highest wins or a
// filter will, else by logit and noise. gdn_sample_pick, a CTA a row, is done then but for filters.
// For these it collects what may pass: the k-th best of the chunks' bests is a bound for the k best
// tokens, so with top_k few chunks are read again. Sums are integers: no order matters.
#include "common.cuh"

struct Params {
  const float* logits;       // [rows, stride]
  const float* temperature;  // [rows] below 1e-5: the highest logit wins. Null: in all rows
  const i32* top_k;          // [rows] 0: all
  const float* top_p;        // [rows] 1: all
  const float* min_p;        // [rows] 0: all
  const u64* seeds;          // [rows]
  const u64* steps;          // [rows] counts a seed's draws
  u64* best;                 // [rows, chunks] scratch
  i32* tokens;               // [rows] out
  u64 stride;                // a multiple of 4
  u32 rows, vocab;
  u32 chunks;                // of CHUNK tokens
  u32 pad;
};
static_assert(sizeof(Params) == PARAMS_BYTES, "cuda.rs has another Params");

constexpr u32 CHUNK = 2048, LIST = 4096, THREADS = 1024;

// Floats as integers of the same order, NaN lowest; below a token's, so that the lower wins of equals.
DEV u32 key_of(float x) {
  const u32 u = f_bits(x + 0.f);  // no -0
  return x != x ? 1 : u >> 31 ? ~u : u | 0x80000000u;
}
DEV u64 key_of(float x, u32 token) { return (u64)key_of(x) << 32 | ~token; }
DEV float logit_of(u64 key) {
  const u32 k = (u32)(key >> 32);
  return bits_f(k == 1 ? 0x7fffffffu : k >> 31 ? k & 0x7fffffffu : ~k);
}
DEV u64 larger(u64 a, u64 b) { return a > b ? a : b; }

// Of positive normal numbers.
DEV float ln(float x) {
  const u32 u = f_bits(x) + 0x004afb0du;
  const float k = (float)((int)(u >> 23) - 127), f = bits_f((u & 0x007fffffu) + 0x3f3504f3u) - 1.f;
  const float s = f / (2.f + f), z = s * s, w = z * z;
  const float r = z * (0.66666662693f + w * 0.28498786688f) + w * (0.40000972152f + w * 0.24279078841f);
  const float h = 0.5f * f * f;
  return s * (h + r) + k * 9.0580006145e-6f - h + f + k * 0.69313812256f;
}

// 2^40 e^z, z <= 0.
DEV u64 weight(float z) {
  if (!(z > -28.f)) return 0;
  const float k = (float)(int)(1.4426950216f * z - 0.5f);
  const float hi = z - k * 0.69314575195f, lo = k * 1.4286067653e-6f, x = hi - lo, xx = x * x;
  const float c = x - xx * (0.16666625440f - xx * 0.0027667332906f);
  const float y = 1.f + (x * c / (2.f - c) - lo + hi);
  return (u64)(y * bits_f((u32)(127 + 40 + (int)k) << 23));
}

// Philox4x32-10: 64 random bits for a token and for the one after it, which is odd.
DEV void random(u64 seed, u64 step, u32 token, u64* bits) {
  u32 a = token / 2, b = (u32)step, c = (u32)(step >> 32), d = 0, k = (u32)seed, l = (u32)(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u32 ah = __umulhi(0xd2511f53u, a), al = 0xd2511f53u * a;
    const u32 ch = __umulhi(0xcd9e8d57u, c), cl = 0xcd9e8d57u * c;
    a = ch ^ b ^ k; b = cl; c = ah ^ d ^ l; d = al;
    k += 0x9e3779b9u; l += 0xbb67ae85u;
  }
  bits[0] = (u64)b << 32 | a; bits[1] = (u64)d << 32 | c;
}
DEV float noise(u64 bits) {
  const float u = (float)(bits | 1) * 5.4210108624275222e-20f, c = 1.f - u;  // 2^-64
  return -ln(c == 1.f ? u : -ln(c) * u / (1.f - c));
}

struct Row {
  const float* logits;
  u64 seed, step;
  float per_t, top_p, min_p;
  u32 top_k;
  bool draw, filter;
};
DEV Row row_of(const Params& p, u32 row) {
  Row r = {};
  r.logits = p.logits + row * p.stride;
  const float t = p.temperature ? p.temperature[row] : 0.f;
  if (!(t >= 1e-5f)) return r;
  r.draw = true;
  r.per_t = 1.f / t;
  r.seed = p.seeds[row]; r.step = p.steps[row];
  r.top_k = p.top_k[row] > 0 && (u32)p.top_k[row] < p.vocab ? p.top_k[row] : 0;
  r.top_p = p.top_p[row]; r.min_p = p.min_p[row];
  r.filter = r.top_k > 0 || r.top_p < 1.f || r.min_p > 0.f;
  return r;
}

// Four logits from an index on, NaN beyond the end.
DEV void load(const float* logits, u32 at, u32 vocab, float* v) {
  if (at + 4 <= vocab) return Quad<f32>::load(logits + at).get(v);
  for (u32 n = 0; n < 4; n++) v[n] = at + n < vocab ? logits[at + n] : bits_f(0x7fffffffu);
}

template <class F> DEV u64 fold(u64 x, u64* scratch, F both) {
#pragma unroll
  for (int n = 16; n > 0; n /= 2) x = both(x, __shfl_xor_sync(FULL, x, n));
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
  __syncthreads();
  x = scratch[0];
  for (u32 w = 1; w < blockDim.x / 32; w++) x = both(x, scratch[w]);
  return x;
}
DEV u64 most(u64 x, u64* scratch) { return fold(x, scratch, larger); }
DEV u64 sum(u64 x, u64* scratch) { return fold(x, scratch, [](u64 a, u64 b) { return a + b; }); }

// CTAs of 256 threads, a chunk each. Grid: x = chunks, y * z >= rows.
extern "C" __global__ void __launch_bounds__(256) gdn_sample_scan(const __grid_constant__ Params p) {
  const u32 row = blockIdx.y + blockIdx.z * gridDim.y;
  if (row >= p.rows) return;
  pdl_wait();
  pdl_trigger();
  const Row r = row_of(p, row);
  float v[2][4];
  u64 best = 0;
#pragma unroll
  for (u32 q = 0; q < 2; q++) load(r.logits, blockIdx.x * CHUNK + (q * 256 + threadIdx.x) * 4, p.vocab, v[q]);
#pragma unroll
  for (u32 q = 0; q < 2; q++) {
    const u32 at = blockIdx.x * CHUNK + (q * 256 + threadIdx.x) * 4;
#pragma unroll
    for (u32 n = 0; n < 4; n += 2) {
      if (r.draw && !r.filter) {
        u64 bits[2];
        random(r.seed, r.step, at + n, bits);
        v[q][n] = v[q][n] * r.per_t + noise(bits[0]);
        v[q][n + 1] = v[q][n + 1] * r.per_t + noise(bits[1]);
      }
      best = larger(best, larger(key_of(v[q][n], at + n), key_of(v[q][n + 1], at + n + 1)));
    }
  }
  best = most(best, reinterpret_cast<u64*>(smem_base()));
  if (threadIdx.x == 0) p.best[(u64)row * p.chunks + blockIdx.x] = best;
}

struct Shared {
  u64 list[LIST], masses[256], scratch[32], rest, kth;
  u32 counts[256], digit, split, n;
};

// The tokens of a row that filters leave.
struct Kept {
  const Params& p;
  const Row& r;
  Shared& s;
  const u64* best;   // [chunks]
  u64 top, low;      // the best key, the least that passes
  float max, least;  // logit of top; of (logit - max) / temperature, what min_p lets pass
  float floor;       // no logit below passes; a quick first test
  u64 light;         // tokens of at most this weight don't pass, where by_weight
  bool by_weight, listed;

  __device__ __forceinline__ float z(u64 key) const { return (logit_of(key) - max) * r.per_t; }
  __device__ __forceinline__ bool pass(u64 key) const {
    return key >= low && z(key) >= least && (!by_weight || weight(z(key)) > light);
  }
  template <class F> __device__ __forceinline__ void each(F f) const {
    if (listed) {
      for (u32 i = threadIdx.x; i < s.n; i += THREADS)
        if (pass(s.list[i])) f(s.list[i]);
      return;
    }
    for (u32 chunk = threadIdx.x / 128; chunk < p.chunks; chunk += THREADS / 128) {
      if (!pass(best[chunk])) continue;
      const u32 at = chunk * CHUNK + threadIdx.x % 128 * 4;
      float v[4][4];
      u32 hits = 0;
#pragma unroll
      for (u32 q = 0; q < 4; q++) load(r.logits, at + q * 512, p.vocab, v[q]);
#pragma unroll
      for (u32 n = 0; n < 16; n++) hits |= (u32)(v[n / 4][n % 4] >= floor) << n;
      for (; hits != 0; hits &= hits - 1) {
        const u32 n = __ffs(hits) - 1, token = at + n / 4 * 512 + n % 4;
        const u64 key = key_of(r.logits[token], token);
        if (pass(key)) f(key);
      }
    }
  }
  // A bound below all logits that z lets pass.
  __device__ __forceinline__ float logit_at(float z) const {
    const float by = z / r.per_t;
    return max + by - 1e-5f * (fabsf(max) + fabsf(by));
  }
  __device__ __forceinline__ void raise_floor(float to) { floor = to > floor ? to : floor; }
  // Collects those who pass, if they fit in; all threads learn their number.
  __device__ __forceinline__ u32 collect() {
    __syncthreads();
    if (threadIdx.x == 0) s.n = 0;
    __syncthreads();
    each([&](u64 key) {
      const u32 at = atomicAdd(&s.n, 1u);
      if (at < LIST) s.list[at] = key;
    });
    __syncthreads();
    listed = s.n <= LIST;
    return s.n;
  }
  __device__ __forceinline__ u32 count() const {
    u64 n = 0;
    each([&](u64) { n++; });
    return (u32)sum(n, s.scratch);
  }
  __device__ __forceinline__ u64 weigh() const {
    u64 mass = 0;
    each([&](u64 key) { mass += weight(z(key)); });
    return sum(mass, s.scratch);
  }
  // Raises low to the highest key such that those from it on are `target` tokens, or weigh as much.
  template <bool WEIGH> __device__ __forceinline__ void raise(u64 target) {
    int shift = 56;
    while (shift > 0 && low >> shift == top >> shift) shift -= 8;
    u64 prefix = shift == 56 ? 0 : top >> (shift + 8) << (shift + 8);
    for (;; shift -= 8) {
      for (u32 i = threadIdx.x; i < 256; i += THREADS) { s.counts[i] = 0; s.masses[i] = 0; }
      __syncthreads();
      each([&](u64 key) {
        if (shift < 56 && key >> (shift + 8) != prefix >> (shift + 8)) return;
        atomicAdd(&s.counts[key >> shift & 255], 1u);
        if (WEIGH) atomicAdd(&s.masses[key >> shift & 255], weight(z(key)));
      });
      __syncthreads();
      if (threadIdx.x < 32) {  // eight digits a lane, the highest first
        const u32 lane = threadIdx.x, first = 255 - 8 * lane;
        const auto mass = [&](u32 d) -> u64 { return WEIGH ? s.masses[d] : (u64)s.counts[d]; };
        u64 own = 0;
        for (u32 d = 0; d < 8; d++) own += mass(first - d);
        u64 to = own;
        for (u32 by = 1; by < 32; by *= 2) {
          const u64 more = __shfl_sync(FULL, to, lane - by);
          if (lane >= by) to += more;
        }
        u64 before = to - own;
        if (before < target && target <= to) {
          u32 d = first;
          while (before + mass(d) < target) before += mass(d--);
          s.digit = d; s.rest = target - before;
          s.split = s.counts[d] > 1 && s.rest < mass(d);  // not all of the digit pass
        }
      }
      __syncthreads();
      prefix |= (u64)s.digit << shift;
      target = s.rest;
      if (!s.split || shift == 0) break;
    }
    low = larger(low, prefix);
    raise_floor(logit_of(low));
  }
  __device__ __forceinline__ void raise_by_mass(float share, u32 n) {
    u64 mass = weigh();
    const u64 part = share > 0.f ? (u64)(share * 4294967296.f) : 0;
    u64 target = (mass >> 32) * part + ((mass & 0xffffffffu) * part >> 32);
    if (target == 0) target = 1;
    // Who has less than the mean of what may go does not count: drop them until the rest fits in.
    for (int round = 0; !listed && round < 8; round++) {
      by_weight = true;
      light = (mass - target) / n;
      if (light > 0) raise_floor(logit_at(ln((float)light * 9.0949470177e-13f)));  // 2^-40
      const u32 left = count();
      if (left <= LIST) { collect(); break; }
      if (left == n) break;
      n = left;
      mass = weigh();
    }
    raise<true>(target);
  }
};

// A CTA of THREADS threads a row. Grid: y * z >= rows.
extern "C" __global__ void __launch_bounds__(1024) gdn_sample_pick(const __grid_constant__ Params p) {
  const u32 row = blockIdx.y + blockIdx.z * gridDim.y;
  if (row >= p.rows) return;
  Shared& s = *reinterpret_cast<Shared*>(smem_base());
  u64* best = reinterpret_cast<u64*>(&s + 1);
  pdl_wait();
  pdl_trigger();
  const Row r = row_of(p, row);
  u64 top = 0;
  for (u32 i = threadIdx.x; i < p.chunks; i += THREADS) {
    best[i] = p.best[(u64)row * p.chunks + i];
    top = larger(top, best[i]);
  }
  top = most(top, s.scratch);
  const float max = logit_of(top);
  const bool finite = (f_bits(max) & 0x7fffffffu) < 0x7f800000u;
  if (r.filter && finite) {
    const float min_p = r.min_p < 1.f ? r.min_p > 1e-30f ? r.min_p : 1e-30f : 1.f;
    const float least = r.min_p > 0.f ? ln(min_p) : bits_f(0xff800000u);
    const u64 low = (u64)0x00800000u << 32;  // above -inf
    Kept kept = {p, r, s, best, top, low, max, least, bits_f(0xff800000u), 0, false, false};
    const bool few = r.top_k > 0 && r.top_k <= p.chunks;
    if (few) {
      for (u32 i = threadIdx.x; i < p.chunks; i += THREADS) {
        u32 above = 0;
        for (u32 n = 0; n < p.chunks; n++) above += best[n] > best[i];
        if (above == r.top_k - 1) s.kth = best[i];
      }
      __syncthreads();
      kept.low = larger(low, s.kth);
      kept.raise_floor(logit_of(kept.low));
    }
    if (r.min_p > 0.f) kept.raise_floor(kept.logit_at(least));
    // At least as many as pass; all alone don't fit into the list.
    u32 n = few || r.min_p > 0.f || p.vocab <= LIST ? kept.collect() : r.top_k > 0 ? kept.count() : p.vocab;
    if (r.top_k > 0 && n > r.top_k) {
      kept.raise<false>(r.top_k);
      n = r.top_k;
      if (!kept.listed && n <= LIST) kept.collect();
    }
    if (r.top_p < 1.f) kept.raise_by_mass(r.top_p, n);
    top = 0;
    kept.each([&](u64 key) {
      u64 bits[2];
      const u32 token = ~(u32)key;
      random(r.seed, r.step, token, bits);
      top = larger(top, key_of(logit_of(key) * r.per_t + noise(bits[token & 1]), token));
    });
    top = most(top, s.scratch);
  }
  if (threadIdx.x == 0) p.tokens[row] = ~(u32)top;
}
