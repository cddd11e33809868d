//! Tokens are drawn as often as the definition says.

use gdn_model::{Error, Sampler, SamplingParams};

const DRAWS: usize = 20_000;

fn params(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, seed: 7, ..SamplingParams::default() }
}

/// How often each token comes behind prompts that count up.
fn counts(params: &SamplingParams, logits: &[f32]) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    let mut sampler = Sampler::new(params.clone(), 0).unwrap();
    let history = vec![0; DRAWS];
    for step in 0..DRAWS {
        let token = sampler.sample(&mut logits.to_vec(), &history[..step]).unwrap();
        counts[token as usize] += 1;
    }
    counts
}

/// Probabilities in f64, written straight from the definition; 0 for what is cut.
fn expected(params: &SamplingParams, logits: &[f32]) -> Vec<f64> {
    let scaled = logits.iter().map(|&l| f64::from(l) / f64::from(params.temperature));
    let mut p: Vec<f64> = scaled.map(f64::exp).collect();
    let normalise = |p: &mut Vec<f64>| {
        let sum: f64 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= sum);
    };
    normalise(&mut p);
    let max = p.iter().copied().fold(0.0, f64::max);
    p.iter_mut().for_each(|p| *p = if *p >= max * f64::from(params.min_p) { *p } else { 0.0 });
    normalise(&mut p);
    if params.top_k > 0 {
        let mut order = p.clone();
        order.sort_by(|a, b| b.total_cmp(a));
        let least = order[params.top_k.min(order.len()) - 1];
        p.iter_mut().for_each(|p| *p = if *p >= least { *p } else { 0.0 });
        normalise(&mut p);
    }
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    let mut before = 0.0;
    for i in order {
        let keep = before < f64::from(params.top_p) || params.top_p == 1.0;
        before += p[i];
        p[i] = if keep { p[i] } else { 0.0 };
    }
    normalise(&mut p);
    p
}

/// Chi-square, with what is never to come at 0.
#[track_caller]
fn check(params: &SamplingParams, logits: &[f32]) {
    let (counts, expected) = (counts(params, logits), expected(params, logits));
    let mut chi_square = 0.0;
    let mut freedom = -1.0;
    for (&count, &p) in counts.iter().zip(&expected) {
        if p == 0.0 {
            assert_eq!(count, 0, "{counts:?} for {expected:?}");
            continue;
        }
        let mean = p * DRAWS as f64;
        chi_square += (count as f64 - mean).powi(2) / mean;
        freedom += 1.0;
    }
    // Five standard deviations above the mean of chi-square.
    let bound = freedom + 5.0 * (2.0 * f64::max(freedom, 1.0)).sqrt();
    assert!(chi_square < bound, "{chi_square} of {bound}: {counts:?} for {expected:?}");
}

const LOGITS: [f32; 8] = [1.0, 0.2, -0.5, 2.0, 1.9, -1.0, 0.7, 1.4];

#[test]
fn draws_follow_the_probabilities() {
    let with = |change: &dyn Fn(&mut SamplingParams)| {
        let mut params = params(1.0);
        change(&mut params);
        check(&params, &LOGITS);
    };
    with(&|_| ());
    for temperature in [0.3, 0.8, 2.5] {
        with(&|params| params.temperature = temperature);
    }
    for seed in [0, 1, 2, u64::MAX] {
        with(&|params| params.seed = seed);
    }
    for top_k in [1, 2, 5, 8, 100] {
        with(&|params| params.top_k = top_k);
    }
    for top_p in [0.01, 0.3, 0.5, 0.9, 0.999] {
        with(&|params| params.top_p = top_p);
    }
    for min_p in [0.05, 0.5, 1.0] {
        with(&|params| params.min_p = min_p);
    }
    // Top-p is of what top-k leaves; the order shows.
    with(&|params| (params.top_k, params.top_p, params.min_p) = (5, 0.8, 0.6));
    with(&|params| (params.top_k, params.top_p, params.temperature) = (3, 0.7, 1.7));
}

