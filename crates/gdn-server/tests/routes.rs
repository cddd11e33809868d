//! Every route, and the document that describes them.

mod common;

use std::collections::BTreeSet;

use common::start;
use serde_json::{Value, json};

fn document() -> Value {
    serde_json::from_str(gdn_server::OPENAPI).unwrap()
}

#[test]
fn the_document_has_every_route_and_no_other() {
    let document = document();
    let described: BTreeSet<(&str, &str)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(|method| (method.as_str(), path.as_str()))
        })
        .collect();
    let routes: BTreeSet<_> = gdn_server::routes().into_iter().collect();
    assert_eq!(described, routes);
}

/// Every reference leads somewhere, and every schema is used.
#[test]
fn the_document_is_whole() {
    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str));
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for reference in &found {
        let target = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
        assert!(target.is_some(), "{reference}");
    }
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(found.contains(format!("#/components/schemas/{name}").as_str()), "{name}");
    }
}

/// The example of every route is answered with a status that the document names, and
/// with the fields that it requires.
#[tokio::test]
async fn what_the_document_says_is_true() {
    let server = start().await;
    let document = document();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let url = path.replace("{model}", "tiny");
        for (method, operation) in methods.as_object().unwrap() {
            let (status, text) = match method.as_str() {
                "get" => server.get(&url).await,
                "post" => {
                    let content = &operation["requestBody"]["content"]["application/json"];
                    let response = server.send(&url, &content["example"]).await;
                    (response.status(), response.text().await.unwrap())
                }
                other => panic!("{other}"),
            };
            assert_eq!(status, 200, "{method} {path}: {text}");
            let good = &operation["responses"]["200"]["content"]["application/json"]["schema"];
            let good = match good["$ref"].as_str() {
                Some(reference) => document.pointer(&reference[1..]).unwrap(),
                None => good,
            };
            if good["type"] != "object" {
                continue;
            }
            let answer: Value = serde_json::from_str(&text).unwrap();
            for field in good["required"].as_array().into_iter().flatten() {
                assert!(answer.get(field.as_str().unwrap()).is_some(), "{path}: no {field}");
            }
            if method == "post" {
                let wrong = server.send(&url, &json!({ "prompt": 3, "model": 4 })).await;
                let status = wrong.status().as_u16().to_string();
                assert!(operation["responses"].get(&status).is_some(), "{path}: {status}");
            }
        }
    }
}

#[tokio::test]
async fn the_model_is_described() {
    let server = start().await;
    let (_, models) = server.get("/v1/models").await;
    let models: Value = serde_json::from_str(&models).unwrap();
    let model = &models["data"][0];
    assert_eq!(model["id"], "tiny");
    assert_eq!(model["max_model_len"], 4096);
    let (_, same) = server.get("/v1/models/tiny").await;
    assert_eq!(serde_json::from_str::<Value>(&same).unwrap(), *model);
    let (_, info) = server.get("/get_server_info").await;
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["max_running_requests"], 8);
    assert_eq!(info["internal_states"][0]["slots"], 16);
}

#[tokio::test]
async fn text_to_tokens_and_back() {
    let server = start().await;
    let text = "What is 4 + 5? é 🙂<|im_end|>";
    let asked = json!({ "prompt": text, "return_token_strs": true });
    let tokens = server.post("/tokenize", &asked).await;
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    assert_eq!(tokens["token_strs"].as_array().unwrap().len(), tokens["count"]);
    assert_eq!(tokens["max_model_len"], 4096);
    let back = server.post("/detokenize", &json!({ "tokens": tokens["tokens"] })).await;
    assert_eq!(back["prompt"], text);
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    let tokens = server.post("/tokenize", &json!({ "messages": messages })).await;
    let back = server.post("/detokenize", &json!({ "tokens": tokens["tokens"] })).await;
    assert_eq!(back["prompt"], "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n");
    // Long ones are tokenised elsewhere, to the same.
    let long = text.repeat(2000);
    let tokens = server.post("/tokenize", &json!({ "prompt": long })).await;
    let back = server.post("/detokenize", &json!({ "tokens": tokens["tokens"] })).await;
    assert_eq!(back["prompt"], long);
}

/// 8.0 is a whole number, and what is above 0 is not 0.
#[tokio::test]
async fn numbers_are_those_of_json() {
    let server = start().await;
    let whole = json!({
        "prompt": [[31, 269], [31]], "max_tokens": 3, "n": 2, "best_of": 2, "logprobs": 1, "seed": 5,
        "temperature": 1, "top_k": 9, "min_tokens": 1, "stop_token_ids": [7],
    });
    let float = json!({
        "prompt": [[31.0, 269], [31.0]], "max_tokens": 3.0, "n": 2.0, "best_of": 2.0,
        "logprobs": 1.0, "seed": 5.0, "temperature": 1.0, "top_k": 9.0, "min_tokens": 1.0,
        "stop_token_ids": [7.0],
    });
    let [whole, float] = [
        server.post("/v1/completions", &whole).await,
        server.post("/v1/completions", &float).await,
    ];
    assert_eq!(whole["choices"], float["choices"]);
    let params = json!({
        "max_new_tokens": 2.0, "min_new_tokens": 1.0, "temperature": 5e-324, "top_p": 5e-324,
        "repetition_penalty": 5e-324,
    });
    let asked = json!({ "input_ids": [31.0], "sampling_params": params, "top_logprobs_num": 1.0,
                        "logprob_start_len": 0.0, "return_logprob": true });
    server.post("/generate", &asked).await;
    let asked = json!({ "prompt": "a", "max_tokens": 2, "repetition_penalty": 1e200 });
    server.post("/v1/completions", &asked).await;
    let chat = json!({ "messages": [{ "role": "user", "content": "a" }], "max_tokens": 2.0,
                       "logprobs": true, "top_logprobs": 2.0 });
    server.post("/v1/chat/completions", &chat).await;
    let back = server.post("/detokenize", &json!({ "tokens": [1.0, 2] })).await;
    assert_eq!(back, server.post("/detokenize", &json!({ "tokens": [1, 2] })).await);
}

/// Every metric that docs/metrics.md names is there, and no other.
#[tokio::test]
async fn metrics_are_those_of_the_document() {
    let server = start().await;
    server.post("/v1/completions", &json!({ "prompt": "a", "max_tokens": 3 })).await;
    let (status, text) = server.get("/metrics").await;
    assert_eq!(status, 200);
    let there: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let document = include_str!("../../../docs/metrics.md");
    let named: BTreeSet<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
        .map(|name| name.strip_suffix("_total").unwrap_or(name))
        .collect();
    assert_eq!(there, named);
    assert!(text.contains("gdn_generation_tokens_total 3"), "{text}");
    assert!(text.contains("gdn_requests_total{finish_reason=\"length\"} 1"), "{text}");
    assert!(text.contains("gdn_time_to_first_token_seconds_count 1"), "{text}");
}
