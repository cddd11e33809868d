//! `generation_config.json`: how a model wants to be sampled, and where it ends.

use std::{fs, io, path::Path};

use serde_json::Value;

use super::fields::Fields;
use crate::{Error, Result, SamplingParams, Tokenizer};

/// How a model wants to be sampled, and the tokens that end an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// The tokens that end an answer.
    pub eos: Vec<u32>,
    /// Whether to draw tokens; else the most likely one is taken.
    pub do_sample: bool,
    /// As in [`SamplingParams`], if the file says so.
    pub temperature: Option<f32>,
    /// As in [`SamplingParams`], if the file says so.
    pub top_k: Option<usize>,
    /// As in [`SamplingParams`], if the file says so.
    pub top_p: Option<f32>,
    /// As in [`SamplingParams`], if the file says so.
    pub min_p: Option<f32>,
    /// As in [`SamplingParams`], if the file says so.
    pub repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` in the folder of a model.
    ///
    /// The file may be missing: then answers are greedy. Where it names no token that
    /// ends an answer, those of `config.json` and `tokenizer_config.json` do.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`] if a file can't be read, [`Error::Config`]
    /// for a field of the wrong kind or out of range.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join("generation_config.json");
        let root = json(&path)?.unwrap_or_else(|| Value::Object(Default::default()));
        let file = Fields::new(&path, "", &root)?;
        let do_sample = file.get("do_sample", "true or false")?.unwrap_or(false);
        let number = |name: &str| file.get::<f32>(name, "a number");
        let mut config = Self {
            eos: eos(&file)?,
            do_sample,
            temperature: number("temperature")?,
            top_k: file.get("top_k", "a whole number, at least 0")?,
            top_p: number("top_p")?,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
        };
        if let Err(Error::Sampling { name, expected, got }) = config.sampling().validate() {
            return Err(file.error(name, &expected, got));
        }
        if config.eos.is_empty() {
            config.eos = eos_elsewhere(folder)?;
        }
        Ok(config)
    }

    /// The parameters that it asks for, greedy unless it says `do_sample`.
    pub fn sampling(&self) -> SamplingParams {
        let default = SamplingParams::default();
        SamplingParams {
            temperature: if self.do_sample { self.temperature.unwrap_or(1.0) } else { 0.0 },
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
            ..default
        }
    }
}

fn json(path: &Path) -> Result<Option<Value>> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|source| Error::Json { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

fn eos(fields: &Fields<'_>) -> Result<Vec<u32>> {
    let expected = "a token or a list of tokens";
    match fields.get("eos_token_id", expected)? {
        None => Ok(Vec::new()),
        Some(Value::Array(_)) => Ok(fields.get("eos_token_id", expected)?.unwrap_or_default()),
        Some(_) => Ok(fields.get("eos_token_id", expected)?.into_iter().collect()),
    }
}

/// What `config.json` names ends a text, what the tokenizer names ends a turn of a
/// conversation: both end an answer.
fn eos_elsewhere(folder: &Path) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    let path = folder.join("config.json");
    if let Some(root) = json(&path)? {
        let root = Fields::new(&path, "", &root)?;
        found.extend(eos(&root)?);
        if let Some(text) = root.object("text_config")? {
            found.extend(eos(&text)?);
        }
    }
    if let Some(config) = json(&folder.join("tokenizer_config.json"))? {
        let token = &config["eos_token"];
        if let Some(text) = token.as_str().or(token["content"].as_str()) {
            found.extend(Tokenizer::load(folder)?.token_id(text));
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}
