//! Every kernel against the oracle, under several orders of its threads.

mod common;

use std::{env, process::Command};

use common::{How, Kernel, Left, Tile, compiler};
use gdn::{
    BetaRounding, DType,
    DType::{BF16, F16, F32},
    DecodePath, HeadOrder, LayerSpec, PrefillForm,
    cuda::params,
};
use gdn_check::{Case, Operator, Problem};
use gdn_emu::{Build, Compiler};

/// In order, and three random orders.
const SCHEDULES: [u32; 4] = [0, 1, 2, 3];

fn case(rows: usize, k: usize, v: usize, activations: DType, recurrent: DType) -> Case {
    let spec = LayerSpec::new(2, 4, k, v).unwrap();
    // A gap of 32 elements keeps rows and slots aligned to 16 bytes.
    let case = Case { padding: true, row_gap: 32, slot_gap: 32, ..Case::new(rows, spec) };
    case.with_dtypes(activations, recurrent)
}

fn how(path: Kernel, tile: Tile) -> How {
    How { path, tile, i64_slots: false, schedule: 0, build: Build::default() }
}

const fn direct(warps: u32, rows: u32, cluster: u32) -> Tile {
    Tile::Direct { warps, rows, cluster }
}

/// A stream on three CTAs: each has several items, and not all the same number.
const fn stream(warps: u32, rows: u32, stages: u32, split: u32) -> Tile {
    Tile::Stream { warps, rows, stages, split, ctas: 3 }
}

/// Runs and compares with the oracle; returns what was left.
fn check(compiler: &Compiler, problem: &Problem, how: &How) -> Left {
    let left = common::run(compiler, problem, &problem.slots, how).unwrap();
    let operator = match how.path {
        Kernel::Prefill => Operator::Prefill(PrefillForm::Recurrent),
        _ => Operator::Layer(DecodePath::Fused),
    };
    let errors = problem.against_oracle(operator, &left.outcome(problem));
    let case = &problem.case;
    assert!(errors.worst() <= case.tolerance(), "{how:?}, {}: {errors:?}", case.describe());
    assert_eq!(left.error, 0, "{how:?} reports a slot");
    left.check_the_rest(problem, &problem.slots);
    left
}

/// Checks each of `kernels` in every order, and that the order does not matter.
fn check_all(case: Case, i64_slots: bool, kernels: &[(Kernel, Tile)]) {
    let Some(compiler) = compiler() else { return };
    let problem = Problem::new(case);
    for &(path, tile) in kernels {
        let how = How { i64_slots, ..how(path, tile) };
        let in_order = check(&compiler, &problem, &how);
        for schedule in &SCHEDULES[1..] {
            let left = check(&compiler, &problem, &How { schedule: *schedule, ..how.clone() });
            assert!(left == in_order, "{how:?}: schedule {schedule} gives other bits");
        }
    }
}

#[test]
fn f32_state() {
    check_all(
        case(4, 128, 128, BF16, F32),
        true,
        &[
            (Kernel::Split, direct(1, 8, 1)),
            (Kernel::Packed, direct(1, 8, 1)),
            (Kernel::Packed, stream(2, 8, 8, 8)),
            (Kernel::Fused, direct(4, 8, 4)),
            (Kernel::Fused, direct(4, 16, 2)),
            (Kernel::Fused, stream(8, 4, 12, 1)),
            (Kernel::Prefill, direct(4, 8, 1)),
        ],
    );
}

#[test]
fn bf16_state_with_tiled_heads() {
    let case = case(4, 128, 128, BF16, BF16);
    let spec = case.spec.clone().with_head_order(HeadOrder::Tiled);
    let spec = spec.with_beta_rounding(BetaRounding::Activation);
    check_all(
        Case { spec, ..case },
        false,
        &[
            (Kernel::Split, direct(4, 8, 1)),
            (Kernel::Packed, direct(1, 4, 1)),
            (Kernel::Fused, direct(4, 32, 1)),
            (Kernel::Fused, stream(8, 8, 6, 1)),
            (Kernel::Prefill, direct(4, 8, 1)),
        ],
    );
}

#[test]
fn head_dims_of_64() {
    check_all(
        case(3, 64, 64, F32, F32),
        false,
        &[
            (Kernel::Packed, direct(4, 8, 1)),
            (Kernel::Fused, direct(4, 16, 1)),
            (Kernel::Fused, stream(4, 8, 3, 1)),
            (Kernel::Prefill, direct(4, 8, 1)),
        ],
    );
}

