//! What comes through the server is what Hugging Face says, whatever else goes on.

mod common;

use std::{fs, path::Path, sync::Arc, time::Duration};

use common::{options, start_with_memory};
use gdn_engine::EngineOptions;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet};

/// Questions that a tiny model was trained on: 50 sums, of which it gets all right, and 50
/// values to recall, of which it gets 17.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_questions_from_64_clients() {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../gdn-model/tests/fixtures/qwen3_5_trained");
    let read = |name| fs::read_to_string(folder.join(name)).unwrap();
    let (prefix, lines) = (read("eval_prefix.txt"), read("eval.jsonl"));
    let questions: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();

    // Memory for a few at once, small pieces, a small cache: requests take memory from each
    // other, and find beginnings that others left.
    let mut of_engine = EngineOptions::default();
    of_engine.max_running_requests = 24;
    of_engine.cached_sequences = 6;
    of_engine.chunked_prefill_size = 100;
    of_engine.mixed_prefill_size = 70;
    let server = Arc::new(start_with_memory(options(), of_engine, 64 * 10).await);
    let clients = Arc::new(Semaphore::new(64));
    // Three that start together and grow to more than all memory: one must lose its own.
    let mut long = JoinSet::new();
    for _ in 0..3 {
        let asking = server.clone();
        long.spawn(async move {
            let body = json!({ "prompt": "Question: Who", "max_tokens": 300, "temperature": 0,
                "ignore_eos": true });
            let answer = asking.post("/v1/completions", &body).await;
            answer["choices"][0]["text"].as_str().unwrap().to_owned()
        });
    }
    while server.engine.stats().running < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut asked = JoinSet::new();
    for (n, question) in questions.iter().enumerate() {
        let prompt =
            format!("{prefix}Question: {}\nAnswer:", question["question"].as_str().unwrap());
        let (asking, clients) = (server.clone(), clients.clone());
        asked.spawn(async move {
            let _client = clients.acquire().await.unwrap();
            let body = json!({ "prompt": prompt, "max_tokens": 14, "temperature": 0,
                "ignore_eos": true });
            let answer = asking.post("/v1/completions", &body).await;
            (n, answer["choices"][0]["text"].as_str().unwrap().to_owned())
        });
        // Some go away in the middle of a long answer.
        if n % 4 == 0 {
            let (url, client) = (server.url.clone(), server.client.clone());
            tokio::spawn(async move {
                let body = json!({ "prompt": "Question: What", "max_tokens": 500 });
                let sent = client.post(format!("{url}/v1/completions")).json(&body).send();
                let _ = tokio::time::timeout(Duration::from_millis(400), sent).await;
            });
        }
    }
    let mut right = [0; 2];
    for (n, text) in asked.join_all().await {
        let question = &questions[n];
        assert_eq!(text, question["hf_f32_output"], "question {n}");
        let last = text.lines().find_map(|line| line.strip_prefix("#### "));
        let is_sum = question["question"].as_str().unwrap().contains('+');
        right[usize::from(!is_sum)] += i32::from(last == Some(&question["target"].to_string()));
    }
    assert_eq!(right, [50, 17]);
    let long = long.join_all().await;
    assert!(long.iter().all(|text| *text == long[0]), "{long:?}");
    server.idle().await;
    let stats = server.engine.stats();
    assert!(stats.cached_tokens > 0 && stats.preemptions > 0, "{stats:?}");
    // Who leaves late may have been answered.
    assert!(stats.finished >= 103, "{stats:?}");
    assert_eq!((stats.finished + stats.aborted, stats.slots_used), (128, 0), "{stats:?}");
}
