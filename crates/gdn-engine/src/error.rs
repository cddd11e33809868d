//! Why a request is not taken.

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// As many wait as may.
    #[error("the queue is full: {limit} requests wait; try again later")]
    QueueFull {
        /// The option `max_queued_requests`.
        limit: usize,
    },
    /// The engine stops, or its thread has died.
    #[error("the engine stops; ask another one")]
    Stopping,
    /// A prompt without tokens.
    #[error("prompt: expected at least 1 token, got 0")]
    NoTokens,
    /// More tokens than a sequence can have.
    #[error("prompt: expected at most {limit} tokens, got {got}; shorten it")]
    TooLong {
        /// The tokens that the model has positions for, or the engine memory.
        limit: usize,
        /// The tokens of the prompt.
        got: usize,
    },
    /// A token outside the vocabulary, or a sampling parameter out of its range.
    #[error(transparent)]
    Invalid(#[from] gdn_model::Error),
}
