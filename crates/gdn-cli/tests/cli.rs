//! The command as a user runs it.

use std::{fs, path::Path};

use assert_cmd::Command;
use predicates::{
    prelude::{PredicateBooleanExt, predicate},
    str::contains,
};
use serde_json::Value;

fn gdn(args: &str) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("gdn"));
    command.env_remove("GDN_PATH").env_remove("RUST_LOG").args(args.split_whitespace());
    command
}

/// The arguments of a benchmark that takes no time and little memory.
const TINY: &str = "bench --preset custom --num-q-heads 1 --num-v-heads 2 --head-size-k 8 \
                    --head-size-v 8 --pool-size 8 --batch-sizes 1,3 --repeats 3 --min-time 0";

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn stdout(args: &str) -> String {
    let output = gdn(args).assert().success().get_output().stdout.clone();
    String::from_utf8(output).unwrap()
}

#[test]
fn help_names_every_flag() {
    let bench = [
        "--backend",
        "--threads",
        "--device",
        "--overlap",
        "--packed-tile",
        "--fused-tile",
        "--preset",
        "--num-q-heads",
        "--num-v-heads",
        "--head-size-k",
        "--head-size-v",
        "--batch-sizes",
        "--pool-size",
        "--dtype",
        "--state-dtype",
        "--warm",
        "--min-time",
        "--repeats",
        "--seed",
        "--json",
        "--plot",
    ];
    let check = [
        "--backend",
        "--threads",
        "--device",
        "--dtype",
        "--state-dtype",
        "--path",
        "GDN_PATH",
        "--filter",
        "--tolerance",
        "--seed",
        "--json",
    ];
    let all: [(&str, &[&str]); 5] = [
        ("", &["check", "bench", "info", "completions", "--verbose", "Exit codes"]),
        ("check", &check),
        ("bench", &bench),
        ("info", &["--json"]),
        ("completions", &["bash", "zsh", "fish"]),
    ];
    for (command, names) in all {
        let help = stdout(&format!("{command} --help"));
        for name in names {
            assert!(help.contains(name), "{command} --help without {name}");
        }
    }
    assert!(stdout("--version").starts_with("gdn "));
}

#[test]
fn completions_are_written() {
    for (shell, mark) in [("bash", "_gdn()"), ("zsh", "#compdef gdn"), ("fish", "complete -c gdn")]
    {
        let script = stdout(&format!("completions {shell}"));
        assert!(script.contains(mark) && script.contains("batch-sizes"), "{shell}");
    }
}

#[test]
fn info_is_said_and_parses() {
    let said = stdout("info");
    let info: Value = serde_json::from_str(&stdout("info --json")).unwrap();
    assert_eq!(info["backends"][0]["name"], "cpu");
    assert_eq!(info["backends"][0]["available"], true);
    assert_eq!(info["backends"][1]["name"], "cuda");
    let devices = info["devices"].as_array().unwrap();
    if info["backends"][1]["available"] == true {
        assert!(!devices.is_empty() && said.contains("cuda:0"), "{said}");
    } else {
        // What is missing, and what to do about it.
        let why = info["backends"][1]["detail"].as_str().unwrap();
        assert!(said.contains(why) && (why.contains("install") || why.contains("check")), "{why}");
    }
    assert!(info["machine"]["cores"].as_u64().unwrap() > 0);
}

/// A machine without a GPU says so, and what to install; one with a GPU passes.
#[test]
fn a_backend_that_is_not_there_is_an_error_to_act_on() {
    let output = gdn("check --backend cuda --filter K=33 --dtype f32").output().unwrap();
    if output.status.success() {
        return;
    }
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("could not start the cuda backend: no cuda backend: "), "{error}");
    assert!(error.contains("install") || error.contains("check that"), "{error}");
}

#[test]
fn flags_of_the_other_backend_are_refused() {
    for (args, flag) in [
        ("check --device 0", "--device"),
        ("bench --backend cuda --threads 2", "--threads"),
        ("bench --overlap", "--overlap"),
        ("bench --packed-tile direct", "--packed-tile"),
    ] {
        let output = gdn(args).assert().code(2).get_output().stderr.clone();
        let error = String::from_utf8(output).unwrap();
        assert!(error.contains(flag) && error.contains("--backend"), "{args}: {error}");
    }
    gdn("bench --fused-tile nonsense").assert().code(2);
    gdn("bench --overlap --warm").assert().code(2);
}

