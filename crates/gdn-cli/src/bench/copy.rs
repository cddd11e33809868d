//! A copy that reads and writes as many bytes as decode does, to compare with.

use std::sync::Mutex;

use anyhow::Context;
use gdn::Cpu;
use memmap2::{MmapMut, MmapOptions};

use super::plan::Plan;

/// The memory of the copy, mapped as the state pool maps its own.
#[derive(Debug)]
pub(super) struct Buffers {
    source: MmapMut,
    target: MmapMut,
}

impl Buffers {
    pub(super) fn new(plan: &Plan) -> anyhow::Result<Self> {
        let len = plan.copy_blocks * plan.slot_bytes as usize;
        let buffer = |fill: u8| {
            let mut map = MmapOptions::new().len(len).map_anon()?;
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            // Pages that were never written are all the one page of zeros.
            map.fill(fill);
            Ok::<_, std::io::Error>(map)
        };
        let buffers = || Ok::<_, std::io::Error>(Self { source: buffer(1)?, target: buffer(2)? });
        buffers().context("no memory for the buffers of the copy; lower --batch-sizes")
    }

    /// The buffers in tiles of a head's state, the unit of work of decode.
    pub(super) fn blocks(&mut self, plan: &Plan) -> Blocks<'_> {
        let heads = plan.spec.v_heads();
        let tile = plan.slot_bytes as usize / heads;
        Blocks {
            heads,
            source: self.source.chunks_exact(tile).collect(),
            target: self.target.chunks_exact_mut(tile).map(Mutex::new).collect(),
        }
    }
}

/// Source and target, block behind block, a block's tiles behind one another.
#[derive(Debug)]
pub(super) struct Blocks<'a> {
    heads: usize,
    source: Vec<&'a [u8]>,
    /// Each lock is free: it tells the compiler what the slots tell us, that no
    /// two threads write one tile.
    target: Vec<Mutex<&'a mut [u8]>>,
}

impl Blocks<'_> {
    /// The number of blocks in each buffer.
    pub(super) fn len(&self) -> usize {
        self.source.len() / self.heads
    }

    /// Copies these blocks from source to target, on all threads.
    pub(super) fn copy(&self, cpu: &Cpu, blocks: &[i32]) {
        cpu.for_each(blocks.len() * self.heads, |index| {
            let block = blocks[index / self.heads] as usize;
            let tile = block * self.heads + index % self.heads;
            let mut target = self.target[tile].lock().expect("copying does not panic");
            target.copy_from_slice(self.source[tile]);
        });
    }
}
