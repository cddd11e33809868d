//! Each misuse is a typed error that names the argument, what was expected and
//! what came; and nothing was written.

mod common;

use common::{Args, DTypes, Op, World, backend};
use gdn::{
    BetaRounding, ConvMut, Cpu, DType, DecodePath, Dispatcher, Error, ErrorKind, Layer, LayerSpec,
    LayerStep, LayerWeights, PoolOptions, RecurrentMut, Result, Rows, RowsMut, Slice, StatePool,
    bf16, f16,
};
use gdn_check::Tensor;

/// H = 2, HV = 4, K = 5, V = 3: C = 32.
fn spec() -> LayerSpec {
    LayerSpec::new(2, 4, 5, 3).unwrap()
}

/// `len` elements that live as long as any test.
fn zeros(dtype: DType, len: usize) -> gdn::SliceMut<'static> {
    let tensor = Tensor::new(dtype, &vec![0.0; len], len.max(1), 0);
    Box::leak(Box::new(tensor)).slice_mut()
}

/// A tensor of another shape or dtype.
fn rows(dtype: DType, rows: usize, cols: usize) -> Rows<'static> {
    let tensor = Tensor::new(dtype, &vec![0.0; rows * cols], cols, 0);
    Box::leak(Box::new(tensor)).view()
}

fn out(dtype: DType, rows: usize, cols: usize) -> RowsMut<'static> {
    RowsMut::new(zeros(dtype, rows * cols), rows, cols).unwrap()
}

/// Rings of so many slots.
fn conv(spec: &LayerSpec, dtype: DType, slots: usize) -> ConvMut<'static> {
    let ring = zeros(dtype, spec.conv_len() * slots);
    ConvMut::new(spec, ring, Box::leak(vec![0; slots].into()), spec.conv_len()).unwrap()
}

fn recurrent(spec: &LayerSpec, slots: usize) -> RecurrentMut<'static> {
    RecurrentMut::new(spec, zeros(DType::F32, spec.state_len() * slots), slots, spec.state_len())
        .unwrap()
}

fn bits(slice: Slice<'_>) -> Vec<u32> {
    slice.to_f32().into_iter().map(f32::to_bits).collect()
}

#[track_caller]
fn assert_error<T: std::fmt::Debug>(result: Result<T>, kind: &ErrorKind) {
    assert_eq!(result.map_err(|error| error.kind().clone()).unwrap_err(), *kind);
}

