//! From logits to a token.

mod params;

pub use self::params::SamplingParams;
use crate::{Error, Result, ops::sample::cpu::sample};

/// Chooses tokens by [`SamplingParams`].
///
/// Nothing of one choice goes into the next: it is a function of the parameters,
/// the logits and the tokens so far. The random number of a choice depends on the
/// seed and on how many tokens were generated before, and on nothing else.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    prompt_len: usize,
    seen: Vec<u32>,
}

impl Sampler {
    /// A sampler for a sequence whose first `prompt_len` tokens are its prompt.
    ///
    /// # Errors
    /// As [`SamplingParams::validate`].
    pub fn new(params: SamplingParams, prompt_len: usize) -> Result<Self> {
        params.validate()?;
        Ok(Self { params, prompt_len, seen: Vec::new() })
    }

    /// What it chooses by.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Chooses the token behind `history`, the prompt and what was generated since.
    ///
    /// First come biases and penalties, which change `logits` in place: the
    /// repetition penalty on every token of `history`, those of presence and
    /// frequency on what was generated. At temperature 0 the token with the highest
    /// logit follows, the first of equals. Else logits are divided by the
    /// temperature, and min-p, top-k and top-p, in this order, each leave the most
    /// likely of what there is; one of these is drawn, as a device draws by a
    /// [`Choice`](crate::Choice).
    ///
    /// # Errors
    /// [`Error::Logits`] if there are none, if one is NaN or +∞, or all are −∞;
    /// [`Error::Sampling`] if a biased token is not among them, or `history` is
    /// shorter than the prompt; [`Error::Token`] for a token of `history` that is not
    /// among them. `logits` are unchanged then.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32> {
        self.check(logits, history)?;
        self.penalise(logits, history);
        let step = history.len() - self.prompt_len;
        Ok(sample(logits, &self.params.choice(step as u64)))
    }

    fn check(&self, logits: &[f32], history: &[u32]) -> Result<()> {
        let vocab = logits.len();
        if let Some(index) =
            logits.iter().position(|&logit| logit.is_nan() || logit == f32::INFINITY)
        {
            let expected = "a number below infinity";
            return Err(Error::Logits { index, expected, got: logits[index] });
        }
        if logits.iter().all(|&logit| logit == f32::NEG_INFINITY) {
            let expected = "at least one token that is possible";
            return Err(Error::Logits { index: 0, expected, got: f32::NEG_INFINITY });
        }
        self.params.validate_tokens(vocab)?;
        if history.len() < self.prompt_len {
            return Err(Error::Sampling {
                name: "history",
                expected: format!("at least the {} tokens of the prompt", self.prompt_len),
                got: history.len().to_string(),
            });
        }
        match history.iter().position(|&token| token as usize >= vocab) {
            Some(index) if self.params.penalises() => {
                Err(Error::Token { index, vocab, got: history[index] })
            }
            _ => Ok(()),
        }
    }

    fn penalise(&mut self, logits: &mut [f32], history: &[u32]) {
        let params = &self.params;
        for &(token, bias) in &params.logit_bias {
            logits[token as usize] += bias;
        }
        if params.repetition_penalty != 1.0 {
            for token in sorted(&mut self.seen, history).chunk_by(|a, b| a == b) {
                let logit = &mut logits[token[0] as usize];
                let penalty = params.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
        if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
            let generated = &history[self.prompt_len..];
            for token in sorted(&mut self.seen, generated).chunk_by(|a, b| a == b) {
                let count = token.len() as f32;
                let penalty = params.frequency_penalty * count + params.presence_penalty;
                logits[token[0] as usize] -= penalty;
            }
        }
    }
}

fn sorted<'a>(buffer: &'a mut Vec<u32>, tokens: &[u32]) -> &'a [u32] {
    buffer.clear();
    buffer.extend(tokens);
    buffer.sort_unstable();
    buffer
}
