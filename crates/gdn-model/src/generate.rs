//! Greedy generation.

use crate::{Error, Model, Result, Sequence};

impl Model {
    /// Runs `tokens`, then again and again what comes out as the most likely next
    /// token, until there are `limit` of these, one is in `stop`, or the sequence or
    /// its memory is full; returns them.
    ///
    /// A stop token is the last of the result. The sequence has seen all but
    /// the last: to go on, call this with it as `tokens`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn generate_greedy(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        limit: usize,
        stop: &[u32],
    ) -> Result<Vec<u32>> {
        let mut generated = Vec::new();
        let mut next = self.greedy(sequence, tokens)?;
        while generated.len() < limit {
            generated.push(next);
            if generated.len() == limit || stop.contains(&next) {
                break;
            }
            next = match self.greedy(sequence, &[next]) {
                Err(Error::TooLong { .. } | Error::NoPages { .. }) => break,
                next => next?,
            };
        }
        Ok(generated)
    }
}
