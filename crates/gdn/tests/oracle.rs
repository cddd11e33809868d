//! Every path on every case of `gdn check`, compared with the f64 oracle and
//! with the split path.

use gdn::{Cpu, DType, DecodePath::*, PrefillForm};
use gdn_check::{Case, Operator, Problem};

fn check(case: Case) {
    let mut cpu = Cpu::new().unwrap();
    let problem = Problem::new(case);
    let limit = problem.case.tolerance();
    let split_decode = problem.run(&mut cpu, Operator::Decode(Split)).unwrap();
    let split_layer = problem.run(&mut cpu, Operator::Layer(Split)).unwrap();
    for operator in [
        Operator::Decode(Split),
        Operator::Decode(Packed),
        Operator::Layer(Split),
        Operator::Layer(Packed),
        Operator::Layer(Fused),
        Operator::Prefill(PrefillForm::Recurrent),
        Operator::Prefill(PrefillForm::Chunked),
    ] {
        let outcome = problem.run(&mut cpu, operator).unwrap();
        let split =
            if matches!(operator, Operator::Decode(_)) { &split_decode } else { &split_layer };
        let what = format!("{} of {}", operator.name(), problem.case.describe());
        let errors = problem.against_oracle(operator, &outcome);
        println!("{what}: {errors:?}");
        assert!(errors.worst() <= limit, "{what}: {errors:?} against the oracle");
        let errors = problem.against(&outcome, split);
        assert!(errors.worst() <= limit, "{what}: {errors:?} against split");
        assert!(problem.kept_the_rest(&outcome), "{what}: wrote to a slot that no row has");
    }
}

#[test]
fn reference_shapes() {
    for case in Case::reference().into_iter().filter(|case| case.rows <= 32) {
        check(case.clone());
        check(case.clone().with_dtypes(DType::BF16, DType::F32));
        check(case.with_dtypes(DType::BF16, DType::BF16));
    }
}

#[test]
fn beyond_reference() {
    for case in Case::beyond_reference() {
        for activations in DType::ALL {
            for recurrent in DType::ALL {
                check(case.clone().with_dtypes(activations, recurrent));
            }
        }
    }
}
