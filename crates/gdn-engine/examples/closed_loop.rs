//! Clients in a closed loop on an engine with made-up weights, with no server between: what
//! scheduling alone costs.
//!
//! ```sh
//! cargo run --release -p gdn-engine --example closed_loop -- qwen3.5-35b-a3b cuda 128 800 128 200
//! ```
//!
//! Preset, backend, concurrency, requests, tokens of a prompt and of an answer; then, if given,
//! the options `mixed_prefill_size` and `cached_sequences`.
#![allow(clippy::print_stdout)]

use std::{
    env,
    error::Error,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use gdn::{Place, PrefillForm};
use gdn_engine::{Engine, EngineOptions, Event, Request};
use gdn_model::{Checkpoint, Config, Model, Options};

#[derive(Default)]
struct Times {
    ttft: Vec<Duration>,
    tpot: Vec<Duration>,
    itl: Vec<Duration>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let word = |i: usize, default: &'static str| args.get(i).map_or(default, String::as_str);
    let number = |i: usize, default: &'static str| word(i, default).parse::<usize>();
    let config = Config::preset(word(0, "qwen3.5-0.8b"))?;
    let place = if word(1, "cpu") == "cuda" { Place::Cuda(0) } else { Place::Host };
    let (concurrency, requests) = (number(2, "4")?, number(3, "8")?);
    let (prompt, answer) = (number(4, "128")?, number(5, "32")?);
    let mut options = EngineOptions::default();
    options.max_running_requests = concurrency;
    options.mixed_prefill_size = number(6, "768")?;
    options.cached_sequences = number(7, "0")?;

    let tokens = (concurrency + options.cached_sequences) * (prompt + answer).next_multiple_of(64);
    let of_model = Options::default().device(place).prefill(PrefillForm::Chunked);
    let of_model = Engine::model_options(&options, of_model.tokens(tokens + 64 * concurrency));
    let vocab = config.vocab_size as u32;
    let mut model = Model::new(config, &mut Checkpoint::dummy(0), &of_model, &mut |_| {})?;
    let begin = Instant::now();
    model.warm_up(&mut |_, _| {})?;
    println!("warmed up in {:.1} s", begin.elapsed().as_secs_f64());
    let engine = Engine::start(model, options)?;

    let begin = Instant::now();
    let mut times = run(&engine, concurrency, requests, prompt, answer, vocab);
    let elapsed = begin.elapsed().as_secs_f64();
    let stats = engine.stats();
    println!("{:.0} output tokens/s, {stats:?}", (requests * answer) as f64 / elapsed);
    for (name, times) in
        [("TTFT", &mut times.ttft), ("TPOT", &mut times.tpot), ("ITL", &mut times.itl)]
    {
        times.sort();
        let at =
            |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        let mean = times.iter().sum::<Duration>().as_secs_f64() * 1e3 / times.len() as f64;
        let (median, p95, p99) = (at(0.5), at(0.95), at(0.99));
        println!("{name} ms: mean {mean:.2}, median {median:.2}, P95 {p95:.2}, P99 {p99:.2}");
    }
    Ok(())
}

/// Answers to so many prompts of made-up tokens.
fn run(
    engine: &Engine,
    concurrency: usize,
    requests: usize,
    prompt: usize,
    answer: usize,
    vocab: u32,
) -> Times {
    let (next, all) = (AtomicUsize::new(0), Mutex::new(Times::default()));
    let client = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= requests {
                break;
            }
            let first = (n * prompt) as u32;
            let tokens = (first..).map(|i| i.wrapping_mul(2_654_435_761) % vocab);
            let prompt = tokens.take(prompt).collect();
            let request = Request { prompt, max_tokens: answer, ..Request::default() };
            let sent = Instant::now();
            let mut events = engine.submit(request).expect("it is taken");
            let (mut came, mut of_this) = (Vec::new(), Times::default());
            while let Some(event) = events.blocking_recv() {
                if let Event::Token { .. } = event {
                    came.push(Instant::now());
                }
            }
            let (first, last) = (came[0], came[came.len() - 1]);
            of_this.ttft.push(first - sent);
            of_this.tpot.push((last - first) / (came.len() - 1).max(1) as u32);
            of_this.itl.extend(came.windows(2).map(|pair| pair[1] - pair[0]));
            let mut all = all.lock().expect("no client panics");
            all.ttft.extend(of_this.ttft);
            all.tpot.extend(of_this.tpot);
            all.itl.extend(of_this.itl);
        }
    };
    thread::scope(|scope| (0..concurrency).for_each(|_| drop(scope.spawn(client))));
    all.into_inner().expect("no client panics")
}
