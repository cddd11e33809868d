//! From the start of a process to the end of its first launch, with no kernel on disk and with one.
//!
//! The test runs itself as a child, which opens the GPU; the parent does not.

#![allow(unsafe_code, clippy::print_stdout)]

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use common::{AXPY, Axpy, shape};
use gdn_cuda::{Arena, Device, Driver, KernelCache, KernelSource, Stream};

mod common;

const DIR: &str = "GDN_CUDA_TEST_CACHE";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Does nothing unless it is the child.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let mut marks = vec![("main", now())];
    if Driver::load().is_err() {
        return;
    }
    marks.push(("driver", now()));
    let device = Device::open(0).unwrap();
    let stream = Stream::new(&device).unwrap();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    marks.push(("context", now()));
    let cache = KernelCache::with_dir(&device, Some(dir.into()));
    let axpy = cache.function(&KernelSource::new("axpy", AXPY), "axpy").unwrap();
    marks.push(("kernel", now()));
    let mut x = arena.alloc::<f32>(256).unwrap();
    stream.fill_bytes(x.view_mut(), 0).unwrap();
    let params = Axpy { x: x.ptr(), y: x.ptr(), a: 1.0, len: 256 };
    // SAFETY: `x` holds 256 floats, each touched by one thread.
    unsafe { axpy.launch(&stream, &shape(256), &params) }.unwrap();
    stream.synchronize().unwrap();
    marks.push(("launch", now()));
    let stats = cache.stats();
    println!();
    println!("compiled={} disk_hits={}", stats.compiled, stats.disk_hits);
    for (name, at) in marks {
        println!("mark {name} {at}");
    }
}

/// Runs the child; returns its steps in ms since the one before, and what the cache did.
fn start(dir: &Path) -> Option<(Vec<(String, f64)>, String)> {
    let started = now();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let cache = text.lines().find(|line| line.starts_with("compiled="))?.to_owned();
    let mut last = started;
    let mut steps = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("mark ")) {
        let (name, at) = line.split_once(' ').unwrap();
        let at: f64 = at.parse().unwrap();
        steps.push((name.to_owned(), (at - last) * 1e3));
        last = at;
    }
    steps.push(("total".to_owned(), (last - started) * 1e3));
    Some((steps, cache))
}

#[test]
fn a_warm_cache_saves_the_compiler() {
    let dir = tempfile::tempdir().unwrap();
    if start(dir.path()).is_none() {
        return println!("skipped: no CUDA driver");
    }
    // The first start also brought the libraries' files into memory: a cold one is timed apart.
    for round in 0..3 {
        let fresh = tempfile::tempdir().unwrap();
        for (name, dir, want) in [
            ("cold", fresh.path(), "compiled=1 disk_hits=0"),
            ("warm", dir.path(), "compiled=0 disk_hits=1"),
        ] {
            let (steps, cache) = start(dir).unwrap();
            assert_eq!(cache, want);
            let steps: Vec<String> =
                steps.iter().map(|(step, ms)| format!("{step} {ms:.1}")).collect();
            println!("{name} {round}: {} (ms)", steps.join(", "));
        }
    }
}
