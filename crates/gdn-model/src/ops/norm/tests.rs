use bytemuck::Zeroable;
use gdn::{DType, cuda::runtime::Block};

use super::{
    cpu::{self, Norm, Parts},
    cuda::{self, Params},
};
use crate::{cuda::Gpu, math::Math, ops::testing::*};

const EPS: f32 = 1e-6;
const TOLERANCES: [(DType, f32); 2] = [(DType::F32, 1e-6), (DType::BF16, 4e-3)];

fn params(rows: usize, x: &Block, delta: u64, factor: &Block, out: &Block) -> Params {
    let (x, factor, out, rows) = (x.address(), factor.address(), out.address(), rows as u32);
    Params { x, delta, factor, out, rows, of: rows, eps: EPS, ..Params::zeroed() }
}

fn nothing(gpu: &Gpu, len: usize) -> Block {
    upload_act(gpu, &vec![f32::NAN; len])
}

#[test]
fn cuda_gives_what_the_cpu_gives() {
    for (activations, tolerance) in TOLERANCES {
        for gpu in gpus(activations) {
            for (rows, hidden) in [(1, 64), (3, 2560)] {
                let (mut x, delta) = (random(1, rows * hidden), random(2, rows * hidden));
                let factor = random(3, hidden);
                let on = (upload(&gpu, &x), upload_act(&gpu, &delta), upload(&gpu, &factor));
                let out = nothing(&gpu, rows * hidden);
                for with_delta in [true, false] {
                    let on_delta = if with_delta { on.1.address() } else { 0 };
                    cuda::add_norm(&gpu, hidden, params(rows, &on.0, on_delta, &on.2, &out))
                        .unwrap();
                    let mut expected = vec![0.0; rows * hidden];
                    let delta = with_delta.then_some(&delta[..]);
                    let norm = Norm { factor: &factor, eps: EPS };
                    cpu::add_norm(Math::new(false), &mut x, delta, norm, &mut expected);
                    assert_close(&download_act(&gpu, &out, expected.len()), &expected, tolerance);
                    assert_eq!(download::<f32>(&on.0, x.len()), x);
                }
            }
        }
    }
}

#[test]
fn experts_are_added_in_the_order_of_their_places() {
    for (activations, tolerance) in TOLERANCES {
        for (rows, places, hidden) in [(1, 11, 2560), (4, 3, 64)] {
            let Some(gpu) = gpu(activations) else { return };
            let mut x = random(1, rows * hidden);
            let mut parts = random(2, rows * places * hidden);
            let mut shares = random(4, rows * places);
            // The second row is padding; or else a place of the first has no share.
            for place in if rows > 1 { places..2 * places } else { 1..2 } {
                shares[place] = 0.0;
                parts[place * hidden..][..hidden].fill(f32::NAN);
            }
            let factor = random(3, hidden);
            let on = (upload(&gpu, &x), upload_act(&gpu, &parts), upload(&gpu, &factor));
            let (on_shares, out) = (upload(&gpu, &shares), nothing(&gpu, rows * hidden));
            let params = Params {
                shares: on_shares.address(),
                places: places as u32,
                ..params(rows, &on.0, on.1.address(), &on.2, &out)
            };
            cuda::experts_norm(&gpu, hidden, params).unwrap();
            let mut expected = vec![0.0; rows * hidden];
            let parts = Parts { parts: &parts, shares: &shares, places };
            let norm = Norm { factor: &factor, eps: EPS };
            cpu::experts_norm(Math::new(true), &mut x, parts, norm, &mut expected);
            assert_close(&download_act(&gpu, &out, expected.len()), &expected, tolerance);
            assert_eq!(download::<f32>(&on.0, x.len()), x);
            assert!(x.iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn picked_rows_are_those_of_all_rows() {
    for (activations, _) in TOLERANCES {
        let (rows, places, hidden) = (5, 3, 64);
        let Some(gpu) = gpu(activations) else { return };
        let (x, parts) = (random(1, rows * hidden), random(2, rows * places * hidden));
        let (shares, factor) = (random(4, rows * places), random(3, hidden));
        let picked = [4, 0, -1, 4, 5];
        let on = (upload_act(&gpu, &parts), upload(&gpu, &factor), upload(&gpu, &shares));
        let on_picked = upload(&gpu, &picked);
        for experts in [false, true] {
            let run = |picked: Option<u64>| {
                let rows_out = if picked.is_some() { 5 } else { rows };
                let (on_x, out) = (upload(&gpu, &x), nothing(&gpu, rows_out * hidden));
                let params = Params {
                    shares: on.2.address(),
                    places: places as u32,
                    of: rows as u32,
                    picked: picked.unwrap_or(0),
                    ..params(rows_out, &on_x, on.0.address(), &on.1, &out)
                };
                let op = if experts { cuda::experts_norm } else { cuda::add_norm };
                op(&gpu, hidden, params).unwrap();
                if picked.is_some() {
                    assert_eq!(download::<f32>(&on_x, x.len()), x, "x stays");
                }
                download_act(&gpu, &out, rows_out * hidden)
            };
            let (all, some) = (run(None), run(Some(on_picked.address())));
            for (row, &from) in some.chunks(hidden).zip(&picked) {
                match all.chunks(hidden).nth(from as usize) {
                    Some(expected) => assert_eq!(row, expected),
                    None => assert!(row.iter().all(|&x| x == 0.0)),
                }
            }
            if !experts && activations == DType::F32 {
                let mut expected = vec![f32::NAN; picked.len() * hidden];
                let (norm, delta) = (Norm { factor: &factor, eps: EPS }, &parts[..rows * hidden]);
                let math = Math::new(false);
                cpu::picked_norm(math, &x, Some(delta), &picked, norm, &mut expected);
                assert_close(&some, &expected, 1e-6);
            }
        }
    }
}
