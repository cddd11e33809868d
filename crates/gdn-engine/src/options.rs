//! How an engine runs.

/// How an engine runs. [`Engine::model_options`](crate::Engine::model_options) says what
/// a model needs for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineOptions {
    /// The requests that run at once; a state slot each.
    pub max_running_requests: usize,
    /// The requests that wait beyond those; more are refused.
    pub max_queued_requests: usize,
    /// The tokens of prompts that a step takes, if nothing is generated in it.
    pub chunked_prefill_size: usize,
    /// The same for a step that generates too, at the most: fewer are taken where they would
    /// make answers wait for twice as long as without them.
    pub mixed_prefill_size: usize,
    /// The state slots of the prefix cache; 0 for none.
    pub cached_sequences: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_running_requests: 8,
            max_queued_requests: 1024,
            chunked_prefill_size: 2048,
            mixed_prefill_size: 768,
            cached_sequences: 8,
        }
    }
}
