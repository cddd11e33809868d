//! Memory, launches, streams and graphs on a GPU; skipped where there is none.

#![allow(unsafe_code, clippy::print_stdout)]

use common::{AXPY, Axpy, Rig, shape};
use gdn_cuda::{
    Arena, DevicePtr, ErrorKind, Event, KernelCache, KernelSource, LaunchConfig, PinnedBuffer, Pod,
    Stream, Zeroable,
};

mod common;

/// No two alike, so that a wrong index shows.
fn ramp(len: u32) -> Vec<f32> {
    (0..len).map(|i| i as f32 * 0.5 - 100.0).collect()
}

#[test]
fn axpy_through_the_runtime_compiler() {
    let Some(rig) = Rig::new() else { return };
    let len = 100_003;
    let host = ramp(len);
    let mut x = rig.arena.alloc::<f32>(len as usize).unwrap();
    let mut y = rig.arena.alloc::<f32>(len as usize).unwrap();
    rig.stream.upload(x.view_mut(), &host).unwrap();
    rig.stream.upload(y.view_mut(), &host).unwrap();
    let params = Axpy { x: x.ptr(), y: y.ptr(), a: 2.0, len };
    // SAFETY: both buffers hold `len` floats, and the kernel stays below it.
    unsafe { rig.axpy.launch(&rig.stream, &shape(len), &params) }.unwrap();
    let mut out = vec![0.0; len as usize];
    rig.stream.download(y.view(), &mut out).unwrap();
    assert!(out.iter().zip(&host).all(|(out, x)| *out == 3.0 * x));
    println!("{:?} {:?}", rig.axpy.info(), rig.axpy.limits());
    assert!(rig.axpy.blocks_per_multiprocessor(256, 0).unwrap() >= 4);
}

#[test]
fn wrong_launches_are_refused_and_leave_the_device_well() {
    let Some(rig) = Rig::new() else { return };
    let refused = |result: gdn_cuda::Result<()>, part: &str| {
        let e = result.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidLaunch);
        assert!(e.to_string().contains(part), "{e}");
    };
    let params = Axpy { x: DevicePtr::NULL, y: DevicePtr::NULL, a: 0.0, len: 0 };
    // SAFETY: nothing is launched.
    unsafe {
        let big = LaunchConfig::linear(1, 1 << 20);
        refused(rig.axpy.launch(&rig.stream, &big, &params), "along x");
        refused(rig.axpy.launch(&rig.stream, &shape(1), &1u64), "takes 24 bytes of parameters");
        refused(rig.axpy.launch(&rig.stream, &shape(1), &()), "and 0 were given");
    }
    let source = KernelSource::new("axpy", AXPY);
    let e = rig.cache.function(&source, "several").unwrap_err();
    assert!(e.to_string().contains("gather them in one struct"), "{e}");
    let e = rig.cache.function(&source, "absent").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidArgument);
    assert!(e.to_string().contains("no entry point `absent`"), "{e}");
    let nothing = rig.cache.function(&source, "nothing").unwrap();
    // SAFETY: the kernel does nothing.
    unsafe { nothing.launch(&rig.stream, &shape(1), &()) }.unwrap();
    rig.stream.synchronize().unwrap();
}

#[test]
fn shared_memory_above_48_kib_is_opted_in() {
    let Some(rig) = Rig::new() else { return };
    let kernel = rig.kernel(
        r#"struct P { unsigned* out; unsigned words; };
        extern "C" __global__ void big(const P p) {
            extern __shared__ unsigned s[];
            for (unsigned i = threadIdx.x; i < p.words; i += blockDim.x) s[i] = i;
            __syncthreads();
            if (threadIdx.x == 0) *p.out = s[p.words - 1];
        }"#,
        "big",
    );
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    struct P {
        out: DevicePtr<u32>,
        words: u32,
        _pad: u32,
    }
    let bytes = kernel.limits().max_shared_bytes;
    assert!(bytes > 48 << 10);
    let out = rig.arena.alloc::<u32>(1).unwrap();
    let config = LaunchConfig::linear(1, 128).shared_bytes(bytes);
    let params = P { out: out.ptr(), words: bytes / 4, _pad: 0 };
    // SAFETY: `out` holds one word, and the block has `words` of shared memory.
    unsafe { kernel.launch(&rig.stream, &config, &params) }.unwrap();
    let mut got = [0];
    rig.stream.download(out.view(), &mut got).unwrap();
    assert_eq!(got[0], bytes / 4 - 1);
}

