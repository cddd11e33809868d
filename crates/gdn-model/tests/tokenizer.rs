//! Text that comes token by token is the text of all tokens.

mod common;

use common::{CHECKPOINTS, Reference, folder};
use gdn_model::{Error, TextStream, Tokenizer};
use serde_json::Value;

const VOCAB: u32 = 2048;

fn tokenizer() -> Tokenizer {
    Tokenizer::load(folder("qwen3_5_trained")).unwrap()
}

fn parts(mut stream: TextStream, tokens: &[u32]) -> Vec<String> {
    let mut parts: Vec<_> =
        tokens.iter().filter_map(|&token| stream.push(token).unwrap()).collect();
    parts.extend(stream.finish());
    assert!(stream.finish().is_none());
    parts
}

#[track_caller]
fn check(tokenizer: &Tokenizer, tokens: &[u32]) {
    let with = parts(tokenizer.stream(), tokens);
    assert_eq!(with.concat(), tokenizer.decode(tokens).unwrap(), "{tokens:?}");
    let without = parts(tokenizer.stream().skip_special(), tokens);
    assert_eq!(without.concat(), tokenizer.decode_text(tokens).unwrap(), "{tokens:?}");
    assert!(with.iter().chain(&without).all(|part| !part.is_empty()));
}

#[test]
fn parts_add_up_to_the_text() {
    let tokenizer = tokenizer();
    for name in CHECKPOINTS {
        for prompt in Reference::new(name).texts() {
            check(&tokenizer, &prompt.tokens);
            check(&tokenizer, &prompt.greedy);
        }
    }
    check(&tokenizer, &[]);
    // Every token alone, padding of the vocabulary and beyond.
    (0..VOCAB + 10).for_each(|token| check(&tokenizer, &[token]));
}

/// Among random tokens are many that hold a part of a character.
#[test]
fn random_tokens_add_up() {
    let tokenizer = tokenizer();
    let mut random = 1u32;
    let mut next = || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Of bytes, of the whole vocabulary, special ones.
        match (random >> 8) % 4 {
            0 => (random >> 10) % VOCAB,
            1 => 2015 + (random >> 10) % 33,
            _ => (random >> 10) % 256,
        }
    };
    for _ in 0..500 {
        let tokens: Vec<_> = (0..40).map(|_| next()).collect();
        check(&tokenizer, &tokens);
    }
}

#[test]
fn a_character_comes_whole() {
    let tokenizer = tokenizer();
    let text = "a🙂é日本";
    let tokens = tokenizer.encode(text).unwrap();
    assert!(tokens.len() > text.chars().count(), "no character is split: {tokens:?}");
    let mut stream = tokenizer.stream();
    for &token in &tokens {
        let part = stream.push(token).unwrap().unwrap_or_default();
        assert!(!part.contains(char::REPLACEMENT_CHARACTER), "{part:?}");
    }
    assert_eq!(stream.finish(), None);

    // Cut short in the emoji.
    let mut cut = tokenizer.stream();
    assert_eq!(cut.push(tokens[0]).unwrap().as_deref(), Some("a"));
    assert_eq!(cut.push(tokens[1]).unwrap(), None);
    assert_eq!(cut.finish().as_deref(), Some("\u{fffd}"));
}

/// Bytes that never become a character must not pile up, or time would be quadratic.
#[test]
fn bytes_without_a_character_come_at_once() {
    let tokenizer = tokenizer();
    let mut stream = tokenizer.stream();
    let bad = Some("\u{fffd}");
    let continuation =
        (0..256).find(|&token| tokenizer.stream().push(token).unwrap().as_deref() == bad).unwrap();
    for _ in 0..100_000 {
        assert_eq!(stream.push(continuation).unwrap().as_deref(), bad);
    }
}

#[test]
fn special_tokens_have_names() {
    let tokenizer = tokenizer();
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    assert_eq!(end, 2017);
    assert!(tokenizer.is_special(end));
    assert!(!tokenizer.is_special(5) && !tokenizer.is_special(VOCAB * 2));
    assert_eq!(tokenizer.token_id("<|nonsense|>"), None);
    let tokens = tokenizer.encode("a<|im_end|>b").unwrap();
    assert_eq!(tokenizer.decode_text(&tokens).unwrap(), "ab");
    let parts = parts(tokenizer.stream().skip_special(), &tokens);
    assert_eq!(parts, ["a", "b"]);
}

#[test]
fn tokens_that_are_not_of_bytes_are_refused() {
    let text = std::fs::read_to_string(folder("qwen3_5_trained").join("tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json["decoder"] = serde_json::json!({ "type": "Fuse" });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let error = Tokenizer::load(folder.path()).unwrap().stream().push(5).unwrap_err();
    assert!(matches!(error, Error::Tokenizer { .. }));
    assert!(error.to_string().contains("expected ByteLevel"), "{error}");
}
