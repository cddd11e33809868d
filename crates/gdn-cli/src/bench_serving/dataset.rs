//! The prompts of a load.

use std::{fs, path::Path};

use anyhow::Context;
use rand::{Rng, rngs::SmallRng, seq::SliceRandom};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    api::{Prompt, Request, Route},
    args::{DatasetArgs, DatasetName},
    vocabulary::Vocabulary,
};
use crate::output::Usage;

/// What tokens are drawn from.
pub(super) enum Source {
    Vocabulary(Box<Vocabulary>),
    /// Nothing but this many ids.
    Ids(usize),
}

impl Source {
    fn vocabulary(&self, args: &DatasetArgs) -> Result<&Vocabulary, Usage> {
        match self {
            Self::Vocabulary(vocabulary) => Ok(vocabulary),
            Self::Ids(_) => {
                let name = args.dataset_name.name();
                let what = format!("--dataset-name {name} needs --tokenizer FOLDER");
                Err(Usage(format!("{what}; random-ids does without")))
            }
        }
    }
}

/// `Err` for flags that don't go together, before anything is loaded or waited for.
pub(super) fn check(args: &DatasetArgs, route: Route) -> Result<(), Usage> {
    let name = args.dataset_name.name();
    let random = matches!(args.dataset_name, DatasetName::Random | DatasetName::RandomIds);
    if args.tokenize_prompt && !random {
        return Err(Usage(format!("--tokenize-prompt: not with --dataset-name {name}")));
    }
    if args.tokenize_prompt && route == Route::Chat {
        let message = "--tokenize-prompt: expected a backend that takes tokens, got chat";
        return Err(Usage(message.to_owned()));
    }
    if args.apply_chat_template && random {
        return Err(Usage(format!("--apply-chat-template: not with --dataset-name {name}")));
    }
    if args.apply_chat_template && route == Route::Chat {
        let message = "--apply-chat-template: not with a chat backend, whose server applies it";
        return Err(Usage(message.to_owned()));
    }
    if args.dataset_path.is_none() && args.dataset_name != DatasetName::RandomIds {
        let what = match args.dataset_name {
            DatasetName::Gsm8k => "expected a file of questions, as eval/gsm8k/test.jsonl",
            _ => "expected a file of conversations, as ShareGPT has them",
        };
        let hint = "or take --dataset-name random-ids, which needs none";
        return Err(Usage(format!("--dataset-path: {what}, got none; {hint}")));
    }
    Ok(())
}

/// As many prompts as are asked for, or as there are.
pub(super) fn sample(
    args: &DatasetArgs,
    route: Route,
    source: &Source,
    rng: &mut SmallRng,
) -> anyhow::Result<Vec<Request>> {
    let requests = match args.dataset_name {
        DatasetName::RandomIds => random_ids(args, route, source, rng)?,
        DatasetName::Random => random(args, source.vocabulary(args)?, rng)?,
        DatasetName::Sharegpt => {
            let mut turns = conversations(args)?;
            turns.shuffle(rng);
            answered(args, source.vocabulary(args)?, turns)?
        }
        DatasetName::Gsm8k => {
            let turns = questions(args)?;
            answered(args, source.vocabulary(args)?, turns)?
        }
    };
    if requests.is_empty() {
        let path = args.dataset_path.as_deref().unwrap_or(Path::new("")).display();
        return Err(Usage(format!("--dataset-path {path}: it holds no prompt to send")).into());
    }
    Ok(requests)
}

/// Lengths from `ratio` times the longest on, each as likely.
fn lengths(longest: usize, ratio: f64, count: usize, rng: &mut SmallRng) -> Vec<usize> {
    let shortest = ((longest as f64 * ratio) as usize).max(1);
    (0..count).map(|_| rng.random_range(shortest..=longest)).collect()
}

/// Lengths of prompts and of answers.
fn both_lengths(args: &DatasetArgs, rng: &mut SmallRng) -> (Vec<usize>, Vec<usize>) {
    let (ratio, count) = (args.random_range_ratio, args.num_prompts);
    let input = lengths(args.random_input_len, ratio, count, rng);
    (input, lengths(args.random_output_len, ratio, count, rng))
}

