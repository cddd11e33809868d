//! An engine gives what the model alone gives, whatever else goes on, and keeps nothing.

use std::{collections::HashMap, path::PathBuf, sync::mpsc, thread, time::Duration};

use gdn::{DType, Place};
use gdn_engine::{
    Answer, Constraint, Engine, EngineOptions, Event, FinishReason, Finished, Logprobs, Request,
    SubmitError,
};
use gdn_model::{Model, Options, Sampler, SamplingParams, Tokenizer};
use rand::{Rng, SeedableRng, rngs::SmallRng};

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../gdn-model/tests/fixtures/qwen3_5_trained"].iter().collect()
}

fn options() -> EngineOptions {
    EngineOptions::default()
}

/// On the CPU, or where `GDN_TEST_BACKEND=cuda` says so, in f32: the same bits whatever shares
/// a step.
fn of_model() -> Options {
    match std::env::var("GDN_TEST_BACKEND").as_deref() {
        Ok("cuda") => Options::default().device(Place::Cuda(0)).activations(DType::F32),
        _ => Options::default().threads(1),
    }
}

/// An engine with memory for so many tokens.
fn engine(options: &EngineOptions, tokens: usize) -> Engine {
    let of_model = Engine::model_options(options, of_model().tokens(tokens));
    let model = Model::load_with(folder(), &of_model).unwrap();
    Engine::start(model, options.clone()).unwrap()
}

/// Prompts of text, from some tokens to a few hundred.
fn prompts() -> Vec<Vec<u32>> {
    let tokenizer = Tokenizer::load(folder()).unwrap();
    let read = |name| std::fs::read_to_string(folder().join(name)).unwrap();
    let (prefix, questions) = (read("eval_prefix.txt"), read("eval.jsonl"));
    let all = questions.lines().enumerate().map(|(i, line)| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let question = format!("Question: {}\nAnswer:", line["question"].as_str().unwrap());
        // Some have a beginning in common.
        let text = if i % 3 == 0 { question } else { format!("{prefix}{question}") };
        tokenizer.encode(&text).unwrap()
    });
    all.collect()
}

/// What the model alone says, in one call a token.
fn alone(model: &mut Model, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut sequence = model.sequence().unwrap();
    model.generate_greedy(&mut sequence, prompt, tokens, &[]).unwrap()
}

fn model() -> Model {
    Model::load_with(folder(), &of_model()).unwrap()
}

fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    Request { prompt: prompt.to_vec(), max_tokens, ..Request::default() }
}

/// Everything that an answer says.
struct Said {
    prompt: Option<Vec<Option<Logprobs>>>,
    tokens: Vec<u32>,
    logprobs: Vec<Option<Logprobs>>,
    finished: Finished,
}

fn hear(mut answer: Answer) -> Said {
    let (mut cached, mut prompt, mut tokens, mut all) = (None, None, Vec::new(), Vec::new());
    while let Some(event) = answer.blocking_recv() {
        match event {
            Event::Started { cached_tokens } => assert_eq!(cached.replace(cached_tokens), None),
            Event::Prompt(logprobs) => prompt = Some(logprobs),
            Event::Token { token, logprobs } => {
                tokens.push(token);
                all.push(logprobs);
            }
            Event::Finished(finished) => {
                assert_eq!(answer.blocking_recv(), None);
                assert_eq!(finished.completion_tokens, tokens.len());
                assert_eq!(finished.cached_tokens, cached.unwrap_or(0));
                return Said { prompt, tokens, logprobs: all, finished };
            }
        }
    }
    panic!("an answer without an end");
}

fn ask(engine: &Engine, request: Request) -> Said {
    hear(engine.submit(request).unwrap())
}

