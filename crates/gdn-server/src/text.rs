//! What turns text to tokens and back.

use std::path::Path;

use gdn_model::{ChatTemplate, GenerationConfig, Tokenizer};

use crate::vocabulary::Vocabulary;

/// All of a model's folder but its weights: what turns text to tokens and back.
#[derive(Clone, Debug)]
pub struct ModelText {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) generation: GenerationConfig,
}

impl ModelText {
    /// Reads the tokenizer, the chat template if there is one, and how the model wants
    /// to be sampled.
    ///
    /// # Errors
    /// Those of [`Tokenizer::load`], [`ChatTemplate::load`] and
    /// [`GenerationConfig::read`], but for a template that is missing.
    pub fn load(folder: impl AsRef<Path>) -> gdn_model::Result<Self> {
        let folder = folder.as_ref();
        let template = match ChatTemplate::load(folder) {
            Err(gdn_model::Error::NoChatTemplate { .. }) => None,
            template => Some(template?),
        };
        let tokenizer = Tokenizer::load(folder)?;
        let vocabulary = Vocabulary::new(&tokenizer);
        Ok(Self { tokenizer, vocabulary, template, generation: GenerationConfig::read(folder)? })
    }

    /// What turns text to tokens.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The same with another chat template.
    pub fn with_template(self, template: ChatTemplate) -> Self {
        Self { template: Some(template), ..self }
    }
}