/// Tokens as they are, or as text that a server turns into as many, with its own around.
fn prompt(
    tokens: &[u32],
    vocabulary: Option<&Vocabulary>,
    as_tokens: bool,
) -> anyhow::Result<Prompt> {
    match vocabulary {
        Some(vocabulary) if !as_tokens => Ok(Prompt::Text(vocabulary.decode(tokens)?)),
        _ => Ok(Prompt::Tokens(tokens.to_vec())),
    }
}

fn random_ids(
    args: &DatasetArgs,
    route: Route,
    source: &Source,
    rng: &mut SmallRng,
) -> anyhow::Result<Vec<Request>> {
    let (vocabulary, size) = match source {
        Source::Vocabulary(vocabulary) => (Some(&**vocabulary), vocabulary.size()),
        Source::Ids(_) if route == Route::Chat => {
            let message = "--tokenizer: a chat needs text, and so a folder with a tokenizer";
            return Err(Usage(message.to_owned()).into());
        }
        Source::Ids(size) => (None, *size),
    };
    let around = match vocabulary {
        Some(vocabulary) if !args.tokenize_prompt => vocabulary.special_tokens(),
        _ => 0,
    };
    let (input, output) = both_lengths(args, rng);
    let requests = input.into_iter().zip(output).enumerate().map(|(i, (input, output_len))| {
        let prompt_len = input.saturating_sub(around);
        let first = rng.random_range(0..size) + i;
        let tokens: Vec<_> = (0..prompt_len).map(|j| ((first + j) % size) as u32).collect();
        let prompt = prompt(&tokens, vocabulary, args.tokenize_prompt)?;
        Ok(Request { prompt, prompt_len, output_len })
    });
    requests.collect()
}

fn random(
    args: &DatasetArgs,
    vocabulary: &Vocabulary,
    rng: &mut SmallRng,
) -> anyhow::Result<Vec<Request>> {
    let around = if args.tokenize_prompt { 0 } else { vocabulary.special_tokens() };
    let (input, output) = both_lengths(args, rng);
    let mut turns = conversations(args)?;
    turns.shuffle(rng);
    let mut lengths = input.into_iter().zip(output);
    let mut requests = Vec::new();
    for (text, _) in turns {
        let tokens = vocabulary.encode(&text)?;
        if tokens.is_empty() {
            continue;
        }
        let Some((input, output_len)) = lengths.next() else { break };
        let prompt_len = input.saturating_sub(around);
        let tokens: Vec<_> = tokens.into_iter().cycle().take(prompt_len).collect();
        let prompt = prompt(&tokens, Some(vocabulary), args.tokenize_prompt)?;
        requests.push(Request { prompt, prompt_len, output_len });
    }
    Ok(requests)
}

/// Prompts whose answers are as long as those that are known.
fn answered(
    args: &DatasetArgs,
    vocabulary: &Vocabulary,
    turns: Vec<(String, String)>,
) -> anyhow::Result<Vec<Request>> {
    let mut requests = Vec::new();
    for (prompt, answer) in turns {
        if requests.len() == args.num_prompts {
            break;
        }
        let prompt = vocabulary.frame(prompt)?;
        let prompt_len = vocabulary.encode(&prompt)?.len();
        let output_len = match args.output_len {
            Some(tokens) => tokens,
            None => vocabulary.encode(&answer)?.len(),
        };
        let fits = args.context_len.is_none_or(|most| prompt_len + output_len <= most);
        // What is shorter says nothing of time per token.
        if prompt_len >= 2 && output_len >= 2 && fits {
            requests.push(Request { prompt: Prompt::Text(prompt), prompt_len, output_len });
        }
    }
    Ok(requests)
}

#[derive(Deserialize)]
struct Conversation {
    #[serde(default, alias = "conversation")]
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    value: String,
}

#[derive(Deserialize)]
struct Question {
    question: String,
    answer: String,
}

