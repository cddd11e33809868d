//! Every path on every case of `gdn check`, compared with the f64 oracle and
//! with the split path.

mod common;

use common::{DTypes, Layout, Op, PREFILL_FORMS, Sequence, Trace, World, backend};
use gdn::{DType, DecodePath::*, LayerSpec, PrefillForm};
use gdn_check::{Case, Operator, Outcome, Problem};

fn check(case: Case) {
    let mut backend = backend();
    let problem = Problem::new(case);
    let limit = problem.case.tolerance();
    let decodes = vec![Operator::Decode(Split), Operator::Decode(Packed)];
    let mut layers = vec![Operator::Layer(Split), Operator::Layer(Packed), Operator::Layer(Fused)];
    layers.extend(PREFILL_FORMS.into_iter().map(Operator::Prefill));
    for operators in [decodes, layers] {
        let split = problem.run(&mut *backend, operators[0]).unwrap();
        let compare = |operator: Operator, outcome: &Outcome| {
            let what = format!("{} of {}", operator.name(), problem.case.describe());
            let errors = problem.against_oracle(operator, outcome);
            assert!(errors.worst() <= limit, "{what}: {errors:?} against the oracle");
            let errors = problem.against(outcome, &split);
            assert!(errors.worst() <= limit, "{what}: {errors:?} against split");
            assert!(problem.kept_the_rest(outcome), "{what}: wrote to a slot that no row has");
        };
        compare(operators[0], &split);
        for &operator in &operators[1..] {
            compare(operator, &problem.run(&mut *backend, operator).unwrap());
        }
    }
}

// `gdn check` runs the larger batches too.
fn reference(activations: DType, recurrent: DType, rows: usize) {
    for case in Case::reference().into_iter().filter(|case| case.rows <= rows) {
        check(case.with_dtypes(activations, recurrent));
    }
}

#[test]
fn reference_shapes_in_f32() {
    reference(DType::F32, DType::F32, 32);
}

#[test]
fn reference_shapes_in_bf16() {
    reference(DType::BF16, DType::F32, 4);
}

#[test]
fn reference_shapes_with_bf16_state() {
    reference(DType::BF16, DType::BF16, 4);
}

#[test]
fn beyond_reference_in_f32() {
    Case::beyond_reference().into_iter().for_each(check);
}

/// Every pair of dtypes, each case with the next one.
#[test]
fn beyond_reference_in_all_dtypes() {
    let pairs: Vec<DTypes> = DTypes::all().collect();
    for (i, case) in Case::beyond_reference().into_iter().enumerate() {
        for DTypes { activations, recurrent } in [pairs[i % 9], pairs[(i + 4) % 9]] {
            check(case.clone().with_dtypes(activations, recurrent));
        }
    }
}

/// Chunks of 64 tokens, whole ones and parts of one.
#[test]
fn prefills_of_many_tokens() {
    // A ring of 5 stands elsewhere at every chunk.
    let odd = LayerSpec::new(2, 6, 33, 47).unwrap().with_conv_width(5).unwrap();
    for spec in [LayerSpec::new(1, 2, 128, 128).unwrap(), odd] {
        for activations in DType::ALL {
            let dtypes = DTypes { activations, recurrent: DType::F32 };
            let world = World::new(&spec, dtypes, &[63, 64, 65, 1, 200], 3);
            for form in PREFILL_FORMS {
                let op = Op::Prefill(form);
                let traces = world.run(&mut *backend(), op, &Layout::dense(0..5));
                for (trace, sequence) in traces.iter().zip(&world.sequences) {
                    let error = trace.wide().error(&world.expected(op, sequence));
                    let what = format!("{form:?}, {dtypes:?}, {} tokens", sequence.tokens.len());
                    assert!(error <= dtypes.tolerance(&spec), "{what}: {error}");
                }
            }
        }
    }
}

/// A decay of zero, however far below zero its logarithm lies, is no reason for
/// the tokens behind it to be less exact.
#[test]
fn one_token_may_forget_everything() {
    for (dim, at) in [(16, 2), (128, 2), (128, 40)] {
        let spec = LayerSpec::new(1, 2, dim, dim).unwrap();
        for a in [1e2, 1e4, 1e30, f32::INFINITY] {
            let mut world = World::new(&spec, DTypes::F32, &[at + 4], 3);
            world.sequences[0].tokens[at].a.fill(a);
            let few = |op: &Op| op.has_recurrent() && (at == 2 || op.is_prefill());
            for op in Op::all().filter(few) {
                let [trace] = &world.run(&mut *backend(), op, &Layout::dense([0]))[..] else {
                    panic!("one sequence")
                };
                let error = trace.wide().error(&world.expected(op, &world.sequences[0]));
                assert!(error <= DTypes::F32.tolerance(&spec), "{op:?}, a = {a}: {error}");
            }
        }
    }
}

/// A prompt in pieces of any length, as an engine cuts it. Where it cuts between
/// chunks of 64, an f32 state makes the bits those of one call.
#[test]
fn a_chunked_prefill_may_be_cut_anywhere() {
    let op = Op::Prefill(PrefillForm::Chunked);
    let spec = LayerSpec::new(1, 2, 128, 128).unwrap();
    for (activations, lengths) in [
        (DType::F32, &[3, 64, 1, 0, 71, 2, 30][..]),
        (DType::BF16, &[1, 1, 1, 60, 65, 43]),
        (DType::BF16, &[64, 107]),
    ] {
        let dtypes = DTypes { activations, recurrent: DType::F32 };
        let whole = World::new(&spec, dtypes, &[171], 9);
        let mut part = World::new(&spec, dtypes, &[171], 9);
        let (mut rest, mut out) = (part.sequences[0].tokens.clone(), Vec::new());
        let mut phase = 0;
        for &length in lengths {
            part.sequences[0].tokens = rest.drain(..length).collect();
            let layout = Layout { phase, ..Layout::dense([0]) };
            let trace = part.run(&mut *backend(), op, &layout).swap_remove(0);
            part.sequences[0].recurrent.clone_from(&trace.recurrent);
            part.sequences[0].conv.clone_from(&trace.conv);
            out.extend(trace.out);
            phase = (phase + length) % spec.conv_width();
        }
        let Sequence { recurrent, conv, .. } = part.sequences.swap_remove(0);
        let trace = Trace { out, recurrent, conv };
        let error = trace.wide().error(&whole.expected(op, &whole.sequences[0]));
        assert!(error <= dtypes.tolerance(&spec), "{dtypes:?}, {lengths:?}: {error}");
        if lengths[0] == 64 {
            let [expected] = &whole.run(&mut *backend(), op, &Layout::dense([0]))[..] else {
                panic!("one sequence")
            };
            assert!(trace.same(expected), "{dtypes:?}, {lengths:?}");
        }
    }
}
