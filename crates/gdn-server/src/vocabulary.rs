//! The bytes of every token.

use std::{fmt, sync::Arc};

use gdn_model::Tokenizer;
use toktrie::{TokRxInfo, TokTrie, TokenizerEnv};

/// The bytes of every token, which a text of tokens one by one does not show: a
/// character may lie in several. Clones share it.
#[derive(Clone)]
pub(crate) struct Vocabulary(Arc<Inner>);

struct Inner {
    tokenizer: Tokenizer,
    trie: TokTrie,
}

impl Vocabulary {
    pub(crate) fn new(tokenizer: &Tokenizer) -> Self {
        let word = |token| {
            let mut word = Vec::new();
            if tokenizer.is_special(token) {
                word.push(TokTrie::SPECIAL_TOKEN_MARKER);
            }
            word.extend(tokenizer.token_bytes(token).unwrap_or_default());
            word
        };
        let words: Vec<_> = (0..tokenizer.token_limit()).map(word).collect();
        // Which token ends an answer is for those who ask: there may be several.
        let info = TokRxInfo::new(words.len() as u32, 0);
        let trie = TokTrie::from(&info, &words);
        Self(Arc::new(Inner { tokenizer: tokenizer.clone(), trie }))
    }

    /// The bytes of a token; of a special one, those of its name. None of a token that
    /// the tokenizer has not.
    pub(crate) fn bytes(&self, token: u32) -> &[u8] {
        let trie = &self.0.trie;
        if token as usize >= trie.vocab_size() {
            return &[];
        }
        let word = trie.token(token);
        if trie.is_special_token(token) { &word[1..] } else { word }
    }

    /// The text of a token alone, with U+FFFD for what is no whole character.
    pub(crate) fn text(&self, token: u32) -> String {
        String::from_utf8_lossy(self.bytes(token)).into_owned()
    }

    /// A special token, which is no text.
    pub(crate) fn special(&self) -> u32 {
        self.0.trie.get_special_tokens().first().copied().unwrap_or(0)
    }

    /// As grammars want it, with one of the tokens that end answers.
    pub(crate) fn environment(&self, eos: u32) -> impl TokenizerEnv + Sync + use<> {
        let eos = if (eos as usize) < self.0.trie.vocab_size() { eos } else { 0 };
        Environment { tokenizer: self.0.tokenizer.clone(), trie: self.0.trie.with_eos_token(eos) }
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Vocabulary").field(&self.0.trie.vocab_size()).finish()
    }
}

struct Environment {
    tokenizer: Tokenizer,
    trie: TokTrie,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        // What can't be encoded goes byte by byte.
        let encode = |text: &str| {
            let tokens = self.tokenizer.encode(text);
            tokens.unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
        };
        self.trie.tokenize_with_greedy_fallback(bytes, encode)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn bytes_are_those_of_the_text() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../gdn-model/tests/fixtures/qwen3_5_trained");
        let tokenizer = Tokenizer::load(&folder).unwrap();
        let vocabulary = Vocabulary::new(&tokenizer);
        let text = "What is 4 + 5?\n\n héé 🙂 <think>\n</think>\u{7f}\u{a0}<|im_end|>";
        let tokens = tokenizer.encode(text).unwrap();
        let bytes: Vec<u8> =
            tokens.iter().flat_map(|&token| vocabulary.bytes(token).to_vec()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
        assert!(vocabulary.bytes(u32::MAX).is_empty());
        let end = tokenizer.token_id("<|im_end|>").unwrap();
        assert_eq!(vocabulary.text(end), "<|im_end|>");
    }
}