/// Each kernel dawdles between its read and its write, so that one which did not wait would read
/// what is there too early.
#[test]
fn a_dependent_launch_sees_what_the_kernel_before_wrote() {
    let Some(rig) = Rig::new() else { return };
    if !rig.device.info().clusters {
        return println!("skipped: needs compute capability 9.0");
    }
    let kernel = rig.kernel(
        r#"struct P { unsigned* x; unsigned len; unsigned pad; };
        extern "C" __global__ void next(const P p) {
            asm volatile("griddepcontrol.launch_dependents;");
            asm volatile("griddepcontrol.wait;" ::: "memory");
            unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i >= p.len) return;
            unsigned old = ((volatile unsigned*)p.x)[i];
            unsigned long long start, now;
            asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
            do { asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); } while (now - start < 20000);
            p.x[i] = old * 3u + i;
        }"#,
        "next",
    );
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    struct P {
        x: DevicePtr<u32>,
        len: u32,
        _pad: u32,
    }
    let (len, steps) = (1 << 14, 20);
    let mut x = rig.arena.alloc::<u32>(len as usize).unwrap();
    let params = P { x: x.ptr(), len, _pad: 0 };
    let config = shape(len).overlap_previous();
    let all = |stream: &Stream| {
        // SAFETY: `x` holds `len` words, and the kernel waits before it touches them.
        (0..steps).try_for_each(|_| unsafe { kernel.launch(stream, &config, &params) })
    };
    // SAFETY: buffer and kernel outlive the graph.
    let graph = unsafe { rig.stream.capture(all) }.unwrap();
    let exec = graph.instantiate(&rig.stream).unwrap();
    for how in ["launched", "replayed"] {
        rig.stream.fill_bytes(x.view_mut(), 0).unwrap();
        match how {
            "launched" => all(&rig.stream).unwrap(),
            _ => exec.launch(&rig.stream).unwrap(),
        }
        let mut got = vec![0u32; len as usize];
        rig.stream.download(x.view(), &mut got).unwrap();
        for (i, got) in got.into_iter().enumerate() {
            let want = (0..steps).fold(0u32, |x, _| x.wrapping_mul(3).wrapping_add(i as u32));
            assert_eq!(got, want, "{how}, element {i}");
        }
    }
}

/// The first kernel ends only when the second, launched behind it, has begun; or gives up. Fails
/// under `compute-sanitizer`, which runs kernels one by one.
#[test]
fn a_dependent_launch_starts_before_the_kernel_before_ends() {
    let Some(rig) = Rig::new() else { return };
    if !rig.device.info().clusters {
        return println!("skipped: needs compute capability 9.0");
    }
    let kernel = rig.kernel(
        r#"struct P { volatile unsigned* x; unsigned second; unsigned pad; };
        extern "C" __global__ void meet(const P p) {
            if (p.second) { p.x[0] = 1; return; }
            asm volatile("griddepcontrol.launch_dependents;");
            unsigned long long start, now;
            asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
            do { asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); }
            while (p.x[0] == 0 && now - start < 100000000ull);
            p.x[1] = p.x[0];
        }"#,
        "meet",
    );
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    struct P {
        x: DevicePtr<u32>,
        second: u32,
        _pad: u32,
    }
    let mut x = rig.arena.alloc::<u32>(2).unwrap();
    let ptr = x.ptr();
    let one = LaunchConfig::linear(1, 1);
    let pair = |stream: &Stream, second: LaunchConfig| {
        let params = |second| P { x: ptr, second, _pad: 0 };
        // SAFETY: `x` holds two words; the kernels meet in the first by volatile accesses.
        unsafe {
            kernel.launch(stream, &one, &params(0))?;
            kernel.launch(stream, &second, &params(1))
        }
    };
    // SAFETY: buffer and kernel outlive the graph.
    let graph = unsafe { rig.stream.capture(|s| pair(s, one.overlap_previous())) };
    let exec = graph.unwrap().instantiate(&rig.stream).unwrap();
    for (how, met) in [("in order", 0), ("overlapped", 1), ("overlapped in a graph", 1)] {
        rig.stream.fill_bytes(x.view_mut(), 0).unwrap();
        match how {
            "in order" => pair(&rig.stream, one).unwrap(),
            "overlapped" => pair(&rig.stream, one.overlap_previous()).unwrap(),
            _ => exec.launch(&rig.stream).unwrap(),
        }
        let mut got = [9; 2];
        rig.stream.download(x.view(), &mut got).unwrap();
        assert_eq!(got, [1, met], "{how}");
    }
}

