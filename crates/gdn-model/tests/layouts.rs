//! One model in the layouts that checkpoints come in: the same bits each time.

mod common;

use common::{Reference, altered::Altered, model};
use gdn_model::{Config, Family, LayerKind, MlpConfig, Model};
use serde_json::{Value, json};

/// The logits of a prompt.
fn logits(model: &mut Model, name: &str) -> Vec<f32> {
    let mut sequence = model.sequence().unwrap();
    model.forward(&mut sequence, &Reference::new(name).deep()).unwrap()
}

/// The altered checkpoint is still the same model.
#[track_caller]
fn is_the_same(altered: &Altered, name: &str) {
    let ours = logits(&mut altered.load().unwrap(), name);
    assert!(ours == logits(&mut model(name), name), "{name}: other logits");
}

#[test]
fn shards() {
    for name in common::CHECKPOINTS {
        let altered = Altered::new(name);
        altered.write_shards(3);
        is_the_same(&altered, name);
    }
}

#[test]
fn text_models_without_a_vision_tower() {
    let name = "qwen3_5_moe";
    let mut altered = Altered::new(name);
    altered.rename(|name| {
        let skipped = name.starts_with("model.visual.") || name.starts_with("mtp.");
        (!skipped).then(|| name.replace("model.language_model.", "model."))
    });
    altered.config = altered.config["text_config"].clone();
    altered.write();
    is_the_same(&altered, name);
}

#[test]
fn everything_in_f32() {
    for name in common::CHECKPOINTS {
        let mut altered = Altered::new(name);
        altered.tensors.values_mut().for_each(|tensor| *tensor = tensor.widened());
        altered.write();
        // A product of f32 weights adds up in another order.
        let ours = logits(&mut altered.load().unwrap(), name);
        let error = common::max_error(&ours, &logits(&mut model(name), name));
        assert!(error < 1e-4, "{name}: {error}");
    }
}

#[test]
fn experts_one_by_one() {
    let name = "qwen3_5_moe";
    let mut altered = Altered::new(name);
    let fused = |name: &&String| name.contains("language_model") && name.contains(".experts.");
    for fused in altered.tensors.keys().filter(fused).cloned().collect::<Vec<_>>() {
        let all = altered.remove(&fused);
        let (base, part) = fused.rsplit_once('.').unwrap();
        for expert in 0..8 {
            let weight = all.part(expert);
            let mut put = |part: &str, weight| {
                altered.tensors.insert(format!("{base}.{expert}.{part}.weight"), weight)
            };
            if part == "down_proj" {
                put("down_proj", weight);
            } else {
                put("gate_proj", weight.rows(0, 32));
                put("up_proj", weight.rows(32, 32));
            }
        }
    }
    altered.write();
    is_the_same(&altered, name);
}

#[test]
fn embeddings_untied() {
    let name = "qwen3_5_dense";
    let mut altered = Altered::new(name);
    let embeddings = altered.tensors[&altered.find("embed_tokens.weight")].clone();
    altered.tensors.insert("lm_head.weight".to_owned(), embeddings);
    // A copy beside tied embeddings is no other model.
    altered.write();
    is_the_same(&altered, name);

    altered.config["tie_word_embeddings"] = json!(false);
    altered.config["text_config"]["tie_word_embeddings"] = json!(false);
    altered.write();
    is_the_same(&altered, name);
}

#[test]
fn layers_and_rotation_named_the_other_way() {
    let mut altered = Altered::new("qwen3_5_dense");
    let text = altered.config["text_config"].as_object_mut().unwrap();
    text.remove("layer_types");
    text.remove("rope_parameters");
    text.insert("rope_theta".to_owned(), json!(1e7));
    // As newer configs have it.
    text.insert("output_gate_type".to_owned(), json!("swish"));
    altered.write();
    is_the_same(&altered, "qwen3_5_dense");

    let mut altered = Altered::new("qwen3_next");
    let text = altered.config.as_object_mut().unwrap();
    text.remove("full_attention_interval");
    text.remove("rope_theta");
    text.remove("partial_rotary_factor");
    let (gdn, full) = ("linear_attention", "full_attention");
    text.insert("layer_types".to_owned(), json!([gdn, gdn, gdn, full]));
    text.insert(
        "rope_parameters".to_owned(),
        json!({ "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25 }),
    );
    altered.write();
    is_the_same(&altered, "qwen3_next");
}

#[test]
fn the_config_of_a_large_model() {
    let config: Value = json!({
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "tie_word_embeddings": false,
        "text_config": {
            "model_type": "qwen3_5_moe_text", "vocab_size": 248320, "hidden_size": 2048,
            "num_hidden_layers": 40, "full_attention_interval": 4, "num_attention_heads": 16,
            "num_key_value_heads": 2, "head_dim": 256, "hidden_act": "silu",
            "linear_num_key_heads": 16, "linear_num_value_heads": 32,
            "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262144, "num_experts": 256, "num_experts_per_tok": 8,
            "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
                "mrope_interleaved": true, "mrope_section": [11, 11, 10]
            }
        }
    });
    let config = Config::parse("config.json".as_ref(), &config.to_string()).unwrap();
    assert_eq!(config.family, Family::Qwen35Moe);
    assert_eq!(config.attention.rotary_dims, 64);
    assert_eq!(config.gdn.channels(), 8192);
    assert_eq!(config.layers.iter().filter(|&&kind| kind == LayerKind::Attention).count(), 10);
    assert!(!config.tied_embeddings);
    let (experts, per_token, shared) = (256, 8, 512);
    let intermediate = 512;
    let mlp = MlpConfig::Moe { experts, per_token, intermediate, shared, renormalise: true };
    assert_eq!(config.mlp, mlp);
}
