//! Finds and loads a model.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context;
use gdn_model::{ChatTemplate, Error, Fetched, GenerationConfig, Hub, Model, Tokenizer};
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::TempDir;

use super::{args::GenerateArgs, shipped};
use crate::output::Usage;

/// All that a model is.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) generation: GenerationConfig,
    pub(crate) load_s: f64,
    /// Where the shipped model lies; gone when this is.
    _folder: Option<TempDir>,
}

/// The folder of a model.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) name: String,
    folder: PathBuf,
    /// Where the shipped model lies; gone when this is.
    temporary: Option<TempDir>,
}

impl Located {
    /// Finds a model by its folder or id, or unpacks the shipped one.
    pub(crate) fn of(model: Option<&str>) -> anyhow::Result<Self> {
        if let Some(model) = model {
            return Ok(Self { name: model.to_owned(), folder: find(model)?, temporary: None });
        }
        let folder = shipped::unpack().context("the shipped model can't be unpacked")?;
        let (name, path) = (shipped::NAME.to_owned(), folder.path().to_owned());
        Ok(Self { name, folder: path, temporary: Some(folder) })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Loads the model that the flags name, with progress on a terminal.
pub(crate) fn load(args: &GenerateArgs) -> anyhow::Result<Loaded> {
    let Located { name, folder, temporary } = Located::of(args.model.as_deref())?;
    let bar = ProgressBar::new_spinner();
    bar.set_message(format!("loading {name}"));
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let start = Instant::now();
    let options = args.backend.options().sequences(1);
    let load = || -> Result<Loaded, Error> {
        let template = match ChatTemplate::load(&folder) {
            Err(Error::NoChatTemplate { .. }) => None,
            template => Some(template?),
        };
        Ok(Loaded {
            name: name.clone(),
            tokenizer: Tokenizer::load(&folder)?,
            template,
            generation: GenerationConfig::read(&folder)?,
            model: Model::load_with(&folder, &options)?,
            load_s: 0.0,
            _folder: temporary,
        })
    };
    let loaded = load();
    bar.finish_and_clear();
    let load_s = start.elapsed().as_secs_f64();
    let loaded = loaded.with_context(|| format!("--model {name} can't be loaded"))?;
    Ok(Loaded { load_s, ..loaded })
}

fn find(model: &str) -> anyhow::Result<PathBuf> {
    let bar = ProgressBar::hidden();
    let style = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let mut shown = false;
    let mut progress = |fetched: Fetched<'_>| {
        if !shown {
            bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
            shown = true;
        }
        let Fetched { file, number, files, bytes, size } = fetched;
        bar.set_message(format!("{number}/{files} {file}"));
        bar.set_length(size);
        bar.set_position(bytes);
    };
    let found = Hub::from_env().resolve(model, &mut progress);
    bar.finish_and_clear();
    found.map_err(|error| match error {
        Error::NoModel { .. } => Usage(format!("--model: {error}")).into(),
        error => anyhow::Error::new(error).context(format!("--model {model} can't be had")),
    })
}
