//! Rounding errors of an f32 state die away with the state: they don't pile up.

mod common;

use common::{DTypes, Layout, Op, World, backend, prefill_forms};
use gdn::{DecodePath, LayerSpec};
use gdn_check::relative_l2;

/// A tenth of what the operator promises.
const LIMIT: f64 = 1e-5;

#[test]
fn a_thousand_steps_stay_close_to_the_oracle() {
    let spec = LayerSpec::new(4, 16, 64, 64).unwrap();
    let world = World::new(&spec, DTypes::F32, &[1000], 7);
    let expected = world.expected(Op::Layer(DecodePath::Split), &world.sequences[0]);
    let steps = DecodePath::ALL.map(Op::Layer);
    let prefills = prefill_forms().into_iter().map(Op::Prefill);
    for op in steps.into_iter().chain(prefills) {
        let [trace] = &world.run(&mut *backend(), op, &Layout::dense([0]))[..] else { panic!() };
        let trace = trace.wide();
        let state = relative_l2(&trace.recurrent, &expected.recurrent);
        assert!(state <= LIMIT, "{op:?}: state {state}");
        let out = relative_l2(&trace.out[999], &expected.out[999]);
        assert!(out <= LIMIT, "{op:?}: out {out}");
    }
}
