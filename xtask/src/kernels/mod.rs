//! Compiles every CUDA kernel in every tile for every GPU family, with no GPU,
//! and compares what each takes with the committed budgets.

mod models;
mod nvcc;
mod tiles;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, bail, ensure};

use self::{nvcc::Nvcc, tiles::Family};

/// The budgets: one line an entry point, exact.
const OPERATOR: &str = "crates/gdn/src/cuda/budget.tsv";
const MODELS: &str = "crates/gdn-model/src/cuda/budget.tsv";

const HEADER: &str = "gpu\tentry\ttypes\ttile\tregisters\tspilled bytes\tshared bytes";

/// What `cargo xtask kernels` does.
#[derive(clap::Subcommand)]
pub(crate) enum Action {
    /// Compile, and fail if a kernel takes other than its budget.
    Check,
    /// Compile, and write what the kernels take as their budget.
    Budget,
}

/// One run of the compiler.
pub(crate) trait Unit: Sync {
    fn family(&self) -> &Family;

    /// A name for messages and files.
    fn name(&self) -> String;

    /// The source, and the folder of what it includes.
    fn source(&self, root: &Path) -> (PathBuf, PathBuf);

    fn defines(&self) -> Vec<(&'static str, String)>;

    /// The types that an entry point depends on, and its tile if it has one.
    fn labels(&self, entry: &str) -> (String, String);

    /// The dynamic shared memory that an entry point is launched with, in bytes;
    /// `None` if nobody launches it.
    fn dynamic_shared(&self, entry: &str) -> Option<u32>;
}

/// Compiles, then compares or writes.
pub(crate) fn run(root: &Path, action: &Action) -> anyhow::Result<()> {
    let nvcc = Nvcc::find(root)?;
    let families = tiles::families();
    let tiles = tiles::jobs(&families);
    weigh(root, &nvcc, action, OPERATOR, &tiles)?;
    weigh(root, &nvcc, action, MODELS, &models::jobs(root, &families)?)
}

fn weigh<U: Unit>(
    root: &Path,
    nvcc: &Nvcc,
    action: &Action,
    file: &str,
    units: &[U],
) -> anyhow::Result<()> {
    let taken = measure(root, nvcc, units)?;
    let path = root.join(file);
    match action {
        Action::Budget => {
            fs::write(&path, &taken).with_context(|| format!("{file} can't be written"))
        }
        Action::Check => {
            let budget =
                fs::read_to_string(&path).with_context(|| format!("{file} can't be read"))?;
            let changes = changes(&budget, &taken);
            ensure!(
                changes.is_empty(),
                "not what {file} says; `cargo xtask kernels budget` writes it anew:\n{}",
                changes.join("\n"),
            );
            Ok(())
        }
    }
}

/// Lines that only the budget has, and lines that only the build has.
fn changes(budget: &str, taken: &str) -> Vec<String> {
    let only_in = |sign, text: &str, other: &str| {
        let lines = text.lines().filter(|&line| !other.lines().any(|l| l == line));
        lines.map(|line| format!("{sign} {line}")).collect::<Vec<_>>()
    };
    let mut changes = only_in('-', budget, taken);
    changes.extend(only_in('+', taken, budget));
    changes
}

/// The table of all entry points, in a fixed order.
fn measure<U: Unit>(root: &Path, nvcc: &Nvcc, units: &[U]) -> anyhow::Result<String> {
    let next = AtomicUsize::new(0);
    let rows = Mutex::new(BTreeMap::new());
    let failures = Mutex::new(Vec::new());
    let worker = || {
        while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = nvcc.compile(root, unit).and_then(|log| {
                usages(&log)?
                    .into_iter()
                    .filter_map(|usage| line(unit, usage).transpose())
                    .collect()
            });
            match result {
                Ok(lines) => {
                    let lines: Vec<_> = lines;
                    rows.lock().expect("no worker panics").extend(lines);
                }
                Err(error) => failures.lock().expect("no worker panics").push(format!("{error:#}")),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(worker);
        }
    });
    let failures = failures.into_inner().expect("no worker panics");
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    let rows = rows.into_inner().expect("no worker panics");
    let mut table = format!("{HEADER}\n");
    for line in rows.values() {
        table.push_str(line);
        table.push('\n');
    }
    Ok(table)
}

/// A line of the table, and what it is sorted by; nothing of what nobody launches.
fn line<U: Unit>(unit: &U, usage: Usage) -> anyhow::Result<Option<(Key, String)>> {
    let Family { arch, ref gpu, order } = *unit.family();
    let Usage { entry, registers, spilled, shared } = usage;
    let Some(dynamic) = unit.dynamic_shared(&entry) else { return Ok(None) };
    let shared = shared + dynamic;
    ensure!(
        shared <= gpu.shared_bytes,
        "{entry} on {arch}: {shared} bytes of shared memory, the GPU has {}",
        gpu.shared_bytes,
    );
    let (types, tile) = unit.labels(&entry);
    let line = format!("{arch}\t{entry}\t{types}\t{tile}\t{registers}\t{spilled}\t{shared}");
    Ok(Some(((order, entry, types, tile), line)))
}

/// Family, entry point, types, tile.
type Key = (usize, String, String, String);

/// What `ptxas -v` says of one entry point.
#[derive(Debug, PartialEq)]
struct Usage {
    entry: String,
    registers: u32,
    spilled: u32,
    shared: u32,
}

/// Reads the log of `ptxas -v`.
fn usages(log: &str) -> anyhow::Result<Vec<Usage>> {
    let mut usages = Vec::<Usage>::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let entry = rest.split('\'').next().unwrap_or_default().to_owned();
            usages.push(Usage { entry, registers: 0, spilled: 0, shared: 0 });
        }
        let Some(usage) = usages.last_mut() else { continue };
        let number_before = |what: &str| {
            let number = line.split(what).next().filter(|rest| rest.len() < line.len())?;
            number.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()
        };
        if let Some(registers) = number_before(" registers") {
            usage.registers = registers;
            usage.shared = number_before(" bytes smem").unwrap_or(0);
        }
        let spills = [" bytes spill stores", " bytes spill loads"];
        usage.spilled += spills.into_iter().filter_map(number_before).sum::<u32>();
    }
    ensure!(
        !usages.is_empty() && usages.iter().all(|usage| usage.registers > 0),
        "ptxas does not say what the kernels take:\n{log}"
    );
    Ok(usages)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'gdn_a' for 'sm_90a'
ptxas info    : Function properties for gdn_a
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 1024 bytes smem
ptxas info    : Compile time = 9.521 ms
ptxas info    : Compiling entry function 'gdn_b' for 'sm_90a'
ptxas info    : Function properties for gdn_b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
";

    #[test]
    fn the_log_of_ptxas_is_read() {
        let a = Usage { entry: "gdn_a".to_owned(), registers: 96, spilled: 20, shared: 1024 };
        let b = Usage { entry: "gdn_b".to_owned(), registers: 40, spilled: 0, shared: 0 };
        assert_eq!(usages(LOG).unwrap(), [a, b]);
        assert!(usages("nvcc said nothing").is_err());
    }

    #[test]
    fn every_change_is_told() {
        assert!(changes("a\t1\nb\t2\n", "a\t1\nb\t2\n").is_empty());
        assert_eq!(changes("a\t1\nb\t2\n", "a\t1\nb\t3\n"), ["- b\t2", "+ b\t3"]);
        assert_eq!(changes("a\t1\n", ""), ["- a\t1"]);
    }
}
