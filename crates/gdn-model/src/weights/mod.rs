//! The tensors of a checkpoint: one safetensors file, or shards with an index.

mod dummy;
mod map;
mod tensor;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use gdn::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

pub(crate) use self::tensor::{Dummy, Elements, Tensor};
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What a text model without speculation has no use for: the vision tower, and
/// the layers that draft tokens ahead.
const SKIPPED: [&str; 2] = ["model.visual.", "mtp."];

/// An open checkpoint; values are read when a tensor is asked for.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    /// Every tensor of any shape is there, made up from this seed.
    dummy: Option<u64>,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
    taken: HashSet<String>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Arc<Mmap>,
}

/// Where a tensor lies.
#[derive(Debug)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Opens `model.safetensors.index.json` and the shards that it names, or
    /// else `model.safetensors`, and checks their headers.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`] if a file can't be read,
    /// [`Error::Shard`] for a damaged one, [`Error::MissingTensor`] if a shard
    /// lacks what the index says it has.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut checkpoint = Self {
            folder: folder.to_owned(),
            dummy: None,
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            taken: HashSet::new(),
        };
        let path = folder.join(INDEX);
        if !path.exists() {
            checkpoint.add(&folder.join(SINGLE), |_| true)?;
            return Ok(checkpoint);
        }
        let text =
            fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let index: Index = serde_json::from_str(&text)
            .map_err(|source| Error::Json { path: path.clone(), source })?;
        for file in index.weight_map.values().collect::<BTreeSet<_>>() {
            checkpoint.add(&folder.join(file), |name| index.weight_map.get(name) == Some(file))?;
        }
        for (name, file) in &index.weight_map {
            if !checkpoint.contains(name) {
                return Err(Error::MissingTensor { path: folder.join(file), tensor: name.clone() });
            }
        }
        Ok(checkpoint)
    }

    /// Whatever is asked for, made up from a seed: to time a model without its
    /// weights.
    pub fn dummy(seed: u64) -> Self {
        Self {
            folder: PathBuf::new(),
            dummy: Some(seed),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            taken: HashSet::new(),
        }
    }

    /// Adds the tensors of a shard that `wanted` names.
    fn add(&mut self, path: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let map = map::map(path)?;
        let error = |source| Error::Shard { path: path.to_owned(), source };
        // Checks that the offsets lie behind one another and end with the file.
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(error)?;
        let data = size_of::<u64>() + header;
        for (name, info) in metadata.tensors() {
            if wanted(&name) {
                let (start, end) = info.data_offsets;
                let entry = Entry {
                    shard: self.shards.len(),
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    bytes: data + start..data + end,
                };
                self.tensors.insert(name, entry);
            }
        }
        self.shards.push(Shard { path: path.to_owned(), map: Arc::new(map) });
        Ok(())
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The values of a tensor of this shape, as f32.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`] or [`Error::DType`].
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        if let Some(seed) = self.dummy {
            return Ok(dummy::vector(seed, name, shape));
        }
        let (shard, entry) = self.find(name, shape)?;
        let data = &shard.map[entry.bytes.clone()];
        let values = match entry.dtype {
            Dtype::F32 => read(data, f32::from_le_bytes),
            Dtype::BF16 => read(data, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Dtype::F16 => read(data, |bytes| f16::from_le_bytes(bytes).to_f32()),
            other => return Err(shard.dtype(name, other)),
        };
        self.taken.insert(name.to_owned());
        Ok(values)
    }

    /// A tensor of this shape as a matrix with the last dim as its rows, left where
    /// it lies if it is bf16.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let cols = shape.last().copied().unwrap_or(1);
        if let Some(seed) = self.dummy {
            return Ok(dummy::tensor(seed, name, [shape.iter().product::<usize>() / cols, cols]));
        }
        let (shard, entry) = self.find(name, shape)?;
        let even = (shard.map.as_ptr() as usize + entry.bytes.start).is_multiple_of(2);
        let tensor = match entry.dtype {
            Dtype::BF16 if even && cfg!(target_endian = "little") => {
                let rows = entry.bytes.len() / 2 / cols;
                Tensor::mapped(shard.map.clone(), entry.bytes.start, [rows, cols])
            }
            Dtype::BF16 => {
                let data = &shard.map[entry.bytes.clone()];
                Tensor::bf16(read(data, bf16::from_le_bytes), cols)
            }
            _ => return Ok(Tensor::f32(self.take(name, shape)?, cols)),
        };
        self.taken.insert(name.to_owned());
        Ok(tensor)
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<(&Shard, &Entry)> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(Error::MissingTensor {
                path: self.folder.clone(),
                tensor: name.to_owned(),
            });
        };
        let shard = &self.shards[entry.shard];
        if entry.shape != shape {
            return Err(Error::Shape {
                path: shard.path.clone(),
                tensor: name.to_owned(),
                expected: shape.to_owned(),
                got: entry.shape.clone(),
            });
        }
        Ok((shard, entry))
    }

    /// `Err` if a tensor was not taken, unless it belongs to a part that a text
    /// model does not run.
    ///
    /// # Errors
    /// [`Error::UnusedTensor`].
    pub fn finish(&self) -> Result<()> {
        let known = |name: &str| SKIPPED.iter().any(|prefix| name.starts_with(prefix));
        match self.tensors.iter().find(|(name, _)| !self.taken.contains(*name) && !known(name)) {
            None => Ok(()),
            Some((name, entry)) => Err(Error::UnusedTensor {
                path: self.shards[entry.shard].path.clone(),
                tensor: name.clone(),
            }),
        }
    }
}

impl Shard {
    fn dtype(&self, tensor: &str, got: Dtype) -> Error {
        let (path, tensor) = (self.path.clone(), tensor.to_owned());
        Error::DType { path, tensor, got: got.to_string() }
    }
}

fn read<const N: usize, T>(data: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks().0.iter().map(|&bytes| value(bytes)).collect()
}

/// The tensors under one prefix.
#[derive(Debug)]
pub(crate) struct Scope<'a> {
    checkpoint: &'a mut Checkpoint,
    prefix: String,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(checkpoint: &'a mut Checkpoint, prefix: impl Into<String>) -> Self {
        Self { checkpoint, prefix: prefix.into() }
    }

    pub(crate) fn scope(&mut self, name: &str) -> Scope<'_> {
        Scope { checkpoint: self.checkpoint, prefix: format!("{}{name}.", self.prefix) }
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(&format!("{}{name}", self.prefix))
    }

    /// As [`Checkpoint::take`].
    pub(crate) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.checkpoint.take(&format!("{}{name}", self.prefix), shape)
    }

    /// As [`Checkpoint::tensor`].
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.checkpoint.tensor(&format!("{}{name}", self.prefix), shape)
    }

    /// The weight of a zero-centred norm, as the factor 1 + w.
    pub(crate) fn take_norm(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let mut weight = self.take(name, &[len])?;
        weight.iter_mut().for_each(|w| *w += 1.0);
        Ok(weight)
    }
}
