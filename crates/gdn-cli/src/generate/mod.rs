//! `gdn generate`: text from a model.

mod answer;
mod args;
mod report;
pub(crate) mod shipped;
pub(crate) mod source;

use std::{
    io::{self, Read, Write},
    process::{self, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Context;
use gdn_model::{Message, SamplingParams};
use serde::Serialize;
use serde_json::{Map, Value};

pub(crate) use self::args::GenerateArgs;
use self::{
    answer::{Answer, Finish, Request, answer},
    report::{Checked, Many, One, Origin, summarise},
    source::Loaded,
};
use crate::output::Usage;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// What a shell shows for a death by SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

pub(crate) fn run(args: &GenerateArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    if args.model.is_some() && args.prompt.is_none() {
        let message = "--prompt: expected a text, or - for stdin, got none";
        return Err(Usage(message.to_owned()).into());
    }
    // Before a model is loaded, which may take long.
    args.sampling.over(SamplingParams::default())?;
    args.backend.check()?;
    let prompt = args.prompt.as_deref().map(read_prompt).transpose()?;
    let loaded = source::load(args)?;
    // From now on: what came before may just be ended.
    let interrupt = || {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            process::exit(EXIT_INTERRUPTED.into());
        }
    };
    ctrlc::set_handler(interrupt).context("Ctrl-C can't be caught")?;
    let params = args.sampling.over(loaded.generation.sampling())?;
    if let (Some(flag), true) = (args.sampling.of_draws(), params.temperature == 0.0) {
        let _ = writeln!(
            io::stderr(),
            "note: {flag} changes nothing at temperature 0; add --temperature"
        );
    }
    let mut session = Session { args, loaded, params };
    let finish = match prompt {
        Some(prompt) => session.one(&prompt, out)?,
        None => session.questions(out)?,
    };
    Ok(match finish {
        Finish::Interrupted => ExitCode::from(EXIT_INTERRUPTED),
        Finish::Stop | Finish::Length => ExitCode::SUCCESS,
    })
}

fn read_prompt(prompt: &str) -> anyhow::Result<String> {
    if prompt != "-" {
        return Ok(prompt.to_owned());
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("--prompt -: stdin can't be read")?;
    Ok(text)
}

struct Session<'a> {
    args: &'a GenerateArgs,
    loaded: Loaded,
    params: SamplingParams,
}

impl Session<'_> {
    /// Answers the prompt of the user.
    fn one(&mut self, prompt: &str, out: &mut impl Write) -> anyhow::Result<Finish> {
        let text = self.frame(prompt)?;
        let answer = self.ask(&text, self.args.model.is_none() && !self.args.raw, out)?;
        if self.args.json {
            let origin = Origin::new(&self.loaded, &self.params);
            print_json(&One { origin, answer: &answer }, out)?;
        } else if !answer.text.ends_with('\n') {
            writeln!(out)?;
        }
        summarise(&self.loaded, [&answer].into_iter());
        Ok(answer.finish_reason)
    }

    /// Asks the shipped model some of its own questions.
    fn questions(&mut self, out: &mut impl Write) -> anyhow::Result<Finish> {
        let mut answers = Vec::new();
        for question in shipped::questions()? {
            if !self.args.json {
                write!(out, "Question: {}\nAnswer:", question.question)?;
            }
            let answer = self.ask(&shipped::prompt(&question.question), true, out)?;
            let right = question.is_right(&answer.text);
            if !self.args.json {
                match right {
                    true => writeln!(out, "   (right)\n")?,
                    false => writeln!(out, "   (wrong: it is {})\n", question.target)?,
                }
            }
            answers.push(Checked {
                right,
                same_as_transformers: question.is_theirs(&answer.text),
                question: question.question,
                target: question.target,
                answer,
            });
            if INTERRUPTED.load(Ordering::Relaxed) {
                break;
            }
        }
        let right = answers.iter().filter(|answer| answer.right).count();
        if self.args.json {
            let origin = Origin::new(&self.loaded, &self.params);
            print_json(&Many { origin, right, answers: &answers }, out)?;
        } else {
            let same = answers.iter().filter(|answer| answer.same_as_transformers).count();
            let all = answers.len();
            writeln!(
                out,
                "{right} of {all} answers are right; Hugging Face transformers gives the same text \
                 for {same} of {all}."
            )?;
        }
        summarise(&self.loaded, answers.iter().map(|checked| &checked.answer));
        Ok(answers.last().map_or(Finish::Stop, |last| last.answer.finish_reason))
    }

    /// The text that asks the model for an answer to `prompt`.
    fn frame(&self, prompt: &str) -> anyhow::Result<String> {
        if self.args.raw {
            return Ok(prompt.to_owned());
        }
        if self.args.model.is_none() {
            return Ok(shipped::prompt(prompt));
        }
        let Some(template) = &self.loaded.template else {
            let name = &self.loaded.name;
            let hint = "add --raw to give it the prompt as it is";
            return Err(Usage(format!("--model {name}: it has no chat template; {hint}")).into());
        };
        let mut variables = Map::new();
        if self.args.no_thinking {
            variables.insert("enable_thinking".to_owned(), Value::Bool(false));
        }
        let mut messages = Vec::new();
        messages.extend(self.args.system.as_deref().map(Message::system));
        messages.push(Message::user(prompt));
        Ok(template.render(&messages, true, None, &variables)?)
    }

    /// Runs a prompt, and prints text as it comes unless JSON is asked for.
    fn ask(
        &mut self,
        text: &str,
        is_question: bool,
        out: &mut impl Write,
    ) -> anyhow::Result<Answer> {
        let prompt = self.loaded.tokenizer.encode(text)?;
        if prompt.is_empty() {
            let message = "--prompt: expected at least one token, got an empty text";
            return Err(Usage(message.to_owned()).into());
        }
        let mut stop = self.args.stop.clone();
        stop.extend(is_question.then(|| shipped::STOP.to_owned()));
        let Loaded { model, tokenizer, generation, .. } = &mut self.loaded;
        let request = Request {
            prompt,
            params: self.params.clone(),
            max_new_tokens: self.args.max_new_tokens,
            stop: &stop,
            eos: &generation.eos,
        };
        let mut show = |piece: &str| match self.args.json {
            true => Ok(()),
            false => out.write_all(piece.as_bytes()).and_then(|()| out.flush()),
        };
        answer(model, tokenizer, request, &INTERRUPTED, &mut show)
    }
}

fn print_json(value: &impl Serialize, out: &mut impl Write) -> anyhow::Result<()> {
    Ok(writeln!(out, "{}", serde_json::to_string_pretty(value)?)?)
}
