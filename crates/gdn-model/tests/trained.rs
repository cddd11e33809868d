//! A tiny model that was trained on two tasks answers as Hugging Face says it does.

mod common;

use std::fs;

use common::{CHECKPOINTS, Reference, folder, model, model_with};
use gdn::PrefillForm;
use gdn_model::{Error, Options, Tokenizer};
use serde_json::Value;

const TRAINED: &str = "qwen3_5_trained";
/// How many of 100 answers are right, theirs as ours: it is a tiny model.
const RIGHT: usize = 67;

#[test]
fn texts_have_the_same_tokens() {
    let tokenizer = Tokenizer::load(folder(TRAINED)).unwrap();
    for name in CHECKPOINTS {
        for (text, prompt, greedy_text) in Reference::new(name).texts_and_prompts() {
            assert_eq!(tokenizer.encode(&text).unwrap(), prompt.tokens, "{text:?}");
            assert_eq!(tokenizer.decode(&prompt.tokens).unwrap(), text);
            assert_eq!(tokenizer.decode(&prompt.greedy).unwrap(), greedy_text);
        }
    }
}

/// Sums of two digits, and recall of a value named earlier.
#[test]
fn answers_are_the_same_text() {
    let read = |file| fs::read_to_string(folder(TRAINED).join(file)).unwrap();
    let (prefix, questions) = (read("eval_prefix.txt"), read("eval.jsonl"));
    let tokenizer = Tokenizer::load(folder(TRAINED)).unwrap();
    for form in [PrefillForm::Recurrent, PrefillForm::Chunked] {
        let mut model = model_with(TRAINED, &Options::default().prefill(form));
        let mut right = 0;
        for line in questions.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |field: &str| line[field].as_str().unwrap().to_owned();
            let prompt = format!("{prefix}Question: {}\nAnswer:", text("question"));
            let (tokens, mut state) =
                (tokenizer.encode(&prompt).unwrap(), model.sequence().unwrap());
            let answer = model.generate_greedy(&mut state, &tokens, 14, &[]).unwrap();
            let answer = tokenizer.decode(&answer).unwrap();
            assert_eq!(answer, text("hf_f32_output"), "{form:?}: {}", text("question"));
            // The answer's last line; what follows it is the next question.
            let last = answer.lines().find_map(|line| line.strip_prefix("#### "));
            right += usize::from(last == Some(line["target"].to_string().as_str()));
        }
        assert_eq!(questions.lines().count(), 100);
        assert_eq!(right, RIGHT, "{form:?}");
    }
}

#[test]
fn generation_stops_and_goes_on() {
    let mut model = model(TRAINED);
    let prompt = [760, 12, 30];
    let mut state = model.sequence().unwrap();
    let all = model.generate_greedy(&mut state, &prompt, 12, &[]).unwrap();
    assert_eq!((all.len(), state.len()), (12, prompt.len() + 11));

    let mut state = model.sequence().unwrap();
    assert!(model.generate_greedy(&mut state, &prompt, 0, &[]).unwrap().is_empty());
    assert_eq!(state.len(), prompt.len());

    let mut state = model.sequence().unwrap();
    let stop = all.iter().position(|token| *token == all[5]).unwrap();
    let mut parts = model.generate_greedy(&mut state, &prompt, 12, &all[5..6]).unwrap();
    assert_eq!(parts, all[..=stop]);
    let rest = 12 - parts.len();
    parts.extend(model.generate_greedy(&mut state, &[all[stop]], rest, &[]).unwrap());
    assert_eq!(parts, all);
}

#[test]
fn a_tokenizer_that_is_not_there() {
    let empty = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(empty.path()).unwrap_err();
    assert!(matches!(error, Error::Tokenizer { .. }));
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}
