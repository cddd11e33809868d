//! What a load comes to, by the definitions of SGLang's bench_serving.

use serde::Serialize;

use super::{api::Request, timeline::Answer};
use crate::bench::stats::quantile;

/// Counts, rates, and distributions of times.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) duration_s: f64,
    pub(super) completed: usize,
    pub(super) failed: usize,
    pub(super) input_tokens: usize,
    pub(super) output_tokens: usize,
    /// Tokens of the answers' text, where there is a tokenizer.
    pub(super) retokenized_tokens: Option<usize>,
    /// The most tokens in a second, and the most requests under way in one.
    pub(super) peak: Peak,
    /// The sum of all latencies over the duration.
    pub(super) concurrency: f64,
    /// Tokens a step of a server with speculation.
    pub(super) accept_length: Option<f64>,
    pub(super) e2e: Distribution,
    pub(super) ttft: Distribution,
    pub(super) tpot: Distribution,
    pub(super) itl: Distribution,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Peak {
    pub(super) tokens_per_s: usize,
    pub(super) requests: usize,
}

/// A sample of seconds, sorted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Distribution(Vec<f64>);

pub(super) type Count<'a> = dyn Fn(&str) -> anyhow::Result<usize> + 'a;

/// What metrics need beside the answers.
pub(super) struct Context<'a> {
    pub(super) duration_s: f64,
    /// Counts the tokens of a text, where there is a tokenizer.
    pub(super) count: Option<&'a Count<'a>>,
    pub(super) accept_length: Option<f64>,
    /// Whether pieces of text say how many tokens came at once.
    pub(super) pieces: bool,
}

impl Metrics {
    /// Of requests and what came of each; `None` where it failed.
    pub(super) fn of(
        requests: &[Request],
        answers: &[Option<&Answer>],
        context: &Context<'_>,
    ) -> anyhow::Result<Self> {
        let answered = || answers.iter().flatten();
        let mut retokenized_tokens = context.count.map(|_| 0);
        let mut itls = Vec::new();
        for answer in answered() {
            if let (Some(total), Some(count)) = (&mut retokenized_tokens, context.count) {
                *total += count(&answer.text)?;
            }
            match context.count {
                // With speculation a piece holds several tokens: each takes its share.
                Some(count) if context.pieces && context.accept_length.is_some() => {
                    for (itl, piece) in answer.itls.iter().zip(&answer.pieces) {
                        let tokens = count(piece)?.max(1);
                        itls.extend(vec![itl / tokens as f64; tokens]);
                    }
                }
                _ => itls.extend_from_slice(&answer.itls),
            }
        }
        let completed = answered().count();
        let tpots = answered().filter(|answer| answer.output_len > 1);
        let prompts = requests.iter().zip(answers).filter(|(_, answer)| answer.is_some());
        let latencies = || answered().map(|answer| answer.latency);
        Ok(Self {
            duration_s: context.duration_s,
            completed,
            failed: answers.len() - completed,
            input_tokens: prompts.map(|(request, _)| request.prompt_len).sum(),
            output_tokens: answered().map(|answer| answer.output_len).sum(),
            retokenized_tokens,
            peak: Peak::of(answered().copied()),
            concurrency: latencies().sum::<f64>() / context.duration_s,
            accept_length: context.accept_length,
            e2e: Distribution::of(latencies()),
            ttft: Distribution::of(answered().map(|answer| answer.ttft)),
            tpot: Distribution::of(
                tpots.map(|answer| (answer.latency - answer.ttft) / (answer.output_len - 1) as f64),
            ),
            itl: Distribution::of(itls),
        })
    }

    pub(super) fn per_s(&self, count: usize) -> f64 {
        count as f64 / self.duration_s
    }
}

impl Peak {
    /// The busiest of the seconds since the first request was sent.
    fn of<'a>(answers: impl Iterator<Item = &'a Answer> + Clone) -> Self {
        let start = answers.clone().map(|answer| answer.start).fold(f64::INFINITY, f64::min);
        let end = answers.clone().map(|answer| answer.start + answer.latency).fold(start, f64::max);
        if !start.is_finite() {
            return Self::default();
        }
        let second = |time: f64| (time - start) as usize;
        let mut tokens = vec![0; second(end) + 1];
        let mut requests = tokens.clone();
        for answer in answers {
            let mut time = answer.start + answer.ttft;
            tokens[second(time)] += 1;
            for itl in &answer.itls {
                time += itl;
                // Sums of spans round: the last may come after the end.
                tokens[second(time.min(end))] += 1;
            }
            for count in &mut requests[second(answer.start)..=second(answer.start + answer.latency)]
            {
                *count += 1;
            }
        }
        let most = |counts: Vec<usize>| counts.into_iter().max().unwrap_or(0);
        Self { tokens_per_s: most(tokens), requests: most(requests) }
    }
}

