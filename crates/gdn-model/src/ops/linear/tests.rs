use gdn::{DType, bf16};

use super::{
    cuda::{self, Args, Tile, launch},
    reference,
};
use crate::{cuda::Gpu, ops::testing::*};

const TILES: [Tile; 16] = [
    Tile::Stream { rows16: 1, pairs8: 1, ahead: 8, ctas: 3 },
    Tile::Stream { rows16: 1, pairs8: 2, ahead: 8, ctas: 70 },
    Tile::Stream { rows16: 2, pairs8: 4, ahead: 6, ctas: 1 },
    SMALL,
    Tile::Shared { warps: (2, 2), rows16: 2, pairs8: 4, ahead: 6, cluster: 4 },
    Tile::Shared { warps: (2, 4), rows16: 4, pairs8: 4, ahead: 5, cluster: 1 },
    Tile::Shared { warps: (4, 1), rows16: 1, pairs8: 4, ahead: 3, cluster: 1 },
    Tile::Shared { warps: (2, 2), rows16: 3, pairs8: 5, ahead: 8, cluster: 1 },
    Tile::Shared { warps: (2, 2), rows16: 2, pairs8: 6, ahead: 5, cluster: 4 },
    Tile::Shared { warps: (2, 4), rows16: 3, pairs8: 4, ahead: 7, cluster: 1 },
    Tile::Groups { groups: 1, rows: 64, pairs8: 1, ahead: 6, cluster: 1, fed: false },
    Tile::Groups { groups: 1, rows: 16, pairs8: 2, ahead: 5, cluster: 4, fed: false },
    Tile::Groups { groups: 1, rows: 48, pairs8: 4, ahead: 7, cluster: 1, fed: false },
    Tile::Groups { groups: 1, rows: 32, pairs8: 12, ahead: 3, cluster: 4, fed: false },
    Tile::Groups { groups: 2, rows: 128, pairs8: 4, ahead: 2, cluster: 1, fed: true },
    Tile::Groups { groups: 2, rows: 112, pairs8: 24, ahead: 5, cluster: 1, fed: true },
];
const SMALL: Tile = Tile::Shared { warps: (2, 2), rows16: 2, pairs8: 4, ahead: 6, cluster: 1 };

/// A weight and rows, of random numbers.
struct Problem {
    outputs: usize,
    k: usize,
    gated: bool,
    f32_out: bool,
    w: Vec<f32>,
    x: Vec<f32>,
}

impl Problem {
    fn new(rows: usize, outputs: usize, k: usize, gated: bool) -> Self {
        let w = random(1, (outputs << u32::from(gated)) * k);
        Self { outputs, k, gated, f32_out: !gated, w, x: random(2, rows * k) }
    }

    /// What the GPU makes of `rows`, through `tile` or else what it chooses. Rows lie
    /// apart, in NaN.
    fn on(&self, gpu: &Gpu, rows: std::ops::Range<usize>, tile: Option<Tile>) -> Vec<f32> {
        let Self { outputs, k, gated, f32_out, .. } = *self;
        let (x_stride, y_stride) = (k + 8, outputs + 5);
        let mut x = vec![f32::NAN; rows.len() * x_stride];
        for (to, from) in x.chunks_mut(x_stride).zip(self.x[rows.start * k..].chunks(k)) {
            to[..k].copy_from_slice(from);
        }
        let (w, x) = (upload(gpu, &rounded(&self.w)), upload_act(gpu, &x));
        let nan = vec![f32::NAN; rows.len() * y_stride];
        let y = if f32_out { upload(gpu, &nan) } else { upload_act(gpu, &nan) };
        let args = Args {
            w: w.address(),
            x: x.address(),
            y: y.address(),
            x_stride,
            y_stride,
            rows: rows.len(),
            outputs,
            k,
            f32_out,
        };
        match tile {
            Some(tile) => launch(gpu, args, gated, tile).unwrap(),
            None if gated => cuda::swiglu(gpu, args).unwrap(),
            None => cuda::linear(gpu, args).unwrap(),
        }
        let y = if f32_out { download(&y, nan.len()) } else { download_act(gpu, &y, nan.len()) };
        let (y, between): (Vec<_>, Vec<_>) =
            y.chunks(y_stride).map(|y| y.split_at(outputs)).unzip();
        assert!(between.concat().iter().all(|y| y.is_nan()), "written beyond a row");
        y.concat()
    }

    fn expected(&self) -> Vec<f32> {
        let mut y = vec![0.0; self.x.len() / self.k * self.outputs];
        let product = if self.gated { reference::swiglu } else { reference::linear };
        product(&self.x, self.k, &rounded(&self.w), &mut y);
        y
    }

