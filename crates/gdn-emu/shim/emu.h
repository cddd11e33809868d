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
struct alignas(8) Params { char bytes[4096]; };
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
// Not of <random>, which takes longer to compile than most kernels.
struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed) {}
  uint32_t operator()() {  // splitmix64
    uint64_t x = state += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return (x ^ x >> 31) >> 32;
  }
};
struct Warp {
  Barrier barrier;
  uint64_t lane[2][32];  // what each lane offers, in even and in odd shuffles
  alignas(16) char wide[2][32 * 32];  // the same, of what is more than a value
};
struct Cta {
  Barrier barrier, some;  // of all threads, of as many as say so
  std::vector<Warp> warps;
  dim3 index;
  char* shared = nullptr;
};
struct Copy { char* to; const char* from; long group; };  // 16 bytes, or zeros
// Of matrices in shared memory, which are read when it runs.
typedef void (*Multiply)(float* c, const char* a, const char* b, unsigned k16);
struct Product { Multiply run; float* c; const char *a, *b; unsigned k16; long group; };
struct Fibre {
  std::vector<Copy> copies;  // asynchronous ones that are under way
  long groups = 0;           // of copies, committed so far
  std::vector<Product> products;  // the same of products
  long product_groups = 0;
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

void sync_some(unsigned threads) {
  cta().some.live = threads;
  cta().some.pass();
}

template <class T> T shuffle_xor(T value, unsigned mask) {
  Warp& w = warp();
  const unsigned turn = w.barrier.generation & 1, lane = now->thread & 31;
  memcpy(&w.lane[turn][lane], &value, sizeof value);
  w.barrier.pass();
  memcpy(&value, &w.lane[turn][lane ^ mask], sizeof value);
  return value;
}

// What all lanes offer, put together in the order of lanes.
template <class T, class F> T fold(T value, F both) {
  Warp& w = warp();
  const unsigned turn = w.barrier.generation & 1;
  memcpy(&w.lane[turn][now->thread & 31], &value, sizeof value);
  w.barrier.pass();
  memcpy(&value, &w.lane[turn][0], sizeof value);
  for (unsigned lane = 1; lane < 32; lane++) {
    T other;
    memcpy(&other, &w.lane[turn][lane], sizeof other);
    value = both(value, other);
  }
  return value;
}

template <class T> T replace(T* p, T value) {
  const T old = *p;
  *p = value;
  return old;
}

void copy16(const Copy& c) { c.from ? memcpy(c.to, c.from, 16) : memset(c.to, 0, 16); }

// An asynchronous copy is done at once or as late as may be, by turns that no kernel knows.
void copy_async(char* to, const char* from) {
  static Random turns(1);
  const Copy copy = {to, from, now->groups};
  turns() & 64 ? copy16(copy) : now->copies.push_back(copy);
}

void copy_wait(int pending) {  // until no more than so many of the committed groups are pending
  std::vector<Copy> late;
  for (const Copy& c : now->copies) c.group < now->groups - pending ? copy16(c) : late.push_back(c);
  now->copies.swap(late);
}

// An asynchronous product runs as late as may be.
void product_wait(int pending) {
  std::vector<Product> late;
  for (const Product& p : now->products) {
    if (p.group < now->product_groups - pending) p.run(p.c, p.a, p.b, p.k16);
    else late.push_back(p);
  }
  now->products.swap(late);
}

// What every lane offers, in the order of lanes, until the next but one of these.
template <class T> const T* gather(const T& value) {
  static_assert(sizeof value <= 32, "one lane's share");
  Warp& w = warp();
  T* all = reinterpret_cast<T*>(w.wide[w.barrier.generation & 1]);
  all[now->thread & 31] = value;
  w.barrier.pass();
  return all;
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
  f.copies.clear();
  f.groups = 0;
  f.products.clear();
  f.product_groups = 0;
}

Status run_cluster(const Launch& l, dim3 first, Random& random) {
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
void gdn_emu_sync_some(unsigned threads) { emu::sync_some(threads); }
void gdn_emu_cluster_sync() { emu::cluster_barrier.pass(); }
void* gdn_emu_map_shared(void* here, unsigned rank) {
  return emu::ctas[rank].shared + (static_cast<char*>(here) - emu::cta().shared);
}
void gdn_emu_copy_async(void* to, const void* from) { emu::copy_async((char*)to, (const char*)from); }
void gdn_emu_copy_commit() { emu::now->groups++; }
void gdn_emu_copy_wait(int pending) { emu::copy_wait(pending); }
void gdn_emu_product(emu::Multiply run, float* c, const char* a, const char* b, unsigned k16) {
  emu::now->products.push_back({run, c, a, b, k16, emu::now->product_groups});
}
void gdn_emu_product_commit() { emu::now->product_groups++; }
void gdn_emu_product_wait(int pending) { emu::product_wait(pending); }
template <class T> const T* gdn_emu_gather(const T& value) { return emu::gather(value); }
template <class T> T atomicCAS(T* p, T expected, T desired) {
  const T old = *p;
  if (old == expected) *p = desired;
  return old;
}
template <class T> T atomicAdd(T* p, T value) { return emu::replace<T>(p, *p + value); }
template <class T> T atomicOr(T* p, T value) { return emu::replace<T>(p, *p | value); }
unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }
unsigned __reduce_max_sync(unsigned, unsigned value) {
  return emu::fold(value, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
unsigned __reduce_min_sync(unsigned, unsigned value) {
  return emu::fold(value, [](unsigned a, unsigned b) { return a < b ? a : b; });
}
}  // namespace

extern "C" int gdn_emu_launch(emu::Kernel kernel, const emu::Launch* l, const void* params, size_t size) {
  if (size > sizeof emu::params) abort();
  memcpy(&emu::params, params, size);
  emu::kernel = kernel;
  emu::grid = {l->grid[0], l->grid[1], l->grid[2]};
  emu::block = {l->block, 1, 1};
  emu::Random random(l->schedule);
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
#define __threadfence() ((void)0)
#define __syncwarp() emu::warp().barrier.pass()
#define __shfl_xor_sync(lanes, value, mask) emu::shuffle_xor(value, mask)
#define __shfl_sync(lanes, value, lane) emu::shuffle_xor(value, ((lane) ^ threadIdx.x) & 31)
#define __popc(bits) __builtin_popcount(bits)
#define __ffs(bits) __builtin_ffs(bits)
