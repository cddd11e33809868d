use gdn::DType;

use super::{
    PAGE,
    cpu::{self, Heads, Places},
    cuda,
};
use crate::{cuda::Gpu, math::Math, ops::testing::*};

const PAGES: usize = 6;
const EPS: f32 = 1e-6;

struct Case {
    dim: usize,
    heads: usize,
    kv_heads: usize,
    frequencies: Vec<f32>,
    positions: Vec<i32>,
    sequences: Vec<i32>,
    table: Vec<i32>,
    max_pages: usize,
    p: Vec<f32>,
}

struct Out {
    q: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Case {
    /// Two sequences of few pages, one of them far on; the second row is padding.
    fn new(dim: usize, half: usize, heads: usize, kv_heads: usize) -> Self {
        let frequencies = (0..half).map(|i| 1e7f32.powf(-(i as f32) / half as f32)).collect();
        let max_pages = 262_144 / PAGE;
        let mut table = vec![-1; 2 * max_pages];
        table[..3].copy_from_slice(&[4, 0, 5]);
        table[2 * max_pages - 1] = 2;
        let (positions, sequences) =
            (vec![0, 5, 63, 64, 130, 262_143, 200, 262_144], vec![0, -1, 0, 0, 0, 1, 0, 1]);
        let p = random(9, positions.len() * (2 * heads + 2 * kv_heads) * dim);
        Self { dim, heads, kv_heads, frequencies, positions, sequences, table, max_pages, p }
    }

    fn norms(&self) -> (Vec<f32>, Vec<f32>) {
        (random(2, self.dim), random(3, self.dim))
    }

    fn nothing(&self) -> Out {
        let pages = PAGES * PAGE * self.kv_heads * self.dim;
        let q = self.positions.len() * self.heads * self.dim;
        Out { q: vec![77.0; q], keys: vec![77.0; pages], values: vec![77.0; pages] }
    }

    fn on_cpu(&self) -> Out {
        let (q_norm, k_norm) = self.norms();
        let heads = Heads {
            heads: self.heads,
            kv_heads: self.kv_heads,
            q_norm: &q_norm,
            k_norm: &k_norm,
            eps: EPS,
            frequencies: &self.frequencies,
        };
        let places = Places {
            positions: &self.positions,
            sequences: &self.sequences,
            table: &self.table,
            max_pages: self.max_pages,
        };
        let mut out = self.nothing();
        let Out { q, keys, values } = &mut out;
        cpu::qkv(Math::new(true), &self.p, heads, places, q, keys, values);
        out
    }

    /// With rows of `p` that lie apart.
    fn on_gpu(&self, gpu: &Gpu) -> Out {
        let row = (2 * self.heads + 2 * self.kv_heads) * self.dim;
        let apart = |row: &[f32]| [row, &[f32::NAN; 8]].concat();
        let p: Vec<f32> = self.p.chunks(row).flat_map(apart).collect();
        let ((q_norm, k_norm), nothing) = (self.norms(), self.nothing());
        let (p, q_norm, k_norm) = (upload_act(gpu, &p), upload(gpu, &q_norm), upload(gpu, &k_norm));
        let frequencies = upload(gpu, &self.frequencies);
        let on = [&self.positions, &self.sequences, &self.table].map(|values| upload(gpu, values));
        let [q, keys, values] =
            [&nothing.q, &nothing.keys, &nothing.values].map(|values| upload_act(gpu, values));
        let params = cuda::Params {
            p: p.address(),
            q_norm: q_norm.address(),
            k_norm: k_norm.address(),
            frequencies: frequencies.address(),
            positions: on[0].address(),
            sequences: on[1].address(),
            table: on[2].address(),
            q: q.address(),
            keys: keys.address(),
            values: values.address(),
            stride: row as u64 + 8,
            rows: self.positions.len() as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            max_pages: self.max_pages as u32,
            pages: PAGES as u32,
            eps: EPS,
        };
        cuda::qkv(gpu, self.dim, self.frequencies.len(), params).unwrap();
        Out {
            q: download_act(gpu, &q, nothing.q.len()),
            keys: download_act(gpu, &keys, nothing.keys.len()),
            values: download_act(gpu, &values, nothing.values.len()),
        }
    }

    /// A head of q in f64.
    fn head(&self, row: usize, head: usize) -> Vec<f64> {
        let (dim, half) = (self.dim, self.frequencies.len());
        let start = row * (2 * self.heads + 2 * self.kv_heads) * dim + 2 * head * dim;
        let x: Vec<f64> = self.p[start..][..dim].iter().map(|&x| x.into()).collect();
        let mean = x.iter().map(|x| x * x).sum::<f64>() / dim as f64;
        let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
        let norm = self.norms().0;
        let x: Vec<f64> = x.iter().zip(norm).map(|(x, norm)| x * scale * f64::from(norm)).collect();
        let mut turned = x.clone();
        for (i, frequency) in self.frequencies.iter().enumerate() {
            let (sin, cos) = f64::from(self.positions[row] as f32 * frequency).sin_cos();
            turned[i] = x[i] * cos - x[i + half] * sin;
            turned[i + half] = x[i + half] * cos + x[i] * sin;
        }
        turned
    }
}

#[test]
fn cuda_gives_what_the_cpu_gives() {
    for (activations, tolerance) in [(DType::F32, 2e-6), (DType::BF16, 4e-3)] {
        let other = if activations == DType::F32 { (128, 13, 2, 1) } else { (96, 48, 3, 3) };
        for (dim, half, heads, kv_heads) in [(256, 32, 5, 2), other] {
            let case = Case::new(dim, half, heads, kv_heads);
            for gpu in gpus(activations) {
                let (expected, got) = (case.on_cpu(), case.on_gpu(&gpu));
                assert_close(&got.q, &expected.q, tolerance);
                assert_close(&got.keys, &expected.keys, tolerance);
                assert_eq!(got.values, expected.values);
                assert!(
                    expected.q[heads * dim..][..heads * dim].iter().all(|&x| x == 77.0),
                    "padding"
                );
                let written = expected.values.chunks(kv_heads * dim).filter(|row| row[0] != 77.0);
                assert_eq!(written.count(), 5, "those with a page");
            }
        }
    }
}

#[test]
fn heads_are_what_f64_makes_of_them() {
    let case = Case::new(256, 32, 2, 1);
    let q = case.on_cpu().q;
    for (row, head) in [(0, 0), (3, 1), (5, 1)] {
        let got = q[(row * 2 + head) * 256..][..256].iter();
        for (got, expected) in got.zip(case.head(row, head)) {
            assert!((f64::from(*got) - expected).abs() < 2e-6, "{got} {expected}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    for activations in [DType::F32, DType::BF16] {
        let Some(gpu) = gpu(activations) else { return };
        let mut case = Case::new(256, 32, 3, 1);
        let (row, q) = (8 * 256, 3 * 256);
        let all = case.on_gpu(&gpu);
        case.p = case.p[3 * row..][..row].to_vec();
        (case.positions, case.sequences) = (vec![64], vec![0]);
        let one = case.on_gpu(&gpu);
        assert_eq!(one.q, all.q[3 * q..][..q]);
        // Position 64 is the first of the second page, which is number 0.
        assert_eq!(one.keys[..256], all.keys[..256]);
        assert_eq!(one.values[..256], all.values[..256]);
    }
}
