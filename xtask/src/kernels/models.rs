//! What is compiled of `gdn-model`: every kernel that a pass of a published model takes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use gdn::DType::{BF16, F32};
use gdn_model::kernels::{self, Picked};
use walkdir::WalkDir;

use super::{Unit, tiles::Family};

/// Where the texts are written to, as the compiler at run time has no folders.
const TEXTS: &str = "target/kernels";

/// One run of the compiler, for all entry points of a file.
pub(crate) struct Job<'f> {
    family: &'f Family,
    kernel: Picked,
    /// The entry points that are launched, and the shared memory of a launch.
    entries: BTreeMap<&'static str, u32>,
}

/// Every family with bf16 activations, and the one that was tuned for with f32 too.
pub(crate) fn jobs<'f>(root: &Path, families: &'f [Family]) -> anyhow::Result<Vec<Job<'f>>> {
    let mut jobs = BTreeMap::new();
    for family in families {
        let dtypes: &[_] = if family.arch == "sm_90a" { &[BF16, F32] } else { &[BF16] };
        for &dtype in dtypes {
            for kernel in kernels::picked(&family.gpu, dtype)? {
                let key = (family.order, kernel.file.clone(), kernel.defines.clone());
                let (entry, shared) = (kernel.entry, kernel.shared_bytes);
                let job = Job { family, kernel, entries: BTreeMap::new() };
                jobs.entry(key).or_insert(job).entries.insert(entry, shared);
            }
        }
    }
    let jobs: Vec<_> = jobs.into_values().collect();
    write(root, &jobs)?;
    all_are_there(root, &jobs)?;
    Ok(jobs)
}

fn write(root: &Path, jobs: &[Job<'_>]) -> anyhow::Result<()> {
    let folder = root.join(TEXTS);
    fs::create_dir_all(&folder)?;
    let sources = jobs.iter().map(|job| (format!("{}.cu", job.kernel.file), job.kernel.text));
    let headers = kernels::headers().iter().map(|&(name, text)| (name.to_owned(), text));
    for (name, text) in headers.chain(sources.collect::<BTreeMap<_, _>>()) {
        fs::write(folder.join(&name), text).with_context(|| format!("{name} can't be written"))?;
    }
    Ok(())
}

/// A source that no model takes would go unseen.
fn all_are_there(root: &Path, jobs: &[Job<'_>]) -> anyhow::Result<()> {
    for file in WalkDir::new(root.join("crates/gdn-model/src/ops")) {
        let path = file?.into_path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            let text = fs::read_to_string(&path)?;
            let taken = jobs.iter().any(|job| job.kernel.text == text);
            ensure!(taken, "{}: no pass of a published model takes it", path.display());
        }
    }
    Ok(())
}

impl Unit for Job<'_> {
    fn family(&self) -> &Family {
        self.family
    }

    fn name(&self) -> String {
        let (types, tile) = self.labels("");
        let name = format!("{}-{}-{types}-{tile}", self.kernel.file, self.family.arch);
        name.replace(' ', "-").replace('=', "")
    }

    fn source(&self, root: &Path) -> (PathBuf, PathBuf) {
        let folder = root.join(TEXTS);
        (folder.join(format!("{}.cu", self.kernel.file)), folder)
    }

    fn defines(&self) -> Vec<(&'static str, String)> {
        self.kernel.defines.clone()
    }

    fn labels(&self, _: &str) -> (String, String) {
        let types = self.kernel.defines.iter().find(|(name, _)| *name == "ACT");
        let constants = self.kernel.constants();
        let tile = if constants.is_empty() { "-".to_owned() } else { constants };
        (types.map_or_else(String::new, |(_, value)| value.clone()), tile)
    }

    fn dynamic_shared(&self, entry: &str) -> Option<u32> {
        self.entries.get(entry).copied()
    }
}
