//! Which backend runs the operators.

use anyhow::Context;
use clap::{Args, ValueEnum};
use gdn::Cpu;

use crate::cli::at_least_one;

#[derive(Args, Debug)]
pub(crate) struct BackendArgs {
    /// What runs the operators
    #[arg(long, value_enum, default_value_t)]
    pub(crate) backend: BackendKind,

    /// Threads of the cpu backend [default: as many as the machine runs at once]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(crate) threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum BackendKind {
    /// The CPU, with its vector instructions and threads
    #[default]
    Cpu,
}

impl BackendArgs {
    /// Starts the backend.
    pub(crate) fn open(&self) -> anyhow::Result<Cpu> {
        let BackendKind::Cpu = self.backend;
        match self.threads {
            None => Cpu::new().context("could not start the cpu backend"),
            Some(threads) => Cpu::with_threads(threads)
                .with_context(|| format!("could not start --threads {threads}; try fewer")),
        }
    }
}