/// Waits until nothing runs; what is held then is the cache's.
fn settle(engine: &Engine) {
    for _ in 0..2000 {
        let stats = engine.stats();
        if stats.running + stats.queued == 0 {
            assert_eq!(stats.slots_used, 0, "{stats:?}");
            if stats.slots_cached == 0 {
                assert_eq!(stats.pages_used, 0, "{stats:?}");
            }
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("it never ends: {:?}", engine.stats());
}

/// More than a page, so that memory runs out on the way.
const LEN: usize = 80;

/// 64 requests at once, of which some are dropped, with little memory, small pieces, with
/// and without a prefix cache.
#[test]
fn the_same_text_whatever_goes_on() {
    let mut model = model();
    let prompts = prompts();
    let expected: Vec<_> = prompts[..64].iter().map(|p| alone(&mut model, p, LEN)).collect();
    let mut random = SmallRng::seed_from_u64(7);
    let longest = prompts.iter().map(Vec::len).max().unwrap();
    for (running, cached, chunk, mixed, tokens) in [
        (16, 0, 2048, 512, 1 << 14),
        (16, 8, 100, 70, 1 << 14),
        // Pages for a few of them: they take them from each other.
        (8, 0, 512, 64, 3 * longest.next_multiple_of(64)),
        (8, 6, 64, 16, 4 * longest.next_multiple_of(64)),
    ] {
        let mut options = options();
        options.max_running_requests = running;
        options.cached_sequences = cached;
        options.chunked_prefill_size = chunk;
        options.mixed_prefill_size = mixed;
        let engine = engine(&options, tokens);
        let mut answers: Vec<_> =
            prompts[..64].iter().map(|p| Some(engine.submit(greedy(p, LEN)).unwrap())).collect();
        thread::scope(|scope| {
            for (i, answer) in answers.iter_mut().enumerate() {
                let mut answer = answer.take().unwrap();
                let expected = &expected[i];
                let dropped = (i % 5 == 4).then(|| random.random_range(0..LEN));
                scope.spawn(move || {
                    if dropped.is_some() {
                        assert!(matches!(answer.blocking_recv(), Some(Event::Started { .. })));
                    }
                    for &expected in &expected[..dropped.unwrap_or(0)] {
                        let Some(Event::Token { token, .. }) = answer.blocking_recv() else {
                            panic!("prompt {i} ends early");
                        };
                        assert_eq!(token, expected, "prompt {i}");
                    }
                    if dropped.is_none() {
                        let said = hear(answer);
                        assert_eq!(&said.tokens, expected, "prompt {i}");
                        assert_eq!(said.finished.reason, FinishReason::Length);
                    }
                });
            }
        });
        settle(&engine);
        let stats = engine.stats();
        assert_eq!(stats.finished + stats.aborted, 64, "{stats:?}");
        assert!(stats.finished >= 52 && stats.failed == 0, "{stats:?}");
        assert_eq!(tokens < 1 << 14, stats.preemptions > 0, "{stats:?}");
        assert_eq!(cached > 0, stats.cached_tokens > 0, "{stats:?}");
    }
}

#[test]
fn a_conversation_goes_on_from_where_it_was() {
    let engine = engine(&options(), 1 << 13);
    let prompt = &prompts()[1];
    let first = ask(&engine, greedy(prompt, 20));
    assert_eq!(first.finished.cached_tokens, 0);
    // All but the last token of the answer were seen.
    let mut next = [&prompt[..], &first.tokens].concat();
    let seen = next.len() - 1;
    next.extend([11, 12, 13]);
    let second = ask(&engine, greedy(&next, 20));
    assert_eq!(second.finished.cached_tokens, seen);
    assert_eq!(second.tokens, alone(&mut model(), &next, 20));
    // What was said does not change when it is asked for again.
    let again = ask(&engine, greedy(&next, 20));
    assert_eq!(again.tokens, second.tokens);
    assert_eq!(again.finished.cached_tokens, seen);
}

/// The second request with a beginning marks where they part, the third starts there.
#[test]
fn a_shared_beginning_is_kept() {
    let engine = engine(&options(), 1 << 13);
    let beginning: Vec<u32> = (0..300).map(|i| 20 + i % 50).collect();
    let mut model = model();
    for n in 0..4 {
        let prompt = [&beginning[..], &[100 + n, 7, 8]].concat();
        let said = ask(&engine, greedy(&prompt, 5));
        assert_eq!(said.finished.cached_tokens, if n < 2 { 0 } else { 256 }, "request {n}");
        assert_eq!(said.tokens, alone(&mut model, &prompt, 5));
    }
    // A caller that knows better gets its checkpoint at once.
    let other: Vec<u32> = (0..100).map(|i| 200 + i % 30).collect();
    for (n, cached) in [0, 77].into_iter().enumerate() {
        let prompt = [&other[..77], &[300 + n as u32; 9]].concat();
        let request = Request { checkpoint: Some(77), ..greedy(&prompt, 5) };
        let said = ask(&engine, request);
        assert_eq!(said.finished.cached_tokens, cached);
        assert_eq!(said.tokens, alone(&mut model, &prompt, 5));
    }
}

/// An answer whose every token waits for word, and the engine's thread with it. Without
/// anybody to give it, it ends.
#[derive(Debug)]
struct Gate {
    word: mpsc::Receiver<()>,
    is_over: bool,
}

impl Constraint for Gate {
    fn mask(&mut self, _: &mut [f32]) -> Result<(), String> {
        self.is_over = self.word.recv().is_err();
        Ok(())
    }

    fn accept(&mut self, _: u32) -> Result<bool, String> {
        Ok(self.is_over)
    }
}

/// Lets the engine's thread wait in a step. What is submitted until the sender is used is
/// heard before the next one.
fn hold(engine: &Engine) -> (mpsc::Sender<()>, Answer) {
    let (sender, word) = mpsc::channel();
    let constraint: Option<Box<dyn Constraint>> = Some(Box::new(Gate { word, is_over: false }));
    let mut answer = engine.submit(Request { constraint, ..greedy(&[1], 1000) }).unwrap();
    assert_eq!(answer.blocking_recv(), Some(Event::Started { cached_tokens: 0 }));
    (sender, answer)
}

/// Answers to the same prompt, and to prompts with the same beginning, run it once.
#[test]
fn what_comes_at_once_shares_a_beginning() {
    let beginning: Vec<u32> = (0..300).map(|i| 20 + i % 50).collect();
    let mut model = model();
    for (cached_sequences, shared, ends) in
        [(8, 256, [0, 0, 0, 0]), (8, 192, [1, 2, 3, 4]), (0, 0, [0, 0, 0, 0]), (1, 256, [0; 4])]
    {
        let mut options = options();
        options.cached_sequences = cached_sequences;
        let engine = engine(&options, 1 << 13);
        let (gate, _busy) = hold(&engine);
        let prompt = |end| match end {
            0 => beginning.clone(),
            end => [&beginning[..220], &[end; 30]].concat(),
        };
        let stranger = engine.submit(greedy(&[5; 200], 10)).unwrap();
        let answers = ends.map(|end| engine.submit(greedy(&prompt(end), 10)).unwrap());
        drop(gate);
        for (n, (answer, end)) in answers.into_iter().zip(ends).enumerate() {
            let said = hear(answer);
            assert_eq!(said.tokens, alone(&mut model, &prompt(end), 10));
            assert_eq!(said.finished.cached_tokens, if n == 0 { 0 } else { shared }, "answer {n}");
        }
        assert_eq!(hear(stranger).tokens, alone(&mut model, &[5; 200], 10));
        settle(&engine);
        assert_eq!(engine.stats().cached_tokens, 3 * shared as u64);
    }
}

/// The one that runs the beginning goes away in the middle of it: the next runs it.
#[test]
fn nobody_waits_for_what_was_dropped() {
    let mut options = options();
    options.mixed_prefill_size = 64;
    let engine = engine(&options, 1 << 13);
    let prompt: Vec<u32> = (0..300).map(|i| 20 + i % 50).collect();
    let (gate, _busy) = hold(&engine);
    let mut first = engine.submit(greedy(&prompt, 10)).unwrap();
    let others = [0, 1].map(|_| engine.submit(greedy(&prompt, 10)).unwrap());
    // One step more, in which it starts.
    gate.send(()).unwrap();
    assert_eq!(first.blocking_recv(), Some(Event::Started { cached_tokens: 0 }));
    assert_eq!(engine.stats().cached_tokens, 0);
    drop(first);
    drop(gate);
    let expected = alone(&mut model(), &prompt, 10);
    for (answer, cached) in others.into_iter().zip([0, 256]) {
        let said = hear(answer);
        assert_eq!((said.tokens, said.finished.cached_tokens), (expected.clone(), cached));
    }
    settle(&engine);
    assert_eq!(engine.stats().aborted, 1);
}

#[test]
fn log_probabilities_are_the_models() {
    let mut options = options();
    options.chunked_prefill_size = 50;
    let engine = engine(&options, 1 << 13);
    let prompt = &prompts()[4];
    let request = || Request { logprobs: Some(3), prompt_logprobs: Some(2), ..greedy(prompt, 6) };
    // Again, with the cache full of it: the prompt is run all the same.
    for _ in 0..2 {
        let said = ask(&engine, request());
        assert_eq!(said.finished.cached_tokens, 0);
        let all = [&prompt[..], &said.tokens].concat();
        let mut model = model();
        let mut sequence = model.sequence().unwrap();
        let logits = model.forward_all(&mut sequence, &all).unwrap();
        let rows: Vec<_> = logits.chunks_exact(model.config().vocab_size).collect();
        let known = said.prompt.unwrap();
        assert_eq!(known.len(), prompt.len());
        assert_eq!(known[0], None);
        let of_tokens = known[1..].iter().chain(&said.logprobs).map(|l| l.as_ref().unwrap());
        for (i, logprobs) in of_tokens.enumerate() {
            let (row, token) = (rows[i], all[i + 1] as usize);
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            let expected = (f64::from(row[token]) - sum.ln()) as f32;
            assert!((logprobs.logprob - expected).abs() < 1e-5, "{logprobs:?}, {expected}");
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(row[logprobs.top[0].0 as usize], best);
            assert!(logprobs.top.is_sorted_by(|a, b| a.1 >= b.1));
            let is_greedy = logprobs.logprob == logprobs.top[0].1;
            assert_eq!(is_greedy, row[token] == best, "one number for both");
        }
        assert!(said.logprobs.iter().all(|l| l.as_ref().unwrap().top.len() == 3));
    }
    // Nothing but the prompt's, and of a single token.
    let said = ask(&engine, Request { max_tokens: 0, ..request() });
    assert_eq!(said.finished.reason, FinishReason::Length);
    assert_eq!((said.prompt.unwrap().len(), said.tokens.len()), (prompt.len(), 0));
    let single = Request { prompt: vec![5], max_tokens: 0, ..request() };
    assert_eq!(ask(&engine, single).prompt, Some(vec![None]));
}

/// Drawn tokens, penalties, biases: those of a sampler over the model's logits, with
/// strangers in the batch.
#[test]
fn sampling_does_not_depend_on_company() {
    let engine = engine(&options(), 1 << 14);
    let prompts = prompts();
    let default = SamplingParams { temperature: 0.8, seed: 5, ..SamplingParams::default() };
    let kinds = [
        default.clone(),
        SamplingParams { top_p: 0.9, top_k: 20, min_p: 0.01, seed: 6, ..default.clone() },
        SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.5, ..default.clone() },
        SamplingParams { logit_bias: vec![(17, 4.0), (3, -9.0)], ..default.clone() },
        SamplingParams { presence_penalty: 1.5, ..SamplingParams::default() },
    ];
    let mut model = model();
    let answers: Vec<_> = (0..15)
        .map(|i| {
            let sampling = kinds[i % kinds.len()].clone();
            let logprobs = (i % 2 == 0).then_some(1);
            let request = Request { sampling, logprobs, ..greedy(&prompts[i], 16) };
            engine.submit(request).unwrap()
        })
        .collect();
    for (i, answer) in answers.into_iter().enumerate() {
        let mut sampler = Sampler::new(kinds[i % kinds.len()].clone(), prompts[i].len()).unwrap();
        let mut history = prompts[i].clone();
        let mut sequence = model.sequence().unwrap();
        let mut logits = model.forward(&mut sequence, &history).unwrap();
        for _ in 0..16 {
            let token = sampler.sample(&mut logits, &history).unwrap();
            history.push(token);
            logits = model.forward(&mut sequence, &[token]).unwrap();
        }
        assert_eq!(hear(answer).tokens, history[prompts[i].len()..], "request {i}");
    }
}

#[test]
fn answers_end_where_they_should() {
    let engine = engine(&options(), 1 << 13);
    let prompt = &prompts()[0];
    let plain = ask(&engine, greedy(prompt, 10)).tokens;
    let stop = plain[4];
    let at = plain.iter().position(|&token| token == stop).unwrap();
    let stopping =
        |min_tokens| Request { stop_tokens: vec![stop], min_tokens, ..greedy(prompt, 10) };
    let said = ask(&engine, stopping(0));
    assert_eq!((said.tokens, said.finished.reason), (plain[..=at].to_vec(), FinishReason::Stop));
    // Held back, another token comes in its place.
    let said = ask(&engine, stopping(8));
    assert!(said.tokens.len() >= 8 && !said.tokens[..8].contains(&stop), "{:?}", said.tokens);
    assert_eq!(said.tokens[..at], plain[..at]);
    // As many tokens as there is memory for.
    let limit = engine.max_sequence_tokens();
    let long: Vec<u32> = (0..limit as u32 - 3).map(|i| i % 90).collect();
    let said = ask(&engine, greedy(&long, 100));
    assert_eq!((said.tokens.len(), said.finished.reason), (3, FinishReason::Length));
    settle(&engine);
}

/// Lets even tokens follow odd ones and odd ones even ones, four in all.
#[derive(Debug, Default)]
struct Alternating(usize);

impl Constraint for Alternating {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let wrong = logits.iter_mut().skip((self.0 + 1) % 2).step_by(2);
        wrong.for_each(|logit| *logit = f32::NEG_INFINITY);
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<bool, String> {
        if token == 4 {
            return Err("no fours".to_owned());
        }
        self.0 += 1;
        Ok(self.0 == 4)
    }
}

#[test]
fn constraints_hold() {
    let engine = engine(&options(), 1 << 13);
    let constrained = |sampling| Request {
        constraint: Some(Box::new(Alternating::default())),
        sampling,
        ..greedy(&[1, 2, 3], 20)
    };
    let said = ask(&engine, constrained(SamplingParams::default()));
    assert_eq!(said.finished.reason, FinishReason::Stop);
    assert_eq!(said.tokens.iter().map(|t| t % 2).collect::<Vec<_>>(), [0, 1, 0, 1]);
    let bias = SamplingParams { logit_bias: vec![(4, 100.0)], ..SamplingParams::default() };
    let said = ask(&engine, constrained(bias));
    assert_eq!(said.finished.reason, FinishReason::Failed("no fours".to_owned()));
    settle(&engine);
}

#[test]
fn what_is_not_taken() {
    let mut options = options();
    options.max_running_requests = 1;
    options.max_queued_requests = 2;
    let engine = engine(&options, 1 << 12);
    let refused = |request| engine.submit(request).unwrap_err().to_string();
    assert_eq!(refused(greedy(&[], 1)), "prompt: expected at least 1 token, got 0");
    assert_eq!(
        refused(greedy(&[1; 4096], 1)),
        "prompt: expected at most 4095 tokens, got 4096; shorten it"
    );
    assert_eq!(refused(greedy(&[1, 1 << 30], 1)), {
        let vocab = model().config().vocab_size;
        format!("tokens[1]: expected a token below {vocab}, got 1073741824")
    });
    let sampling = SamplingParams { top_p: 0.0, ..SamplingParams::default() };
    let wrong = refused(Request { sampling, ..greedy(&[1], 1) });
    assert!(wrong.starts_with("top_p: expected"), "{wrong}");
    let sampling = SamplingParams { logit_bias: vec![(9999, 1.0)], ..SamplingParams::default() };
    let wrong = refused(Request { sampling, ..greedy(&[1], 1) });
    assert!(wrong.starts_with("logit_bias: expected tokens below"), "{wrong}");
    assert_eq!(engine.stats().queued, 0);

    let answers: Vec<_> = (0..3).map(|_| engine.submit(greedy(&[1, 2], 3000)).unwrap()).collect();
    let full = engine.submit(greedy(&[1], 1)).unwrap_err();
    assert!(matches!(full, SubmitError::QueueFull { limit: 2 }), "{full}");
    drop(answers);
    settle(&engine);
    assert_eq!(engine.stats().aborted, 3);

    let answer = engine.submit(greedy(&[1, 2], 3000)).unwrap();
    engine.stop();
    assert!(!engine.is_ready());
    assert!(matches!(engine.submit(greedy(&[1], 1)), Err(SubmitError::Stopping)));
    engine.abort_all();
    assert_eq!(hear(answer).finished.reason, FinishReason::Aborted);
    settle(&engine);
}

/// Whoever lets go of the engine ends what runs.
#[test]
fn dropping_it_ends_all() {
    let engine = engine(&options(), 1 << 13);
    let answers: Vec<_> = (0..12).map(|_| engine.submit(greedy(&[9, 9], 3000)).unwrap()).collect();
    drop(engine);
    let mut ends: HashMap<_, usize> = HashMap::new();
    for answer in answers {
        *ends.entry(format!("{:?}", hear(answer).finished.reason)).or_default() += 1;
    }
    assert_eq!(ends, HashMap::from([("Aborted".to_owned(), 12)]));
}
