//! `gdn bench-serving`: how a server does under load, measured from outside.

mod api;
mod args;
mod client;
mod dataset;
mod load;
mod metrics;
mod plot;
mod report;
mod sse;
mod timeline;
mod vocabulary;

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rand::{SeedableRng, rngs::SmallRng};
use tokio::runtime::Runtime;

pub(crate) use self::args::BenchServingArgs;
use self::{
    api::{Request, Route},
    args::{DatasetName, OutputArgs},
    client::Server,
    dataset::Source,
    load::{Outcome, Target},
    metrics::Metrics,
    report::Load,
    timeline::Answer,
    vocabulary::Vocabulary,
};
use crate::{
    bench::note,
    output::{OutputFile, Usage},
};

/// Connections that may be open at once, if the system lets them.
const OPEN_FILES: u64 = 65_535;
/// Every vocabulary has this many tokens.
const SMALL_VOCABULARY: usize = 1000;

pub(crate) fn run(args: BenchServingArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let files = Files::open(&args.output)?;
    let route = args.server.backend.route();
    dataset::check(&args.dataset, route)?;
    let runtime = Runtime::new().context("the threads that send requests can't be started")?;
    runtime.block_on(measure(args, route, files, out))
}

async fn measure(
    args: BenchServingArgs,
    route: Route,
    files: Files,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server)?;
    let waiting = || note(&format!("waiting for {} to be ready", server.base()));
    server.wait_ready(Duration::from_secs(args.server.ready_timeout), waiting).await?;
    let model = match &args.server.model {
        Some(model) => model.clone(),
        None => server.first_model().await?,
    };
    let source = source(&args, &model, &server).await?;
    let rng = &mut SmallRng::seed_from_u64(args.dataset.seed);
    let requests = dataset::sample(&args.dataset, route, &source, rng)?;
    describe(&args, &requests);
    // Where it can't be raised, connections fail, and say so.
    let _ = rlimit::increase_nofile_limit(OPEN_FILES);

    let served = args.server.served_model_name.as_ref().unwrap_or(&model).clone();
    let target = Arc::new(Target { server, route, model: served, body: args.body.clone() });
    let warm_up = args.load.warmup_requests;
    target.warm_up(&requests[0], warm_up).await?;
    load::settle(&target.server, args.load.flush_cache, warm_up > 0).await?;
    let due = load::arrivals(requests.len(), args.load.request_rate, rng);
    let bar = progress_bar(requests.len(), args.output.disable_tqdm);
    let outcome = target.run(&requests, &due, args.load.max_concurrency, &bar).await?;
    bar.finish_and_clear();

    let info = target.server.info().await;
    let sglang = args.server.backend.is_sglang();
    let count = |text: &str| match &source {
        Source::Vocabulary(vocabulary) => vocabulary.count(text),
        Source::Ids(_) => Ok(0),
    };
    let context = metrics::Context {
        duration_s: outcome.duration_s,
        count: matches!(source, Source::Vocabulary(_)).then_some(&count),
        accept_length: info.as_ref().filter(|_| sglang).and_then(api::accept_length),
        pieces: route != Route::Generate,
    };
    let Outcome { answers, .. } = outcome;
    let (answers, errors): (Vec<_>, Vec<_>) = answers.into_iter().map(split).unzip();
    let answers: Vec<_> = answers.iter().map(Option::as_ref).collect();
    let metrics = Metrics::of(&requests, &answers, &context)?;
    report::print(&args, &metrics, out)?;
    for line in report::errors(&errors) {
        note(&line);
    }
    let load = Load {
        args: &args,
        model: &model,
        metrics: &metrics,
        answers: &answers,
        prompt_lens: &requests.iter().map(|request| request.prompt_len).collect::<Vec<_>>(),
        errors: &errors,
        server_info: info.as_ref(),
    };
    files.write(&load)?;
    Ok(match metrics.completed {
        0 => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// An answer, or the text of what went wrong.
fn split(answer: Result<Answer, client::AskError>) -> (Option<Answer>, String) {
    match answer {
        Ok(answer) => (Some(answer), String::new()),
        Err(error) => (None, format!("{:#}", anyhow::Error::new(error))),
    }
}

/// The tokenizer that the flags or the model name, or how many ids there are.
async fn source(args: &BenchServingArgs, model: &str, server: &Server) -> anyhow::Result<Source> {
    let dataset = &args.dataset;
    let beside = || Some(PathBuf::from(model)).filter(|it| it.join("tokenizer.json").is_file());
    if let Some(folder) = dataset.tokenizer.clone().or_else(beside) {
        let vocabulary = Vocabulary::load(&folder, dataset.apply_chat_template)?;
        return Ok(Source::Vocabulary(Box::new(vocabulary)));
    }
    if let Some(size) = dataset.vocab_size {
        return Ok(Source::Ids(size));
    }
    let said = server.info().await.and_then(|info| info.get("vocab_size")?.as_u64());
    let size = said.and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0);
    if size.is_none() && dataset.dataset_name == DatasetName::RandomIds {
        note(&format!(
            "note: neither --tokenizer nor --vocab-size is given, and the server does not say how \
             many tokens there are: drawing from the first {SMALL_VOCABULARY}"
        ));
    }
    Ok(Source::Ids(size.unwrap_or(SMALL_VOCABULARY)))
}

/// Says on stderr what will be sent.
fn describe(args: &BenchServingArgs, requests: &[Request]) {
    let (found, asked) = (requests.len(), args.dataset.num_prompts);
    if found < asked {
        note(&format!("note: {found} prompts and not {asked}: the data set has no more"));
    }
    let sum = |of: fn(&Request) -> usize| requests.iter().map(of).sum::<usize>();
    note(&format!("#Input tokens: {}", sum(|request| request.prompt_len)));
    note(&format!("#Output tokens: {}", sum(|request| request.output_len)));
}

/// On stderr, if that is a terminal.
fn progress_bar(requests: usize, hidden: bool) -> ProgressBar {
    let target = match hidden {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    };
    let template = "{wide_bar} {pos} of {len} requests, {per_sec}, {elapsed} + {eta}";
    let style = ProgressStyle::with_template(template).expect("a valid template");
    ProgressBar::with_draw_target(Some(requests as u64), target).with_style(style)
}

/// The files that the flags ask for, found to be writable before the work is done.
struct Files {
    lines: Option<(PathBuf, File)>,
    json: Option<OutputFile>,
    plot: Option<OutputFile>,
}

impl Files {
    fn open(args: &OutputArgs) -> anyhow::Result<Self> {
        let lines = args.output_file.as_deref().map(append).transpose()?;
        let json = OutputFile::of("--json", args.json.as_deref())?;
        let plot = OutputFile::of("--plot", args.plot.as_deref())?;
        Ok(Self { lines, json, plot })
    }

    fn write(self, load: &Load<'_>) -> anyhow::Result<()> {
        if let Some((path, mut file)) = self.lines {
            // In one write, so that lines of several runs don't mix.
            let line = format!("{}\n", load.fields());
            let written = file.write_all(line.as_bytes());
            written.with_context(|| format!("--output-file: can't write {}", path.display()))?;
        }
        if let Some(file) = self.json {
            file.write_json(&load.report())?;
        }
        if let Some(file) = self.plot {
            file.write(plot::draw(&setup(load), load.metrics)?.as_bytes())?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> Result<(PathBuf, File), Usage> {
    match OpenOptions::new().append(true).create(true).open(path) {
        Ok(file) => Ok((path.to_owned(), file)),
        Err(error) => Err(Usage(format!("--output-file: can't write {}: {error}", path.display()))),
    }
}

/// The load in a line.
fn setup(load: &Load<'_>) -> String {
    let (args, metrics) = (load.args, load.metrics);
    let limit = match args.load.max_concurrency {
        Some(limit) => format!("at most {limit} at once"),
        None => "no limit at once".to_owned(),
    };
    format!(
        "{}, {}; {} requests of {}, {limit}, {:?} a second; {:.0} tokens/s",
        args.server.backend.name(),
        load.model,
        metrics.completed,
        args.dataset.dataset_name.name(),
        args.load.request_rate,
        metrics.per_s(metrics.output_tokens),
    )
}
