//! Tiles: who may write what while many threads work on one batch.
//!
//! A [`Launch`] holds the buffers that an operator writes and splits the work
//! into tiles. Every tile owns the outputs and states of its heads in its row
//! and can reach nothing else, so tiles may run at once. This is the one place
//! that turns a shared buffer into `&mut` slices.
#![expect(unsafe_code, reason = "disjoint parts of one buffer, on many threads")]

use std::{marker::PhantomData, ops::Range};

use crate::{
    ConvMut, Element, LayerSpec, RecurrentMut, RowsMut,
    cpu::{Exec, delta::prefetch},
    pool::Phase,
    slots::CheckedSlots,
    views::{SliceMut, with_slice},
};

/// How the heads of a row are shared out among tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Partition {
    /// A tile for each row.
    Rows,
    /// A tile for each query/key head, with the value heads that read it.
    QkHeads,
    /// A tile for each value head.
    VHeads,
}

/// What the columns of the output are, where heads of a row are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutColumns {
    /// HV·V: value heads.
    Heads,
    /// C: the channels q ‖ k ‖ v.
    Channels,
}

struct Out<'a> {
    data: SharedAny<'a>,
    cols: usize,
    stride: usize,
    columns: OutColumns,
}

/// The buffers and the split of one parallel pass. `S` stores the recurrent
/// state.
pub(crate) struct Launch<'a, S> {
    spec: &'a LayerSpec,
    partition: Partition,
    rows: usize,
    slots: Option<CheckedSlots<'a>>,
    /// Where the output rows of each sequence start, if it has several.
    offsets: Option<&'a [usize]>,
    recurrent: Option<(Shared<'a, S>, usize)>,
    conv: Option<Rings<'a>>,
    out: Out<'a>,
}

struct Rings<'a> {
    data: SharedAny<'a>,
    pitch: usize,
    phase: &'a mut [u32],
}

impl<'a, S: Element> Launch<'a, S> {
    pub(crate) fn new(
        spec: &'a LayerSpec,
        partition: Partition,
        rows: usize,
        slots: Option<CheckedSlots<'a>>,
        out: RowsMut<'a>,
        columns: OutColumns,
    ) -> Self {
        if let Some(slots) = slots {
            assert_eq!(slots.len(), rows);
        }
        let (cols, stride) = (out.cols(), out.stride());
        let out = Out { data: SharedAny::new(out.into_data().into_host()), cols, stride, columns };
        Self { spec, partition, rows, slots, offsets: None, recurrent: None, conv: None, out }
    }

    /// Row `i` stands for output rows `offsets[i] .. offsets[i + 1]`.
    pub(crate) fn with_offsets(self, offsets: &'a [usize]) -> Self {
        assert_eq!(offsets.len(), self.rows + 1);
        assert!(offsets.is_sorted());
        Self { offsets: Some(offsets), ..self }
    }

    /// The tiles may update recurrent state, which is of type `S`.
    pub(crate) fn with_recurrent(self, recurrent: RecurrentMut<'a>) -> Self {
        let (data, pitch) = recurrent.into_parts();
        let data = data.into_host();
        // Slots must not overlap, nor heads run into the next slot.
        assert!(pitch >= self.spec.state_len());
        Self { recurrent: Some((Shared::new(typed(data)), pitch)), ..self }
    }

    /// The tiles may read and push conv inputs.
    pub(crate) fn with_conv(self, conv: ConvMut<'a>) -> Self {
        let (data, pitch, phase) = conv.into_parts();
        assert!(pitch >= self.spec.conv_len());
        let Phase::Host(phase) = phase else {
            unreachable!("a backend of the host checks places first")
        };
        Self { conv: Some(Rings { data: SharedAny::new(data.into_host()), pitch, phase }), ..self }
    }

    /// Runs `f` on every tile; then the rings move on by one entry a token.
    pub(crate) fn run(mut self, exec: &Exec, f: impl Fn(Tile<'_, 'a, S>) + Sync) {
        let parts = match self.partition {
            Partition::Rows => 1,
            Partition::QkHeads => self.spec.q_heads(),
            Partition::VHeads => self.spec.v_heads(),
        };
        let launch = &self;
        // Each index comes once, so no two tiles share a row and a part. All
        // heads of a row before the next: their states lie behind one another.
        exec.for_each(self.rows * parts, |index| {
            f(Tile { launch, row: index / parts, part: index % parts });
        });
        if let (Some(conv), Some(slots)) = (&mut self.conv, self.slots) {
            for row in 0..self.rows {
                if let Some(slot) = slots.get(row) {
                    let tokens = self.offsets.map_or(1, |o| o[row + 1] - o[row]);
                    let entry = conv.phase[slot] as usize + tokens;
                    conv.phase[slot] = (entry % self.spec.conv_width()) as u32;
                }
            }
        }
    }
}

