//! Text that grows token by token.

use std::{str, sync::LazyLock};

use tokenizers::DecoderWrapper;

use super::Tokenizer;
use crate::{Error, Result};

/// Decodes token by token; [`Tokenizer::stream`] makes one.
///
/// A character whose bytes lie in several tokens comes out when it is complete.
/// Bytes that are no UTF-8 come out as U+FFFD, as in [`Tokenizer::decode`].
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
}

/// Code points below this stand for bytes in tokens; its byte, or none.
const STAND_INS: usize = 0x144;

/// The bytes that characters in byte-level vocabularies stand for.
///
/// Printable ones of Latin-1 stand for themselves, the rest were moved, in order,
/// behind it.
static BYTES: LazyLock<[Option<u8>; STAND_INS]> = LazyLock::new(|| {
    let mut bytes = [None; STAND_INS];
    let mut moved = 0x100;
    for byte in 0..=u8::MAX {
        let itself = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        bytes[if itself { byte.into() } else { moved }] = Some(byte);
        moved += usize::from(!itself);
    }
    bytes
});

/// The bytes of a token by its text in a byte-level vocabulary.
pub(super) fn bytes(text: &str) -> Vec<u8> {
    let bytes: Option<_> = text.chars().map(|c| BYTES.get(c as usize).copied().flatten()).collect();
    // Else an added token, which is in plain text.
    bytes.unwrap_or_else(|| text.as_bytes().to_vec())
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, skip_special: false, pending: Vec::new() }
    }

    /// The same without special tokens, as [`Tokenizer::decode_text`].
    pub fn skip_special(self) -> Self {
        Self { skip_special: true, ..self }
    }

    /// Adds a token, and returns the text that is complete with it, if there is
    /// any. A token that the vocabulary has not is no text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the file's tokens are not of bytes.
    pub fn push(&mut self, token: u32) -> Result<Option<String>> {
        if !matches!(self.tokenizer.inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            let reason = "decoder: expected ByteLevel, got another; decode all tokens at once";
            let path = self.tokenizer.path.clone();
            return Err(Error::Tokenizer { path, reason: reason.to_owned() });
        }
        if self.skip_special && self.tokenizer.is_special(token) {
            return Ok(None);
        }
        let Some(bytes) = self.tokenizer.token_bytes(token) else { return Ok(None) };
        self.pending.extend(bytes);
        Ok(self.complete())
    }

    /// Ends the text, and returns what is left: a character that was cut short.
    pub fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }

    /// Takes what more bytes can't change.
    fn complete(&mut self) -> Option<String> {
        let mut out = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, bad) = rest.split_at(error.valid_up_to());
                    out.push_str(&String::from_utf8_lossy(valid));
                    rest = bad;
                    if let Some(len) = error.error_len() {
                        out.push(char::REPLACEMENT_CHARACTER);
                        rest = &bad[len..];
                        continue;
                    }
                }
            }
            break;
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
        (!out.is_empty()).then_some(out)
    }
}
