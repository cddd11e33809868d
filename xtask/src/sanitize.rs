//! The unsafe code of `gdn`, and the CUDA kernels of `gdn-model`, under AddressSanitizer.

use std::{path::Path, process::Command};

use anyhow::{Context, ensure};

/// The sanitizer's run-time library ships for this target only.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Runs `tests` of the operator, or all of them, with every memory access checked.
pub(crate) fn run(root: &Path, tests: &[String]) -> anyhow::Result<()> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root).args(["test", "--package", "gdn", "--target", TARGET]);
    match tests {
        [] => cargo.args(["--lib", "--tests"]),
        _ => cargo.args(tests.iter().flat_map(|test| ["--test", test])),
    };
    let status = cargo
        // The flag is unstable, and the pinned toolchain is a stable one.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .env("CARGO_TARGET_DIR", root.join("target/sanitize"))
        // Threads of a pool may outlive the test that made it, and their memory.
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .status()
        .context("cargo could not be started")?;
    ensure!(status.success(), "the tests failed under AddressSanitizer: {status}");
    Ok(())
}

/// Runs the tests of `gdn-model` whose names have one of `tests` in them, or all of its
/// operators', with every memory access of the kernels checked: g++ compiles those, with
/// its AddressSanitizer and UBSan.
pub(crate) fn run_model_kernels(root: &Path, tests: &[String]) -> anyhow::Result<()> {
    let library = Command::new("g++")
        .arg("-print-file-name=libasan.so")
        .output()
        .context("g++ could not be started")?;
    let library = String::from_utf8_lossy(&library.stdout).trim().to_owned();
    let all = ["ops::".to_owned()];
    let tests = if tests.is_empty() { &all } else { tests };
    // The test's process alone has the library, and cargo has not.
    let runner = format!("target.{TARGET}.runner = ['env', 'LD_PRELOAD={library}']");
    let status = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["--config", &runner, "test", "--package", "gdn-model", "--lib", "--"])
        .args(tests)
        .env("GDN_EMU_SANITIZED", "1")
        .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0")
        .status()
        .context("cargo could not be started")?;
    ensure!(status.success(), "the tests failed under the sanitizers: {status}");
    Ok(())
}
