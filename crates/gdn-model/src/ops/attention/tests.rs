use std::ops::Range;

use gdn::{DType, bf16, cuda::runtime::Block};
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};

use super::{
    Heads, PAGE, cpu,
    cuda::{self, Chunk, DecodeForm, Params, PrefillForm, Tile},
};
use crate::{cuda::Gpu, math::Math, ops::testing::*};

const POSITIONS: [usize; 10] = [0, 1, 62, 63, 64, 65, 511, 512, 513, 1030];
const BY_ONE: DecodeForm = DecodeForm { pages: 1, stages: 3 };
const BY_TWO: DecodeForm = DecodeForm { pages: 2, stages: 3 };

const fn heads(kv: usize, ratio: usize, dim: usize) -> Heads {
    Heads { kv, ratio, dim }
}

/// Sequences in a cache whose pages lie in random order; what they don't hold is NaN.
struct Cache {
    heads: Heads,
    keys: Vec<f32>,
    values: Vec<f32>,
    pages: Vec<i32>,
    max_pages: usize,
}

impl Cache {
    fn new(heads: Heads, lengths: &[usize], seed: u64) -> Self {
        let pitch = heads.kv * heads.dim;
        let max_pages = lengths.iter().max().unwrap().div_ceil(PAGE);
        let mut free: Vec<i32> = (0..(lengths.len() * max_pages) as i32 + 3).collect();
        free.shuffle(&mut SmallRng::seed_from_u64(seed));
        let nowhere = vec![f32::NAN; free.len() * PAGE * pitch];
        let pages = free[..lengths.len() * max_pages].to_vec();
        let mut cache = Self { heads, keys: nowhere.clone(), values: nowhere, pages, max_pages };
        for (sequence, &len) in lengths.iter().enumerate() {
            // A sequence's numbers depend on its place in `lengths` alone.
            let seed = 10 * sequence as u64;
            let (keys, values) = (random(seed, len * pitch), random(seed + 1, len * pitch));
            for position in 0..len {
                let (to, from) = (cache.row(sequence, position), position * pitch);
                cache.keys[to..][..pitch].copy_from_slice(&keys[from..][..pitch]);
                cache.values[to..][..pitch].copy_from_slice(&values[from..][..pitch]);
            }
        }
        cache
    }

    fn row(&self, sequence: usize, position: usize) -> usize {
        let page = self.pages[sequence * self.max_pages + position / PAGE] as usize;
        (page * PAGE + position % PAGE) * self.heads.kv * self.heads.dim
    }

    fn on_cpu(&self) -> cpu::Cache<'_> {
        let Self { keys, values, pages, max_pages, .. } = self;
        cpu::Cache { keys, values, pages, max_pages: *max_pages }
    }
}

/// Rows `(sequence, position)`, whose numbers depend on these two alone.
struct Rows {
    heads: Heads,
    at: Vec<(i32, usize)>,
    q: Vec<f32>,
    gates: Vec<f32>,
    stride: usize,
    positions: Vec<i32>,
    sequences: Vec<i32>,
}

impl Rows {
    fn new(heads: Heads, at: &[(i32, usize)]) -> Self {
        let len = heads.queries() * heads.dim;
        let stride = 2 * len + 8;
        let (mut q, mut gates) = (Vec::new(), Vec::new());
        for &(sequence, position) in at {
            let seed = ((sequence as u64) << 32) + 2 * position as u64;
            // Large enough that few keys matter, and which they are.
            q.extend(random(seed, len).iter().map(|q| 4.0 * q));
            gates.extend(random(seed + 1, stride));
        }
        let positions = at.iter().map(|&(_, position)| position as i32).collect();
        let sequences = at.iter().map(|&(sequence, _)| sequence).collect();
        Self { heads, at: at.to_vec(), q, gates, stride, positions, sequences }
    }

