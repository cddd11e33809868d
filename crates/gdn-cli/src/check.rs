//! `gdn check`: every path against the oracle and against the split path.

use std::{fmt, io::Write, process::ExitCode, time::Instant};

use gdn::{
    Backend,
    DType::{self, BF16, F16, F32},
    DecodePath, PrefillForm,
};
use gdn_check::{Case, Errors, Operator, Outcome, Problem};
use serde::Serialize;

use crate::{
    cli::CheckArgs,
    output::{OutputFile, Provenance, Usage},
};

/// Activations and state of the reference shapes: what models use, and f32
/// throughout for its tight tolerance.
const REFERENCE_DTYPES: [(DType, DType); 3] = [(BF16, F32), (BF16, BF16), (F32, F32)];

/// Activations and state of the shapes beyond them.
const OTHER_DTYPES: [(DType, DType); 4] = [(F32, F32), (BF16, F32), (BF16, BF16), (F16, F16)];

const DECODE: [Operator; 5] = [
    Operator::Decode(DecodePath::Split),
    Operator::Decode(DecodePath::Packed),
    Operator::Layer(DecodePath::Split),
    Operator::Layer(DecodePath::Packed),
    Operator::Layer(DecodePath::Fused),
];

const PREFILL: [Operator; 2] =
    [Operator::Prefill(PrefillForm::Recurrent), Operator::Prefill(PrefillForm::Chunked)];

/// Tokens of a prefilled sequence: a full chunk and some of the next.
const PREFILL_TOKENS: usize = 70;

pub(crate) fn run(args: &CheckArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let json = OutputFile::of("--json", args.json.as_deref())?;
    let plan = plan(args);
    if plan.is_empty() {
        let hint = "run `gdn check` without --filter, --path, --dtype and --state-dtype to see all";
        return Err(Usage(format!("no check matches; {hint}")).into());
    }
    let mut backend = args.backend.open()?;
    let start = Instant::now();
    let mut verdicts = Vec::new();
    for (case, operators) in plan {
        let mut trial = Trial::new(case);
        for operator in operators {
            let verdict = trial.judge(backend.as_dyn(), operator, args.tolerance);
            writeln!(out, "{verdict}")?;
            verdicts.push(verdict);
        }
    }
    let (passed, failed) = tally(&verdicts);
    let seconds = start.elapsed().as_secs_f64();
    writeln!(out, "\n{} checks: {passed} passed, {failed} failed, {seconds:.1} s", verdicts.len())?;
    if let Some(file) = json {
        let provenance = Provenance::new(Some(&backend));
        file.write_json(&Report { provenance, seed: args.seed, passed, failed, checks: verdicts })?;
    }
    Ok(exit_code(failed))
}

/// The cases to try, each with the operators to try it on.
fn plan(args: &CheckArgs) -> Vec<(Case, Vec<Operator>)> {
    let with = |cases: Vec<Case>, dtypes: &'static [(DType, DType)], operators: &[Operator]| {
        let cases = dtypes.iter().flat_map(move |&(activations, state)| {
            cases.clone().into_iter().map(move |case| case.with_dtypes(activations, state))
        });
        let operators = operators.to_vec();
        cases.map(move |case| (case, operators.clone()))
    };
    // A sequence has its own slot and tells nothing of others: two are enough.
    let long = |case: Case| Case { rows: case.rows.min(2), steps: PREFILL_TOKENS, ..case };
    let long = Case::beyond_reference().into_iter().map(long).collect();
    let mut plan: Vec<_> = with(Case::reference(), &REFERENCE_DTYPES, &DECODE)
        .chain(with(Case::beyond_reference(), &OTHER_DTYPES, &DECODE))
        .chain(with(Case::beyond_reference(), &OTHER_DTYPES, &PREFILL))
        // In f32 alone: tolerances of the others are for a few tokens' rounding.
        .chain(with(long, &[(F32, F32)], &PREFILL))
        .collect();
    for (case, operators) in &mut plan {
        case.seed = args.seed.into();
        operators.retain(|&operator| {
            args.dtype.is_none_or(|dtype| case.activations == dtype)
                && args.state_dtype.is_none_or(|dtype| case.recurrent == dtype)
                && args.path.is_none_or(|path| path_of(operator) == Some(path))
                && args.filter.as_ref().is_none_or(|text| label(operator, case).contains(text))
        });
    }
    plan.retain(|(_, operators)| !operators.is_empty());
    plan
}

fn path_of(operator: Operator) -> Option<DecodePath> {
    match operator {
        Operator::Decode(path) | Operator::Layer(path) => Some(path),
        Operator::Prefill(_) => None,
    }
}

/// What the line of a check begins with.
fn label(operator: Operator, case: &Case) -> String {
    let tokens = match operator {
        Operator::Prefill(_) => format!(", {} tokens", case.steps),
        _ => String::new(),
    };
    format!("{:<17}  {}{tokens}", operator.name(), case.describe())
}

/// A problem, and what the split path made of it once it was asked.
struct Trial {
    problem: Problem,
    /// Of the recurrence alone, and of the whole layer.
    split: [Option<gdn::Result<Outcome>>; 2],
}

impl Trial {
    fn new(case: Case) -> Self {
        Self { problem: Problem::new(case), split: [None, None] }
    }

    fn judge(
        &mut self,
        backend: &mut dyn Backend,
        operator: Operator,
        tolerance: Option<f64>,
    ) -> Verdict {
        let case = &self.problem.case;
        let tolerance = tolerance.unwrap_or_else(|| case.tolerance());
        let label = label(operator, case);
        let outcome = self.compare(backend, operator).map_err(|error| error.to_string());
        Verdict::new(label, tolerance, outcome)
    }

