//! Log probabilities in the form of OpenAI's older API.

use serde::{Serialize, Serializer};

use crate::{api::finite, vocabulary::Vocabulary};

/// Of tokens in a row.
#[derive(Debug, Default, Serialize)]
pub(super) struct Logprobs {
    /// Characters before each token.
    text_offset: Vec<usize>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<Top>>,
    #[serde(skip)]
    offset: usize,
}

/// Texts of likely tokens, the most likely first.
#[derive(Debug)]
struct Top(Vec<(String, f32)>);

impl Serialize for Top {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, logprob)| (text, logprob)))
    }
}

impl Logprobs {
    /// With so many characters before the first token.
    pub(super) fn from_offset(offset: usize) -> Self {
        Self { offset, ..Self::default() }
    }

    /// The characters up to here.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn push(
        &mut self,
        vocabulary: &Vocabulary,
        token: u32,
        of: Option<&gdn_engine::Logprobs>,
    ) {
        let text = vocabulary.text(token);
        self.text_offset.push(self.offset);
        self.offset += text.chars().count();
        self.token_logprobs.push(of.map(|of| finite(of.logprob)));
        self.top_logprobs.push(of.map(|of| top(vocabulary, &text, of)));
        self.tokens.push(text);
    }
}

/// The likely tokens and the one that came. Of several that read alike the most likely
/// counts.
fn top(vocabulary: &Vocabulary, text: &str, of: &gdn_engine::Logprobs) -> Top {
    let mut top: Vec<(String, f32)> = Vec::with_capacity(of.top.len() + 1);
    let likely = of.top.iter().map(|&(token, logprob)| (vocabulary.text(token), logprob));
    for (text, logprob) in likely.chain([(text.to_owned(), of.logprob)]) {
        if top.iter().all(|(other, _)| *other != text) {
            top.push((text, finite(logprob)));
        }
    }
    Top(top)
}
