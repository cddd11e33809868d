//! What servers are asked, and how they answer.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::args::{BodyArgs, Fields};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Backend {
    /// SGLang's own route, /generate
    #[default]
    #[value(alias = "sglang-native")]
    Sglang,
    /// /v1/completions, on SGLang's port
    SglangOai,
    /// /v1/chat/completions, on SGLang's port
    SglangOaiChat,
    /// /v1/completions, on vLLM's port
    Vllm,
    /// /v1/chat/completions, on vLLM's port
    VllmChat,
}

/// The form of requests and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Generate,
    Completions,
    Chat,
}

impl Backend {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sglang => "sglang",
            Self::SglangOai => "sglang-oai",
            Self::SglangOaiChat => "sglang-oai-chat",
            Self::Vllm => "vllm",
            Self::VllmChat => "vllm-chat",
        }
    }

    pub(super) fn route(self) -> Route {
        match self {
            Self::Sglang => Route::Generate,
            Self::SglangOai | Self::Vllm => Route::Completions,
            Self::SglangOaiChat | Self::VllmChat => Route::Chat,
        }
    }

    pub(super) fn default_port(self) -> u16 {
        match self.is_sglang() {
            true => 30_000,
            false => 8_000,
        }
    }

    pub(super) fn is_sglang(self) -> bool {
        !matches!(self, Self::Vllm | Self::VllmChat)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A prompt, and how much of an answer it gets.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    pub(super) prompt: Prompt,
    pub(super) prompt_len: usize,
    pub(super) output_len: usize,
}

