//! What `gdn bench-model` prints.

use gdn_model::Config;

use super::{
    BenchModelArgs,
    measure::{DecodeRow, MixedRow, OperatorMs, PrefillRow},
};

pub(super) const PREFILL_HEAD: &str = "prompt  prefill ms     tok/s";
pub(super) const DECODE_HEAD: &str =
    "batch   ms/step       P99     tok/s        GB  floor ms  of floor";

pub(super) fn setup(args: &BenchModelArgs, config: &Config, load_s: f64) -> String {
    let billions = config.parameters().total as f64 / 1e9;
    let (name, context) = (args.name(), args.context);
    format!("{name}: {billions:.2} B weights, loaded in {load_s:.1} s; context {context}")
}

pub(super) fn prefill_line(row: &PrefillRow) -> String {
    let PrefillRow { tokens, ms, tokens_per_s } = row;
    format!("{tokens:>6}  {ms:>10.2}  {tokens_per_s:>8.0}")
}

pub(super) fn decode_line(row: &DecodeRow) -> String {
    let DecodeRow { batch, median_ms, p99_ms, tokens_per_s, bytes, floor_ms, .. } = row;
    let (gb, share) = (bytes / 1e9, 100.0 * floor_ms / median_ms);
    format!(
        "{batch:>5}  {median_ms:>8.3}  {p99_ms:>8.3}  {tokens_per_s:>8.1}  {gb:>8.2}  \
         {floor_ms:>8.3}  {share:>7.0}%"
    )
}

pub(super) fn mixed_line(row: &MixedRow) -> String {
    let MixedRow { piece, median_ms, p99_ms, stretch, .. } = row;
    format!("{:>5}  {median_ms:>8.3}  {p99_ms:>8.3}  {stretch:>7.2}x", format!("+{piece}"))
}

pub(super) fn operator_line(row: &OperatorMs) -> String {
    let OperatorMs { operator, ms } = row;
    format!("       {ms:>8.3}  {operator}")
}
