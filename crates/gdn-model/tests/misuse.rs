//! Bad input is an error that says where, what was expected and what came.

mod common;

use std::{fs, path::Path};

use common::{CHECKPOINTS, altered::Altered, folder, model};
use gdn_model::{Config, Error, Model};
use safetensors::Dtype;
use serde_json::{Value, json};

const DENSE: &str = "qwen3_5_dense";
const MOE: &str = "qwen3_5_moe";
const NEXT: &str = "qwen3_next";

/// The message has all these words in it.
#[track_caller]
fn says(error: &Error, words: &[&str]) {
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

#[test]
fn a_folder_without_a_model() {
    let empty = tempfile::tempdir().unwrap();
    let error = Model::load(empty.path()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
    says(&error, &["config.json", "a model is a folder with"]);

    let altered = Altered::new(DENSE);
    altered.write_config();
    says(&altered.load().unwrap_err(), &["model.safetensors"]);
}

#[test]
fn a_shard_that_is_cut_short() {
    for keep in [0, 4, 100, 100_000, 3_000_000] {
        let altered = Altered::new(DENSE);
        altered.write();
        let path = altered.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..keep]).unwrap();
        let error = altered.load().unwrap_err();
        assert!(matches!(error, Error::Shard { .. }), "{keep}: {error}");
        says(&error, &["model.safetensors", "fetch the file again"]);
    }
}

#[test]
fn shards_that_do_not_fit_their_index() {
    let altered = Altered::new(MOE);
    altered.write_shards(3);
    fs::remove_file(altered.path().join("model-1-of-3.safetensors")).unwrap();
    says(&altered.load().unwrap_err(), &["model-1-of-3.safetensors"]);

    // Each tensor is where the index does not look for it.
    altered.write_shards(2);
    let [a, b] = [0, 1].map(|i| altered.path().join(format!("model-{i}-of-2.safetensors")));
    let bytes = fs::read(&a).unwrap();
    fs::copy(&b, &a).unwrap();
    fs::write(&b, bytes).unwrap();
    let error = altered.load().unwrap_err();
    assert!(matches!(error, Error::MissingTensor { .. }), "{error}");
    says(&error, &["-of-2.safetensors: no tensor"]);

    fs::write(altered.path().join("model.safetensors.index.json"), "{\"weight_map\": 1}").unwrap();
    says(&altered.load().unwrap_err(), &["model.safetensors.index.json", "invalid type"]);
}

#[test]
fn every_tensor_is_missed() {
    for name in CHECKPOINTS {
        let mut altered = Altered::new(name);
        let unused = |name: &str| name.starts_with("mtp.") || name.starts_with("model.visual.");
        let names: Vec<String> = altered.tensors.keys().filter(|n| !unused(n)).cloned().collect();
        // The layers of a kind are alike: the first and the last show all names.
        let names = names.into_iter().filter(|name| {
            !["layers.1.", "layers.2.", "layers.4.", "layers.5."].iter().any(|l| name.contains(l))
        });
        for tensor in names {
            let taken = altered.remove(&tensor);
            let error = altered.error();
            assert!(matches!(error, Error::MissingTensor { .. }), "{name}: {tensor}: {error}");
            altered.tensors.insert(tensor, taken);
        }
    }
}

#[test]
fn a_tensor_that_is_named_when_missing() {
    let mut altered = Altered::new(DENSE);
    let name = altered.find("in_proj_z.weight");
    altered.remove(&name);
    says(&altered.error(), &["no tensor", &name, "are all shards there?"]);
}

#[test]
fn every_tensor_has_its_shape_checked() {
    for name in CHECKPOINTS {
        let mut altered = Altered::new(name);
        let names: Vec<String> = altered.tensors.keys().cloned().collect();
        let names = names.into_iter().filter(|name| {
            name.contains("layers.0.") || name.contains("layers.3.") || !name.contains("layers")
        });
        for tensor in names.filter(|n| !n.starts_with("mtp.") && !n.starts_with("model.visual.")) {
            let before = altered.tensors[&tensor].clone();
            // As many elements in another shape: no byte count would notice.
            altered.tensors.get_mut(&tensor).unwrap().shape.push(1);
            let error = altered.error();
            assert!(matches!(error, Error::Shape { .. }), "{name}: {tensor}: {error}");
            altered.tensors.insert(tensor, before);
        }
    }
}

#[test]
fn a_shape_that_is_named_when_wrong() {
    let mut altered = Altered::new(MOE);
    altered.config["text_config"]["num_experts"] = json!(9);
    says(&altered.error(), &["mlp.gate.weight", "[9, 64]", "[8, 64]", "model.safetensors"]);
}

#[test]
fn a_dtype_that_is_not_read() {
    let mut altered = Altered::new(NEXT);
    let name = altered.find("mlp.experts.0.up_proj.weight");
    let tensor = altered.tensors.get_mut(&name).unwrap();
    tensor.data.truncate(tensor.data.len() / 2);
    tensor.dtype = Dtype::F8_E4M3;
    says(&altered.error(), &[&name, "F32, BF16 or F16", "F8_E4M3", "not quantised"]);
}

#[test]
fn a_tensor_without_a_place() {
    let mut altered = Altered::new(DENSE);
    let bias = altered.tensors[&altered.find("q_norm.weight")].clone();
    let name = "model.language_model.layers.3.self_attn.q_proj.bias";
    altered.tensors.insert(name.to_owned(), bias);
    let error = altered.error();
    assert!(matches!(error, Error::UnusedTensor { .. }), "{error}");
    says(&error, &[name, "no such tensor"]);
}

