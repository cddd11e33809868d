//! Every tile of every kernel against the oracle, under several orders of its
//! threads, through the launchers of the CUDA backend.
#![allow(unsafe_code, clippy::print_stdout)] // Slots at an address; a line for a skipped test.

use std::{env, path::Path, process::Command};

use gdn::{
    Backend, BetaRounding, Cuda,
    DType::{self, BF16, F16, F32},
    Decode,
    DecodePath::{self, Fused, Packed, Split},
    ErrorKind, HeadOrder, LayerSpec, LayerStep, PrefillForm,
    cuda::{
        params,
        tiles::{ANY, Tile, Tiled, chunk, direct, stream},
    },
};
use gdn_check::{Case, Operator, Outcome, Problem, Tensor};
use gdn_cuda::{DevicePtr, DeviceSlice};
use gdn_emu::{Build, EmulatedGpu};

/// In order, and three random orders.
const SCHEDULES: [u32; 4] = [0, 1, 2, 3];

const PREFILL: Operator = Operator::Prefill(PrefillForm::Recurrent);
const CHUNKED: Operator = Operator::Prefill(PrefillForm::Chunked);

/// The emulated GPU, or `None` with a line saying why the test is skipped.
fn gpu() -> Option<EmulatedGpu> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    EmulatedGpu::new(&out).map_err(|why| println!("skipped: {why}")).ok()
}

fn case(rows: usize, k: usize, v: usize, activations: DType, recurrent: DType) -> Case {
    let spec = LayerSpec::new(2, 4, k, v).unwrap();
    // A gap of 32 elements keeps rows and slots aligned to 16 bytes.
    let case = Case { padding: true, row_gap: 32, slot_gap: 32, ..Case::new(rows, spec) };
    case.with_dtypes(activations, recurrent)
}

fn backend(gpu: &EmulatedGpu, tile: Tile) -> Cuda {
    let mut cuda = gpu.backend().unwrap();
    for operator in [Tiled::Split, Tiled::Packed, Tiled::Fused, Tiled::Prefill, Tiled::Chunked] {
        cuda.force_tile(operator, tile);
    }
    cuda
}

/// A padding row and one of so many tokens.
fn tokens(steps: usize, activations: DType, recurrent: DType) -> Case {
    let spec = LayerSpec::new(1, 2, 128, 128).unwrap();
    Case { spec, steps, ..case(2, 128, 128, activations, recurrent) }
}

/// Runs and compares with the oracle.
fn check(gpu: &EmulatedGpu, problem: &Problem, operator: Operator, tile: Tile) -> Outcome {
    let outcome = problem.run(&mut backend(gpu, tile), operator).unwrap();
    let errors = problem.against_oracle(operator, &outcome);
    let what = format!("{operator:?}, {tile:?}, {}", problem.case.describe());
    assert!(errors.worst() <= problem.case.tolerance(), "{what}: {errors:?}");
    assert!(problem.kept_the_rest(&outcome), "{what}: wrote to a slot that no row has");
    outcome
}

/// Whether two outcomes have the same bits.
fn same(a: &Outcome, b: &Outcome) -> bool {
    let state = |outcome: &Outcome| {
        let (recurrent, conv) = outcome.pool.buffers().unwrap();
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        [bits(recurrent.to_f32()), bits(conv.to_f32())]
    };
    let out = |outcome: &Outcome| outcome.out.iter().map(Tensor::bits).collect::<Vec<_>>();
    out(a) == out(b) && state(a) == state(b)
}

/// Checks each of `kernels` in every order, and that the order does not matter.
fn check_all(case: Case, kernels: &[(Operator, Tile)]) {
    let Some(mut gpu) = gpu() else { return };
    let problem = Problem::new(case);
    for &(operator, tile) in kernels {
        gpu.schedule = SCHEDULES[0];
        let in_order = check(&gpu, &problem, operator, tile);
        for schedule in &SCHEDULES[1..] {
            gpu.schedule = *schedule;
            let outcome = check(&gpu, &problem, operator, tile);
            assert!(same(&outcome, &in_order), "{operator:?}, {tile:?}, schedule {schedule}");
        }
    }
}

const fn layer(path: DecodePath) -> Operator {
    Operator::Layer(path)
}

// Streams run on three multiprocessors: each CTA has several items, and not all
// the same number.