#[test]
fn f16() {
    check_all(
        case(3, 128, 128, F16, F16),
        false,
        &[(Kernel::Packed, direct(4, 8, 1)), (Kernel::Fused, direct(4, 32, 1))],
    );
}

const ANY: [(Kernel, Tile); 4] = [
    (Kernel::Split, Tile::Any),
    (Kernel::Packed, Tile::Any),
    (Kernel::Fused, Tile::Any),
    (Kernel::Prefill, Tile::Any),
];

#[test]
fn odd_head_dims_and_odd_strides() {
    let case = case(4, 33, 47, F32, BF16);
    check_all(Case { row_gap: 5, slot_gap: 7, ..case }, true, &ANY);
}

#[test]
fn a_slot_out_of_range_is_padding_and_is_reported() {
    let Some(compiler) = compiler() else { return };
    let problem = Problem::new(Case { padding: false, ..case(3, 33, 47, F32, BF16) });
    for (path, tile) in ANY {
        let mut slots = problem.slots.clone();
        let bad = problem.case.pool as i32 + 5;
        slots[1] = bad;
        let left = common::run(&compiler, &problem, &slots, &how(path, tile)).unwrap();
        assert_eq!(left.error, 2 << 32 | bad as u64, "{path:?}");
        // The norm may make a zero negative.
        let mut values = left.outcome(&problem).out.into_iter().flat_map(|out| out.row(1));
        assert!(values.all(|y| y == 0.0), "{path:?}");
        left.check_the_rest(&problem, &slots);
    }
}

#[test]
fn a_barrier_left_out_is_found() {
    let Some(compiler) = compiler() else { return };
    let mut case = case(1, 128, 128, BF16, F32);
    case.padding = false;
    let problem = Problem::new(case);
    let barriers = [
        (Kernel::Packed, Tile::Any, 1),
        (Kernel::Fused, Tile::Any, 2),
        (Kernel::Fused, direct(4, 32, 1), 2),
        (Kernel::Prefill, direct(4, 8, 1), 1),
    ];
    for (path, tile, count) in barriers {
        let whole = common::run(&compiler, &problem, &problem.slots, &how(path, tile)).unwrap();
        for barrier in 0..count {
            let build = Build::default().define("GDN_DROP_SYNC", barrier);
            let found = SCHEDULES.into_iter().any(|schedule| {
                let how = How { schedule, build: build.clone(), ..how(path, tile) };
                match common::run(&compiler, &problem, &problem.slots, &how) {
                    Ok(left) => left != whole,
                    Err(_) => true,
                }
            });
            assert!(found, "{path:?} {tile:?} does not miss barrier {barrier}");
        }
    }
}

#[test]
fn parameters_are_as_large_in_rust_as_in_c() {
    let Some(compiler) = compiler() else { return };
    assert_eq!(compiler.parameter_sizes().unwrap(), params::SIZES);
}

/// Set in the process that has libasan loaded first.
const SANITIZED: &str = "GDN_EMU_SANITIZED";

#[test]
fn no_access_out_of_bounds() {
    let Some(compiler) = compiler() else { return };
    if env::var_os(SANITIZED).is_none() {
        let status = Command::new(env::current_exe().unwrap())
            .args(["--exact", "no_access_out_of_bounds"])
            .env(SANITIZED, "1")
            .env("LD_PRELOAD", compiler.sanitizer_library().unwrap())
            .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0")
            .status()
            .unwrap();
        assert!(status.success(), "under the sanitizers: {status}");
        return;
    }
    let sanitized = |case: Case, kernels: &[(Kernel, Tile)]| {
        let problem = Problem::new(case);
        for &(path, tile) in kernels {
            let build = Build { sanitize: true, ..Build::default() };
            check(&compiler, &problem, &How { schedule: 1, build, ..how(path, tile) });
        }
    };
    sanitized(case(2, 33, 47, F32, BF16), &ANY);
    sanitized(
        Case { row_gap: 0, slot_gap: 0, ..case(2, 128, 128, BF16, F32) },
        &[
            (Kernel::Split, direct(1, 8, 1)),
            (Kernel::Packed, stream(2, 8, 8, 8)),
            (Kernel::Fused, direct(4, 16, 2)),
            (Kernel::Fused, stream(8, 4, 12, 1)),
            (Kernel::Prefill, direct(4, 8, 1)),
        ],
    );
}