    /// Of their own size where sums of terms cancel.
    fn check(&self, y: &[f32]) {
        let rounding = if self.f32_out { 1e-5 } else { 4e-3 };
        assert_close(y, &self.expected(), rounding);
    }
}

#[test]
fn products_in_every_tile() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    for gated in [false, true] {
        let problem = Problem::new(35, 77, 352, gated);
        for tile in TILES {
            problem.check(&problem.on(&gpu, 0..35, Some(tile)));
        }
    }
}

#[test]
fn products_of_every_size() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    for k in [32, 64, 96, 512, 1120] {
        for outputs in [1, 3, 40] {
            let problem = Problem::new(3, outputs, k, k == 96);
            problem.check(&problem.on(&gpu, 0..3, None));
            problem.check(&problem.on(&gpu, 0..3, Some(SMALL)));
        }
    }
    for (rows, f32_out) in [(1, false), (8, true), (17, true), (65, false)] {
        let problem = Problem { f32_out, ..Problem::new(rows, 257, 64, false) };
        problem.check(&problem.on(&gpu, 0..rows, None));
    }
}

#[test]
fn products_of_f32_activations() {
    let Some(gpu) = gpu(DType::F32) else { return };
    for (rows, outputs, k, gated) in [(1, 3, 32, false), (9, 257, 96, false), (10, 5, 352, true)] {
        let mut problem = Problem::new(rows, outputs, k, gated);
        problem.x.iter_mut().for_each(|x| *x *= 0.7);
        problem.f32_out = true;
        problem.check(&problem.on(&gpu, 0..rows, None));
        let all = problem.on(&gpu, 0..rows, None);
        assert_eq!(problem.on(&gpu, rows - 1..rows, None), all[(rows - 1) * outputs..]);
    }
}

#[test]
fn bits_depend_neither_on_company_nor_on_the_tile() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    for gated in [false, true] {
        let problem = Problem::new(130, 41, 544, gated);
        let all = problem.on(&gpu, 0..130, None);
        for tile in TILES {
            assert_eq!(problem.on(&gpu, 0..130, Some(tile)), all, "{tile:?}");
        }
        for rows in [1, 2, 7, 8, 9, 17, 33, 65] {
            let some = rows / 2..rows / 2 + rows;
            let y = problem.on(&gpu, some.clone(), None);
            assert_eq!(y, all[some.start * 41..some.end * 41], "{rows} rows");
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_order_of_threads() {
    let Some(gpu) = shuffled_gpu(DType::BF16, 0) else { return };
    let problem = Problem::new(35, 77, 352, true);
    let expected = problem.on(&gpu, 0..35, None);
    for schedule in [1] {
        let Some(gpu) = shuffled_gpu(DType::BF16, schedule) else { return };
        for tile in TILES {
            assert_eq!(problem.on(&gpu, 0..35, Some(tile)), expected, "{tile:?}");
        }
    }
}

#[test]
fn nan_stays_in_its_row() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let mut problem = Problem::new(12, 20, 288, false);
    let whole = problem.on(&gpu, 0..12, None);
    problem.x[5 * 288 + 100] = f32::NAN;
    for tile in TILES {
        let y = problem.on(&gpu, 0..12, Some(tile));
        for (row, (y, whole)) in y.chunks(20).zip(whole.chunks(20)).enumerate() {
            assert!(if row == 5 { y.iter().all(|y| y.is_nan()) } else { y == whole }, "{row}");
        }
    }
}

#[test]
fn what_is_rounded_is_rounded_once() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let mut problem = Problem::new(4, 30, 256, false);
    let exact = problem.on(&gpu, 0..4, None);
    problem.f32_out = false;
    let expected: Vec<f32> = exact.iter().map(|&y| bf16::from_f32(y).to_f32()).collect();
    assert_eq!(problem.on(&gpu, 0..4, None), expected);
}

#[test]
fn tiles_fit_and_fill_the_gpu() {
    let on = |capability, multiprocessors, shared_bytes| gdn::cuda::tiles::Gpu {
        name: String::new(),
        capability,
        multiprocessors,
        shared_bytes,
        memory_gb_s: 0,
    };
    for gpu in [on(90, 132, 227 << 10), on(80, 108, 163 << 10), on(86, 84, 99 << 10)] {
        for rows in [1, 8, 16, 32, 64, 80, 96, 128, 2048] {
            for (outputs, gated) in [(1, false), (257, false), (2048, false), (17_408, true)] {
                let tile = Tile::of(&gpu, rows, outputs, gated);
                assert!(tile.shared_bytes() <= gpu.shared_bytes, "{tile:?}");
                let Tile::Stream { ctas, .. } = tile else { continue };
                assert!(ctas as usize <= outputs && (ctas >= 84 || outputs == 1), "{tile:?}");
            }
        }
    }
}