    /// The definition, in f64.
    fn expected(&self, cache: &Cache) -> Vec<f32> {
        let Heads { ratio, dim, .. } = self.heads;
        let mut out = Vec::new();
        for (row, &(sequence, position)) in self.at.iter().enumerate() {
            for head in 0..self.heads.queries() {
                if sequence < 0 {
                    out.extend(vec![0.0; dim]);
                    continue;
                }
                let q = &self.q[(row * self.heads.queries() + head) * dim..][..dim];
                let start = |i| cache.row(sequence as usize, i) + head / ratio * dim;
                let score = |i| {
                    let pairs = q.iter().zip(&cache.keys[start(i)..]);
                    let dot: f64 = pairs.map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    dot / (dim as f64).sqrt()
                };
                let scores: Vec<f64> = (0..=position).map(score).collect();
                let max = scores.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                for d in 0..dim {
                    let value = |i: usize| f64::from(cache.values[start(i) + d]);
                    let share = |(i, s): (usize, &f64)| (s - max).exp() / sum * value(i);
                    let found: f64 = scores.iter().enumerate().map(share).sum();
                    let gate = self.gates[row * self.stride + (2 * head + 1) * dim + d];
                    out.push((found / (1.0 + (-f64::from(gate)).exp())) as f32);
                }
            }
        }
        out
    }

    fn on_cpu(&self, cache: &Cache) -> Vec<f32> {
        let Self { q, gates, stride, positions, sequences, .. } = self;
        let rows = cpu::Rows { q, gates, gate_stride: *stride, positions, sequences };
        let mut out = vec![f32::NAN; q.len()];
        cpu::attention(Math::new(true), self.heads, rows, cache.on_cpu(), &mut out);
        out
    }
}

/// A cache and rows on the GPU.
struct OnGpu<'a> {
    gpu: &'a Gpu,
    rows: &'a Rows,
    out: Block,
    params: Params,
    counters: Block,
    _blocks: Vec<Block>,
}

impl<'a> OnGpu<'a> {
    fn new(gpu: &'a Gpu, cache: &Cache, rows: &'a Rows, tiles: &[Tile], items: usize) -> Self {
        let blocks = vec![
            upload_act(gpu, &rows.q),
            upload_act(gpu, &rows.gates),
            upload_act(gpu, &cache.keys),
            upload_act(gpu, &cache.values),
            upload(gpu, &cache.pages),
            upload(gpu, &rows.positions),
            upload(gpu, &rows.sequences),
            upload(gpu, tiles),
            Block::new(&gpu.runtime, items * cuda::partial_bytes(rows.heads)).unwrap(),
        ];
        let out = upload_act(gpu, &vec![f32::NAN; rows.q.len()]);
        let counters = upload(gpu, &vec![0u32; rows.at.len() * rows.heads.kv]);
        let [q, gates, keys, values, pages, positions, sequences, tiles, partials] =
            std::array::from_fn(|i| blocks[i].address());
        let params = Params {
            q,
            gates,
            keys,
            values,
            pages,
            positions,
            sequences,
            out: out.address(),
            tiles,
            partials,
            counters: counters.address(),
            gate_stride: rows.stride as i64,
            rows: rows.at.len() as u32,
            kv_heads: 0,
            max_pages: cache.max_pages as u32,
            max_items: items as u32,
            scale: 0.0,
            pad: 0,
        };
        Self { gpu, rows, out, params, counters, _blocks: blocks }
    }

    fn out(&self) -> Vec<f32> {
        assert!(download::<u32>(&self.counters, self.rows.at.len()).iter().all(|&n| n == 0));
        download_act(self.gpu, &self.out, self.rows.q.len())
    }
}

fn decode(gpu: &Gpu, cache: &Cache, rows: &Rows, items: usize, form: DecodeForm) -> Vec<f32> {
    let on = OnGpu::new(gpu, cache, rows, &[], items);
    match gpu.activations {
        DType::BF16 => form.launch(gpu, rows.heads, on.params).unwrap(),
        _ => cuda::decode(gpu, rows.heads, on.params).unwrap(),
    }
    on.out()
}

/// The positions of sequence 0, in chunks of so many rows, all in one launch.
fn prefill(
    gpu: &Gpu,
    cache: &Cache,
    positions: Range<usize>,
    chunk: usize,
    form: PrefillForm,
) -> Vec<f32> {
    let at: Vec<_> = positions.clone().map(|position| (0, position)).collect();
    let rows = Rows::new(cache.heads, &at);
    let chunk = |first: usize| Chunk {
        first,
        rows: chunk.min(at.len() - first),
        sequence: 0,
        position: positions.start + first,
    };
    let chunks: Vec<_> = (0..at.len()).step_by(chunk(0).rows).map(chunk).collect();
    let tiles = form.tiles(cache.heads, &chunks);
    let on = OnGpu::new(gpu, cache, &rows, &tiles, 0);
    form.launch(gpu, cache.heads, tiles.len(), on.params).unwrap();
    on.out()
}

