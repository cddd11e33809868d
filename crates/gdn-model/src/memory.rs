//! Where sequences keep what they remember: a state slot in every Gated DeltaNet
//! layer, pages of keys and values in every full-attention layer.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, Result};

/// Tokens of a page.
pub(crate) const PAGE: usize = 64;

/// A device's memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// What nobody holds, of this process or another.
    pub(crate) free: usize,
    pub(crate) total: usize,
    /// What a page takes.
    pub(crate) page: usize,
}

impl Room {
    /// The pages that fit if all that is held, by whomever, may be `fraction` of the memory.
    pub(crate) fn pages(&self, fraction: f64) -> usize {
        let allowed = (self.total as f64 * fraction) as usize;
        let left = allowed.saturating_sub(self.used());
        left.checked_div(self.page).unwrap_or(usize::MAX)
    }

    pub(crate) fn used(&self) -> usize {
        self.total.saturating_sub(self.free)
    }
}

/// The slots and pages of a model, those of all layers alike.
#[derive(Debug)]
pub(crate) struct Memory {
    slots: usize,
    pages: usize,
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    /// Slots that were never used, or were zeroed since.
    slots: Vec<i32>,
    /// Slots that hold what a dropped sequence left.
    used: Vec<i32>,
    pages: Vec<i32>,
    /// The sequences that hold each page.
    holders: Vec<u32>,
}

/// What a model remembers of the tokens that it has seen: a fixed-size state in
/// each Gated DeltaNet layer, keys and values in each full-attention layer.
///
/// [`Model::sequence`](crate::Model::sequence) makes one. Its memory goes back to
/// the model when it is dropped.
#[derive(Debug)]
pub struct Sequence {
    memory: Arc<Memory>,
    slot: i32,
    pages: Vec<i32>,
    len: usize,
}

impl Memory {
    pub(crate) fn new(slots: usize, pages: usize) -> Arc<Self> {
        let free = Free {
            slots: (0..slots as i32).rev().collect(),
            used: Vec::new(),
            pages: (0..pages as i32).rev().collect(),
            holders: vec![0; pages],
        };
        Arc::new(Self { slots, pages, free: Mutex::new(free) })
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Free> {
        // Plain lists: whole whenever someone panics.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sequence without tokens. `zero` clears a slot that was used before.
    pub(crate) fn sequence(
        self: &Arc<Self>,
        zero: impl FnOnce(i32) -> Result<()>,
    ) -> Result<Sequence> {
        let fresh = self.free().slots.pop();
        let slot = match fresh {
            Some(slot) => slot,
            None => {
                let slot = self.free().used.pop().ok_or(Error::NoSlot { slots: self.slots })?;
                if let Err(error) = zero(slot) {
                    self.free().used.push(slot);
                    return Err(error);
                }
                slot
            }
        };
        Ok(Sequence { memory: self.clone(), slot, pages: Vec::new(), len: 0 })
    }

    /// A sequence that shares all full pages with another. `copy` is called with the slots
    /// to copy from and to, and the pages if the last one is not full.
    pub(crate) fn fork(
        self: &Arc<Self>,
        of: &Sequence,
        copy: impl FnOnce([i32; 2], Option<[i32; 2]>) -> Result<()>,
    ) -> Result<Sequence> {
        let full = of.len / PAGE;
        let mut fork = self.sequence(|_| Ok(()))?;
        fork.len = full * PAGE;
        {
            let mut free = self.free();
            fork.pages.extend_from_slice(&of.pages[..full]);
            fork.pages.iter().for_each(|&page| free.holders[page as usize] += 1);
        }
        let rest = of.len - fork.len;
        fork.reserve(rest)?;
        let last = (rest > 0).then(|| [of.pages[full], fork.pages[full]]);
        copy([of.slot, fork.slot], last)?;
        fork.len = of.len;
        Ok(fork)
    }

    pub(crate) fn owns(self: &Arc<Self>, sequence: &Sequence) -> bool {
        Arc::ptr_eq(self, &sequence.memory)
    }

    /// The slots and pages that nobody holds.
    pub(crate) fn left(&self) -> (usize, usize) {
        let free = self.free();
        (free.slots.len() + free.used.len(), free.pages.len())
    }
}

impl Sequence {
    /// The number of tokens seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn slot(&self) -> i32 {
        self.slot
    }

    pub(crate) fn pages(&self) -> &[i32] {
        &self.pages
    }

    /// Takes the pages that so many more tokens need, as a forward pass does that finds
    /// them not taken yet.
    ///
    /// # Errors
    /// [`Error::NoPages`]; none was taken then.
    pub fn reserve(&mut self, tokens: usize) -> Result<()> {
        let more = (self.len + tokens).div_ceil(PAGE).saturating_sub(self.pages.len());
        let mut free = self.memory.free();
        let left = free.pages.len();
        if more > left {
            return Err(Error::NoPages {
                pages: self.memory.pages,
                left,
                needed: more,
                page: PAGE,
            });
        }
        let Free { pages, holders, .. } = &mut *free;
        for page in pages.drain(left - more..).rev() {
            holders[page as usize] = 1;
            self.pages.push(page);
        }
        Ok(())
    }

    /// Tokens that a forward pass has seen.
    pub(crate) fn extend(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        let mut free = self.memory.free();
        free.used.push(self.slot);
        let Free { pages, holders, .. } = &mut *free;
        for &page in &self.pages {
            holders[page as usize] -= 1;
            if holders[page as usize] == 0 {
                pages.push(page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_take_what_is_left_of_a_fraction() {
        let room = Room { free: 600, total: 1000, page: 30 };
        assert_eq!(room.pages(1.0), 20);
        assert_eq!(room.pages(0.88), 16);
        assert_eq!(room.pages(0.43), 1);
        // What is held takes more alone.
        assert_eq!((room.pages(0.42), room.pages(0.1)), (0, 0));
        // A model without keys and values.
        assert_eq!(Room { page: 0, ..room }.pages(0.5), usize::MAX);
        // Of a large GPU: 141 GB, 70 of them held, 20 KiB a token.
        let room = Room { free: 71_000_000_000, total: 141_000_000_000, page: 64 * 20 * 1024 };
        assert_eq!(room.pages(0.88), 54_080_000_000 / (64 * 20 * 1024));
    }
}