/// Three rows on a pool of five slots, with `change` made to the arguments, are
/// refused by every operator of `ops`.
#[track_caller]
fn assert_refused(ops: impl Fn(Op) -> bool, kind: ErrorKind, change: impl Fn(&mut Args<'_>)) {
    let options = PoolOptions { conv: DType::BF16, ..PoolOptions::new(5) };
    let dtypes = DTypes { activations: DType::BF16, recurrent: DType::F32 };
    let world = World::new(&spec(), dtypes, &[1; 5], 43);
    let tokens: Vec<_> = world.sequences[..3].iter().map(|s| s.tokens.first()).collect();
    let inputs = world.inputs(&tokens, 0);
    let mut tried = 0;
    for op in Op::all().filter(|&op| ops(op)) {
        let mut pool = StatePool::new(&spec(), &options).unwrap();
        (0..5).for_each(|slot| world.set(&mut pool, slot, slot as usize));
        let before = [bits(pool.buffers().unwrap().0), bits(pool.buffers().unwrap().1)];
        let mut out = Tensor::poisoned(DType::BF16, 3, op.out_cols(&spec()));
        let poison = out.bits();
        let (layer, slots) = (&world.random.layer, &[4, -1, 0]);
        let (state, view) = (pool.state_mut(), out.view_mut());
        let mut args = Args::new(layer, &inputs, &[1, 1, 1], slots.into(), state, view);
        change(&mut args);
        let error = args.call(&mut *backend(), op).expect_err(&format!("{op:?}"));
        assert_eq!((op, error.kind()), (op, &kind));
        assert_eq!(out.bits(), poison, "{op:?} wrote output");
        assert_eq!(
            [bits(pool.buffers().unwrap().0), bits(pool.buffers().unwrap().1)],
            before,
            "{op:?} wrote state"
        );
        tried += 1;
    }
    assert!(tried > 0);
}

fn dim(argument: &'static str, unit: &'static str, expected: usize, got: usize) -> ErrorKind {
    ErrorKind::Dim { argument, unit, expected, got }
}

fn dtype(argument: &'static str, expected: DType, got: DType) -> ErrorKind {
    ErrorKind::DType { argument, expected, got }
}

fn value(argument: &'static str, expected: &'static str, got: impl ToString) -> ErrorKind {
    ErrorKind::Value { argument, expected, got: got.to_string() }
}

fn stride(argument: &'static str, expected: impl ToString, got: usize) -> ErrorKind {
    ErrorKind::Stride { argument, expected: expected.to_string(), got }
}

fn buffer(argument: &'static str, expected: usize, got: usize) -> ErrorKind {
    ErrorKind::Buffer { argument, expected, got }
}

fn has_slots(op: Op) -> bool {
    op != Op::Norm
}

fn has_gates(op: Op) -> bool {
    op.has_recurrent()
}

fn has_z(op: Op) -> bool {
    !matches!(op, Op::Conv | Op::Decode(_))
}

/// Whether both states come as one argument.
fn has_both(op: Op) -> bool {
    op.has_conv() && op.has_recurrent()
}

#[test]
fn messages_name_the_argument_what_was_expected_and_what_came() {
    let refused =
        ErrorKind::Unsupported { path: DecodePath::Fused, backend: "cpu", reason: "no".into() };
    for (kind, message) in [
        (dim("a", "rows", 3, 2), "a: expected 3 rows, got 2"),
        (value("scale", "a number", "x"), "scale: expected a number, got x"),
        (
            ErrorKind::HeadRatio { q_heads: 2, v_heads: 3 },
            "v_heads: expected a multiple of q_heads = 2, got 3",
        ),
        (dtype("z", DType::BF16, DType::F32), "z: expected dtype bf16, got f32"),
        (stride("out", "at least 5", 4), "out: expected a stride of at least 5, got 4 elements"),
        (buffer("data", 9, 8), "data: expected a buffer of at least 9 elements, got 8"),
        (
            ErrorKind::SlotOutOfRange { row: 1, slots: 5, got: 7 },
            "slots[1]: expected a slot below 5 or a negative one (padding), got 7",
        ),
        (
            ErrorKind::DuplicateSlot { slot: 4, first: 0, second: 2 },
            "slots[2]: expected a slot of its own, got 4, which slots[0] has",
        ),
        (
            ErrorKind::SlotNotAllocated { argument: "from", got: 3 },
            "from: expected an allocated slot, got 3",
        ),
        (
            ErrorKind::PoolFull { slots: 2 },
            "pool: all 2 slots are taken; free one, or make the pool larger",
        ),
        (refused, "path: fused is not supported by the cpu backend: no"),
    ] {
        assert_eq!(Error::from(kind).to_string(), message);
    }
}

#[test]
fn slots() {
    let kind = ErrorKind::SlotOutOfRange { row: 1, slots: 5, got: 5 };
    assert_refused(has_slots, kind, |args| args.slots = (&[4, 5, 0]).into());
    let got = i64::from(u32::MAX) + 1;
    let kind = ErrorKind::SlotOutOfRange { row: 0, slots: 5, got };
    let wide: &'static [i64] = vec![got, 1, 0].leak();
    assert_refused(has_slots, kind, |args| args.slots = wide.into());
    let kind = ErrorKind::DuplicateSlot { slot: 4, first: 0, second: 2 };
    assert_refused(has_slots, kind, |args| args.slots = (&[4, -1, 4]).into());
    assert_refused(
        |op| !op.is_prefill(),
        dim("slots", "rows", 3, 2),
        |args| {
            args.slots = (&[4, 0]).into();
        },
    );
    assert_refused(Op::is_prefill, dim("slots", "sequences", 3, 2), |args| {
        args.slots = (&[4, 0]).into();
    });
}

#[test]
fn inputs() {
    use DType::{BF16, F16, F32};
    let has_mixed_qkv = |op| op != Op::Norm;
    assert_refused(has_mixed_qkv, dim("mixed_qkv", "columns", 32, 31), |args| {
        args.mixed_qkv = rows(BF16, 3, 31);
    });
    for (cols, gate) in [(4, false), (12, true)] {
        let ops = if gate { has_z } else { has_gates };
        let names: &[_] = if gate { &["z"] } else { &["a", "b"] };
        for &name in names {
            let with = |tensor: Rows<'static>| {
                move |args: &mut Args<'_>| match name {
                    "a" => args.a = tensor,
                    "b" => args.b = tensor,
                    _ => args.z = tensor,
                }
            };
            assert_refused(ops, dim(name, "rows", 3, 2), with(rows(BF16, 2, cols)));
            let kind = dim(name, "columns", cols, cols + 1);
            assert_refused(ops, kind, with(rows(BF16, 3, cols + 1)));
            assert_refused(ops, dtype(name, BF16, F32), with(rows(F32, 3, cols)));
            assert_refused(ops, dtype(name, BF16, F16), with(rows(F16, 3, cols)));
        }
    }
    let norm = |op| op == Op::Norm;
    assert_refused(norm, dim("o", "columns", 12, 11), |args| args.o = rows(BF16, 3, 11));
    // All others follow the first tensor.
    assert_refused(norm, dim("z", "rows", 2, 3), |args| args.o = rows(BF16, 2, 12));
    assert_refused(norm, dtype("z", F32, BF16), |args| args.o = rows(F32, 3, 12));
    assert_refused(has_gates, dim("a", "rows", 2, 3), |args| args.mixed_qkv = rows(BF16, 2, 32));
    assert_refused(has_gates, dtype("a", F32, BF16), |args| args.mixed_qkv = rows(F32, 3, 32));
}

