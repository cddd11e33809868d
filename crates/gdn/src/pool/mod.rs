//! The state pool: conv and recurrent state per slot.

mod memory;
mod snapshot;
mod state;

pub use self::{
    snapshot::Snapshot,
    state::{ConvMut, RecurrentMut, StateMut},
};

pub(crate) use self::state::Phase;

use std::sync::Arc;

use self::{memory::Memory, state::check_slot_count};
use crate::{
    DType, ErrorKind, LayerSpec, Place, Result,
    cuda::runtime::{Block, Runtime},
    error::expect_dim,
    views::{Slice, layout_len},
};

/// How a [`StatePool`] stores its slots.
///
/// ```
/// # use gdn::{DType, PoolOptions};
/// let options = PoolOptions { recurrent: DType::BF16, ..PoolOptions::new(64) };
/// assert_eq!(options.conv, DType::F32);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// N, the number of slots.
    pub slots: usize,
    /// The dtype of the recurrent state. The models' default is f32.
    pub recurrent: DType,
    /// The dtype of the conv state: that of the activations.
    pub conv: DType,
    /// The distance of recurrent states in elements, [`LayerSpec::state_len`]
    /// if `None`.
    pub recurrent_pitch: Option<usize>,
    /// The distance of conv states in elements, [`LayerSpec::conv_len`] if
    /// `None`.
    pub conv_pitch: Option<usize>,
}

impl PoolOptions {
    /// `slots` dense slots, all f32.
    pub fn new(slots: usize) -> Self {
        Self {
            slots,
            recurrent: DType::F32,
            conv: DType::F32,
            recurrent_pitch: None,
            conv_pitch: None,
        }
    }
}

/// Conv and recurrent state of one layer for up to N sequences, a slot each.
///
/// A slot's two states change together or not at all. Slots that were never
/// used take no memory.
#[derive(Debug)]
pub struct StatePool {
    spec: LayerSpec,
    recurrent: Memory,
    recurrent_pitch: usize,
    conv: Memory,
    conv_pitch: usize,
    phase: Positions,
    taken: Vec<bool>,
    /// The free slots, the next one to hand out last.
    free: Vec<i32>,
}

/// Where the rings stand.
#[derive(Debug)]
enum Positions {
    /// Per slot, the ring entry that the next input takes.
    Host(Vec<u32>),
    /// `[N, HV]`, see [`ConvMut::on_device`].
    Device(Block),
}

impl StatePool {
    /// A pool in host memory, whose slots are all free and zero.
    /// [`Cuda::pool`](crate::Cuda::pool) makes one on a GPU.
    ///
    /// # Errors
    /// [`ErrorKind::Stride`] for a pitch shorter than a slot,
    /// [`ErrorKind::Value`] for more than `i32::MAX` slots,
    /// [`ErrorKind::System`] if the memory can't be had.
    pub fn new(spec: &LayerSpec, options: &PoolOptions) -> Result<Self> {
        Self::build(spec, options, None)
    }

    /// On the GPU of `runtime`, if there is one.
    pub(crate) fn build(
        spec: &LayerSpec,
        options: &PoolOptions,
        runtime: Option<&Arc<dyn Runtime>>,
    ) -> Result<Self> {
        let slots = options.slots;
        check_slot_count(slots)?;
        let recurrent_pitch = options.recurrent_pitch.unwrap_or(spec.state_len());
        let conv_pitch = options.conv_pitch.unwrap_or(spec.conv_len());
        let recurrent_len =
            layout_len("recurrent_pitch", slots, spec.state_len(), recurrent_pitch)?;
        let conv_len = layout_len("conv_pitch", slots, spec.conv_len(), conv_pitch)?;
        let memory = |what, dtype, len| match runtime {
            None => Memory::host(what, dtype, len),
            Some(runtime) => Memory::device(runtime, what, dtype, len),
        };
        Ok(Self {
            spec: spec.clone(),
            recurrent: memory("recurrent state", options.recurrent, recurrent_len)?,
            recurrent_pitch,
            conv: memory("conv state", options.conv, conv_len)?,
            conv_pitch,
            phase: match runtime {
                None => Positions::Host(vec![0; slots]),
                Some(runtime) => {
                    Positions::Device(Block::zeroed(runtime, slots * spec.v_heads() * 4)?)
                }
            },
            taken: vec![false; slots],
            free: (0..slots as i32).rev().collect(),
        })
    }

