//! Errors in the form of OpenAI's API.

use std::borrow::Cow;

use axum::{
    http::{HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use gdn_engine::SubmitError;
use serde::Serialize;

pub(crate) type Result<T, E = ApiError> = std::result::Result<T, E>;

/// What a client is told.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: Option<&'static str>,
    param: Option<Cow<'static, str>>,
    message: String,
    /// A header that goes with it: its name, in small letters, and its value.
    header: Option<[&'static str; 2]>,
}

/// By when a full queue has moved on.
const RETRY_QUEUE: [&str; 2] = ["retry-after", "1"];
/// By when another server may have taken over.
const RETRY_STOPPING: [&str; 2] = ["retry-after", "10"];

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, code: None, param: None, message: message.into(), header: None }
    }

    /// A field of the request that is wrong; `what` says what was expected and came.
    pub(crate) fn field(param: impl Into<Cow<'static, str>>, what: impl AsRef<str>) -> Self {
        let param = param.into();
        let message = format!("{param}: {}", what.as_ref());
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// A request that is wrong as a whole.
    pub(crate) fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn too_long(limit: usize, got: usize, param: &'static str) -> Self {
        let what = format!("expected at most {limit} tokens, got {got}; shorten it");
        Self { code: Some("context_length_exceeded"), ..Self::field(param, what) }
    }

    pub(crate) fn unknown_model(served: &str, got: &str) -> Self {
        let message = format!("model: expected {served}, got {got}");
        Self {
            code: Some("model_not_found"),
            param: Some("model".into()),
            ..Self::new(StatusCode::NOT_FOUND, message)
        }
    }

    pub(crate) fn unauthorised() -> Self {
        let message = "expected the server's key in a header: Authorization: Bearer KEY";
        Self {
            code: Some("invalid_api_key"),
            header: Some(["www-authenticate", "Bearer"]),
            ..Self::new(StatusCode::UNAUTHORIZED, message)
        }
    }

    pub(crate) fn stopping() -> Self {
        Self {
            code: Some("stopping"),
            header: Some(RETRY_STOPPING),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server stops; ask another one")
        }
    }

    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self { code: Some("failed"), ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, reason) }
    }

    /// What the engine says of a prompt that is called `prompt` in the request.
    pub(crate) fn submit(error: SubmitError, prompt: &'static str) -> Self {
        match error {
            SubmitError::QueueFull { .. } => Self {
                code: Some("queue_full"),
                header: Some(RETRY_QUEUE),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string())
            },
            SubmitError::Stopping => Self::stopping(),
            SubmitError::NoTokens => Self::field(prompt, "expected at least 1 token, got 0"),
            SubmitError::TooLong { limit, got } => Self::too_long(limit, got, prompt),
            SubmitError::Invalid(gdn_model::Error::Token { index, vocab, got }) => {
                let what = format!("expected a token below {vocab}, got {got}");
                Self::field(format!("{prompt}[{index}]"), what)
            }
            SubmitError::Invalid(error) => Self::model(error),
            error => Self::body(error.to_string()),
        }
    }

    /// What a tokenizer, a template or the ranges of sampling say of a request.
    pub(crate) fn model(error: gdn_model::Error) -> Self {
        match error {
            gdn_model::Error::Sampling { name, expected, got } => {
                Self::field(name, format!("expected {expected}, got {got}"))
            }
            // Not the path on this machine.
            gdn_model::Error::ChatTemplate { reason, .. } => Self::field("messages", reason),
            gdn_model::Error::Tokenizer { reason, .. } => Self::body(reason),
            error => Self::body(error.to_string()),
        }
    }

    /// The object that clients read.
    pub(crate) fn json(&self) -> impl Serialize {
        #[derive(Serialize)]
        struct Outer {
            error: Inner,
        }
        #[derive(Serialize)]
        struct Inner {
            message: String,
            r#type: &'static str,
            param: Option<String>,
            code: serde_json::Value,
        }
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "service_unavailable_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let code = match self.code {
            Some(code) => code.into(),
            None => self.status.as_u16().into(),
        };
        let param = self.param.as_ref().map(|param| param.clone().into_owned());
        Outer { error: Inner { message: self.message.clone(), r#type: kind, param, code } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::warn!(status = self.status.as_u16(), "{}", self.message);
        }
        let mut response = (self.status, crate::body::Json(self.json())).into_response();
        if let Some([name, value]) = self.header {
            let value = HeaderValue::from_static(value);
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
        response
    }
}
