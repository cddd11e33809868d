//! A server with the routes of SGLang and vLLM that says "a b c ..", a word a token, at a
//! known pace.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread::{self, sleep},
    time::Duration,
};

use serde_json::{Value, json};

/// Milliseconds to the first token, and to each of the others.
pub(crate) const FIRST_MS: f64 = 60.0;
pub(crate) const NEXT_MS: f64 = 20.0;

pub(crate) struct Server {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Path and body of each request.
    requests: Vec<(String, Value)>,
    fail_every: usize,
    cut_off: bool,
    not_ready: usize,
    under_way: usize,
    most_at_once: usize,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(&stream.unwrap(), &state));
            }
        });
        Self { port, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// The bodies of requests to a route, in the order in which they came.
    pub(crate) fn requests(&self, route: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        let requests = state.requests.iter().filter(|(path, _)| path == route);
        requests.map(|(_, body)| body.clone()).collect()
    }

    pub(crate) fn most_at_once(&self) -> usize {
        self.state.lock().unwrap().most_at_once
    }

    /// From now on, refuses every n-th request; none for 0.
    pub(crate) fn fail_every(&self, n: usize) {
        let mut state = self.state.lock().unwrap();
        state.requests.clear();
        state.fail_every = n;
    }

    /// Whether connections end within answers.
    pub(crate) fn cut_off(&self, cut_off: bool) {
        self.state.lock().unwrap().cut_off = cut_off;
    }

    /// Says that it is not ready so often.
    pub(crate) fn ready_after(&self, times: usize) {
        self.state.lock().unwrap().not_ready = times;
    }
}

/// Answers the requests of a connection, until it ends.
fn serve(stream: &TcpStream, state: &Mutex<State>) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream);
    while let Some((path, body)) = read(&mut reader) {
        if answer(stream, &path, body, state).is_none() {
            break;
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<(String, Value)> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|&read| read > 0)?;
    let path = first.split(' ').nth(1)?.to_owned();
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim().split_once(": ") {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().ok()?;
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                authorization = Some(value.to_owned());
            }
            Some(_) => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut body: Value = serde_json::from_slice(&body).unwrap_or(json!({}));
    if let Some(authorization) = authorization {
        body["authorization"] = json!(authorization);
    }
    Some((path, body))
}

/// `None` if the connection is to end.
fn answer(stream: &TcpStream, path: &str, body: Value, state: &Mutex<State>) -> Option<()> {
    let (fails, cut_off) = {
        let mut state = state.lock().unwrap();
        if path == "/health" && state.not_ready > 0 {
            state.not_ready -= 1;
            return whole(stream, "503 Service Unavailable", "loading");
        }
        state.requests.push((path.to_owned(), body.clone()));
        let posts = state.requests.iter().filter(|(path, _)| !is_get(path)).count();
        (state.fail_every > 0 && posts % state.fail_every == 0, state.cut_off)
    };
    match path {
        "/health" | "/flush_cache" => whole(stream, "200 OK", ""),
        "/v1/models" => whole(stream, "200 OK", r#"{"data": [{"id": "fake"}]}"#),
        "/get_server_info" => whole(stream, "200 OK", r#"{"version": "fake"}"#),
        _ if fails => whole(stream, "503 Service Unavailable", "no slot"),
        "/generate" | "/v1/completions" | "/v1/chat/completions" => {
            {
                let mut state = state.lock().unwrap();
                state.under_way += 1;
                state.most_at_once = state.most_at_once.max(state.under_way);
            }
            generate(stream, path, &body, cut_off, || state.lock().unwrap().under_way -= 1)
        }
        _ => whole(stream, "404 Not Found", ""),
    }
}

fn is_get(path: &str) -> bool {
    matches!(path, "/health" | "/v1/models" | "/get_server_info")
}

fn whole(mut stream: &TcpStream, status: &str, body: &str) -> Option<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}").ok()
}

/// The text of so many tokens.
fn words(count: usize) -> String {
    (0..count).map(|i| [" a", " b", " c", " d", " e"][i % 5]).collect::<String>().trim().to_owned()
}

fn generate(
    mut stream: &TcpStream,
    path: &str,
    body: &Value,
    cut_off: bool,
    over: impl FnOnce(),
) -> Option<()> {
    let wanted = [
        &body["sampling_params"]["max_new_tokens"],
        &body["max_tokens"],
        &body["max_completion_tokens"],
    ];
    let tokens = wanted.into_iter().find_map(Value::as_u64).unwrap() as usize;
    let ms = |ms: f64| sleep(Duration::from_secs_f64(ms / 1e3));
    if body["stream"] == false {
        ms(FIRST_MS + NEXT_MS * (tokens - 1) as f64);
        over();
        let event = event(path, &words(tokens), &words(tokens), tokens, true);
        return whole(stream, "200 OK", &event.to_string());
    }
    let head = "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked";
    write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\n\r\n").ok()?;
    let mut chunk = |bytes: &str| write!(stream, "{:x}\r\n{bytes}\r\n", bytes.len()).ok();
    for token in 1..=tokens {
        ms(if token == 1 { FIRST_MS } else { NEXT_MS });
        if cut_off && token == 2 {
            over();
            return None;
        }
        let all = words(token);
        let event = event(path, &all[words(token - 1).len()..], &all, token, false);
        let event = format!("data: {event}\n\n");
        let (first, second) = event.split_at(event.len() / 2);
        chunk(first)?;
        chunk(second)?;
    }
    if body["stream_options"]["include_usage"] == true {
        let usage = json!({"choices": [], "usage": {"completion_tokens": tokens}});
        chunk(&format!(": almost\n\ndata: {usage}\n\n"))?;
    }
    over();
    chunk("data: [DONE]\n\n")?;
    write!(stream, "0\r\n\r\n").ok()
}

fn event(path: &str, new: &str, all: &str, tokens: usize, whole: bool) -> Value {
    let choice = match path {
        "/generate" => return json!({"text": all, "meta_info": {"completion_tokens": tokens}}),
        "/v1/completions" => json!({"text": new}),
        _ => json!({if whole { "message" } else { "delta" }: {"content": new}}),
    };
    let usage = if whole { json!({"completion_tokens": tokens}) } else { Value::Null };
    json!({"choices": [choice], "usage": usage})
}