#[test]
fn blocks_of_a_cluster_read_each_others_shared_memory() {
    let Some(rig) = Rig::new() else { return };
    if !rig.device.info().clusters {
        return println!("skipped: needs compute capability 9.0");
    }
    // Each block publishes its rank + 1; each sums its whole cluster.
    let kernel = rig.kernel(
        r#"struct P { unsigned* out; };
        extern "C" __global__ void sum(const P p) {
            __shared__ unsigned mine;
            unsigned rank, size;
            asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
            asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
            if (threadIdx.x == 0) mine = rank + 1;
            asm volatile("barrier.cluster.arrive.aligned;\n barrier.cluster.wait.aligned;" ::: "memory");
            if (threadIdx.x == 0) {
                unsigned local = (unsigned)__cvta_generic_to_shared(&mine), total = 0;
                for (unsigned r = 0; r < size; r++) {
                    unsigned remote, value;
                    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(r));
                    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(remote) : "memory");
                    total += value;
                }
                p.out[blockIdx.x] = total;
            }
            asm volatile("barrier.cluster.arrive.aligned;\n barrier.cluster.wait.aligned;" ::: "memory");
        }"#,
        "sum",
    );
    for size in [1u32, 4, 8, 16] {
        let blocks = 32;
        let mut out = rig.arena.alloc::<u32>(blocks as usize).unwrap();
        rig.stream.fill_bytes(out.view_mut(), 0xff).unwrap();
        let config = LaunchConfig::linear(blocks, 64).cluster([size, 1, 1]);
        let room = kernel.max_active_clusters(&rig.stream, &config).unwrap();
        println!("clusters of {size}: {room} at once");
        if room == 0 {
            assert!(size > 8, "the portable size must fit");
            continue;
        }
        // SAFETY: `out` holds a word for each block.
        unsafe { kernel.launch(&rig.stream, &config, &out.ptr()) }.unwrap();
        let mut got = [0; 32];
        rig.stream.download(out.view(), &mut got).unwrap();
        assert_eq!(got, [size * (size + 1) / 2; 32]);
    }
}

#[test]
fn a_graph_replays_and_takes_new_parameters() {
    let Some(rig) = Rig::new() else { return };
    let (stream, len) = (&rig.stream, 1000);
    let mut x = rig.arena.alloc::<f32>(len as usize).unwrap();
    let mut y = rig.arena.alloc::<f32>(len as usize).unwrap();
    stream.upload(x.view_mut(), &ramp(len)).unwrap();
    stream.fill_bytes(y.view_mut(), 0).unwrap();
    let record = |a: f32, launches: usize| {
        let params = Axpy { x: x.ptr(), y: y.ptr(), a, len };
        // SAFETY: buffers and kernel outlive the graphs of this test.
        unsafe {
            stream.capture(|s| {
                (0..launches).try_for_each(|_| rig.axpy.launch(s, &shape(len), &params))
            })
        }
        .unwrap()
    };
    let first = |want: f32| {
        let mut got = vec![0.0; len as usize];
        stream.download(y.view(), &mut got).unwrap();
        assert_eq!(got[0], want * -100.0);
        assert_eq!(got[len as usize - 1], want * ramp(len)[len as usize - 1]);
    };
    let graph = record(1.0, 3);
    assert_eq!(graph.len().unwrap(), 3);
    first(0.0); // Recording ran nothing.
    let mut exec = graph.instantiate(stream).unwrap();
    drop(graph);
    exec.launch(stream).unwrap();
    exec.launch(stream).unwrap();
    first(6.0);
    exec.update(&record(10.0, 3)).unwrap();
    exec.launch(stream).unwrap();
    first(36.0);
    let e = exec.update(&record(1.0, 4)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::GraphUpdate, "{e}");
    assert!(e.to_string().contains("topology_changed"), "{e}");
}

