//! What is printed and written of a load.

use std::{collections::HashMap, fmt::Display, io::Write};

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    args::{BenchServingArgs, Fields},
    metrics::{Distribution, Metrics},
    timeline::Answer,
};
use crate::output::Provenance;

const WIDTH: usize = 50;

/// Prints the block that SGLang's bench_serving prints; what reads that reads this.
pub(super) fn print(
    args: &BenchServingArgs,
    metrics: &Metrics,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let load = &args.load;
    let limit = load.max_concurrency.map_or("not set".to_owned(), |limit| limit.to_string());
    writeln!(out, "\n{:=^WIDTH$}", " Serving Benchmark Result ")?;
    line(out, "Backend:", args.server.backend.name())?;
    line(out, "Traffic request rate:", format!("{:?}", load.request_rate))?;
    line(out, "Max request concurrency:", limit)?;
    line(out, "Successful requests:", metrics.completed)?;
    if metrics.failed > 0 {
        line(out, "Failed requests:", metrics.failed)?;
    }
    rounded(out, "Benchmark duration (s):", metrics.duration_s)?;
    line(out, "Total input tokens:", metrics.input_tokens)?;
    line(out, "Total input text tokens:", metrics.input_tokens)?;
    line(out, "Total generated tokens:", metrics.output_tokens)?;
    if let Some(tokens) = metrics.retokenized_tokens {
        line(out, "Total generated tokens (retokenized):", tokens)?;
    }
    let both = metrics.input_tokens + metrics.output_tokens;
    rounded(out, "Request throughput (req/s):", metrics.per_s(metrics.completed))?;
    rounded(out, "Input token throughput (tok/s):", metrics.per_s(metrics.input_tokens))?;
    rounded(out, "Output token throughput (tok/s):", metrics.per_s(metrics.output_tokens))?;
    rounded(out, "Peak output token throughput (tok/s):", metrics.peak.tokens_per_s as f64)?;
    line(out, "Peak concurrent requests:", metrics.peak.requests)?;
    rounded(out, "Total token throughput (tok/s):", metrics.per_s(both))?;
    rounded(out, "Concurrency:", metrics.concurrency)?;
    if let Some(length) = metrics.accept_length {
        rounded(out, "Accept length:", length)?;
    }
    writeln!(out, "{:-^WIDTH$}", "End-to-End Latency")?;
    times(out, "E2E Latency", &metrics.e2e, &[90, 99])?;
    writeln!(out, "{:-^WIDTH$}", "Time to First Token")?;
    times(out, "TTFT", &metrics.ttft, &[99])?;
    writeln!(out, "{:-^WIDTH$}", "Time per Output Token (excl. 1st token)")?;
    times(out, "TPOT", &metrics.tpot, &[99])?;
    writeln!(out, "{:-^WIDTH$}", "Inter-Token Latency")?;
    times(out, "ITL", &metrics.itl, &[95, 99])?;
    rounded(out, "Max ITL (ms):", 1e3 * metrics.itl.max())?;
    writeln!(out, "{}", "=".repeat(WIDTH))?;
    Ok(())
}

fn line(out: &mut impl Write, label: &str, value: impl Display) -> std::io::Result<()> {
    writeln!(out, "{label:<40} {value:<10}")
}

fn rounded(out: &mut impl Write, label: &str, value: f64) -> std::io::Result<()> {
    writeln!(out, "{label:<40} {value:<10.2}")
}

fn times(
    out: &mut impl Write,
    what: &str,
    seconds: &Distribution,
    percents: &[u32],
) -> std::io::Result<()> {
    rounded(out, &format!("Mean {what} (ms):"), 1e3 * seconds.mean())?;
    rounded(out, &format!("Median {what} (ms):"), 1e3 * seconds.median())?;
    for &percent in percents {
        let value = 1e3 * seconds.percentile(percent.into());
        rounded(out, &format!("P{percent} {what} (ms):"), value)?;
    }
    Ok(())
}

/// The errors that came first, with how many requests each of them cost.
pub(super) fn errors(errors: &[String]) -> Vec<String> {
    const MOST: usize = 3;
    let mut counts = HashMap::new();
    let mut order = Vec::new();
    for error in errors.iter().filter(|error| !error.is_empty()) {
        let count = counts.entry(error).or_insert(0usize);
        *count += 1;
        if *count == 1 {
            order.push(error);
        }
    }
    let mut lines: Vec<_> =
        order.iter().take(MOST).map(|error| format!("{} × {error}", counts[error])).collect();
    if order.len() > MOST {
        lines.push(format!("and {} other errors", order.len() - MOST));
    }
    lines
}

