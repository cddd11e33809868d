// out[i] = scale * u(seed, first + i), u in [-1, 1): 16 bits of a hash of seed and a fourth of the
// index, which cpu.rs has too.
// Grid: x alone, as many CTAs of 256 threads as fit; each goes on until the end.
#include "common.cuh"

struct Params {
  bf16* out;  // [n], aligned to 16 bytes
  u64 n;
  u64 seed;
  u64 first;  // a multiple of 4
  float scale;
  u32 pad;
};
static_assert(sizeof(Params) == PARAMS_BYTES, "cuda.rs has another Params");

// splitmix64
DEV u64 hash(u64 seed, u64 block) {
  u64 z = seed + (block + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}

extern "C" __global__ void __launch_bounds__(256) gdn_fill(const __grid_constant__ Params p) {
  pdl_wait();
  pdl_trigger();
  const u64 step = (u64)gridDim.x * 256 * 8;
  for (u64 i = ((u64)blockIdx.x * 256 + threadIdx.x) * 8; i < p.n; i += step) {
    float v[8];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const u64 h = hash(p.seed, (p.first + i) / 4 + half);
#pragma unroll
      for (int n = 0; n < 4; n++)
        v[half * 4 + n] = (float)(int)(short)(h >> 16 * n) * (1.f / 32768) * p.scale;
    }
    if (i + 8 <= p.n) {
      *reinterpret_cast<uint4*>(p.out + i) = Vec<bf16>::pack(v);
    } else {
      for (int n = 0; i + n < p.n; n++) p.out[i + n] = Num<bf16>::of(v[n]);
    }
  }
}
