//! Which backend runs the operators.

use anyhow::Context;
use clap::{Args, ValueEnum};
use gdn::{Backend, Cpu, Cuda, Place};
use gdn_model::Options;
use serde::Serialize;

use crate::{cli::at_least_one, output::Usage};

#[derive(Args, Debug)]
pub(crate) struct BackendArgs {
    /// What runs the operators
    #[arg(long, value_enum, default_value_t)]
    pub(crate) backend: BackendKind,

    /// Threads of the cpu backend [default: as many as the machine runs at once]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(crate) threads: Option<usize>,

    /// The GPU of the cuda backend, counted from 0 [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) device: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum BackendKind {
    /// The CPU, with its vector instructions and threads
    #[default]
    Cpu,
    /// An NVIDIA GPU of compute capability 8.0 or newer
    Cuda,
}

/// A started backend.
#[derive(Debug)]
pub(crate) enum AnyBackend {
    Cpu(Cpu),
    Cuda(Cuda),
}

impl BackendArgs {
    /// The memory of what runs the operators.
    pub(crate) fn place(&self) -> Place {
        match self.backend {
            BackendKind::Cpu => Place::Host,
            BackendKind::Cuda => Place::Cuda(self.device.unwrap_or(0)),
        }
    }

    /// Starts the backend.
    pub(crate) fn open(&self) -> anyhow::Result<AnyBackend> {
        self.check()?;
        match (self.place(), self.threads) {
            (Place::Host, None) => {
                Ok(AnyBackend::Cpu(Cpu::new().context("could not start the cpu backend")?))
            }
            (Place::Host, Some(threads)) => Cpu::with_threads(threads)
                .map(AnyBackend::Cpu)
                .with_context(|| format!("could not start --threads {threads}; try fewer")),
            (Place::Cuda(gpu), _) => {
                Ok(AnyBackend::Cuda(Cuda::new(gpu).context("could not start the cuda backend")?))
            }
        }
    }

    /// `Err` for a flag of the other backend.
    pub(crate) fn check(&self) -> Result<(), Usage> {
        let misplaced = |flag: &str, backend: &str| {
            Usage(format!("{flag} is of the {backend} backend; add --backend {backend}"))
        };
        match (self.backend, self.threads, self.device) {
            (BackendKind::Cpu, _, Some(_)) => Err(misplaced("--device", "cuda")),
            (BackendKind::Cuda, Some(_), _) => Err(misplaced("--threads", "cpu")),
            _ => Ok(()),
        }
    }

    /// Options of a model on this backend.
    pub(crate) fn options(&self) -> Options {
        let options = Options::default().device(self.place());
        self.threads.map_or(options.clone(), |threads| options.threads(threads))
    }
}

impl AnyBackend {
    pub(crate) fn as_dyn(&mut self) -> &mut dyn Backend {
        match self {
            Self::Cpu(cpu) => cpu,
            Self::Cuda(cuda) => cuda,
        }
    }

    /// What it runs on, for the head of a JSON file.
    pub(crate) fn describe(&self) -> BackendInfo {
        match self {
            Self::Cpu(cpu) => BackendInfo {
                backend: cpu.name(),
                simd: Some(cpu.simd_level()),
                threads: Some(cpu.threads()),
                device: None,
            },
            Self::Cuda(cuda) => BackendInfo {
                backend: cuda.name(),
                simd: None,
                threads: None,
                device: Some(cuda.device_name().to_owned()),
            },
        }
    }
}

/// A backend and what it runs on.
#[derive(Debug, Serialize)]
pub(crate) struct BackendInfo {
    backend: &'static str,
    simd: Option<&'static str>,
    threads: Option<usize>,
    device: Option<String>,
}
