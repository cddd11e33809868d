//! Log probabilities out of logits.

use crate::Logprobs;

/// The log probabilities of a row of logits.
pub(crate) struct LogSoftmax<'a> {
    logits: &'a [f32],
    /// The logarithm of the sum of all exponentials.
    normaliser: f64,
}

impl<'a> LogSoftmax<'a> {
    /// Of at least one logit.
    pub(crate) fn new(logits: &'a [f32]) -> Self {
        let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - most).exp()).sum();
        Self { logits, normaliser: most + sum.ln() }
    }

    /// Of a token, and of the `count` most likely.
    pub(crate) fn of(&self, token: u32, count: usize) -> Logprobs {
        let at = |token: u32| (f64::from(self.logits[token as usize]) - self.normaliser) as f32;
        let top = self.top(count).into_iter().map(|token| (token, at(token))).collect();
        Logprobs { logprob: at(token), top }
    }

    /// The most likely tokens, the lowest of equals first.
    fn top(&self, count: usize) -> Vec<u32> {
        let before = |&a: &u32, &b: &u32| {
            let [x, y] = [a, b].map(|token| self.logits[token as usize]);
            y.total_cmp(&x).then(a.cmp(&b))
        };
        let mut tokens: Vec<u32> = (0..self.logits.len() as u32).collect();
        let count = count.min(tokens.len());
        if count < tokens.len() {
            tokens.select_nth_unstable_by(count, before);
            tokens.truncate(count);
        }
        tokens.sort_unstable_by(before);
        tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_row() {
        let logits = [1.0, 3.0, f32::NEG_INFINITY, 3.0, 2.0];
        let sum: f64 = [1.0f64, 3.0, 3.0, 2.0].iter().map(|x| x.exp()).sum();
        let row = LogSoftmax::new(&logits);
        let got = row.of(4, 3);
        let expected = |x: f64| (x - sum.ln()) as f32;
        assert!((got.logprob - expected(2.0)).abs() < 1e-6);
        assert_eq!(got.top.iter().map(|top| top.0).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(got.top[2].1, got.logprob, "one number, wherever it is read");
        assert_eq!(row.of(2, 0), Logprobs { logprob: f32::NEG_INFINITY, top: vec![] });
        assert_eq!(row.of(0, 9).top.len(), 5);
        // Far from zero, where exponentials alone would overflow.
        let far = LogSoftmax::new(&[1000.0, 1000.0]).of(0, 0).logprob;
        assert!((far + 2f32.ln()).abs() < 1e-6);
    }
}
