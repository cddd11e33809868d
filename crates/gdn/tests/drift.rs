//! Rounding errors of an f32 state die away with the state: they don't pile up.

mod common;

use common::{DTypes, Layout, Op, PREFILL_FORMS, World, backend};
use gdn::{DecodePath, LayerSpec};
use gdn_check::relative_l2;

/// A tenth of what the operator promises.
const LIMIT: f64 = 1e-5;

#[test]
fn a_thousand_steps_stay_close_to_the_oracle() {
    let steps = DecodePath::ALL.map(Op::Layer);
    check(&LayerSpec::new(4, 16, 64, 64).unwrap(), steps.into_iter().chain(prefills()));
}

/// Those head dims that a GPU has chunks for.
#[test]
fn a_prefill_of_a_thousand_tokens_stays_close_to_the_oracle() {
    check(&LayerSpec::new(1, 2, 128, 128).unwrap(), prefills());
}

fn prefills() -> impl Iterator<Item = Op> {
    PREFILL_FORMS.into_iter().map(Op::Prefill)
}

fn check(spec: &LayerSpec, ops: impl Iterator<Item = Op>) {
    let world = World::new(spec, DTypes::F32, &[1000], 7);
    let expected = world.expected(Op::Layer(DecodePath::Split), &world.sequences[0]);
    for op in ops {
        let [trace] = &world.run(&mut *backend(), op, &Layout::dense([0]))[..] else { panic!() };
        let trace = trace.wide();
        let state = relative_l2(&trace.recurrent, &expected.recurrent);
        assert!(state <= LIMIT, "{op:?}: state {state}");
        let out = relative_l2(&trace.out[999], &expected.out[999]);
        assert!(out <= LIMIT, "{op:?}: out {out}");
    }
}
