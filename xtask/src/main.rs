//! Chores of the project: `cargo xtask --help`.

mod kernels;
mod sanitize;
mod tidy;

use std::path::PathBuf;

use clap::Parser;

/// Chores of the project.
#[derive(Parser)]
enum Chore {
    /// Check what no compiler checks: file sizes, where unsafe code is, what an
    /// operator's folder holds, links between documents.
    Tidy,
    /// Run the tests of the operator under AddressSanitizer.
    Sanitize {
        /// Files of `crates/gdn/tests/`, without `.rs` [default: all tests]; of the model
        /// kernels' tests, parts of names
        tests: Vec<String>,
        /// The CUDA kernels of `gdn-model` instead, run on the CPU
        #[arg(long)]
        model_kernels: bool,
    },
    /// Compile every CUDA kernel for every GPU family and weigh it, with no GPU.
    Kernels {
        #[command(subcommand)]
        action: kernels::Action,
    },
}

fn main() -> anyhow::Result<()> {
    match Chore::parse() {
        Chore::Tidy => tidy::run(&root()),
        Chore::Kernels { action } => kernels::run(&root(), &action),
        Chore::Sanitize { model_kernels: true, tests } => {
            sanitize::run_model_kernels(&root(), &tests)
        }
        Chore::Sanitize { tests, .. } => sanitize::run(&root(), &tests),
    }
}

/// The workspace's root.
fn root() -> PathBuf {
    let xtask = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask lies in the workspace").to_owned()
}
