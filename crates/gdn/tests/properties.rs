//! Any shape, option, dtype, layout: every path agrees with the oracle and with
//! the split path, and touches nothing else.

mod common;

use common::{DTypes, Layout, Op, Sequence, World, backend};
use gdn::{BetaRounding, DType, DecodePath::Split, HeadOrder, LayerSpec};
use gdn_check::relative_l2;
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::SmallRng};

fn specs() -> impl Strategy<Value = LayerSpec> {
    let dims = (1..=3usize, 1..=4usize, 1..=70usize, 1..=70usize, 1..=6usize);
    // Not so small that an f16 output would be zero.
    let scale = prop::option::of(prop_oneof![-2.0..-0.1f32, 0.1..2.0f32]);
    let norm_eps = prop::sample::select(vec![1e-6f32, 1e-3, 0.1]);
    let options = (any::<bool>(), any::<bool>(), any::<bool>(), scale, norm_eps);
    (dims, options)
        .prop_map(|((h, ratio, k, v, w), (tiled, l2norm, round, scale, eps))| {
            let spec = LayerSpec::new(h, h * ratio, k, v)?;
            let scale = scale.unwrap_or(spec.scale());
            let order = if tiled { HeadOrder::Tiled } else { HeadOrder::Grouped };
            let rounding = if round { BetaRounding::Activation } else { BetaRounding::F32 };
            let spec = spec.with_head_order(order).with_beta_rounding(rounding);
            spec.with_qk_l2norm(l2norm).with_conv_width(w)?.with_scale(scale)?.with_norm_eps(eps)
        })
        .prop_map(gdn::Result::unwrap)
}

fn dtypes() -> impl Strategy<Value = DTypes> {
    let dtype = || prop::sample::select(DType::ALL.to_vec());
    (dtype(), dtype()).prop_map(|(activations, recurrent)| DTypes { activations, recurrent })
}

/// Some of nine slots in any order, padding rows among them.
fn layouts(sequences: usize) -> impl Strategy<Value = Layout> {
    let slots = Just((0..9).collect::<Vec<_>>()).prop_shuffle();
    let padding = prop::collection::vec(0..3usize, sequences);
    let gaps = (prop::sample::select(vec![0, 1, 7]), prop::sample::select(vec![0, 1, 11]));
    (slots, padding, gaps, 0..6usize, any::<bool>()).prop_map(
        move |(slots, padding, (row_gap, slot_gap), phase, wide_slots)| {
            let place = |sequence| Some((sequence, slots[sequence]));
            let mut rows: Vec<_> = (0..sequences).map(place).collect();
            for (sequence, &count) in padding.iter().enumerate().rev() {
                rows.splice(sequence..sequence, std::iter::repeat_n(None, count / 2));
            }
            Layout { rows, pool: 9, row_gap, slot_gap, phase, wide_slots }
        },
    )
}

fn batches() -> impl Strategy<Value = (Vec<usize>, Layout)> {
    let lengths = prop::collection::vec(0..=4usize, 1..=5);
    lengths.prop_flat_map(|lengths| (Just(lengths.clone()), layouts(lengths.len())))
}

/// The sequence with every number off by up to `by`, relatively.
fn nudged(sequence: &Sequence, by: f32, seed: u64) -> Sequence {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut sequence = sequence.clone();
    let tokens = sequence.tokens.iter_mut();
    let tokens = tokens.flat_map(|token| token.mixed_qkv.iter_mut().chain(&mut token.z));
    for x in tokens.chain(&mut sequence.recurrent).chain(&mut sequence.conv) {
        *x *= 1.0 + rng.random_range(-by..by);
    }
    sequence
}

proptest! {
    // `PROPTEST_CASES` asks for more than 256.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_path_agrees_with_the_oracle_and_with_split(
        spec in specs(),
        dtypes in dtypes(),
        (lengths, layout) in batches(),
        seed in any::<u64>(),
    ) {
        let world = World::new(&spec, dtypes, &lengths, seed);
        let mut backend = backend();
        let tolerance = dtypes.tolerance(&spec);
        let mut splits = Vec::new();
        for op in Op::all() {
            // `run` itself looks at padding rows and at the rest of the pools.
            let traces = world.run(&mut *backend, op, &layout);
            if matches!(op, Op::Decode(Split) | Op::Layer(Split)) {
                splits.clone_from(&traces);
            }
            for (i, (trace, sequence)) in traces.iter().zip(&world.sequences).enumerate() {
                let (trace, expected) = (trace.wide(), world.expected(op, sequence));
                // An output of few dims may cancel, and the norm blow up what is
                // left: a rounding of the inputs is no smaller an error.
                let nudge = |seed| {
                    let nudged = nudged(sequence, tolerance as f32, seed);
                    world.expected(op, &nudged).error(&expected)
                };
                let limit = tolerance + 4.0 * (0..4).map(nudge).fold(0.0, f64::max);
                let error = trace.error(&expected);
                prop_assert!(error <= limit, "{op:?}, sequence {i}: {error} > {limit}");
                prop_assert_eq!(&trace.conv, if op.has_conv() { &expected.conv } else { &trace.conv });
                if op.has_recurrent() {
                    let error = trace.error(&splits[i].wide());
                    prop_assert!(error <= 2.0 * limit, "{op:?}, sequence {i}: {error} from split");
                }
            }
        }
    }
}

#[test]
fn beta_is_rounded_to_the_activations_if_asked() {
    for activations in DType::ALL {
        let dtypes = DTypes { activations, recurrent: DType::F32 };
        for op in Op::all().filter(|op| op.has_recurrent()) {
            let [plain, rounded] = [BetaRounding::F32, BetaRounding::Activation].map(|rounding| {
                let spec = LayerSpec::new(2, 4, 32, 32).unwrap().with_beta_rounding(rounding);
                let world = World::new(&spec, dtypes, &[2], 59);
                let trace = world.run(&mut *backend(), op, &Layout::dense([0])).swap_remove(0);
                // The recurrence alone takes its inputs as they are: its state
                // tells a rounded β from another.
                if let Op::Decode(_) = op {
                    let expected = world.expected(op, &world.sequences[0]);
                    let error = relative_l2(&trace.wide().recurrent, &expected.recurrent);
                    assert!(error <= 1e-5, "{op:?}, {activations}, {rounding:?}: {error}");
                }
                trace
            });
            assert_eq!(plain.same(&rounded), activations == DType::F32, "{op:?}, {activations}");
        }
    }
}
