//! docs/serving.md says what slots and tokens of the presets take.

use gdn_model::{Config, LayerKind, PRESETS};

/// The row of a preset, on a GPU: states in f32, all else in bf16.
fn row(preset: &str) -> String {
    let config = Config::preset(preset).unwrap();
    let count = |kind| config.layers.iter().filter(|&&layer| layer == kind).count();
    let (gdn, attention) = (count(LayerKind::Gdn), count(LayerKind::Attention));
    let slot = gdn * (4 * config.gdn.state_len() + 2 * config.gdn.conv_len());
    let token = attention * 2 * config.attention.kv_heads * config.attention.head_dim * 2;
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let gib = |bytes: usize| mib(bytes) / 1024.0;
    format!(
        "| {preset} | {gdn} + {attention} | {:.1} MiB | {} KiB | {:.1} GiB | {:.1} GiB |",
        mib(slot),
        token >> 10,
        gib((128 + 8) * slot),
        gib((256 << 10) * token),
    )
}

#[test]
fn the_table_is_right() {
    let document = include_str!("../../../docs/serving.md");
    let rows: Vec<String> = PRESETS.iter().map(|preset| row(preset)).collect();
    for row in &rows {
        assert!(document.contains(row.as_str()), "expected these rows:\n{}", rows.join("\n"));
    }
}
