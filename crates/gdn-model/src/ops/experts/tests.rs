use gdn::{DType, cuda::runtime::Block};

use super::cuda::{self, Args, Routing, launch};
use crate::{
    cuda::Gpu,
    ops::{
        linear::{self, cuda::Tile},
        testing::*,
    },
};

const HIDDEN: usize = 96;
const INNER: usize = 64;
const SHARED_INNER: usize = 160;
const EXPERTS: usize = 6;
const TILES: [Tile; 7] = [
    Tile::Stream { rows16: 1, pairs8: 1, ahead: 5, ctas: 0 },
    Tile::Stream { rows16: 1, pairs8: 2, ahead: 5, ctas: 0 },
    Tile::Stream { rows16: 2, pairs8: 4, ahead: 4, ctas: 0 },
    Tile::Shared { warps: (2, 4), rows16: 4, pairs8: 4, ahead: 5, cluster: 1 },
    Tile::Groups { groups: 1, rows: 64, pairs8: 1, ahead: 8, cluster: 1, fed: false },
    Tile::Groups { groups: 2, rows: 128, pairs8: 8, ahead: 4, cluster: 1, fed: false },
    Tile::Groups { groups: 2, rows: 128, pairs8: 2, ahead: 3, cluster: 1, fed: true },
];

/// Experts of random numbers: up, shared up, down, shared down.
struct Weights([Vec<f32>; 4]);

impl Weights {
    fn new() -> Self {
        let sizes = [2 * EXPERTS * INNER, 2 * SHARED_INNER, EXPERTS * INNER, SHARED_INNER];
        let mut seed = 0;
        Self(sizes.map(|size| {
            seed += 1;
            random(seed, size * HIDDEN)
        }))
    }

    /// Of an expert, up or down, and its inner size.
    fn of(&self, expert: usize, up: bool) -> (&[f32], usize) {
        let at = if up { 0 } else { 2 };
        if expert == EXPERTS {
            return (&self.0[at + 1], SHARED_INNER);
        }
        let size = self.0[at].len() / EXPERTS;
        (&self.0[at][expert * size..][..size], INNER)
    }
}

/// The experts of every token, the shared one last; none for padding.
type Choice = Vec<Vec<usize>>;

struct OnGpu {
    lists: [Block; 4],
    routing: Routing,
}

fn route(gpu: &Gpu, choice: &Choice, places: usize) -> OnGpu {
    let mut order = Vec::new();
    let mut starts = vec![0];
    for expert in 0..=EXPERTS {
        for (token, experts) in choice.iter().enumerate() {
            let place = experts.iter().position(|&e| e == expert);
            order.extend(place.map(|place| (token * places + place) as i32));
        }
        starts.push(order.len() as i32);
    }
    let mut active: Vec<i32> =
        (0..=EXPERTS).filter(|&e| starts[e] < starts[e + 1]).map(|e| e as i32).collect();
    let count = active.len() as i32;
    active.resize(EXPERTS + 1, -1);
    order.resize(choice.len() * places, -1);
    let lists = [&order[..], &starts, &active, &[count]].map(|list| upload(gpu, list));
    let [order, starts, active, active_count] = lists.each_ref().map(Block::address);
    let tokens = choice.len();
    let experts = EXPERTS;
    let routing = Routing { order, starts, active, active_count, tokens, places, experts };
    OnGpu { lists, routing }
}

/// Up and down on the GPU: inner and outer values of every pair.
fn run(
    gpu: &Gpu,
    weights: &Weights,
    x: &[f32],
    choice: &Choice,
    tile: Option<Tile>,
) -> (Vec<f32>, Vec<f32>) {
    let places = choice.iter().map(Vec::len).max().unwrap();
    let pairs = choice.len() * places;
    let on = route(gpu, choice, places);
    assert_eq!(on.lists.len(), 4);
    let [up_w, shared_up, down_w, shared_down] =
        weights.0.each_ref().map(|w| upload(gpu, &rounded(w)));
    let x = upload_act(gpu, x);
    let inner = upload_act(gpu, &vec![f32::NAN; pairs * SHARED_INNER]);
    let outer = upload_act(gpu, &vec![f32::NAN; pairs * HIDDEN]);
    let up = Args {
        routing: on.routing,
        w: up_w.address(),
        shared_w: shared_up.address(),
        x: x.address(),
        y: inner.address(),
        x_stride: HIDDEN,
        y_stride: SHARED_INNER,
        outputs: INNER,
        shared_outputs: SHARED_INNER,
        k: HIDDEN,
        shared_k: HIDDEN,
    };
    let down = Args {
        w: down_w.address(),
        shared_w: shared_down.address(),
        x: inner.address(),
        y: outer.address(),
        x_stride: SHARED_INNER,
        y_stride: HIDDEN,
        outputs: HIDDEN,
        shared_outputs: HIDDEN,
        k: INNER,
        shared_k: SHARED_INNER,
        ..up
    };
    match tile {
        Some(tile) => {
            launch(gpu, up, true, tile).unwrap();
            launch(gpu, down, false, tile).unwrap();
        }
        None => {
            cuda::up(gpu, up).unwrap();
            cuda::down(gpu, down).unwrap();
        }
    }
    let inner = download_act(gpu, &inner, pairs * SHARED_INNER);
    (inner, download_act(gpu, &outer, pairs * HIDDEN))
}