#[test]
fn the_token_that_crosses_top_p_stays() {
    let logits = [0.5f32, 0.3, 0.2].map(f32::ln);
    let seen = |top_p: f32| {
        let counts = counts(&SamplingParams { top_p, ..params(1.0) }, &logits);
        counts.iter().map(|&count| count > 0).collect::<Vec<_>>()
    };
    assert_eq!(seen(0.4), [true, false, false]);
    assert_eq!(seen(0.51), [true, true, false]);
    assert_eq!(seen(0.79), [true, true, false]);
    assert_eq!(seen(0.81), [true, true, true]);
}

/// A vocabulary of real size, most of which can't come.
#[test]
fn a_long_tail_is_cut() {
    let mut logits = vec![-8.0; 100_000];
    logits[99_000] = 6.0;
    logits[3] = 5.0;
    let mut sampler = Sampler::new(SamplingParams { top_p: 0.9, ..params(1.0) }, 0).unwrap();
    let history = vec![0; 300];
    let mut seen = [0, 0];
    for step in 0..300 {
        match sampler.sample(&mut logits.clone(), &history[..step]).unwrap() {
            99_000 => seen[0] += 1,
            3 => seen[1] += 1,
            other => panic!("{other}"),
        }
    }
    // e¹ times as often.
    assert!((150..280).contains(&seen[0]), "{seen:?}");
}

#[test]
fn the_first_of_equals_stays_at_the_border_of_top_k() {
    let counts = counts(&SamplingParams { top_k: 2, ..params(1.0) }, &[1.0, 2.0, 1.0, 0.0]);
    assert!(counts[..2].iter().all(|&count| count > 0) && counts[2..] == [0, 0], "{counts:?}");
}

fn greedy(params: SamplingParams, prompt_len: usize, logits: &[f32], history: &[u32]) -> Vec<f32> {
    let mut logits = logits.to_vec();
    let token = Sampler::new(params, prompt_len).unwrap().sample(&mut logits, history).unwrap();
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    assert_eq!(logits.iter().position(|&logit| logit == max), Some(token as usize));
    logits
}

#[test]
fn temperature_0_is_greedy() {
    let mut sampler = Sampler::new(SamplingParams::default(), 0).unwrap();
    assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0, -1.0], &[]).unwrap(), 1);
    assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, -5.0], &[]).unwrap(), 1);
    // So small that a quotient would overflow.
    let mut sampler = Sampler::new(params(1e-38), 0).unwrap();
    assert_eq!(sampler.sample(&mut [100.0, 300.0, -300.0], &[]).unwrap(), 1);
}

#[test]
fn penalties_are_as_defined() {
    let logits = [2.0, -2.0, 1.0, 0.5];
    let of = |change: &dyn Fn(&mut SamplingParams)| {
        let mut params = params(0.0);
        change(&mut params);
        // Prompt 0, 0, 1; answer 2, 2, 1.
        greedy(params, 3, &logits, &[0, 0, 1, 2, 2, 1])
    };
    assert_eq!(of(&|p| p.repetition_penalty = 2.0), [1.0, -4.0, 0.5, 0.5]);
    assert_eq!(of(&|p| p.presence_penalty = 0.5), [2.0, -2.5, 0.5, 0.5]);
    assert_eq!(of(&|p| p.frequency_penalty = 0.25), [2.0, -2.25, 0.5, 0.5]);
    assert_eq!(of(&|p| p.logit_bias = vec![(3, 4.0), (0, -1.0)]), [1.0, -2.0, 1.0, 4.5]);
    let all = |p: &mut SamplingParams| {
        p.logit_bias = vec![(2, 1.0)];
        (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) = (2.0, 0.5, 0.25);
    };
    assert_eq!(of(&all), [1.0, -4.75, 0.0, 0.5]);
}