const FEW: &str = "K=33 V=47 pool=6 f32/f32";

#[test]
fn a_check_passes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("check.json");
    let mut command = gdn("check --seed 3 --threads 2");
    let assert = command.args(["--filter", FEW, "--json"]).arg(&path).assert().success();
    let text = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    for operator in ["split decode", "packed decode", "split layer", "packed layer", "fused layer"]
    {
        assert!(text.contains(&format!("[PASS] {operator}")), "{operator} in {text}");
    }
    assert!(text.contains("[PASS] recurrent prefill") && text.contains("[PASS] chunked prefill"));
    assert!(text.contains("checks: ") && text.contains(" 0 failed"), "{text}");

    let report = json(&path);
    let lines = text.lines().filter(|line| line.starts_with('[')).count() as u64;
    assert_eq!(report["passed"].as_u64(), Some(lines));
    assert_eq!(report["failed"], 0);
    assert_eq!(report["seed"], 3);
    assert!(report["machine"]["cpu"].is_string() && report["date"].is_string());
    let fused = report["checks"].as_array().unwrap().iter();
    let fused: Vec<_> =
        fused.filter(|check| check["check"].as_str().unwrap().contains("fused")).collect();
    assert!(fused.iter().all(|check| check["split"]["out"].is_f64()));
}

#[test]
fn a_check_that_fails_fails_the_command() {
    let mut command = gdn("check --path packed --tolerance 1e-12");
    let failed = contains("[FAIL] packed layer").and(contains("too far from the oracle"));
    command.args(["--filter", FEW]).assert().code(1).stdout(failed.and(contains(" 0 passed")));
}

#[test]
fn padding_is_checked() {
    let filter = "strided, pitched";
    let mut command = gdn("check --dtype bf16 --state-dtype bf16");
    command.args(["--filter", filter]).assert().success().stdout(contains("padding"));
}

#[test]
fn checks_are_restricted() {
    let mut command = gdn("check --dtype bf16 --state-dtype f32");
    let restricted = contains("fused layer").and(contains("bf16/f32"));
    let others = contains("packed").or(contains("prefill")).or(contains("bf16/bf16"));
    command.env("GDN_PATH", "fused").args(["--filter", "K=33"]);
    command.assert().success().stdout(restricted.and(others.not()));
    gdn("check --filter nothing-is-called-that").assert().code(2).stderr(contains("no check"));
    gdn("check").env("GDN_PATH", "scenic").assert().code(2).stderr(contains("--path"));
}

#[test]
fn bench_prints_the_table_and_nothing_else() {
    let table = stdout(TINY);
    let lines: Vec<_> = table.lines().collect();
    let [head, rows @ ..] = lines.as_slice() else { panic!("{table}") };
    let titles = head.split("  ").map(str::trim).filter(|title| !title.is_empty());
    let expected = [
        "B",
        "H",
        "HV",
        "K",
        "V",
        "split µs",
        "packed µs",
        "speedup",
        "saved µs",
        "chain µs",
        "fused µs",
        "state GB/s",
        "of a copy",
    ];
    assert_eq!(titles.collect::<Vec<_>>(), expected);
    assert_eq!(rows.len(), 2, "{table}");
    for (row, batch) in rows.iter().zip(["1", "3"]) {
        let cells = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
        let cells: Vec<_> = cells.collect();
        assert_eq!(cells[..5], [batch, "1", "2", "8", "8"]);
        assert_eq!(cells.len(), expected.len(), "{row}");
        assert!([5, 6, 9, 10, 11, 12].iter().all(|&cell| cells[cell].contains(" ±")), "{row}");
    }
}

