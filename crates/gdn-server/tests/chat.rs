//! `/v1/chat/completions`.

mod common;

use common::{Server, joined, start, sum_form, with};
use serde_json::{Value, json};

const PATH: &str = "/v1/chat/completions";

fn body() -> Value {
    json!({
        "messages": [{ "role": "user", "content": "What is 4 + 5?" }],
        "max_tokens": 24,
        "temperature": 0,
    })
}

fn no_thinking() -> Value {
    json!({ "chat_template_kwargs": { "enable_thinking": false } })
}

fn weather() -> Value {
    json!([{
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": { "type": "string", "enum": ["Oslo", "Rome"] },
                    "days": { "type": "integer", "minimum": 1, "maximum": 9 },
                },
                "required": ["city", "days"],
            },
        },
    }])
}

fn message(answer: &Value) -> &Value {
    &answer["choices"][0]["message"]
}

/// A bias to `</think>` and nothing else.
async fn stop_thinking(server: &Server) -> Value {
    let tokens = server.post("/tokenize", &json!({ "prompt": "</think>" })).await;
    assert_eq!(tokens["count"], 1);
    json!({ "logit_bias": { tokens["tokens"][0].to_string(): 100 } })
}

#[tokio::test]
async fn thoughts_are_told_apart() {
    let server = start().await;
    // The template opens thoughts, which the tiny model never closes.
    let answer = server.post(PATH, &body()).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(message(&answer)["role"], "assistant");
    assert_eq!(message(&answer)["content"], "");
    let thoughts = message(&answer)["reasoning_content"].as_str().unwrap();
    assert!(!thoughts.is_empty());
    assert_eq!(answer["choices"][0]["finish_reason"], "length");

    let answer = server.post(PATH, &with(&body(), no_thinking())).await;
    assert!(message(&answer).get("reasoning_content").is_none(), "{answer}");
    assert!(!message(&answer)["content"].as_str().unwrap().is_empty());

    let together = with(&body(), json!({ "separate_reasoning": false }));
    let answer = server.post(PATH, &together).await;
    assert!(message(&answer).get("reasoning_content").is_none());
    assert_eq!(message(&answer)["content"].as_str().unwrap().trim(), thoughts);
}

#[tokio::test]
async fn streams_add_up() {
    let server = start().await;
    let cases = [
        json!({}),
        no_thinking(),
        json!({ "n": 2, "temperature": 1.0, "seed": 5, "logprobs": true, "top_logprobs": 2 }),
        json!({ "stop": "e", "max_completion_tokens": 40 }),
        with(&no_thinking(), json!({ "tools": weather(), "tool_choice": "required" })),
    ];
    for case in cases {
        let body = with(&body(), case);
        let whole = server.post(PATH, &body).await;
        let more = json!({ "stream_options": { "include_usage": true } });
        let mut events = server.events(PATH, &with(&body, more)).await;
        let last = events.pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
        assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(events[0]["object"], "chat.completion.chunk");
        for field in ["content", "reasoning_content"] {
            let choices = whole["choices"].as_array().unwrap().iter();
            let texts: Vec<_> =
                choices.map(|c| c["message"][field].as_str().unwrap_or_default()).collect();
            assert_eq!(joined(&events, |choice| choice["delta"][field].as_str()), texts, "{body}");
        }
        let pieces: Vec<&Value> = events.iter().map(|event| &event["choices"][0]).collect();
        for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            let its = || pieces.iter().filter(|piece| piece["index"] == index);
            assert_eq!(its().next_back().unwrap()["finish_reason"], choice["finish_reason"]);
            let logprobs: Vec<_> = its()
                .filter_map(|piece| piece["logprobs"]["content"].as_array())
                .flatten()
                .cloned()
                .collect();
            let expected = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
            assert_eq!(logprobs, expected);
        }
        let calls = whole["choices"][0]["message"]["tool_calls"].as_array();
        let name =
            |piece: &&&Value| piece["delta"]["tool_calls"][0]["function"]["name"].is_string();
        assert_eq!(pieces.iter().filter(name).count(), calls.map_or(0, Vec::len));
        if let Some(calls) = calls {
            let arguments = joined(&events, |choice| {
                choice["delta"]["tool_calls"][0]["function"]["arguments"].as_str()
            });
            let expected = calls.iter().map(|c| c["function"]["arguments"].as_str().unwrap());
            assert_eq!(arguments[0], expected.collect::<String>());
        }
    }
}

