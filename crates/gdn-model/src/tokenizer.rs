//! Text to tokens and back.

mod stream;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::stream::TextStream;
use crate::{Error, Result};

/// The tokenizer of a model, from its `tokenizer.json`. Clones share it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in the folder of a model.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("tokenizer.json");
        match tokenizers::Tokenizer::from_file(&path) {
            Ok(inner) => Ok(Self { inner: Arc::new(inner), path }),
            Err(error) => Err(Error::Tokenizer { path, reason: error.to_string() }),
        }
    }

    /// The tokens of a text. What reads as a special token becomes one.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the file's rules can't take the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| self.error(error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of some tokens, special ones included.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the file's rules can't take the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, false).map_err(|error| self.error(error))
    }

    /// As [`decode`](Self::decode), without special tokens.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_text(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, true).map_err(|error| self.error(error))
    }

    /// Decodes token by token: what comes out adds up to what
    /// [`decode`](Self::decode) makes of all.
    pub fn stream(&self) -> TextStream {
        TextStream::new(self.clone())
    }

    /// The token of a text that is one, such as `<|im_end|>`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// The bytes of a token, which may be part of a character. `None` of one that the
    /// vocabulary has not.
    pub fn token_bytes(&self, token: u32) -> Option<Vec<u8>> {
        self.inner.id_to_token(token).map(|text| stream::bytes(&text))
    }

    /// All tokens are below this.
    pub fn token_limit(&self) -> u32 {
        self.inner.get_vocab(true).into_values().max().map_or(0, |last| last + 1)
    }

    /// Whether a token is a special one, such as `<|im_end|>`.
    pub fn is_special(&self, token: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        added.simple_id_to_token(token).is_some_and(|text| added.is_special_token(&text))
    }

    fn error(&self, error: tokenizers::Error) -> Error {
        Error::Tokenizer { path: self.path.clone(), reason: error.to_string() }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).finish_non_exhaustive()
    }
}
