use gdn::DType;

use super::{Choice, cpu, cuda};
use crate::{cuda::Gpu, ops::testing::*};

const GREEDY: Choice =
    Choice { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0, step: 0 };
const DRAW: Choice = Choice { temperature: 1.0, ..GREEDY };

/// The tokens of rows of as many logits, which lie apart.
fn on_gpu(gpu: &Gpu, rows: &[Vec<f32>], choices: &[Choice]) -> Vec<u32> {
    let vocab = rows[0].len();
    let stride = vocab.next_multiple_of(4) + 4;
    let apart = |row: &Vec<f32>| [row, &vec![f32::INFINITY; stride - vocab][..]].concat();
    let logits = upload(gpu, &rows.iter().flat_map(apart).collect::<Vec<_>>());
    let array =
        |of: &dyn Fn(&Choice) -> u32| upload(gpu, &choices.iter().map(of).collect::<Vec<u32>>());
    let wide =
        |of: &dyn Fn(&Choice) -> u64| upload(gpu, &choices.iter().map(of).collect::<Vec<u64>>());
    let temperature = array(&|choice| choice.temperature.to_bits());
    let (top_k, top_p) = (array(&|choice| choice.top_k), array(&|choice| choice.top_p.to_bits()));
    let min_p = array(&|choice| choice.min_p.to_bits());
    let (seeds, steps) = (wide(&|choice| choice.seed), wide(&|choice| choice.step));
    let best = upload(gpu, &vec![0xffu8; cuda::scratch_bytes(rows.len(), vocab)]);
    let tokens = upload(gpu, &vec![-1i32; rows.len()]);
    let params = cuda::Params {
        logits: logits.address(),
        temperature: temperature.address(),
        top_k: top_k.address(),
        top_p: top_p.address(),
        min_p: min_p.address(),
        seeds: seeds.address(),
        steps: steps.address(),
        best: best.address(),
        tokens: tokens.address(),
        stride: stride as u64,
        rows: rows.len() as u32,
        vocab: vocab as u32,
        chunks: 0,
        pad: 0,
    };
    cuda::sample(gpu, params).unwrap();
    let drawn = download(&tokens, rows.len());
    if choices.iter().all(|choice| choice.temperature == 0.0) {
        let alone = cuda::Params { temperature: 0, top_k: 0, top_p: 0, min_p: 0, ..params };
        cuda::sample(gpu, cuda::Params { seeds: 0, steps: 0, ..alone }).unwrap();
        assert_eq!(download::<u32>(&tokens, rows.len()), drawn, "no arrays");
    }
    drawn
}

fn on_cpu(rows: &[Vec<f32>], choices: &[Choice]) -> Vec<u32> {
    rows.iter().zip(choices).map(|(row, choice)| cpu::sample(row, choice)).collect()
}

/// Few that are likely and many that are not.
fn peaked(seed: u64, vocab: usize) -> Vec<f32> {
    random(seed, vocab).iter().map(|x| 12.0 * x * x * x).collect()
}

fn choices() -> Vec<Choice> {
    let mut choices = vec![GREEDY, DRAW];
    for (temperature, top_k, top_p, min_p) in [
        (0.7, 0, 1.0, 0.0),
        (1.0, 1, 1.0, 0.0),
        (1.0, 2, 1.0, 0.0),
        (0.6, 20, 0.95, 0.0),
        (1.0, 20, 0.8, 0.0),
        (1.3, 0, 0.9, 0.0),
        (1.0, 0, 0.99999, 0.0),
        (1.0, 0, 0.0, 0.0),
        (1.0, 0, 1.0, 0.05),
        (1.0, 3, 0.5, 0.3),
        (2.0, 1000, 0.7, 1e-4),
        (5.0, 4500, 1.0, 0.0),
        (1.0, 0, 1.0, 1.0),
        (1e-3, 7, 0.9, 0.0),
        (1e-6, 7, 0.9, 0.0),
    ] {
        choices.push(Choice { temperature, top_k, top_p, min_p, ..DRAW });
    }
    // Hot, so that one token too many would be drawn.
    for top_k in [2, 3, 4, 5, 7, 20, 30, 100] {
        choices.push(Choice { temperature: 50.0, top_k, ..DRAW });
    }
    for top_p in [2e-4, 1e-3, 4e-3] {
        choices.push(Choice { temperature: 50.0, top_p, ..DRAW });
    }
    for min_p in [0.6, 0.65, 0.7, 0.75, 0.8, 0.85] {
        choices.push(Choice { temperature: 50.0, min_p, ..DRAW });
    }
    for (seed, choice) in (0..).zip(&mut choices) {
        (choice.seed, choice.step) = (seed * 0x1234_5678_9abc, 1 << seed);
    }
    choices
}

#[test]
fn cuda_draws_what_the_cpu_draws() {
    let choices = choices();
    // More than fits into the list of `gdn_sample_pick`, and less than a chunk.
    for vocab in [9001, 41] {
        let rows: Vec<_> = (0..choices.len() as u64).map(|row| peaked(row, vocab)).collect();
        let expected = on_cpu(&rows, &choices);
        for gpu in gpus(DType::BF16) {
            assert_eq!(on_gpu(&gpu, &rows, &choices), expected);
        }
        let Some(gpu) = gpu(DType::BF16) else { return };
        for row in [1, 5, 7] {
            let one = on_gpu(&gpu, &rows[row..=row], &choices[row..=row]);
            assert_eq!(one, expected[row..=row], "alone");
        }
    }
}

