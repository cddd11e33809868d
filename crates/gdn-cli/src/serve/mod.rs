//! `gdn serve`: a model behind HTTP.

mod args;
mod made_up;

use std::{
    io::{self, Write},
    process,
    time::Duration,
};

use anyhow::Context;
use gdn::{Place, PrefillForm};
use gdn_engine::Engine;
use gdn_model::{ChatTemplate, Checkpoint, Config, Error, Model, Options};
use gdn_server::{App, ModelText};
use tokio::net::TcpListener;

pub(crate) use self::args::ServeArgs;
use crate::{
    bench_model::{LoadFormat, progress_bar},
    generate::{shipped, source::Located},
};

/// What a shell shows for a death by SIGINT.
const EXIT_INTERRUPTED: i32 = 130;

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    args.backend.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("the threads of the server can't be started")?;
    // Before the model is loaded, which may take long.
    let address = (args.host.as_str(), args.port);
    let listener = runtime.block_on(TcpListener::bind(address)).with_context(|| {
        format!("--host {} --port {}: can't listen there", args.host, args.port)
    })?;
    let address = listener.local_addr()?;
    let app = load(args)?;
    say(&format!("ready: http://{address} serves {}; Ctrl-C stops it", served_name(args)));
    runtime.block_on(async {
        let shutdown = first_signal()?;
        gdn_server::serve(listener, app, shutdown).await.context("the server failed")
    })
}

/// Loads what the flags name, and starts an engine for it.
fn load(args: &ServeArgs) -> anyhow::Result<App> {
    let options = args.engine_options();
    let located = match &args.preset {
        Some(_) => Located::of(None)?,
        None => Located::of(args.model.as_deref())?,
    };
    let folder = located.folder();
    let (config, mut checkpoint) = match &args.preset {
        Some(preset) => (Config::preset(preset)?, Checkpoint::dummy(0)),
        None => {
            let checkpoint = match args.load_format {
                LoadFormat::Dummy => Checkpoint::dummy(0),
                LoadFormat::Safetensors => Checkpoint::open(folder)?,
            };
            (Config::read(&folder.join("config.json"))?, checkpoint)
        }
    };
    let text = text(args, &located, config.vocab_size)?;
    let of_model = Engine::model_options(&options, model_options(args, config.max_positions));
    let bar = progress_bar("loading", "layer", config.layers.len());
    let progress = &mut |layers| bar.set_position(layers as u64);
    let model = Model::new(config, &mut checkpoint, &of_model, progress);
    bar.finish_and_clear();
    let mut model = model.map_err(|error| cant_be_loaded(args, error))?;
    if args.preset.is_none() && args.load_format == LoadFormat::Safetensors {
        checkpoint.finish()?;
    }
    let bar = progress_bar("warming up", "pass", 0);
    let progress = &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let warm = model.warm_up(progress);
    bar.finish_and_clear();
    warm.context("the model does not run")?;
    if of_model.memory_fraction.is_some() {
        say(&format!("there is memory for {} tokens", model.free().1));
    }
    let engine = Engine::start(model, options).context("the engine can't be started")?;
    Ok(App::new(engine, text, server_options(args)))
}

/// Options of a model with so many positions.
fn model_options(args: &ServeArgs, positions: usize) -> Options {
    let prefill = args.prefill.unwrap_or(match args.backend.place() {
        Place::Host => PrefillForm::Recurrent,
        Place::Cuda(_) => PrefillForm::Chunked,
    });
    let options = args.backend.options().prefill(prefill);
    match (args.max_total_tokens, args.backend.place()) {
        (Some(tokens), _) => options.tokens(tokens),
        (None, Place::Host) => options,
        (None, Place::Cuda(_)) => {
            let each = args.context_length.unwrap_or(positions).min(positions);
            let most = args.max_running_requests.saturating_mul(each);
            options.tokens(most).memory_fraction(args.mem_fraction_static)
        }
    }
}

/// Says what to change where it may be memory that lacks.
fn cant_be_loaded(args: &ServeArgs, error: Error) -> anyhow::Error {
    let what = format!("{} can't be loaded", args.name());
    let is_gpu = |error: &gdn::Error| matches!(error.kind(), gdn::ErrorKind::Device { .. });
    let options = args.engine_options();
    let slots = format!(
        "lower --max-running-requests ({}) or --cached-sequences ({}), which take a state slot each",
        options.max_running_requests, options.cached_sequences
    );
    let what = match &error {
        Error::NoRoom { .. } => format!(
            "{what}: {slots}, or --chunked-prefill-size ({}), or raise --mem-fraction-static ({})",
            options.chunked_prefill_size, args.mem_fraction_static
        ),
        Error::Gdn(error) if is_gpu(error) => {
            let tokens =
                args.max_total_tokens.map(|tokens| format!(", or --max-total-tokens ({tokens})"));
            format!("{what}; if the GPU lacks memory, {slots}{}", tokens.unwrap_or_default())
        }
        _ => what,
    };
    anyhow::Error::new(error).context(what)
}