#[test]
fn outputs() {
    for op in Op::all() {
        let cols = op.out_cols(&spec());
        let this = |other| other == op;
        assert_refused(this, dim("out", "rows", 3, 4), |args| args.out = out(DType::BF16, 4, cols));
        assert_refused(this, dim("out", "columns", cols, cols - 1), |args| {
            args.out = out(DType::BF16, 3, cols - 1);
        });
        assert_refused(this, dtype("out", DType::BF16, DType::F16), |args| {
            args.out = out(DType::F16, 3, cols);
        });
        assert_refused(this, stride("out", format!("exactly {cols} (dense)"), cols + 1), |args| {
            let data = zeros(DType::BF16, 3 * (cols + 1));
            args.out = RowsMut::strided(data, 3, cols, cols + 1).unwrap();
        });
    }
}

#[test]
fn pools() {
    use DType::BF16;
    let larger = LayerSpec::new(2, 6, 5, 3).unwrap();
    let wider = spec().with_conv_width(5).unwrap();
    assert_refused(Op::has_recurrent, dim("recurrent", "elements a slot", 60, 90), |args| {
        args.state.recurrent = recurrent(&larger, 5);
    });
    assert_refused(Op::has_conv, dim("conv", "elements a slot", 128, 152), |args| {
        args.state.conv = conv(&larger, BF16, 5);
    });
    assert_refused(Op::has_conv, dim("conv", "taps", 4, 5), |args| {
        args.state.conv = conv(&wider, BF16, 5);
    });
    assert_refused(has_both, dim("conv", "slots", 5, 4), |args| {
        args.state.conv = conv(&spec(), BF16, 4);
    });
    assert_refused(has_both, dtype("state.conv", BF16, DType::F32), |args| {
        args.state.conv = conv(&spec(), DType::F32, 5);
    });
    assert_refused(
        |op| op == Op::Conv,
        dtype("conv", BF16, DType::F32),
        |args| {
            args.state.conv = conv(&spec(), DType::F32, 5);
        },
    );
}

