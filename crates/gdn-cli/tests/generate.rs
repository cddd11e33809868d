//! `gdn generate` as a user runs it.

use std::{fs, path::PathBuf};

use assert_cmd::Command;
use predicates::{prelude::PredicateBooleanExt, str::contains};
use serde_json::{Value, json};

fn generate(args: &str) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("gdn"));
    for name in ["RUST_LOG", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN"] {
        command.env_remove(name);
    }
    command.env("HF_HUB_OFFLINE", "1").arg("generate").args(args.split_whitespace());
    command
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

fn json_of(command: &mut Command) -> Value {
    serde_json::from_str(&stdout(command)).unwrap()
}

fn fixtures() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "gdn-model", "tests", "fixtures"].iter().collect()
}

fn trained(file: &str) -> String {
    fs::read_to_string(fixtures().join("qwen3_5_trained").join(file)).unwrap()
}

/// The model in a folder of its own, with a chat template and what else is given.
fn folder(more: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = fixtures().join("qwen3_5_trained");
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    let template = fs::read_to_string(fixtures().join("chat/chat_template.jinja")).unwrap();
    for (file, text) in [("chat_template.jinja", template.as_str())].iter().chain(more) {
        fs::write(folder.path().join(file), text).unwrap();
    }
    folder
}

#[test]
fn help_names_every_flag() {
    let help = stdout(&mut generate("--help"));
    for flag in [
        "--model",
        "--prompt",
        "--raw",
        "--system",
        "--no-thinking",
        "--max-new-tokens",
        "--max-tokens",
        "--stop",
        "--temperature",
        "--top-k",
        "--top-p",
        "--min-p",
        "--repetition-penalty",
        "--presence-penalty",
        "--frequency-penalty",
        "--seed",
        "--threads",
        "--json",
        "Examples:",
    ] {
        assert!(help.contains(flag), "{flag} in {help}");
    }
}

#[test]
fn the_shipped_model_is_asked_its_questions() {
    // Nothing of the repository is needed.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = generate("--threads 2");
    command.current_dir(elsewhere.path());
    let stats = contains("loaded in").and(contains("first token after")).and(contains("tokens/s"));
    let text = command.assert().success().stderr(stats).get_output().stdout.clone();
    let text = String::from_utf8(text).unwrap();
    let count = text.matches("Question: ").count();
    let right = text.matches("(right)").count();
    assert!(count >= 6 && right >= count / 2, "{text}");
    assert_eq!(count - right, text.matches("(wrong: it is ").count());
    assert!(text.contains(&format!("{right} of {count} answers are right")), "{text}");
    assert!(text.contains(&format!("gives the same text for {count} of {count}")), "{text}");

    let report = json_of(&mut generate("--json"));
    assert_eq!(report["right"].as_u64(), Some(right as u64));
    assert_eq!(report["answers"].as_array().unwrap().len(), count);
    assert_eq!(report["sampling"]["temperature"], 0.0);
}

#[test]
fn a_question_of_ones_own() {
    let mut command = generate("--prompt");
    let text = stdout(command.arg("What is 6 + 6?"));
    assert_eq!(text, " 6 + 6 = 12\n#### 12\n");
    assert_eq!(stdout(generate("--prompt -").write_stdin("What is 6 + 6?\n")), text);

    // It is asked as in its training.
    let prompt = format!("{}Question: What is 6 + 6?\nAnswer:", trained("eval_prefix.txt"));
    let raw = json_of(generate("--raw --json --max-new-tokens 1 --prompt").arg(prompt));
    let question = json_of(generate("--json --prompt").arg("What is 6 + 6?"));
    assert_eq!(question["prompt_tokens"], raw["prompt_tokens"]);
}

/// Word for word what Hugging Face transformers made of the same prompts.
#[test]
fn greedy_text_is_that_of_transformers() {
    let prefix = trained("eval_prefix.txt");
    for line in trained("eval.jsonl").lines().step_by(9) {
        let line: Value = serde_json::from_str(line).unwrap();
        let prompt = format!("{prefix}Question: {}\nAnswer:", line["question"].as_str().unwrap());
        let mut command = generate("--raw --temperature 0 --max-new-tokens 14 --json --prompt -");
        let report = json_of(command.write_stdin(prompt));
        assert_eq!(report["text"], line["hf_f32_output"], "{line}");
        assert_eq!(report["completion_tokens"], 14);
        assert_eq!(report["finish_reason"], "length");
    }
}

