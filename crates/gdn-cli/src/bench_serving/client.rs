//! Talks to a server, and takes the time.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use reqwest::{Client, RequestBuilder, Response, StatusCode, header::CONTENT_TYPE};
use serde_json::Value;

use super::{
    api::{NotAnAnswer, Request, Route},
    args::{BodyArgs, Fields, ServerArgs},
    sse::EventReader,
    timeline::{Answer, Timeline},
};

/// How long an answer may take.
const LONGEST: Duration = Duration::from_secs(6 * 60 * 60);
/// How long anything else may take.
const SHORT: Duration = Duration::from_secs(30);
const DONE: &[u8] = b"[DONE]";

#[derive(Debug)]
pub(super) struct Server {
    http: Client,
    base: String,
    key: Option<String>,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("the request could not be sent")]
    Send(#[source] reqwest::Error),
    #[error("{status}: {body}")]
    Status { status: StatusCode, body: String },
    #[error("the answer was cut off")]
    Cut(#[source] reqwest::Error),
    #[error("expected events, got an answer without any")]
    NoEvents,
    #[error(transparent)]
    Answer(#[from] NotAnAnswer),
}

impl Server {
    pub(super) fn new(args: &ServerArgs) -> anyhow::Result<Self> {
        // A proxy's time is not the server's.
        let http = Client::builder().no_proxy().tcp_nodelay(true).build()?;
        let base = args.base_url.clone().unwrap_or_else(|| {
            let port = args.port.unwrap_or(args.backend.default_port());
            match args.host.contains(':') {
                true => format!("http://[{}]:{port}", args.host),
                false => format!("http://{}:{port}", args.host),
            }
        });
        Ok(Self { http, base, key: args.api_key.clone() })
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Waits until the server takes requests; calls `waiting` once if it does not yet.
    pub(super) async fn wait_ready(
        &self,
        timeout: Duration,
        waiting: impl FnOnce(),
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut waiting = Some(waiting);
        loop {
            let why = match self.is_ready().await {
                Ok(()) => return Ok(()),
                Err(why) => why,
            };
            if start.elapsed() >= timeout {
                let (base, seconds) = (&self.base, timeout.as_secs());
                return Err(why.context(format!("no server is ready at {base} after {seconds} s")));
            }
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn is_ready(&self) -> anyhow::Result<()> {
        let mut status = StatusCode::NOT_FOUND;
        for path in ["/health", "/v1/models"] {
            status = self.get(path).send().await?.status();
            match status {
                StatusCode::OK => return Ok(()),
                // Not every server has a route for it.
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {}
                _ => bail!("{path}: {status}"),
            }
        }
        bail!("/health and /v1/models: {status}")
    }

    /// The name of the first model that the server lists.
    pub(super) async fn first_model(&self) -> anyhow::Result<String> {
        let what = "/v1/models names no model; give --model";
        let list = self.json("/v1/models").await?.context(what)?;
        let id = list.get("data").and_then(|models| models.get(0)?.get("id")?.as_str());
        Ok(id.context(what)?.to_owned())
    }

    /// What the server says of itself, if it has a route for that.
    pub(super) async fn info(&self) -> Option<Fields> {
        match self.json("/get_server_info").await {
            Ok(Some(Value::Object(fields))) => Some(fields),
            _ => None,
        }
    }

    pub(super) async fn flush_cache(&self) -> anyhow::Result<()> {
        let request = self.with_key(self.http.post(format!("{}/flush_cache", self.base)));
        let status = request.timeout(SHORT).send().await?.status();
        if !status.is_success() {
            bail!("--flush-cache: expected the server to do so, got {status}");
        }
        Ok(())
    }

    /// `None` where there is no such route.
    async fn json(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let response = self.get(path).send().await?;
        if response.status() != StatusCode::OK {
            return Ok(None);
        }
        let text = response.bytes().await?;
        Ok(Some(serde_json::from_slice(&text).with_context(|| format!("{path}: no JSON"))?))
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.with_key(self.http.get(format!("{}{path}", self.base))).timeout(SHORT)
    }

    fn with_key(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a request, and notes when each piece of its answer comes. `origin` is when
    /// the load started.
    pub(super) async fn ask(
        &self,
        route: Route,
        model: &str,
        request: &Request,
        args: &BodyArgs,
        origin: Instant,
    ) -> Result<Answer, AskError> {
        let body = route.body(model, request, args).to_string();
        let post = self.http.post(format!("{}{}", self.base, route.path()));
        let post = self.with_key(post).header(CONTENT_TYPE, "application/json");
        let start = Instant::now();
        let response = post.timeout(LONGEST).body(body).send().await.map_err(AskError::Send)?;
        let status = response.status();
        if status != StatusCode::OK {
            let body = response.text().await.unwrap_or_default();
            return Err(AskError::Status { status, body: body.chars().take(500).collect() });
        }
        let since = (start - origin).as_secs_f64();
        let timeline = Timeline::new(route, since, request.output_len);
        match args.disable_stream {
            true => whole(route, response, start, timeline).await,
            false => stream(route, response, start, timeline).await,
        }
    }
}

/// An answer in one piece.
async fn whole(
    route: Route,
    response: Response,
    start: Instant,
    mut timeline: Timeline,
) -> Result<Answer, AskError> {
    let body = response.bytes().await.map_err(AskError::Cut)?;
    timeline.piece(start.elapsed().as_secs_f64(), route.read(&body)?);
    Ok(timeline.finish())
}

/// An answer event by event.
async fn stream(
    route: Route,
    mut response: Response,
    start: Instant,
    mut timeline: Timeline,
) -> Result<Answer, AskError> {
    let mut reader = EventReader::default();
    let mut any = false;
    let mut take = |at: f64, data: &[u8]| -> Result<(), AskError> {
        any = true;
        match data {
            DONE => timeline.event(at),
            data => timeline.piece(at, route.read(data)?),
        }
        Ok(())
    };
    while let Some(bytes) = response.chunk().await.map_err(AskError::Cut)? {
        let at = start.elapsed().as_secs_f64();
        for data in reader.push(&bytes) {
            take(at, &data)?;
        }
    }
    if let Some(data) = reader.finish() {
        take(start.elapsed().as_secs_f64(), &data)?;
    }
    match any {
        true => Ok(timeline.finish()),
        false => Err(AskError::NoEvents),
    }
}
