//! NaN and infinity stay in the row and the slot that they came in.

mod common;

use common::{Args, DTypes, Layout, Op, Sequence, World, backend, backends};
use gdn::{DType, Element, LayerSpec, PoolOptions, PrefillForm, StatePool, bf16, f16};
use gdn_check::Tensor;

/// A number of each tensor that a sequence brings.
type Number = fn(&mut Sequence) -> &mut f32;
const NUMBERS: [(&str, Number); 6] = [
    ("recurrent", |sequence| &mut sequence.recurrent[5]),
    ("conv", |sequence| sequence.conv.last_mut().unwrap()),
    ("mixed_qkv", |sequence| sequence.tokens[0].mixed_qkv.last_mut().unwrap()),
    ("a", |sequence| &mut sequence.tokens[0].a[0]),
    ("b", |sequence| &mut sequence.tokens[0].b[0]),
    ("z", |sequence| &mut sequence.tokens[0].z[0]),
];

fn reads(op: Op, what: &str) -> bool {
    match what {
        "recurrent" | "a" | "b" => op.has_recurrent(),
        "conv" => op.has_conv(),
        "z" => !matches!(op, Op::Conv | Op::Decode(_)),
        _ => true,
    }
}

#[test]
fn they_stay_in_their_row() {
    const BAD: usize = 1;
    let spec = LayerSpec::new(2, 4, 17, 9).unwrap();
    let layout = Layout::dense(0..4);
    let world = |dtypes| World::new(&spec, dtypes, &[3, 2, 3, 1], 17);
    for dtypes in DTypes::all() {
        for mut backend in backends() {
            for op in Op::all() {
                let clean = world(dtypes).run(&mut *backend, op, &layout);
                for (what, number) in NUMBERS {
                    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        let mut world = world(dtypes);
                        *number(&mut world.sequences[BAD]) = value;
                        let got = world.run(&mut *backend, op, &layout);
                        let what = format!("{op:?}, {dtypes:?}: {value} in {what}");
                        for (i, (got, clean)) in got.iter().zip(&clean).enumerate() {
                            assert!(i == BAD || got.same(clean), "{what} reached sequence {i}");
                        }
                    }
                }
            }
        }
    }
}

/// Those head dims that a GPU has chunks for, and more than one of them.
#[test]
fn they_stay_in_their_sequence_of_chunks() {
    const BAD: usize = 1;
    let spec = LayerSpec::new(1, 2, 128, 128).unwrap();
    let (op, layout) = (Op::Prefill(PrefillForm::Chunked), Layout::dense(0..3));
    let dtypes = DTypes { activations: DType::BF16, recurrent: DType::F32 };
    let world = || World::new(&spec, dtypes, &[2, 66, 1], 29);
    let clean = world().run(&mut *backend(), op, &layout);
    for (what, number) in NUMBERS {
        for value in [f32::NAN, f32::INFINITY] {
            let mut world = world();
            *number(&mut world.sequences[BAD]) = value;
            let got = world.run(&mut *backend(), op, &layout);
            for i in [0, 2] {
                assert!(got[i].same(&clean[i]), "{value} in {what} reached sequence {i}");
            }
            let shows = got[BAD].out.iter().flatten().any(|x| x.is_nan());
            assert!(shows || !value.is_nan(), "{value} in {what} does not show");
        }
    }
}

#[test]
fn nan_shows_in_its_own_row() {
    let spec = LayerSpec::new(2, 4, 17, 9).unwrap();
    for dtypes in DTypes::all() {
        for op in Op::all() {
            for (what, number) in NUMBERS {
                let mut world = World::new(&spec, dtypes, &[2], 19);
                *number(&mut world.sequences[0]) = f32::NAN;
                let [trace] = &world.run(&mut *backend(), op, &Layout::dense([0]))[..] else {
                    panic!()
                };
                let shows = trace.out.iter().flatten().any(|x| x.is_nan());
                assert_eq!(shows, reads(op, what), "{op:?}, {dtypes:?}: NaN in {what}");
            }
        }
    }
}

/// NaNs whose rounding would make them infinite or zero: payloads in the bits
/// that a narrow type drops, and all bits set.
const NANS: [u32; 4] = [0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0xffff_ffff];

#[test]
fn narrowing_keeps_nan() {
    fn check<T: Element>() {
        for bits in NANS {
            let (mut narrow, mut wide) = ([T::zeroed(); 9], [0.0; 9]);
            T::narrow(&[f32::from_bits(bits); 9], &mut narrow);
            T::widen(&narrow, &mut wide);
            assert!(wide.iter().all(|x| x.is_nan()), "{bits:x} as {}", T::DTYPE);
        }
    }
    check::<f32>();
    check::<bf16>();
    check::<f16>();
}

#[test]
fn every_nan_payload_stays_nan_in_pools() {
    let spec = LayerSpec::new(1, 1, 8, 8).unwrap();
    for dtypes in DTypes::all() {
        let world = World::new(&spec, dtypes, &[1], 23);
        for op in Op::all().filter(|op| op.has_recurrent()) {
            for bits in NANS {
                let options = PoolOptions {
                    recurrent: dtypes.recurrent,
                    conv: dtypes.activations,
                    ..PoolOptions::new(1)
                };
                let mut pool = StatePool::new(&spec, &options).unwrap();
                let nan = f32::from_bits(bits);
                let conv_len = world.sequences[0].conv.len();
                pool.set(0, &vec![nan; spec.state_len()], &vec![nan; conv_len]).unwrap();
                let inputs = world.inputs(&[None], 0);
                let mut out = Tensor::poisoned(dtypes.activations, 1, spec.value_len());
                let (layer, slots) = (&world.random.layer, &[0]);
                let (state, view) = (pool.state_mut(), out.view_mut());
                Args::new(layer, &inputs, &[1], slots.into(), state, view)
                    .call(&mut *backend(), op)
                    .unwrap();
                let states = [pool.recurrent(0).unwrap(), pool.conv(0).unwrap()];
                let all_nan = states.concat().iter().all(|x| x.is_nan());
                assert!(all_nan, "{op:?}, {dtypes:?}: {bits:x}");
            }
        }
    }
}

#[test]
fn a_slot_is_clean_for_its_next_sequence() {
    let spec = LayerSpec::new(1, 1, 8, 8).unwrap();
    for dtype in DType::ALL {
        let options = PoolOptions { recurrent: dtype, conv: dtype, ..PoolOptions::new(1) };
        let mut pool = StatePool::new(&spec, &options).unwrap();
        let slot = pool.allocate().unwrap();
        let taps = vec![f32::NAN; (spec.conv_width() - 1) * spec.channels()];
        pool.set(slot, &vec![f32::NAN; spec.state_len()], &taps).unwrap();
        pool.free(slot).unwrap();
        assert_eq!(pool.allocate(), Ok(slot));
        assert_eq!(pool.recurrent(slot).unwrap(), vec![0.0; spec.state_len()]);
        assert_eq!(pool.conv(slot).unwrap(), vec![0.0; taps.len()]);
    }
}
