//! Thoughts, which stand between `<think>` and `</think>`.

use super::beginning;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";
/// A call in the middle of thoughts ends them: models forget to close.
const CALL: &str = "<tool_call>\n<function=";

/// A piece of an answer.
#[derive(Debug, PartialEq)]
pub(super) enum Part {
    Reasoning(String),
    Content(String),
}

/// Tells thoughts from content.
#[derive(Debug)]
pub(super) struct Reasoning {
    state: State,
    held: String,
    /// What ends thoughts.
    ends: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Nothing came but white space: thoughts may be opened.
    Start,
    /// Of thoughts, nothing was given out yet.
    Opened,
    Thinking,
    /// Of content, nothing was given out yet.
    Closed,
    Answering,
}

impl Reasoning {
    /// Begins within thoughts, or before them.
    pub(super) fn new(thinking: bool, tools: bool) -> Self {
        let state = if thinking { State::Opened } else { State::Start };
        let ends: &[_] = if tools { &[CLOSE, CALL] } else { &[CLOSE] };
        Self { state, held: String::new(), ends }
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    pub(super) fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Opened | State::Thinking => vec![Part::Reasoning(held.trim_end().to_owned())],
            State::Start | State::Closed | State::Answering => vec![Part::Content(held)],
        }
    }

    /// Whether there is more to do with what is held.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Start => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(OPEN) {
                    self.held = rest.to_owned();
                    self.state = State::Opened;
                    return true;
                }
                let undecided = OPEN.starts_with(text);
                if !undecided {
                    self.state = State::Answering;
                }
                !undecided
            }
            State::Opened => {
                self.held = self.held.trim_start().to_owned();
                let begun = !self.held.is_empty();
                if begun {
                    self.state = State::Thinking;
                }
                begun
            }
            State::Thinking => self.think(parts),
            State::Closed => {
                self.held = self.held.trim_start_matches('\n').to_owned();
                let begun = !self.held.is_empty();
                if begun {
                    self.state = State::Answering;
                }
                begun
            }
            State::Answering => {
                parts.push(Part::Content(std::mem::take(&mut self.held)));
                false
            }
        }
    }

    fn think(&mut self, parts: &mut Vec<Part>) -> bool {
        let found = |end: &&str| Some((self.held.find(end)?, end.len(), *end == CLOSE));
        if let Some((at, len, closed)) = self.ends.iter().filter_map(found).min() {
            parts.push(Part::Reasoning(self.held[..at].trim_end().to_owned()));
            self.held.drain(..if closed { at + len } else { at });
            self.state = State::Closed;
            return true;
        }
        let certain = self.held.len() - beginning(&self.held, self.ends);
        // White space before the end is not told.
        let certain = self.held[..certain].trim_end().len();
        parts.push(Part::Reasoning(self.held.drain(..certain).collect()));
        false
    }
}
