//! Clients that go away, stall, flood and lie: nobody else notices, and nothing is left.

mod common;

use std::{
    env, fs,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{PROMPT, Server, options, start, start_with};
use gdn_engine::EngineOptions;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};

/// A request whose answer is known, and its answer.
async fn known(server: &Server) -> (Value, String) {
    let body = json!({ "model": "tiny", "prompt": PROMPT, "max_tokens": 24, "temperature": 0 });
    let answer = server.post("/v1/completions", &body).await;
    (body, answer["choices"][0]["text"].as_str().unwrap().to_owned())
}

/// Sends a request and leaves after so many bytes of the answer.
async fn leave(address: &str, path: &str, body: &Value, bytes: usize) {
    let Ok(mut connection) = TcpStream::connect(address).await else { return };
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    if connection.write_all(head.as_bytes()).await.is_err()
        || connection.write_all(body.as_bytes()).await.is_err()
    {
        return;
    }
    let mut left = bytes;
    let mut buffer = [0; 512];
    while left > 0 {
        let most = left.min(buffer.len());
        match connection.read(&mut buffer[..most]).await {
            Ok(read) if read > 0 => left -= read,
            _ => return,
        }
    }
}

fn address(server: &Server) -> String {
    server.url.strip_prefix("http://").unwrap().to_owned()
}

/// What is held when nobody asks is the prefix cache's.
async fn nothing_is_left(server: &Server) {
    server.idle().await;
    let stats = server.engine.stats();
    assert_eq!((stats.slots_used, stats.failed), (0, 0), "{stats:?}");
    let (status, metrics) = server.get("/metrics").await;
    assert_eq!(status, 200);
    for (name, value) in [("gdn_running_requests", 0), ("gdn_queued_requests", 0)] {
        assert!(metrics.lines().any(|line| line == format!("{name} {value}")), "{metrics}");
    }
    assert_eq!(server.get("/health").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_leave() {
    let mut of_engine = EngineOptions::default();
    of_engine.cached_sequences = 0;
    let server = Arc::new(start_with(options(), of_engine).await);
    let (body, text) = known(&server).await;
    let address = address(&server);
    // Some stay, and hear what they would hear alone.
    let mut staying = JoinSet::new();
    for _ in 0..4 {
        let (server, body, text) = (server.clone(), body.clone(), text.clone());
        staying.spawn(async move {
            for _ in 0..10 {
                let answer = server.post("/v1/completions", &body).await;
                assert_eq!(answer["choices"][0]["text"], text);
            }
        });
    }
    let mut random = SmallRng::seed_from_u64(3);
    let mut leaving = JoinSet::new();
    for n in 0..1000 {
        let stream = n % 2 == 0;
        let mut body = json!({ "prompt": PROMPT, "max_tokens": 2000, "stream": stream });
        let path = match n % 5 {
            0 => {
                body = json!({ "text": PROMPT, "stream": stream,
                    "sampling_params": { "max_new_tokens": 2000 } });
                "/generate"
            }
            1 => {
                body["n"] = json!(3);
                "/v1/completions"
            }
            _ => "/v1/completions",
        };
        let (bytes, wait) = (random.random_range(0..4000), random.random_range(0..30));
        let address = address.clone();
        leaving.spawn(async move {
            let leave = leave(&address, path, &body, bytes);
            // Who gets no answer leaves all the same.
            let patience = Duration::from_millis(if stream { 2000 } else { wait });
            let _ = tokio::time::timeout(patience, leave).await;
        });
        while leaving.len() >= 48 {
            leaving.join_next().await;
        }
    }
    leaving.join_all().await;
    staying.join_all().await;
    nothing_is_left(&server).await;
    let stats = server.engine.stats();
    assert_eq!(stats.pages_used, 0, "{stats:?}");
    assert!(stats.aborted > 500, "{stats:?}");
    assert_eq!(known(&server).await.1, text);
}

/// Who does not read holds up nobody, and what it is told takes little memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_hold_up_nobody() {
    let server = start().await;
    let (body, text) = known(&server).await;
    let address = address(&server);
    let mut slow = Vec::new();
    for _ in 0..6 {
        let body = json!({ "prompt": PROMPT, "max_tokens": 1500, "stream": true, "logprobs": 5,
            "temperature": 0, "ignore_eos": true });
        let mut connection = TcpStream::connect(&address).await.unwrap();
        let body = body.to_string();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        slow.push(connection);
    }
    for _ in 0..5 {
        let answer = server.post("/v1/completions", &body).await;
        assert_eq!(answer["choices"][0]["text"], text);
    }
    // Late, they hear all of it.
    server.idle().await;
    for mut connection in slow {
        let mut all = String::new();
        connection.read_to_string(&mut all).await.unwrap();
        assert!(all.contains("data: [DONE]"), "{} bytes", all.len());
    }
    nothing_is_left(&server).await;
}

/// Bodies that are cut, changed or made up are refused, each with a reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_bodies_are_refused() {
    let server = start().await;
    let (_, text) = known(&server).await;
    let good = json!({ "model": "tiny", "prompt": "x", "max_tokens": 1, "temperature": 0.5,
        "stop": ["a"], "logit_bias": { "5": 1.0 }, "n": 1, "seed": 1, "stream": false })
    .to_string();
    let mut random = SmallRng::seed_from_u64(11);
    let client = &server.client;
    for n in 0..400 {
        let mut body = good.clone().into_bytes();
        match n % 4 {
            0 => body.truncate(random.random_range(0..body.len())),
            1 => {
                let at = random.random_range(0..body.len());
                body[at] = random.random();
            }
            2 => body = (0..random.random_range(1..200)).map(|_| random.random()).collect(),
            _ => {
                let value = [json!(null), json!(-1), json!(1e300), json!("x"), json!([[]])];
                let mut changed: Value = serde_json::from_str(&good).unwrap();
                let fields = changed.as_object_mut().unwrap();
                let at = random.random_range(0..fields.len());
                let name = fields.keys().nth(at).unwrap().clone();
                fields[&name] = value[random.random_range(0..value.len())].clone();
                body = changed.to_string().into_bytes();
            }
        }
        let path = ["/v1/completions", "/v1/chat/completions", "/generate", "/tokenize"][n % 3];
        let sent = client.post(format!("{}{path}", server.url)).body(body.clone());
        let response = sent.header("content-type", "application/json").send().await.unwrap();
        let status = response.status().as_u16();
        let said = response.text().await.unwrap();
        let shown = String::from_utf8_lossy(&body);
        assert!(matches!(status, 200 | 400 | 404 | 422), "{status} {said} for {shown}");
        if status != 200 {
            let said: Value = serde_json::from_str(&said).unwrap();
            assert!(said["error"]["message"].as_str().unwrap().len() > 5, "{said}");
        }
    }
    assert_eq!(known(&server).await.1, text);
    nothing_is_left(&server).await;
}

