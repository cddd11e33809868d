// x = table[tokens], a CTA of 128 threads a row. A token that the table has not gives zeros.
// Grid: y * z >= rows.
#include "common.cuh"

struct Params {
  float* x;            // [rows, HIDDEN]
  const bf16* table;   // [vocab, HIDDEN]
  const i32* tokens;   // [rows]
  u32 rows, vocab;
};
static_assert(sizeof(Params) == PARAMS_BYTES, "cuda.rs has another Params");
static_assert(HIDDEN % 8 == 0, "rows are read by eight");

extern "C" __global__ void __launch_bounds__(128) gdn_embed(const __grid_constant__ Params p) {
  const u32 row = blockIdx.y + blockIdx.z * gridDim.y;
  if (row >= p.rows) return;
  pdl_wait();
  pdl_trigger();
  const u32 token = p.tokens[row];
  const bf16* from = p.table + (u64)token * HIDDEN;
  float* x = p.x + (u64)row * HIDDEN;
#pragma unroll 4
  for (int i = threadIdx.x * 8; i < HIDDEN; i += 128 * 8) {
    float v[8] = {};
    if (token < p.vocab) Vec<bf16>::unpack(*reinterpret_cast<const uint4*>(from + i), v);
    Quad<f32>::of(v).store(x + i);
    Quad<f32>::of(v + 4).store(x + i + 4);
  }
}
