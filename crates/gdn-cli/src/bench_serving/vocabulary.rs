//! The tokenizer, as the drawing of prompts and the counting of answers need it.

use std::path::Path;

use anyhow::anyhow;
use gdn_model::{ChatTemplate, Message};
use serde_json::Map;
use tokenizers::Tokenizer;

use crate::output::Usage;

pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Vocabulary {
    /// Of a folder with a tokenizer.json; with its chat template, if that is needed.
    pub(super) fn load(folder: &Path, chat_template: bool) -> anyhow::Result<Self> {
        let path = folder.join("tokenizer.json");
        let tokenizer = Tokenizer::from_file(&path).map_err(|error| {
            let path = path.display();
            Usage(format!("--tokenizer: expected a folder with a tokenizer.json, {path}: {error}"))
        })?;
        let template = match chat_template {
            false => None,
            true => Some(
                ChatTemplate::load(folder)
                    .map_err(|error| Usage(format!("--apply-chat-template: {error}")))?,
            ),
        };
        Ok(Self { tokenizer, template })
    }

    /// Tokens, without those that were added.
    pub(super) fn size(&self) -> usize {
        self.tokenizer.get_vocab_size(false)
    }

    /// How many tokens a server puts around a text.
    pub(super) fn special_tokens(&self) -> usize {
        use tokenizers::PostProcessor;
        self.tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false))
    }

    /// A prompt's tokens, with those that a server puts around it.
    pub(super) fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        self.tokens(text, true)
    }

    /// How many tokens a text has alone.
    pub(super) fn count(&self, text: &str) -> anyhow::Result<usize> {
        Ok(self.tokens(text, false)?.len())
    }

    pub(super) fn decode(&self, tokens: &[u32]) -> anyhow::Result<String> {
        self.tokenizer.decode(tokens, false).map_err(|error| anyhow!("--tokenizer: {error}"))
    }

    /// A prompt as what a user says, where a chat template was loaded.
    pub(super) fn frame(&self, prompt: String) -> anyhow::Result<String> {
        let Some(template) = &self.template else { return Ok(prompt) };
        let messages = [Message::user(prompt)];
        Ok(template.render(&messages, true, None, &Map::new())?)
    }

    fn tokens(&self, text: &str, special: bool) -> anyhow::Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, special);
        let encoding = encoding.map_err(|error| anyhow!("--tokenizer: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }
}
