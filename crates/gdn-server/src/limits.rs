//! What a request may ask for at most.

/// Answers to a prompt.
pub(crate) const CHOICES: usize = 128;
/// Prompts of a request, and answers to all of them together.
pub(crate) const PROMPTS: usize = 1024;
/// Texts that end an answer.
pub(crate) const STOPS: usize = 16;
/// Bytes of such a text.
pub(crate) const STOP_BYTES: usize = 1024;
/// Tokens that end an answer.
pub(crate) const STOP_TOKENS: usize = 128;
/// Likely tokens beside each one.
pub(crate) const TOP_LOGPROBS: usize = 20;
/// Tokens with a bias.
pub(crate) const BIASES: usize = 1024;
/// Messages of a conversation.
pub(crate) const MESSAGES: usize = 4096;
/// Tools of a conversation.
pub(crate) const TOOLS: usize = 128;
