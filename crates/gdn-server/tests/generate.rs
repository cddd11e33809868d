//! SGLang's `/generate`.

mod common;

use common::{PROMPT, start, with};
use serde_json::{Value, json};

const PATH: &str = "/generate";

fn body() -> Value {
    json!({ "text": PROMPT, "sampling_params": { "max_new_tokens": 12, "temperature": 0 } })
}

#[tokio::test]
async fn answers_as_sglang_does() {
    let server = start().await;
    let answer = server.post(PATH, &with(&body(), json!({ "rid": "mine" }))).await;
    assert!(answer["text"].as_str().unwrap().starts_with(" 4 + 5 = 9\n#### 9"), "{answer}");
    let meta = &answer["meta_info"];
    assert_eq!(meta["id"], "mine");
    assert_eq!(meta["completion_tokens"], 12);
    assert_eq!(meta["finish_reason"], json!({ "type": "length", "length": 12 }));
    assert_eq!(answer["output_ids"].as_array().unwrap().len(), 12);
    assert!(meta["e2e_latency"].as_f64().unwrap() > 0.0);

    let tokens = server.post("/tokenize", &json!({ "prompt": PROMPT })).await;
    assert_eq!(meta["prompt_tokens"], tokens["count"]);
    let params = &body()["sampling_params"];
    let by_tokens = json!({ "input_ids": tokens["tokens"], "sampling_params": params });
    assert_eq!(server.post(PATH, &by_tokens).await["text"], answer["text"]);
    let list = json!({ "input_ids": [tokens["tokens"]], "sampling_params": [params] });
    assert_eq!(server.post(PATH, &list).await[0]["text"], answer["text"]);
    let two =
        json!({ "text": [PROMPT, PROMPT], "sampling_params": with(params, json!({ "n": 2 })) });
    let two = server.post(PATH, &two).await;
    assert_eq!(two.as_array().unwrap().len(), 4);
    assert!(two.as_array().unwrap().iter().all(|each| each["text"] == answer["text"]));
}

#[tokio::test]
async fn streams_have_all_text_so_far() {
    let server = start().await;
    for more in [json!({}), json!({ "text": [PROMPT, "Question:"] })] {
        let body = with(&body(), more);
        let whole = server.post(PATH, &body).await;
        let whole = whole.as_array().cloned().unwrap_or_else(|| vec![whole]);
        let events = server.events(PATH, &body).await;
        for (index, whole) in whole.iter().enumerate() {
            let its = events.iter().filter(|e| e["index"].as_u64().unwrap_or(0) == index as u64);
            let its: Vec<_> = its.collect();
            for pair in its.windows(2) {
                let [before, after] = [&pair[0]["text"], &pair[1]["text"]];
                assert!(after.as_str().unwrap().starts_with(before.as_str().unwrap()));
                assert_eq!(pair[0]["meta_info"]["finish_reason"], Value::Null);
            }
            let last = its.last().unwrap();
            assert_eq!(last["text"], whole["text"]);
            assert_eq!(last["output_ids"], whole["output_ids"]);
            for field in ["finish_reason", "completion_tokens", "prompt_tokens"] {
                assert_eq!(last["meta_info"][field], whole["meta_info"][field]);
            }
        }
    }
}

#[tokio::test]
async fn log_probabilities_are_triples() {
    let server = start().await;
    let asked = json!({
        "return_logprob": true, "logprob_start_len": 0, "top_logprobs_num": 2,
        "return_text_in_logprobs": true,
    });
    let answer = server.post(PATH, &with(&body(), asked)).await;
    let meta = &answer["meta_info"];
    let inputs = meta["input_token_logprobs"].as_array().unwrap();
    assert_eq!(inputs.len(), meta["prompt_tokens"].as_u64().unwrap() as usize);
    assert_eq!(inputs[0][0], Value::Null);
    assert_eq!(meta["input_top_logprobs"].as_array().unwrap().len(), inputs.len());
    let outputs = meta["output_token_logprobs"].as_array().unwrap();
    let texts: String = outputs.iter().map(|triple| triple[2].as_str().unwrap()).collect();
    assert_eq!(texts, answer["text"].as_str().unwrap());
    for (triple, top) in outputs.iter().zip(meta["output_top_logprobs"].as_array().unwrap()) {
        assert_eq!(*triple, top[0]);
        assert_eq!(top.as_array().unwrap().len(), 2);
    }
    let tail = json!({ "return_logprob": true, "logprob_start_len": 5 });
    let tail = server.post(PATH, &with(&body(), tail)).await;
    let tail = tail["meta_info"]["input_token_logprobs"].as_array().unwrap().clone();
    assert_eq!(tail.len(), inputs.len() - 5);
    assert_eq!(tail[0][0], inputs[5][0]);
}

#[tokio::test]
async fn answers_end_and_follow_forms() {
    let server = start().await;
    let params = |more: Value| {
        let all = with(&json!({ "max_new_tokens": 40, "temperature": 0 }), more);
        json!({ "text": PROMPT, "sampling_params": all })
    };
    let answer = server.post(PATH, &params(json!({ "stop": ["\n####"] }))).await;
    assert_eq!(answer["text"], " 4 + 5 = 9");
    let reason = json!({ "type": "stop", "matched": "\n####" });
    assert_eq!(answer["meta_info"]["finish_reason"], reason);
    let answer = server.post(PATH, &params(json!({ "regex": "(yes|no), [0-9]{2}" }))).await;
    let text = answer["text"].as_str().unwrap();
    let rest = text.strip_prefix("yes, ").or(text.strip_prefix("no, ")).unwrap();
    assert!(rest.len() == 2 && rest.parse::<u8>().is_ok(), "{text}");
    let schema = json!({ "enum": ["a", "b"] }).to_string();
    let answer = server.post(PATH, &params(json!({ "json_schema": schema }))).await;
    assert!(["\"a\"", "\"b\""].contains(&answer["text"].as_str().unwrap()), "{answer}");
}
