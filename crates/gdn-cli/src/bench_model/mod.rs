//! `gdn bench-model`: how long a whole model takes, beside the bytes that it must move.

mod args;
mod measure;
mod plot;
mod table;
mod yardstick;

use std::{
    io::{IsTerminal, Write},
    iter,
    path::Path,
    time::Instant,
};

use anyhow::Context;
use gdn_model::{Checkpoint, Config, Model};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

pub(crate) use self::args::{BenchModelArgs, LoadFormat, form};
use self::{
    measure::{DecodeRow, PrefillRow},
    yardstick::Yardstick,
};
use crate::output::{OutputFile, Provenance};

pub(crate) fn run(args: &BenchModelArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let json = OutputFile::of("--json", args.json.as_deref())?;
    let plot = OutputFile::of("--plot", args.plot.as_deref())?;
    let backend = args.backend.open()?;
    let provenance = Provenance::new(Some(&backend));
    let mut yardstick = Yardstick::new(&backend)?;
    drop(backend);

    let begin = Instant::now();
    let mut model = load(args)?;
    let load_s = begin.elapsed().as_secs_f64();
    writeln!(out, "{}", table::setup(args, model.config(), load_s))?;

    let mut prefill = Vec::new();
    if !args.prompt_lens.is_empty() {
        writeln!(out, "\n{}", table::PREFILL_HEAD)?;
    }
    for &tokens in &args.prompt_lens {
        let row = measure::prefill(&mut model, args, tokens)?;
        writeln!(out, "{}", table::prefill_line(&row))?;
        prefill.push(row);
    }
    let mut decode = Vec::new();
    if !args.batch_sizes.is_empty() {
        writeln!(out, "\n{}", table::DECODE_HEAD)?;
    }
    for &batch in &args.batch_sizes {
        let row = measure::decode(&mut model, args, batch, &mut yardstick)?;
        let mixed = row.mixed.iter().map(|mixed| (table::mixed_line(mixed), &mixed.operators));
        for (line, operators) in iter::once((table::decode_line(&row), &row.operators)).chain(mixed)
        {
            writeln!(out, "{line}")?;
            for operator in operators {
                writeln!(out, "{}", table::operator_line(operator))?;
            }
        }
        decode.push(row);
    }
    if let Some(file) = plot {
        let setup = table::setup(args, model.config(), load_s);
        file.write(plot::draw(&setup, &prefill, &decode)?.as_bytes())?;
    }
    if let Some(file) = json {
        let (model, parameters) = (args.name(), model.config().parameters().total);
        file.write_json(&Report { provenance, model, parameters, load_s, prefill, decode })?;
    }
    Ok(())
}

fn load(args: &BenchModelArgs) -> anyhow::Result<Model> {
    let (config, mut checkpoint) = match &args.model {
        None => (Config::preset(&args.preset)?, Checkpoint::dummy(args.seed.into())),
        Some(folder) => {
            let path = Path::new(folder);
            let config = Config::read(&path.join("config.json"))?;
            let checkpoint = match args.load_format {
                LoadFormat::Dummy => Checkpoint::dummy(args.seed.into()),
                LoadFormat::Safetensors => Checkpoint::open(path)?,
            };
            (config, checkpoint)
        }
    };
    let sequences = args.batch_sizes.iter().copied().max().unwrap_or(1);
    // A prompt, the steps, and a page that is not full.
    let profile = if args.profile { 256 } else { 0 };
    let steps = (args.steps + WARM_UP + profile) * (1 + args.prompt_pieces.len());
    let tokens = sequences * (args.context + steps + 64);
    let piece = args.prompt_pieces.iter().copied().max().unwrap_or(0);
    let longest = args.prompt_lens.iter().copied().max().unwrap_or(0);
    let mut options = args
        .backend
        .options()
        .sequences(sequences + usize::from(piece > 0))
        .tokens((tokens + piece.next_multiple_of(64)).max(longest + 64))
        .decode(args.path)
        .prefill(args.prefill);
    options.batch_tokens = options.batch_tokens.max(sequences + piece);
    let bar = progress_bar("loading", "layer", config.layers.len());
    let progress = &mut |layers| bar.set_position(layers as u64);
    let model = Model::new(config, &mut checkpoint, &options, progress);
    bar.finish_and_clear();
    model.with_context(|| format!("can't load {}", args.name()))
}

/// Decode steps before those that are timed: a GPU runs a step, then records it.
const WARM_UP: usize = 4;

/// A bar on stderr, where somebody sees it: of `len` things of a kind.
pub(crate) fn progress_bar(what: &str, kind: &str, len: usize) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let template = format!("{what} {{wide_bar}} {kind} {{pos}} of {{len}}");
    let style = ProgressStyle::with_template(&template);
    ProgressBar::with_draw_target(Some(len as u64), target)
        .with_style(style.expect("a valid template"))
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    provenance: Provenance,
    model: String,
    parameters: u64,
    load_s: f64,
    prefill: Vec<PrefillRow>,
    decode: Vec<DecodeRow>,
}