#[test]
fn lengths() {
    for (lengths, total) in [(&[1, 1, 2], 4), (&[1, 1, 0], 2), (&[usize::MAX, 1, 3], usize::MAX)] {
        assert_refused(Op::is_prefill, dim("lengths", "tokens in all", 3, total), |args| {
            args.lengths = lengths;
        });
    }
    assert_refused(Op::is_prefill, dim("slots", "sequences", 2, 3), |args| args.lengths = &[1, 2]);
}

#[test]
fn no_rows_are_no_work() {
    let options = PoolOptions { conv: DType::F16, ..PoolOptions::new(2) };
    let dtypes = DTypes { activations: DType::F16, recurrent: DType::F32 };
    let world = World::new(&spec(), dtypes, &[1, 1], 47);
    let inputs = world.inputs(&[], 3);
    for op in Op::all() {
        let mut pool = StatePool::new(&spec(), &options).unwrap();
        (0..2).for_each(|slot| world.set(&mut pool, slot, slot as usize));
        let before = [bits(pool.buffers().unwrap().0), bits(pool.buffers().unwrap().1)];
        let (state, slots) = (pool.state_mut(), &[0i32; 0]);
        let out = out(DType::F16, 0, op.out_cols(&spec()));
        let args = Args::new(&world.random.layer, &inputs, &[], slots.into(), state, out);
        args.call(&mut *backend(), op).unwrap();
        assert_eq!(
            [bits(pool.buffers().unwrap().0), bits(pool.buffers().unwrap().1)],
            before,
            "{op:?}"
        );
    }
}

#[test]
fn specs() {
    for (h, hv, k, v, argument) in [
        (0, 4, 5, 3, "q_heads"),
        (2, 0, 5, 3, "v_heads"),
        (2, 4, 0, 3, "head_k"),
        (2, 4, 5, 0, "head_v"),
    ] {
        assert_error(LayerSpec::new(h, hv, k, v), &value(argument, "at least 1", 0));
    }
    assert_error(LayerSpec::new(2, 3, 5, 3), &ErrorKind::HeadRatio { q_heads: 2, v_heads: 3 });
    assert_error(LayerSpec::new(3, 2, 5, 3), &ErrorKind::HeadRatio { q_heads: 3, v_heads: 2 });
    assert_error(spec().with_conv_width(0), &value("conv_width", "at least 1", 0));
    for huge in [
        LayerSpec::new(1, 1, usize::MAX, 1),
        LayerSpec::new(1, 1 << 22, 1 << 22, 1 << 22),
        spec().with_conv_width(usize::MAX / 8),
    ] {
        let error = huge.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Value { argument: "spec", .. }), "{error}");
    }
    let at_least_0 = "a finite number, at least 0";
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_error(spec().with_scale(bad), &value("scale", "a finite number", bad));
        assert_error(spec().with_norm_eps(bad), &value("norm_eps", at_least_0, bad));
    }
    assert_error(spec().with_norm_eps(-1e-6), &value("norm_eps", at_least_0, -1e-6f32));
}

#[test]
fn weights() {
    let (weight, bias) = ([0.0f32; 32 * 5], [0.0f32; 33]);
    let (heads, dims) = ([0.0f32; 5], [0.0f32; 4]);
    let good = LayerWeights {
        conv_weight: Rows::new(&weight[..128], 32, 4).unwrap(),
        conv_bias: Some((&bias[..32]).into()),
        a_log: (&heads[..4]).into(),
        dt_bias: (&heads[..4]).into(),
        norm_weight: (&dims[..3]).into(),
    };
    let layer = |weights| Layer::new(&spec(), weights);
    layer(good).unwrap();
    let halves = [f16::ZERO; 4];
    let no_f16 = |argument| value(argument, "dtype f32 or bf16", "f16");
    for (weights, kind) in [
        (
            LayerWeights { conv_weight: Rows::new(&weight, 31, 4).unwrap(), ..good },
            dim("conv_weight", "rows", 32, 31),
        ),
        (
            LayerWeights { conv_weight: Rows::new(&weight, 32, 5).unwrap(), ..good },
            dim("conv_weight", "columns", 4, 5),
        ),
        (
            LayerWeights { conv_bias: Some((&bias).into()), ..good },
            dim("conv_bias", "elements", 32, 33),
        ),
        (LayerWeights { a_log: (&heads).into(), ..good }, dim("a_log", "elements", 4, 5)),
        (LayerWeights { dt_bias: (&heads).into(), ..good }, dim("dt_bias", "elements", 4, 5)),
        (
            LayerWeights { norm_weight: (&dims).into(), ..good },
            dim("norm_weight", "elements", 3, 4),
        ),
        (LayerWeights { a_log: (&halves).into(), ..good }, no_f16("a_log")),
        (LayerWeights { dt_bias: (&halves).into(), ..good }, no_f16("dt_bias")),
    ] {
        assert_error(layer(weights), &kind);
    }
}

