//! Clients against `gdn serve` on the CPU: OpenAI's SDK, lm_eval, SGLang's bench_serving and
//! ours, Schemathesis, curl; the scripts lie in `eval/`.
//!
//! They run with GDN_TEST_CLIENTS=1 alone: the first run fetches 0.7 GB of Python packages.

#![allow(clippy::print_stdout)] // A line for a skipped test, and what scripts and server say.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

/// How long a server may take to start.
const START: Duration = Duration::from_secs(120);

fn root() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", ".."].iter().collect()
}

/// `gdn serve` with the trained fixture and Qwen3.5's chat template.
struct Server {
    child: Child,
    url: String,
    model: TempDir,
}

impl Server {
    fn start() -> Self {
        let model = tempfile::tempdir().unwrap();
        let fixtures = root().join("crates/gdn-model/tests/fixtures");
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            let from = fixtures.join("qwen3_5_trained").join(file);
            fs::copy(from, model.path().join(file)).unwrap();
        }
        let template = "chat_template.jinja";
        fs::copy(fixtures.join("chat").join(template), model.path().join(template)).unwrap();

        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("gdn"))
            .args(["serve", "--port", "0", "--model"])
            .arg(model.path())
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, url) = mpsc::channel();
        // To its end: a server whose pipe is full would stand still.
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                println!("server: {line}");
                if let Some((_, port)) = line.split_once("http://127.0.0.1:") {
                    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
                    let _ = sender.send(format!("http://127.0.0.1:{port}"));
                }
            }
        });
        let found = url.recv_timeout(START);
        let server = Self { child, url: found.clone().unwrap_or_default(), model };
        found.expect("the server says where it is");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a script with the server's address.
fn run(program: &Path, script: &str, url: &str) {
    let output = Command::new(program).arg(root().join("eval").join(script)).arg(url).output();
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{script}: {}\n{out}\n{error}", output.status);
    println!("{script}:\n{out}");
}

/// Whether these tests are asked for; says so if not.
fn asked_for() -> bool {
    let asked = env::var_os("GDN_TEST_CLIENTS").is_some_and(|value| value == "1");
    if !asked {
        println!("skipped: set GDN_TEST_CLIENTS=1 to run it");
    }
    asked
}

/// A Python with the clients, made by the first test that wants it; `None`, with the
/// reason on stderr, where it can't be had.
fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    let made = PYTHON.get_or_init(|| {
        let script = root().join("eval/venv.sh");
        match Command::new("bash").arg(script).output() {
            Ok(output) if output.status.success() => {
                Some(String::from_utf8(output.stdout).unwrap().trim().into())
            }
            Ok(output) => {
                println!("skipped: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                println!("skipped: bash: {error}");
                None
            }
        }
    });
    made.as_deref()
}

fn python_script(script: &str) {
    if !asked_for() {
        return;
    }
    let Some(python) = python() else { return };
    let server = Server::start();
    run(python, script, &server.url);
}

#[test]
fn tasks_are_those_of_the_fixture() {
    let lines = |file: PathBuf| -> Vec<Value> {
        let text = fs::read_to_string(&file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let fixture = root().join("crates/gdn-model/tests/fixtures/qwen3_5_trained");
    let prefix = fs::read_to_string(fixture.join("eval_prefix.txt")).unwrap();
    let tiny = root().join("eval/tiny");
    let (rows, tasks) = (lines(fixture.join("eval.jsonl")), lines(tiny.join("all.jsonl")));
    assert_eq!([lines(tiny.join("sums.jsonl")), lines(tiny.join("recall.jsonl"))].concat(), tasks);
    assert_eq!(rows.len(), tasks.len());
    for (row, task) in rows.iter().zip(tasks) {
        let text = |name: &str| row[name].as_str().unwrap();
        assert_eq!(task["prompt"], format!("{prefix}Question: {}\nAnswer:", text("question")));
        assert_eq!(task["target"], row["target"].to_string());
        assert_eq!(task["text"], text("hf_f32_output").split("\n\n").next().unwrap());
        assert_eq!(task["choices"][task["gold"].as_u64().unwrap() as usize], text("answer"));
    }
}

#[test]
fn openai_sdk() {
    python_script("clients/openai_sdk.py");
}

#[test]
fn lm_eval_gives_the_scores_of_hugging_face() {
    python_script("tiny/gate.py");
}

/// The command of the README: the harness runs, whatever the tiny model answers.
#[test]
fn gsm8k() {
    if !asked_for() || python().is_none() {
        return;
    }
    let server = Server::start();
    let served = server.model.path().to_str().unwrap();
    let run = |model: &str| {
        let output = Command::new("bash")
            .arg(root().join("eval/gsm8k.sh"))
            .args([&server.url, model])
            .arg(root().join("crates/gdn-model/tests/fixtures/qwen3_5_trained"))
            .args(["--limit", "4"])
            .env_remove("MAX_LENGTH")
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let (good, scores, error) = run(served);
    assert!(good, "{error}");
    for filter in ["strict-match", "flexible-extract"] {
        assert!(scores.contains(filter), "{scores}");
    }
    let (good, _, error) = run("other");
    assert!(!good && error.contains("MODEL: expected one of"), "{error}");
}

#[test]
fn openapi() {
    python_script("clients/openapi.py");
}

#[test]
fn sglang_bench_serving() {
    python_script("clients/sglang_bench.py");
}

#[test]
fn bench_serving() {
    if !asked_for() {
        return;
    }
    let server = Server::start();
    for backend in ["sglang", "sglang-oai", "sglang-oai-chat"] {
        let output = Command::new(assert_cmd::cargo::cargo_bin!("gdn"))
            .args(["bench-serving", "--backend", backend, "--base-url", &server.url])
            .args(["--num-prompts", "24", "--max-concurrency", "8", "--random-range-ratio", "1"])
            .args(["--random-input-len", "16", "--random-output-len", "12", "--tokenizer"])
            .arg(root().join("crates/gdn-model/tests/fixtures/qwen3_5_trained"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{backend}: {text}");
        let has = |label: &str, value: usize| {
            assert!(text.contains(&format!("{label:<40} {value} ")), "{backend}: {text}");
        };
        has("Successful requests:", 24);
        has("Total generated tokens:", 24 * 12);
    }
}

#[test]
fn curl() {
    if !asked_for() {
        return;
    }
    if Command::new("curl").arg("--version").output().is_err() {
        println!("skipped: there is no curl");
        return;
    }
    let server = Server::start();
    run(Path::new("bash"), "clients/curl.sh", &server.url);
}
