//! How the server is.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::OPENAPI;
use crate::{
    App,
    body::Json,
    error::{ApiError, Result},
};

pub(super) async fn health(State(app): State<App>) -> Result<StatusCode> {
    if app.engine().is_ready() { Ok(StatusCode::OK) } else { Err(ApiError::stopping()) }
}

pub(super) async fn metrics(State(app): State<App>) -> Result<Response> {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = app.metrics().encode().map_err(|error| ApiError::failed(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response())
}

pub(super) async fn version() -> impl IntoResponse {
    #[derive(Serialize)]
    struct Version {
        version: &'static str,
    }
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}

pub(super) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}