#[test]
fn a_failed_or_panicked_capture_leaves_the_stream_usable() {
    let Some(rig) = Rig::new() else { return };
    let stream = &rig.stream;
    // SAFETY: nothing is recorded that could be replayed.
    let failed = unsafe { stream.capture(|s| s.synchronize()) };
    let e = failed.unwrap_err();
    assert!(e.to_string().contains("cannot be recorded"), "{e}");
    stream.synchronize().unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // SAFETY: as above.
        unsafe { stream.capture::<gdn_cuda::Error>(|_| panic!("in the middle")) }
    }));
    assert!(panicked.is_err());
    stream.synchronize().unwrap();
    // SAFETY: as above.
    let inner = unsafe {
        stream.capture::<gdn_cuda::Error>(|s| {
            assert!(s.capture::<gdn_cuda::Error>(|_| Ok(())).is_err(), "captures do not nest");
            Ok(())
        })
    };
    assert!(inner.unwrap().is_empty().unwrap());
}

#[test]
fn pinned_copies_run_on_their_own_and_are_waited_for() {
    let Some(rig) = Rig::new() else { return };
    let stream = &rig.stream;
    let len = 1 << 20;
    let mut up = PinnedBuffer::<u32>::new(&rig.device, len).unwrap();
    let mut down = PinnedBuffer::<u32>::new(&rig.device, len).unwrap();
    let mut buffer = rig.arena.alloc::<u32>(len).unwrap();
    for round in 0..10u32 {
        for (i, word) in up.get_mut().unwrap().iter_mut().enumerate() {
            *word = i as u32 ^ round;
        }
        stream.upload_pinned(buffer.view_mut(), &mut up).unwrap();
        stream.download_pinned(buffer.view(), &mut down).unwrap();
        let got = down.get().unwrap();
        assert!(got.iter().enumerate().all(|(i, word)| *word == i as u32 ^ round));
        assert!(!down.is_pending().unwrap());
    }
    // A part, inside a graph.
    let small = PinnedBuffer::<u32>::new(&rig.device, 4).unwrap();
    // SAFETY: the host looks at `small` only after the replay is waited for.
    let graph =
        unsafe { stream.capture(|s| s.enqueue_download(buffer.slice(8..12).unwrap(), &small)) };
    graph.unwrap().instantiate(stream).unwrap().launch(stream).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(small.get().unwrap(), [8 ^ 9, 9 ^ 9, 10 ^ 9, 11 ^ 9]);

    let e = stream.download_pinned(buffer.slice(..5).unwrap(), &mut { small }).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidArgument);
    let e = stream.upload(buffer.view_mut(), &[1]).unwrap_err();
    assert!(e.to_string().contains("lengths differ"), "{e}");
}

