//! The next token out of logits: the highest, or drawn at random.
//!
//! A drawn token is the one with the highest `logit / temperature + Gumbel noise`, an exact
//! draw from the softmax. Noise is a function of seed, step and token alone, and all that
//! decides is computed in integers or, operation by operation, in the same floats: CPU and
//! GPU give the same token for the same logits, whatever the other rows.
//!
//! Filters in this order: `min_p` keeps what is that share of the best or more likely,
//! `top_k` the k best, `top_p` the fewest best that together have this share of what is left.

pub(crate) mod cpu;
pub(crate) mod cuda;

/// How a device chooses a token of its own logits. The default takes the most likely
/// one, the first of equals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What logits are divided by; below 1e-5 the highest wins.
    pub temperature: f32,
    /// Leaves this many most likely tokens; 0 leaves all.
    pub top_k: u32,
    /// Leaves the most likely tokens up to the one with which their probabilities add
    /// up to this; 1 leaves all.
    pub top_p: f32,
    /// Leaves tokens at least this many times as likely as the most likely; 0 leaves
    /// all.
    pub min_p: f32,
    /// What random numbers come from.
    pub seed: u64,
    /// Counts the draws of a seed.
    pub step: u64,
}

impl Default for Choice {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0, step: 0 }
    }
}

#[cfg(test)]
mod tests;
