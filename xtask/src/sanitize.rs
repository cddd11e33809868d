//! The unsafe code of `gdn` under AddressSanitizer.

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