#[test]
fn json_says_it_all() {
    let mut command = generate("--json --seed 3 --prompt");
    let report = json_of(command.arg("What is 2 + 3?"));
    assert_eq!(report["text"], " 2 + 3 = 5\n#### 5");
    assert_eq!(report["finish_reason"], "stop");
    assert_eq!(report["sampling"]["seed"], 3);
    let tokens = report["tokens"].as_array().unwrap();
    assert_eq!(report["completion_tokens"].as_u64(), Some(tokens.len() as u64));
    for field in ["prompt_tokens", "load_s", "ttft_s", "decode_s", "tokens_per_s"] {
        assert!(report[field].as_f64().is_some_and(|x| x > 0.0), "{field} in {report}");
    }
}

#[test]
fn a_seed_gives_the_same_text() {
    let text = |seed: &str| {
        let flags = "--raw --prompt Question --temperature 1.5 --max-tokens 40 --threads 1";
        stdout(generate(flags).args(["--seed", seed]))
    };
    let first = text("1");
    assert_eq!(first, text("1"));
    assert_ne!(first, text("2"));
    // Without a seed, one that the report names.
    let flags = "--raw --prompt Question --temperature 1.5 --max-tokens 40 --json";
    let report = json_of(&mut generate(flags));
    let again = json_of(generate(flags).args(["--seed", &report["sampling"]["seed"].to_string()]));
    assert_eq!(report["tokens"], again["tokens"]);
}