    /// The layer that this pool holds state for.
    pub fn spec(&self) -> &LayerSpec {
        &self.spec
    }

    /// N, the number of slots.
    pub fn slots(&self) -> usize {
        self.taken.len()
    }

    /// The memory that holds the states.
    pub fn place(&self) -> Place {
        match &self.phase {
            Positions::Host(_) => Place::Host,
            Positions::Device(block) => Place::Cuda(block.gpu()),
        }
    }

    /// The number of slots that [`allocate`](Self::allocate) can still give.
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Takes a free slot and zeroes it.
    ///
    /// # Errors
    /// [`ErrorKind::PoolFull`] if none is free.
    pub fn allocate(&mut self) -> Result<i32> {
        let slot = *self.free.last().ok_or(ErrorKind::PoolFull { slots: self.slots() })?;
        self.zero(slot as usize)?;
        self.free.pop();
        self.taken[slot as usize] = true;
        Ok(slot)
    }

    /// Gives a slot back.
    ///
    /// # Errors
    /// [`ErrorKind::SlotNotAllocated`] for a slot that is not allocated.
    pub fn free(&mut self, slot: i32) -> Result<()> {
        let index = self.taken_slot("slot", slot)?;
        self.taken[index] = false;
        self.free.push(slot);
        Ok(())
    }

    /// Zeroes a slot, for the next sequence that takes it.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] for a slot outside the pool.
    pub fn clear(&mut self, slot: i32) -> Result<()> {
        let slot = self.slot("slot", slot)?;
        self.zero(slot)
    }

    /// Copies the state of `from` over that of `to`: two sequences with one
    /// prefix.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] for a slot outside the pool.
    pub fn copy(&mut self, from: i32, to: i32) -> Result<()> {
        let from = self.slot("from", from)?;
        let to = self.slot("to", to)?;
        let (state_len, conv_len) = (self.spec.state_len(), self.spec.conv_len());
        let pitch = self.recurrent_pitch;
        self.recurrent.copy_within(from * pitch, to * pitch, state_len)?;
        let pitch = self.conv_pitch;
        self.conv.copy_within(from * pitch, to * pitch, conv_len)?;
        match &mut self.phase {
            Positions::Host(phase) => phase[to] = phase[from],
            Positions::Device(phase) => {
                let bytes = self.spec.v_heads() * 4;
                phase.copy_within(from * bytes, to * bytes, bytes)?;
            }
        }
        Ok(())
    }

    /// Where the parts of a slot lie on the pool's GPU, and their bytes: the recurrent
    /// state, the ring, its positions. `None` in host memory.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] for a slot outside the pool.
    #[doc(hidden)]
    pub fn slot_parts(&mut self, slot: i32) -> Result<Option<[(u64, usize); 3]>> {
        let slot = self.slot("slot", slot)?;
        let Positions::Device(phase) = &self.phase else { return Ok(None) };
        let part = |address: u64, pitch: usize, len: usize, size: usize| {
            (address + (slot * pitch * size) as u64, len * size)
        };
        let parts = [
            (&self.recurrent, self.recurrent_pitch, self.spec.state_len()),
            (&self.conv, self.conv_pitch, self.spec.conv_len()),
        ];
        let [recurrent, conv] = parts.map(|(memory, pitch, len)| {
            memory.address().map(|address| part(address, pitch, len, memory.dtype().size()))
        });
        let heads = self.spec.v_heads();
        Ok(recurrent.zip(conv).map(|(recurrent, conv)| {
            [recurrent, conv, part(phase.address(), heads, heads, size_of::<u32>())]
        }))
    }

