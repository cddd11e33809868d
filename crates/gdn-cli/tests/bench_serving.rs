//! `gdn bench-serving` against a server that answers as slowly as it is told to.

mod fake;

use std::{fs, path::Path};

use assert_cmd::Command;
use predicates::{prelude::PredicateBooleanExt, str::contains};
use serde_json::{Value, json};

use self::fake::{FIRST_MS, NEXT_MS, Server};

const TOKENIZER: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../gdn-model/tests/fixtures/qwen3_5_trained");

fn bench(server: &Server, flags: &str) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("gdn"));
    for name in ["RUST_LOG", "OPENAI_API_KEY"] {
        command.env_remove(name);
    }
    command.args(["bench-serving", "--base-url", &server.url()]).args(flags.split_whitespace());
    command
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A number of the block that is printed.
fn printed(text: &str, label: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    let value = line.unwrap_or_else(|| panic!("no {label} in {text}"));
    value.trim_start_matches(':').trim().parse().unwrap_or_else(|_| panic!("{label}{value}"))
}

/// Six answers of five tokens, two at a time.
const LOAD: &str = "--num-prompts 6 --max-concurrency 2 --random-input-len 8 \
                    --random-output-len 5 --random-range-ratio 1 --warmup-requests 0";

#[test]
fn times_are_those_of_the_server_on_every_route() {
    for (backend, route) in [
        ("sglang", "/generate"),
        ("sglang-oai", "/v1/completions"),
        ("vllm", "/v1/completions"),
        ("sglang-oai-chat", "/v1/chat/completions"),
        ("vllm-chat", "/v1/chat/completions"),
    ] {
        let server = Server::start();
        let flags = format!("--backend {backend} --tokenizer {TOKENIZER} {LOAD}");
        let output = bench(&server, &flags).assert().success();
        let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
        let number = |label: &str| printed(&text, label);

        assert_eq!(number("Successful requests"), 6.0, "{backend}");
        assert_eq!(number("Total input tokens"), 48.0, "{backend}");
        assert_eq!(number("Total generated tokens"), 30.0, "{backend}");
        // "a b c d e", by the tokenizer.
        assert_eq!(number("Total generated tokens (retokenized)"), 30.0, "{backend}");
        // In a second, not at once.
        assert!((2.0..=6.0).contains(&number("Peak concurrent requests")), "{backend}");
        // A machine that is busy is late, and never early.
        let about = |label: &str, ms: f64| {
            let found = number(label);
            assert!((ms - 1.0..3.0 * ms).contains(&found), "{backend}: {label} {found}, not {ms}");
        };
        about("Median TTFT (ms)", FIRST_MS);
        about("Median ITL (ms)", NEXT_MS);
        about("Median TPOT (ms)", NEXT_MS);
        about("Median E2E Latency (ms)", FIRST_MS + 4.0 * NEXT_MS);
        let concurrency = number("Concurrency");
        assert!((1.0..=2.0).contains(&concurrency), "{backend}: {concurrency}");
        assert_eq!(server.requests(route).len(), 6, "{backend}");
        assert_eq!(server.most_at_once(), 2, "{backend}");
    }
}

#[test]
fn without_a_tokenizer_token_ids_are_sent() {
    let server = Server::start();
    let flags = format!("--backend sglang-oai --seed 3 {LOAD}");
    let output = bench(&server, &flags).assert().success();
    output.stdout(contains("retokenized").not()).stderr(contains("first 1000"));
    for body in server.requests("/v1/completions") {
        assert_eq!(body["prompt"].as_array().unwrap().len(), 8);
        assert_eq!(body["model"], "fake");
        assert_eq!(body["max_tokens"], 5);
        assert_eq!(body["ignore_eos"], true);
        assert_eq!(body["stream_options"], json!({"include_usage": true}));
    }
    bench(&server, &format!("--backend sglang {LOAD}")).assert().success();
    let ids = &server.requests("/generate")[0]["input_ids"];
    assert_eq!(ids.as_array().unwrap().len(), 8);
    let chat = bench(&server, &format!("--backend sglang-oai-chat {LOAD}"));
    { chat }.assert().code(2).stderr(contains("--tokenizer"));
}