impl Distribution {
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        Self(values)
    }

    pub(super) fn values(&self) -> &[f64] {
        &self.0
    }

    /// The value that `percent` of all are not above, interpolated; 0 of nothing.
    pub(super) fn percentile(&self, percent: f64) -> f64 {
        match self.0.is_empty() {
            true => 0.0,
            false => quantile(&self.0, percent / 100.0),
        }
    }

    pub(super) fn median(&self) -> f64 {
        self.percentile(50.0)
    }

    pub(super) fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(0.0)
    }

    pub(super) fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len().max(1) as f64
    }

    /// The standard deviation of all that there is, not of a sample of more.
    pub(super) fn std(&self) -> f64 {
        let mean = self.mean();
        Self(self.0.iter().map(|value| (value - mean).powi(2)).collect()).mean().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_serving::api::Prompt;

    fn request(prompt_len: usize) -> Request {
        Request { prompt: Prompt::Text(String::new()), prompt_len, output_len: 99 }
    }

    fn answer(start: f64, latency: f64, ttft: f64, itls: &[f64], output_len: usize) -> Answer {
        let pieces = itls.iter().map(|_| "a b".to_owned()).collect();
        let text = "a b c".to_owned();
        Answer { start, latency, ttft, itls: itls.to_vec(), pieces, text, output_len }
    }

    fn words(text: &str) -> anyhow::Result<usize> {
        Ok(text.split_whitespace().count())
    }

    const PLAIN: Context<'_> =
        Context { duration_s: 4.0, count: None, accept_length: None, pieces: true };

    #[test]
    fn metrics_are_what_a_hand_computes() {
        let requests = [request(10), request(20), request(40), request(80)];
        let long = answer(0.0, 2.0, 0.5, &[0.5, 1.0], 4);
        let short = answer(0.25, 1.5, 1.0, &[], 1);
        let slow = answer(2.0, 2.0, 1.0, &[0.25, 0.75], 3);
        let answers = [Some(&long), None, Some(&short), Some(&slow)];
        let metrics = Metrics::of(&requests, &answers, &PLAIN).unwrap();
        assert_eq!((metrics.completed, metrics.failed), (3, 1));
        // The failed request's prompt does not count.
        assert_eq!((metrics.input_tokens, metrics.output_tokens), (130, 8));
        assert_eq!(metrics.retokenized_tokens, None);
        assert_eq!(metrics.per_s(metrics.completed), 0.75);
        assert_eq!(metrics.concurrency, 5.5 / 4.0);
        assert_eq!(metrics.e2e.values(), [1.5, 2.0, 2.0]);
        assert_eq!(metrics.ttft.values(), [0.5, 1.0, 1.0]);
        // One token has no time per token; (2 − 0.5) / 3 and (2 − 1) / 2 the others.
        assert_eq!(metrics.tpot.values(), [0.5, 0.5]);
        assert_eq!(metrics.itl.values(), [0.25, 0.5, 0.75, 1.0]);
        assert_eq!(metrics.itl.mean(), 0.625);
        assert_eq!(metrics.itl.median(), 0.625);
        assert_eq!(metrics.itl.max(), 1.0);
    }

    #[test]
    fn peaks_are_of_whole_seconds_since_the_first_request() {
        let first = answer(7.0, 2.5, 0.5, &[0.25, 1.0], 3);
        let second = answer(8.5, 0.75, 0.25, &[0.0], 2);
        // Tokens at 0.5 and 0.75, then at 1.75, 1.75 and 1.75; in the second of both
        // requests the two overlap, and in the last one, too.
        let peak = Peak::of([&first, &second].into_iter());
        assert_eq!(peak, Peak { tokens_per_s: 3, requests: 2 });
        assert_eq!(Peak::of([].into_iter()), Peak::default());
    }

    #[test]
    fn text_is_counted_again_where_there_is_a_tokenizer() {
        let one = answer(0.0, 2.0, 0.5, &[0.5, 1.0], 4);
        let context = Context { count: Some(&words), ..PLAIN };
        let metrics = Metrics::of(&[request(1)], &[Some(&one)], &context).unwrap();
        assert_eq!(metrics.retokenized_tokens, Some(3));
        assert_eq!(metrics.itl.values(), [0.5, 1.0]);
        // Each piece is of two words.
        let context = Context { accept_length: Some(2.0), ..context };
        let metrics = Metrics::of(&[request(1)], &[Some(&one)], &context).unwrap();
        assert_eq!(metrics.itl.values(), [0.25, 0.25, 0.5, 0.5]);
    }

    #[test]
    fn nothing_gives_zeros() {
        let metrics = Metrics::of(&[request(1)], &[None], &PLAIN).unwrap();
        assert_eq!((metrics.completed, metrics.failed, metrics.input_tokens), (0, 1, 0));
        let Distribution(values) = &metrics.itl;
        assert!(values.is_empty());
        assert_eq!(metrics.ttft.mean(), 0.0);
        assert_eq!(metrics.ttft.std(), 0.0);
        assert_eq!(metrics.e2e.percentile(99.0), 0.0);
    }

    #[test]
    fn distributions_are_those_of_numpy() {
        let sample = Distribution::of([2.0, 1.0, 4.0, 3.0, 10.0]);
        assert_eq!(sample.mean(), 4.0);
        assert!((sample.std() - 10.0f64.sqrt()).abs() < 1e-12);
        assert!((sample.percentile(90.0) - 7.6).abs() < 1e-12);
        assert!((sample.percentile(99.0) - 9.76).abs() < 1e-12);
        assert_eq!(sample.percentile(100.0), 10.0);
    }
}