/// Every pair against the CPU, and what is no pair's or beyond one untouched.
fn check(
    weights: &Weights,
    x: &[f32],
    choice: &Choice,
    (inner, outer): &(Vec<f32>, Vec<f32>),
    tolerance: f32,
) {
    let places = choice.iter().map(Vec::len).max().unwrap();
    for (token, experts) in choice.iter().enumerate() {
        for place in 0..places {
            let pair = token * places + place;
            let (inner, outer) = (&inner[pair * SHARED_INNER..], &outer[pair * HIDDEN..][..HIDDEN]);
            let Some(&expert) = experts.get(place) else {
                assert!(inner[..SHARED_INNER].iter().chain(outer).all(|y| y.is_nan()));
                continue;
            };
            let (w, size) = weights.of(expert, true);
            assert!(inner[size..SHARED_INNER].iter().all(|y| y.is_nan()));
            let mut expected = vec![0.0; size];
            let x = &x[token * HIDDEN..][..HIDDEN];
            linear::reference::swiglu(x, HIDDEN, &rounded(w), &mut expected);
            assert_close(&inner[..size], &expected, tolerance);
            let mut expected = vec![0.0; HIDDEN];
            let w = rounded(weights.of(expert, false).0);
            linear::reference::linear(&inner[..size], size, &w, &mut expected);
            assert_close(outer, &expected, tolerance);
        }
    }
}

/// Two experts of six and the shared one; 1 has none, most tokens have 4.
fn choose(tokens: usize) -> Choice {
    let of = |token| match token % 5 {
        0 => vec![0, 4, EXPERTS],
        1 => vec![5, 2, EXPERTS],
        2 if token > 10 => vec![], // padding
        _ => vec![4, 3, EXPERTS],
    };
    (0..tokens).map(of).collect()
}

#[test]
fn every_pair_in_every_tile() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let weights = Weights::new();
    for tokens in [1, 9, 37] {
        let (x, choice) = (random(9, tokens * HIDDEN), choose(tokens));
        let chosen = run(&gpu, &weights, &x, &choice, None);
        check(&weights, &x, &choice, &chosen, 4e-3);
        let bits = |(inner, outer): &(Vec<f32>, Vec<f32>)| {
            inner.iter().chain(outer).map(|y| y.to_bits()).collect::<Vec<_>>()
        };
        for (gpu, tile) in gpus(DType::BF16).iter().flat_map(|gpu| TILES.map(|tile| (gpu, tile))) {
            let forced = run(gpu, &weights, &x, &choice, Some(tile));
            assert_eq!(bits(&forced), bits(&chosen), "{tile:?}");
        }
    }
}

#[test]
fn every_pair_in_f32() {
    let Some(gpu) = gpu(DType::F32) else { return };
    let weights = Weights::new();
    let (x, choice) = (random(9, 20 * HIDDEN), choose(20));
    check(&weights, &x, &choice, &run(&gpu, &weights, &x, &choice, None), 1e-5);
}

#[test]
fn a_pair_has_the_bits_of_a_product_alone() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let weights = Weights::new();
    let (x, choice) = (random(9, 23 * HIDDEN), choose(23));
    let (inner, _) = run(&gpu, &weights, &x, &choice, None);
    for token in [3, 21] {
        for (place, &expert) in choice[token].iter().enumerate() {
            let (w, size) = weights.of(expert, true);
            let w = upload(&gpu, &rounded(w));
            let x = upload_act(&gpu, &x[token * HIDDEN..][..HIDDEN]);
            let y = upload_act(&gpu, &vec![0.0; size]);
            let args = linear::cuda::Args {
                w: w.address(),
                x: x.address(),
                y: y.address(),
                x_stride: HIDDEN,
                y_stride: size,
                rows: 1,
                outputs: size,
                k: HIDDEN,
                f32_out: false,
            };
            linear::cuda::swiglu(&gpu, args).unwrap();
            let pair = &inner[(token * 3 + place) * SHARED_INNER..][..size];
            assert_eq!(download_act(&gpu, &y, size), pair, "token {token}, expert {expert}");
        }
    }
}

#[test]
fn one_expert_may_have_all_tokens_and_padding_none() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let weights = Weights::new();
    let x = random(9, 40 * HIDDEN);
    let all = vec![vec![2, 3, EXPERTS]; 40];
    check(&weights, &x, &all, &run(&gpu, &weights, &x, &all, None), 4e-3);
    let mut padding = vec![vec![]; 40];
    padding[39] = vec![1, 5, EXPERTS];
    check(&weights, &x, &padding, &run(&gpu, &weights, &x, &padding, None), 4e-3);
    padding[39].pop(); // no pair of the shared expert
    padding[0] = vec![1, 2, 3];
    check(&weights, &x, &padding, &run(&gpu, &weights, &x, &padding, None), 4e-3);
}
