//! The tiny model that comes with the command, and its questions.

use std::{fs, io};

use serde::Deserialize;
use tempfile::TempDir;

pub(crate) const NAME: &str = "the shipped model";

macro_rules! file {
    ($include:ident, $name:literal) => {
        $include!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../gdn-model/tests/fixtures/qwen3_5_trained/",
            $name
        ))
    };
}

const FILES: [(&str, &[u8]); 3] = [
    ("config.json", file!(include_bytes, "config.json")),
    ("model.safetensors", file!(include_bytes, "model.safetensors")),
    ("tokenizer.json", file!(include_bytes, "tokenizer.json")),
];

/// What stands before a question, as in its training.
const PREFIX: &str = file!(include_str, "eval_prefix.txt");
const QUESTIONS: &str = file!(include_str, "eval.jsonl");
/// Every how many-th question is asked.
const STRIDE: usize = 12;

/// What ends an answer: the next question would follow.
pub(crate) const STOP: &str = "\n\n";

/// A question, with what is known of its answer.
#[derive(Debug, Deserialize)]
pub(crate) struct Question {
    pub(crate) question: String,
    /// The number that is right.
    pub(crate) target: i64,
    /// What Hugging Face transformers generates from these weights, cut after some
    /// tokens.
    hf_f32_output: String,
}

/// Writes the model to a folder.
pub(crate) fn unpack() -> io::Result<TempDir> {
    let folder = TempDir::with_prefix("gdn-")?;
    for (name, bytes) in FILES {
        fs::write(folder.path().join(name), bytes)?;
    }
    Ok(folder)
}

/// The prompt that asks for an answer to a question.
pub(crate) fn prompt(question: &str) -> String {
    format!("{PREFIX}Question: {}\nAnswer:", question.trim())
}

/// What asks for an answer in a chat, in the words of its training.
pub(crate) fn chat_template() -> String {
    let turns = "{%- for message in messages %}\
                 {%- if message.role == 'user' %}\
                 {{- 'Question: ' + message.content | trim + '\\n' }}\
                 {%- elif message.role == 'assistant' %}\
                 {{- 'Answer: ' + message.content | trim + '\\n\\n' }}\
                 {%- endif %}\
                 {%- endfor %}\
                 {%- if add_generation_prompt %}{{- 'Answer:' }}{%- endif %}";
    // As a string of the template: tags trim what stands beside them.
    format!("{{{{- {} }}}}{turns}", serde_json::Value::from(PREFIX))
}

/// Some of the questions of its evaluation.
pub(crate) fn questions() -> anyhow::Result<Vec<Question>> {
    let lines = QUESTIONS.lines().step_by(STRIDE);
    Ok(lines.map(serde_json::from_str).collect::<Result<_, _>>()?)
}

impl Question {
    /// Whether an answer ends with the right number.
    pub(crate) fn is_right(&self, answer: &str) -> bool {
        let last = answer.lines().find_map(|line| line.strip_prefix("#### "));
        last == Some(self.target.to_string().as_str())
    }

    /// Whether an answer is that of Hugging Face transformers.
    pub(crate) fn is_theirs(&self, answer: &str) -> bool {
        self.hf_f32_output.split(STOP).next() == Some(answer)
    }
}