#[test]
fn views() {
    let data = [0.0f32; 14];
    assert_error(Rows::strided(&data, 3, 5, 4), &stride("data", "at least 5", 4));
    assert_error(Rows::new(&data, 3, 5), &buffer("data", 15, 14));
    assert_error(Rows::strided(&data, 3, 4, 6), &buffer("data", 16, 14));
    Rows::strided(&data, 3, 4, 5).unwrap();
    let overflow = Rows::strided(&data, usize::MAX, 4, 5).unwrap_err();
    assert!(matches!(overflow.kind(), ErrorKind::Stride { argument: "data", got: 5, .. }));
    let rows = Rows::new(&data, 2, 7).unwrap();
    assert_error(rows.columns(4, 4), &dim("columns", "columns at the most", 7, 8));
    let overflow = dim("columns", "columns at the most", 7, usize::MAX);
    assert_error(rows.columns(2, usize::MAX), &overflow);

    let mut data = [bf16::ZERO; 14];
    assert_error(RowsMut::strided(&mut data, 3, 5, 4), &stride("data", "at least 5", 4));
    assert_error(RowsMut::new(&mut data, 3, 5), &buffer("data", 15, 14));
}

#[test]
fn states() {
    // 60 elements a slot, 128 a ring.
    let spec = spec();
    let mut data = [0.0f32; 400];
    let [mut phase, mut bad_phase] = [[0, 3, 1], [0, 4, 1]];
    let short = stride("recurrent", "at least 60", 59);
    assert_error(RecurrentMut::new(&spec, &mut data, 3, 59), &short);
    assert_error(RecurrentMut::new(&spec, &mut data, 3, 171), &buffer("recurrent", 402, 400));
    RecurrentMut::new(&spec, &mut data, 3, 170).unwrap();
    let too_many = value("slots", "a count that fits i32", 1usize << 31);
    assert_error(RecurrentMut::new(&spec, &mut data, 1 << 31, 60), &too_many);
    let short = stride("conv", "at least 128", 127);
    assert_error(ConvMut::new(&spec, &mut data, &mut phase, 127), &short);
    assert_error(ConvMut::new(&spec, &mut data, &mut phase, 137), &buffer("conv", 402, 400));
    ConvMut::new(&spec, &mut data, &mut phase, 136).unwrap();
    let past_the_ring = value("phase", "entries below conv_width", 4);
    assert_error(ConvMut::new(&spec, &mut data, &mut bad_phase, 128), &past_the_ring);
}