#[tokio::test]
async fn log_probabilities_of_chats() {
    let server = start().await;
    let asked = json!({ "logprobs": true, "top_logprobs": 3, "max_tokens": 5 });
    let answer = server.post(PATH, &with(&body(), asked)).await;
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 5);
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy: the token is the most likely one, with the same number.
        assert_eq!(token["logprob"], top[0]["logprob"]);
        assert_eq!(token["token"], top[0]["token"]);
        let bytes = token["bytes"].as_array().unwrap().iter();
        let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
        assert_eq!(String::from_utf8_lossy(&bytes), token["token"].as_str().unwrap());
    }
}

#[tokio::test]
async fn tools_are_called_where_they_must_be() {
    let server = start().await;
    let named = json!({ "type": "function", "function": { "name": "weather" } });
    for choice in [json!("required"), named] {
        let asked = json!({
            "tools": weather(), "tool_choice": choice, "parallel_tool_calls": false,
            "max_tokens": 128,
        });
        let answer = server.post(PATH, &with(&with(&body(), no_thinking()), asked)).await;
        let calls = message(&answer)["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1, "{answer}");
        assert_eq!(calls[0]["type"], "function");
        assert!(calls[0]["id"].as_str().unwrap().starts_with("call-"));
        assert_eq!(calls[0]["function"]["name"], "weather");
        let arguments = calls[0]["function"]["arguments"].as_str().unwrap();
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        assert!(["Oslo", "Rome"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");
        assert!((1..=9).contains(&arguments["days"].as_i64().unwrap()), "{arguments}");
        assert_eq!(message(&answer)["content"], Value::Null);
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");

        // And what came of it goes back.
        let mut messages = body()["messages"].clone();
        let answers = json!({ "role": "tool", "tool_call_id": calls[0]["id"], "content": "rain" });
        messages.as_array_mut().unwrap().extend([message(&answer).clone(), answers]);
        server
            .post(PATH, &with(&body(), json!({ "messages": messages, "tools": weather() })))
            .await;
    }
}

#[tokio::test]
async fn a_form_holds_behind_thoughts() {
    let server = start().await;
    let asked = json!({ "response_format": sum_form(), "max_tokens": 200 });
    let closed = with(&with(&body(), asked.clone()), no_thinking());
    let open = with(&with(&body(), asked), stop_thinking(&server).await);
    for body in [closed, open] {
        let answer = server.post(PATH, &body).await;
        let content = message(&answer)["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(content).unwrap();
        assert!(value["sum"].as_u64().unwrap() <= 18, "{value}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    let object = json!({ "response_format": { "type": "json_object" }, "max_tokens": 4 });
    let answer = server.post(PATH, &with(&with(&body(), object), no_thinking())).await;
    assert!(message(&answer)["content"].as_str().unwrap().starts_with('{'));
}

#[tokio::test]
async fn messages_may_come_in_parts() {
    let server = start().await;
    let parts =
        json!([{ "type": "text", "text": "What is " }, { "type": "text", "text": "4 + 5?" }]);
    let messages = json!([{ "role": "user", "content": parts }]);
    let whole = server.post(PATH, &body()).await;
    let answer = server.post(PATH, &with(&body(), json!({ "messages": messages }))).await;
    assert_eq!(message(&answer), message(&whole));
    let developer = json!([{ "role": "developer", "content": "Be brief." }, body()["messages"][0]]);
    let system = json!([{ "role": "system", "content": "Be brief." }, body()["messages"][0]]);
    let tokens = async |messages: Value| {
        server.post("/tokenize", &json!({ "messages": messages })).await["tokens"].clone()
    };
    assert_eq!(tokens(developer).await, tokens(system).await);
}

/// A later turn of a conversation runs only what is new.
#[tokio::test]
async fn later_turns_are_cached() {
    let server = start().await;
    let long = "It rains in Oslo. ".repeat(60);
    let mut messages = json!([{ "role": "user", "content": long }]);
    let ask =
        |messages: &Value| with(&with(&body(), no_thinking()), json!({ "messages": messages }));
    let first = server.post(PATH, &ask(&messages)).await;
    let turns = [message(&first).clone(), json!({ "role": "user", "content": "And Rome?" })];
    messages.as_array_mut().unwrap().extend(turns);
    let second = server.post(PATH, &ask(&messages)).await;
    let cached = &second["usage"]["prompt_tokens_details"]["cached_tokens"];
    let of_first = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(cached.as_u64().unwrap() > of_first - 16, "{cached} of {of_first}");
}
