//! What an engine counts.

/// What an engine does right now, and did since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Requests that wait to start.
    pub queued: usize,
    /// Requests that run.
    pub running: usize,
    /// State slots that requests hold.
    pub slots_used: usize,
    /// State slots of the prefix cache that hold something.
    pub slots_cached: usize,
    /// All state slots.
    pub slots: usize,
    /// Pages of 64 tokens that requests or the prefix cache hold.
    pub pages_used: usize,
    /// All pages.
    pub pages: usize,
    /// Tokens of prompts of requests that started, those from the prefix cache too.
    pub prompt_tokens: u64,
    /// Those of them that came from the prefix cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Steps of the model.
    pub steps: u64,
    /// Requests that gave back their pages and started again.
    pub preemptions: u64,
    /// Requests that ended by themselves.
    pub finished: u64,
    /// Requests that nobody waited for any more.
    pub aborted: u64,
    /// Requests that failed.
    pub failed: u64,
}
