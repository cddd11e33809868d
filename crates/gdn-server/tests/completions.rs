//! `/v1/completions`.

mod common;

use common::{PROMPT, joined, start, sum_form, with};
use serde_json::{Value, json};

const PATH: &str = "/v1/completions";

fn body() -> Value {
    json!({ "model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0 })
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}

#[tokio::test]
async fn prompts_of_all_forms_give_the_same() {
    let server = start().await;
    let answer = server.post(PATH, &body()).await;
    assert!(text(&answer).starts_with(" 4 + 5 = 9\n#### 9"), "{answer}");
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], "tiny");
    let tokens = server.post("/tokenize", &json!({ "prompt": PROMPT })).await;
    let tokens = tokens["tokens"].clone();
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], tokens.as_array().unwrap().len());
    assert_eq!(usage["completion_tokens"], 12);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");

    let by_tokens = server.post(PATH, &with(&body(), json!({ "prompt": tokens }))).await;
    assert_eq!(text(&by_tokens), text(&answer));
    for prompts in [json!([PROMPT, PROMPT]), json!([tokens, tokens])] {
        let both = server.post(PATH, &with(&body(), json!({ "prompt": prompts }))).await;
        for index in 0..2 {
            assert_eq!(both["choices"][index]["index"], index);
            assert_eq!(both["choices"][index]["text"], text(&answer));
        }
        assert_eq!(both["usage"]["completion_tokens"], 24);
    }
}

#[tokio::test]
async fn streams_add_up() {
    let server = start().await;
    let cases = [
        json!({}),
        json!({ "n": 3, "temperature": 1.0, "seed": 7 }),
        json!({ "prompt": [PROMPT, "Question:"], "n": 2, "temperature": 0.8, "seed": 1 }),
        json!({ "echo": true }),
        json!({ "echo": true, "logprobs": 3 }),
        json!({ "logprobs": 0 }),
        json!({ "stop": ["####"], "max_tokens": 40 }),
    ];
    for case in cases {
        let body = with(&body(), case);
        let whole = server.post(PATH, &body).await;
        let more = json!({ "stream_options": { "include_usage": true } });
        let mut events = server.events(PATH, &with(&body, more)).await;
        let last = events.pop().unwrap();
        assert_eq!(last["choices"], json!([]), "{last}");
        assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
        assert_eq!(last["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"]);
        let choices = whole["choices"].as_array().unwrap();
        let texts: Vec<_> = choices.iter().map(|c| c["text"].as_str().unwrap()).collect();
        assert_eq!(joined(&events, |choice| choice["text"].as_str()), texts, "{body}");
        for (index, choice) in choices.iter().enumerate() {
            let pieces = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
            let pieces: Vec<_> = pieces.filter(|piece| piece["index"] == index).collect();
            assert_eq!(pieces.last().unwrap()["finish_reason"], choice["finish_reason"]);
            assert_eq!(pieces.last().unwrap()["stop_reason"], choice["stop_reason"]);
            for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let all = pieces.iter().filter_map(|p| p["logprobs"][field].as_array()).flatten();
                let all: Vec<_> = all.cloned().collect();
                let expected = choice["logprobs"][field].as_array().cloned().unwrap_or_default();
                assert_eq!(all, expected, "{field} of {body}");
            }
        }
    }
}

