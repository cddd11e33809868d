//! The numbers of Hugging Face transformers in f32: see `fixtures/README.md`.
#![allow(clippy::print_stdout)] // How close it comes.

mod common;

use common::{CHECKPOINTS, Prompt, Reference, argmax, max_error, model, model_with, on_cpu};
use gdn::{DType, PrefillForm};
use gdn_model::{Model, Options};

/// On logits of up to 19, absolute. Theirs differ by 6e-6 between two of
/// their own ways to compute attention.
const TOLERANCE: f32 = 1e-4;
/// Two tokens that lie closer than this may change places.
const MARGIN: f32 = 1e-3;

fn check_logits(options: &Options) {
    for name in CHECKPOINTS {
        let (mut model, reference) = (model_with(name, options), Reference::new(name));
        let mut worst = 0.0f32;
        for prompt in reference.edges().into_iter().chain(reference.texts()) {
            let mut sequence = model.sequence().unwrap();
            let logits = model.forward(&mut sequence, &prompt.tokens).unwrap();
            let theirs = reference.tensor(&format!("{}.last_logits", prompt.name));
            let error = max_error(&logits, &theirs);
            assert!(error < TOLERANCE, "{name}: {}: {error}", prompt.name);
            worst = worst.max(error);
        }
        println!("{name}: {:?}: logits differ by {worst:.1e} at most", options.prefill);
    }
}

#[test]
fn logits_agree_after_recurrent_prefill() {
    check_logits(&Options::default());
}

#[test]
fn logits_agree_after_chunked_prefill() {
    check_logits(&Options::default().prefill(PrefillForm::Chunked));
}

/// Feeds their tokens, so that a close call does not spoil what follows.
fn check_greedy(model: &mut Model, prompt: &Prompt) -> usize {
    let mut state = model.sequence().unwrap();
    let mut logits = model.forward(&mut state, &prompt.tokens).unwrap();
    let mut clear = 0;
    for (i, (&token, &margin)) in prompt.greedy.iter().zip(&prompt.margins).enumerate() {
        if margin > MARGIN {
            assert_eq!(argmax(&logits), token, "{}: token {i}, margin {margin}", prompt.name);
            clear += 1;
        }
        logits = model.forward(&mut state, &[token]).unwrap();
    }
    clear
}

#[test]
fn greedy_tokens_agree() {
    for name in CHECKPOINTS {
        let (mut model, reference) = (model(name), Reference::new(name));
        let prompts: Vec<Prompt> = reference.edges().into_iter().chain(reference.texts()).collect();
        let clear: usize = prompts.iter().map(|prompt| check_greedy(&mut model, prompt)).sum();
        let all: usize = prompts.iter().map(|prompt| prompt.greedy.len()).sum();
        println!("{name}: {clear} of {all} tokens have a clear margin");
        assert!(clear * 100 >= all * 99, "{name}: {clear} of {all} say too little");
    }
}

#[test]
fn every_layer_agrees() {
    for name in CHECKPOINTS {
        let (mut model, reference) = (model(name), Reference::new(name));
        let (tokens, hidden) = (reference.deep(), model.config().hidden_size);
        let theirs = reference.tensor("deep.hidden");
        let theirs: Vec<&[f32]> = theirs.chunks_exact(tokens.len() * hidden).collect();
        assert_eq!(theirs.len(), model.config().layers.len() + 1);
        let (mut seen, mut worst) = (0, 0.0f32);
        let mut compare = |layer: usize, ours: &[f32]| {
            let scale = theirs[layer].iter().fold(1.0, |scale: f32, x| scale.max(x.abs()));
            let error = max_error(ours, theirs[layer]) / scale;
            assert!(error < 1e-5, "{name}: hidden states {layer}: {error}");
            (seen, worst) = (seen + 1, worst.max(error));
        };
        let mut state = model.sequence().unwrap();
        let logits = model.forward_observed(&mut state, &tokens, &mut compare).unwrap();
        assert_eq!(seen, theirs.len());
        println!("{name}: hidden states differ by {worst:.1e} of the largest at most");

        let rows = logits.chunks_exact(model.config().vocab_size).step_by(8);
        let error = max_error(
            &rows.flatten().copied().collect::<Vec<_>>(),
            &reference.tensor("deep.logits"),
        );
        assert!(error < TOLERANCE, "{name}: logits of all positions: {error}");
    }
}

#[test]
fn states_agree_after_prefill() {
    for name in CHECKPOINTS {
        for form in [PrefillForm::Recurrent, PrefillForm::Chunked] {
            let mut model = model_with(name, &Options::default().prefill(form));
            let (reference, spec) = (Reference::new(name), model.config().gdn.clone());
            let mut state = model.sequence().unwrap();
            model.forward(&mut state, &reference.deep()).unwrap();
            let ours = model.gdn_state(&state, 0).unwrap();

            // Ours is [HV, V, K] and [W − 1, C]; theirs [HV, K, V] and [C, W].
            let (k, v) = (spec.head_k(), spec.head_v());
            let theirs = reference.tensor("deep.layer0.recurrent_state");
            let theirs: Vec<f32> = (0..spec.state_len())
                .map(|i| theirs[i / (v * k) * v * k + i % k * v + i / k % v])
                .collect();
            let error = max_error(&ours.recurrent, &theirs);
            assert!(error < 1e-5, "{name}: {form:?}: recurrent state {error}");
            println!("{name}: {form:?}: recurrent state differs by {error:.1e} at most");

            let (channels, width) = (spec.channels(), spec.conv_width());
            let theirs = reference.tensor("deep.layer0.conv_state");
            let theirs: Vec<f32> = (0..(width - 1) * channels)
                .map(|i| theirs[i % channels * width + i / channels + 1])
                .collect();
            let error = max_error(&ours.conv, &theirs);
            assert!(error < 1e-5, "{name}: {form:?}: conv state {error}");
        }
    }
}

/// As a rule bf16 takes us less far from f32 than it takes Hugging Face, whose sums round more
/// often; at the worst, where rounding turns a close choice of a router, about as far.
#[test]
fn logits_in_bf16_are_within_their_spread() {
    if on_cpu() {
        return; // It has f32 alone.
    }
    let options = Options::default().activations(DType::BF16);
    for name in CHECKPOINTS {
        let (mut model, reference) = (model_with(name, &options), Reference::new(name));
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for prompt in reference.edges().into_iter().chain(reference.texts()) {
            let mut sequence = model.sequence().unwrap();
            let logits = model.forward(&mut sequence, &prompt.tokens).unwrap();
            let tensor = format!("{}.last_logits", prompt.name);
            let exact = reference.tensor(&tensor);
            ours.push(max_error(&logits, &exact));
            theirs.push(max_error(&reference.computed_in("bf16", &tensor), &exact));
        }
        let [ours, theirs] = [ours, theirs].map(|mut errors| {
            errors.sort_by(f32::total_cmp);
            (errors[errors.len() / 2], errors[errors.len() - 1])
        });
        println!("{name}: median and worst are {ours:.2?} off, Hugging Face's {theirs:.2?}");
        assert!(ours.0 < theirs.0, "{name}: {ours:?}, {theirs:?}");
        assert!(ours.1 < 1.25 * theirs.1, "{name}: {ours:?}, {theirs:?}");
    }
}
