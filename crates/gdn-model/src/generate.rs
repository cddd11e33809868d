//! Greedy generation.

use crate::{Model, Result, Sequence};

impl Model {
    /// Runs `tokens`, then again and again what comes out as the most likely next
    /// token, until there are `limit` of these or one is in `stop`; returns them.
    ///
    /// A stop token is the last of the result. The sequence has seen all but
    /// the last: to go on, call this with it as `tokens`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward): for bad `tokens` before anything was run, but
    /// [`Error::TooLong`](crate::Error::TooLong) also later, when the sequence is
    /// full; what was generated is lost then.
    pub fn generate_greedy(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        limit: usize,
        stop: &[u32],
    ) -> Result<Vec<u32>> {
        let mut generated = Vec::new();
        let mut logits = self.forward(sequence, tokens)?;
        while generated.len() < limit {
            let next = most_likely(&logits);
            generated.push(next);
            if generated.len() == limit || stop.contains(&next) {
                break;
            }
            logits = self.forward(sequence, &[next])?;
        }
        Ok(generated)
    }
}

/// The token with the highest logit, the first of equals.
fn most_likely(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}