/// Twice as many clients as there is room for, for some seconds, or as many minutes as
/// `GDN_TEST_MINUTES` says: each is answered rightly or told to come again, and memory stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twice_the_capacity() {
    let minutes: f64 = env::var("GDN_TEST_MINUTES").map_or(0.08, |text| text.parse().unwrap());
    let mut of_engine = EngineOptions::default();
    of_engine.max_running_requests = 4;
    of_engine.max_queued_requests = 4;
    of_engine.cached_sequences = 2;
    let server = Arc::new(start_with(options(), of_engine).await);
    let (body, text) = known(&server).await;
    let end = Instant::now() + Duration::from_secs_f64(60.0 * minutes);
    let mut clients = JoinSet::new();
    for _ in 0..16 {
        let (server, body, text) = (server.clone(), body.clone(), text.clone());
        clients.spawn(async move {
            let (mut answered, mut refused) = (0u64, 0u64);
            while Instant::now() < end {
                let response = server.send("/v1/completions", &body).await;
                match response.status().as_u16() {
                    200 => {
                        let answer: Value = response.json().await.unwrap();
                        assert_eq!(answer["choices"][0]["text"], text);
                        answered += 1;
                    }
                    429 => {
                        assert!(response.headers().contains_key("retry-after"));
                        refused += 1;
                        sleep(Duration::from_millis(20)).await;
                    }
                    status => panic!("{status}: {}", response.text().await.unwrap()),
                }
            }
            (answered, refused)
        });
    }
    sleep(Duration::from_secs_f64(60.0 * minutes / 2.0)).await;
    let half = resident_bytes();
    let counts = clients.join_all().await;
    let (answered, refused) =
        counts.iter().fold((0, 0), |(a, r), (answered, refused)| (a + answered, r + refused));
    assert!(answered > 0 && refused > 0, "{answered} answered, {refused} refused");
    nothing_is_left(&server).await;
    let stats = server.engine.stats();
    assert_eq!(stats.finished, answered + 1, "{stats:?}");
    if let (Some(half), Some(end)) = (half, resident_bytes()) {
        assert!(end < half + (64 << 20), "{half} bytes in the middle, {end} at the end");
    }
}

/// What this process holds, where the system says so.
fn resident_bytes() -> Option<usize> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    Some(text.split(' ').nth(1)?.parse::<usize>().ok()? * 4096)
}

/// A server that is told to stop finishes what runs, takes nothing more, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_under_load() {
    let mut server = start().await;
    let (body, text) = known(&server).await;
    let mut running = JoinSet::new();
    for _ in 0..20 {
        let sent = server.client.post(format!("{}/v1/completions", server.url)).json(&body);
        running.spawn(async move { sent.send().await.unwrap().json::<Value>().await.unwrap() });
    }
    while server.engine.stats().running + server.engine.stats().queued < 20 {
        sleep(Duration::from_millis(1)).await;
        if running.len() < 20 {
            break;
        }
    }
    server.shutdown.take().unwrap().send(()).unwrap();
    let answers = running.join_all().await;
    assert_eq!(answers.len(), 20);
    for answer in answers {
        assert_eq!(answer["choices"][0]["text"], text, "{answer}");
    }
    (&mut server.running).await.unwrap();
    assert!(TcpStream::connect(address(&server)).await.is_err(), "nobody listens any more");
    let stats = server.engine.stats();
    assert_eq!((stats.finished, stats.aborted, stats.slots_used), (21, 0, 0), "{stats:?}");
}
