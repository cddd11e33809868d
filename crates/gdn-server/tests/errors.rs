//! Every way in which a request can be wrong.

mod common;

use std::time::Duration;

use common::{error, options, start, start_broken, start_with, with};
use gdn_engine::EngineOptions;
use serde_json::json;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn fields_are_named() {
    let server = start().await;
    let completion = json!({ "prompt": "a" });
    let chat = json!({ "messages": [{ "role": "user", "content": "a" }] });
    let tool = json!([{ "type": "function", "function": { "name": "f" } }]);
    let long = "7 ".repeat(5000);
    let cases = [
        (COMPLETIONS, json!({ "temperature": "hot" }), "temperature", "expected a number"),
        (COMPLETIONS, json!({ "temperature": -1 }), "temperature", "at least 0, got -1"),
        (COMPLETIONS, json!({ "top_p": 0 }), "top_p", "above 0 and at most 1, got 0"),
        (COMPLETIONS, json!({ "top_k": -2 }), "top_k", "expected -1 or a number above, got -2"),
        (COMPLETIONS, json!({ "n": 0 }), "n", "expected 1 to 128, got 0"),
        (COMPLETIONS, json!({ "n": 129 }), "n", "expected 1 to 128, got 129"),
        (COMPLETIONS, json!({ "n": 2, "best_of": 3 }), "best_of", "n = 2, got 3"),
        (COMPLETIONS, json!({ "max_tokens": -1 }), "max_tokens", "a whole number, at least 0"),
        (
            COMPLETIONS,
            json!({ "max_tokens": 5000 }),
            "max_tokens",
            "since the prompt has 1 of 4096",
        ),
        (COMPLETIONS, json!({ "prompt": long }), "prompt", "expected at most 4095 tokens"),
        (COMPLETIONS, json!({ "prompt": "" }), "prompt", "at least 1 token"),
        (COMPLETIONS, json!({ "prompt": [] }), "prompt", "at least 1 token"),
        (COMPLETIONS, json!({ "prompt": [1, 2048] }), "prompt[1]", "below 2048, got 2048"),
        (COMPLETIONS, json!({ "prompt": [1, "a"] }), "prompt[1]", "a whole number"),
        (COMPLETIONS, json!({ "prompt": null }), "prompt", "a list of tokens"),
        (COMPLETIONS, json!({ "prompt": vec!["a"; 1025] }), "prompt", "1 to 1024, got 1025"),
        (COMPLETIONS, json!({ "prompt": vec!["a"; 513], "n": 2 }), "n", "1024 answers"),
        (COMPLETIONS, json!({ "stop": vec!["a"; 17] }), "stop", "0 to 16, got 17"),
        (COMPLETIONS, json!({ "stop": ["a", ""] }), "stop[1]", "an empty one"),
        (COMPLETIONS, json!({ "stop": 7 }), "stop", "a text or a list of texts, got integer 7"),
        (COMPLETIONS, json!({ "logprobs": 21 }), "logprobs", "0 to 20, got 21"),
        (COMPLETIONS, json!({ "logprobs": true }), "logprobs", "a whole number"),
        (COMPLETIONS, json!({ "logit_bias": { "a": 1 } }), "logit_bias", "by number, got \"a\""),
        (COMPLETIONS, json!({ "logit_bias": { "1": 101 } }), "logit_bias.1", "-100 to 100"),
        (COMPLETIONS, json!({ "logit_bias": { "9999": 1 } }), "logit_bias", "below 2048"),
        (COMPLETIONS, json!({ "suffix": "b" }), "suffix", "expected none"),
        (COMPLETIONS, json!({ "guided_json": {} }), "guided_json", "not done here"),
        (CHAT, json!({ "functions": [{}] }), "functions", "not done here"),
        ("/generate", json!({ "text": "a", "lora_path": "b" }), "lora_path", "not done here"),
        (COMPLETIONS, json!({ "stream": "yes" }), "stream", "a boolean"),
        (CHAT, json!({ "messages": [] }), "messages", "1 to 4096, got 0"),
        (CHAT, json!({ "messages": null }), "messages", "expected a list"),
        (CHAT, json!({ "messages": [{ "content": "a" }] }), "messages[0].role", "got none"),
        (CHAT, json!({ "messages": [{ "role": "x", "content": "a" }] }), "messages", ""),
        (
            CHAT,
            json!({ "messages": [{ "role": "user", "content": 3 }] }),
            "messages[0].content",
            "",
        ),
        (
            CHAT,
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            "messages[0].content[0].type",
            "expected text",
        ),
        (CHAT, json!({ "max_tokens": 0 }), "max_tokens", "at least 1, got 0"),
        (CHAT, json!({ "max_completion_tokens": 9999 }), "max_completion_tokens", "at most"),
        (CHAT, json!({ "top_logprobs": 2 }), "top_logprobs", "logprobs to be true"),
        (CHAT, json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs", "0 to 20"),
        (CHAT, json!({ "tools": [{}] }), "tools[0].function.name", "the name of a function"),
        (CHAT, json!({ "tool_choice": "required" }), "tool_choice", "tools to choose from"),
        (CHAT, json!({ "tool_choice": "any", "tools": tool }), "tool_choice", "got any"),
        (
            CHAT,
            json!({ "tool_choice": { "function": { "name": "g" } }, "tools": tool }),
            "tool_choice",
            "one of tools",
        ),
        (
            CHAT,
            json!({ "response_format": { "type": "xml" } }),
            "response_format.type",
            "expected one of text, json_object, json_schema, got xml",
        ),
        (
            CHAT,
            json!({ "response_format": { "type": "json_schema",
                    "json_schema": { "schema": { "type": "strange" } } } }),
            "response_format.json_schema.schema",
            "",
        ),
        (
            CHAT,
            json!({ "tools": [{ "type": "search", "function": { "name": "f" } }] }),
            "tools[0].type",
            "expected function, got \"search\"",
        ),
        (
            CHAT,
            json!({ "tools": [{ "function": { "name": "f", "description": 0 } }] }),
            "tools[0].function.description",
            "expected a text, got 0",
        ),
        (
            CHAT,
            json!({ "tool_choice": { "type": 0, "function": { "name": "f" } }, "tools": tool }),
            "tool_choice.type",
            "expected function, got 0",
        ),
        (
            CHAT,
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": 0 } } }),
            "response_format",
            "expected a string, got integer 0",
        ),
        (
            COMPLETIONS,
            json!({ "response_format": { "type": "json_schema", "json_schema": { "strict": 0 } } }),
            "response_format",
            "expected a boolean, got integer 0",
        ),
        (
            CHAT,
            json!({ "messages": [
                { "role": "user", "content": "a" },
                { "role": "assistant", "tool_calls": [
                    { "function": { "name": "f", "arguments": "7" } },
                ] },
            ] }),
            "messages[1].tool_calls[0].function.arguments",
            "expected an object, as JSON in a text, got \"7\"",
        ),
        ("/tokenize", json!({}), "prompt", "got both or none"),
        ("/tokenize", json!({ "prompt": "a", "tools": [0] }), "tools[0].function.name", ""),
        ("/tokenize", json!({ "messages": [], "tools": [{}] }), "tools[0].function.name", ""),
        (
            "/tokenize",
            json!({ "prompt": "a", "chat_template_kwargs": [] }),
            "chat_template_kwargs",
            "expected an object",
        ),
        ("/detokenize", json!({}), "tokens", "got none"),
        ("/detokenize", json!({ "tokens": "a" }), "tokens", "a list"),
        ("/generate", json!({}), "text", "got both or none"),
        ("/generate", json!({ "text": [1, 2] }), "text", "texts in text"),
        ("/generate", json!({ "input_ids": "a" }), "input_ids", "tokens in input_ids"),
        (
            "/generate",
            json!({ "text": "a", "sampling_params": { "regex": "[^\\s\\S]" } }),
            "regex",
            "expected what some text can match",
        ),
        (
            "/generate",
            json!({ "text": "a", "sampling_params": { "top_p": 3 } }),
            "top_p",
            "at most 1, got 3",
        ),
        (
            "/generate",
            json!({ "text": ["a", "b"], "sampling_params": [{}] }),
            "sampling_params",
            "2 as there are prompts, got 1",
        ),
    ];
    for (path, more, param, words) in cases {
        let body = match path {
            COMPLETIONS => with(&completion, more),
            CHAT => with(&chat, more),
            _ => more,
        };
        let (status, message, field, _) = server.refused(path, &body).await;
        let shown = body.to_string().chars().take(200).collect::<String>();
        assert_eq!(status, 400, "{path} {shown}: {message}");
        assert_eq!(field, param, "{path} {shown}: {message}");
        assert!(message.contains(words), "{path} {shown}: {message}");
    }
    let (.., code) = server.refused(COMPLETIONS, &json!({ "prompt": "7 ".repeat(5000) })).await;
    assert_eq!(code, "context_length_exceeded");
    server.idle().await;
}

/// What can be left out.
#[tokio::test]
async fn defaults_of_forms_and_tools() {
    let server = start().await;
    let chat = json!({ "messages": [{ "role": "user", "content": "a" }], "max_tokens": 1 });
    let tools = json!({ "tools": [{ "function": { "name": "f", "description": null } }] });
    server.post(CHAT, &with(&chat, tools.clone())).await;
    let choice = json!({ "tool_choice": { "function": { "name": "f" } } });
    server.post(CHAT, &with(&with(&chat, tools), choice)).await;
    let format = json!({ "type": "json_schema", "json_schema": { "name": null, "strict": true } });
    server.post(CHAT, &with(&chat, json!({ "response_format": format }))).await;
}

/// Null is as good as no field; what is not known is left alone.
#[tokio::test]
async fn fields_that_ask_for_nothing() {
    let server = start().await;
    let nothing = json!({
        "temperature": null, "n": null, "stop": null, "logprobs": null, "seed": null,
        "stream": null, "stream_options": null, "max_tokens": 1, "logit_bias": null,
        "user": "me", "guided_json": null, "use_beam_search": false, "unheard_of": {},
        "response_format": null, "tools": null, "tool_choice": null, "model": null,
        "functions": [], "lora_path": null, "image_data": [],
    });
    server.post(COMPLETIONS, &with(&nothing, json!({ "prompt": "a" }))).await;
    let messages = json!([{ "role": "user", "content": "a" }]);
    server.post(CHAT, &with(&nothing, json!({ "messages": messages }))).await;
    let params = json!({ "text": "a", "sampling_params": nothing });
    server.post("/generate", &with(&nothing, params)).await;
}

#[tokio::test]
async fn bodies_that_are_no_objects() {
    let server = start().await;
    for (body, words) in [("{", "expected JSON"), ("", "expected JSON"), ("[1]", "got a list")] {
        let request = server.client.post(format!("{}{COMPLETIONS}", server.url)).body(body);
        let (status, message, ..) = error(request.send().await.unwrap()).await;
        assert_eq!(status, 400);
        assert!(message.contains(words), "{message}");
    }
}

#[tokio::test]
async fn what_is_not_there() {
    let server = start().await;
    let (status, message, param, code) =
        server.refused(COMPLETIONS, &json!({ "model": "other", "prompt": "a" })).await;
    assert_eq!((status, code), (404, json!("model_not_found")));
    assert_eq!((message.as_str(), param), ("model: expected tiny, got other", json!("model")));
    assert_eq!(server.refused("/v1/nothing", &json!({})).await.0, 404);
    assert_eq!(server.get("/v1/models/other").await.0, 404);
    let (status, message) = server.get(COMPLETIONS).await;
    assert_eq!(status, 405);
    assert!(message.contains("GET is not for this route"), "{message}");
}

#[tokio::test]
async fn only_who_knows_the_key() {
    let mut options = options();
    options.api_key = Some("secret".to_owned());
    let server = start_with(options, EngineOptions::default()).await;
    let ask = async |key: Option<&str>| {
        let request = server.client.get(format!("{}/v1/models", server.url));
        let request = match key {
            Some(key) => request.header("authorization", key),
            None => request,
        };
        request.send().await.unwrap()
    };
    for key in [None, Some("secret"), Some("Bearer secret "), Some("Bearer "), Some("Bearer x")] {
        let response = ask(key).await;
        let trimmed = key == Some("Bearer secret ");
        // Clients and servers trim white space around headers.
        if trimmed && response.status() == 200 {
            continue;
        }
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        let (status, .., code) = error(response).await;
        assert_eq!((status, code), (401, json!("invalid_api_key")), "{key:?}");
    }
    assert_eq!(ask(Some("Bearer secret")).await.status(), 200);
    for path in ["/health", "/metrics"] {
        assert_eq!(server.get(path).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn bodies_that_are_too_large() {
    let mut options = options();
    options.body_limit = 1000;
    let server = start_with(options, EngineOptions::default()).await;
    let body = json!({ "prompt": "a".repeat(2000) });
    let (status, message, ..) = server.refused(COMPLETIONS, &body).await;
    assert_eq!(status, 413);
    assert!(message.contains("at most 1000 bytes"), "{message}");
}

#[tokio::test]
async fn a_full_queue() {
    let mut of_engine = EngineOptions::default();
    of_engine.max_running_requests = 1;
    of_engine.max_queued_requests = 0;
    let server = start_with(options(), of_engine).await;
    let long = json!({
        "prompt": "a", "max_tokens": 4000, "ignore_eos": true, "stream": true,
    });
    let running = server.send(COMPLETIONS, &long).await;
    assert_eq!(running.status(), 200);
    let refused = server.send(COMPLETIONS, &json!({ "prompt": "a" })).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    let (status, .., code) = error(refused).await;
    assert_eq!((status, code), (429, json!("queue_full")));
    drop(running);
    server.idle().await;
    server.post(COMPLETIONS, &json!({ "prompt": "a" })).await;
}

#[tokio::test]
async fn a_server_that_stops() {
    let server = start().await;
    server.engine.stop();
    let refused = server.send(COMPLETIONS, &json!({ "prompt": "a" })).await;
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(error(refused).await.0, 503);
    for path in ["/health", "/health_generate"] {
        assert_eq!(server.get(path).await.0, 503, "{path}");
    }
}

/// A form that allows nothing but the end, before the end is allowed.
#[tokio::test]
async fn forms_end_before_min_tokens() {
    let server = start().await;
    let params = json!({ "regex": "", "min_new_tokens": 4, "max_new_tokens": 8 });
    let body = json!({ "text": "a", "sampling_params": params });
    let answer = server.post("/generate", &body).await;
    assert_eq!(answer["text"], "");
    assert_eq!(answer["meta_info"]["finish_reason"]["type"], "stop");
}

/// A model that gives no numbers.
#[tokio::test]
async fn answers_that_fail() {
    let server = start_broken().await;
    let params = json!({ "repetition_penalty": 2, "max_new_tokens": 8 });
    let body = json!({ "text": "a", "sampling_params": params });
    let (status, message, _, code) = server.refused("/generate", &body).await;
    assert_eq!((status, code), (500, json!("failed")), "{message}");
    let events = server.events("/generate", &body).await;
    assert_eq!(events.last().unwrap()["error"]["code"], "failed");
    server.idle().await;
    let (_, metrics) = server.get("/metrics").await;
    assert!(metrics.contains("gdn_requests_total{finish_reason=\"error\"} 2"), "{metrics}");
}

/// Clients that go away free what was held for them.
#[tokio::test]
async fn clients_that_go_away() {
    let server = start().await;
    let body = json!({ "prompt": "a", "max_tokens": 4000, "ignore_eos": true, "n": 3 });
    for stream in [true, false] {
        let body = with(&body, json!({ "stream": stream }));
        let sent = tokio::time::timeout(Duration::from_millis(200), async {
            let mut response = server.send(COMPLETIONS, &body).await;
            while response.chunk().await.unwrap().is_some() {}
        });
        assert!(sent.await.is_err(), "4000 tokens came in no time");
        server.idle().await;
    }
    let (_, metrics) = server.get("/metrics").await;
    assert!(metrics.contains("gdn_requests_total{finish_reason=\"abort\"} 6"), "{metrics}");
}

/// Those that run may finish; after a while they are ended.
#[tokio::test]
async fn shutdown_waits_for_what_runs() {
    for (timeout, tokens, finishes) in [(60, 400, true), (0, 4000, false)] {
        let mut options = options();
        options.shutdown_timeout = Duration::from_secs(timeout);
        let mut server = start_with(options, EngineOptions::default()).await;
        let body = json!({
            "prompt": "a", "max_tokens": tokens, "ignore_eos": true, "stream": true,
        });
        let response = server.send(COMPLETIONS, &body).await;
        server.shutdown.take().unwrap().send(()).unwrap();
        let text = response.text().await.unwrap();
        let last = common::events(&text).pop().unwrap();
        match finishes {
            true => assert_eq!(last["choices"][0]["finish_reason"], "length"),
            false => assert_eq!(last["error"]["code"], "stopping", "{last}"),
        }
        server.running.await.unwrap();
        let again = server.client.get(format!("{}/health", server.url)).send().await;
        assert!(again.is_err(), "nobody listens any more");
    }
}
