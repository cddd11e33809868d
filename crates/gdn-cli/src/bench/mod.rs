//! `gdn bench`: how long decode takes on every path, beside a copy.

mod copy;
mod measure;
mod plan;
mod plot;
mod stats;
mod table;

use std::io::{self, IsTerminal, Write};

use gdn::Dispatcher;
use gdn_check::RandomLayer;
use indicatif::{BinaryBytes, DecimalBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use self::{
    copy::Buffers,
    measure::{Bench, Row},
    plan::Plan,
    table::Table,
};
use crate::{
    cli::BenchArgs,
    machine::Machine,
    output::{OutputFile, Provenance},
};

pub(crate) fn run(args: &BenchArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let json = OutputFile::of("--json", args.json.as_deref())?;
    let plot = OutputFile::of("--plot", args.plot.as_deref())?;
    let plan = Plan::new(args, &Machine::probe())?;
    let mut cpu = args.backend.open()?;
    let setup = describe(args, &plan, &cpu);
    note(&setup);
    if !args.warm && !plan.is_cold() {
        note(&format!(
            "note: the pool's {} of state fit the last-level cache of {}: state is not cold; \
             raise --pool-size, or free memory",
            BinaryBytes(plan.state_bytes()),
            BinaryBytes(plan.cache_bytes),
        ));
    }

    let layer = RandomLayer::new(&plan.spec, args.dtype, args.seed.into());
    let dispatcher = Dispatcher::new(&cpu, &layer.layer, args.dtype, args.state_dtype, None)?;
    let mut buffers = Buffers::new(&plan)?;
    let mut bench = Bench::new(args, &plan, layer, buffers.blocks(&plan))?;
    let bar = progress_bar(args.batch_sizes.len());
    let table = Table::new(&plan.spec);
    writeln!(out, "{}", table.head())?;
    let mut rows = Vec::new();
    for (index, &batch) in args.batch_sizes.iter().enumerate() {
        bar.set_message(format!("B={batch}"));
        let row = bench.row(&mut cpu, batch, |done| {
            bar.set_position(((index as f64 + done) * STEPS as f64) as u64);
        })?;
        bar.suspend(|| writeln!(out, "{}", table.line(&row)))?;
        rows.push(row);
    }
    bar.finish_and_clear();

    if let Some(file) = plot {
        file.write(plot::draw(&plan.spec, &setup, &rows)?.as_bytes())?;
    }
    if let Some(file) = json {
        let report = Report {
            provenance: Provenance::new(&cpu),
            preset: args.shape.preset.name(),
            activations: args.dtype.to_string(),
            state: args.state_dtype.to_string(),
            seed: args.seed,
            warm: args.warm,
            cold: !args.warm && plan.is_cold(),
            pool_slots: plan.slots,
            pool_state_bytes: plan.state_bytes(),
            dispatched_path: dispatcher.path().to_string(),
            rows,
        };
        file.write_json(&report)?;
    }
    Ok(())
}

/// What is measured, in a line.
fn describe(args: &BenchArgs, plan: &Plan, cpu: &gdn::Cpu) -> String {
    let threads = match cpu.threads() {
        1 => "1 thread".to_owned(),
        threads => format!("{threads} threads"),
    };
    let (level, activations, state) = (cpu.simd_level(), args.dtype, args.state_dtype);
    let rotation = if args.warm { "warm, the same slots of" } else { "cold, shuffled slots of" };
    let (slots, bytes) = (plan.slots, DecimalBytes(plan.state_bytes()));
    format!(
        "cpu, {threads}, {level}; {activations} activations, {state} state; \
         {rotation} {slots} ({bytes})"
    )
}

fn note(line: &str) {
    // A closed stderr is no reason not to measure.
    let _ = writeln!(io::stderr(), "{line}");
}

/// The steps that a row has on the progress bar.
const STEPS: u64 = 1000;

/// On stderr, where both streams go to a person.
fn progress_bar(rows: usize) -> ProgressBar {
    let target = match io::stdout().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template("{msg:>6} {wide_bar} {percent:>3} %");
    ProgressBar::with_draw_target(Some(rows as u64 * STEPS), target)
        .with_style(style.expect("a valid template"))
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    provenance: Provenance,
    preset: String,
    activations: String,
    state: String,
    seed: u32,
    warm: bool,
    /// Whether the pool's state is larger than the last-level cache.
    cold: bool,
    pool_slots: usize,
    pool_state_bytes: u64,
    /// The path that the library takes for this layer by itself.
    dispatched_path: String,
    rows: Vec<Row>,
}