/// A load as JSON.
#[derive(Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    provenance: Provenance,
    model: String,
    prompts: usize,
    failed: usize,
    seed: u64,
    errors: Vec<String>,
    #[serde(flatten)]
    result: Value,
}

/// What is known of a load when it is over.
pub(super) struct Load<'a> {
    pub(super) args: &'a BenchServingArgs,
    pub(super) model: &'a str,
    pub(super) metrics: &'a Metrics,
    /// Of each request.
    pub(super) answers: &'a [Option<&'a Answer>],
    pub(super) prompt_lens: &'a [usize],
    /// Of each request, empty where there was none.
    pub(super) errors: &'a [String],
    pub(super) server_info: Option<&'a Fields>,
}

impl Load<'_> {
    pub(super) fn report(&self) -> Report {
        Report {
            provenance: Provenance::new(None),
            model: self.model.to_owned(),
            prompts: self.answers.len(),
            failed: self.metrics.failed,
            seed: self.args.dataset.seed,
            errors: errors(self.errors),
            result: self.fields(),
        }
    }

    /// The fields that SGLang's bench_serving writes.
    pub(super) fn fields(&self) -> Value {
        let BenchServingArgs { server, dataset, load, output, .. } = self.args;
        let metrics = self.metrics;
        let rate = match load.request_rate.is_finite() {
            true => json!(load.request_rate),
            false => json!("inf"),
        };
        let mut fields = json!({
            "tag": output.tag,
            "backend": server.backend.name(),
            "dataset_name": dataset.dataset_name.name(),
            "request_rate": rate,
            "max_concurrency": load.max_concurrency,
            "sharegpt_output_len": dataset.output_len,
            "random_input_len": dataset.random_input_len,
            "random_output_len": dataset.random_output_len,
            "random_range_ratio": dataset.random_range_ratio,
            "server_info": self.server_info,
            "duration": metrics.duration_s,
            "completed": metrics.completed,
            "total_input_tokens": metrics.input_tokens,
            "total_input_text_tokens": metrics.input_tokens,
            "total_output_tokens": metrics.output_tokens,
            "total_output_tokens_retokenized": metrics.retokenized_tokens,
            "request_throughput": metrics.per_s(metrics.completed),
            "input_throughput": metrics.per_s(metrics.input_tokens),
            "output_throughput": metrics.per_s(metrics.output_tokens),
            "total_throughput": metrics.per_s(metrics.input_tokens + metrics.output_tokens),
            "concurrency": metrics.concurrency,
            "accept_length": metrics.accept_length,
            "max_output_tokens_per_s": metrics.peak.tokens_per_s,
            "max_concurrent_requests": metrics.peak.requests,
        });
        let times: [(&str, &Distribution, &[u32]); 4] = [
            ("e2e_latency", &metrics.e2e, &[90, 99]),
            ("ttft", &metrics.ttft, &[99]),
            ("tpot", &metrics.tpot, &[99]),
            ("itl", &metrics.itl, &[95, 99]),
        ];
        for (what, seconds, percents) in times {
            let mut put = |statistic: &str, seconds: f64| {
                fields[format!("{statistic}_{what}_ms")] = json!(1e3 * seconds);
            };
            put("mean", seconds.mean());
            put("median", seconds.median());
            put("std", seconds.std());
            for &percent in percents {
                put(&format!("p{percent}"), seconds.percentile(percent.into()));
            }
        }
        fields["max_itl_ms"] = json!(1e3 * metrics.itl.max());
        if output.output_details {
            self.add_details(&mut fields);
        }
        fields
    }

    fn add_details(&self, fields: &mut Value) {
        let mut put = |name: &str, values: Value| fields[name] = values;
        put("input_lens", json!(self.prompt_lens));
        put("output_lens", self.of_answers(|answer| json!(answer.output_len), json!(0)));
        put("ttfts", self.of_answers(|answer| json!(answer.ttft), json!(0.0)));
        put("itls", self.of_answers(|answer| json!(answer.itls), json!([])));
        put("generated_texts", self.of_answers(|answer| json!(answer.text), json!("")));
        put("errors", json!(self.errors));
    }

    fn of_answers(&self, value: impl Fn(&Answer) -> Value, missing: Value) -> Value {
        let values = self.answers.iter();
        values.map(|answer| answer.map_or(missing.clone(), &value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_once_with_their_number() {
        let lines = |text: &str| errors(&text.split(',').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(lines("b,,a,b,b"), ["3 × b", "1 × a"]);
        assert_eq!(lines("a,b,c,d,e"), ["1 × a", "1 × b", "1 × c", "and 2 other errors"]);
        assert!(lines(",,").is_empty());
    }
}