#[test]
fn flags_reach_the_server() {
    let server = Server::start();
    let flags = format!(
        "--backend vllm --model other --served-model-name name --api-key secret --disable-stream \
         --disable-ignore-eos --flush-cache --disable-tqdm {LOAD}"
    );
    let mut command = bench(&server, &flags);
    command.args(["--extra-request-body", r#"{"temperature": 0.5, "top_k": 3}"#]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bench.json");
    let output = command.arg("--json").arg(&file).assert().success();
    let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    assert_eq!(printed(&text, "Total generated tokens"), 30.0);
    // In one piece there is nothing between tokens, and the first is the last.
    assert_eq!(printed(&text, "Max ITL (ms)"), 0.0);
    assert_eq!(printed(&text, "Mean TTFT (ms)"), printed(&text, "Mean E2E Latency (ms)"));
    for body in server.requests("/v1/completions") {
        assert_eq!(body["model"], "name");
        assert_eq!(body["stream"], false);
        assert_eq!(body["ignore_eos"], false);
        assert_eq!(body["temperature"], 0.5);
        assert_eq!(body["top_k"], 3);
        assert_eq!(body["authorization"], "Bearer secret");
    }
    assert_eq!(server.requests("/flush_cache").len(), 1);
    assert!(!fs::read_to_string(file).unwrap().contains("secret"));
}

#[test]
fn a_warm_up_comes_first_and_is_short() {
    let server = Server::start();
    let flags = "--num-prompts 1 --random-output-len 40 --random-range-ratio 1 --warmup-requests 2";
    bench(&server, flags).assert().success();
    let requests = server.requests("/generate");
    let tokens: Vec<_> =
        requests.iter().map(|body| body["sampling_params"]["max_new_tokens"].clone()).collect();
    assert_eq!(tokens, [32, 32, 40]);
}

#[test]
fn files_hold_what_was_measured() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let [lines, report, plot] =
        ["bench.jsonl", "bench.json", "bench.svg"].map(|name| folder.path().join(name));
    for tag in ["one", "two"] {
        let mut command = bench(&server, &format!("{LOAD} --output-details --tag {tag}"));
        command.arg("--output-file").arg(&lines).arg("--json").arg(&report);
        command.arg("--plot").arg(&plot).assert().success();
    }
    let text = fs::read_to_string(lines).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!([&lines[0]["tag"], &lines[1]["tag"]], ["one", "two"]);
    let line = &lines[1];
    assert_eq!(line["completed"], 6);
    assert_eq!(line["request_rate"], "inf");
    assert_eq!(line["output_lens"], json!([5, 5, 5, 5, 5, 5]));
    assert_eq!(line["itls"][0].as_array().unwrap().len(), 4);
    assert_eq!(line["server_info"]["version"], "fake");
    assert_eq!(line["generated_texts"][0], "a b c d e");
    assert!(line["p99_itl_ms"].as_f64().unwrap() >= line["median_itl_ms"].as_f64().unwrap());
    let report = json(&report);
    assert_eq!(report["completed"], 6);
    assert_eq!(report["median_ttft_ms"], line["median_ttft_ms"]);
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
    let plot = fs::read_to_string(plot).unwrap();
    assert!(plot.starts_with("<svg") && plot.contains("TTFT") && plot.contains("P99"), "{plot}");
}

#[test]
fn failed_requests_are_counted_and_shown() {
    let server = Server::start();
    server.fail_every(3);
    let output = bench(&server, LOAD).assert().success();
    output
        .stdout(contains("Successful requests:                     4 "))
        .stdout(contains("Failed requests:                         2 "))
        .stdout(contains("Total generated tokens:                  20 "))
        .stderr(contains("2 × 503 Service Unavailable: no slot"));
    server.fail_every(1);
    bench(&server, LOAD).assert().code(1).stdout(contains("Failed requests:"));
    bench(&server, &LOAD.replace("requests 0", "requests 2"))
        .assert()
        .code(1)
        .stderr(contains("before the load").and(contains("no slot")));
    server.fail_every(0);
    server.cut_off(true);
    bench(&server, LOAD).assert().code(1).stderr(contains("6 × the answer was cut off"));
}

#[test]
fn a_server_that_is_not_ready_is_waited_for() {
    let server = Server::start();
    server.ready_after(3);
    bench(&server, LOAD).assert().success().stderr(contains("waiting for http://127.0.0.1"));
    server.ready_after(1_000_000);
    bench(&server, &format!("--ready-timeout 1 {LOAD}"))
        .assert()
        .code(1)
        .stderr(contains("after 1 s").and(contains("503")));
    let gone = "bench-serving --port 9 --ready-timeout 0";
    Command::new(assert_cmd::cargo::cargo_bin!("gdn"))
        .args(gone.split_whitespace())
        .assert()
        .code(1)
        .stderr(contains("no server is ready at http://127.0.0.1:9"));
}

#[test]
fn command_lines_of_sglang_are_taken() {
    let server = Server::start();
    // As published for its packed decode, but for the data set, which it fetches.
    let flags = format!(
        "--backend sglang --dataset-name random-ids --random-input-len 128 --random-output-len 200 \
         --num-prompts 9 --max-concurrency 128 --request-rate inf --seed 42 --model m \
         --tokenizer {TOKENIZER} --sharegpt-output-len 5 --disable-tqdm"
    );
    bench(&server, &flags).assert().success().stdout(contains("Successful requests:"));
    let help = Command::new(assert_cmd::cargo::cargo_bin!("gdn"))
        .args(["bench-serving", "--help"])
        .assert()
        .success();
    let help = String::from_utf8(help.get_output().stdout.clone()).unwrap();
    for flag in [
        "--backend",
        "--base-url",
        "--host",
        "--port",
        "--model",
        "--served-model-name",
        "--tokenizer",
        "--dataset-name",
        "--dataset-path",
        "--num-prompts",
        "--random-input-len",
        "--random-output-len",
        "--random-range-ratio",
        "--max-concurrency",
        "--request-rate",
        "--seed",
        "--disable-stream",
        "--disable-ignore-eos",
        "--extra-request-body",
        "--warmup-requests",
        "--flush-cache",
        "--output-file",
        "--output-details",
        "--tag",
        "--json",
        "--plot",
        "--disable-tqdm",
        "--apply-chat-template",
        "--tokenize-prompt",
    ] {
        assert!(
            help.contains(&format!("{flag} ")) || help.contains(&format!("{flag}\n")),
            "{flag}"
        );
    }
}

#[test]
fn bad_usage_is_said_before_a_server_is_looked_for() {
    let refused = |flags: &str, what: &str| {
        Command::new(assert_cmd::cargo::cargo_bin!("gdn"))
            .arg("bench-serving")
            .args(flags.split_whitespace())
            .assert()
            .code(2)
            .stderr(contains(what));
    };
    refused("--dataset-name random", "random-ids");
    refused("--dataset-name gsm8k", "--dataset-path");
    refused("--request-rate 0", "above 0");
    refused("--random-range-ratio 2", "from 0 to 1");
    refused("--base-url https://host", "no TLS");
    refused("--extra-request-body [1]", "JSON object");
    refused("--json /no/such/folder/file", "--json: can't write");
    refused("--output-file /no/such/folder/file", "--output-file: can't write");
}
