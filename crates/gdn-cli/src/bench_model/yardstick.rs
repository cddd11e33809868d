//! How fast memory moves on this device right now.

use std::{hint::black_box, time::Instant};

use anyhow::Context;
use gdn::Cpu;
use gdn_cuda::{Arena, DeviceBuffer, Stream};

use crate::backend::AnyBackend;

/// Bytes in each buffer: far more than a cache has.
const BYTES: usize = 512 << 20;
/// A copy is made in pieces; one of all is slower.
const PIECE: usize = 64 << 20;

/// What moves memory.
#[derive(Debug)]
pub(super) enum Yardstick {
    /// Reads, on all threads.
    Host { cpu: Box<Cpu>, words: Vec<u64> },
    /// Copies from device to device.
    Gpu { stream: Stream, from: DeviceBuffer<u8>, to: DeviceBuffer<u8> },
}

impl Yardstick {
    pub(super) fn new(backend: &AnyBackend) -> anyhow::Result<Self> {
        match backend {
            AnyBackend::Cpu(cpu) => Ok(Self::Host {
                cpu: Box::new(cpu.share()),
                words: vec![1; BYTES / size_of::<u64>()],
            }),
            AnyBackend::Cuda(cuda) => {
                let stream = cuda.stream().clone();
                let arena = Arena::new(stream.device(), 2 * BYTES + 512)
                    .context("no memory for the buffers of the copy")?;
                let (from, to) = (arena.alloc(BYTES)?, arena.alloc(BYTES)?);
                Ok(Self::Gpu { stream, from, to })
            }
        }
    }

    /// The best of a few rounds.
    pub(super) fn bytes_per_s(&mut self) -> anyhow::Result<f64> {
        let mut best: f64 = 0.0;
        for _ in 0..5 {
            let begin = Instant::now();
            let bytes = self.move_once()?;
            best = best.max(bytes as f64 / begin.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    fn move_once(&mut self) -> anyhow::Result<usize> {
        match self {
            Self::Host { cpu, words } => {
                let pieces: Vec<&[u64]> = words.chunks(1 << 17).collect();
                cpu.for_each(pieces.len(), |i| {
                    black_box(read(pieces[i]));
                });
                Ok(BYTES)
            }
            Self::Gpu { stream, from, to } => {
                const ROUNDS: usize = 8;
                for _ in 0..ROUNDS {
                    for start in (0..BYTES).step_by(PIECE) {
                        let range = start..start + PIECE;
                        stream.copy(to.slice_mut(range.clone())?, from.slice(range)?)?;
                    }
                }
                stream.synchronize()?;
                Ok(2 * ROUNDS * BYTES)
            }
        }
    }
}

/// Reads all words, from four places at once: a fifth faster than from one.
fn read(words: &[u64]) -> u64 {
    const STREAMS: usize = 4;
    /// A cache line.
    const LINE: usize = 8;
    let streams: Vec<_> = words.chunks(words.len() / STREAMS).collect();
    let mut sums = [[0; LINE]; STREAMS];
    for start in (0..words.len() / STREAMS).step_by(LINE) {
        for (sums, stream) in sums.iter_mut().zip(&streams) {
            for (sum, word) in sums.iter_mut().zip(&stream[start..][..LINE]) {
                *sum ^= word;
            }
        }
    }
    sums.iter().flatten().fold(0, |sum, word| sum ^ word)
}
