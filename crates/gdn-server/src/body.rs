//! Bodies of requests and answers.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::error::Category;

use crate::{
    App,
    error::{ApiError, Result},
};

/// The bytes of a request, of a bounded number.
#[derive(Debug)]
pub(crate) struct Body(Bytes);

impl FromRequest<App> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self> {
        match Bytes::from_request(request, app).await {
            Ok(bytes) => Ok(Self(bytes)),
            Err(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let limit = app.options().body_limit;
                let message = format!("body: expected at most {limit} bytes, got more");
                Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message))
            }
            Err(error) => Err(ApiError::body(format!("body: {}", error.body_text()))),
        }
    }
}

impl Body {
    /// Reads an object, as [`parse`] does.
    pub(crate) async fn read<T: DeserializeOwned + Send + 'static>(&self) -> Result<T> {
        // JSON is read some thirty times as fast as text is tokenised.
        let bytes = self.0.clone();
        off_thread(bytes.len() / 32, move || parse(&bytes)).await?
    }
}

/// Reads an object; an error names the field, what was expected and what came.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    // A list would be taken for the fields in order.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(ApiError::field("body", "expected an object, got a list"));
    }
    let deserializer = &mut serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut *deserializer);
    let (path, error) = match value {
        Ok(value) => match deserializer.end() {
            Ok(()) => return Ok(value),
            Err(error) => (String::new(), error),
        },
        Err(error) => (error.path().to_string(), error.into_inner()),
    };
    if error.classify() != Category::Data {
        return Err(ApiError::body(format!("body: expected JSON, got {error}")));
    }
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    if let Some(field) = what.strip_prefix("missing field `").and_then(|f| f.strip_suffix('`')) {
        let param = if path == "." { field.to_owned() } else { format!("{path}.{field}") };
        return Err(ApiError::field(param, "expected a value, got none"));
    }
    let param = if path == "." { "body".to_owned() } else { path };
    Err(ApiError::field(param, in_words(what)))
}

/// `invalid type: string "x", expected f32` the other way round, and in words.
fn in_words(what: &str) -> String {
    const WORDS: [(&str, &str); 8] = [
        ("usize", "a whole number, at least 0"),
        ("u64", "a whole number, at least 0"),
        ("u32", "a whole number, at least 0"),
        ("i64", "a whole number"),
        ("f32", "a number"),
        ("f64", "a number"),
        ("a sequence", "a list"),
        ("a map", "an object"),
    ];
    let Some((got, expected)) = what.rsplit_once(", expected ") else { return what.to_owned() };
    let got = ["invalid type: ", "invalid value: ", "unknown variant "]
        .iter()
        .find_map(|prefix| got.strip_prefix(prefix))
        .unwrap_or(got);
    let words = WORDS.iter().find(|(name, _)| *name == expected);
    let expected = match words {
        Some((_, words)) => words,
        None if expected.starts_with("struct ") => "an object",
        None => expected,
    };
    format!("expected {expected}, got {got}").replace('`', "")
}

/// An answer as JSON, straight from its fields: a detour over `serde_json::Value` would
/// give an `f32` other digits.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
            Err(error) => {
                tracing::error!("an answer can't be written as JSON: {error}");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

/// Above so many bytes work is done where it holds up no other connection.
const LONG: usize = 8 << 10;

/// Runs work on `bytes` bytes, elsewhere if they are many.
pub(crate) async fn off_thread<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    if bytes <= LONG {
        return Ok(work());
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::failed(format!("a task of the server failed: {error}")))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only parsed")]
    struct Fields {
        number: Option<f32>,
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only parsed")]
    struct Inner {
        count: usize,
    }

    #[test]
    fn errors_name_the_field() {
        let message = |text: &str| {
            let error = parse::<Fields>(text.as_bytes()).unwrap_err();
            serde_json::to_value(error.json()).unwrap()["error"]["message"].clone()
        };
        let cases = [
            ("{", "body: expected JSON, got EOF while parsing an object at line 1 column 1"),
            ("{}", "inner: expected a value, got none"),
            ("[]", "body: expected an object, got a list"),
            ("{\"inner\":[{}]}", "inner[0].count: expected a value, got none"),
            (
                "{\"inner\":[{\"count\":-1}]}",
                "inner[0].count: expected a whole number, at least 0, got integer -1",
            ),
            ("{\"inner\":[],\"number\":\"hot\"}", "number: expected a number, got string \"hot\""),
            ("{\"inner\":7}", "inner: expected a list, got integer 7"),
            ("3", "body: expected an object, got integer 3"),
        ];
        for (text, expected) in cases {
            assert_eq!(message(text), expected, "{text}");
        }
    }
}
