//! From text to thoughts, content and calls of tools.

mod reasoning;
mod tools;

use std::sync::Arc;

pub(crate) use self::tools::Schemas;
use self::{
    reasoning::{Part, Reasoning},
    tools::Tools,
};

/// Something that a client is told of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Delta {
    /// What was thought.
    Reasoning(String),
    /// What is said.
    Content(String),
    /// A function is called; its arguments follow.
    Call { index: usize, name: String },
    /// More of the arguments, JSON in pieces.
    Arguments { index: usize, json: String },
}

/// What is to be looked for in an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Syntax {
    /// Whether thoughts are told apart.
    pub(crate) reasoning: bool,
    /// Whether the answer begins with thoughts: the prompt ends with `<think>`.
    pub(crate) thinking: bool,
    /// The functions that may be called.
    pub(crate) tools: Option<Arc<Schemas>>,
}

/// Takes an answer apart, however its text is cut into pieces.
#[derive(Debug)]
pub(crate) struct Parser {
    reasoning: Option<Reasoning>,
    tools: Option<Tools>,
}

impl Parser {
    pub(crate) fn new(syntax: &Syntax) -> Self {
        let tools = syntax.tools.clone().map(Tools::new);
        let reasoning = syntax.reasoning.then(|| Reasoning::new(syntax.thinking, tools.is_some()));
        Self { reasoning, tools }
    }

    /// Adds text; returns what is certain now.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Delta> {
        let parts = match &mut self.reasoning {
            Some(reasoning) => reasoning.push(text),
            None => vec![Part::Content(text.to_owned())],
        };
        self.tell(parts)
    }

    /// Ends the text; returns what was held back.
    pub(crate) fn finish(&mut self) -> Vec<Delta> {
        let parts = self.reasoning.as_mut().map(Reasoning::finish).unwrap_or_default();
        let mut deltas = self.tell(parts);
        if let Some(tools) = &mut self.tools {
            tools.finish(&mut deltas);
        }
        deltas
    }

    fn tell(&mut self, parts: Vec<Part>) -> Vec<Delta> {
        let mut deltas = Vec::new();
        for part in parts {
            match (part, &mut self.tools) {
                (Part::Reasoning(text), _) => deltas.push(Delta::Reasoning(text)),
                (Part::Content(text), None) => deltas.push(Delta::Content(text)),
                (Part::Content(text), Some(tools)) => tools.push(&text, &mut deltas),
            }
        }
        deltas.retain(|delta| match delta {
            Delta::Reasoning(text) | Delta::Content(text) => !text.is_empty(),
            Delta::Call { .. } | Delta::Arguments { .. } => true,
        });
        deltas
    }
}

/// The bytes at the end of `text` that may be the beginning of one of `markers`.
fn beginning(text: &str, markers: &[&str]) -> usize {
    let longest = markers.iter().map(|marker| marker.len()).max().unwrap_or(0);
    let from = text.len().saturating_sub(longest.saturating_sub(1));
    let starts = (from..text.len()).filter(|&start| text.is_char_boundary(start));
    let may_be = |start: &usize| markers.iter().any(|marker| marker.starts_with(&text[*start..]));
    starts.into_iter().find(may_be).map_or(0, |start| text.len() - start)
}

#[cfg(test)]
mod tests;
