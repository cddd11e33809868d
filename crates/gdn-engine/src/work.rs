//! A request under way: what comes of logits.

use gdn_model::{Choice, Sampler};
use tokio::sync::mpsc::UnboundedSender;

use crate::{Event, FinishReason, Finished, Logprobs, Request, logprobs::LogSoftmax};

/// A request, what it said and how far it is.
#[derive(Debug)]
pub(crate) struct Work {
    request: Request,
    prompt_len: usize,
    generated: usize,
    sampler: Sampler,
    events: UnboundedSender<Event>,
    /// Tokens of the prompt that the prefix cache had, when it started first.
    cached: Option<usize>,
    prompt: PromptLogprobs,
    ended: Option<FinishReason>,
}

/// What is known of the prompt's tokens.
#[derive(Debug)]
enum PromptLogprobs {
    /// They were not asked for, or are said.
    Done,
    /// Those of the first tokens.
    Under(Vec<Option<Logprobs>>),
}

impl Work {
    /// A request that was checked, without its prompt, whose length is given.
    pub(crate) fn new(request: Request, prompt_len: usize, events: UnboundedSender<Event>) -> Self {
        let prompt = match request.prompt_logprobs {
            Some(_) => PromptLogprobs::Under(vec![None]),
            None => PromptLogprobs::Done,
        };
        let (generated, cached, ended) = (0, None, None);
        let sampler = Sampler::new(request.sampling.clone(), prompt_len);
        let sampler = sampler.expect("checked when it was submitted");
        Self { request, prompt_len, generated, sampler, events, cached, prompt, ended }
    }

    pub(crate) fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Whether anybody waits for it.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.events.is_closed()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Why it ended, once.
    pub(crate) fn take_end(&mut self) -> Option<FinishReason> {
        self.ended.take()
    }

    /// Hears how many tokens of the prompt were known; whether that is new.
    pub(crate) fn start(&mut self, cached: usize) -> bool {
        let first = self.cached.is_none();
        if first {
            self.cached = Some(cached);
            self.say(Event::Started { cached_tokens: cached });
        }
        first
    }

    /// Whether every token of its prompt is to be run, with logits.
    pub(crate) fn scores_prompt(&self) -> bool {
        self.request.prompt_logprobs.is_some()
    }

    /// Whether the logits of tokens from `start` on say something of the prompt.
    pub(crate) fn reads_prompt(&self, start: usize) -> bool {
        matches!(self.prompt, PromptLogprobs::Under(_)) && start < self.prompt_len
    }

    /// Whether a token comes behind all that there are.
    pub(crate) fn generates(&self) -> bool {
        self.request.max_tokens > 0
    }

    /// Whether the host reads the logits of the next token.
    pub(crate) fn reads_logits(&self) -> bool {
        let Request { sampling, logprobs, constraint, .. } = &self.request;
        sampling.changes_logits()
            || logprobs.is_some()
            || constraint.is_some()
            || self.holds_back_stops()
    }

    fn holds_back_stops(&self) -> bool {
        self.generated < self.request.min_tokens && !self.request.stop_tokens.is_empty()
    }

    /// How a device chooses the next token.
    pub(crate) fn choice(&self) -> Choice {
        self.request.sampling.choice(self.generated as u64)
    }

    /// Hears the logits `[rows, vocab]` behind the tokens from `start` on.
    pub(crate) fn hear_prompt(
        &mut self,
        tokens: &[u32],
        start: usize,
        logits: &[f32],
        vocab: usize,
    ) {
        let PromptLogprobs::Under(known) = &mut self.prompt else { return };
        let count = self.request.prompt_logprobs.unwrap_or(0);
        for (row, of) in logits.chunks_exact(vocab).zip(start + 1..self.prompt_len) {
            // A second start says what is known already.
            if of == known.len() {
                known.push(Some(LogSoftmax::new(row).of(tokens[of], count)));
            }
        }
        if known.len() == self.prompt_len {
            let known = std::mem::take(known);
            self.prompt = PromptLogprobs::Done;
            self.say(Event::Prompt(known));
        }
    }

