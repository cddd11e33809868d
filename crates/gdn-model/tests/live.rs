//! Models that are made now, of other shapes than the fixtures, beside Hugging Face
//! transformers as it is installed here. `GDN_PYTHON` names the Python that has it.
#![allow(clippy::print_stderr)] // Why it is skipped.

mod common;

use std::{env, process::Command};

use common::{CHECKPOINTS, Reference, argmax, folder, max_error, model_at};
use gdn_model::Options;

/// Three value heads for a key head; the last layer is no attention.
#[test]
fn more_value_heads_agree() {
    check(&["--seed", "11", "--v-heads", "6", "--layers", "5"]);
}

/// Three query heads for a head of keys, and a key head for each value head.
#[test]
fn other_widths_agree() {
    let heads = ["--heads", "6", "--kv-heads", "2", "--k-heads", "3", "--v-heads", "3"];
    check(&[&["--seed", "12", "--hidden", "96", "--layers", "4"], &heads[..]].concat());
}

fn check(shape: &[&str]) {
    let python = env::var("GDN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = "import torch, transformers; assert transformers.__version__ >= '5.17'";
    let found = Command::new(&python).args(["-c", probe]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {python} has no transformers 5.17; set GDN_PYTHON to one that has");
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let script = folder("make_tiny_qwen.py");
    let made = Command::new(&python).arg(script).arg("--out").arg(out.path()).args(shape).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for name in CHECKPOINTS {
        let folder = out.path().join(name);
        let (mut model, reference) =
            (model_at(&folder, &Options::default()), Reference::at(&folder));
        for prompt in reference.edges() {
            let mut sequence = model.sequence().unwrap();
            let mut logits = model.forward(&mut sequence, &prompt.tokens).unwrap();
            let theirs = reference.tensor(&format!("{}.last_logits", prompt.name));
            let error = max_error(&logits, &theirs);
            assert!(error < 1e-4, "{name}: {}: {error}", prompt.name);
            for (&token, &margin) in prompt.greedy.iter().zip(&prompt.margins) {
                assert!(margin < 1e-3 || argmax(&logits) == token, "{name}: {}", prompt.name);
                logits = model.forward(&mut sequence, &[token]).unwrap();
            }
        }
    }
}
