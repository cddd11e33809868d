//! `gdn serve` as a user runs it.
#![cfg(unix)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ChildStderr, Command, Stdio},
};

struct Served {
    process: Child,
    stderr: BufReader<ChildStderr>,
    address: String,
}

impl Served {
    /// On a free port, ready.
    fn start(args: &[&str]) -> Self {
        let mut process = Command::new(assert_cmd::cargo::cargo_bin!("gdn"))
            .args(["serve", "--port", "0", "--threads", "1"])
            .args(args)
            .env_remove("GDN_API_KEY")
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let address = line.split_once("http://").unwrap_or_else(|| panic!("{line}")).1;
        let address = address.split_once(' ').unwrap().0.to_owned();
        Self { process, stderr, address }
    }

    fn post(&self, path: &str, body: &str) -> String {
        let mut connection = TcpStream::connect(&self.address).unwrap();
        let len = body.len();
        write!(
            connection,
            "POST {path} HTTP/1.1\r\nhost: gdn\r\nconnection: close\r\n\
             content-length: {len}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_shipped_model_chats_until_it_is_stopped() {
    let mut served = Served::start(&[]);
    let question = r#"{"messages": [{"role": "user", "content": "What is 4 + 5?"}]}"#;
    let answer = served.post("/v1/chat/completions", question);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains(r"4 + 5 = 9\n#### 9"), "{answer}");
    assert!(answer.contains(r#""model":"gdn-shipped""#), "{answer}");
    served.signal("-TERM");
    assert_eq!(served.process.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    served.stderr.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("stopping"), "{rest}");
}

#[test]
fn the_second_signal_ends_it_at_once() {
    let mut served = Served::start(&["--served-model-name", "tiny"]);
    let mut connection = TcpStream::connect(&served.address).unwrap();
    let body = r#"{"model": "tiny", "prompt": "a", "max_tokens": 4000, "stream": true}"#;
    let len = body.len();
    write!(
        connection,
        "POST /v1/completions HTTP/1.1\r\nhost: gdn\r\ncontent-length: {len}\r\n\r\n{body}"
    )
    .unwrap();
    let mut first = [0; 12];
    connection.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    served.signal("-INT");
    let mut line = String::new();
    served.stderr.read_line(&mut line).unwrap();
    assert!(line.starts_with("stopping"), "{line}");
    served.signal("-INT");
    assert_eq!(served.process.wait().unwrap().code(), Some(130));
}

#[test]
fn made_up_weights_take_tokens() {
    let folder =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../gdn-model/tests/fixtures/qwen3_5_trained");
    let served = Served::start(&["--model", folder, "--load-format", "dummy"]);
    let answer = served.post("/generate", r#"{"input_ids": [1, 2, 3]}"#);
    assert!(answer.contains(r#""completion_tokens":"#), "{answer}");
}

#[test]
fn what_can_not_be_served() {
    let gdn = |args: &[&str]| {
        let mut command = assert_cmd::Command::new(assert_cmd::cargo::cargo_bin!("gdn"));
        command.arg("serve").args(args).assert()
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let says = predicates::str::contains;
    gdn(&["--port", &port]).code(1).stderr(says("can't listen there"));
    gdn(&["--model", "nowhere"]).code(2).stderr(says("no such folder"));
    gdn(&["--device", "1"]).code(2).stderr(says("add --backend cuda"));
    for fraction in ["0", "1.01", "-0.5", "NaN", "half"] {
        let refused = gdn(&["--model", "nowhere", &format!("--mem-fraction-static={fraction}")]);
        refused.code(2).stderr(says("expected a number above 0 and at most 1"));
    }
    gdn(&["--preset", "qwen3.5-0.8b", "--model", "x"]).code(2).stderr(says("cannot be used with"));
}