/// One sequence for every position, and padding.
fn mixed(heads: Heads, positions: &[usize]) -> (Cache, Rows) {
    let lengths: Vec<usize> = positions.iter().map(|position| position + 1).collect();
    let mut at: Vec<_> = (0..).zip(positions.iter().copied()).collect();
    at.insert(1, (-1, 0));
    (Cache::new(heads, &lengths, 1), Rows::new(heads, &at))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_cpu_gives_what_the_definition_gives() {
    for heads in [heads(2, 1, 32), heads(2, 4, 256), heads(1, 3, 40)] {
        let (cache, rows) = mixed(heads, &POSITIONS);
        assert_close(&rows.on_cpu(&cache), &rows.expected(&cache), 2e-6);
    }
}

#[test]
fn f32_gives_what_the_definition_gives() {
    for heads in [heads(2, 1, 32), heads(1, 4, 256)] {
        let (cache, rows) = mixed(heads, &POSITIONS);
        let expected = rows.expected(&cache);
        for gpu in gpus(DType::F32) {
            assert_close(&decode(&gpu, &cache, &rows, 0, BY_ONE), &expected, 2e-6);
        }
    }
}

#[test]
fn bf16_gives_what_the_definition_gives() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let cases = [
        (heads(1, 16, 256), &POSITIONS[7..], BY_TWO),
        (heads(2, 1, 64), &POSITIONS, BY_ONE),
        (heads(1, 4, 128), &POSITIONS, BY_TWO),
        (heads(2, 6, 64), &POSITIONS[5..9], BY_ONE),
        (heads(1, 12, 192), &POSITIONS[..4], BY_ONE),
    ];
    for (heads, positions, form) in cases {
        let (cache, rows) = mixed(heads, positions);
        let got = decode(&gpu, &cache, &rows, 64, form);
        assert_close(&got, &rows.expected(&cache), 8e-3);
        assert!(
            got[heads.queries() * heads.dim..][..heads.queries() * heads.dim]
                == vec![0.0; heads.queries() * heads.dim]
        );
    }
}

#[test]
fn rows_have_the_same_bits_in_any_batch_and_tile() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let (cache, rows) = mixed(heads(2, 4, 128), &POSITIONS[4..]);
    let all = decode(&gpu, &cache, &rows, 64, BY_ONE);
    // Two pages a step, items of whole rows, other pages.
    assert_eq!(bits(&all), bits(&decode(&gpu, &cache, &rows, 64, BY_TWO)));
    assert_eq!(bits(&all), bits(&decode(&gpu, &cache, &rows, 0, BY_ONE)));
    assert_eq!(bits(&all), bits(&decode(&gpu, &cache, &rows, 0, BY_TWO)));
    for gpu in gpus(DType::BF16) {
        assert_eq!(bits(&all), bits(&decode(&gpu, &cache, &rows, 64, BY_ONE)));
        assert_eq!(bits(&all), bits(&decode(&gpu, &cache, &rows, 64, BY_TWO)));
    }
    let lengths: Vec<_> = POSITIONS[4..].iter().map(|position| position + 9).collect();
    let elsewhere = Cache::new(cache.heads, &lengths, 2);
    let len = cache.heads.queries() * cache.heads.dim;
    for (i, &at) in rows.at.iter().enumerate() {
        let alone = decode(&gpu, &elsewhere, &Rows::new(cache.heads, &[at]), 64, BY_ONE);
        assert_eq!(bits(&all[i * len..][..len]), bits(&alone), "row {i}");
    }
}

