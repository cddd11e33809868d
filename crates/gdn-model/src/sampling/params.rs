//! How a token is chosen.

use std::fmt::Display;

use crate::{Choice, Error, Result};

/// How a token is chosen. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// What logits are divided by, at least 0. With 0 the most likely token is
    /// chosen, and top-k, top-p and min-p play no part.
    pub temperature: f32,
    /// Leaves this many most likely tokens; 0 leaves all.
    pub top_k: usize,
    /// Leaves the most likely tokens up to the one with which their probabilities
    /// add up to this, above 0 and at most 1.
    pub top_p: f32,
    /// Leaves tokens at least this many times as likely as the most likely, 0 to 1.
    pub min_p: f32,
    /// Divides positive logits of tokens that the prompt or the answer holds, and
    /// multiplies negative ones, above 0; 1 changes nothing.
    pub repetition_penalty: f32,
    /// What a logit loses if its token was generated before, −2 to 2.
    pub presence_penalty: f32,
    /// What a logit loses each time that its token was generated before, −2 to 2.
    pub frequency_penalty: f32,
    /// What is added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// What random numbers come from.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// The choice of the token behind `step` others; without biases and penalties, for
    /// which see [`changes_logits`](Self::changes_logits).
    pub fn choice(&self, step: u64) -> Choice {
        Choice {
            temperature: self.temperature,
            top_k: u32::try_from(self.top_k).unwrap_or(0),
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
            step,
        }
    }

    /// Whether a bias or a penalty changes logits before a choice.
    pub fn changes_logits(&self) -> bool {
        self.penalises() || !self.logit_bias.is_empty()
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`Error::Sampling`], which names the field.
    pub fn validate(&self) -> Result<()> {
        let &Self { temperature, top_p, min_p, repetition_penalty, .. } = self;
        let finite = |x: f32| x.is_finite();
        let in_two = |x: f32| (-2.0..=2.0).contains(&x);
        let (presence, frequency) = (self.presence_penalty, self.frequency_penalty);
        let ranges = [
            ("temperature", temperature, finite(temperature) && temperature >= 0.0, "at least 0"),
            ("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", min_p, (0.0..=1.0).contains(&min_p), "0 to 1"),
            (
                "repetition_penalty",
                repetition_penalty,
                finite(repetition_penalty) && repetition_penalty > 0.0,
                "above 0",
            ),
            ("presence_penalty", presence, in_two(presence), "-2 to 2"),
            ("frequency_penalty", frequency, in_two(frequency), "-2 to 2"),
        ];
        for (name, got, fine, range) in ranges {
            check(name, fine, &format!("a number, {range}"), &got)?;
        }
        for &(token, bias) in &self.logit_bias {
            check(
                "logit_bias",
                finite(bias),
                &format!("a finite number for token {token}"),
                &bias,
            )?;
        }
        Ok(())
    }

    /// Checks that every biased token is one of `vocab`.
    ///
    /// # Errors
    /// [`Error::Sampling`].
    pub fn validate_tokens(&self, vocab: usize) -> Result<()> {
        let outside = |(token, _): &&(u32, f32)| *token as usize >= vocab;
        match self.logit_bias.iter().find(outside) {
            Some(token) => check("logit_bias", false, &format!("tokens below {vocab}"), &token.0),
            None => Ok(()),
        }
    }

    pub(super) fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

fn check(name: &'static str, fine: bool, expected: &str, got: &dyn Display) -> Result<()> {
    if fine {
        return Ok(());
    }
    Err(Error::Sampling { name, expected: expected.to_owned(), got: got.to_string() })
}