/// One row's share of the work, and the only one that may touch it.
pub(crate) struct Tile<'l, 'a, S> {
    launch: &'l Launch<'a, S>,
    row: usize,
    part: usize,
}

impl<S: Element> Tile<'_, '_, S> {
    /// The row of the batch, or the sequence of a prefill.
    pub(crate) fn row(&self) -> usize {
        self.row
    }

    /// The index of this tile in its row: the head, for partitions by heads.
    pub(crate) fn part(&self) -> usize {
        self.part
    }

    /// Whether the row is padding: its output is zero and it has no state.
    pub(crate) fn is_padding(&self) -> bool {
        self.launch.slots.is_some_and(|slots| slots.get(self.row).is_none())
    }

    /// The output rows of this tile: one a token.
    pub(crate) fn tokens(&self) -> Range<usize> {
        match self.launch.offsets {
            Some(offsets) => offsets[self.row]..offsets[self.row + 1],
            None => self.row..self.row + 1,
        }
    }

    /// The query/key heads of this tile.
    pub(crate) fn q_heads(&self) -> Range<usize> {
        match self.launch.partition {
            Partition::Rows => 0..self.launch.spec.q_heads(),
            Partition::QkHeads => self.part..self.part + 1,
            Partition::VHeads => 0..0,
        }
    }

    /// The recurrent state `[V, K]` of value head `hv`.
    ///
    /// # Panics
    /// If the head is not the tile's, or the row is padding.
    #[inline(always)]
    pub(crate) fn state(&mut self, hv: usize) -> &mut [S] {
        assert!(self.owns_v_head(hv));
        let (states, pitch) = self.launch.recurrent.as_ref().expect("a launch with state");
        let len = self.launch.spec.head_len();
        // SAFETY: slots of a batch differ (CheckedSlots) and don't overlap
        // (pitch), heads of a slot don't either, and this tile alone has this
        // row and head; `&mut self` keeps it to one slice at a time.
        unsafe { states.slice_mut(self.slot() * pitch + hv * len, len) }
    }

    /// Writes `values` to columns `col ..` of output row `token`, rounded to
    /// its dtype.
    ///
    /// # Panics
    /// If a column or the row is not the tile's.
    #[inline(always)]
    pub(crate) fn write_out(&mut self, token: usize, col: usize, values: &[f32]) {
        let out = &self.launch.out;
        assert!(self.tokens().contains(&token) && col + values.len() <= out.cols);
        assert!(match out.columns {
            OutColumns::Heads => self.owns_value_columns(col, values.len()),
            OutColumns::Channels => self.owns_channels(col, values.len()),
        });
        // SAFETY: this tile alone has these columns of this row, and rows don't
        // overlap (RowsMut).
        unsafe { out.data.write(token * out.stride + col, values) }
    }

    /// The ring entry that this row's next input takes.
    pub(crate) fn phase(&self) -> usize {
        self.rings().phase[self.slot()] as usize
    }

    /// Reads entry `entry` of this row's ring, channels `channel ..`.
    ///
    /// # Panics
    /// If a channel is not the tile's.
    #[inline(always)]
    pub(crate) fn read_ring(&self, entry: usize, channel: usize, values: &mut [f32]) {
        let start = self.ring_start(entry, channel, values.len());
        // SAFETY: this tile alone has these channels, and `&self` excludes
        // `write_ring`.
        unsafe { self.rings().data.read(start, values) }
    }

    /// Asks for the `part`-th of `parts` equal parts of the next row's ring, which
    /// the same thread likely meets next.
    #[inline(always)]
    pub(crate) fn prefetch_next_ring(&self, part: usize, parts: usize) {
        let slots = self.launch.slots.expect("a launch with slots");
        let next = self.row + 1;
        if next < self.launch.rows
            && let Some(slot) = slots.get(next)
        {
            let len = self.launch.spec.conv_len() / parts;
            let start = slot * self.rings().pitch + part * len;
            self.rings().data.prefetch(start, len);
        }
    }

    /// Writes entry `entry` of this row's ring, channels `channel ..`.
    ///
    /// # Panics
    /// If a channel is not the tile's.
    #[inline(always)]
    pub(crate) fn write_ring(&mut self, entry: usize, channel: usize, values: &[f32]) {
        let start = self.ring_start(entry, channel, values.len());
        // SAFETY: this tile alone has these channels of this slot.
        unsafe { self.rings().data.write(start, values) }
    }

    fn ring_start(&self, entry: usize, channel: usize, len: usize) -> usize {
        let spec = self.launch.spec;
        assert!(entry < spec.conv_width() && channel + len <= spec.channels());
        assert!(self.owns_channels(channel, len));
        self.slot() * self.rings().pitch + entry * spec.channels() + channel
    }