    /// The states of all slots, for an operator to update.
    pub fn state_mut(&mut self) -> StateMut<'_> {
        // Laid out by `new`, so nothing is left to check.
        StateMut {
            recurrent: RecurrentMut {
                data: self.recurrent.data_mut(),
                slots: self.taken.len(),
                slot_len: self.spec.state_len(),
                pitch: self.recurrent_pitch,
            },
            conv: ConvMut {
                ring: self.conv.data_mut(),
                phase: match &mut self.phase {
                    Positions::Host(phase) => Phase::Host(phase),
                    Positions::Device(phase) => Phase::Device(phase.address()),
                },
                slots: self.taken.len(),
                slot_len: self.spec.conv_len(),
                width: self.spec.conv_width(),
                pitch: self.conv_pitch,
            },
        }
    }

    /// The recurrent state `[HV, V, K]` of a slot, as f32.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] for a slot outside the pool.
    pub fn recurrent(&self, slot: i32) -> Result<Vec<f32>> {
        let start = self.slot("slot", slot)? * self.recurrent_pitch;
        let mut values = vec![0.0; self.spec.state_len()];
        self.recurrent.read(start, &mut values)?;
        Ok(values)
    }

    /// The conv state `[W − 1, C]` of a slot, oldest input first, as f32.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] for a slot outside the pool.
    pub fn conv(&self, slot: i32) -> Result<Vec<f32>> {
        let slot = self.slot("slot", slot)?;
        let channels = self.spec.channels();
        let mut values = vec![0.0; (self.spec.conv_width() - 1) * channels];
        let phase = self.position(slot)?;
        for (tap, row) in values.chunks_exact_mut(channels).enumerate() {
            self.conv.read(self.tap_start(slot, phase, tap), row)?;
        }
        Ok(values)
    }

    /// Sets both states of a slot, from the forms that
    /// [`recurrent`](Self::recurrent) and [`conv`](Self::conv) return, rounded
    /// to the pool's dtypes.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] for a slot outside the pool, [`ErrorKind::Dim`] for
    /// states of another length.
    pub fn set(&mut self, slot: i32, recurrent: &[f32], conv: &[f32]) -> Result<()> {
        let slot = self.slot("slot", slot)?;
        let channels = self.spec.channels();
        expect_dim("recurrent", "elements", self.spec.state_len(), recurrent.len())?;
        expect_dim("conv", "elements", (self.spec.conv_width() - 1) * channels, conv.len())?;
        self.recurrent.write(slot * self.recurrent_pitch, recurrent)?;
        let phase = self.position(slot)?;
        for (tap, row) in conv.chunks_exact(channels).enumerate() {
            let start = self.tap_start(slot, phase, tap);
            self.conv.write(start, row)?;
        }
        Ok(())
    }

    /// Every element of the pool, gaps between slots included: the recurrent
    /// buffer and the conv buffer. For tests and checkpoints of whole pools;
    /// `None` for a pool on a GPU, whose slots [`snapshot`](Self::snapshot)
    /// fetches one by one.
    pub fn buffers(&self) -> Option<(Slice<'_>, Slice<'_>)> {
        self.recurrent.slice().zip(self.conv.slice())
    }

    /// The ring entry that the next input of a slot takes.
    fn position(&self, slot: usize) -> Result<usize> {
        let counter = match &self.phase {
            Positions::Host(phase) => phase[slot],
            Positions::Device(phase) => {
                let mut bytes = [0; 4];
                phase.download(slot * self.spec.v_heads() * 4, &mut bytes)?;
                u32::from_ne_bytes(bytes)
            }
        };
        Ok(counter as usize % self.spec.conv_width())
    }

    /// Where the `tap`-th oldest of the last W − 1 inputs of a slot starts, with
    /// its ring at `position`.
    fn tap_start(&self, slot: usize, position: usize, tap: usize) -> usize {
        let entry = (position + 1 + tap) % self.spec.conv_width();
        slot * self.conv_pitch + entry * self.spec.channels()
    }

    fn zero(&mut self, slot: usize) -> Result<()> {
        self.recurrent.zero(slot * self.recurrent_pitch, self.spec.state_len())?;
        self.conv.zero(slot * self.conv_pitch, self.spec.conv_len())?;
        self.rewind(slot)
    }

    /// Lets the ring of a slot stand at its first entry.
    fn rewind(&mut self, slot: usize) -> Result<()> {
        match &mut self.phase {
            Positions::Host(phase) => phase[slot] = 0,
            Positions::Device(phase) => {
                let bytes = self.spec.v_heads() * 4;
                phase.zero(slot * bytes, bytes)?;
            }
        }
        Ok(())
    }

    fn slot(&self, argument: &'static str, slot: i32) -> Result<usize> {
        match usize::try_from(slot) {
            Ok(index) if index < self.slots() => Ok(index),
            _ => {
                let expected = "a slot of the pool";
                Err(ErrorKind::Value { argument, expected, got: slot.to_string() }.into())
            }
        }
    }

    fn taken_slot(&self, argument: &'static str, slot: i32) -> Result<usize> {
        match usize::try_from(slot) {
            Ok(index) if self.taken.get(index) == Some(&true) => Ok(index),
            _ => Err(ErrorKind::SlotNotAllocated { argument, got: slot.into() }.into()),
        }
    }
}
