//! The tiny checkpoints and what Hugging Face transformers makes of them.
#![allow(dead_code, unreachable_pub, reason = "a module of many tests, none of which uses it all")]

pub mod altered;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use gdn::{Cuda, DType};
use gdn_emu::EmulatedGpu;
use gdn_model::{Checkpoint, Config, Model, Options};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Every checkpoint that has references.
pub const CHECKPOINTS: [&str; 3] = ["qwen3_5_dense", "qwen3_5_moe", "qwen3_next"];

pub fn folder(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", name].iter().collect()
}

pub fn model(name: &str) -> Model {
    model_with(name, &Options::default())
}

/// On what `GDN_TEST_BACKEND` says: `cpu`, `cuda` (the first GPU), or `emu` (the CUDA
/// kernels, run on the CPU). On the latter two in f32, unless `options` say otherwise.
pub fn model_with(name: &str, options: &Options) -> Model {
    model_at(&folder(name), options)
}

pub fn model_at(folder: &Path, options: &Options) -> Model {
    let Some(cuda) = cuda() else { return Model::load_with(folder, options).unwrap() };
    let mut options = options.clone();
    options.activations.get_or_insert(DType::F32);
    let config = Config::read(&folder.join("config.json")).unwrap();
    let mut checkpoint = Checkpoint::open(folder).unwrap();
    Model::on_cuda(cuda, config, &mut checkpoint, &options, &mut |_| {}).unwrap()
}

pub fn on_cpu() -> bool {
    env::var("GDN_TEST_BACKEND").map_or(true, |kind| kind == "cpu")
}

fn cuda() -> Option<Cuda> {
    match env::var("GDN_TEST_BACKEND").as_deref() {
        Err(_) | Ok("cpu") => None,
        // A stream for each: what one test records in a graph, others must not touch.
        Ok("cuda") => Some(Cuda::new(0).unwrap()),
        Ok("emu") => {
            let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
            Some(EmulatedGpu::new(&out).unwrap().backend().unwrap())
        }
        Ok(other) => panic!("GDN_TEST_BACKEND={other}: expected cpu, cuda or emu"),
    }
}

/// Prompts, and Hugging Face's outputs in f32.
pub struct Reference {
    tensors: Vec<u8>,
    json: Value,
}

/// A prompt, and what follows it.
pub struct Prompt {
    /// Its name in the file of tensors.
    pub name: String,
    pub tokens: Vec<u32>,
    /// What greedy decoding appends.
    pub greedy: Vec<u32>,
    /// By how much each of these tokens leads the second best.
    pub margins: Vec<f32>,
}

impl Reference {
    pub fn new(name: &str) -> Self {
        Self::at(&folder(name))
    }

    pub fn at(folder: &Path) -> Self {
        let tensors = fs::read(folder.join("ref.safetensors")).unwrap();
        let json = fs::read_to_string(folder.join("ref.json")).unwrap();
        Self { tensors, json: serde_json::from_str::<Value>(&json).unwrap()["f32"].take() }
    }

    pub fn tensor(&self, name: &str) -> Vec<f32> {
        self.computed_in("f32", name)
    }

    /// The same, computed in another dtype.
    pub fn computed_in(&self, dtype: &str, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.tensors).unwrap();
        let tensor = file.tensor(&format!("{dtype}.{name}")).unwrap();
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }

    /// Random prompts, of the lengths at which convolutions and chunks begin and
    /// end.
    pub fn edges(&self) -> Vec<Prompt> {
        let prompts = self.json["edge_prompts"].as_array().unwrap().iter();
        let prompt = |prompt: &Value| {
            let tokens = integers(&prompt["ids"]);
            Prompt {
                name: format!("edge.{}", tokens.len()),
                tokens,
                greedy: integers(&prompt["greedy"]),
                margins: numbers(prompt["margins"].as_array().unwrap().iter()),
            }
        };
        prompts.map(prompt).collect()
    }

    /// Prompts of text.
    pub fn texts(&self) -> Vec<Prompt> {
        let prompts = self.json["text_prompts"].as_array().unwrap().iter();
        let prompt = |(i, prompt): (usize, &Value)| Prompt {
            name: format!("text.{i}"),
            tokens: integers(&prompt["ids"]),
            greedy: integers(&prompt["greedy"]),
            margins: numbers(prompt["steps"].as_array().unwrap().iter().map(|s| &s["margin"])),
        };
        prompts.enumerate().map(prompt).collect()
    }

    /// The same with their text, and the text of what greedy decoding appends.
    pub fn texts_and_prompts(&self) -> Vec<(String, Prompt, String)> {
        let of = |i: usize, field: &str| {
            self.json["text_prompts"][i][field].as_str().unwrap().to_owned()
        };
        let prompts = self.texts().into_iter().enumerate();
        prompts.map(|(i, prompt)| (of(i, "text"), prompt, of(i, "greedy_text"))).collect()
    }

    /// The prompt that is known in depth.
    pub fn deep(&self) -> Vec<u32> {
        let length = self.json["deep"]["length"].as_u64().unwrap() as usize;
        self.edges().into_iter().find(|prompt| prompt.tokens.len() == length).unwrap().tokens
    }
}

fn integers(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

fn numbers<'a>(list: impl Iterator<Item = &'a Value>) -> Vec<f32> {
    list.map(|number| number.as_f64().unwrap() as f32).collect()
}

/// The largest difference.
pub fn max_error(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    // NaN must not pass for small.
    let worse =
        |worst: f32, error: f32| if error > worst || error.is_nan() { error } else { worst };
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, worse)
}

/// The index of the largest.
pub fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.unwrap().0 as u32
}
