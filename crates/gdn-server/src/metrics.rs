//! What is counted, for Prometheus.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use gdn_engine::{Engine, Stats};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::Histogram,
    },
    registry::Registry,
};

/// Seconds to a first token, and to a last.
const LONG: [f64; 16] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0,
];
/// Seconds of a token.
const SHORT: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    finish_reason: &'static str,
}

/// What a server counts, beside what its engine does.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Ended, Counter>,
    ttft: Histogram,
    tpot: Histogram,
    e2e: Histogram,
}

impl Metrics {
    pub(crate) fn new(engine: Engine) -> Self {
        let mut registry = Registry::with_prefix("gdn");
        let requests = Family::<Ended, Counter>::default();
        let [ttft, e2e] = [(); 2].map(|()| Histogram::new(LONG));
        let tpot = Histogram::new(SHORT);
        registry.register("requests", "Answers that ended, by why", requests.clone());
        registry.register(
            "time_to_first_token_seconds",
            "From the arrival of a request to the first token of an answer",
            ttft.clone(),
        );
        registry.register(
            "time_per_output_token_seconds",
            "From the first token of an answer to its last, over the tokens behind the first",
            tpot.clone(),
        );
        registry.register(
            "e2e_request_latency_seconds",
            "From the arrival of a request to the last token of an answer",
            e2e.clone(),
        );
        registry.register_collector(Box::new(OfEngine(engine)));
        Self { registry, requests, ttft, tpot, e2e }
    }

    /// All of them, in the text format of OpenMetrics.
    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Times an answer.
#[derive(Debug)]
pub(crate) struct Clock {
    metrics: Arc<Metrics>,
    start: Instant,
    /// Of the first token and the last.
    tokens: Option<(Instant, Instant)>,
    count: u32,
    ended: bool,
}

impl Clock {
    pub(crate) fn start(metrics: &Arc<Metrics>, start: Instant) -> Self {
        Self { metrics: metrics.clone(), start, tokens: None, count: 0, ended: false }
    }

    /// A token came.
    pub(crate) fn token(&mut self) {
        let now = Instant::now();
        self.count += 1;
        let first = match self.tokens {
            Some((first, _)) => first,
            None => {
                self.metrics.ttft.observe((now - self.start).as_secs_f64());
                now
            }
        };
        self.tokens = Some((first, now));
    }

    /// The answer ended.
    pub(crate) fn end(&mut self, finish_reason: &'static str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.metrics.requests.get_or_create(&Ended { finish_reason }).inc();
        self.metrics.e2e.observe(self.start.elapsed().as_secs_f64());
        if let (Some((first, last)), Some(behind @ 1..)) = (self.tokens, self.count.checked_sub(1))
        {
            self.metrics.tpot.observe((last - first).as_secs_f64() / f64::from(behind));
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        // Nobody waited for the rest.
        self.end("abort");
    }
}

/// What an engine counts, read when it is asked for.
#[derive(Debug)]
struct OfEngine(Engine);

impl Collector for OfEngine {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Stats {
            queued,
            running,
            slots_used,
            slots_cached,
            slots,
            pages_used,
            pages,
            prompt_tokens,
            cached_tokens,
            generated_tokens,
            steps,
            preemptions,
            ..
        } = self.0.stats();
        let gauges = [
            ("queued_requests", "Requests that wait to start", queued),
            ("running_requests", "Requests that run", running),
            ("state_slots_used", "State slots that requests hold", slots_used),
            ("state_slots_cached", "State slots of the prefix cache that are full", slots_cached),
            ("state_slots", "All state slots", slots),
            ("kv_pages_used", "Pages of 64 tokens that are held", pages_used),
            ("kv_pages", "All pages", pages),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let encoder = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)?;
        }
        let counters = [
            ("prompt_tokens", "Tokens of prompts that started", prompt_tokens),
            ("cached_tokens", "Those of them that the prefix cache had", cached_tokens),
            ("generation_tokens", "Tokens generated", generated_tokens),
            ("engine_steps", "Steps of the model", steps),
            ("preemptions", "Requests that gave back their pages to start again", preemptions),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            let encoder = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(encoder)?;
        }
        Ok(())
    }
}
