//! Text to tokens and back.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// The tokenizer of a model, from its `tokenizer.json`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
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
            Ok(inner) => Ok(Self { inner, path }),
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

    fn error(&self, error: tokenizers::Error) -> Error {
        Error::Tokenizer { path: self.path.clone(), reason: error.to_string() }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).finish_non_exhaustive()
    }
}