#[test]
fn stop_texts_end_the_answer() {
    let run = |stops: &[&str]| {
        let mut command = generate("--json --prompt");
        command.arg("What is 6 + 6?");
        for stop in stops {
            command.args(["--stop", stop]);
        }
        let report = json_of(&mut command);
        assert_eq!(report["finish_reason"], "stop");
        report["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(run(&["####"]), " 6 + 6 = 12\n");
    // Across tokens, and the first of several.
    assert_eq!(run(&["12\n#", "nonsense"]), " 6 + 6 = ");
    assert_eq!(run(&["nonsense", "= 1", "12"]), " 6 + 6 ");
}

#[test]
fn a_folder_with_a_chat_template() {
    let folder = folder(&[]);
    let run = |args: &str| {
        let mut command = generate("--json --max-new-tokens 3 --prompt hello");
        json_of(command.args(args.split_whitespace()).arg("--model").arg(folder.path()))
    };
    let count = |args: &str| run(args)["prompt_tokens"].as_u64().unwrap();
    // <think>\n, or <think>\n\n</think>\n\n.
    assert!(count("--no-thinking") > count(""));
    assert!(count("--system terse") > count(""));
    assert!(count("--raw") < count(""));
    assert_eq!(run("")["model"], folder.path().to_str().unwrap());
}

#[test]
fn generation_config_holds_unless_a_flag_says_otherwise() {
    let config = json!({ "do_sample": true, "temperature": 0.5, "top_k": 7, "eos_token_id": 2015 });
    let folder = folder(&[("generation_config.json", &config.to_string())]);
    let run = |args: &str| {
        let mut command = generate("--raw --json --max-new-tokens 2 --prompt hello");
        let command = command.args(args.split_whitespace()).arg("--model").arg(folder.path());
        json_of(command)
    };
    let sampling = run("")["sampling"].clone();
    assert_eq!((&sampling["temperature"], &sampling["top_k"]), (&json!(0.5), &json!(7)));
    let sampling = run("--temperature 0 --top-k 3")["sampling"].clone();
    assert_eq!((&sampling["temperature"], &sampling["top_k"]), (&json!(0.0), &json!(3)));

    // A token that ends answers is counted, and no text.
    let greedy = run("--temperature 0");
    let first = &greedy["tokens"][0];
    let config = json!({ "eos_token_id": [first, 2015] }).to_string();
    fs::write(folder.path().join("generation_config.json"), config).unwrap();
    let ended = run("");
    assert_eq!((&ended["text"], &ended["finish_reason"]), (&json!(""), &json!("stop")));
    assert_eq!(ended["tokens"], json!([first]));
}

#[test]
fn a_cached_id_is_found() {
    let cache = tempfile::tempdir().unwrap();
    let snapshots = cache.path().join("models--org--name").join("snapshots");
    fs::create_dir_all(&snapshots).unwrap();
    let run = || {
        let mut command = generate("--model org/name --raw --prompt hello --max-new-tokens 1");
        command.env("HF_HUB_CACHE", cache.path()).assert()
    };
    let missing = contains("org/name").and(contains("HF_HUB_OFFLINE is set"));
    run().code(1).stderr(missing.and(contains("name its folder")));
    let folder = folder(&[]);
    fs::rename(folder.path(), snapshots.join("c0ffee")).unwrap();
    run().success();
}

#[test]
fn the_end_of_the_positions_ends_the_answer() {
    let mut config: Value = serde_json::from_str(&trained("config.json")).unwrap();
    config["text_config"]["max_position_embeddings"] = json!(6);
    let folder = folder(&[("config.json", &config.to_string())]);
    let mut command = generate("--raw --json --prompt hello --temperature 0 --model");
    let report = json_of(command.arg(folder.path()));
    let tokens =
        ["prompt_tokens", "completion_tokens"].map(|field| report[field].as_u64().unwrap());
    // The last token is generated, and not run.
    assert_eq!(tokens[0] + tokens[1], 7);
    assert_eq!(report["finish_reason"], "length");
}

#[test]
fn bad_usage_is_named() {
    for (args, expected) in [
        ("--temperature -1 --prompt a", "--temperature: expected a number, at least 0, got -1"),
        ("--temperature hot --prompt a", "expected a number"),
        ("--top-p 0 --prompt a", "--top-p: expected a number, above 0 and at most 1, got 0"),
        ("--top-k -1 --prompt a", "'--top-k <K>': expected a whole number, at least 0"),
        ("--min-p 2 --prompt a", "--min-p: expected a number, 0 to 1, got 2"),
        ("--repetition-penalty 0 --prompt a", "--repetition-penalty: expected a number, above 0"),
        (
            "--presence-penalty 3 --prompt a",
            "--presence-penalty: expected a number, -2 to 2, got 3",
        ),
        ("--frequency-penalty -3 --prompt a", "--frequency-penalty"),
        ("--max-new-tokens 0 --prompt a", "--max-new-tokens"),
        ("--threads 0", "--threads"),
        ("--seed x", "'--seed <N>': expected a whole number"),
        ("--max-new-tokens -5", "--max-new-tokens"),
        ("--raw", "--prompt"),
        ("--system a --prompt a", "--model"),
        ("--no-thinking --prompt a", "--model"),
        ("--model a", "--prompt: expected a text, or - for stdin, got none"),
        ("--model /no/such/folder --prompt a", "expected a folder with config.json"),
        ("--model nonsense --prompt a", "an id such as org/name"),
    ] {
        generate(args).assert().code(2).stdout("").stderr(contains(expected));
    }
    let empty = generate("--raw --prompt").arg("").assert().code(2).stdout("");
    empty.stderr(contains("--prompt: expected at least one token"));
    let stop = generate("--prompt a --stop").arg("").assert().code(2).stdout("");
    stop.stderr(contains("--stop").and(contains("not empty")));
    let note = contains("--top-k changes nothing at temperature 0");
    generate("--prompt a --top-k 3 --max-new-tokens 1").assert().success().stderr(note);
}

#[test]
fn a_folder_that_lacks_something() {
    let whole = folder(&[]);
    let run = |raw: &str| {
        let mut command = generate("--prompt hello --max-new-tokens 1");
        command.args(raw.split_whitespace()).arg("--model").arg(whole.path()).assert()
    };
    fs::remove_file(whole.path().join("chat_template.jinja")).unwrap();
    run("").code(2).stderr(contains("no chat template; add --raw"));
    run("--raw").success();
    fs::remove_file(whole.path().join("model.safetensors")).unwrap();
    run("--raw").code(1).stderr(contains("model.safetensors").and(contains("a model is a folder")));
    fs::remove_file(whole.path().join("config.json")).unwrap();
    run("--raw").code(1).stderr(contains("config.json"));
}

#[cfg(unix)]
mod signals {
    use std::{
        io::{BufRead, BufReader, Read},
        process::{Command, Stdio},
    };

    #[test]
    fn a_closed_pipe_ends_it() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("gdn"));
        let output = command.arg("generate").stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(141));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn ctrl_c_ends_the_answer() {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("gdn"))
            .args(["generate", "--raw", "--prompt", "Question: a\n", "--max-new-tokens", "4000"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It has begun to answer.
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut String::new()).unwrap();
        let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        let stats = String::from_utf8(output.stderr).unwrap();
        assert!(stats.contains("tokens/s; interrupted"), "{stats}");
    }
}