#[tokio::test]
async fn n_answers_differ_and_come_again_with_the_seed() {
    let server = start().await;
    let hot = with(
        &body(),
        json!({ "prompt": "Question:", "n": 4, "best_of": 4, "temperature": 1.5, "seed": 3 }),
    );
    let texts = |answer: &Value| {
        let choices = answer["choices"].as_array().unwrap().iter();
        choices.map(|choice| choice["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let first = texts(&server.post(PATH, &hot).await);
    assert_eq!(first, texts(&server.post(PATH, &hot).await));
    let mut different = first.clone();
    different.sort();
    different.dedup();
    assert!(different.len() > 1, "{first:?}");
    let other = texts(&server.post(PATH, &with(&hot, json!({ "seed": 99 }))).await);
    assert_ne!(first, other);
    let none = with(&hot, json!({ "seed": null }));
    assert_ne!(texts(&server.post(PATH, &none).await), texts(&server.post(PATH, &none).await));
}

/// `n` answers run the pages of their prompt once, whichever of them the engine hears of first.
#[tokio::test]
async fn n_answers_share_their_prompt() {
    let server = start().await;
    let prompt: Vec<u32> = (0..300).map(|i| 20 + i % 50).collect();
    let body = json!({ "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": true });
    let four = server.post(PATH, &with(&body, json!({ "n": 4 }))).await;
    let stats = server.engine.stats();
    assert_eq!((stats.prompt_tokens, stats.cached_tokens), (4 * 300, 3 * 256));
    let one = start().await.post(PATH, &body).await;
    for index in 0..4 {
        assert_eq!(four["choices"][index]["text"], text(&one));
    }
}

/// What lm_eval asks for: log probabilities of the prompt, then of one token.
#[tokio::test]
async fn loglikelihood_of_a_prompt() {
    let server = start().await;
    let tokens = server.post("/tokenize", &json!({ "prompt": PROMPT })).await["tokens"].clone();
    let count = tokens.as_array().unwrap().len();
    let asked = json!({
        "prompt": [tokens], "max_tokens": 1, "logprobs": 1, "echo": true, "temperature": 0,
        "seed": 1234,
    });
    let answer = server.post(PATH, &with(&body(), asked)).await;
    let choice = &answer["choices"][0];
    let logprobs = &choice["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap();
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(name).len(), count + 1, "{name}");
    }
    assert_eq!(list("token_logprobs")[0], Value::Null);
    assert_eq!(list("top_logprobs")[0], Value::Null);
    assert_eq!(list("tokens").iter().map(|t| t.as_str().unwrap()).collect::<String>(), {
        let text = choice["text"].as_str().unwrap();
        assert!(text.starts_with(PROMPT));
        text
    });
    let mut greedy = 0;
    for (token, top) in list("token_logprobs").iter().zip(list("top_logprobs")).skip(1) {
        let (token, top) = (token.as_f64().unwrap(), top.as_object().unwrap());
        let best = top.values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert!(token <= best, "{token} of {top:?}");
        assert!(top.len() <= 2);
        greedy += usize::from(token == best);
    }
    // Most of what was learnt, and what was generated.
    assert!(greedy > count / 2, "{greedy} of {count}");
    let last = list("token_logprobs").last().unwrap().as_f64().unwrap();
    let top = list("top_logprobs").last().unwrap().as_object().unwrap();
    assert_eq!(top.values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max), last);

    // The same with nothing generated, and the same numbers.
    let none = with(&body(), json!({ "max_tokens": 0, "logprobs": 1, "echo": true }));
    let none = server.post(PATH, &none).await;
    assert_eq!(text(&none), PROMPT);
    let of_none = none["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!(of_none.as_slice(), &list("token_logprobs")[..count]);
    assert_eq!(none["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn answers_end_where_they_are_told() {
    let server = start().await;
    let stop = json!({ "stop": ["zebra", "\n####"], "max_tokens": 64 });
    let answer = server.post(PATH, &with(&body(), stop)).await;
    assert_eq!(text(&answer), " 4 + 5 = 9");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][0]["stop_reason"], "\n####");

    let plus = server.post("/tokenize", &json!({ "prompt": " +" })).await["tokens"][0].clone();
    let stop = json!({ "stop_token_ids": [plus] });
    let answer = server.post(PATH, &with(&body(), stop.clone())).await;
    assert_eq!(text(&answer), " 4");
    assert_eq!(answer["choices"][0]["stop_reason"], plus);
    let later = with(&with(&body(), stop), json!({ "min_tokens": 5 }));
    let later = server.post(PATH, &later).await;
    assert!(later["usage"]["completion_tokens"].as_u64().unwrap() >= 5, "{later}");

    let biased = json!({ "logit_bias": { plus.to_string(): 100 }, "max_tokens": 3 });
    let answer = server.post(PATH, &with(&body(), biased)).await;
    assert_eq!(text(&answer), " + + +");
}

#[tokio::test]
async fn answers_have_the_form_that_is_asked_for() {
    let server = start().await;
    let asked = with(&body(), json!({ "response_format": sum_form(), "max_tokens": 200 }));
    let answer = server.post(PATH, &asked).await;
    let value: Value = serde_json::from_str(text(&answer)).unwrap();
    assert!(value["sum"].as_u64().unwrap() <= 18, "{value}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}
