//! Every kernel that a pass takes: passes over the published shapes, on a GPU that
//! compiles nothing and runs nothing, but writes down what it is asked for. So whatever
//! the launchers choose by, the list follows.
#![expect(unsafe_code, reason = "a runtime's functions are unsafe to call; these do nothing")]

use std::{
    any::Any,
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use gdn::{
    Cuda, DType, Place,
    cuda::{
        kernel,
        runtime::{KernelText, Loaded, Runtime},
        tiles::{Geometry, Gpu},
    },
};
use gdn_cuda::MemoryInfo;

use crate::{Checkpoint, Config, Logits, Model, Options, PRESETS, Result, Turn};

/// What the sources include: name and text.
pub fn headers() -> &'static [(&'static str, &'static str)] {
    &super::HEADERS
}

/// A kernel that is launched in some pass.
#[derive(Clone, Debug)]
pub struct Picked {
    /// The name of its file, without the extension.
    pub file: String,
    /// CUDA C++.
    pub text: &'static str,
    /// Macros: name and value.
    pub defines: Vec<(&'static str, String)>,
    /// The entry point.
    pub entry: &'static str,
    /// The most dynamic shared memory of a launch, in bytes.
    pub shared_bytes: u32,
}

impl Picked {
    /// What it was compiled for beside the dtype, "HIDDEN=2048".
    pub fn constants(&self) -> String {
        let of_all = ["ACT", "PARAMS_BYTES"];
        let own = self.defines.iter().filter(|(name, _)| !of_all.contains(name));
        own.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }
}

/// The kernels of all presets on such a GPU, in the order of their names.
///
/// # Errors
/// None is expected.
pub fn picked(gpu: &Gpu, activations: DType) -> Result<Vec<Picked>> {
    let recorder = Arc::new(Recorder::new(gpu.clone()));
    for name in PRESETS {
        run(&recorder, Config::preset(name)?, activations)?;
    }
    let picked = recorder.picked.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(picked.values().cloned().collect())
}

/// Sequences of the largest decode step: more rows than any GPU has multiprocessors.
const MOST: usize = 256;

/// Every size of a batch up to where only the number of tiles changes, and some of those.
fn sizes() -> impl Iterator<Item = usize> {
    (2..=80).chain([96, 128, 192, 256, 320, 448, 640, 1024, 2048])
}

fn run(recorder: &Arc<Recorder>, mut config: Config, activations: DType) -> Result<()> {
    // The layers repeat.
    config.layers.truncate(4);
    let options = Options::default()
        .device(Place::Cuda(0))
        .activations(activations)
        .sequences(MOST)
        .tokens(MOST * 64);
    let cuda = Cuda::on_runtime(recorder.clone())?;
    let mut model = Model::on_cuda(cuda, config, &mut Checkpoint::dummy(0), &options, &mut |_| {})?;
    for rows in sizes() {
        let mut sequence = model.sequence()?;
        let (tokens, logits) = (vec![0; rows], Logits::All);
        model.step_tokens(&mut [Turn { sequence: &mut sequence, tokens: &tokens, logits }], &[])?;
    }
    for rows in [1, MOST] {
        let mut sequences = (0..rows).map(|_| model.sequence()).collect::<Result<Vec<_>>>()?;
        let turn = |sequence| Turn { sequence, tokens: &[0], logits: Logits::Last };
        model.step_tokens(&mut sequences.iter_mut().map(turn).collect::<Vec<_>>(), &[])?;
    }
    Ok(())
}

/// The first address, and the bytes behind it.
const FIRST: u64 = 1 << 20;
const TOTAL: usize = 141 << 30;

type Key = (String, Vec<(&'static str, String)>, &'static str);

/// A GPU of which no memory is there; what drops counts as held.
#[derive(Debug)]
struct Recorder {
    gpu: Gpu,
    next: AtomicU64,
    picked: Arc<Mutex<BTreeMap<Key, Picked>>>,
}

impl Recorder {
    fn new(gpu: Gpu) -> Self {
        Self { gpu, next: AtomicU64::new(FIRST), picked: Arc::default() }
    }
}

/// A kernel to write down when it is launched.
#[derive(Debug)]
struct Noted {
    kernel: Picked,
    picked: Arc<Mutex<BTreeMap<Key, Picked>>>,
}

impl Loaded for Noted {
    unsafe fn launch(&self, geometry: &Geometry, _: &[u8]) -> gdn::Result<()> {
        let Picked { file, defines, entry, .. } = &self.kernel;
        let mut picked = self.picked.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = picked
            .entry((file.clone(), defines.clone(), entry))
            .or_insert_with(|| self.kernel.clone());
        entry.shared_bytes = entry.shared_bytes.max(geometry.shared_bytes);
        Ok(())
    }
}

impl Runtime for Recorder {
    fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn ordinal(&self) -> usize {
        0
    }

    fn allocate(&self, bytes: usize) -> gdn::Result<(u64, Box<dyn Any + Send + Sync>)> {
        let bytes = (bytes as u64).next_multiple_of(256);
        Ok((self.next.fetch_add(bytes, Ordering::Relaxed), Box::new(())))
    }

    fn memory(&self) -> gdn::Result<Option<MemoryInfo>> {
        let held = (self.next.load(Ordering::Relaxed) - FIRST) as usize;
        Ok(Some(MemoryInfo { free: TOTAL.saturating_sub(held), total: TOTAL }))
    }

    unsafe fn upload(&self, _: u64, _: &[u8]) -> gdn::Result<()> {
        Ok(())
    }

    unsafe fn download(&self, _: u64, _: &mut [u8]) -> gdn::Result<()> {
        Ok(())
    }

    unsafe fn zero(&self, _: u64, _: usize) -> gdn::Result<()> {
        Ok(())
    }

    unsafe fn copy(&self, _: u64, _: u64, _: usize) -> gdn::Result<()> {
        Ok(())
    }

    /// Kernels of `gdn`, which has a list of its own.
    unsafe fn launch(&self, _: &kernel::Kernel, _: &Geometry, _: &[u8]) -> gdn::Result<()> {
        Ok(())
    }

    fn load(&self, kernel: &KernelText<'_>) -> gdn::Result<Arc<dyn Loaded>> {
        let kernel = Picked {
            file: kernel.name.to_owned(),
            text: kernel.text,
            defines: kernel.defines.clone(),
            entry: kernel.entry,
            shared_bytes: 0,
        };
        Ok(Arc::new(Noted { kernel, picked: self.picked.clone() }))
    }

    fn stream(&self) -> Option<&gdn_cuda::Stream> {
        None
    }

    fn synchronize(&self) -> gdn::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn load(recorder: &Arc<Recorder>, options: &Options) -> Result<Model> {
        let (cuda, config) =
            (Cuda::on_runtime(recorder.clone())?, Config::preset("qwen3.5-35b-a3b")?);
        Model::on_cuda(cuda, config, &mut Checkpoint::dummy(0), options, &mut |_| {})
    }

    /// All that a model allocates is counted, whatever it is for.
    #[test]
    fn tokens_fill_a_fraction_of_the_memory() {
        let gpu = Gpu {
            name: "a test's".to_owned(),
            capability: 90,
            multiprocessors: 132,
            shared_bytes: 232_448,
            memory_gb_s: 4000,
        };
        let options = Options::default().device(Place::Cuda(0));
        let options = options.sequences(136).memory_fraction(0.88);
        let recorder = Arc::new(Recorder::new(gpu));
        let model = load(&recorder, &options).unwrap();
        let held = |recorder: &Recorder| TOTAL - recorder.memory().unwrap().unwrap().free;
        let allowed = (0.88 * TOTAL as f64) as usize;
        // A page of 20 KiB a token.
        let page = 64 * 20 * 1024;
        let held = held(&recorder);
        assert!(held <= allowed && allowed - held < page, "{held} of {allowed}");
        assert!(model.free().1 > 2_000_000, "{}", model.free().1);

        // What there is already is held by others; the second model finds no page.
        let error = load(&recorder, &options).unwrap_err();
        assert!(matches!(error, Error::NoRoom { slots: 136, .. }), "{error}");
    }
}
