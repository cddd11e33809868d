//! Launch arguments, field by field as in `params.cuh`, which documents them.
//! Addresses are those of device memory; strides and pitches count elements.

use bytemuck::{Pod, Zeroable};

/// Slots are i64, else i32.
pub const SLOTS_I64: u32 = 1;
/// The q/k head of value head hv is hv % h, else hv / (hv_heads / h).
pub const TILED: u32 = 2;
/// L2-normalise q and k.
pub const L2NORM: u32 = 4;
/// Round beta to the activation type.
pub const ROUND_BETA: u32 = 8;

/// Defines the structs, and their sizes in one list.
macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {
        $($(#[$doc])*
        #[derive(Clone, Copy, Debug, Pod, Zeroable)]
        #[repr(C)]
        pub struct $name {
            $(pub $field: $type,)*
        })*

        /// The size of each struct in bytes, in the order of `params.cuh`.
        pub const SIZES: [usize; [$(stringify!($name)),*].len()] = [$(size_of::<$name>()),*];
    };
}

params! {
    /// Which state slot each row owns, and how to report a bad one.
    Slots { slots: u64, error: u64, n_slots: i64, b: u32, flags: u32, }
    /// One conv state pool.
    Ring { ring: u64, phase: u64, pitch: i64, weight: u64, bias: u64, }
    /// `gdn_conv`, `gdn_conv_any`.
    Conv { s: Slots, r: Ring, x: u64, y: u64, x_stride: i64, y_stride: i64, h: u32, hv: u32, k: u32, v: u32, }
    /// `gdn_gates`.
    Gates {
        a: u64, bb: u64, a_stride: i64, b_stride: i64, neg_exp_a: u64, dt_bias: u64, g: u64, beta: u64,
        b: u32, hv: u32, flags: u32, pad: u32,
    }
    /// `gdn_split_copy`.
    SplitCopy { x: u64, q: u64, k: u64, v: u64, x_stride: i64, b: u32, qk: u32, vv: u32, pad: u32, }
    /// `gdn_split`, `gdn_split_any`.
    Split {
        s: Slots, q: u64, k: u64, v: u64, g: u64, beta: u64, state: u64, state_pitch: i64, out: u64,
        h: u32, hv: u32, kd: u32, vd: u32, scale: f32, pad: u32,
    }
    /// `gdn_packed`, `gdn_packed_stream`, `gdn_packed_any`.
    Packed {
        s: Slots, x: u64, x_stride: i64, a: u64, bb: u64, a_stride: i64, b_stride: i64,
        neg_exp_a: u64, dt_bias: u64, state: u64, state_pitch: i64, out: u64,
        h: u32, hv: u32, kd: u32, vd: u32, scale: f32, pad: u32,
    }
    /// `gdn_fused`, `gdn_fused_stream`, `gdn_fused_any`.
    Fused { p: Packed, r: Ring, z: u64, z_stride: i64, norm_weight: u64, eps: f32, pad: u32, }
    /// `gdn_norm`, `gdn_norm_f32`.
    Norm { s: Slots, owner: u64, o: u64, z: u64, out: u64, o_stride: i64, z_stride: i64, weight: u64, b: u32, hv: u32, v: u32, eps: f32, }
    /// `gdn_prefill`, `gdn_prefill_any`.
    Prefill { p: Packed, cu: u64, fresh: u64, }
    /// `gdn_prefill_conv`, `gdn_prefill_ring`.
    PrefillConv { c: Conv, cu: u64, fresh: u64, token_seq: u64, tokens: u32, pad: u32, }
    /// The chunks of a batch of sequences.
    Chunks { cu: u64, first: u64, seq: u64, qk: u64, v: u64, count: u32, pad: u32, }
    /// `gdn_chunk_conv`.
    ChunkConv { c: Conv, chunks: Chunks, }
    /// `gdn_chunk_prepare`, `gdn_chunk_state`.
    Chunk { p: Packed, r: Ring, chunks: Chunks, work: u64, groups: u32, pad: u32, }
}