    fn rings(&self) -> &Rings<'_> {
        self.launch.conv.as_ref().expect("a launch with conv state")
    }

    fn slot(&self) -> usize {
        let slots = self.launch.slots.expect("a launch with slots");
        slots.get(self.row).expect("a row that is not padding")
    }

    fn owns_v_head(&self, hv: usize) -> bool {
        hv < self.launch.spec.v_heads()
            && match self.launch.partition {
                Partition::Rows => true,
                Partition::QkHeads => self.launch.spec.q_head_of(hv) == self.part,
                Partition::VHeads => hv == self.part,
            }
    }

    /// Whether columns `col ..` of a row lie in one value head of this tile, or
    /// the row is all its own.
    fn owns_value_columns(&self, col: usize, len: usize) -> bool {
        let spec = self.launch.spec;
        let (hv, at) = (col / spec.head_v(), col % spec.head_v());
        self.launch.partition == Partition::Rows
            || (self.owns_v_head(hv) && at + len <= spec.head_v())
    }

    /// Whether channels `channel ..` of a row lie in one head of this tile, or
    /// the row is all its own.
    fn owns_channels(&self, channel: usize, len: usize) -> bool {
        let spec = self.launch.spec;
        let values = spec.v_channel(0);
        match self.launch.partition {
            Partition::Rows => true,
            _ if channel >= values => self.owns_value_columns(channel - values, len),
            Partition::VHeads => false,
            Partition::QkHeads => {
                let (head, at) = (channel / spec.head_k(), channel % spec.head_k());
                head % spec.q_heads() == self.part && at + len <= spec.head_k()
            }
        }
    }
}

/// A buffer that many threads write, each its own parts of it.
struct Shared<'a, T> {
    ptr: *mut T,
    len: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: like `&mut [T]`, and every access through `&self` is unsafe, its
// caller vouching that no other thread touches that part.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T: Element> Shared<'a, T> {
    fn new(slice: &'a mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), buffer: PhantomData }
    }

    /// # Safety
    /// Nobody writes this part while the slice lives.
    #[inline(always)]
    unsafe fn slice(&self, start: usize, len: usize) -> &[T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: in bounds of the borrowed slice, and not written meanwhile.
        unsafe { std::slice::from_raw_parts(self.ptr.add(start), len) }
    }

    /// # Safety
    /// Nobody else reads or writes this part while the slice lives.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "disjoint parts, by the contract above")]
    unsafe fn slice_mut(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: in bounds of the borrowed slice, and nobody else's.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

/// A [`Shared`] whose element type is known at run time.
enum SharedAny<'a> {
    F32(Shared<'a, f32>),
    BF16(Shared<'a, half::bf16>),
    F16(Shared<'a, half::f16>),
}

impl<'a> SharedAny<'a> {
    fn new(slice: SliceMut<'a>) -> Self {
        match slice {
            SliceMut::F32(slice) => Self::F32(Shared::new(slice)),
            SliceMut::BF16(slice) => Self::BF16(Shared::new(slice)),
            SliceMut::F16(slice) => Self::F16(Shared::new(slice)),
        }
    }

    /// Asks for these elements.
    #[inline(always)]
    fn prefetch(&self, start: usize, len: usize) {
        fn at<T>(ptr: *const T, start: usize, len: usize) {
            prefetch(ptr.wrapping_add(start).cast(), len * size_of::<T>());
        }
        match self {
            Self::F32(shared) => at(shared.ptr, start, len),
            Self::BF16(shared) => at(shared.ptr, start, len),
            Self::F16(shared) => at(shared.ptr, start, len),
        }
    }

    /// # Safety
    /// As [`Shared::slice`], for as many elements as `values` takes.
    #[inline(always)]
    unsafe fn read(&self, start: usize, values: &mut [f32]) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Self::F32(shared) => Element::widen(shared.slice(start, values.len()), values),
                Self::BF16(shared) => Element::widen(shared.slice(start, values.len()), values),
                Self::F16(shared) => Element::widen(shared.slice(start, values.len()), values),
            }
        }
    }

    /// # Safety
    /// As [`Shared::slice_mut`], for as many elements as `values` has.
    #[inline(always)]
    unsafe fn write(&self, start: usize, values: &[f32]) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Self::F32(shared) => Element::narrow(values, shared.slice_mut(start, values.len())),
                Self::BF16(shared) => {
                    Element::narrow(values, shared.slice_mut(start, values.len()));
                }
                Self::F16(shared) => Element::narrow(values, shared.slice_mut(start, values.len())),
            }
        }
    }
}

/// The slice as one of `S`, which the caller dispatched on.
fn typed<S: Element>(slice: SliceMut<'_>) -> &mut [S] {
    assert_eq!(slice.dtype(), S::DTYPE);
    with_slice!(SliceMut, slice, slice => bytemuck::cast_slice_mut(slice))
}
