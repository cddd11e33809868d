//! Models by folder or by id, from the cache that Hugging Face's tools share.

#[cfg(feature = "fetch")]
mod fetch;

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::Value;

use crate::{Error, Result};

/// Where models are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    cache: PathBuf,
    offline: bool,
    endpoint: Option<String>,
}

/// How far a model has been fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched<'a> {
    /// The file that is on its way.
    pub file: &'a str,
    /// Its number, from 1.
    pub number: usize,
    /// How many files there are.
    pub files: usize,
    /// The bytes of this file that are here.
    pub bytes: u64,
    /// All its bytes.
    pub size: u64,
}

/// The folder of a model, as [`Hub::resolve`] with the environment's settings.
///
/// # Errors
/// As [`Hub::resolve`].
pub fn resolve(model: &str) -> Result<PathBuf> {
    Hub::from_env().resolve(model, &mut |_| ())
}

impl Hub {
    /// What the environment says, as Hugging Face's tools read it: the cache is
    /// `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or a folder in the user's cache;
    /// `HF_HUB_OFFLINE` forbids to fetch; `HF_ENDPOINT` names another server.
    pub fn from_env() -> Self {
        let folder = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let user = || {
            let home = || env::home_dir().unwrap_or_default().join(".cache");
            folder("XDG_CACHE_HOME").unwrap_or_else(home).join("huggingface")
        };
        let cache = folder("HF_HUB_CACHE")
            .unwrap_or_else(|| folder("HF_HOME").unwrap_or_else(user).join("hub"));
        let offline = env::var("HF_HUB_OFFLINE").unwrap_or_default().to_uppercase();
        Self {
            cache,
            offline: ["1", "ON", "YES", "TRUE"].contains(&offline.as_str()),
            endpoint: env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty()),
        }
    }

    /// A cache in this folder, and nothing else.
    pub fn offline(cache: impl Into<PathBuf>) -> Self {
        Self { cache: cache.into(), offline: true, endpoint: None }
    }

    /// A cache in this folder, and a server to fetch from.
    pub fn with_endpoint(cache: impl Into<PathBuf>, endpoint: impl Into<String>) -> Self {
        Self { cache: cache.into(), offline: false, endpoint: Some(endpoint.into()) }
    }

    /// The folder of a model: `model` itself where it is one, or else the id
    /// `org/name` in the cache. What is not there is fetched, where this crate
    /// was built with the feature `fetch`, and `progress` sees how far.
    ///
    /// # Errors
    /// [`Error::NoModel`] if it is neither, [`Error::Fetch`] if a model that the
    /// cache lacks can't be fetched.
    pub fn resolve(&self, model: &str, progress: &mut dyn FnMut(Fetched<'_>)) -> Result<PathBuf> {
        let folder = Path::new(model);
        if folder.is_dir() {
            return Ok(folder.to_owned());
        }
        if folder.exists() || !is_id(model) {
            return Err(Error::NoModel { model: model.to_owned() });
        }
        match self.cached(model) {
            Some(folder) => Ok(folder),
            None => self.fetch(model, progress),
        }
    }

    /// A complete snapshot: that of `main` if it is, else the newest.
    fn cached(&self, model: &str) -> Option<PathBuf> {
        let repository = self.repository(model);
        let snapshots = repository.join("snapshots");
        let main = fs::read_to_string(repository.join("refs").join("main")).unwrap_or_default();
        let main = snapshots.join(main.trim());
        if main != snapshots && is_complete(&main) {
            return Some(main);
        }
        let age = |folder: &PathBuf| {
            fs::metadata(folder).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let entries = fs::read_dir(snapshots).ok()?.flatten().map(|entry| entry.path());
        entries.filter(|folder| is_complete(folder)).max_by_key(age)
    }

    fn repository(&self, model: &str) -> PathBuf {
        self.cache.join(format!("models--{}", model.replace('/', "--")))
    }

    #[cfg(not(feature = "fetch"))]
    fn fetch(&self, model: &str, _: &mut dyn FnMut(Fetched<'_>)) -> Result<PathBuf> {
        Err(self.error(model, "this build can't fetch; it lacks the feature `fetch`"))
    }

    fn error(&self, model: &str, reason: impl Into<String>) -> Error {
        let (model, reason) = (model.to_owned(), reason.into());
        Error::Fetch { model, cache: self.cache.clone(), reason }
    }
}

/// `org/name`, as nothing that could lead out of the cache.
fn is_id(model: &str) -> bool {
    let fine = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') && part.chars().all(known)
    };
    model.split_once('/').is_some_and(|(org, name)| fine(org) && fine(name))
}

/// Whether a folder has all that a model is made of.
fn is_complete(folder: &Path) -> bool {
    let has = |file: &str| folder.join(file).is_file();
    if !has("config.json") || !has("tokenizer.json") {
        return false;
    }
    let Ok(index) = fs::read_to_string(folder.join("model.safetensors.index.json")) else {
        return has("model.safetensors");
    };
    let Ok(index) = serde_json::from_str::<Value>(&index) else { return false };
    let Some(map) = index["weight_map"].as_object() else { return false };
    map.values().all(|file| file.as_str().is_some_and(has))
}
