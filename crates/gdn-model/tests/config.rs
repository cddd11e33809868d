//! Published shapes, and how models want to be sampled.

mod common;

use std::fs;

use common::{CHECKPOINTS, folder};
use gdn_model::{Config, Error, Family, GenerationConfig, MlpConfig, PRESETS};
use safetensors::SafeTensors;
use serde_json::{Value, json};

#[test]
fn presets_have_the_published_sizes() {
    // In billions: all, and what a token is multiplied with.
    let sizes = [
        ("qwen3.5-0.8b", 0.752, 0.752),
        ("qwen3.5-2b", 1.88, 1.88),
        ("qwen3.5-4b", 4.21, 4.21),
        ("qwen3.5-9b", 8.95, 7.94),
        ("qwen3.5-27b", 26.90, 25.62),
        ("qwen3.5-35b-a3b", 34.66, 2.95),
        ("qwen3.5-122b-a10b", 122.1, 9.0),
        ("qwen3.5-397b-a17b", 396.4, 16.3),
        ("qwen3.6-27b", 26.90, 25.62),
        ("qwen3.6-35b-a3b", 34.66, 2.95),
        ("qwen3-next-80b-a3b", 79.7, 3.6),
    ];
    assert_eq!(sizes.map(|(name, ..)| name), PRESETS);
    for (name, total, active) in sizes {
        let parameters = Config::preset(name).unwrap().parameters();
        for (got, expected) in [(parameters.total, total), (parameters.active, active)] {
            // To the digits that are given, which are three or four.
            let got = got as f64 / 1e9;
            let error = (got / expected - 1.0).abs();
            assert!(
                error < if expected < 5.0 { 0.011 } else { 0.002 },
                "{name}: {got}, {expected}"
            );
        }
    }
}

#[test]
fn presets_by_name() {
    let moe = Config::preset("Qwen3.5-35B-A3B").unwrap();
    assert_eq!(moe, Config::preset("qwen3.6-35b-a3b").unwrap());
    assert_eq!((moe.family, moe.layers.len()), (Family::Qwen35Moe, 40));
    assert!(matches!(moe.mlp, MlpConfig::Moe { experts: 256, per_token: 8, .. }));
    let next = Config::preset("qwen3-next-80b-a3b").unwrap();
    assert_eq!((next.family, next.vocab_size), (Family::Qwen3Next, 151_936));

    let error = Config::preset("qwen2").unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Preset { .. }));
    assert!(PRESETS.iter().all(|name| message.contains(name)), "{message}");
    assert!(message.contains("got qwen2"), "{message}");
}

/// A count by formula, against the tensors of a checkpoint.
#[test]
fn parameters_are_those_of_the_files() {
    for name in CHECKPOINTS {
        let bytes = fs::read(folder(name).join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let text = file
            .iter()
            .filter(|(name, _)| !name.starts_with("mtp.") && !name.starts_with("model.visual."));
        let count: usize = text.map(|(_, t)| t.shape().iter().product::<usize>()).sum();
        let config = Config::read(&folder(name).join("config.json")).unwrap();
        assert_eq!(config.parameters().total, count as u64, "{name}");
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(self, file: &str, json: &Value) -> Self {
        fs::write(self.0.path().join(file), json.to_string()).unwrap();
        self
    }

    fn read(&self) -> Result<GenerationConfig, Error> {
        GenerationConfig::read(self.0.path())
    }
}

const FILE: &str = "generation_config.json";

#[test]
fn generation_config_is_read() {
    let all = json!({
        "eos_token_id": [2017, 2015], "do_sample": true, "temperature": 0.6, "top_k": 20,
        "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.05, "pad_token_id": 1,
    });
    let config = Folder::new().with(FILE, &all).read().unwrap();
    assert_eq!(config.eos, [2017, 2015]);
    let params = config.sampling();
    assert_eq!((params.temperature, params.top_k, params.top_p), (0.6, 20, 0.95));
    assert_eq!((params.min_p, params.repetition_penalty), (0.1, 1.05));

    let one = Folder::new().with(FILE, &json!({ "eos_token_id": 5, "do_sample": true }));
    let config = one.read().unwrap();
    assert_eq!(config.eos, [5]);
    assert_eq!((config.sampling().temperature, config.sampling().top_k), (1.0, 0));
    // Without do_sample it is greedy, as in Hugging Face.
    for more in [json!({ "do_sample": false, "temperature": 0.6 }), json!({ "temperature": 0.6 })] {
        assert_eq!(Folder::new().with(FILE, &more).read().unwrap().sampling().temperature, 0.0);
    }
}

#[test]
fn the_end_of_an_answer_is_looked_for() {
    let none = Folder::new().read().unwrap();
    assert!(none.eos.is_empty() && none.sampling().temperature == 0.0);
    let config = json!({ "text_config": { "eos_token_id": 2015 } });
    let folder_ = Folder::new().with("config.json", &config);
    assert_eq!(folder_.read().unwrap().eos, [2015]);

    let tokenizer = folder("qwen3_5_trained").join("tokenizer.json");
    fs::copy(tokenizer, folder_.0.path().join("tokenizer.json")).unwrap();
    let folder_ = folder_.with("tokenizer_config.json", &json!({ "eos_token": "<|im_end|>" }));
    assert_eq!(folder_.read().unwrap().eos, [2015, 2017]);
    // The first file that there is has the word.
    let folder_ = folder_.with(FILE, &json!({ "eos_token_id": 7 }));
    assert_eq!(folder_.read().unwrap().eos, [7]);
}

#[test]
fn bad_fields_are_named() {
    for (field, value, expected) in [
        ("eos_token_id", json!("end"), "a token or a list of tokens"),
        ("eos_token_id", json!([1, -1]), "a token or a list of tokens"),
        ("top_k", json!(-1), "a whole number"),
        ("temperature", json!("hot"), "a number"),
        ("do_sample", json!(1), "true or false"),
        ("top_p", json!(1.5), "at most 1"),
    ] {
        let mut config = json!({});
        config[field] = value;
        let error = Folder::new().with(FILE, &config).read().unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::Config { .. }));
        assert!([FILE, field, expected].iter().all(|word| message.contains(word)), "{message}");
    }
    let folder = Folder::new();
    fs::write(folder.0.path().join(FILE), "[").unwrap();
    assert!(matches!(folder.read(), Err(Error::Json { .. })));
}
