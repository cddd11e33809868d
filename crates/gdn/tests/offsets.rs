//! Offsets and counts past 32 and 16 bits.

mod common;

use common::{Args, DTypes, Layout, Op, World, backend};
use gdn::{DType, LayerSpec, PoolOptions, StatePool};
use gdn_check::Tensor;

/// Output and states of two sequences, on the first and the last of five slots.
fn on_first_and_last_slot(world: &World, op: Op, pitch: Option<usize>) -> Vec<Vec<f32>> {
    let options = PoolOptions {
        recurrent: world.dtypes.recurrent,
        conv: world.dtypes.activations,
        recurrent_pitch: pitch,
        conv_pitch: pitch,
        ..PoolOptions::new(5)
    };
    // Untouched memory is not there: a huge pool costs two slots.
    let mut pool = StatePool::new(&world.spec, &options).unwrap();
    world.set(&mut pool, 0, 0);
    world.set(&mut pool, 4, 1);
    let tokens: Vec<_> = world.sequences.iter().map(|s| Some(&s.tokens[0])).collect();
    let inputs = world.inputs(&tokens, 0);
    let mut out = Tensor::poisoned(world.dtypes.activations, 2, op.out_cols(&world.spec));
    let (layer, slots) = (&world.random.layer, &[0, 4]);
    let (state, view) = (pool.state_mut(), out.view_mut());
    let args = Args::new(layer, &inputs, &[1, 1], slots.into(), state, view);
    args.call(&mut *backend(), op).unwrap();
    let states = [0, 4].map(|slot| [pool.recurrent(slot).unwrap(), pool.conv(slot).unwrap()]);
    states.into_iter().flatten().chain([out.slice().to_f32()]).collect()
}

fn check(pitch: usize) {
    let spec = LayerSpec::new(1, 2, 16, 24).unwrap();
    for recurrent in [DType::F32, DType::BF16] {
        let dtypes = DTypes { activations: DType::BF16, recurrent };
        let world = World::new(&spec, dtypes, &[1, 1], 11);
        for op in Op::all() {
            let expected = on_first_and_last_slot(&world, op, None);
            assert_eq!(on_first_and_last_slot(&world, op, Some(pitch)), expected, "{op:?}");
        }
    }
}

#[test]
fn slots_past_2_to_31_elements() {
    check((1 << 29) + 33);
}

#[test]
fn slots_past_2_to_32_elements() {
    check((1 << 30) + 33);
}

#[test]
fn more_row_heads_than_65_535() {
    let spec = LayerSpec::new(4, 16, 3, 2).unwrap();
    let rows = 4100;
    let world = World::new(&spec, DTypes::F32, &vec![1; rows], 13);
    for op in Op::all() {
        let all = world.run(&mut *backend(), op, &Layout::dense(0..rows));
        for first in (0..rows).step_by(410) {
            let some = world.run(&mut *backend(), op, &Layout::dense(first..first + 410));
            for (row, trace) in all.iter().enumerate().skip(first).take(410) {
                assert!(trace.same(&some[row]), "{op:?}, row {row}");
            }
        }
    }
}
