//! Fetches a model into the cache.

use std::{env, path::PathBuf};

use hf_hub::{
    Repo, RepoType,
    api::{
        Progress,
        sync::{Api, ApiBuilder, ApiError},
    },
};

use super::{Fetched, Hub, is_complete};
use crate::Result;

impl Hub {
    pub(super) fn fetch(
        &self,
        model: &str,
        progress: &mut dyn FnMut(Fetched<'_>),
    ) -> Result<PathBuf> {
        if self.offline {
            return Err(self.error(model, "HF_HUB_OFFLINE is set"));
        }
        let failed = |error: &ApiError| self.error(model, reason(error));
        let api = self.api().map_err(|error| failed(&error))?;
        let remote = api.repo(Repo::new(model.to_owned(), RepoType::Model));
        let info = remote.info().map_err(|error| failed(&error))?;
        let snapshot = self.repository(model).join("snapshots").join(&info.sha);

        let mut files: Vec<_> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        files.retain(|file| is_wanted(file));
        // What is small and says what there is comes first.
        files.sort_by_key(|file| (file.ends_with(".safetensors"), file.clone()));
        for (i, file) in files.iter().enumerate() {
            if snapshot.join(file).is_file() {
                continue;
            }
            let state = Fetched { file, number: i + 1, files: files.len(), bytes: 0, size: 0 };
            let reporter = Reporter { state, progress };
            let fetched = remote.download_with_progress(file, reporter);
            fetched.map_err(|error| failed(&error))?;
        }
        if is_complete(&snapshot) {
            return Ok(snapshot);
        }
        let lacks = "it lacks config.json, tokenizer.json or weights in safetensors";
        Err(self.error(model, lacks))
    }

    fn api(&self) -> Result<Api, ApiError> {
        let mut builder = ApiBuilder::from_env().with_cache_dir(self.cache.clone());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        if let Ok(token) = env::var("HF_TOKEN") {
            builder = builder.with_token(Some(token));
        }
        builder.with_retries(3).build()
    }
}

/// Files at the top, of the kinds that a text model is made of.
fn is_wanted(file: &str) -> bool {
    const NAMES: [&str; 3] = ["config.json", "generation_config.json", "chat_template.jinja"];
    let tokenizer = file.starts_with("tokenizer") && file.ends_with(".json");
    let weights = file.ends_with(".safetensors") || file.ends_with(".safetensors.index.json");
    !file.contains('/') && (NAMES.contains(&file) || tokenizer || weights)
}

fn reason(error: &ApiError) -> String {
    let message = error.to_string();
    // The status is no part of the type that one could name without its library.
    match ["401", "403", "404"].iter().any(|status| message.contains(&format!("status: {status}")))
    {
        true => format!("there is no such model, or it takes a token in HF_TOKEN ({message})"),
        false => message,
    }
}

struct Reporter<'a> {
    state: Fetched<'a>,
    progress: &'a mut dyn FnMut(Fetched<'_>),
}

impl Progress for Reporter<'_> {
    fn init(&mut self, size: usize, _: &str) {
        (self.state.bytes, self.state.size) = (0, size as u64);
        (self.progress)(self.state);
    }

    fn update(&mut self, bytes: usize) {
        self.state.bytes += bytes as u64;
        (self.progress)(self.state);
    }

    fn finish(&mut self) {}
}
