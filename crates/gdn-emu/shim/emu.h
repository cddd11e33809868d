// Runs one .cu file on the CPU: the compiler is told to include this before it.
//
// Every CUDA thread is a fibre, a stack of its own that runs until it waits: at a barrier, at a
// shuffle, or in gdn_emu_yield. One OS thread runs them all in turn, so nothing is ever torn and
// plain variables do; what a missing barrier leaves to chance is the order, and that is drawn anew
// for every round. The CTAs of a cluster run side by side, clusters one after another.
//
// Shared memory is filled with 0xff, NaN in every float type, and allocated to the byte, so that
// AddressSanitizer sees what is beyond it. Not here: warp-divergent shuffles, static __shared__,
// memory order weaker than the order of the program.
#pragma once
#if !defined(__x86_64__) || !defined(__linux__)
#error "the emulator switches stacks as x86-64 Linux does"
#endif
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#define GDN_EMU 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 { unsigned x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(8) uint2 { unsigned x, y; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

// Saves the callee's registers and the stack pointer, and goes on where `to` was saved.
extern "C" void gdn_emu_switch(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
.text
.globl gdn_emu_switch
.hidden gdn_emu_switch
gdn_emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

// Internal linkage throughout: several of these libraries live in one process.
namespace {
namespace emu {

// What a launch takes; src/launch.rs has the same.
struct Launch {
  unsigned grid[3];
  unsigned block;     // threads of a CTA
  unsigned cluster;   // CTAs of a cluster, along x
  unsigned shared;    // dynamic shared memory of a CTA, bytes
  unsigned schedule;  // 0: threads in order; else the seed of a random order
};
enum Status : int { DONE = 0, DEADLOCK = 1 };

// Every parameter struct is larger than two registers, so it is passed as a copy on the stack, and
// a larger copy does for all of them: a kernel looks at its own part.
struct alignas(8) Params { char bytes[256]; };
typedef void (*Kernel)(Params);

constexpr size_t STACK = 256 * 1024;
constexpr long MAX_ROUNDS = 100000;  // far more than any kernel waits

void yield();

struct Barrier {
  unsigned live = 0, waiting = 0, generation = 0;
  void release() { waiting = 0; generation++; }
  void pass() {
    if (++waiting == live) return release();
    for (const unsigned here = generation; here == generation;) yield();
  }
  void leave() {  // who has returned is waited for no longer
    if (--live > 0 && waiting == live) release();
  }
};
struct Warp {
  Barrier barrier;
  uint64_t lane[2][32];  // what each lane offers, in even and in odd shuffles
};
struct Cta {
  Barrier barrier;
  std::vector<Warp> warps;
  dim3 index;
  char* shared = nullptr;
};
struct Fibre {
  char* stack = nullptr;
  void* sp = nullptr;
  unsigned cta = 0, thread = 0, syncs = 0;
  bool done = false;
};

std::vector<Fibre> fibres;
std::vector<Cta> ctas;
Barrier cluster_barrier;
Fibre* now;       // the fibre that runs
void* scheduler;  // the stack that it gives way to
Kernel kernel;
Params params;
dim3 grid, block, block_index, thread_index;

void yield() { gdn_emu_switch(&now->sp, scheduler); }
Cta& cta() { return ctas[now->cta]; }
Warp& warp() { return cta().warps[now->thread / 32]; }

// GDN_DROP_SYNC=n leaves out the n-th __syncthreads of every thread: would a test notice?
void sync_threads() {
#ifdef GDN_DROP_SYNC
  if (now->syncs++ == GDN_DROP_SYNC) return;
#endif
  cta().barrier.pass();
}

template <class T> T shuffle_xor(T value, unsigned mask) {
  Warp& w = warp();
  const unsigned turn = w.barrier.generation & 1, lane = now->thread & 31;
  memcpy(&w.lane[turn][lane], &value, sizeof value);
  w.barrier.pass();
  memcpy(&value, &w.lane[turn][lane ^ mask], sizeof value);
  return value;
}

void fibre_main() {
  kernel(params);
  now->done = true;
  warp().barrier.leave();
  cta().barrier.leave();
  cluster_barrier.leave();
  yield();
}

// A stack on which gdn_emu_switch "returns" into fibre_main.
void prepare(Fibre& f) {
  if (!f.stack) f.stack = static_cast<char*>(malloc(STACK));
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(f.stack, STACK);  // the last kernel never left its frames
#endif
  void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(f.stack) + STACK) & ~uintptr_t(15));
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(fibre_main);
  for (int callee_saved = 0; callee_saved < 6; callee_saved++) *--top = nullptr;
  f.sp = top;
  f.done = false;
  f.syncs = 0;
}

Status run_cluster(const Launch& l, dim3 first, std::mt19937& random) {
  const unsigned total = l.cluster * l.block;
  if (fibres.size() < total) fibres.resize(total);
  ctas.assign(l.cluster, Cta{});
  cluster_barrier = Barrier{};
  cluster_barrier.live = total;
  for (unsigned c = 0; c < l.cluster; c++) {
    Cta& cta = ctas[c];
    cta.index = {first.x + c, first.y, first.z};
    cta.warps.resize((l.block + 31) / 32);
    cta.barrier.live = l.block;
    if (posix_memalign(reinterpret_cast<void**>(&cta.shared), 1024, l.shared + !l.shared)) abort();
    memset(cta.shared, 0xff, l.shared);
  }
  std::vector<unsigned> order(total);
  for (unsigned i = 0; i < total; i++) {
    order[i] = i;
    fibres[i].cta = i / l.block;
    fibres[i].thread = i % l.block;
    ctas[i / l.block].warps[i % l.block / 32].barrier.live++;
    prepare(fibres[i]);
  }
  long rounds = 0;
  while (cluster_barrier.live > 0 && rounds++ < MAX_ROUNDS) {
    for (unsigned i = total; l.schedule && i > 1; i--) std::swap(order[i - 1], order[random() % i]);
    for (unsigned i : order) {
      if (fibres[i].done) continue;
      now = &fibres[i];
      thread_index = {now->thread, 0, 0};
      block_index = cta().index;
      gdn_emu_switch(&scheduler, now->sp);
    }
  }
  for (Cta& cta : ctas) free(cta.shared);
  return cluster_barrier.live > 0 ? DEADLOCK : DONE;
}
}  // namespace emu

