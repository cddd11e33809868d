// Matrix products of a warp out of pieces.
//
// An 8x8 or 16x8 piece of a matrix lies over the lanes as mma leaves a product: lane 4g + t has
// columns 2t and 2t + 1 of row g, and of row g + 8. The order of a sum is free, so a product is the
// next one's left operand as it lies: what mma calls columns t and t + 4 are columns 2t and 2t + 1.
#pragma once
#include "mma.cuh"

// One product of tf32 operands is good enough for bf16 activations; others take three of halves.
template <class T> struct Exact { static constexpr bool value = true; };
template <> struct Exact<bf16> { static constexpr bool value = false; };
constexpr bool EXACT = Exact<act_t>::value;

// A left operand, for one product of tf32 operands or for three.
template <bool E> struct LeftOf {
  u32 hi[4], lo[E ? 4 : 1];
  DEV LeftOf of(const float* c) {
    LeftOf l;
    l.set(c[0], c[1], c[2], c[3]);
    return l;
  }
  __device__ __forceinline__ void set(float a, float b, float c, float d) {
    const float x[4] = {a, c, b, d};  // rows g, g + 8 of column 2t, then of 2t + 1
#pragma unroll
    for (int i = 0; i < 4; i++) {
      hi[i] = tf32(x[i]);
      if constexpr (E) lo[i] = tf32(x[i] - bits_f(hi[i]));
    }
  }
};
typedef LeftOf<EXACT> Left;
// b has columns 2t and 2t + 1 of row g of the right operand, transposed; tf32 already if one product does.
template <bool E> DEV void mul(float* c, const LeftOf<E>& a, float2 b) {
  if constexpr (E) {
    const u32 x = tf32(b.x), y = tf32(b.y);
    mma_tf32(c, a.lo, x, y);
    mma_tf32(c, a.hi, tf32(b.x - bits_f(x)), tf32(b.y - bits_f(y)));
    mma_tf32(c, a.hi, x, y);
  } else {
    mma_tf32(c, a.hi, f_bits(b.x), f_bits(b.y));
  }
}

// Four 8x8 pieces in shared memory, kept raw until they are needed. Lane 4g + t has columns 2t and
// 2t + 1 of row g of pieces that lie beside each other, or, transposed, rows 2t and 2t + 1 of column g of
// pieces below each other.
template <class T> struct Four {
  u32 r[4];
  __device__ __forceinline__ void load(const T* at, int stride, int lane) { ldmatrix_x4(r, at + (lane & 7) * stride + (lane >> 3) * 8); }
  __device__ __forceinline__ void load_t(const T* at, int stride, int lane) { ldmatrix_x4_trans(r, at + lane * stride); }
  __device__ __forceinline__ float2 get(int m) const { return make_float2(Num<T>::lo(r[m]), Num<T>::hi(r[m])); }
};
template <> struct Four<f32> {
  float2 r[4];
  __device__ __forceinline__ void load(const f32* at, int stride, int lane) {
#pragma unroll
    for (int m = 0; m < 4; m++) r[m] = *reinterpret_cast<const float2*>(at + (lane >> 2) * stride + 8 * m + 2 * (lane & 3));
  }
  __device__ __forceinline__ void load_t(const f32* at, int stride, int lane) {
#pragma unroll
    for (int m = 0; m < 4; m++) {
      const f32* p = at + (8 * m + 2 * (lane & 3)) * stride + (lane >> 2);
      r[m] = make_float2(p[0], p[stride]);
    }
  }
  __device__ __forceinline__ float2 get(int m) const { return r[m]; }
};
