//! The routes.

mod chat;
mod completions;
mod generate;
mod health;
mod models;
mod tokens;

use std::time::Instant;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use serde::Serialize;
use subtle::ConstantTimeEq;

use crate::{App, error::ApiError, generation::Counts};

/// What the routes take and give, in the form of OpenAPI.
pub const OPENAPI: &str = include_str!("../../../../docs/openapi.json");

/// Who asks these needs no key: they say nothing of any request.
const OPEN: [&str; 3] = ["/health", "/health_generate", "/metrics"];

/// Every method, path and handler.
fn table() -> [(&'static str, &'static str, MethodRouter<App>); 14] {
    [
        ("post", "/v1/completions", post(completions::completions)),
        ("post", "/v1/chat/completions", post(chat::chat)),
        ("get", "/v1/models", get(models::models)),
        ("get", "/v1/models/{model}", get(models::model)),
        ("post", "/tokenize", post(tokens::tokenize)),
        ("post", "/detokenize", post(tokens::detokenize)),
        ("post", "/generate", post(generate::generate)),
        ("get", "/get_model_info", get(models::model_info)),
        ("get", "/get_server_info", get(models::server_info)),
        ("get", "/health", get(health::health)),
        ("get", "/health_generate", get(health::health)),
        ("get", "/metrics", get(health::metrics)),
        ("get", "/version", get(health::version)),
        ("get", "/openapi.json", get(health::openapi)),
    ]
}

/// The method and the path of every route.
pub fn routes() -> Vec<(&'static str, &'static str)> {
    table().into_iter().map(|(method, path, _)| (method, path)).collect()
}

/// All routes.
pub fn router(app: App) -> Router {
    let routes = table().into_iter();
    let router = routes.fold(Router::new(), |router, (_, path, route)| router.route(path, route));
    router
        .fallback(async |uri: Uri| {
            ApiError::new(StatusCode::NOT_FOUND, format!("{}: no such route", uri.path()))
        })
        .method_not_allowed_fallback(async |request: Request| {
            let (method, path) = (request.method(), request.uri().path());
            let message = format!("{path}: {method} is not for this route");
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .layer(middleware::from_fn_with_state(app.clone(), authorise))
        .layer(middleware::from_fn(log))
        .layer(DefaultBodyLimit::max(app.options().body_limit))
        .with_state(app)
}

/// Says what was asked and how it was answered, a stream's first bytes at least.
async fn log(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let start = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    tracing::info!(%method, path, status, ms = start.elapsed().as_millis(), "answered");
    response
}

/// Lets pass who knows the key.
async fn authorise(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(key) = &app.options().api_key else { return next.run(request).await };
    if OPEN.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let header = request.headers().get(header::AUTHORIZATION);
    let given = header.and_then(|header| header.as_bytes().strip_prefix(b"Bearer "));
    // In a time that does not tell how much of it was right.
    let right = given.is_some_and(|given| given.ct_eq(key.as_bytes()).into());
    if right { next.run(request).await } else { ApiError::unauthorised().into_response() }
}

/// Tokens of a request, as OpenAI's API counts them.
#[derive(Clone, Debug, Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: Option<Details>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Details {
    cached_tokens: usize,
}

impl Usage {
    /// Of answers of which `n` belong to each prompt: it counts once.
    fn new(counts: &[Counts], n: usize) -> Self {
        let prompts = counts.chunks(n.max(1)).filter_map(<[_]>::first);
        let prompt_tokens = prompts.clone().map(|counts| counts.prompt).sum();
        let completion_tokens = counts.iter().map(|counts| counts.completion).sum();
        let cached: Option<usize> = prompts.map(|counts| counts.cached).sum();
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: cached.map(|cached_tokens| Details { cached_tokens }),
        }
    }
}

/// A log probability as JSON can have it.
fn finite(logprob: f32) -> f32 {
    /// What OpenAI's API says of what is next to impossible.
    const LEAST: f32 = -9999.0;
    logprob.max(LEAST)
}
