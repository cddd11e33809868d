//! A sequence's logits do not depend on what shares its forward passes, its slot or
//! its pages.

mod common;

use common::{CHECKPOINTS, Reference, argmax, model_with};
use gdn::DecodePath;
use gdn_model::{Error, Logits, Model, Options, Sequence, Turn};

/// The prompts with references, each longer than the one before.
fn prompts(name: &str) -> Vec<Vec<u32>> {
    Reference::new(name).edges().into_iter().map(|prompt| prompt.tokens).collect()
}

/// The logits behind a prompt and behind each of the tokens that follow greedily.
fn alone(model: &mut Model, prompt: &[u32], steps: usize) -> Vec<Vec<f32>> {
    let mut sequence = model.sequence().unwrap();
    let mut all = vec![model.forward(&mut sequence, prompt).unwrap()];
    for _ in 0..steps {
        let token = argmax(all.last().unwrap());
        all.push(model.forward(&mut sequence, &[token]).unwrap());
    }
    all
}

/// A sequence under way, and what is known of it.
struct Running {
    sequence: Sequence,
    prompt: Vec<u32>,
    expected: Vec<Vec<f32>>,
    seen: usize,
}

impl Running {
    fn start(model: &mut Model, prompt: &[u32], expected: &[Vec<f32>]) -> Self {
        let (prompt, expected) = (prompt.to_vec(), expected.to_vec());
        Self { sequence: model.sequence().unwrap(), prompt, expected, seen: 0 }
    }

    /// Its next tokens, `piece` at the most, and whether they end in known logits.
    fn next(&self, piece: usize) -> (Vec<u32>, bool) {
        let at = self.sequence.len();
        if at < self.prompt.len() {
            let end = (at + piece).min(self.prompt.len());
            return (self.prompt[at..end].to_vec(), end == self.prompt.len());
        }
        (vec![argmax(&self.expected[self.seen - 1])], true)
    }
}

/// Runs one step of all.
fn step(model: &mut Model, running: &mut [Running], piece: usize) {
    let next: Vec<_> = running.iter().map(|running| running.next(piece)).collect();
    let wanted =
        |&(_, known): &(Vec<u32>, bool)| if known { Logits::Last } else { Logits::Nothing };
    let mut turns: Vec<_> = running
        .iter_mut()
        .zip(&next)
        .map(|(running, next)| Turn {
            sequence: &mut running.sequence,
            tokens: &next.0,
            logits: wanted(next),
        })
        .collect();
    let logits = model.step(&mut turns).unwrap();
    let mut rows = logits.chunks_exact(model.config().vocab_size);
    for (running, (_, known)) in running.iter_mut().zip(next) {
        if known {
            let same = rows.next().unwrap() == running.expected[running.seen];
            assert!(same, "a prompt of {}, step {}", running.prompt.len(), running.seen);
            running.seen += 1;
        }
    }
    assert_eq!(rows.len(), 0);
}

#[test]
fn strangers_do_not_show() {
    const STEPS: usize = 6;
    for name in CHECKPOINTS {
        // Fewer slots than prompts: sequences end in the middle, others take their places.
        let mut model = model_with(name, &Options::default().sequences(4).tokens(64 * 16));
        let prompts = prompts(name);
        let known: Vec<_> = prompts.iter().map(|prompt| alone(&mut model, prompt, STEPS)).collect();
        for piece in [7, 64] {
            let mut waiting = prompts.iter().zip(&known).rev();
            let mut running: Vec<Running> = Vec::new();
            loop {
                running.retain(|running| running.seen <= STEPS);
                while running.len() < 4
                    && let Some((prompt, known)) = waiting.next()
                {
                    running.insert(running.len() / 2, Running::start(&mut model, prompt, known));
                }
                if running.is_empty() {
                    break;
                }
                step(&mut model, &mut running, piece);
            }
        }
        assert_eq!(model.free(), (4, 64 * 16), "{name}: nothing is kept");
    }
}

#[test]
fn every_path_of_decode_gives_the_same_text() {
    for name in CHECKPOINTS {
        let prompt = prompts(name).pop().unwrap();
        let text = |path| {
            let mut model = model_with(name, &Options::default().decode(path));
            let all = alone(&mut model, &prompt, 20);
            all.iter().map(|logits| argmax(logits)).collect::<Vec<_>>()
        };
        let [fused, packed, split] = DecodePath::ALL.map(text);
        assert_eq!(fused, packed, "{name}");
        assert_eq!(fused, split, "{name}");
    }
}

