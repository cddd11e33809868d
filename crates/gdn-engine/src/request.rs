//! What is asked of an engine, and what it says.

use std::fmt::Debug;

use gdn_model::SamplingParams;

/// A prompt, and how to go on from it.
#[derive(Debug, Default)]
pub struct Request {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// The tokens to generate; 0 for none, if only the prompt's log probabilities are
    /// asked for.
    pub max_tokens: usize,
    /// Tokens before which none of `stop_tokens` is chosen, unless the constraint allows nothing
    /// else.
    pub min_tokens: usize,
    /// Tokens that end the answer, and belong to it.
    pub stop_tokens: Vec<u32>,
    /// Log probabilities of each token that is generated, and of so many likely ones.
    pub logprobs: Option<usize>,
    /// The same of the tokens of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// What may be generated, beyond the vocabulary.
    pub constraint: Option<Box<dyn Constraint>>,
    /// So many tokens of the prompt are likely to begin another one: the prefix cache
    /// keeps them too.
    pub checkpoint: Option<usize>,
}

/// A grammar that an answer must follow.
pub trait Constraint: Debug + Send {
    /// Sets the logits of tokens that may not come next to −∞.
    ///
    /// # Errors
    /// In words, if nothing may come next; the answer ends with them.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String>;

    /// Hears of the token that was chosen. True if the answer is complete with it.
    ///
    /// # Errors
    /// In words, if it can't be; the answer ends with them.
    fn accept(&mut self, token: u32) -> Result<bool, String>;
}

/// A step of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The request starts, for the first time.
    Started {
        /// The tokens of its prompt that the prefix cache had.
        cached_tokens: usize,
    },
    /// The log probabilities of the prompt's tokens, if they were asked for; none of
    /// the first. Comes before all tokens.
    Prompt(Vec<Option<Logprobs>>),
    /// The next token.
    Token {
        /// The token.
        token: u32,
        /// If they were asked for.
        logprobs: Option<Logprobs>,
    },
    /// The end. Nothing comes behind it.
    Finished(Finished),
}

/// The log probability of a token, and of the most likely in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token. The same number as in `top`, if it is there.
    pub logprob: f32,
    /// The most likely tokens, the most likely first; of equals, the lowest.
    pub top: Vec<(u32, f32)>,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// The tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that the prefix cache had.
    pub cached_tokens: usize,
    /// The tokens generated.
    pub completion_tokens: usize,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// With a token that ends answers, or because a constraint was complete.
    Stop,
    /// With as many tokens as were asked for, or as the model has positions.
    Length,
    /// Nobody waits for it any more, or the engine stops.
    Aborted,
    /// The model or a constraint failed, in words.
    Failed(String),
}
