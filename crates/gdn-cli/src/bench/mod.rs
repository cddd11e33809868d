//! `gdn bench`: how long decode takes on every path, beside a copy.

mod copy;
mod gpu;
mod measure;
mod plan;
pub(crate) mod plot;
mod rotation;
mod row;
pub(crate) mod stats;
mod table;

use std::io::{self, IsTerminal, Write};

use gdn::Dispatcher;
use gdn_check::RandomLayer;
use indicatif::{BinaryBytes, DecimalBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use self::{
    copy::Buffers,
    gpu::GpuBench,
    measure::Bench,
    plan::{Memory, Plan},
    row::Row,
    table::Table,
};
use crate::{
    backend::AnyBackend,
    cli::BenchArgs,
    machine::Machine,
    output::{OutputFile, Provenance, Usage},
};

pub(crate) fn run(args: &BenchArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let json = OutputFile::of("--json", args.json.as_deref())?;
    let plot = OutputFile::of("--plot", args.plot.as_deref())?;
    let mut backend = args.backend.open()?;
    if args.overlap && args.warm {
        let why = "--overlap lets a launch read slots that the one before may still write";
        return Err(Usage(format!("{why}, and with --warm they are the same: drop one")).into());
    }
    let memory = match &backend {
        AnyBackend::Cpu(_)
            if args.overlap || args.packed_tile.is_some() || args.fused_tile.is_some() =>
        {
            let flags = "--overlap, --packed-tile and --fused-tile";
            return Err(
                Usage(format!("{flags} are of the cuda backend; add --backend cuda")).into()
            );
        }
        AnyBackend::Cpu(_) => Memory::host(&Machine::probe()),
        AnyBackend::Cuda(cuda) => gpu::memory(cuda)?,
    };
    let plan = Plan::new(args, memory)?;
    let setup = describe(args, &plan, &backend);
    note(&setup);
    if !args.warm && !plan.is_cold() {
        note(&format!(
            "note: the pool's {} of state fit the last-level cache of {}: state is not cold; \
             raise --pool-size, or free memory",
            BinaryBytes(plan.state_bytes()),
            BinaryBytes(plan.cache_bytes),
        ));
    }

    let layer = RandomLayer::without_bias(&plan.spec, args.dtype, args.seed.into());
    let (activations, state) = (args.dtype, args.state_dtype);
    let dispatcher = Dispatcher::new(backend.as_dyn(), &layer.layer, activations, state, None)?;
    let provenance = Provenance::new(Some(&backend));
    let bar = progress_bar(args.batch_sizes.len());
    let table = Table::new(&plan.spec, matches!(backend, AnyBackend::Cuda(_)));
    writeln!(out, "{}", table.head())?;
    let rows = match backend {
        AnyBackend::Cpu(mut cpu) => {
            let mut buffers = Buffers::new(&plan)?;
            let mut bench = Bench::new(args, &plan, layer, buffers.blocks(&plan))?;
            measure(args, &bar, &table, out, |batch, done| bench.row(&mut cpu, batch, done))?
        }
        AnyBackend::Cuda(cuda) => {
            let mut bench = GpuBench::new(args, &plan, layer, cuda)?;
            measure(args, &bar, &table, out, |batch, done| bench.row(batch, done))?
        }
    };
    bar.finish_and_clear();

    if let Some(file) = plot {
        file.write(plot::draw(&plan.spec, &setup, &rows)?.as_bytes())?;
    }
    if let Some(file) = json {
        let report = Report {
            provenance,
            preset: args.shape.preset.name(),
            activations: args.dtype.to_string(),
            state: args.state_dtype.to_string(),
            seed: args.seed,
            warm: args.warm,
            overlap: args.overlap,
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

/// A row for each batch size, printed as it comes.
fn measure(
    args: &BenchArgs,
    bar: &ProgressBar,
    table: &Table,
    out: &mut impl Write,
    mut row: impl FnMut(usize, &(dyn Fn(f64) + Sync)) -> anyhow::Result<Row>,
) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (index, &batch) in args.batch_sizes.iter().enumerate() {
        bar.set_message(format!("B={batch}"));
        let row = row(batch, &|done| {
            bar.set_position(((index as f64 + done) * STEPS as f64) as u64);
        })?;
        bar.suspend(|| writeln!(out, "{}", table.line(&row)))?;
        rows.push(row);
    }
    Ok(rows)
}

/// What is measured, in a line.
fn describe(args: &BenchArgs, plan: &Plan, backend: &AnyBackend) -> String {
    let runs_on = match backend {
        AnyBackend::Cuda(cuda) if args.overlap => format!("{}, overlapping", cuda.device_name()),
        AnyBackend::Cuda(cuda) => cuda.device_name().to_owned(),
        AnyBackend::Cpu(cpu) => {
            let threads = match cpu.threads() {
                1 => "1 thread".to_owned(),
                threads => format!("{threads} threads"),
            };
            format!("cpu, {threads}, {}", cpu.simd_level())
        }
    };
    let (activations, state) = (args.dtype, args.state_dtype);
    let rotation = if args.warm { "warm, the same slots of" } else { "cold, shuffled slots of" };
    let (slots, bytes) = (plan.slots, DecimalBytes(plan.state_bytes()));
    format!("{runs_on}; {activations} activations, {state} state; {rotation} {slots} ({bytes})")
}

pub(crate) fn note(line: &str) {
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
    overlap: bool,
    /// Whether the pool's state is larger than the last-level cache.
    cold: bool,
    pool_slots: usize,
    pool_state_bytes: u64,
    /// The path that the library takes for this layer by itself.
    dispatched_path: String,
    rows: Vec<Row>,
}
