//! A checkpoint of the fixtures, altered and written anew.

use std::{collections::BTreeMap, fs, path::Path};

use gdn_model::{Error, Model};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A checkpoint in memory, to alter.
pub struct Altered {
    pub config: Value,
    pub tensors: BTreeMap<String, Tensor>,
    pub folder: TempDir,
}

#[derive(Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Tensor {
    /// The same values in f32.
    pub fn widened(&self) -> Self {
        let widen = |&[low, high]: &[u8; 2]| [0, 0, low, high];
        let data = match self.dtype {
            Dtype::F32 => self.data.clone(),
            Dtype::BF16 => self.data.as_chunks().0.iter().flat_map(widen).collect(),
            other => panic!("{other:?}"),
        };
        Self { dtype: Dtype::F32, data, shape: self.shape.clone() }
    }

    /// The index-th of all that lie along the first dim.
    pub fn part(&self, index: usize) -> Self {
        let len = self.data.len() / self.shape[0];
        let data = self.data[index * len..][..len].to_vec();
        Self { dtype: self.dtype, shape: self.shape[1..].to_vec(), data }
    }

    /// Rows `start .. start + rows` of a matrix.
    pub fn rows(&self, start: usize, rows: usize) -> Self {
        let len = self.data.len() / self.shape[0];
        let data = self.data[start * len..][..rows * len].to_vec();
        let mut shape = self.shape.clone();
        shape[0] = rows;
        Self { dtype: self.dtype, shape, data }
    }
}

impl Altered {
    pub fn new(name: &str) -> Self {
        let from = super::folder(name);
        let bytes = fs::read(from.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |tensor: TensorView<'_>| Tensor {
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            data: tensor.data().to_vec(),
        };
        let text = fs::read_to_string(from.join("config.json")).unwrap();
        Self {
            config: serde_json::from_str(&text).unwrap(),
            tensors: file.iter().map(|(name, view)| (name.to_owned(), tensor(view))).collect(),
            folder: TempDir::new().unwrap(),
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The tensor whose name ends like this in the first layer that has one.
    pub fn find(&self, end: &str) -> String {
        self.tensors.keys().find(|name| name.ends_with(end)).unwrap().clone()
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: &str) -> Tensor {
        self.tensors.remove(name).unwrap()
    }

    /// Every tensor goes by the name that `rename` gives it, or goes.
    pub fn rename(&mut self, rename: impl Fn(String) -> Option<String>) {
        let all = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = all.filter_map(|(name, tensor)| Some((rename(name)?, tensor))).collect();
    }

    pub fn write_config(&self) {
        fs::write(self.path().join("config.json"), self.config.to_string()).unwrap();
    }

    /// Writes config and one file of weights.
    pub fn write(&self) {
        self.write_config();
        self.write_shard("model.safetensors", |_| true);
    }

    /// Writes config, shards and index; tensor i goes to shard i modulo `shards`.
    pub fn write_shards(&self, shards: usize) {
        self.write_config();
        let file = |shard: usize| format!("model-{shard}-of-{shards}.safetensors");
        let names: Vec<&String> = self.tensors.keys().collect();
        let shard_of = |name: &str| names.iter().position(|n| *n == name).unwrap() % shards;
        (0..shards).for_each(|i| self.write_shard(&file(i), |name| shard_of(name) == i));
        let map: BTreeMap<&String, String> =
            names.iter().map(|&name| (name, file(shard_of(name)))).collect();
        let index = json!({ "metadata": {}, "weight_map": map });
        fs::write(self.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    fn write_shard(&self, file: &str, wanted: impl Fn(&str) -> bool) {
        let tensors = self.tensors.iter().filter(|(name, _)| wanted(name));
        let views = tensors
            .map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
        let bytes = safetensors::serialize(views, None).unwrap();
        fs::write(self.path().join(file), bytes).unwrap();
    }

    pub fn load(&self) -> Result<Model, Error> {
        Model::load(self.path())
    }

    /// Writes and loads, and gives the error.
    pub fn error(&self) -> Error {
        self.write();
        self.load().expect_err("a bad checkpoint loads")
    }
}