impl Route {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Generate => "/generate",
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
        }
    }

    /// The body of a request; what the flags add goes over the rest.
    pub(super) fn body(self, model: &str, request: &Request, args: &BodyArgs) -> Value {
        let Request { prompt, output_len, .. } = request;
        let (stream, ignore_eos) = (!args.disable_stream, !args.disable_ignore_eos);
        let mut body = match self {
            Self::Generate => {
                let input = match prompt {
                    Prompt::Text(_) => "text",
                    Prompt::Tokens(_) => "input_ids",
                };
                json!({
                    input: prompt,
                    "sampling_params": {
                        "temperature": 0.0,
                        "max_new_tokens": output_len,
                        "ignore_eos": ignore_eos,
                    },
                    "stream": stream,
                })
            }
            Self::Completions => json!({
                "model": model,
                "prompt": prompt,
                "best_of": 1,
                "max_tokens": output_len,
                "stream": stream,
                "temperature": 0.0,
                "ignore_eos": ignore_eos,
            }),
            Self::Chat => json!({
                "model": model,
                "messages": [{"role": "user", "content": prompt}],
                "max_completion_tokens": output_len,
                "stream": stream,
                "temperature": 0.0,
                "ignore_eos": ignore_eos,
            }),
        };
        if self != Self::Generate && stream {
            // Answers may be shorter than what was asked for.
            body["stream_options"] = json!({"include_usage": true});
        }
        if let (Some(body), Some(extra)) = (body.as_object_mut(), &args.extra_request_body) {
            body.extend(extra.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        body
    }

    /// What an event of a stream says, or the whole of an answer in one piece.
    pub(super) fn read(self, data: &[u8]) -> Result<Piece, NotAnAnswer> {
        let answer: Answer = serde_json::from_slice(data).map_err(|error| {
            let text = String::from_utf8_lossy(data);
            NotAnAnswer::Json { text: text.chars().take(200).collect(), error }
        })?;
        if let Some(error) = answer.error {
            let message = error.get("message").and_then(Value::as_str).map(str::to_owned);
            return Err(NotAnAnswer::Error(message.unwrap_or_else(|| error.to_string())));
        }
        if self == Self::Generate {
            let tokens = answer.meta_info.and_then(|meta| meta.completion_tokens);
            let text = answer.text.unwrap_or_default();
            if tokens.is_none() && !text.is_empty() {
                return Err(NotAnAnswer::NoTokenCount);
            }
            return Ok(Piece { text, tokens });
        }
        let tokens = answer.usage.and_then(|usage| usage.completion_tokens);
        let choice = answer.choices.into_iter().next().unwrap_or_default();
        let message = choice.delta.or(choice.message).unwrap_or_default();
        let chat = [message.reasoning_content.or(message.reasoning), message.content];
        let text = match self {
            Self::Chat => chat.into_iter().flatten().collect(),
            _ => choice.text.unwrap_or_default(),
        };
        Ok(Piece { text, tokens })
    }
}

/// What came of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The next of its text; of [`Route::Generate`] all so far.
    pub(super) text: String,
    /// How many tokens it has so far, where that is said.
    pub(super) tokens: Option<usize>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum NotAnAnswer {
    #[error("the server says: {0}")]
    Error(String),
    #[error("expected an answer's JSON, got {text:?}: {error}")]
    Json { text: String, error: serde_json::Error },
    #[error("expected meta_info.completion_tokens beside text, got none")]
    NoTokenCount,
}

/// All that is read of any answer.
#[derive(Debug, Deserialize)]
struct Answer {
    error: Option<Value>,
    text: Option<String>,
    meta_info: Option<Counts>,
    usage: Option<Counts>,
    #[serde(default)]
    choices: Vec<Choice>,
}

#[derive(Debug, Deserialize)]
struct Counts {
    completion_tokens: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Message>,
    message: Option<Message>,
}

/// Thoughts are tokens that a client waits for like others.
#[derive(Debug, Default, Deserialize)]
struct Message {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
}

/// The number of tokens that a server with speculation takes a step, as SGLang says it.
pub(super) fn accept_length(server_info: &Fields) -> Option<f64> {
    let info = server_info.get("decode").and_then(|decode| decode.get(0)?.as_object());
    let states = info.unwrap_or(server_info).get("internal_states")?;
    let length = states.get(0)?.get("avg_spec_accept_length")?.as_f64()?;
    (length > 0.0).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(route: Route, prompt: Prompt, args: &BodyArgs) -> Value {
        route.body("m", &Request { prompt, prompt_len: 2, output_len: 9 }, args)
    }

    fn args(extra: Option<Value>) -> BodyArgs {
        let extra_request_body = extra.map(|extra| extra.as_object().unwrap().clone());
        BodyArgs { disable_stream: false, disable_ignore_eos: false, extra_request_body }
    }

    #[test]
    fn bodies_are_those_of_their_routes() {
        let text = || Prompt::Text("hi".to_owned());
        let sampling = json!({"temperature": 0.0, "max_new_tokens": 9, "ignore_eos": true});
        assert_eq!(
            body(Route::Generate, text(), &args(None)),
            json!({"text": "hi", "sampling_params": sampling, "stream": true})
        );
        assert_eq!(
            body(Route::Generate, Prompt::Tokens(vec![3, 4]), &args(None))["input_ids"],
            json!([3, 4])
        );
        assert_eq!(
            body(Route::Completions, text(), &args(None)),
            json!({"model": "m", "prompt": "hi", "best_of": 1, "max_tokens": 9, "stream": true,
                "temperature": 0.0, "ignore_eos": true,
                "stream_options": {"include_usage": true}})
        );
        let chat = body(Route::Chat, text(), &args(None));
        assert_eq!(chat["messages"], json!([{"role": "user", "content": "hi"}]));
        assert_eq!(chat["max_completion_tokens"], 9);
    }

    #[test]
    fn flags_change_bodies() {
        let flags =
            BodyArgs { disable_stream: true, disable_ignore_eos: true, extra_request_body: None };
        let plain = body(Route::Completions, Prompt::Tokens(vec![1]), &flags);
        assert_eq!(plain["stream"], false);
        assert_eq!(plain["ignore_eos"], false);
        assert!(plain.get("stream_options").is_none());
        let extra = args(Some(json!({"temperature": 0.7, "ignore_eos": null, "top_k": 5})));
        let changed = body(Route::Chat, Prompt::Text(String::new()), &extra);
        assert_eq!(changed["temperature"], 0.7);
        assert_eq!(changed["ignore_eos"], Value::Null);
        assert_eq!(changed["top_k"], 5);
    }

    #[test]
    fn pieces_are_read() {
        let read = |route: Route, data: &str| {
            let Piece { text, tokens } = route.read(data.as_bytes()).unwrap();
            (text, tokens)
        };
        let text = |text: &str, tokens| (text.to_owned(), tokens);
        let generate = r#"{"text":"ab","meta_info":{"completion_tokens":2}}"#;
        assert_eq!(read(Route::Generate, generate), text("ab", Some(2)));
        let completion =
            r#"{"choices":[{"index":0,"text":"a","finish_reason":null}],"usage":null}"#;
        assert_eq!(read(Route::Completions, completion), text("a", None));
        let usage = r#"{"choices":[],"usage":{"completion_tokens":7,"prompt_tokens":1}}"#;
        assert_eq!(read(Route::Completions, usage), text("", Some(7)));
        assert_eq!(read(Route::Chat, usage), text("", Some(7)));
        let role = r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
        assert_eq!(read(Route::Chat, role), text("", None));
        let thought = r#"{"choices":[{"delta":{"reasoning_content":"hm","content":null}}]}"#;
        assert_eq!(read(Route::Chat, thought), text("hm", None));
        let whole =
            r#"{"choices":[{"message":{"content":"yes"}}],"usage":{"completion_tokens":1}}"#;
        assert_eq!(read(Route::Chat, whole), text("yes", Some(1)));
    }

    #[test]
    fn what_is_no_answer_says_so() {
        let error = |route: Route, data: &str| route.read(data.as_bytes()).unwrap_err().to_string();
        let said = r#"{"error":{"message":"out of slots","code":503}}"#;
        assert_eq!(error(Route::Completions, said), "the server says: out of slots");
        let text = r#"{"error":"no"}"#;
        assert_eq!(error(Route::Generate, text), "the server says: \"no\"");
        assert!(error(Route::Chat, "<html>").contains("\"<html>\""));
        assert!(error(Route::Generate, r#"{"text":"a"}"#).contains("completion_tokens"));
    }

    #[test]
    fn the_accept_length_is_found() {
        let of = |info: Value| accept_length(info.as_object().unwrap());
        let states = json!([{"avg_spec_accept_length": 2.5}]);
        assert_eq!(of(json!({"internal_states": states})), Some(2.5));
        assert_eq!(of(json!({"decode": [{"internal_states": states}]})), Some(2.5));
        assert_eq!(of(json!({"internal_states": []})), None);
        assert_eq!(of(json!({"internal_states": [{"avg_spec_accept_length": null}]})), None);
    }
}