#[test]
#[allow(unsafe_code, reason = "raw parts are what is tested")]
fn raw_parts() {
    let expected = "a pointer that is not null and aligned to the dtype";
    let mut data = [0.0f32; 60];
    let aligned = data.as_mut_ptr().cast::<u8>();
    let null = std::ptr::null_mut::<u8>();
    for (bad, dtype) in [
        (null, DType::F32),
        (aligned.wrapping_add(2), DType::F32),
        (aligned.wrapping_add(1), DType::BF16),
        (aligned.wrapping_add(3), DType::F16),
    ] {
        let kind = value("ptr", expected, format!("{bad:?}"));
        // SAFETY: refused pointers are not read.
        unsafe {
            assert_error(Rows::from_raw_parts(bad, dtype, 2, 3, 3), &kind);
            assert_error(RowsMut::from_raw_parts(bad, dtype, 2, 3, 3), &kind);
            assert_error(RecurrentMut::from_raw_parts(&spec(), bad, dtype, 1, 60), &kind);
        }
    }
    // SAFETY: refused strides are not read; the last view lies in `data`.
    unsafe {
        let short = stride("data", "at least 5", 4);
        assert_error(Rows::from_raw_parts(aligned, DType::F32, 2, 5, 4), &short);
        assert_error(RowsMut::from_raw_parts(aligned, DType::F32, 2, 5, 4), &short);
        let short = stride("recurrent", "at least 60", 59);
        assert_error(RecurrentMut::from_raw_parts(&spec(), aligned, DType::F32, 1, 59), &short);
        let fine = Rows::from_raw_parts(aligned.wrapping_add(2), DType::BF16, 2, 5, 7).unwrap();
        assert_eq!((fine.rows(), fine.cols(), fine.stride()), (2, 5, 7));
    }
}

#[test]
fn pool_options() {
    let pool = |options| StatePool::new(&spec(), &options);
    let options = PoolOptions::new(3);
    let short = PoolOptions { recurrent_pitch: Some(59), ..options.clone() };
    assert_error(pool(short), &stride("recurrent_pitch", "at least 60", 59));
    let short = PoolOptions { conv_pitch: Some(127), ..options.clone() };
    assert_error(pool(short), &stride("conv_pitch", "at least 128", 127));
    let many = PoolOptions::new(1 << 31);
    assert_error(pool(many), &value("slots", "a count that fits i32", 1usize << 31));
    for pitch in [usize::MAX / 16, usize::MAX / 4] {
        let error = pool(PoolOptions { conv_pitch: Some(pitch), ..options.clone() }).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::System { .. }), "{error}");
        assert!(error.to_string().starts_with("conv state: "), "{error}");
    }
    let pitch = PoolOptions { conv_pitch: Some(usize::MAX), ..options };
    let error = pool(pitch).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Stride { argument: "conv_pitch", .. }), "{error}");
}

#[test]
fn slots_of_a_pool() {
    let mut pool = StatePool::new(&spec(), &PoolOptions::new(2)).unwrap();
    let not_allocated = |argument, got| ErrorKind::SlotNotAllocated { argument, got };
    let [taken, freed] = [(); 2].map(|()| pool.allocate().unwrap());
    assert_error(pool.allocate(), &ErrorKind::PoolFull { slots: 2 });
    let (state, taps) = (vec![0.5; 60], vec![0.25; 96]);
    pool.set(taken, &state, &taps).unwrap();
    let snapshot = pool.snapshot(taken).unwrap();
    pool.free(freed).unwrap();
    let before = [bits(pool.buffers().unwrap().0), bits(pool.buffers().unwrap().1)];

    for bad in [freed, -1, 2, i32::MIN, i32::MAX] {
        let got = bad.into();
        assert_error(pool.free(bad), &not_allocated("slot", got));
        assert_error(pool.snapshot(bad), &not_allocated("slot", got));
        assert_error(pool.restore(bad, &snapshot), &not_allocated("slot", got));
        if bad != freed {
            let outside = value("slot", "a slot of the pool", bad);
            assert_error(pool.copy(bad, taken), &value("from", "a slot of the pool", bad));
            assert_error(pool.copy(taken, bad), &value("to", "a slot of the pool", bad));
            assert_error(pool.recurrent(bad), &outside);
            assert_error(pool.conv(bad), &outside);
            assert_error(pool.set(bad, &state, &taps), &outside);
        }
    }
    let short = dim("recurrent", "elements", 60, 59);
    assert_error(pool.set(taken, &state[1..], &taps), &short);
    assert_error(pool.set(taken, &state, &taps[1..]), &dim("conv", "elements", 96, 95));
    assert_eq!([bits(pool.buffers().unwrap().0), bits(pool.buffers().unwrap().1)], before);
    assert_eq!((pool.free_slots(), pool.allocate()), (1, Ok(freed)));
}

