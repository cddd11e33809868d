//! A server with the tiny trained model, and a client.
#![allow(dead_code, reason = "each test uses some")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use gdn::{DType, Place};
use gdn_engine::{Engine, EngineOptions};
use gdn_model::Model;
use gdn_server::{App, ModelText, Options, serve};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

/// Of the tiny model, which was trained on questions and answers like these.
pub(crate) const PROMPT: &str = "Question: What is 9 + 4?\nAnswer: 9 + 4 = 13\n#### 13\n\n\
                          Question: What is 4 + 5?\nAnswer:";

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) engine: Engine,
    pub(crate) client: reqwest::Client,
    pub(crate) shutdown: Option<oneshot::Sender<()>>,
    pub(crate) running: JoinHandle<()>,
    _folder: TempDir,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../gdn-model/tests/fixtures")
}

/// The tiny model with the chat template of its big sisters.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = fixtures();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(from.join("qwen3_5_trained").join(file), folder.path().join(file)).unwrap();
    }
    let template = "chat_template.jinja";
    fs::copy(from.join("chat").join(template), folder.path().join(template)).unwrap();
    folder
}

pub(crate) fn options() -> Options {
    let mut options = Options::default();
    options.served_model_name = "tiny".to_owned();
    options
}

pub(crate) async fn start() -> Server {
    start_with(options(), EngineOptions::default()).await
}

pub(crate) async fn start_with(options: Options, of_engine: EngineOptions) -> Server {
    start_with_memory(options, of_engine, 1 << 16).await
}

/// On the CPU, or where `GDN_TEST_BACKEND=cuda` says so, in f32: the same bits whatever shares
/// a step.
fn of_model() -> gdn_model::Options {
    let default = gdn_model::Options::default();
    match std::env::var("GDN_TEST_BACKEND").as_deref() {
        Ok("cuda") => default.device(Place::Cuda(0)).activations(DType::F32),
        _ => default.threads(1),
    }
}

/// With memory for so many tokens.
pub(crate) async fn start_with_memory(
    options: Options,
    of_engine: EngineOptions,
    tokens: usize,
) -> Server {
    start_in(folder(), options, of_engine, tokens).await
}

/// The tiny model with a last norm that is not a number.
pub(crate) async fn start_broken() -> Server {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let mut file = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&file[8..8 + header]).unwrap();
    let norm = &tensors["model.language_model.norm.weight"]["data_offsets"];
    let [from, to] = [0, 1].map(|i| 8 + header + norm[i].as_u64().unwrap() as usize);
    file[from..to].fill(0xff);
    fs::write(&path, file).unwrap();
    start_in(folder, options(), EngineOptions::default(), 1 << 16).await
}

async fn start_in(
    folder: TempDir,
    options: Options,
    of_engine: EngineOptions,
    tokens: usize,
) -> Server {
    let of_model = Engine::model_options(&of_engine, of_model().tokens(tokens));
    let model = Model::load_with(folder.path(), &of_model).unwrap();
    let engine = Engine::start(model, of_engine).unwrap();
    let text = ModelText::load(folder.path()).unwrap();
    let app = App::new(engine.clone(), text, options);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (shutdown, heard) = oneshot::channel();
    let running = tokio::spawn(async move {
        let shutdown = async move { _ = heard.await };
        serve(listener, app, shutdown).await.unwrap();
    });
    let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
    Server { url, engine, client, shutdown: Some(shutdown), running, _folder: folder }
}

impl Server {
    pub(crate) async fn send(&self, path: &str, body: &Value) -> Response {
        self.client.post(format!("{}{path}", self.url)).json(body).send().await.unwrap()
    }

    /// An answer that is good.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        let response = self.send(path, body).await;
        let status = response.status();
        let text = response.text().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{path} {body}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        let response = self.client.get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    }

    /// The status, and what the error says: its message, field and code.
    pub(crate) async fn refused(&self, path: &str, body: &Value) -> (u16, String, Value, Value) {
        error(self.send(path, body).await).await
    }

    /// The events of a stream, without the last, which must be there.
    pub(crate) async fn events(&self, path: &str, body: &Value) -> Vec<Value> {
        let body = with(body, json!({ "stream": true }));
        let response = self.send(path, &body).await;
        assert_eq!(response.status(), StatusCode::OK);
        let kind = response.headers()["content-type"].to_str().unwrap();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        events(&response.text().await.unwrap())
    }

    /// Waits until nothing runs; for a minute, while steps go on.
    pub(crate) async fn idle(&self) {
        let (mut steps, mut still) = (0, 0);
        for _ in 0..6000 {
            let stats = self.engine.stats();
            if stats.running + stats.queued == 0 && stats.slots_used == 0 {
                return;
            }
            still = if stats.steps == steps { still + 1 } else { 0 };
            if still == 500 {
                break;
            }
            steps = stats.steps;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("still busy: {:?}", self.engine.stats());
    }
}

pub(crate) fn events(text: &str) -> Vec<Value> {
    let mut events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(events.pop(), Some("data: [DONE]"), "{text}");
    let data = events.iter().map(|event| event.strip_prefix("data: ").unwrap());
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

pub(crate) async fn error(response: Response) -> (u16, String, Value, Value) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    let error = &body["error"];
    assert!(error["type"].is_string(), "{body}");
    let message = error["message"].as_str().unwrap().to_owned();
    (status, message, error["param"].clone(), error["code"].clone())
}

/// A response format: an object with a sum from 0 to 18.
pub(crate) fn sum_form() -> Value {
    let schema = json!({
        "type": "object",
        "properties": { "sum": { "type": "integer", "minimum": 0, "maximum": 18 } },
        "required": ["sum"],
        "additionalProperties": false,
    });
    json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } })
}

/// An object with more fields, or others.
pub(crate) fn with(body: &Value, more: Value) -> Value {
    let mut body = body.clone();
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// The texts of all choices, put together from the pieces of a stream.
pub(crate) fn joined(events: &[Value], piece: impl Fn(&Value) -> Option<&str>) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let index = choice["index"].as_u64().unwrap() as usize;
        texts.resize(texts.len().max(index + 1), String::new());
        texts[index].push_str(piece(choice).unwrap_or_default());
    }
    texts
}
