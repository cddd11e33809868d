//! The unsafe code of `gdn` under AddressSanitizer.

use std::{path::Path, process::Command};

use anyhow::{Context, ensure};

/// The sanitizer's run-time library ships for this target only.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Runs the operator's tests with every memory access checked.
pub(crate) fn run(root: &Path, filters: &[String]) -> anyhow::Result<()> {
    let status = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["test", "--package", "gdn", "--target", TARGET, "--lib", "--tests", "--"])
        .args(filters)
        // The flag is unstable, and the pinned toolchain is a stable one.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .env("CARGO_TARGET_DIR", root.join("target/sanitize"))
        .status()
        .context("cargo could not be started")?;
    ensure!(status.success(), "the tests failed under AddressSanitizer: {status}");
    Ok(())
}