    /// Adds the next token to `tokens`: the one that the device chose, or one of `logits`. A
    /// sequence has at most `limit` tokens.
    pub(crate) fn generate(
        &mut self,
        tokens: &mut Vec<u32>,
        chosen: u32,
        logits: Option<Vec<f32>>,
        limit: usize,
    ) {
        match self.choose(tokens, chosen, logits) {
            Ok((token, logprobs, complete)) => {
                tokens.push(token);
                self.generated += 1;
                self.say(Event::Token { token, logprobs });
                if complete || self.request.stop_tokens.contains(&token) {
                    self.ended = Some(FinishReason::Stop);
                } else if self.generated == self.request.max_tokens || tokens.len() >= limit {
                    self.ended = Some(FinishReason::Length);
                }
            }
            Err(reason) => self.ended = Some(FinishReason::Failed(reason)),
        }
    }

    /// A token, what is said of it, and whether the answer is complete with it.
    fn choose(
        &mut self,
        tokens: &[u32],
        chosen: u32,
        logits: Option<Vec<f32>>,
    ) -> Result<(u32, Option<Logprobs>, bool), String> {
        let Some(mut logits) = logits else { return Ok((chosen, None, false)) };
        let raw = self.request.logprobs.map(|count| (count, logits.clone()));
        let holds_back = self.holds_back_stops();
        let Request { sampling, stop_tokens, constraint, .. } = &mut self.request;
        let mut changed = sampling.changes_logits();
        if let Some(constraint) = constraint {
            constraint.mask(&mut logits)?;
            changed = true;
        }
        // A form that nothing can follow ends the answer all the same.
        let goes_on = |(token, &logit): (usize, &f32)| {
            logit > f32::NEG_INFINITY && !stop_tokens.contains(&(token as u32))
        };
        if holds_back && (constraint.is_none() || logits.iter().enumerate().any(goes_on)) {
            for &token in &*stop_tokens {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
            changed = true;
        }
        let token = if changed {
            self.sampler.sample(&mut logits, tokens).map_err(|error| error.to_string())?
        } else {
            chosen
        };
        let complete = match constraint {
            Some(constraint) => constraint.accept(token)?,
            None => false,
        };
        let logprobs = raw.map(|(count, raw)| LogSoftmax::new(&raw).of(token, count));
        Ok((token, logprobs, complete))
    }

    /// All tokens of a prompt that nothing is generated behind were seen.
    pub(crate) fn end_of_prompt(&mut self) {
        self.ended = Some(FinishReason::Length);
    }

    /// Says how it ended.
    pub(crate) fn finish(self, reason: FinishReason) {
        let Self { prompt_len, cached, generated, .. } = self;
        let _ = self.events.send(Event::Finished(Finished {
            reason,
            prompt_tokens: prompt_len,
            cached_tokens: cached.unwrap_or(0),
            completion_tokens: generated,
        }));
    }

    fn say(&self, event: Event) {
        // Who is not there any more will be found out before the next step.
        let _ = self.events.send(event);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    /// A request that lost its memory in the middle of its prompt says all once, as it was.
    #[test]
    fn a_prompt_that_starts_again() {
        let (events, mut heard) = unbounded_channel();
        let request = Request { prompt_logprobs: Some(1), ..Request::default() };
        let tokens = [2, 0, 1, 2];
        let mut work = Work::new(request, tokens.len(), events);
        // Rows that put all on one token, and that a second pass does not repeat.
        let row = |best: usize, high: f32| {
            let mut row = [0.0; 3];
            row[best] = high;
            row
        };
        work.hear_prompt(&tokens, 0, &[row(0, 50.0), row(1, 50.0)].concat(), 3);
        assert!(work.reads_prompt(0) && heard.try_recv().is_err());
        let again = [row(0, 9.0), row(1, 9.0), row(2, 9.0), row(0, 9.0)];
        work.hear_prompt(&tokens, 0, &again.concat(), 3);
        let Ok(Event::Prompt(said)) = heard.try_recv() else { panic!("it is complete") };
        let said: Vec<_> =
            said.iter().map(|l| l.as_ref().map(|l| (l.top[0].0, l.logprob))).collect();
        assert_eq!(said[..3], [None, Some((0, 0.0)), Some((1, 0.0))]);
        assert!(matches!(said[3], Some((2, logprob)) if logprob < -1e-5));
        assert_eq!(said.len(), 4);
        assert!(!work.reads_prompt(0));
    }
}