#[test]
fn bench_says_on_stderr_what_it_measures() {
    let cold = contains("2 threads").and(contains("bf16 activations, f32 state"));
    // A pool this small is never cold.
    let cold = cold.and(contains("state is not cold"));
    gdn(&format!("{TINY} --threads 2")).assert().success().stderr(cold);
    let warm = contains("warm").and(contains("1 thread,")).and(contains("not cold").not());
    let flags = "--warm --threads 1 --dtype f16 --state-dtype bf16";
    gdn(&format!("{TINY} {flags}")).assert().success().stderr(warm);
    gdn(&format!("-v {TINY}")).assert().success().stderr(contains("decode path"));
    gdn(TINY).assert().success().stderr(contains("decode path").not());
}

#[test]
fn bench_writes_json_and_svg() {
    let directory = tempfile::tempdir().unwrap();
    let (report, plot) = (directory.path().join("b.json"), directory.path().join("b.svg"));
    fs::write(&report, "an older report").unwrap();
    gdn(TINY).arg("--json").arg(&report).arg("--plot").arg(&plot).assert().success();

    let report = json(&report);
    for field in [
        "version",
        "command",
        "date",
        "machine",
        "backend",
        "simd",
        "threads",
        "preset",
        "activations",
        "state",
        "seed",
        "warm",
        "cold",
        "pool_slots",
        "pool_state_bytes",
        "dispatched_path",
    ] {
        assert!(!report[field].is_null(), "{field}");
    }
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1]["batch"], 3);
    // Two heads of 8 × 8 f32 in each of three rows.
    assert_eq!(rows[1]["state_bytes"], 3 * 2 * 8 * 8 * 4);
    for field in [
        "split_us",
        "packed_us",
        "speedup",
        "saved_us",
        "chain_us",
        "fused_us",
        "copy_us",
        "state_gb_per_s",
        "share_of_copy",
    ] {
        let [low, median, high] = ["lower_quartile", "median", "upper_quartile"]
            .map(|quantile| rows[0][field][quantile].as_f64().expect(field));
        assert!(low <= median && median <= high, "{field}");
    }
    assert_eq!(rows[0]["repeats"], 3);
    // Read once, written once; a thousand bytes a µs are a GB/s.
    let median = |field: &str| rows[1][field]["median"].as_f64().unwrap();
    let gb_per_s = 2.0 * 1536.0 / median("packed_us") / 1000.0;
    assert!((median("state_gb_per_s") / gb_per_s - 1.0).abs() < 1e-9);

    let svg = fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains("packed") && svg.contains("copy time over packed time"));
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "nothing else is left behind");
}

#[test]
fn bad_usage_is_named() {
    for (args, expected) in [
        ("bench --preset qwen2", "--preset"),
        ("bench --preset custom", "--num-q-heads"),
        ("bench --preset custom --num-q-heads 1 --num-v-heads 1 --head-size-k 8", "--head-size-v"),
        ("bench --num-q-heads 3 --num-v-heads 4", "not a multiple of --num-q-heads 3"),
        ("bench --num-q-heads 0", "--num-q-heads"),
        ("bench --batch-sizes 0", "--batch-sizes"),
        ("bench --batch-sizes 4,x", "--batch-sizes"),
        ("bench --batch-sizes 4 --pool-size 3", "--pool-size 3"),
        ("bench --batch-sizes 100000000", "--batch-sizes"),
        ("bench --min-time -1", "--min-time"),
        ("bench --threads 0", "--threads"),
        ("bench --dtype f64", "--dtype"),
        ("bench --json /no/such/directory/b.json", "--json"),
        ("bench --plot /no/such/directory/b.svg", "--plot"),
        ("check --json /no/such/directory/c.json", "--json"),
        ("completions basic", "basic"),
        ("sing", "sing"),
    ] {
        // Nothing is measured first: the table's head would be there.
        gdn(args).assert().code(2).stdout(predicate::str::is_empty()).stderr(contains(expected));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_device_is_not_replaced_by_a_file() {
    gdn(&format!("{TINY} --json /dev/null")).assert().success();
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_not_a_crash() {
    use std::process::Command;
    for args in ["check", "info", "completions zsh"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(assert_cmd::cargo::cargo_bin!("gdn"))
            .args(args.split_whitespace())
            .stdout(writer)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(141), "{args}");
        assert!(output.stderr.is_empty(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