char* gdn_emu_smem() { return emu::cta().shared; }
void gdn_emu_yield() { emu::yield(); }
void gdn_emu_cluster_sync() { emu::cluster_barrier.pass(); }
void* gdn_emu_map_shared(void* here, unsigned rank) {
  return emu::ctas[rank].shared + (static_cast<char*>(here) - emu::cta().shared);
}
template <class T> T atomicCAS(T* p, T expected, T desired) {
  const T old = *p;
  if (old == expected) *p = desired;
  return old;
}
}  // namespace

extern "C" int gdn_emu_launch(emu::Kernel kernel, const emu::Launch* l, const void* params, size_t size) {
  if (size > sizeof emu::params) abort();
  memcpy(&emu::params, params, size);
  emu::kernel = kernel;
  emu::grid = {l->grid[0], l->grid[1], l->grid[2]};
  emu::block = {l->block, 1, 1};
  std::mt19937 random(l->schedule);
  for (unsigned z = 0; z < l->grid[2]; z++)
    for (unsigned y = 0; y < l->grid[1]; y++)
      for (unsigned x = 0; x < l->grid[0]; x += l->cluster)
        if (emu::Status s = emu::run_cluster(*l, {x, y, z}, random)) return s;
  return emu::DONE;
}

// Set by the scheduler before a fibre goes on.
#define threadIdx emu::thread_index
#define blockIdx emu::block_index
#define blockDim emu::block
#define gridDim emu::grid
#define __syncthreads() emu::sync_threads()
#define __syncwarp() emu::warp().barrier.pass()
#define __shfl_xor_sync(lanes, value, mask) emu::shuffle_xor(value, mask)
