//! The command line: flags, their defaults and their manual.

use std::path::PathBuf;

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser},
};
use clap_complete::Shell;
use gdn::{DType, DecodePath, cuda::tiles::Tile};

use crate::{
    backend::BackendArgs, bench_model::BenchModelArgs, bench_serving::BenchServingArgs,
    generate::GenerateArgs, serve::ServeArgs,
};

/// Check and time Gated DeltaNet decode on this machine, and generate text.
///
/// Gated DeltaNet (GDN) is the linear attention of Qwen3.5, Qwen3.6 and
/// Qwen3-Next: in place of a growing KV cache, every sequence owns a state of
/// fixed size, and each token reads and rewrites all of it. This command runs
/// that step on every path that the library has: split (step by step), packed
/// (one kernel), fused (convolution, recurrence and norm at once).
#[derive(Debug, Parser)]
#[command(
    name = "gdn",
    version,
    after_help = "\
Examples:
  gdn check                     is this build right on this machine?
  gdn bench                     how fast is it?
  gdn generate                  what does a model say?
  gdn serve                     answer clients of OpenAI's and SGLang's APIs
  gdn bench-serving             how does a server do under load?
  gdn info                      what does it run on?
  gdn completions bash > ~/.local/share/bash-completion/completions/gdn

Exit codes: 0 all is well, 1 a check failed or something went wrong, 2 bad usage."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Log more to stderr: -v which path is taken and why, -vv debug, -vvv all
    ///
    /// RUST_LOG, where it is set, adds directives of its own.
    #[arg(short, long, global = true, display_order = 900, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Check(CheckArgs),
    Bench(BenchArgs),
    BenchModel(BenchModelArgs),
    BenchServing(Box<BenchServingArgs>),
    Generate(GenerateArgs),
    Serve(ServeArgs),
    Info(InfoArgs),
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  gdn completions bash > ~/.local/share/bash-completion/completions/gdn
  gdn completions zsh > \"${fpath[1]}/_gdn\"
  gdn completions fish > ~/.config/fish/completions/gdn.fish")]
    Completions {
        /// The shell that will read the script
        shell: Shell,
    },
}

/// Compare every path with an f64 oracle and with the split path
///
/// Draws random layers, inputs and states, runs each operator on them, and
/// compares its output and the state that it leaves with an oracle that is
/// written in f64 straight from the formulas. The shapes are the 15 of SGLang's
/// benchmark for packed decode, and shapes beyond them: head ratios of 1 to 8,
/// head dims other than 128, conv widths, strided inputs, pitched pools,
/// padding.
///
/// Each line names the operator, the shape and the dtypes (activations/state),
/// then the worst relative L2 errors over all rows, of output and state, against
/// the oracle and against the split path, then what is tolerated. A check also
/// fails if a slot that no row of the batch owns loses a single bit.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gdn check                                  everything
  gdn check --path fused --state-dtype f32   one path, one state dtype
  gdn check --backend cuda                   on the GPU
  gdn check --filter 'padding'               lines that contain a text
  gdn check --json check.json                the errors as numbers, too

Exit codes: 0 all passed, 1 one failed, 2 bad usage.")]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,

    /// Run only checks with activations of this dtype
    #[arg(long, value_name = "DTYPE", value_parser = dtype())]
    pub(crate) dtype: Option<DType>,

    /// Run only checks with recurrent state of this dtype
    #[arg(long, value_name = "DTYPE", value_parser = dtype())]
    pub(crate) state_dtype: Option<DType>,

    /// Run only this decode path, and no prefill
    #[arg(long, env = "GDN_PATH", value_parser = path())]
    pub(crate) path: Option<DecodePath>,

    /// Run only checks whose line contains this text
    #[arg(long, value_name = "SUBSTRING")]
    pub(crate) filter: Option<String>,

    /// Tolerate this relative L2 error, whatever the dtypes
    ///
    /// The default is 1e-5 for f32 throughout, 5e-3 with bf16 activations, 8e-3
    /// with bf16 state, a quarter of those for f16.
    #[arg(long, value_name = "ERROR")]
    pub(crate) tolerance: Option<f64>,

    /// What all random numbers come from
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u32,

    /// Write every result to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Time decode on every path, beside a copy of the same bytes
///
/// Prints a row for each batch size. The first columns are those of SGLang's
/// benchmark for packed decode: the decode operator alone, split and packed,
/// how many times faster packed is, and the time that it saves. Then come
///
///   chain µs    convolution, packed decode and gated norm, one by one
///   fused µs    the same three as one operator
///   state GB/s  bytes of state read and written by packed decode, over time
///   of a copy   time of a copy of as many bytes, over that of packed decode
///
/// The copy goes from one buffer to another, on the same threads, in pieces of a
/// head's state. Decode may beat it: most machines read memory before they write
/// it, which costs decode nothing, since it writes where it has just read.
///
/// Each time is a median; ± is half the distance of its quartiles, in percent.
/// Speedup, saved time and share are medians over rounds, in each of which every
/// operator runs once, in random order: what disturbs the machine disturbs all
/// of them alike.
///
/// On a GPU the times are those of CUDA graphs of up to 40 launches, each on
/// other slots, replayed back to back; the copy is the driver's, from device to
/// device. Three columns of packed decode come at the end:
///
///   warm µs     in a graph whose launches all use the same slots
///   eager µs    call behind call, without a graph
///   host µs     the part of it that the host is busy with a call
///
/// State is cold, as in a model, where other layers come between two visits to
/// a slot: slots lie shuffled in a pool larger than the last-level cache, and
/// each call takes the next ones. Activations stay in the cache.
#[derive(Args, Debug)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  gdn bench                                        Qwen3.5-35B-A3B on one GPU's heads
  gdn bench --preset qwen3.5-27b --state-dtype bf16
  gdn bench --batch-sizes 64 --threads 1
  gdn bench --backend cuda --batch-sizes 1,8,32,128,256
  gdn bench --preset custom --num-q-heads 8 --num-v-heads 16 \\
            --head-size-k 128 --head-size-v 128
  gdn bench --json bench.json --plot bench.svg