#[test]
fn an_arena_reuses_what_is_dropped_and_tells_what_is_left() {
    let Some(rig) = Rig::new() else { return };
    let arena = Arena::new(&rig.device, 1 << 20).unwrap();
    let free = rig.device.memory().unwrap().free;
    let first = arena.alloc::<u8>(700_000).unwrap();
    let address = first.ptr();
    assert_eq!(address.address() % 256, 0);
    let e = arena.alloc::<u8>(700_000).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::OutOfMemory);
    assert!(e.to_string().contains("700160 bytes wanted, 348416 of 1048576 free"), "{e}");
    drop(first);
    for _ in 0..1000 {
        assert_eq!(arena.alloc::<u8>(700_000).unwrap().ptr(), address);
    }
    assert_eq!(arena.free_bytes(), arena.capacity());
    let kept = arena.alloc::<f32>(3).unwrap();
    drop(arena); // The block stays while a buffer of it does.
    rig.stream.download(kept.view(), &mut [0.0; 3]).unwrap();
    assert!(rig.device.memory().unwrap().free <= free);

    let e = Arena::new(&rig.device, 1 << 50).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::OutOfMemory);
    assert!(e.to_string().contains("1125899906842624 bytes wanted"), "{e}");
    assert_eq!(Arena::new(&rig.device, 0).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_second_load_comes_from_disk_and_a_damaged_file_is_made_anew() {
    let Some(device) = common::device() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let load = || {
        let cache = KernelCache::with_dir(&device, Some(dir.path().to_owned()));
        let source = KernelSource::new("axpy", AXPY);
        let started = std::time::Instant::now();
        cache.function(&source, "axpy").unwrap();
        let took = started.elapsed();
        cache.function(&source, "axpy").unwrap();
        cache.function(&source, "nothing").unwrap();
        let stats = cache.stats();
        assert_eq!((stats.memory_hits, stats.store_failures), (1, 0));
        println!("{took:?} {stats:?}");
        (stats.compiled, stats.disk_hits, stats.rejected)
    };
    assert_eq!(load(), (1, 0, 0));
    assert_eq!(load(), (0, 1, 0));
    let file = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(load(), (1, 0, 1));
    assert_eq!(load(), (0, 1, 0));
}

#[test]
fn a_folder_that_cannot_be_written_is_no_obstacle() {
    let Some(device) = common::device() else {
        return;
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    let cache = KernelCache::with_dir(&device, Some(file.path().join("below/a/file")));
    cache.function(&KernelSource::new("axpy", AXPY), "axpy").unwrap();
    assert_eq!(cache.stats().store_failures, 1);
}

#[test]
fn one_source_asked_for_by_many_threads_is_compiled_once() {
    let Some(device) = common::device() else {
        return;
    };
    let cache = KernelCache::with_dir(&device, None);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| cache.function(&KernelSource::new("axpy", AXPY), "axpy").unwrap());
        }
    });
    assert_eq!((cache.stats().compiled, cache.stats().memory_hits), (1, 7));
}

#[test]
fn events_order_streams_and_tell_the_time() {
    let Some(rig) = Rig::new() else { return };
    let kernel = rig.kernel(
        r#"struct P { unsigned* out; unsigned long long ns; };
        extern "C" __global__ void slow(const P p) {
            unsigned long long start, now;
            asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
            do { asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); } while (now - start < p.ns);
            *p.out = 7;
        }"#,
        "slow",
    );
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    struct P {
        out: DevicePtr<u32>,
        ns: u64,
    }
    let other = Stream::new(&rig.device).unwrap();
    let mut out = rig.arena.alloc::<u32>(1).unwrap();
    rig.stream.fill_bytes(out.view_mut(), 0).unwrap();
    let (start, end) = (Event::timed(&rig.device).unwrap(), Event::timed(&rig.device).unwrap());
    rig.stream.record(&start).unwrap();
    let params = P { out: out.ptr(), ns: 20_000_000 };
    // SAFETY: `out` holds one word.
    unsafe { kernel.launch(&rig.stream, &LaunchConfig::linear(1, 1), &params) }.unwrap();
    rig.stream.record(&end).unwrap();
    assert!(!end.is_reached().unwrap());
    other.wait(&end).unwrap();
    let mut got = [0];
    other.download(out.view(), &mut got).unwrap();
    assert_eq!(got, [7], "the other stream did not wait");
    let took = start.elapsed(&end).unwrap().as_secs_f64();
    assert!((0.019..0.2).contains(&took), "{took} s");
    assert!(Event::untimed(&rig.device).unwrap().elapsed(&end).is_err());
}
