//! The result of a row depends on nothing but the row, bit for bit.

mod common;

use common::{DTypes, Layout, Op, Trace, World, backend, backends};
use gdn::{DecodePath, HeadOrder, LayerSpec, PrefillForm};

/// The models' head dims, odd ones, and tiled heads with another conv width.
fn specs() -> [LayerSpec; 3] {
    let tiled = LayerSpec::new(2, 6, 40, 24).unwrap().with_head_order(HeadOrder::Tiled);
    [
        LayerSpec::new(1, 2, 128, 128).unwrap(),
        LayerSpec::new(2, 4, 33, 47).unwrap(),
        tiled.with_conv_width(3).unwrap(),
    ]
}

/// Calls `check` with every operator on every spec and dtype.
fn for_every(check: impl Fn(&World, Op)) {
    for spec in specs() {
        for dtypes in DTypes::all() {
            // Prefills of no token, and across chunks of 64.
            let (short, long) = ([1, 3, 0, 2, 1], [1, 70, 0, 64, 5]);
            let (steps, prefills) =
                (World::new(&spec, dtypes, &short, 1), World::new(&spec, dtypes, &long, 2));
            for op in Op::all() {
                check(if op.is_prefill() { &prefills } else { &steps }, op);
            }
        }
    }
}

/// Every sequence in a batch of its own.
fn alone(world: &World, op: Op) -> Vec<Trace> {
    let mut backend = backend();
    let of = |i: usize| world.run(&mut *backend, op, &Layout::dense([i])).swap_remove(i);
    (0..world.sequences.len()).map(of).collect()
}

#[track_caller]
fn assert_same(world: &World, op: Op, got: &[Trace], expected: &[Trace]) {
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let World { spec, dtypes, .. } = world;
        assert!(got.same(expected), "{op:?}, sequence {i}, {dtypes:?}, {spec:?}");
    }
}

#[test]
fn rows_do_not_depend_on_their_batch() {
    for_every(|world, op| {
        let alone = alone(world, op);
        let forwards = Layout::dense(0..5);
        let mut backwards = Layout::dense((0..5).rev());
        backwards.rows.insert(0, None);
        backwards.rows.insert(3, None);
        for layout in [forwards, backwards] {
            assert_same(world, op, &world.run(&mut *backend(), op, &layout), &alone);
        }
    });
}

#[test]
fn rows_do_not_depend_on_the_size_of_the_batch() {
    for spec in specs() {
        let world = World::new(&spec, DTypes::F32, &[1; 67], 3);
        for op in Op::all() {
            let alone = alone(&world, op);
            assert_same(&world, op, &world.run(&mut *backend(), op, &Layout::dense(0..67)), &alone);
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_slot_nor_on_where_its_ring_stands() {
    for_every(|world, op| {
        let dense = Layout::dense(0..5);
        let expected = world.run(&mut *backend(), op, &dense);
        for phase in 0..3 {
            let rows = [3, 8, 0, 5, 6].into_iter().enumerate().map(Some).collect();
            let layout = Layout { rows, pool: 9, phase, wide_slots: true, ..dense.clone() };
            assert_same(world, op, &world.run(&mut *backend(), op, &layout), &expected);
        }
    });
}

#[test]
fn rows_do_not_depend_on_strides_and_pitches() {
    for_every(|world, op| {
        let dense = Layout::dense(0..5);
        let expected = world.run(&mut *backend(), op, &dense);
        for (row_gap, slot_gap) in [(1, 0), (0, 1), (13, 29)] {
            let layout = Layout { row_gap, slot_gap, ..dense.clone() };
            assert_same(world, op, &world.run(&mut *backend(), op, &layout), &expected);
        }
    });
}

#[test]
fn backends_and_runs_agree() {
    let mut backends = backends();
    let (first, rest) = backends.split_first_mut().unwrap();
    let runs = std::cell::RefCell::new((first, rest));
    for_every(|world, op| {
        let (first, rest) = &mut *runs.borrow_mut();
        let layout = Layout::dense(0..5);
        let expected = world.run(&mut ***first, op, &layout);
        for backend in rest.iter_mut() {
            for _ in 0..2 {
                assert_same(world, op, &world.run(&mut **backend, op, &layout), &expected);
            }
        }
    });
}

#[test]
fn recurrent_prefill_has_the_bits_of_fused_decode() {
    for spec in specs() {
        for dtypes in DTypes::all() {
            let world = World::new(&spec, dtypes, &[1, 9, 0, 4], 4);
            let layout = Layout::dense(0..4);
            let [prefill, fused] =
                [Op::Prefill(PrefillForm::Recurrent), Op::Layer(DecodePath::Fused)]
                    .map(|op| world.run(&mut *backend(), op, &layout));
            assert_same(&world, Op::Prefill(PrefillForm::Recurrent), &prefill, &fused);
        }
    }
}

/// A backend keeps what kernels look up of a call's sequences for the next call.
#[test]
fn prefills_do_not_depend_on_the_call_before() {
    let spec = LayerSpec::new(1, 2, 128, 128).unwrap();
    let dtypes = DTypes::all().next().unwrap();
    for form in [PrefillForm::Recurrent, PrefillForm::Chunked] {
        let mut used = backend();
        for lengths in [&[5, 2][..], &[2, 5], &[2, 5], &[7]] {
            let world = World::new(&spec, dtypes, lengths, 3);
            let (op, layout) = (Op::Prefill(form), Layout::dense(0..lengths.len()));
            let expected = world.run(&mut *backend(), op, &layout);
            assert_same(&world, op, &world.run(&mut *used, op, &layout), &expected);
        }
    }
}

#[test]
fn a_recurrent_prefill_may_be_cut_anywhere() {
    let op = Op::Prefill(PrefillForm::Recurrent);
    for spec in specs() {
        for dtypes in DTypes::all() {
            let whole = World::new(&spec, dtypes, &[9], 5);
            let expected = whole.run(&mut *backend(), op, &Layout::dense([0]));
            for cut in [1, 4, 8] {
                let mut part = World::new(&spec, dtypes, &[9], 5);
                let rest = part.sequences[0].tokens.split_off(cut);
                let layout = |phase| Layout { phase, ..Layout::dense([0]) };
                let [first] = &part.run(&mut *backend(), op, &layout(0))[..] else { panic!() };
                let sequence = &mut part.sequences[0];
                sequence.recurrent.clone_from(&first.recurrent);
                sequence.conv.clone_from(&first.conv);
                sequence.tokens = rest;
                let mut second = part.run(&mut *backend(), op, &layout(cut));
                second[0].out.splice(0..0, first.out.clone());
                assert_same(&whole, op, &second, &expected);
            }
        }
    }
}