#[test]
fn memory_that_runs_out_is_an_error_and_comes_back() {
    let mut model = model_with(CHECKPOINTS[0], &Options::default().sequences(2).tokens(128));
    let (mut a, b) = (model.sequence().unwrap(), model.sequence().unwrap());
    let error = model.sequence().unwrap_err();
    assert!(matches!(error, Error::NoSlot { slots: 2 }), "{error}");
    drop(b);
    let mut b = model.sequence().unwrap();
    model.forward(&mut a, &[1; 65]).unwrap();
    let error = model.forward(&mut b, &[1]).unwrap_err();
    assert!(matches!(error, Error::NoPages { pages: 2, left: 0, needed: 1, .. }), "{error}");
    assert!(b.is_empty());
    drop(a);
    model.forward(&mut b, &[1; 128]).unwrap();
    assert_eq!(model.free(), (1, 0));
}

fn turn<'a>(sequence: &'a mut Sequence, tokens: &'a [u32]) -> Turn<'a> {
    Turn { sequence, tokens, logits: Logits::Last }
}

#[test]
fn a_batch_that_is_too_large_leaves_all_as_it_was() {
    let mut options = Options::default();
    options.batch_tokens = 8;
    let mut model = model_with(CHECKPOINTS[0], &options);
    let (mut a, mut b) = (model.sequence().unwrap(), model.sequence().unwrap());
    let error = model.step(&mut [turn(&mut a, &[1; 5]), turn(&mut b, &[1; 4])]).unwrap_err();
    assert!(matches!(error, Error::BatchTokens { limit: 8, got: 9 }), "{error}");
    assert!(a.is_empty() && b.is_empty());
    model.step(&mut [turn(&mut a, &[1; 4]), turn(&mut b, &[1; 4])]).unwrap();
    assert_eq!((a.len(), b.len()), (4, 4));
}

#[test]
fn a_fork_goes_its_own_way() {
    for name in CHECKPOINTS {
        // Pages for the longest prompt (four), its fork's last one, and another way on.
        let mut model = model_with(name, &Options::default().sequences(3).tokens(64 * 6));
        let all = (3, 64 * 6);
        for prompt in prompts(name) {
            let known = alone(&mut model, &prompt, 3);
            for cut in [1, 63, 64, 65, 128, prompt.len() - 1] {
                if cut == 0 || cut >= prompt.len() {
                    continue;
                }
                let (begin, rest) = prompt.split_at(cut);
                let mut first = model.sequence().unwrap();
                model.forward(&mut first, begin).unwrap();
                let mut fork = model.fork(&first).unwrap();
                assert_eq!((fork.len(), model.free().0), (cut, 1));
                // The one of which it is goes another way, and then away.
                model.forward(&mut first, &[7, 8, 9]).unwrap();
                drop(first);
                let mut logits = vec![model.forward(&mut fork, rest).unwrap()];
                // Moved to another slot, in the middle of an answer.
                let mut moved = model.fork(&fork).unwrap();
                drop(fork);
                for _ in 0..3 {
                    let token = argmax(logits.last().unwrap());
                    logits.push(model.forward(&mut moved, &[token]).unwrap());
                }
                assert!(logits == known, "{name}: {cut} of {}", prompt.len());
                drop(moved);
                assert_eq!(model.free(), all, "{name}: {cut} of {}", prompt.len());
            }
        }
    }
}

#[test]
fn a_fork_shares_full_pages() {
    let mut model = model_with(CHECKPOINTS[0], &Options::default().sequences(3).tokens(64 * 4));
    let mut first = model.sequence().unwrap();
    model.forward(&mut first, &[5; 130]).unwrap();
    let forks = [(); 2].map(|()| model.fork(&first));
    let [Ok(fork), Err(error)] = forks else { panic!("{forks:?}") };
    // Two are shared, the third is a copy.
    assert!(matches!(error, Error::NoPages { left: 0, needed: 1, .. }), "{error}");
    assert_eq!(model.free(), (1, 0));
    drop(first);
    assert_eq!(model.free(), (2, 64), "the fork holds the others");
    drop(fork);
    assert_eq!(model.free(), (3, 64 * 4));
}
