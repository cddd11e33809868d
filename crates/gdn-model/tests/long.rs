//! 30 000 decode steps: nothing becomes NaN, and the logits stay with those of Hugging
//! Face transformers.
#![allow(clippy::print_stdout)] // How close it comes.

mod common;

use std::fs;

use common::{altered::Altered, folder, max_error, model_at};
use gdn_model::Options;
use safetensors::SafeTensors;

/// Behind so many tokens the logits are known.
const MARKS: [usize; 5] = [1_000, 4_000, 10_000, 20_000, 30_000];
/// Of the state every so many elements are known.
const EVERY: usize = 61;
/// Ours may be off by so much more than two of their own ways differ by.
const SPREADS: f32 = 4.0;

/// The tokens that `fixtures/make_long.py` feeds.
fn tokens() -> impl Iterator<Item = u32> {
    let next = |x: &u64| Some((x * 1_103_515_245 + 12_345) % (1 << 31));
    std::iter::successors(next(&1), next).map(|x| (x >> 16) as u32 % 2015)
}

#[test]
fn logits_do_not_drift() {
    check(4_000);
}

/// Steps have ever more keys to look at: this takes minutes.
#[test]
#[ignore = "takes minutes: cargo test --release -p gdn-model --test long -- --ignored"]
fn logits_do_not_drift_in_30_000_steps() {
    check(30_000);
}

fn check(steps: usize) {
    let mut long = Altered::new("qwen3_5_dense");
    long.config["text_config"]["max_position_embeddings"] = steps.into();
    long.write();
    // The query heads of a key share its way from memory if they share a thread.
    let mut model = model_at(long.path(), &Options::default().sequences(1).threads(1));
    let mut sequence = model.sequence().unwrap();

    let file = fs::read(folder("qwen3_5_dense").join("long.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let reference = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).unwrap().data().as_chunks().0;
        data.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    let most = |name: &str| reference(name).into_iter().fold(0.0, f32::max);

    let theirs = reference("logits");
    let mut theirs = theirs.chunks_exact(model.config().vocab_size);
    let spread = most("logits.chunked").max(most("logits.f64"));
    for (i, token) in (1..=steps).zip(tokens()) {
        let logits = model.forward(&mut sequence, &[token]).unwrap();
        assert!(logits.iter().all(|logit| logit.is_finite()), "step {i}");
        if MARKS.contains(&i) {
            let error = max_error(&logits, theirs.next().unwrap());
            println!("step {i}: logits differ by {error:.1e}, theirs by {spread:.1e}");
            assert!(error < SPREADS * spread, "step {i}: {error}, theirs {spread}");
        }
    }

    if steps < MARKS[MARKS.len() - 1] {
        return;
    }
    // Ours is [HV, V, K], theirs [HV, K, V].
    let (spec, ours) = (model.config().gdn.clone(), model.gdn_state(&sequence, 0).unwrap());
    let (k, v) = (spec.head_k(), spec.head_v());
    let ours = |i: usize| ours.recurrent[i / (v * k) * v * k + i % v * k + i / v % k];
    let ours: Vec<f32> = (0..spec.state_len()).step_by(EVERY).map(ours).collect();
    let spread = most("state.chunked").max(most("state.f64"));
    let error = max_error(&ours, &reference("state"));
    println!("the state of layer 0 differs by {error:.1e}, theirs by {spread:.1e}");
    assert!(error < SPREADS * spread, "state of layer 0: {error}, theirs {spread}");
}