#[test]
fn flat_logits_and_ties() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let choices = choices();
    for levels in [1, 3] {
        let row = |seed| {
            let values = random(seed, 4999);
            values.iter().map(|x| (x * levels as f32 / 2.0).round()).collect::<Vec<_>>()
        };
        let rows: Vec<_> = (0..choices.len() as u64).map(row).collect();
        assert_eq!(on_gpu(&gpu, &rows, &choices), on_cpu(&rows, &choices));
    }
}

#[test]
fn the_lowest_of_equals_wins_and_nan_never() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let mut rows = vec![vec![-1.0; 3000]; 8];
    rows[1][700..].fill(2.5);
    (rows[2][5], rows[2][2999]) = (nan, 0.0);
    rows[3].fill(nan);
    rows[4].fill(-inf);
    rows[4][9] = nan;
    (rows[5][17], rows[5][2100]) = (inf, inf);
    rows[6].fill(-inf);
    rows[6][2500] = -3e38;
    rows[7].fill(-0.0);
    rows[7][3] = 0.0;
    let expected = [0, 700, 2999, 0, 0, 17, 2500, 0];
    let filtered = Choice { top_k: 1, ..DRAW };
    for choice in [GREEDY, filtered] {
        let choices = vec![choice; rows.len()];
        assert_eq!(on_cpu(&rows, &choices), expected);
        assert_eq!(on_gpu(&gpu, &rows, &choices), expected);
    }
    for choice in [DRAW, Choice { top_p: 0.9, ..DRAW }, Choice { min_p: 0.1, ..DRAW }] {
        let choices = vec![choice; rows.len()];
        let got = on_gpu(&gpu, &rows, &choices);
        assert_eq!(got, on_cpu(&rows, &choices));
        assert!(got[2] != 5 && got[5] == 17 && got[6] == 2500);
    }
}

/// Pearson's statistic of draws against probabilities, and how often each was drawn.
fn chi_square(logits: &[f32], choice: Choice, expected: &[f64], draws: u32) -> f64 {
    let mut counts = vec![0.0; logits.len()];
    for step in 0..draws {
        counts[cpu::sample(logits, &Choice { step: step.into(), ..choice }) as usize] += 1.0;
    }
    let sum: f64 = expected.iter().sum();
    counts.iter().zip(expected).fold(0.0, |chi, (count, share)| {
        let mean = share / sum * f64::from(draws);
        assert!(mean > 0.0 || *count == 0.0, "filtered, and yet drawn");
        if mean > 0.0 { chi + (count - mean).powi(2) / mean } else { chi }
    })
}

#[test]
fn draws_have_the_shares_of_the_filtered_softmax() {
    let logits = [0.5, 3.0, -1.0, 2.0, 2.0, -6.0, 1.0, f32::NEG_INFINITY];
    let softmax = |temperature: f64, kept: &[usize]| -> Vec<f64> {
        let share = |(i, &logit): (usize, &f32)| {
            if kept.contains(&i) { (f64::from(logit) / temperature).exp() } else { 0.0 }
        };
        logits.iter().enumerate().map(share).collect()
    };
    let all = [0, 1, 2, 3, 4, 5, 6];
    let seeded = Choice { seed: 11, ..DRAW };
    // Beyond 22.5 once in 1000 for 6 degrees of freedom.
    for (choice, kept) in [
        (seeded, &all[..]),
        (Choice { temperature: 1.7, ..seeded }, &all),
        (Choice { top_k: 2, ..seeded }, &[1, 3]),
        (Choice { top_k: 4, ..seeded }, &[1, 3, 4, 6]),
        // 0.507, 0.187, 0.187, 0.069 are the first shares; among the first three 0.576 and 0.212.
        (Choice { top_p: 0.69, ..seeded }, &[1, 3]),
        (Choice { top_p: 0.75, ..seeded }, &[1, 3, 4]),
        (Choice { top_p: 0.7, top_k: 3, ..seeded }, &[1, 3]),
        (Choice { min_p: 0.1, ..seeded }, &[1, 3, 4, 6]),
        (Choice { min_p: 0.1, top_p: 0.9, temperature: 0.5, ..seeded }, &[1, 3, 4]),
    ] {
        let expected = softmax(choice.temperature.into(), kept);
        let chi = chi_square(&logits, choice, &expected, 40_000);
        assert!(chi < 22.5, "{choice:?}: {chi}");
    }
}

#[test]
fn seeds_and_steps_make_other_draws() {
    let logits = vec![0.0; 50_000];
    let draw = |seed, step| cpu::sample(&logits, &Choice { seed, step, ..DRAW });
    let mut draws: Vec<u32> = [(0, 0), (1, 0), (0, 1), (1 << 32, 0), (0, 1 << 32)]
        .map(|(seed, step)| draw(seed, step))
        .to_vec();
    assert_eq!(draw(1, 0), draws[1]);
    draws.sort_unstable();
    draws.dedup();
    assert_eq!(draws.len(), 5);
}