    fn compare(
        &mut self,
        backend: &mut dyn Backend,
        operator: Operator,
    ) -> gdn::Result<Comparison> {
        let (problem, split) = (&self.problem, DecodePath::Split);
        let (baseline, cached) = match operator {
            Operator::Decode(_) => (Operator::Decode(split), &mut self.split[0]),
            _ => (Operator::Layer(split), &mut self.split[1]),
        };
        let baseline_outcome = cached
            .get_or_insert_with(|| problem.run(backend, baseline))
            .as_ref()
            .map_err(Clone::clone)?;
        let of = |outcome: &Outcome, split: Option<Errors>| Comparison {
            oracle: problem.against_oracle(operator, outcome),
            split,
            kept_the_rest: problem.kept_the_rest(outcome),
        };
        if operator == baseline {
            return Ok(of(baseline_outcome, None));
        }
        let outcome = problem.run(backend, operator)?;
        Ok(of(&outcome, Some(problem.against(&outcome, baseline_outcome))))
    }
}

/// How far an operator is from the truth.
struct Comparison {
    oracle: Errors,
    /// `None` for the split path itself.
    split: Option<Errors>,
    /// Whether the slots that no row owns kept every bit.
    kept_the_rest: bool,
}

/// A line of the report.
#[derive(Serialize)]
struct Verdict {
    passed: bool,
    check: String,
    tolerance: f64,
    /// Worst relative L2 errors; `null` in JSON where one is not a number.
    oracle: Option<Distance>,
    split: Option<Distance>,
    problem: Option<String>,
}

/// [`Errors`], to be written as JSON.
#[derive(Clone, Copy, Serialize)]
struct Distance {
    out: f64,
    state: f64,
}

impl Verdict {
    fn new(check: String, tolerance: f64, outcome: Result<Comparison, String>) -> Self {
        // Not `>`: an error that is NaN is not within any tolerance.
        let within = |errors: Errors| errors.worst() <= tolerance;
        let problem = match &outcome {
            Err(error) => Some(error.clone()),
            Ok(found) if !found.kept_the_rest => {
                Some("wrote to a slot that no row owns".to_owned())
            }
            Ok(found) if !within(found.oracle) => Some("too far from the oracle".to_owned()),
            Ok(found) if !found.split.is_none_or(within) => {
                Some("too far from the split path".to_owned())
            }
            Ok(_) => None,
        };
        let distance = |errors: Errors| Distance { out: errors.out, state: errors.state };
        let found = outcome.ok();
        Self {
            passed: problem.is_none(),
            check,
            tolerance,
            oracle: found.as_ref().map(|found| distance(found.oracle)),
            split: found.and_then(|found| found.split).map(distance),
            problem,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.passed { "PASS" } else { "FAIL" };
        write!(f, "[{mark}] {:<75}", self.check)?;
        for (name, distance) in [("oracle", self.oracle), ("split", self.split)] {
            match distance {
                Some(Distance { out, state }) => {
                    write!(f, "  {name} out {out:.1e} state {state:.1e}")?;
                }
                None => write!(f, "  {:1$}", "", name.len() + " out 0.0e-0 state 0.0e-0".len())?,
            }
        }
        write!(f, "  tolerance {:.1e}", self.tolerance)?;
        self.problem.as_ref().map_or(Ok(()), |problem| write!(f, "  {problem}"))
    }
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    provenance: Provenance,
    seed: u32,
    passed: usize,
    failed: usize,
    checks: Vec<Verdict>,
}

fn tally(verdicts: &[Verdict]) -> (usize, usize) {
    let passed = verdicts.iter().filter(|verdict| verdict.passed).count();
    (passed, verdicts.len() - passed)
}

fn exit_code(failed: usize) -> ExitCode {
    ExitCode::from(u8::from(failed > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: Errors = Errors { out: 1e-6, state: 1e-7 };

    fn verdict(oracle: Errors, split: Option<Errors>, kept_the_rest: bool) -> Verdict {
        let found = Comparison { oracle, split, kept_the_rest };
        Verdict::new("a check".to_owned(), 1e-5, Ok(found))
    }

    #[test]
    fn a_verdict_needs_everything() {
        assert!(verdict(FINE, None, true).passed);
        assert!(verdict(FINE, Some(FINE), true).passed);
        for (name, bad) in [
            ("out", Errors { out: 2e-5, ..FINE }),
            ("state", Errors { state: 2e-5, ..FINE }),
            ("NaN in out", Errors { out: f64::NAN, ..FINE }),
            ("NaN in state", Errors { state: f64::NAN, ..FINE }),
        ] {
            assert!(!verdict(bad, Some(FINE), true).passed, "oracle, {name}");
            assert!(!verdict(FINE, Some(bad), true).passed, "split, {name}");
        }
        assert!(!verdict(FINE, Some(FINE), false).passed, "a slot that no row owns");
        let refused = Verdict::new("a check".to_owned(), 1e-5, Err("refused".to_owned()));
        assert!(!refused.passed && refused.to_string().ends_with("refused"));
    }

    #[test]
    fn every_reference_shape_is_checked_in_every_dtype() {
        use clap::Parser;
        let cli = crate::cli::Cli::parse_from(["gdn", "check"]);
        let crate::cli::Command::Check(args) = cli.command else { unreachable!() };
        // The flag reads the environment as well.
        let plan = plan(&CheckArgs { path: None, ..args });
        let reference = Case::reference().len() * REFERENCE_DTYPES.len();
        assert!(plan[..reference].iter().all(|(_, operators)| operators.len() == DECODE.len()));
        let padded = plan[..reference].iter().filter(|(case, _)| case.padding).count();
        assert_eq!(padded, REFERENCE_DTYPES.len());
    }
}
