//! Host cost of a launch and of a replay: time, and allocations, of which there must be none.

#![allow(unsafe_code, clippy::print_stdout)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use common::{AXPY, Axpy, Rig, shape};
use cudarc::driver::sys;
use gdn_cuda::{Compiler, KernelSource};

mod common;

struct Counting;
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Median over 100 batches of 100, in µs. Batches are waited for outside the clock, so that a full
/// queue does not count.
fn cost(rig: &Rig, mut call: impl FnMut()) -> f64 {
    let mut times = [0.0; 100];
    for time in &mut times {
        let started = Instant::now();
        (0..100).for_each(|_| call());
        *time = started.elapsed().as_secs_f64() * 1e6 / 100.0;
        rig.stream.synchronize().unwrap();
    }
    times.sort_unstable_by(f64::total_cmp);
    times[50]
}

/// The least a launch can cost here: the driver's own call and nothing around it, in µs.
fn driver_alone(rig: &Rig, params: &Axpy) -> f64 {
    let arch = rig.device.info().compute_capability.arch();
    let source = KernelSource::new("axpy", AXPY);
    let cubin = Compiler::find().unwrap().compile(&source, &arch).unwrap().cubin;
    let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
    let ok = sys::CUresult::CUDA_SUCCESS;
    // SAFETY: the image is whole, both places are valid, and the rig made the context current.
    unsafe {
        assert_eq!(sys::cuModuleLoadData(&mut module, cubin.as_ptr().cast()), ok);
        assert_eq!(sys::cuModuleGetFunction(&mut function, module, c"axpy".as_ptr()), ok);
    }
    let config = sys::CUlaunchConfig {
        gridDimX: 1,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 256,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: rig.stream.as_raw(),
        attrs: std::ptr::null_mut(),
        numAttrs: 0,
    };
    let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<std::ffi::c_void>()];
    let mut launch = || {
        // SAFETY: as the launch below, which this one repeats.
        let result = unsafe {
            sys::cuLaunchKernelEx(&config, function, arguments.as_mut_ptr(), std::ptr::null_mut())
        };
        assert_eq!(result, ok);
    };
    cost(rig, &mut launch);
    cost(rig, launch)
}

#[test]
fn a_launch_costs_little_and_allocates_nothing() {
    let Some(rig) = Rig::new() else { return };
    println!("{}", rig.device.info().name);
    let len = 256;
    let x = rig.arena.alloc::<f32>(len as usize).unwrap();
    let params = Axpy { x: x.ptr(), y: x.ptr(), a: 0.0, len };
    let driver = driver_alone(&rig, &params);
    println!("launch by the driver alone: {driver:.2} µs of host time");
    let plain = shape(len);
    let mut configs = vec![("plain", plain)];
    if rig.device.info().clusters {
        configs.push(("dependent", plain.overlap_previous()));
        configs.push(("cluster", plain.cluster([1, 1, 1])));
        configs.push(("shared 100 KiB", plain.shared_bytes(100 << 10)));
    }
    for (name, config) in configs {
        // SAFETY: `x` holds `len` floats; with `a` zero, overlapping launches write what is there.
        let launch = || unsafe { rig.axpy.launch(&rig.stream, &config, &params) }.unwrap();
        cost(&rig, launch);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let us = cost(&rig, launch);
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
        println!("launch, {name}: {us:.2} µs of host time, {allocations} allocations in 10 000");
        assert_eq!(allocations, 0);
        // Meant to be well under 0.1 µs more than the driver; the rest is for noisy machines.
        assert!(us < driver + 1.0, "{us} µs, and the driver alone {driver} µs");
    }

    let body = |stream: &gdn_cuda::Stream| {
        (0..40).try_for_each(|_| {
            // SAFETY: as above.
            unsafe { rig.axpy.launch(stream, &plain, &params) }
        })
    };
    // SAFETY: kernel and buffer outlive the graph.
    let graph = unsafe { rig.stream.capture::<gdn_cuda::Error>(body) }.unwrap();
    let mut exec = graph.instantiate(&rig.stream).unwrap();
    cost(&rig, || exec.launch(&rig.stream).unwrap());
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let us = cost(&rig, || exec.launch(&rig.stream).unwrap());
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), before);
    println!("replay of 40 launches: {us:.2} µs of host time");
    let us = cost(&rig, || exec.update(&graph).unwrap());
    println!("update of 40 launches: {us:.2} µs of host time");
    let started = Instant::now();
    for _ in 0..1_000_000 {
        std::hint::black_box(std::hint::black_box(&plain).check(rig.axpy.limits())).unwrap();
    }
    println!("check of a shape: {:.1} ns", started.elapsed().as_secs_f64() * 1e3);
}