Exit codes: 0 measured, 1 something went wrong, 2 bad usage."
)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,

    #[command(flatten)]
    pub(crate) shape: ShapeArgs,

    /// Batch sizes, a row of the table each
    #[arg(long, value_name = "B,..", value_delimiter = ',', value_parser = at_least_one(),
          default_value = "1,4,16,32,64,128")]
    pub(crate) batch_sizes: Vec<usize>,

    /// Slots in the state pool [default: enough for cold state]
    ///
    /// By default the states take twice the last-level cache, but no more than a
    /// quarter of the memory that is available.
    #[arg(long, value_name = "SLOTS", value_parser = at_least_one())]
    pub(crate) pool_size: Option<usize>,

    /// The dtype of activations and conv state
    #[arg(long, value_name = "DTYPE", default_value = "bf16", value_parser = dtype())]
    pub(crate) dtype: DType,

    /// The dtype of the recurrent state
    #[arg(long, value_name = "DTYPE", default_value = "f32", value_parser = dtype())]
    pub(crate) state_dtype: DType,

    /// Use the same slots again and again, each time behind a call that is not timed
    #[arg(long)]
    pub(crate) warm: bool,

    /// Let GPU kernels start while the one before still runs, and load state
    /// meanwhile, as in an engine behind a projection
    #[arg(long)]
    pub(crate) overlap: bool,

    /// Run packed decode in this tile, as "direct w1 r8 c1 h2" (see cuda/tiles.md)
    #[arg(long, value_name = "TILE", hide_short_help = true)]
    pub(crate) packed_tile: Option<Tile>,

    /// Run the fused step in this tile
    #[arg(long, value_name = "TILE", hide_short_help = true)]
    pub(crate) fused_tile: Option<Tile>,

    /// Measure each row for at least this long
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds,
          allow_negative_numbers = true)]
    pub(crate) min_time: f64,

    /// Measure each row at least this many times
    #[arg(long, value_name = "ROUNDS", default_value = "30", value_parser = at_least_one())]
    pub(crate) repeats: usize,

    /// What weights, inputs, states and the order of slots come from
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u32,

    /// Write the measurements, the machine and the command to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Draw time a row and share of the copy against batch size to this file, as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

/// The layer to measure.
#[derive(Args, Debug)]
pub(crate) struct ShapeArgs {
    /// The layer of a published model; custom takes all four head flags
    #[arg(long, value_enum, default_value_t)]
    pub(crate) preset: Preset,

    /// H, the query/key heads, in place of the preset's
    #[arg(long, value_name = "H", value_parser = at_least_one())]
    pub(crate) num_q_heads: Option<usize>,

    /// HV, the value heads, a multiple of H, in place of the preset's
    #[arg(long, value_name = "HV", value_parser = at_least_one())]
    pub(crate) num_v_heads: Option<usize>,

    /// K, the head dim of queries and keys, in place of the preset's
    #[arg(long, value_name = "K", value_parser = at_least_one())]
    pub(crate) head_size_k: Option<usize>,

    /// V, the head dim of values, in place of the preset's
    #[arg(long, value_name = "V", value_parser = at_least_one())]
    pub(crate) head_size_v: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Preset {
    /// Qwen3.5-35B-A3B: 16 query/key heads, 32 value heads, dims of 128
    #[default]
    #[value(name = "qwen3.5-35b")]
    Qwen35B,
    /// Qwen3.5-27B: 16 query/key heads, 48 value heads, dims of 128
    #[value(name = "qwen3.5-27b")]
    Qwen27B,
    /// Qwen3-Next-80B-A3B: 16 query/key heads, 32 value heads, dims of 128
    #[value(name = "qwen3-next-80b")]
    QwenNext80B,
    /// What --num-q-heads, --num-v-heads, --head-size-k and --head-size-v say
    Custom,
}

/// Say which backends, vector instructions and devices there are
#[derive(Args, Debug)]
pub(crate) struct InfoArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn dtype() -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(["f32", "bf16", "f16"]).try_map(|name| name.parse())
}

pub(crate) fn path() -> impl TypedValueParser<Value = DecodePath> {
    PossibleValuesParser::new(["split", "packed", "fused"]).try_map(|name| name.parse())
}

pub(crate) fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds, from 0 to 86400".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
