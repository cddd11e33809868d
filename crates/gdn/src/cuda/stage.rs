//! Tensors of the host for a call on the GPU: copied there before it, and back
//! behind it. Tensors that are on the GPU pass through.

use std::sync::Arc;

use super::{
    launch::Strided,
    runtime::{Block, Runtime},
};
use crate::{
    ConvMut, RecurrentMut, Result, Rows, RowsMut, Slots,
    pool::Phase,
    views::{Data, DataMut, SliceMut},
};

/// Device memory that grows when it must.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Option<Block>);

impl Buffer {
    /// At least `bytes` bytes, holding anything.
    pub(crate) fn get(&mut self, runtime: &Arc<dyn Runtime>, bytes: usize) -> Result<&mut Block> {
        if self.0.as_ref().is_none_or(|block| block.bytes() < bytes) {
            // The old block first: both may not fit.
            self.0 = None;
            self.0 = Some(Block::new(runtime, bytes)?);
        }
        Ok(self.0.as_mut().expect("made above"))
    }
}

/// The staged tensors of one call.
pub(crate) struct Stage<'s, 'a> {
    runtime: &'s Arc<dyn Runtime>,
    buffers: &'s mut Vec<Buffer>,
    used: usize,
    back: Vec<(usize, Back<'a>)>,
}

/// What is copied back, and where to.
enum Back<'a> {
    Elements(SliceMut<'a>),
    /// The ring positions of each slot, of which the device has one a value
    /// head.
    Phase {
        phase: &'a mut [u32],
        v_heads: usize,
        width: usize,
    },
}

impl<'s, 'a> Stage<'s, 'a> {
    pub(crate) fn new(runtime: &'s Arc<dyn Runtime>, buffers: &'s mut Vec<Buffer>) -> Self {
        Self { runtime, buffers, used: 0, back: Vec::new() }
    }

    /// A tensor to read.
    pub(crate) fn rows(&mut self, rows: &Rows<'_>) -> Result<Strided> {
        let (data, offset) = rows.data();
        let address = match data {
            Data::Device(elements) => elements.region.address,
            Data::Host(slice) => self.upload(slice.bytes())?,
        };
        let offset = (offset * rows.dtype().size()) as u64;
        Ok(Strided { address: address + offset, stride: rows.stride() })
    }

    /// The output.
    pub(crate) fn out(&mut self, out: RowsMut<'a>) -> Result<Strided> {
        let stride = out.stride();
        Ok(Strided { address: self.elements(out.into_data())?, stride })
    }

    /// Recurrent states.
    pub(crate) fn recurrent(&mut self, states: RecurrentMut<'a>) -> Result<Strided> {
        let (data, stride) = states.into_parts();
        Ok(Strided { address: self.elements(data)?, stride })
    }

    /// Conv states, and the address of their ring positions.
    pub(crate) fn conv(
        &mut self,
        conv: ConvMut<'a>,
        v_heads: usize,
        width: usize,
    ) -> Result<(Strided, u64)> {
        let (data, stride, phase) = conv.into_parts();
        let ring = Strided { address: self.elements(data)?, stride };
        let phase = match phase {
            Phase::Device(address) => address,
            Phase::Host(phase) => {
                let copies: Vec<u32> =
                    phase.iter().flat_map(|&p| std::iter::repeat_n(p, v_heads)).collect();
                let address = self.upload(bytemuck::cast_slice(&copies))?;
                self.back.push((self.used - 1, Back::Phase { phase, v_heads, width }));
                address
            }
        };
        Ok((ring, phase))
    }

    /// Slots, and whether they are i64.
    pub(crate) fn slots(&mut self, slots: Slots<'_>) -> Result<(u64, bool)> {
        Ok(match slots {
            Slots::I32(slots) => (self.upload(bytemuck::cast_slice(slots))?, false),
            Slots::I64(slots) => (self.upload(bytemuck::cast_slice(slots))?, true),
            Slots::Device(slots) => (slots.address, slots.wide),
        })
    }

    /// Copies what belongs to the host back there. Waits, if anything does.
    pub(crate) fn finish(self) -> Result<()> {
        for (index, back) in self.back {
            let block = self.buffers[index].0.as_ref().expect("it was uploaded");
            match back {
                Back::Elements(mut slice) => block.download(0, slice.bytes_mut())?,
                Back::Phase { phase, v_heads, width } => {
                    let mut copies = vec![0u32; phase.len() * v_heads];
                    block.download(0, bytemuck::cast_slice_mut(&mut copies))?;
                    for (phase, copies) in phase.iter_mut().zip(copies.chunks_exact(v_heads)) {
                        *phase = copies[0] % width as u32;
                    }
                }
            }
        }
        Ok(())
    }

    fn elements(&mut self, data: DataMut<'a>) -> Result<u64> {
        match data {
            DataMut::Device(elements) => Ok(elements.region.address),
            DataMut::Host(slice) => {
                // What lies between rows and slots must come back as it is.
                let address = self.upload(slice.as_slice().bytes())?;
                self.back.push((self.used - 1, Back::Elements(slice)));
                Ok(address)
            }
        }
    }

    fn upload(&mut self, bytes: &[u8]) -> Result<u64> {
        if self.buffers.len() == self.used {
            self.buffers.push(Buffer::default());
        }
        let block = self.buffers[self.used].get(self.runtime, bytes.len())?;
        self.used += 1;
        block.upload(0, bytes)?;
        Ok(block.address())
    }
}