#[test]
fn prefill_has_the_bits_of_decode() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let (four, eight) = (PrefillForm { warps: 4, stages: 2 }, PrefillForm { warps: 8, stages: 4 });
    let cases = [
        (heads(1, 8, 64), 0..70, vec![(1, four), (7, four), (64, four), (64, eight)]),
        (heads(2, 6, 64), 500..530, vec![(7, four), (64, four)]),
        (heads(1, 1, 64), 1010..1040, vec![(9, eight), (64, eight)]),
        (heads(1, 16, 256), 510..515, vec![(2, eight), (64, eight)]),
    ];
    for (heads, positions, forms) in cases {
        let at: Vec<_> = positions.clone().map(|position| (0, position)).collect();
        let rows = Rows::new(heads, &at);
        let cache = Cache::new(heads, &[positions.end], 3);
        let expected = decode(&gpu, &cache, &rows, 1000, BY_ONE);
        assert_close(&expected, &rows.expected(&cache), 8e-3);
        for (chunk, form) in forms {
            let got = prefill(&gpu, &cache, positions.clone(), chunk, form);
            assert_eq!(bits(&got), bits(&expected), "{heads:?}, chunks of {chunk}, {form:?}");
        }
    }
}

#[test]
fn prefill_takes_several_sequences_and_padding() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let heads = heads(1, 8, 64);
    let cache = Cache::new(heads, &[20, 130, 9], 4);
    let ranges = [(1, 100..130), (-1, 0..3), (2, 0..9), (0, 19..20)];
    let (mut at, mut chunks) = (Vec::new(), Vec::new());
    for (sequence, positions) in ranges {
        let position = positions.start;
        chunks.push(Chunk { first: at.len(), rows: positions.len(), sequence, position });
        at.extend(positions.map(|position| (sequence, position)));
    }
    let rows = Rows::new(heads, &at);
    let (form, tiles) = cuda::tiles(&gpu, heads, &chunks);
    let expected = decode(&gpu, &cache, &rows, 1000, BY_ONE);
    assert_close(&expected, &rows.expected(&cache), 8e-3);
    for gpu in gpus(DType::BF16) {
        let on = OnGpu::new(&gpu, &cache, &rows, &tiles, 0);
        cuda::prefill(&gpu, heads, form, tiles.len(), on.params).unwrap();
        assert_eq!(bits(&on.out()), bits(&expected));
    }
}

#[test]
fn tiles_cover_all_rows_and_the_longest_come_first() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let chunk = |first, rows, position| Chunk { first, rows, sequence: 0, position };
    let tiles = |chunks: &[Chunk]| {
        let (_, tiles) = cuda::tiles(&gpu, heads(1, 12, 256), chunks);
        tiles.iter().map(|tile| (tile.first, tile.rows)).collect::<Vec<_>>()
    };
    // Few rows lie in smaller tiles than many.
    let few = tiles(&[chunk(0, 7, 0), chunk(7, 1, 99)]);
    assert_eq!(few, [(7, 1), (5, 2), (0, 5)]);
    let many = tiles(&[chunk(0, 1013, 0), chunk(1013, 1, 9999)]);
    assert_eq!(many[..3], [(1013, 1), (1010, 3), (1000, 10)]);
    assert_eq!(many.iter().map(|&(_, rows)| rows).sum::<u32>(), 1014);
}

#[test]
fn the_cpu_knows_no_company() {
    let (cache, rows) = mixed(heads(1, 2, 64), &POSITIONS);
    let all = rows.on_cpu(&cache);
    for (at, all) in rows.at.iter().zip(all.chunks(128)) {
        let alone = Rows::new(cache.heads, &[*at]).on_cpu(&cache);
        assert_eq!(bits(&alone), bits(all));
    }
}

/// A head has the same bits whether it shares a task with others or not.
#[test]
fn the_cpu_knows_no_threads() {
    let (cache, rows) = mixed(heads(2, 6, 64), &POSITIONS);
    let row = Rows::new(cache.heads, &rows.at[rows.at.len() - 1..]);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        bits(&pool.install(|| row.on_cpu(&cache)))
    };
    let (together, alone) = (on(1), on(12));
    assert_eq!(together, alone);
    assert_eq!(together, on(5));
}

#[test]
fn what_is_tested_is_what_bf16_has() {
    let (_, rows) = mixed(heads(1, 1, 32), &POSITIONS);
    assert!(rows.q.iter().all(|&q| bf16::from_f32(q).to_f32() == q));
}