/// The first two turns of conversations that have them.
fn conversations(args: &DatasetArgs) -> anyhow::Result<Vec<(String, String)>> {
    let (path, text) = read(args)?;
    let conversations: Vec<Conversation> = parse(path, &text)?;
    let turns = conversations.into_iter().filter_map(|conversation| {
        let mut turns = conversation.conversations.into_iter().map(|turn| turn.value);
        Some((turns.next()?, turns.next()?))
    });
    Ok(turns.collect())
}

/// Questions, framed as in the usual evaluation.
fn questions(args: &DatasetArgs) -> anyhow::Result<Vec<(String, String)>> {
    let (path, text) = read(args)?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let turns = lines.map(|line| {
        let Question { question, answer } = parse(path, line)?;
        let prompt = match args.apply_chat_template {
            true => question,
            false => format!("Question: {question}\nAnswer:"),
        };
        Ok((prompt, answer))
    });
    turns.collect()
}

fn read(args: &DatasetArgs) -> anyhow::Result<(&Path, String)> {
    let path = args.dataset_path.as_deref().context("--dataset-path: expected a file, got none")?;
    let text = fs::read_to_string(path)
        .map_err(|error| Usage(format!("--dataset-path {}: {error}", path.display())))?;
    Ok((path, text))
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Usage> {
    let path = path.display();
    serde_json::from_str(text).map_err(|error| Usage(format!("--dataset-path {path}: {error}")))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::Parser;
    use rand::SeedableRng;
    use tempfile::NamedTempFile;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        dataset: DatasetArgs,
    }

    const FIXTURE: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../gdn-model/tests/fixtures/qwen3_5_trained");

    fn args(flags: &str) -> DatasetArgs {
        Flags::parse_from(["x"].into_iter().chain(flags.split_whitespace())).dataset
    }

    fn vocabulary() -> Source {
        let vocabulary = Vocabulary::load(Path::new(FIXTURE), false).unwrap();
        Source::Vocabulary(Box::new(vocabulary))
    }

    fn drawn(args: &DatasetArgs, source: &Source) -> Vec<Request> {
        let rng = &mut SmallRng::seed_from_u64(args.seed);
        sample(args, Route::Completions, source, rng).unwrap()
    }

    fn file(text: &str) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn lengths_take_every_value_of_their_range_alike() {
        let rng = &mut SmallRng::seed_from_u64(1);
        for (longest, ratio, shortest) in [(8, 0.0, 1), (8, 0.5, 4), (9, 0.5, 4), (8, 1.0, 8)] {
            let count = 16_000;
            let drawn = lengths(longest, ratio, count, rng);
            let expected = count as f64 / (longest - shortest + 1) as f64;
            for length in 0..=longest + 1 {
                let found = drawn.iter().filter(|&&drawn| drawn == length).count() as f64;
                match (shortest..=longest).contains(&length) {
                    true => assert!((found / expected - 1.0).abs() < 0.12, "{length}: {found}"),
                    false => assert_eq!(found, 0.0, "{length} of {shortest}..={longest}"),
                }
            }
        }
        assert_eq!(lengths(1, 0.0, 3, rng), [1, 1, 1]);
    }

    #[test]
    fn ids_follow_each_other_within_the_vocabulary() {
        let args = args("--num-prompts 50 --random-input-len 40 --random-output-len 7");
        let requests = drawn(&args, &Source::Ids(30));
        assert_eq!(requests.len(), 50);
        for request in &requests {
            let Prompt::Tokens(tokens) = &request.prompt else { panic!("{request:?}") };
            assert_eq!(tokens.len(), request.prompt_len);
            assert!((1..=40).contains(&tokens.len()) && (1..=7).contains(&request.output_len));
            assert!(tokens.iter().all(|&token| token < 30));
            assert!(tokens.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 30));
        }
        assert_eq!(drawn(&args, &Source::Ids(30)), requests);
        let other = DatasetArgs { seed: 2, ..args };
        assert_ne!(drawn(&other, &Source::Ids(30)), requests);
    }

    #[test]
    fn a_tokenizer_makes_text_unless_tokens_are_asked_for() {
        let flags = "--num-prompts 3 --random-input-len 20 --random-range-ratio 1";
        let requests = drawn(&args(flags), &vocabulary());
        assert!(requests.iter().all(|request| matches!(request.prompt, Prompt::Text(_))));
        assert!(requests.iter().all(|request| request.prompt_len == 20));
        let requests = drawn(&args(&format!("{flags} --tokenize-prompt")), &vocabulary());
        assert!(requests.iter().all(|request| matches!(request.prompt, Prompt::Tokens(_))));
    }

    #[test]
    fn conversations_are_cut_or_repeated_to_drawn_lengths() {
        let file = file(
            r#"[{"conversations": [{"from": "human", "value": "one two"}, {"value": "b"}]},
                {"conversation": [{"value": "one two"}, {"value": "b c d e"}, {"value": "f"}]},
                {"conversations": [{"value": "alone"}]}, {"conversations": []}, {}]"#,
        );
        let path = file.path().display();
        let flags = format!("--dataset-path {path} --num-prompts 9 --random-range-ratio 1");
        let random = args(&format!("{flags} --dataset-name random --random-input-len 30"));
        let requests = drawn(&random, &vocabulary());
        assert_eq!(requests.len(), 2);
        for request in requests {
            let Prompt::Text(text) = &request.prompt else { panic!("{request:?}") };
            assert!(text.starts_with("one twoone two"), "{text}");
            assert_eq!((request.prompt_len, request.output_len), (30, 1024));
        }
        let sharegpt = args(&format!("{flags} --dataset-name sharegpt"));
        // The answer of one is too short to time.
        assert_eq!(drawn(&sharegpt, &vocabulary()).len(), 1);
        let all = args(&format!("{flags} --dataset-name sharegpt --sharegpt-output-len 5"));
        assert!(drawn(&all, &vocabulary()).iter().all(|request| request.output_len == 5));
        assert_eq!(drawn(&all, &vocabulary()).len(), 2);
    }

    #[test]
    fn questions_are_framed() {
        let file = file("{\"question\": \"What is 1 + 1?\", \"answer\": \"It is 2\"}\n\n");
        let path = file.path().display();
        let args = args(&format!("--dataset-name gsm8k --dataset-path {path}"));
        let requests = drawn(&args, &vocabulary());
        let expected = Prompt::Text("Question: What is 1 + 1?\nAnswer:".to_owned());
        assert_eq!(requests[0].prompt, expected);
        let Source::Vocabulary(vocabulary) = vocabulary() else { unreachable!() };
        assert_eq!(requests[0].output_len, vocabulary.count("It is 2").unwrap());
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        let said = |flags: &str, route| check(&args(flags), route).unwrap_err().to_string();
        let message = said("--dataset-name random", Route::Generate);
        assert!(message.contains("--dataset-path") && message.contains("random-ids"), "{message}");
        assert!(said("--dataset-name gsm8k", Route::Generate).contains("questions"));
        assert!(said("--tokenize-prompt", Route::Chat).contains("chat"));
        assert!(said("--apply-chat-template", Route::Chat).contains("random-ids"));
        let twice = said("--dataset-name gsm8k --apply-chat-template", Route::Chat);
        assert!(twice.contains("whose server applies it"), "{twice}");
        let rng = &mut SmallRng::seed_from_u64(1);
        let file = file("[]");
        let sharegpt =
            args(&format!("--dataset-name sharegpt --dataset-path {}", file.path().display()));
        let error = sample(&sharegpt, Route::Generate, &Source::Ids(9), rng).unwrap_err();
        assert!(error.to_string().contains("--tokenizer"), "{error}");
        let error = sample(&sharegpt, Route::Generate, &vocabulary(), rng).unwrap_err();
        assert!(error.to_string().contains("no prompt"), "{error}");
        let ids = args("");
        let error = sample(&ids, Route::Chat, &Source::Ids(9), rng).unwrap_err();
        assert!(error.to_string().contains("--tokenizer"), "{error}");
    }
}
