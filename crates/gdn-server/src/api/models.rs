//! Which model is served, and how.

use axum::{
    extract::{Path, State},
    response::IntoResponse,
};
use serde::Serialize;

use crate::{App, body::Json, error::Result};

#[derive(Serialize)]
struct Models {
    object: &'static str,
    data: [Model; 1],
}

#[derive(Serialize)]
struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: String,
    parent: Option<String>,
    max_model_len: usize,
}

impl Model {
    fn of(app: &App) -> Self {
        Self {
            id: app.options().served_model_name.clone(),
            object: "model",
            created: app.started(),
            owned_by: "gdn",
            root: app.options().model_path.clone(),
            parent: None,
            max_model_len: app.limit(),
        }
    }
}

pub(super) async fn models(State(app): State<App>) -> impl IntoResponse {
    Json(Models { object: "list", data: [Model::of(&app)] })
}

pub(super) async fn model(
    State(app): State<App>,
    Path(model): Path<String>,
) -> Result<impl IntoResponse> {
    app.check_model(Some(&model))?;
    Ok(Json(Model::of(&app)))
}

/// As SGLang tells of a model.
pub(super) async fn model_info(State(app): State<App>) -> impl IntoResponse {
    #[derive(Serialize)]
    struct Info<'a> {
        model_path: &'a str,
        tokenizer_path: &'a str,
        is_generation: bool,
    }
    let path = &app.options().model_path;
    Json(Info { model_path: path, tokenizer_path: path, is_generation: true }).into_response()
}

/// As SGLang tells of a server.
pub(super) async fn server_info(State(app): State<App>) -> impl IntoResponse {
    #[derive(Serialize)]
    struct Info<'a> {
        version: &'static str,
        model_path: &'a str,
        served_model_name: &'a str,
        context_length: usize,
        vocab_size: usize,
        max_running_requests: usize,
        max_queued_requests: usize,
        chunked_prefill_size: usize,
        disable_radix_cache: bool,
        internal_states: [State; 1],
    }
    #[derive(Serialize)]
    struct State {
        queued: usize,
        running: usize,
        slots_used: usize,
        slots_cached: usize,
        slots: usize,
        pages_used: usize,
        pages: usize,
    }
    let (options, engine, stats) = (app.options(), app.engine().options(), app.engine().stats());
    Json(Info {
        version: env!("CARGO_PKG_VERSION"),
        model_path: &options.model_path,
        served_model_name: &options.served_model_name,
        context_length: app.limit(),
        vocab_size: app.engine().vocab_size(),
        max_running_requests: engine.max_running_requests,
        max_queued_requests: engine.max_queued_requests,
        chunked_prefill_size: engine.chunked_prefill_size,
        disable_radix_cache: engine.cached_sequences == 0,
        internal_states: [State {
            queued: stats.queued,
            running: stats.running,
            slots_used: stats.slots_used,
            slots_cached: stats.slots_cached,
            slots: stats.slots,
            pages_used: stats.pages_used,
            pages: stats.pages,
        }],
    })
    .into_response()
}
