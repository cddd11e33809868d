// Fills or copies the parts of a state slot, those of all layers at once.
// Grid: (any number of CTAs, parts), 256 threads.
#include "common.cuh"

struct Part {
  char* to;
  const char* from;  // or null for zeros
  u64 bytes;         // even
};
struct Params { Part parts[PARTS]; };
static_assert(sizeof(Params) == PARAMS_BYTES, "cuda.rs has another Params");

template <class T> DEV void move(const Part& part, T zero) {
  T* to = reinterpret_cast<T*>(part.to);
  const T* from = reinterpret_cast<const T*>(part.from);
  const u64 n = part.bytes / sizeof(T), step = (u64)gridDim.x * 256;
  for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < n; i += step) to[i] = from ? from[i] : zero;
}

extern "C" __global__ void __launch_bounds__(256) gdn_slots(const __grid_constant__ Params p) {
  pdl_wait();
  pdl_trigger();
  const Part& part = p.parts[blockIdx.y];
  if (((u64)part.to | (u64)part.from | part.bytes) % 16 == 0) move(part, uint4{0, 0, 0, 0});
  else move(part, (u16)0);
}