#[test]
fn f32_state() {
    check_all(
        case(4, 128, 128, BF16, F32),
        &[
            (layer(Split), direct(1, 8, 1, 1)),
            (layer(Packed), direct(1, 8, 1, 1)),
            (layer(Packed), stream(2, 8, 8, 8, 1, 1)),
            (layer(Fused), direct(4, 8, 4, 1)),
            (layer(Fused), direct(4, 16, 2, 1)),
            (layer(Fused), stream(8, 4, 12, 1, 1, 1)),
            (PREFILL, direct(4, 8, 1, 1)),
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
        &[
            (layer(Split), direct(4, 8, 1, 1)),
            (layer(Packed), direct(1, 4, 1, 1)),
            (layer(Fused), direct(4, 32, 1, 1)),
            (layer(Fused), stream(8, 8, 6, 1, 1, 1)),
            (PREFILL, direct(4, 8, 1, 1)),
        ],
    );
}

#[test]
fn head_dims_of_64() {
    check_all(
        case(3, 64, 64, F32, F32),
        &[
            (layer(Packed), direct(4, 8, 1, 1)),
            (layer(Fused), direct(4, 16, 1, 1)),
            (layer(Fused), stream(4, 8, 3, 1, 1, 1)),
            (PREFILL, direct(4, 8, 1, 1)),
        ],
    );
}

#[test]
fn head_dims_of_256() {
    check_all(
        case(2, 256, 256, BF16, F32),
        &[(layer(Packed), direct(4, 8, 1, 1)), (layer(Fused), direct(4, 16, 4, 1))],
    );
}

#[test]
fn f16() {
    check_all(
        case(3, 128, 128, F16, F16),
        &[(layer(Packed), direct(4, 8, 1, 1)), (layer(Fused), direct(4, 32, 1, 1))],
    );
}

const ANY_DIMS: [(Operator, Tile); 4] =
    [(layer(Split), ANY), (layer(Packed), ANY), (layer(Fused), ANY), (PREFILL, ANY)];

#[test]
fn odd_head_dims_and_odd_strides() {
    let case = case(4, 33, 47, F32, BF16);
    check_all(Case { row_gap: 5, slot_gap: 7, ..case }, &ANY_DIMS);
}

#[test]
fn chunks_of_tokens() {
    check_all(
        tokens(70, BF16, F32),
        &[(CHUNKED, chunk(2, 2, 2)), (CHUNKED, chunk(4, 2, 1)), (CHUNKED, chunk(4, 1, 1))],
    );
    let case = tokens(65, F32, BF16);
    let spec = case.spec.clone().with_head_order(HeadOrder::Tiled);
    let spec = spec.with_qk_l2norm(false).with_conv_width(3).unwrap();
    check_all(Case { spec, row_gap: 5, ..case }, &[(CHUNKED, chunk(2, 1, 1))]);
}

/// Three chunks, so that every buffer is used again.
#[test]
fn the_tile_of_a_chunk_does_not_matter() {
    let Some(mut gpu) = gpu() else { return };
    gpu.schedule = 1;
    let problem = Problem::new(tokens(130, BF16, F32));
    let first = check(&gpu, &problem, CHUNKED, chunk(1, 2, 2));
    for tile in [chunk(2, 2, 2), chunk(2, 2, 1), chunk(8, 2, 1), chunk(2, 1, 1)] {
        assert!(same(&check(&gpu, &problem, CHUNKED, tile), &first), "{tile:?}");
    }
}

/// All tiles of a shape round alike, and so do aligned and unaligned memory.
#[test]
fn the_tile_does_not_matter() {
    let Some(gpu) = gpu() else { return };
    let tiles = [
        (Packed, vec![direct(1, 8, 1, 1), direct(4, 8, 1, 1), stream(2, 8, 8, 8, 1, 1)]),
        (Fused, vec![direct(4, 8, 4, 1), direct(4, 32, 1, 1), stream(8, 4, 12, 1, 1, 1)]),
    ];
    let aligned = Problem::new(case(3, 128, 128, BF16, F32));
    let odd = Problem::new(Case { row_gap: 5, slot_gap: 7, ..case(3, 128, 128, BF16, F32) });
    for (path, tiles) in tiles {
        let outcomes: Vec<_> =
            tiles.iter().map(|&tile| check(&gpu, &aligned, layer(path), tile)).collect();
        for (outcome, tile) in outcomes.iter().zip(&tiles) {
            assert!(same(outcome, &outcomes[0]), "{path}, {tile:?}");
        }
        let outcome = check(&gpu, &odd, layer(path), tiles[0]);
        let bits = |outcome: &Outcome| outcome.out.iter().map(Tensor::bits).collect::<Vec<_>>();
        assert!(bits(&outcome) == bits(&outcomes[0]), "{path}, unaligned");
    }
}

/// Slots on the GPU, which the host does not check.
#[test]
fn a_slot_out_of_range_is_padding_and_is_reported() {
    let Some(gpu) = gpu() else { return };
    let problem = Problem::new(Case { padding: false, ..case(3, 33, 47, F32, BF16) });
    let (layer, inputs) = (&problem.layer.layer, &problem.steps[0]);
    let (mixed_qkv, z) = (inputs.mixed_qkv.view(), inputs.z.view());
    let (a, b) = (inputs.a.view(), inputs.b.view());
    let bad = problem.case.pool as i32 + 5;
    let slots = [problem.slots[0], bad, problem.slots[2]];
    for path in [None, Some(Split), Some(Packed), Some(Fused)] {
        let mut cuda = gpu.backend().unwrap();
        let mut pool = problem.pool();
        let mut out = Tensor::poisoned(F32, 3, problem.case.spec.value_len());
        let address = slots.as_ptr().expose_provenance() as u64;
        // SAFETY: the emulated GPU's memory is the host's.
        let slots =
            unsafe { DeviceSlice::from_raw_parts(DevicePtr::<i32>::from_address(address), 3, 0) };
        let (slots, state, view) = (slots.into(), pool.state_mut(), out.view_mut());
        match path {
            None => {
                let recurrent = state.recurrent;
                let args = Decode { layer, mixed_qkv, a, b, slots, recurrent, out: view };
                cuda.packed_decode(args).unwrap();
            }
            Some(path) => {
                let args = LayerStep { layer, mixed_qkv, a, b, z, slots, state, out: view };
                cuda.layer_step(path, args).unwrap();
            }
        }
        let error = cuda.synchronize().unwrap_err();
        let (slots, got) = (problem.case.pool, bad.into());
        assert_eq!(*error.kind(), ErrorKind::SlotOutOfRange { row: 1, slots, got }, "{path:?}");
        assert_eq!(cuda.synchronize(), Ok(()), "it is told once");
        assert!(out.row(1).iter().all(|y| y.to_bits() == 0), "{path:?}");
        assert!(out.row(0).iter().any(|&y| y != 0.0), "{path:?}");
    }
}

#[test]
fn a_barrier_left_out_is_found() {
    let Some(gpu) = gpu() else { return };
    let problem = Problem::new(Case { padding: false, ..case(1, 128, 128, BF16, F32) });
    let chunks = Problem::new(Case { rows: 1, padding: false, ..tokens(130, BF16, F32) });
    let barriers = [
        (layer(Packed), ANY, 1),
        (layer(Fused), ANY, 2),
        (layer(Fused), direct(4, 32, 1, 1), 2),
        (PREFILL, direct(4, 8, 1, 1), 1),
        (CHUNKED, chunk(2, 2, 2), 5),
        (CHUNKED, chunk(2, 1, 1), 2),
    ];
    for (operator, tile, count) in barriers {
        let problem = if operator == CHUNKED { &chunks } else { &problem };
        let whole = problem.run(&mut backend(&gpu, tile), operator).unwrap();
        for barrier in 0..count {
            let build = Build::default().define("GDN_DROP_SYNC", barrier);
            let found = SCHEDULES.into_iter().any(|schedule| {
                let mut gpu = gpu.clone();
                (gpu.schedule, gpu.build) = (schedule, build.clone());
                match problem.run(&mut backend(&gpu, tile), operator) {
                    Ok(outcome) => !same(&outcome, &whole),
                    Err(_) => true,
                }
            });
            assert!(found, "{operator:?} {tile:?} does not miss barrier {barrier}");
        }
    }
}

#[test]
fn parameters_are_as_large_in_rust_as_in_c() {
    let Some(gpu) = gpu() else { return };
    assert_eq!(gpu.compiler().parameter_sizes().unwrap(), params::SIZES);
}

/// Set in the process that has libasan loaded first.
const SANITIZED: &str = "GDN_EMU_SANITIZED";

#[test]
fn no_access_out_of_bounds() {
    let Some(mut gpu) = gpu() else { return };
    if env::var_os(SANITIZED).is_none() {
        let status = Command::new(env::current_exe().unwrap())
            .args(["--exact", "no_access_out_of_bounds"])
            .env(SANITIZED, "1")
            .env("LD_PRELOAD", gpu.compiler().sanitizer_library().unwrap())
            .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0")
            .status()
            .unwrap();
        assert!(status.success(), "under the sanitizers: {status}");
        return;
    }
    gpu.schedule = 1;
    gpu.build = Build { sanitize: true, ..Build::default() };
    let sanitized = |case: Case, kernels: &[(Operator, Tile)]| {
        let problem = Problem::new(case);
        for &(operator, tile) in kernels {
            check(&gpu, &problem, operator, tile);
        }
    };
    sanitized(case(2, 33, 47, F32, BF16), &ANY_DIMS);
    let chunks = Case { row_gap: 0, slot_gap: 0, ..tokens(65, BF16, F32) };
    sanitized(chunks.clone(), &[(CHUNKED, chunk(2, 2, 2))]);
    let chunks = chunks.with_dtypes(F32, BF16);
    sanitized(Case { row_gap: 5, slot_gap: 7, ..chunks }, &[(CHUNKED, chunk(2, 1, 1))]);
    sanitized(
        Case { row_gap: 0, slot_gap: 0, ..case(2, 128, 128, BF16, F32) },
        &[
            (layer(Split), direct(1, 8, 1, 1)),
            (layer(Packed), stream(2, 8, 8, 8, 1, 1)),
            (layer(Fused), direct(4, 16, 2, 1)),
            (layer(Fused), stream(8, 4, 12, 1, 1, 1)),
            (PREFILL, direct(4, 8, 1, 1)),
        ],
    );
}
