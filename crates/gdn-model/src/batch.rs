//! What one forward pass computes: tokens of some sequences.

use crate::{
    memory::{PAGE, Sequence},
    ops::sample::Choice,
};

/// The rows of a forward pass, one a token. Sequences with one token come first, as
/// their Gated DeltaNet layers take a decode step; then those with several.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// `[T]`.
    pub(crate) tokens: Vec<i32>,
    /// `[T]`, counted from 0 in each sequence.
    pub(crate) positions: Vec<i32>,
    /// `[T]`, the index of the row's sequence.
    pub(crate) sequences: Vec<i32>,
    /// `[B]`, the tokens of each sequence.
    pub(crate) lengths: Vec<usize>,
    /// `[B]`, where each sequence's states lie.
    pub(crate) slots: Vec<i32>,
    /// `[B, stride]`, the pages of each sequence's keys and values, then -1.
    pub(crate) table: Vec<i32>,
    /// A power of 2, so that few occur.
    pub(crate) stride: usize,
    /// `[R]`, the rows whose logits are asked for.
    pub(crate) logits: Vec<i32>,
    /// `[R]`, how the token behind each of them is chosen.
    pub(crate) choices: Vec<Choice>,
    /// The sequences with one token.
    pub(crate) decodes: usize,
}

/// The tokens whose logits are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Logits {
    /// None: more of the prompt follows.
    Nothing,
    /// What comes after the last token.
    #[default]
    Last,
    /// What comes after each.
    All,
}

impl Batch {
    /// T.
    pub(crate) fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// A batch of these turns; the sequences have pages for their tokens.
    pub(crate) fn fill(&mut self, turns: &[(&Sequence, &[u32], Logits)], choices: &[Choice]) {
        let Self { tokens, positions, sequences, lengths, slots, table, .. } = self;
        let Self { stride, logits, decodes, .. } = self;
        for list in [&mut *tokens, positions, sequences, slots, table, logits] {
            list.clear();
        }
        lengths.clear();
        let pages = |&(sequence, new, _): &(&Sequence, &[u32], Logits)| {
            (sequence.len() + new.len()).div_ceil(PAGE)
        };
        *stride = turns.iter().map(pages).max().unwrap_or(1).next_power_of_two().max(4);
        *decodes = turns.iter().filter(|turn| turn.1.len() == 1).count();
        let mut first = vec![0; turns.len()];
        let order =
            |single: bool| (0..turns.len()).filter(move |&i| (turns[i].1.len() == 1) == single);
        for i in order(true).chain(order(false)) {
            let (sequence, new, _) = turns[i];
            let index = lengths.len();
            first[i] = tokens.len();
            tokens.extend(new.iter().map(|&token| token as i32));
            positions.extend((0..new.len()).map(|n| (sequence.len() + n) as i32));
            sequences.extend(new.iter().map(|_| index as i32));
            lengths.push(new.len());
            slots.push(sequence.slot());
            table.extend_from_slice(&sequence.pages()[..pages(&turns[i])]);
            table.resize((index + 1) * *stride, -1);
        }
        // In the order in which they were asked for.
        for (i, &(_, new, wanted)) in turns.iter().enumerate() {
            let (start, end) = (first[i], first[i] + new.len());
            let start = match wanted {
                Logits::Nothing => end,
                Logits::Last => end - 1,
                Logits::All => start,
            };
            logits.extend((start..end).map(|row| row as i32));
        }
        self.choices.clear();
        self.choices.extend_from_slice(choices);
        self.choices.resize(self.logits.len(), Choice::default());
    }
}
