// Launch arguments. Plain C types only: a host mirrors each struct with the C layout.
// Pointers are device addresses. "act" is the activation type (ACT), "state" the state type (STATE).
// All strides and pitches count elements, not bytes.
#pragma once
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;

enum : u32 {
  GDN_SLOTS_I64 = 1u,   // slots are i64, else i32
  GDN_TILED = 2u,       // q/k head of value head hv is hv % h, else hv / (hv_heads / h)
  GDN_L2NORM = 4u,      // L2-normalise q and k
  GDN_ROUND_BETA = 8u,  // round beta to the activation type
};

// Which state slot each row owns, and how to report a bad one.
struct GdnSlots {
  const void* slots;  // [b] i32 or i64; negative = padding row
  u64* error;         // sticky word, 0 = none, else (row + 1) << 32 | low 32 bits of the slot; may be null
  i64 n_slots;        // slots in the pool
  u32 b;              // rows in this launch
  u32 flags;          // GDN_* bits
};

// One conv state pool, a ring of W raw inputs per slot and channel.
struct GdnRing {
  void* ring;         // [n_slots, W, c] act
  u32* phase;         // [n_slots, hv] copies of the write position; equal between launches
  i64 pitch;          // elements from slot to slot, >= W * c
  const float* weight;  // [W, c] f32, oldest tap first
  const float* bias;  // [c] f32 or null
};

// conv update of one token per row. Grid: (hv, y, z), y * z >= b.
struct ConvParams {
  GdnSlots s;
  GdnRing r;
  const void* x;      // [b, c] act, raw mixed_qkv
  void* y;            // [b, c] act, convolved
  i64 x_stride;       // elements from row to row of x
  i64 y_stride;       // elements from row to row of y
  u32 h, hv;          // q/k heads, value heads
  u32 k, v;           // head dims (read where K_DIM or V_DIM is 0)
};

// gates of the split path. Grid: ceil(b * hv / 256).
struct GatesParams {
  const void* a;          // [b, hv] act
  const void* bb;         // [b, hv] act
  i64 a_stride, b_stride; // elements from row to row
  const float* neg_exp_a; // [hv], -exp(A_log)
  const float* dt_bias;   // [hv]
  float* g;               // [b, hv] out: log of the decay
  float* beta;            // [b, hv] out
  u32 b, hv;              // rows, value heads
  u32 flags;              // GDN_* bits
  u32 pad;
};

// copy of convolved mixed_qkv into dense q, k and v. Grid: b rows in (y, z), x over columns.
struct SplitCopyParams {
  const void* x;      // [b, 2hk + hv v] act
  void* q;            // [b, h, k] act
  void* k;            // [b, h, k] act
  void* v;            // [b, hv, v] act
  i64 x_stride;       // elements from row to row of x
  u32 b;              // rows
  u32 qk;             // h * k
  u32 vv;             // hv * v
  u32 pad;
};

// recurrence of the split path.
struct SplitParams {
  GdnSlots s;
  const void* q;      // [b, h, k] act, dense
  const void* k;      // [b, h, k] act, dense
  const void* v;      // [b, hv, v] act, dense
  const float* g;     // [b, hv] log of the decay
  const float* beta;  // [b, hv]
  void* state;        // [n_slots, hv, v, k] state
  i64 state_pitch;    // elements from slot to slot
  void* out;          // [b, hv, v] act, dense
  u32 h, hv;          // q/k heads, value heads
  u32 kd, vd;         // head dims (read where K_DIM or V_DIM is 0)
  float scale;        // of q
  u32 pad;
};

// gates + recurrence, read straight out of convolved mixed_qkv.
struct PackedParams {
  GdnSlots s;
  const void* x;          // [b, 2hk + hv v] act, convolved
  i64 x_stride;           // elements from row to row of x
  const void* a;          // [b, hv] act
  const void* bb;         // [b, hv] act
  i64 a_stride, b_stride; // elements from row to row
  const float* neg_exp_a; // [hv]
  const float* dt_bias;   // [hv]
  void* state;            // [n_slots, hv, v, k] state
  i64 state_pitch;        // elements from slot to slot
  void* out;              // [b, hv, v] act, dense
  u32 h, hv;              // q/k heads, value heads
  u32 kd, vd;             // head dims (read where K_DIM or V_DIM is 0)
  float scale;            // of q
  u32 pad;
};

// the whole layer step in one launch.
struct FusedParams {
  PackedParams p;     // p.x is raw mixed_qkv here
  GdnRing r;
  const void* z;      // [b, hv, v] act
  i64 z_stride;       // elements from row to row of z
  const float* norm_weight;  // [v]
  float eps;          // of the gated norm
  u32 pad;
};

// gated RMS norm. o and out may be the same buffer. Grid: ceil(b * hv / 4), 4 warps.
struct NormParams {
  GdnSlots s;
  const i32* owner;   // [b] the entry of s.slots that each row has; null = its own
  const void* o;      // [b, hv, v] act, or f32 for gdn_norm_f32
  const void* z;      // [b, hv, v] act
  void* out;          // [b, hv, v] act, dense
  i64 o_stride;       // elements from row to row of o
  i64 z_stride;       // elements from row to row of z
  const float* weight;  // [v]
  u32 b, hv, v;       // rows, value heads, head dim
  float eps;
};

// recurrence over whole sequences, tokens packed one after another.
struct PrefillParams {
  PackedParams p;       // rows are tokens; p.x and p.out are f32; p.s.slots has one entry per sequence, p.s.b = sequences
  const i32* cu;        // [sequences + 1] first token of each sequence, then the total
  const i32* fresh;     // [sequences] nonzero = start from a zero state; or null
};

// conv over whole sequences; gdn_prefill_ring then moves the ring on.
struct PrefillConvParams {
  ConvParams c;         // rows are tokens; c.y is f32; c.s.slots has one entry per sequence, c.s.b = sequences
  const i32* cu;        // as in PrefillParams
  const i32* fresh;     // nonzero = no past inputs; or null
  const i32* token_seq; // [tokens] sequence of each token
  u32 tokens;           // total
  u32 pad;
};

// the chunks of 64 tokens that sequences are cut into, the last one of each shorter.
struct GdnChunks {
  const i32* cu;        // [sequences + 1] first token of each sequence, then the total
  const i32* first;     // [sequences] first chunk of each sequence
  const i32* seq;       // [chunks] sequence of each chunk
  void* qk;             // [tokens, 2h, k] convolved and normalised q and k, f16 for bf16 activations, else f32
  float* v;             // [tokens, hv, v] convolved v
  u32 count;            // chunks
  u32 pad;
};

// conv over whole sequences, in chunks; gdn_chunk_state then moves the ring on.
struct ChunkConvParams {
  ConvParams c;         // rows are tokens; c.y is not used; c.s.slots has one entry per sequence, c.s.b = sequences
  GdnChunks chunks;
};

// recurrence over whole sequences, in chunks.
struct ChunkParams {
  PackedParams p;       // rows are tokens; p.x is raw mixed_qkv; p.out is f32; p.s.slots as above
  GdnRing r;
  GdnChunks chunks;
  float* work;          // [chunks, hv, GDN_CHUNK_WORK], from gdn_chunk_prepare to gdn_chunk_state
  u32 groups;           // CTAs of gdn_chunk_prepare that share the value heads of a q/k head
  u32 pad;
};
enum : u32 { GDN_CHUNK_WORK = 2 * 64 * 64 + 4 * 64 };
