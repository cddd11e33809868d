//! Answers as streams of server-sent events.

use std::convert::Infallible;

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use serde::Serialize;

use crate::generation::{Job, Step};

/// Events that wait to be sent.
#[derive(Debug, Default)]
pub(crate) struct Events(Vec<u8>);

impl Events {
    /// An event with this value as JSON.
    pub(crate) fn push(&mut self, value: &impl Serialize) {
        let start = self.0.len();
        self.0.extend(b"data: ");
        match serde_json::to_writer(&mut self.0, value) {
            Ok(()) => self.0.extend(b"\n\n"),
            Err(error) => {
                self.0.truncate(start);
                tracing::error!("an event can't be written as JSON: {error}");
            }
        }
    }

    fn done(&mut self) {
        self.0.extend(b"data: [DONE]\n\n");
    }

    fn take(&mut self) -> Option<Bytes> {
        (!self.0.is_empty()).then(|| Bytes::from(std::mem::take(&mut self.0)))
    }
}

/// What a route makes of the steps of its answers.
pub(crate) trait Format: Send + 'static {
    /// Before the first step.
    fn begin(&mut self, _events: &mut Events) {}

    /// A step of one of the answers, but a failure.
    fn step(&mut self, choice: usize, step: Step, events: &mut Events);

    /// Behind the last step.
    fn end(&mut self, _events: &mut Events) {}
}

struct Streaming<F> {
    steps: SelectAll<BoxStream<'static, (usize, Step)>>,
    format: F,
    events: Events,
    over: bool,
}

/// Streams answers in this format. Whoever drops the response ends the work.
pub(crate) fn stream(jobs: Vec<Job>, format: impl Format) -> Response {
    let steps = jobs.into_iter().enumerate().map(|(choice, job)| {
        let next = move |mut job: Job| async move {
            let step = job.next().await?;
            Some(((choice, step), job))
        };
        stream::unfold(job, next).boxed()
    });
    let mut streaming = Streaming {
        steps: stream::select_all(steps),
        format,
        events: Events::default(),
        over: false,
    };
    streaming.format.begin(&mut streaming.events);
    let body = stream::unfold(streaming, |mut streaming| async move {
        let bytes = streaming.next().await?;
        Some((Ok::<_, Infallible>(bytes), streaming))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Body::from_stream(body)).into_response()
}

impl<F: Format> Streaming<F> {
    /// The next events, and none behind the last.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.events.take() {
                return Some(bytes);
            }
            if self.over {
                return None;
            }
            match self.steps.next().await {
                Some((_, Step::Failed(error))) => {
                    self.steps.clear();
                    self.events.push(&error.json());
                    self.events.done();
                    self.over = true;
                }
                Some((choice, step)) => self.format.step(choice, step, &mut self.events),
                None => {
                    self.format.end(&mut self.events);
                    self.events.done();
                    self.over = true;
                }
            }
        }
    }
}
