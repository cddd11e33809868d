//! When the pieces of an answer came.

use super::api::{Piece, Route};

/// An answer, and its times in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// When it was asked for, since the load started.
    pub(super) start: f64,
    /// From then to its last event.
    pub(super) latency: f64,
    /// From then to its first text; 0 if there was none.
    pub(super) ttft: f64,
    /// From each piece of text to the next one.
    pub(super) itls: Vec<f64>,
    /// The texts that ended the spans of `itls`, where each is one piece.
    pub(super) pieces: Vec<String>,
    pub(super) text: String,
    pub(super) output_len: usize,
}

/// Builds an [`Answer`] from its events.
#[derive(Debug)]
pub(super) struct Timeline {
    route: Route,
    answer: Answer,
    /// When text came last.
    last: Option<f64>,
}

impl Timeline {
    /// Of a request sent at `start` for `output_len` tokens.
    pub(super) fn new(route: Route, start: f64, output_len: usize) -> Self {
        let answer = Answer { start, output_len, ..Answer::default() };
        Self { route, answer, last: None }
    }

    /// Any event, `at` seconds after the request was sent.
    pub(super) fn event(&mut self, at: f64) {
        self.answer.latency = at;
    }

    /// What an event said.
    pub(super) fn piece(&mut self, at: f64, piece: Piece) {
        self.event(at);
        let Piece { text, tokens } = piece;
        let before = self.answer.output_len;
        self.answer.output_len = tokens.unwrap_or(before);
        if text.is_empty() {
            return;
        }
        match (self.last, self.route) {
            (None, _) => self.answer.ttft = at,
            // A piece may hold several tokens, each of which is taken to have come as fast.
            (Some(last), Route::Generate) => match self.answer.output_len.saturating_sub(before) {
                // Text without a token: the rest of a character.
                0 => {
                    self.answer.text = text;
                    return;
                }
                new => self.answer.itls.extend(vec![(at - last) / new as f64; new]),
            },
            (Some(last), _) => {
                self.answer.itls.push(at - last);
                self.answer.pieces.push(text.clone());
            }
        }
        self.last = Some(at);
        match self.route {
            Route::Generate => self.answer.text = text,
            _ => self.answer.text += &text,
        }
    }

    pub(super) fn finish(self) -> Answer {
        self.answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, tokens: Option<usize>) -> Piece {
        Piece { text: text.to_owned(), tokens }
    }

    #[test]
    fn pieces_of_text_make_spans() {
        for route in [Route::Completions, Route::Chat] {
            let mut timeline = Timeline::new(route, 3.0, 64);
            timeline.piece(0.25, piece("", None));
            timeline.piece(0.5, piece("a", None));
            timeline.piece(1.0, piece("bc", None));
            timeline.piece(2.0, piece("d", None));
            timeline.piece(2.5, piece("", Some(4)));
            timeline.event(3.0);
            let expected = Answer {
                start: 3.0,
                latency: 3.0,
                ttft: 0.5,
                itls: vec![0.5, 1.0],
                pieces: vec!["bc".to_owned(), "d".to_owned()],
                text: "abcd".to_owned(),
                output_len: 4,
            };
            assert_eq!(timeline.finish(), expected);
        }
    }

    #[test]
    fn cumulative_text_shares_a_span_among_its_tokens() {
        let mut timeline = Timeline::new(Route::Generate, 0.0, 64);
        timeline.piece(0.5, piece("a", Some(2)));
        timeline.piece(1.5, piece("abc", Some(4)));
        timeline.piece(1.75, piece("abcd", Some(4)));
        timeline.piece(2.0, piece("abcde", Some(5)));
        let answer = timeline.finish();
        assert_eq!(answer.ttft, 0.5);
        // The text without a token does not restart the clock.
        assert_eq!(answer.itls, [0.5, 0.5, 0.5]);
        assert_eq!((answer.text.as_str(), answer.output_len), ("abcde", 5));
        assert_eq!(answer.latency, 2.0);
    }

    #[test]
    fn without_usage_the_answer_has_the_tokens_that_were_asked_for() {
        let mut timeline = Timeline::new(Route::Completions, 0.0, 64);
        timeline.piece(0.5, piece("a", None));
        assert_eq!(timeline.finish().output_len, 64);
    }
}