/// Of another folder, of the model's, or made up with the weights.
fn text(args: &ServeArgs, located: &Located, vocab_size: usize) -> anyhow::Result<ModelText> {
    if let Some(tokenizer) = &args.tokenizer {
        let folder = Located::of(Some(tokenizer))?;
        return ModelText::load(folder.folder())
            .with_context(|| format!("--tokenizer {tokenizer} can't be loaded"));
    }
    let text = match args.preset {
        Some(_) => made_up::text(vocab_size),
        None => ModelText::load(located.folder()).map_err(Into::into),
    };
    let text =
        text.with_context(|| format!("the tokenizer of {} can't be loaded", located.name))?;
    if args.model.is_some() {
        return Ok(text);
    }
    let template = ChatTemplate::new("the shipped model's", shipped::chat_template())?;
    Ok(text.with_template(template))
}

fn server_options(args: &ServeArgs) -> gdn_server::Options {
    let mut options = gdn_server::Options::default();
    options.served_model_name = served_name(args).to_owned();
    options.model_path = args.name().to_owned();
    options.api_key = args.api_key.clone();
    options.context_length = args.context_length;
    options.shutdown_timeout = Duration::from_secs(args.shutdown_timeout);
    if args.model.is_none() && args.preset.is_none() {
        options.chat_stop = vec![shipped::STOP.to_owned()];
    }
    options
}

fn served_name(args: &ServeArgs) -> &str {
    args.served_model_name.as_deref().unwrap_or(args.name())
}

/// Done at the first Ctrl-C or SIGTERM; the second ends the process.
fn first_signal() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let (first, heard) = tokio::sync::oneshot::channel();
    let mut first = Some(first);
    let handler = move || match first.take() {
        Some(first) => {
            say("stopping: requests that run may finish; again to end them at once");
            // The server may be gone already.
            let _ = first.send(());
        }
        None => process::exit(EXIT_INTERRUPTED),
    };
    ctrlc::set_handler(handler).context("Ctrl-C can't be caught")?;
    Ok(async move {
        // The handler lives as long as the process.
        let _ = heard.await;
    })
}

/// Says something on stderr; where that is closed there is nobody to tell.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: ServeArgs,
    }

    /// The tokens, and the fraction, for a model with 1000 positions.
    fn memory(flags: &str) -> (Option<usize>, Option<f64>) {
        let args = Cli::parse_from(format!("gdn {flags}").split_whitespace()).args;
        let options = model_options(&args, 1000);
        (options.tokens, options.memory_fraction)
    }

    #[test]
    fn tokens_are_named_or_what_a_gpu_has_left() {
        assert_eq!(memory(""), (None, None));
        assert_eq!(memory("--mem-fraction-static 0.5"), (None, None));
        assert_eq!(memory("--max-total-tokens 7"), (Some(7), None));
        let gpu = |flags: &str| memory(&format!("--backend cuda {flags}"));
        assert_eq!(gpu("--max-total-tokens 7 --mem-fraction-static 0.5"), (Some(7), None));
        assert_eq!(gpu("--max-running-requests 3"), (Some(3000), Some(0.88)));
        assert_eq!(gpu("--mem-fraction-static 1"), (Some(8000), Some(1.0)));
        assert_eq!(gpu("--context-length 100"), (Some(800), Some(0.88)));
        assert_eq!(gpu("--context-length 2000"), (Some(8000), Some(0.88)));
    }

    #[test]
    fn who_lacks_memory_hears_of_flags() {
        let flags = ["gdn", "--preset", "qwen3.5-0.8b", "--mem-fraction-static", "0.3"];
        let args = Cli::parse_from(flags).args;
        let lacks = Error::NoRoom { used: 9, total: 10, fraction: 0.3, slots: 16, page: 2 };
        let error = format!("{:#}", cant_be_loaded(&args, lacks));
        for part in [
            "qwen3.5-0.8b can't be loaded",
            "--max-running-requests (8)",
            "--cached-sequences (8)",
            "raise --mem-fraction-static (0.3)",
            "got 9 in use",
        ] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        let error = format!("{:#}", cant_be_loaded(&args, Error::NoTokens));
        assert!(!error.contains("--"), "{error}");
    }
}