#[test]
fn a_draw_depends_on_seed_and_step_alone() {
    let logits = [0.0; 64];
    let sequence = |seed: u64, prompt: &[u32]| {
        let mut history = prompt.to_vec();
        let params = SamplingParams { seed, ..params(1.0) };
        let mut sampler = Sampler::new(params, prompt.len()).unwrap();
        for _ in 0..40 {
            let token = sampler.sample(&mut logits.to_vec(), &history).unwrap();
            history.push(token);
        }
        history.split_off(prompt.len())
    };
    let first = sequence(1, &[]);
    assert_eq!(first, sequence(1, &[5, 6, 7]));
    assert_ne!(first, sequence(2, &[]));
    assert_ne!(first[1..], sequence(1, &[])[..39]);
    // A sampler that others used before.
    let mut sampler = Sampler::new(SamplingParams { seed: 1, ..params(1.0) }, 0).unwrap();
    sampler.sample(&mut [0.0; 9], &[1, 2]).unwrap();
    assert_eq!(sampler.sample(&mut logits.to_vec(), &first[..20]).unwrap(), first[20]);
}

#[test]
fn logits_that_are_no_numbers() {
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(params(temperature), 0).unwrap();
        for (logits, word) in [
            (vec![0.0, f32::NAN, 1.0], "logits[1]: expected a number below infinity, got NaN"),
            (vec![0.0, 0.0, f32::INFINITY], "logits[2]"),
            (vec![f32::NEG_INFINITY; 3], "at least one token"),
            (vec![], "at least one token"),
        ] {
            let error = sampler.sample(&mut logits.clone(), &[]).unwrap_err();
            assert!(matches!(error, Error::Logits { .. }));
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}

#[test]
fn bad_parameters_are_named() {
    type Change = fn(&mut SamplingParams);
    let bad: [(&str, Change); 11] = [
        ("temperature: expected a number, at least 0, got -0.1", |p| p.temperature = -0.1),
        ("temperature", |p| p.temperature = f32::NAN),
        ("temperature", |p| p.temperature = f32::INFINITY),
        ("top_p: expected a number, above 0 and at most 1, got 0", |p| p.top_p = 0.0),
        ("top_p", |p| p.top_p = 1.5),
        ("min_p: expected a number, 0 to 1, got 2", |p| p.min_p = 2.0),
        ("min_p", |p| p.min_p = f32::NAN),
        ("repetition_penalty", |p| p.repetition_penalty = 0.0),
        ("presence_penalty: expected a number, -2 to 2, got 3", |p| p.presence_penalty = 3.0),
        ("frequency_penalty", |p| p.frequency_penalty = -2.5),
        ("logit_bias", |p| p.logit_bias = vec![(0, f32::NAN)]),
    ];
    for (expected, change) in bad {
        let mut params = params(1.0);
        change(&mut params);
        let error = Sampler::new(params, 0).unwrap_err();
        assert!(matches!(error, Error::Sampling { .. }));
        assert!(error.to_string().contains(expected), "{error}");
    }
    let biased = SamplingParams { logit_bias: vec![(3, 1.0)], ..params(1.0) };
    let error = Sampler::new(biased, 0).unwrap().sample(&mut [0.0; 3], &[]).unwrap_err();
    assert!(error.to_string().contains("logit_bias: expected tokens below 3, got 3"), "{error}");
    let error = Sampler::new(params(1.0), 2).unwrap().sample(&mut [0.0; 3], &[1]).unwrap_err();
    assert!(error.to_string().contains("history"), "{error}");
    let penalty = SamplingParams { presence_penalty: 1.0, ..params(1.0) };
    let error = Sampler::new(penalty, 0).unwrap().sample(&mut [0.0; 3], &[1, 3]).unwrap_err();
    assert!(matches!(error, Error::Token { index: 1, vocab: 3, got: 3 }));
}
