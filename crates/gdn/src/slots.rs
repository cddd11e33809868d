//! Slot indices: which state each row of a batch owns.

use crate::{ErrorKind, Place, Result, device::DeviceIntegers};

/// The slot of every row of a batch; a negative one marks a padding row.
#[derive(Clone, Copy, Debug)]
pub enum Slots<'a> {
    /// As SGLang and vLLM keep them.
    I32(&'a [i32]),
    /// PyTorch's index type.
    I64(&'a [i64]),
    /// On a GPU, of either type. The host does not see them: the kernels take one
    /// that is out of range for padding, and the next call that waits for them
    /// reports it ([`Cuda::synchronize`](crate::Cuda::synchronize)). That they
    /// differ is the caller's word: two rows on one slot overwrite each other.
    Device(DeviceIntegers<'a>),
}

impl Slots<'_> {
    /// The number of rows.
    #[allow(clippy::len_without_is_empty)] // An empty batch is a no-op like any other.
    pub fn len(&self) -> usize {
        match self {
            Self::I32(slots) => slots.len(),
            Self::I64(slots) => slots.len(),
            Self::Device(slots) => slots.len,
        }
    }

    /// The memory that holds them.
    pub fn place(&self) -> Place {
        match self {
            Self::I32(_) | Self::I64(_) => Place::Host,
            Self::Device(slots) => Place::Cuda(slots.gpu),
        }
    }

    fn get(&self, row: usize) -> i64 {
        match self {
            Self::I32(slots) => slots[row].into(),
            Self::I64(slots) => slots[row],
            Self::Device(_) => unreachable!("a backend of the host checks places first"),
        }
    }
}

impl<'a, S: Into<DeviceIntegers<'a>>> From<S> for Slots<'a> {
    fn from(slots: S) -> Self {
        Self::Device(slots.into())
    }
}

impl<'a> From<&'a [i32]> for Slots<'a> {
    fn from(slots: &'a [i32]) -> Self {
        Self::I32(slots)
    }
}

impl<'a> From<&'a [i64]> for Slots<'a> {
    fn from(slots: &'a [i64]) -> Self {
        Self::I64(slots)
    }
}

impl<'a, const N: usize> From<&'a [i32; N]> for Slots<'a> {
    fn from(slots: &'a [i32; N]) -> Self {
        Self::I32(slots)
    }
}

impl<'a> From<&'a Vec<i32>> for Slots<'a> {
    fn from(slots: &'a Vec<i32>) -> Self {
        Self::I32(slots)
    }
}

impl<'a> From<&'a Vec<i64>> for Slots<'a> {
    fn from(slots: &'a Vec<i64>) -> Self {
        Self::I64(slots)
    }
}

/// Slots that are in range and differ from one another; `None` is padding.
///
/// Only [`SlotChecker::check`] makes one, so a kernel that holds it may hand
/// the state of each row to another thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CheckedSlots<'a>(&'a [Option<u32>]);

impl<'a> CheckedSlots<'a> {
    #[inline(always)]
    pub(crate) fn get(self, row: usize) -> Option<usize> {
        self.0[row].map(|slot| slot as usize)
    }

    pub(crate) fn len(self) -> usize {
        self.0.len()
    }
}

/// Checks slots without allocating, once it has seen the largest pool.
#[derive(Debug, Default)]
pub(crate) struct SlotChecker {
    /// Per slot, the batch that used it last and the row it had there.
    seen: Vec<(u32, u32)>,
    batch: u32,
    checked: Vec<Option<u32>>,
}

impl SlotChecker {
    /// Every slot of `slots` is negative, or below `pool` and not yet taken.
    pub(crate) fn check(&mut self, slots: Slots<'_>, pool: usize) -> Result<CheckedSlots<'_>> {
        if self.seen.len() < pool {
            self.seen.resize(pool, (0, 0));
        }
        self.batch = self.batch.wrapping_add(1);
        if self.batch == 0 {
            self.seen.fill((0, 0));
            self.batch = 1;
        }
        self.checked.clear();
        for row in 0..slots.len() {
            let got = slots.get(row);
            self.checked.push(match usize::try_from(got) {
                Err(_) if got < 0 => None,
                Ok(slot) if slot < pool => {
                    let (batch, first) = self.seen[slot];
                    if batch == self.batch {
                        let first = first as usize;
                        return Err(ErrorKind::DuplicateSlot { slot, first, second: row }.into());
                    }
                    self.seen[slot] = (self.batch, row as u32);
                    Some(slot as u32)
                }
                _ => return Err(ErrorKind::SlotOutOfRange { row, slots: pool, got }.into()),
            });
        }
        Ok(CheckedSlots(&self.checked))
    }

    /// Which rows are padding, for an operator that has no state: every other
    /// row gets a slot of its own.
    pub(crate) fn signs(&mut self, slots: Slots<'_>) -> CheckedSlots<'_> {
        self.checked.clear();
        let rows = 0..slots.len();
        self.checked.extend(rows.map(|row| (slots.get(row) >= 0).then_some(row as u32)));
        CheckedSlots(&self.checked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_may_return_in_the_next_batch() {
        let mut checker = SlotChecker::default();
        for _ in 0..3 {
            let checked = checker.check((&[2, -1, 0]).into(), 3).unwrap();
            assert_eq!([0, 1, 2].map(|row| checked.get(row)), [Some(2), None, Some(0)]);
        }
    }

    #[test]
    fn the_batch_counter_may_wrap() {
        let mut checker = SlotChecker { batch: u32::MAX - 1, ..Default::default() };
        for _ in 0..4 {
            checker.check((&[0, 1]).into(), 2).unwrap();
            checker.check((&[1, 1]).into(), 2).unwrap_err();
        }
    }

    #[test]
    fn bad_slots_are_named() {
        let mut checker = SlotChecker::default();
        let error = checker.check((&[0, 5]).into(), 3).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::SlotOutOfRange { row: 1, slots: 3, got: 5 });
        let error = checker.check((&[1, -1, 1]).into(), 3).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::DuplicateSlot { slot: 1, first: 0, second: 2 });
        let huge = vec![i64::from(u32::MAX) + 1];
        let error = checker.check((&huge).into(), 3).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::SlotOutOfRange { row: 0, .. }));
    }
}
