//! Neither the number of threads nor how a prompt is split into calls shows.

mod common;

use common::{CHECKPOINTS, Reference, max_error, model_with};
use gdn::PrefillForm;
use gdn_model::{Model, Options};

/// The logits of every token of a prompt that comes in pieces.
fn logits(model: &mut Model, tokens: &[u32], piece: usize) -> Vec<f32> {
    let mut state = model.sequence().unwrap();
    let calls = tokens.chunks(piece).map(|piece| model.forward_all(&mut state, piece).unwrap());
    let logits = calls.collect::<Vec<_>>().concat();
    assert_eq!(state.len(), tokens.len());
    logits
}

fn prompt(name: &str) -> Vec<u32> {
    let longest = Reference::new(name).edges().into_iter().max_by_key(|edge| edge.tokens.len());
    longest.unwrap().tokens
}

#[test]
fn recurrent_prefill_has_the_same_bits_in_pieces_of_any_size() {
    for name in CHECKPOINTS {
        let (tokens, mut model) = (prompt(name), model_with(name, &Options::default()));
        let whole = logits(&mut model, &tokens, tokens.len());
        for piece in [1, 3, 64] {
            assert!(logits(&mut model, &tokens, piece) == whole, "{name}: pieces of {piece}");
        }
    }
}

#[test]
fn chunked_prefill_agrees_in_pieces_of_any_size() {
    for name in CHECKPOINTS {
        let options = Options::default().prefill(PrefillForm::Chunked);
        let (tokens, mut model) = (prompt(name), model_with(name, &options));
        let whole = logits(&mut model, &tokens, tokens.len());
        for piece in [1, 3, 64] {
            let error = max_error(&logits(&mut model, &tokens, piece), &whole);
            assert!(error < 1e-4, "{name}: pieces of {piece}: {error}");
        }
    }
}

#[test]
fn one_thread_and_three_give_the_same_bits() {
    for name in CHECKPOINTS {
        let tokens = prompt(name);
        let of = |threads| {
            let mut model = model_with(name, &Options::default().threads(threads));
            logits(&mut model, &tokens, 50)
        };
        assert!(of(1) == of(3), "{name}");
    }
}

#[test]
fn the_last_logits_are_the_last_of_all() {
    for name in CHECKPOINTS {
        let (tokens, mut model) = (prompt(name), model_with(name, &Options::default()));
        let all = logits(&mut model, &tokens, tokens.len());
        let mut state = model.sequence().unwrap();
        let last = model.forward(&mut state, &tokens).unwrap();
        assert!(last == all[all.len() - last.len()..], "{name}");
    }
}

#[test]
fn sequences_do_not_mix() {
    for name in CHECKPOINTS {
        let (tokens, mut model) = (prompt(name), model_with(name, &Options::default()));
        let (first, second) = tokens.split_at(tokens.len() / 2);
        let alone = [first, second].map(|tokens| logits(&mut model, tokens, 7));
        let (mut a, mut b) = (model.sequence().unwrap(), model.sequence().unwrap());
        let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
        for (first, second) in first.chunks(7).zip(second.chunks(7)) {
            of_a.extend(model.forward_all(&mut a, first).unwrap());
            of_b.extend(model.forward_all(&mut b, second).unwrap());
        }
        assert!([of_a, of_b] == alone, "{name}");
    }
}
