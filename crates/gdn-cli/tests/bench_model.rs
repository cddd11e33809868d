//! `gdn bench-model` as a user runs it.

use std::{fs, path::PathBuf};

use assert_cmd::Command;
use predicates::{prelude::PredicateBooleanExt, str::contains};
use serde_json::Value;

const SMALL: [&str; 8] =
    ["--batch-sizes", "1,3", "--steps", "4", "--context", "70", "--prompt-lens", "5,65"];

fn gdn() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("gdn"));
    command.env_remove("GDN_PATH").env_remove("RUST_LOG").arg("bench-model");
    command
}

fn tiny(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../gdn-model/tests/fixtures", name].iter().collect()
}

#[test]
fn a_model_is_timed_beside_its_floor() {
    for (name, format) in [("qwen3_5_moe", "safetensors"), ("qwen3_next", "dummy")] {
        let folder = tempfile::tempdir().unwrap();
        let json = folder.path().join("model.json");
        gdn()
            .args(SMALL)
            .args(["--load-format", format, "--profile", "--repeats", "1", "--model"])
            .arg(tiny(name))
            .arg("--json")
            .arg(&json)
            .assert()
            .success()
            .stdout(contains("of floor").and(contains("GdnProjections")));
        let report: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
        let decode = report["decode"].as_array().unwrap();
        assert_eq!(
            decode.iter().map(|row| row["batch"].as_u64().unwrap()).collect::<Vec<_>>(),
            [1, 3]
        );
        for row in decode {
            let number = |field: &str| row[field].as_f64().unwrap();
            assert!(number("median_ms") > 0.0 && number("p99_ms") >= number("median_ms"));
            let tokens = number("batch") / number("median_ms") * 1e3;
            assert!((number("tokens_per_s") / tokens - 1.0).abs() < 1e-9);
            let floor = number("bytes") / number("memory_gb_per_s") / 1e6;
            assert!((number("floor_ms") / floor - 1.0).abs() < 1e-9);
            assert_eq!(row["operators"].as_array().unwrap().len(), 8);
        }
        // More sequences move more bytes.
        assert!(decode[1]["bytes"].as_f64() > decode[0]["bytes"].as_f64());
        let prefill = report["prefill"].as_array().unwrap();
        assert_eq!(
            prefill.iter().map(|row| row["tokens"].as_u64().unwrap()).collect::<Vec<_>>(),
            [5, 65]
        );
    }
}

#[test]
fn prompts_run_beside_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("model.json");
    gdn()
        .args(["--batch-sizes", "1,3", "--steps", "4", "--context", "5", "--prompt-lens", "5"])
        // The second fills a page, and does not fit beside three answers in 512 tokens.
        .args(["--prompt-pieces", "7,511", "--profile", "--repeats", "1", "--model"])
        .arg(tiny("qwen3_5_moe"))
        .arg("--json")
        .arg(&json)
        .assert()
        .success()
        .stdout(contains(" +7 ").and(contains(" +511 ")).and(contains("x\n")));
    let report: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    for row in report["decode"].as_array().unwrap() {
        let mixed = row["mixed"].as_array().unwrap();
        assert_eq!(
            mixed.iter().map(|row| row["piece"].as_u64().unwrap()).collect::<Vec<_>>(),
            [7, 511]
        );
        for mixed in mixed {
            let number = |field: &str| mixed[field].as_f64().unwrap();
            let stretch = number("median_ms") / row["median_ms"].as_f64().unwrap();
            assert!((number("stretch") / stretch - 1.0).abs() < 1e-9);
            assert_eq!(mixed["operators"].as_array().unwrap().len(), 8);
        }
        // So many tokens more take their time, or they did not run.
        assert!(mixed[1]["stretch"].as_f64() > Some(2.0));
    }
}

#[test]
fn bad_usage_is_named() {
    let fails = |args: &[&str], says: &str| {
        gdn().args(args).assert().code(2).stderr(contains(says.to_owned()));
    };
    fails(&["--preset", "qwen9"], "qwen3.5-35b-a3b");
    fails(&["--load-format", "dummy"], "--model");
    fails(&["--batch-sizes", "0"], "--batch-sizes");
    fails(&["--prompt-pieces", "0"], "--prompt-pieces");
    fails(&["--prefill", "sideways"], "expected recurrent or chunked");
    fails(&["--device", "1"], "--backend cuda");
    gdn().args(["--model", "/nowhere"]).assert().code(1).stderr(contains("config.json"));
}

#[test]
fn what_was_measured_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("model.svg");
    let draw = |batches: &str, prompts: &str| {
        let sizes = ["--batch-sizes", batches, "--prompt-lens", prompts];
        let model = ["--repeats", "1", "--steps", "2", "--context", "5", "--model"];
        gdn()
            .args(sizes)
            .args(model)
            .arg(tiny("qwen3_5_dense"))
            .arg("--plot")
            .arg(&svg)
            .assert()
            .success();
        fs::read_to_string(&svg).unwrap()
    };
    let both = draw("1,2", "3,9");
    for text in ["<svg", "ms a decode step", "floor", "prefill, tokens/s"] {
        assert!(both.contains(text), "{text}");
    }
    // Two lines and one, a point for each row.
    assert_eq!(both.matches("<circle").count(), 6);
    let one = draw("4", "7");
    assert_eq!(one.matches("<circle").count(), 3);
}
