//! Log probabilities in the form of chats.

use gdn_engine::Logprobs;
use serde::Serialize;

use crate::{api::finite, vocabulary::Vocabulary};

/// Of the tokens of an answer, or of some.
#[derive(Debug, Default, Serialize)]
pub(super) struct Content {
    pub(super) content: Vec<Token>,
}

#[derive(Debug, Serialize)]
pub(super) struct Token {
    #[serde(flatten)]
    token: Likely,
    top_logprobs: Vec<Likely>,
}

#[derive(Debug, Serialize)]
struct Likely {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl Likely {
    fn new(vocabulary: &Vocabulary, token: u32, logprob: f32) -> Self {
        let (text, bytes) = (vocabulary.text(token), vocabulary.bytes(token).to_vec());
        Self { token: text, logprob: finite(logprob), bytes }
    }
}

impl Token {
    pub(super) fn new(vocabulary: &Vocabulary, token: u32, of: &Logprobs) -> Self {
        let top = of.top.iter();
        Self {
            token: Likely::new(vocabulary, token, of.logprob),
            top_logprobs: top.map(|&(token, of)| Likely::new(vocabulary, token, of)).collect(),
        }
    }
}