#[test]
fn snapshots_of_other_pools() {
    let snapshot = |spec: &LayerSpec, options| {
        let mut pool = StatePool::new(spec, &options).unwrap();
        let slot = pool.allocate().unwrap();
        pool.snapshot(slot).unwrap()
    };
    let mut pool = StatePool::new(&spec(), &PoolOptions::new(1)).unwrap();
    let slot = pool.allocate().unwrap();
    pool.set(slot, &[0.5; 60], &[0.25; 96]).unwrap();
    let before = [bits(pool.buffers().unwrap().0), bits(pool.buffers().unwrap().1)];

    for other in [
        LayerSpec::new(2, 4, 3, 5).unwrap(),
        spec().with_conv_width(5).unwrap(),
        spec().with_beta_rounding(BetaRounding::Activation),
    ] {
        let snapshot = snapshot(&other, PoolOptions::new(1));
        let error = pool.restore(slot, &snapshot).unwrap_err();
        let ErrorKind::Mismatch { argument: "snapshot", expected, got } = error.kind() else {
            panic!("{error}");
        };
        assert!(expected.contains(&format!("{:?}", spec())), "{expected}");
        assert_eq!(*got, format!("{other:?}"));
    }
    let narrow = PoolOptions { recurrent: DType::BF16, ..PoolOptions::new(1) };
    let kind = dtype("snapshot.recurrent", DType::F32, DType::BF16);
    assert_error(pool.restore(slot, &snapshot(&spec(), narrow)), &kind);
    let narrow = PoolOptions { conv: DType::F16, ..PoolOptions::new(1) };
    let kind = dtype("snapshot.conv", DType::F32, DType::F16);
    assert_error(pool.restore(slot, &snapshot(&spec(), narrow)), &kind);
    assert_eq!([bits(pool.buffers().unwrap().0), bits(pool.buffers().unwrap().1)], before);
}

#[test]
fn dispatchers() {
    let dtypes = DTypes { activations: DType::BF16, recurrent: DType::F32 };
    let world = World::new(&spec(), dtypes, &[1], 53);
    let layer = &world.random.layer;
    let inputs = world.inputs(&[world.sequences[0].tokens.first()], 0);
    let options = PoolOptions { conv: DType::BF16, ..PoolOptions::new(1) };
    let mut backend = backend();
    for (activations, recurrent, kind) in [
        (DType::F32, DType::F32, dtype("mixed_qkv", DType::F32, DType::BF16)),
        (DType::BF16, DType::F16, dtype("state.recurrent", DType::F16, DType::F32)),
    ] {
        let dispatcher = Dispatcher::new(&*backend, layer, activations, recurrent, None).unwrap();
        let mut pool = StatePool::new(&spec(), &options).unwrap();
        world.set(&mut pool, 0, 0);
        let before = [bits(pool.buffers().unwrap().0), bits(pool.buffers().unwrap().1)];
        let mut out = Tensor::poisoned(DType::BF16, 1, 12);
        let poison = out.bits();
        let args = LayerStep {
            layer,
            mixed_qkv: inputs.mixed_qkv.view(),
            a: inputs.a.view(),
            b: inputs.b.view(),
            z: inputs.z.view(),
            slots: (&[0]).into(),
            state: pool.state_mut(),
            out: out.view_mut(),
        };
        assert_error(dispatcher.step(&mut *backend, args), &kind);
        assert_eq!(out.bits(), poison);
        assert_eq!([bits(pool.buffers().unwrap().0), bits(pool.buffers().unwrap().1)], before);
    }
}

#[test]
fn words() {
    let path = value("path", "split, packed or fused", "chunked");
    assert_error("chunked".parse::<DecodePath>(), &path);
    assert_error("f64".parse::<DType>(), &value("dtype", "f32, bf16 or f16", "f64"));
    assert_error(Cpu::with_threads(0).map(|_| ()), &value("threads", "at least 1", 0));
    for path in DecodePath::ALL {
        assert_eq!(path.to_string().parse(), Ok(path));
    }
    for dtype in DType::ALL {
        assert_eq!(dtype.to_string().parse(), Ok(dtype));
    }
}