/// The error of a config with these changes, each at "field" or "object.field".
#[track_caller]
fn config_error(name: &str, changes: &[(&str, Value)]) -> Error {
    let text = fs::read_to_string(folder(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (field, value) in changes {
        let (last, path) = {
            let mut parts: Vec<&str> = field.split('.').collect();
            (parts.pop().unwrap(), parts)
        };
        path.iter().fold(&mut config, |object, name| &mut object[*name])[last] = value.clone();
    }
    let error = Config::parse(Path::new("config.json"), &config.to_string());
    error.expect_err("a bad config is accepted")
}

#[test]
fn an_architecture_that_is_not_known() {
    for model_type in ["qwen4_exp", "qwen3", "llama"] {
        let error = config_error(NEXT, &[("model_type", json!(model_type))]);
        says(&error, &["config.json", "model_type", "qwen3_next", model_type]);
    }
    says(&config_error(NEXT, &[("model_type", Value::Null)]), &["model_type", "got none"]);
    let error = config_error(DENSE, &[("architectures", json!(["Qwen3_5MoeForCausalLM"]))]);
    says(&error, &["architectures", "Qwen3_5For...", "Qwen3_5MoeForCausalLM"]);
}

#[test]
fn configs_that_contradict_themselves() {
    let text = |field: &str| format!("text_config.{field}");
    for (name, field, value, words) in [
        (DENSE, text("layer_types"), json!(["full_attention"]), "num_hidden_layers = 8"),
        (DENSE, text("full_attention_interval"), json!(3), "what layer_types says"),
        (DENSE, text("num_experts"), json!(8), "dense model"),
        (DENSE, text("tie_word_embeddings"), json!(false), "the same at both levels"),
        (DENSE, text("partial_rotary_factor"), json!(0.5), "what rope_parameters says"),
        (DENSE, text("rope_theta"), json!(10000.0), "what rope_parameters says"),
        (MOE, text("num_experts_per_tok"), json!(9), "at most num_experts = 8"),
        (MOE, text("num_key_value_heads"), json!(3), "divisor of num_attention_heads = 2"),
        (MOE, text("linear_num_value_heads"), json!(3), "multiple of linear_num_key_heads = 2"),
        (MOE, text("norm_topk_prob"), json!(false), "true in this family"),
    ] {
        says(&config_error(name, &[(&field, value)]), &[words]);
    }
}

#[test]
fn configs_that_ask_for_what_is_not_computed() {
    for (field, value, words) in [
        ("hidden_act", json!("gelu"), "silu, got gelu"),
        ("attention_bias", json!(true), "biases"),
        ("attn_output_gate", json!(false), "q_proj holds the gates"),
        ("output_gate_type", json!("sigmoid"), "swish or silu"),
        ("rope_scaling", json!({"type": "yarn"}), "not scaled here"),
        ("rope_parameters", json!({"rope_type": "yarn"}), "rope_parameters.rope_type"),
        ("partial_rotary_factor", json!(1.5), "even share of head_dim = 256"),
        ("rope_theta", Value::Null, "got none"),
        ("decoder_sparse_step", json!(2), "experts in every layer"),
        ("mlp_only_layers", json!([1]), "experts in every layer"),
        ("quantization_config", json!({"bits": 4}), "not quantised"),
        ("hidden_size", json!(0), "from 1"),
        ("hidden_size", json!(1u64 << 40), "from 1"),
        ("hidden_size", json!(-1), "whole number"),
        ("hidden_size", json!("64"), "whole number"),
        ("vocab_size", Value::Null, "got none"),
        ("rms_norm_eps", json!(-1e-6), "at least 0"),
        ("layer_types", json!(["mamba", "mamba", "mamba", "mamba"]), "linear_attention"),
    ] {
        says(&config_error(NEXT, &[(field, value)]), &[field, words]);
    }
    let parse = |text| Config::parse(Path::new("config.json"), text).unwrap_err();
    assert!(matches!(parse("{"), Error::Json { .. }));
    says(&parse("[]"), &["config.json", "the whole file", "an object"]);
}

#[test]
fn tokens_that_can_not_be_run_leave_the_sequence_alone() {
    let mut model = model(DENSE);
    let mut state = model.sequence().unwrap();
    model.forward(&mut state, &[1, 2, 3]).unwrap();
    let before = model.gdn_state(&state, 0).unwrap();
    assert!(matches!(model.forward(&mut state, &[]), Err(Error::NoTokens)));
    let error = model.forward(&mut state, &[5, 2048]).unwrap_err();
    says(&error, &["tokens[1]", "below 2048", "got 2048"]);
    let error = model.forward(&mut state, &[0; 4094]).unwrap_err();
    says(&error, &["at most 4096", "got 4097"]);
    assert_eq!(state.len(), 3);
    assert!(model.gdn_state(&state, 0).unwrap() == before);
}

#[test]
fn a_sequence_of_another_model() {
    let (mut one, mut other) = (model(DENSE), model(DENSE));
    let mut state = other.sequence().unwrap();
    assert!(matches!(one.forward(&mut state, &[1]), Err(Error::ForeignSequence)));
}

#[test]
fn a_state_that_is_not_there() {
    let mut model = model(DENSE);
    let state = model.sequence().unwrap();
    assert!(state.is_empty());
    for layer in [3, 8] {
        assert!(matches!(model.gdn_state(&state, layer), Err(Error::Layer { layers: 8, .. })));
    }
}
