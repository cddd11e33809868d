//! A GPU, and what the CUDA halves of the operators share.
#![expect(unsafe_code, reason = "launches trust the addresses that they get")]

mod beside;
mod buffers;
mod device;
pub mod kernels;
mod memory;
mod views;

pub(crate) use self::{device::OnGpu, memory::bucket};

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use bytemuck::Pod;
use gdn::{
    DType,
    cuda::{
        runtime::{KernelText, Loaded, Runtime},
        tiles::Geometry,
    },
};

use crate::{Error, Result};

/// What the sources include: the headers of `gdn`, and those of this crate.
static HEADERS: LazyLock<Vec<(&'static str, &'static str)>> = LazyLock::new(|| {
    let own = [
        ("linear.cuh", include_str!("../ops/linear/linear.cuh")),
        ("attention.cuh", include_str!("../ops/attention/attention.cuh")),
        ("tensor.cuh", include_str!("../ops/attention/tensor.cuh")),
    ];
    gdn::cuda::kernel::HEADERS.into_iter().chain(own).collect()
});

/// A CUDA source. All entry points of a file take one struct, `Params`.
#[derive(Debug)]
pub(crate) struct File {
    /// Its name without the extension.
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    /// The names of the macros that [`Kernel::constants`] has the values of.
    pub(crate) constants: &'static [&'static str],
}

/// An entry point, compiled for a dtype of activations and for constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    pub(crate) file: &'static File,
    pub(crate) entry: &'static str,
    pub(crate) activations: DType,
    /// As many as the file names; the rest is 0.
    pub(crate) constants: [u32; 8],
}

/// A GPU with the kernels loaded there.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) activations: DType,
    loaded: Mutex<HashMap<Kernel, Arc<dyn Loaded>>>,
}

impl Gpu {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, activations: DType) -> Self {
        Self { runtime, activations, loaded: Mutex::default() }
    }

    /// A kernel for this GPU's activations.
    pub(crate) fn kernel<const N: usize>(
        &self,
        file: &'static File,
        entry: &'static str,
        constants: [u32; N],
    ) -> Kernel {
        assert_eq!(N, file.constants.len(), "the constants of {}", file.name);
        let mut padded = [0; 8];
        padded[..N].copy_from_slice(&constants);
        Kernel { file, entry, activations: self.activations, constants: padded }
    }

    /// Enqueues a kernel. `params` is what the `.cu` calls `Params`.
    pub(crate) fn launch<P: Pod>(
        &self,
        kernel: Kernel,
        geometry: &Geometry,
        params: &P,
    ) -> Result<()> {
        let loaded = self.load(kernel, size_of::<P>())?;
        // SAFETY: the launchers, and no one else, fill `params`: with addresses of buffers whose
        // sizes they check against the shapes beside them. The kernel asserts the struct's size.
        Ok(unsafe { loaded.launch(geometry, bytemuck::bytes_of(params)) }?)
    }

    fn load(&self, kernel: Kernel, params: usize) -> Result<Arc<dyn Loaded>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.get(&kernel) {
            return Ok(kernel.clone());
        }
        let made = self.runtime.load(&kernel.text(params))?;
        loaded.insert(kernel, made.clone());
        Ok(made)
    }
}

impl Kernel {
    /// What to compile, for a `Params` of so many bytes.
    fn text(&self, params: usize) -> KernelText<'static> {
        let mut defines =
            vec![("ACT", self.activations.to_string()), ("PARAMS_BYTES", params.to_string())];
        let constants = self.file.constants.iter().zip(self.constants);
        defines.extend(constants.map(|(&name, value)| (name, value.to_string())));
        KernelText {
            name: self.file.name,
            text: self.file.text,
            headers: &HEADERS,
            defines,
            entry: self.entry,
        }
    }
}

impl PartialEq for File {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for File {}

impl Hash for File {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// Of the driver, about a GPU.
fn failed(error: gdn_cuda::Error, gpu: usize) -> Error {
    let (place, reason) = (gdn::Place::Cuda(gpu), error.to_string());
    gdn::Error::from(gdn::ErrorKind::Device { place, reason }).into()
}
