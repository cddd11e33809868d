//! nvcc, from wheels.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

use super::Unit;

/// Pinned: another compiler takes other registers.
const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// The CUDA compiler.
pub(crate) struct Nvcc {
    program: PathBuf,
    /// Where cubins go, which nobody reads.
    out: PathBuf,
}

impl Nvcc {
    /// What `NVCC` names, or the pinned wheels in `target/nvcc`, fetched at the
    /// first call.
    pub(crate) fn find(root: &Path) -> anyhow::Result<Self> {
        let home = root.join("target/nvcc");
        let wheels = home.join("nvidia/cu13/bin/nvcc");
        let named = env::var_os("NVCC").map(PathBuf::from);
        if named.is_none() && !wheels.is_file() {
            let status = Command::new("python3")
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .args(["--no-deps", "--upgrade", "--target"])
                .arg(&home)
                .args(WHEELS)
                .status()
                .context("nvcc comes as Python wheels, and python3 could not be started")?;
            ensure!(status.success(), "pip could not fetch nvcc; NVCC may name one");
        }
        let out = root.join("target/cubin");
        fs::create_dir_all(&out)?;
        Ok(Self { program: named.unwrap_or(wheels), out })
    }

    /// Compiles, and returns what `ptxas -v` says.
    pub(crate) fn compile(&self, root: &Path, unit: &dyn Unit) -> anyhow::Result<String> {
        let (source, headers) = unit.source(root);
        let output = Command::new(&self.program)
            .args(["-std=c++17", "-fmad=false", "-cubin", "-Xptxas", "-v"])
            .arg(format!("-arch={}", unit.family().arch))
            .args(unit.defines().into_iter().map(|(name, value)| format!("-D{name}={value}")))
            .arg("-I")
            .arg(headers)
            .arg(source)
            .arg("-o")
            .arg(self.out.join(format!("{}.cubin", unit.name())))
            .output()
            .with_context(|| format!("{} could not be started", self.program.display()))?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{} does not compile:\n{log}", unit.name());
        Ok(log)
    }
}
