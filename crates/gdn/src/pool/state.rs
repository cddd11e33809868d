//! Views of pooled state: what the operators update.
#![expect(unsafe_code, reason = "raw parts: foreign pools come as pointers")]

use crate::{
    DType, ErrorKind, LayerSpec, Result,
    device::Place,
    error::expect_dim,
    views::{DataMut, SliceMut, layout_len},
};

/// The recurrent states `[N, HV, V, K]` of a pool, each slot dense, slots
/// `pitch` elements apart.
#[derive(Debug)]
pub struct RecurrentMut<'a> {
    pub(super) data: DataMut<'a>,
    pub(super) slots: usize,
    pub(super) slot_len: usize,
    pub(super) pitch: usize,
}

impl<'a> RecurrentMut<'a> {
    /// The states of `slots` slots in `data`.
    ///
    /// # Errors
    /// [`ErrorKind::Stride`] if `pitch` is below
    /// [`spec.state_len()`](LayerSpec::state_len); [`ErrorKind::Buffer`] if
    /// `data` ends before the last slot does.
    pub fn new(
        spec: &LayerSpec,
        data: impl Into<DataMut<'a>>,
        slots: usize,
        pitch: usize,
    ) -> Result<Self> {
        let data = data.into();
        let slot_len = spec.state_len();
        check_slots("recurrent", data.as_data().len(), slots, slot_len, pitch)?;
        Ok(Self { data, slots, slot_len, pitch })
    }

    /// The states of `slots` slots in foreign memory.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`ErrorKind::Value`] if `ptr` is null or not
    /// aligned to the dtype.
    ///
    /// # Safety
    /// For the lifetime `'a`, `ptr` points to (`slots` − 1) · `pitch` +
    /// [`spec.state_len()`](LayerSpec::state_len) initialised elements of
    /// `dtype`, in one allocation, which nobody else reads or writes.
    pub unsafe fn from_raw_parts(
        spec: &LayerSpec,
        ptr: *mut u8,
        dtype: DType,
        slots: usize,
        pitch: usize,
    ) -> Result<Self> {
        let len = layout_len("recurrent", slots, spec.state_len(), pitch)?;
        // SAFETY: passed on to the caller.
        let data = unsafe { SliceMut::from_raw_parts(ptr, dtype, len)? };
        Self::new(spec, data, slots, pitch)
    }

    /// The element type of the states.
    pub fn dtype(&self) -> DType {
        self.data.as_data().dtype()
    }

    /// The memory that holds the states.
    pub fn place(&self) -> Place {
        self.data.as_data().place()
    }

    /// N, the number of slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The same states, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> RecurrentMut<'_> {
        let Self { slots, slot_len, pitch, .. } = *self;
        RecurrentMut { data: self.data.reborrow(), slots, slot_len, pitch }
    }

    /// `Err` unless the states were laid out for this layer.
    pub(crate) fn expect(&self, spec: &LayerSpec) -> Result<()> {
        expect_dim("recurrent", "elements a slot", spec.state_len(), self.slot_len)
    }

    /// The whole buffer and the pitch.
    pub(crate) fn into_parts(self) -> (DataMut<'a>, usize) {
        (self.data, self.pitch)
    }
}

/// The conv states of a pool: per slot a ring of the last W raw inputs of every
/// channel, `[N, W, C]`, and the entry that the next input takes.
///
/// With p = `phase[slot]`, the W − 1 inputs before the next one are the entries
/// (p + 1) mod W … (p + W − 1) mod W, oldest first. The next input goes to
/// entry p, which no tap of its own token reads.
#[derive(Debug)]
pub struct ConvMut<'a> {
    pub(super) ring: DataMut<'a>,
    pub(super) phase: Phase<'a>,
    pub(super) slots: usize,
    pub(super) slot_len: usize,
    pub(super) width: usize,
    pub(super) pitch: usize,
}

impl<'a> ConvMut<'a> {
    /// The rings of `phase.len()` slots in `ring`, `pitch` elements apart.
    ///
    /// # Errors
    /// [`ErrorKind::Stride`] if `pitch` is below
    /// [`spec.conv_len()`](LayerSpec::conv_len); [`ErrorKind::Buffer`] if
    /// `ring` ends before the last slot does; [`ErrorKind::Value`] for a phase
    /// that is not below W.
    pub fn new(
        spec: &LayerSpec,
        ring: impl Into<DataMut<'a>>,
        phase: &'a mut [u32],
        pitch: usize,
    ) -> Result<Self> {
        let ring = ring.into();
        let (slot_len, width) = (spec.conv_len(), spec.conv_width());
        check_slots("conv", ring.as_data().len(), phase.len(), slot_len, pitch)?;
        if let Some(bad) = phase.iter().find(|&&entry| entry as usize >= width) {
            let expected = "entries below conv_width";
            let got = bad.to_string();
            return Err(ErrorKind::Value { argument: "phase", expected, got }.into());
        }
        let (slots, phase) = (phase.len(), Phase::Host(phase));
        Ok(Self { ring, phase, slots, slot_len, width, pitch })
    }

