//! The command `gdn`: checks and times Gated DeltaNet decode on this machine, and
//! generates text with models, here or for clients.

mod backend;
mod bench;
mod bench_model;
mod bench_serving;
mod check;
mod cli;
mod generate;
mod info;
mod machine;
mod output;
mod plot;
mod serve;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory, Parser};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use self::{
    cli::{Cli, Command},
    output::Usage,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.verbose);
    run(cli.command).unwrap_or_else(|error| report(&error))
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let out = &mut io::stdout().lock();
    match command {
        Command::Check(args) => check::run(&args, out),
        Command::Bench(args) => bench::run(&args, out).map(|()| ExitCode::SUCCESS),
        Command::Generate(args) => generate::run(&args, out),
        Command::BenchModel(args) => bench_model::run(&args, out).map(|()| ExitCode::SUCCESS),
        Command::BenchServing(args) => bench_serving::run(*args, out),
        Command::Serve(args) => serve::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Info(args) => info::run(&args, out).map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => {
            // Into memory first: the generator panics where a pipe is closed.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "gdn", &mut script);
            out.write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Says what went wrong and turns it into an exit code.
fn report(error: &anyhow::Error) -> ExitCode {
    let is_closed_pipe = |cause: &(dyn std::error::Error + 'static)| {
        let io = cause.downcast_ref::<io::Error>();
        io.is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(is_closed_pipe) {
        // Nobody reads on: what a shell shows for a death by SIGPIPE.
        return ExitCode::from(141);
    }
    let usage = error.is::<Usage>();
    let hint = if usage { "\n\nFor more information, try '--help'." } else { "" };
    // Where stderr is closed there is nobody left to tell.
    let _ = writeln!(io::stderr(), "error: {error:#}{hint}");
    ExitCode::from(if usage { 2 } else { 1 })
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
}
