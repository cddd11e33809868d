//! Snapshots: the state of one slot, kept outside the pool.

use super::StatePool;
use crate::{DType, ErrorKind, LayerSpec, Result, error::expect_dtype};

/// The state of one sequence at one position: to resume it, to try several
/// continuations, or to keep a prompt's state.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    spec: LayerSpec,
    recurrent_dtype: DType,
    conv_dtype: DType,
    recurrent: Vec<u8>,
    /// `[W − 1, C]`, oldest input first, wherever the ring stood.
    conv: Vec<u8>,
}

impl Snapshot {
    /// The size of the snapshot's states, in bytes.
    pub fn bytes(&self) -> usize {
        self.recurrent.len() + self.conv.len()
    }
}

impl StatePool {
    /// The state of a slot.
    ///
    /// # Errors
    /// [`ErrorKind::SlotNotAllocated`] for a slot that is not allocated.
    pub fn snapshot(&self, slot: i32) -> Result<Snapshot> {
        let slot = self.taken_slot("slot", slot)?;
        let spec = &self.spec;
        let recurrent = self.recurrent.bytes(slot * self.recurrent_pitch, spec.state_len())?;
        let position = self.position(slot)?;
        let mut conv = Vec::new();
        for tap in 0..spec.conv_width() - 1 {
            let start = self.tap_start(slot, position, tap);
            conv.extend_from_slice(&self.conv.bytes(start, spec.channels())?);
        }
        Ok(Snapshot {
            spec: spec.clone(),
            recurrent_dtype: self.recurrent.dtype(),
            conv_dtype: self.conv.dtype(),
            recurrent: recurrent.into_owned(),
            conv,
        })
    }

    /// Writes a snapshot over the state of a slot, bit for bit.
    ///
    /// # Errors
    /// [`ErrorKind::SlotNotAllocated`] for a slot that is not allocated;
    /// [`ErrorKind::Mismatch`] or [`ErrorKind::DType`] for a snapshot of
    /// another layer or of other dtypes.
    pub fn restore(&mut self, slot: i32, snapshot: &Snapshot) -> Result<()> {
        let slot = self.taken_slot("slot", slot)?;
        if snapshot.spec != self.spec {
            return Err(ErrorKind::Mismatch {
                argument: "snapshot",
                expected: format!("a snapshot of {:?}", self.spec),
                got: format!("{:?}", snapshot.spec),
            }
            .into());
        }
        expect_dtype("snapshot.recurrent", self.recurrent.dtype(), snapshot.recurrent_dtype)?;
        expect_dtype("snapshot.conv", self.conv.dtype(), snapshot.conv_dtype)?;
        self.recurrent.set_bytes(slot * self.recurrent_pitch, &snapshot.recurrent)?;
        self.rewind(slot)?;
        let row_bytes = self.spec.channels() * self.conv.dtype().size();
        for (tap, row) in snapshot.conv.chunks_exact(row_bytes).enumerate() {
            self.conv.set_bytes(self.tap_start(slot, 0, tap), row)?;
        }
        Ok(())
    }
}