    /// The rings of `slots` slots on a GPU, as its kernels keep them: each value
    /// head has a ring position of its own, `phase [N, HV]`, which counts up
    /// without end and is taken modulo W; those of a slot are equal.
    ///
    /// # Errors
    /// [`ErrorKind::Stride`] and [`ErrorKind::Buffer`] as [`new`](Self::new),
    /// the latter also for a `phase` of other than N·HV elements;
    /// [`ErrorKind::Place`] unless both lie on one GPU.
    pub fn on_device<T: crate::Element>(
        spec: &LayerSpec,
        ring: gdn_cuda::DeviceSliceMut<'a, T>,
        phase: gdn_cuda::DeviceSliceMut<'a, u32>,
        slots: usize,
        pitch: usize,
    ) -> Result<Self> {
        let (slot_len, width) = (spec.conv_len(), spec.conv_width());
        check_slots("conv", ring.len(), slots, slot_len, pitch)?;
        expect_dim("phase", "elements", slots * spec.v_heads(), phase.len())?;
        Place::Cuda(phase.gpu()).expect("phase", Place::Cuda(ring.gpu()))?;
        let phase = Phase::Device(phase.ptr().address());
        Ok(Self { ring: ring.into(), phase, slots, slot_len, width, pitch })
    }

    /// The element type of the rings.
    pub fn dtype(&self) -> DType {
        self.ring.as_data().dtype()
    }

    /// The memory that holds the rings.
    pub fn place(&self) -> Place {
        self.ring.as_data().place()
    }

    /// N, the number of slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The same rings, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> ConvMut<'_> {
        let Self { slots, slot_len, width, pitch, .. } = *self;
        let phase = match &mut self.phase {
            Phase::Host(phase) => Phase::Host(phase),
            Phase::Device(address) => Phase::Device(*address),
        };
        ConvMut { ring: self.ring.reborrow(), phase, slots, slot_len, width, pitch }
    }

    /// `Err` unless the rings were laid out for this layer.
    pub(crate) fn expect(&self, spec: &LayerSpec) -> Result<()> {
        expect_dim("conv", "taps", spec.conv_width(), self.width)?;
        expect_dim("conv", "elements a slot", spec.conv_len(), self.slot_len)
    }

    /// The whole buffer, its pitch, and the phases.
    pub(crate) fn into_parts(self) -> (DataMut<'a>, usize, Phase<'a>) {
        (self.ring, self.pitch, self.phase)
    }
}

/// Where the rings stand.
#[derive(Debug)]
pub(crate) enum Phase<'a> {
    /// The entry that each slot's next input takes.
    Host(&'a mut [u32]),
    /// The address of `[N, HV]` positions, beside the rings.
    Device(u64),
}

/// Both states of a pool, which change together.
#[derive(Debug)]
pub struct StateMut<'a> {
    /// The recurrent states.
    pub recurrent: RecurrentMut<'a>,
    /// The conv states.
    pub conv: ConvMut<'a>,
}

impl StateMut<'_> {
    /// The same states, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> StateMut<'_> {
        StateMut { recurrent: self.recurrent.reborrow(), conv: self.conv.reborrow() }
    }

    /// `Err` unless both were laid out for this layer and have the same slots.
    pub(crate) fn expect(&self, spec: &LayerSpec) -> Result<()> {
        self.recurrent.expect(spec)?;
        self.conv.expect(spec)?;
        expect_dim("conv", "slots", self.recurrent.slots(), self.conv.slots())
    }
}

fn check_slots(
    argument: &'static str,
    len: usize,
    slots: usize,
    slot_len: usize,
    pitch: usize,
) -> Result<()> {
    check_slot_count(slots)?;
    let expected = layout_len(argument, slots, slot_len, pitch)?;
    if len < expected {
        return Err(ErrorKind::Buffer { argument, expected, got: len }.into());
    }
    Ok(())
}

/// Slots are numbered by `i32`, the type of the peers' index tensors.
pub(crate) fn check_slot_count(slots: usize) -> Result<()> {
    if i32::try_from(slots).is_ok() {
        return Ok(());
    }
    let expected = "a count that fits i32";
    Err(ErrorKind::Value { argument: "slots", expected, got: slots.to_string() }.into())
}
