//! Texts that end an answer.

/// Finds the first of some texts in a text that comes in pieces.
///
/// What may be the beginning of one is held back. The result is the same however
/// the text is cut: of several matches the one that is complete first counts, and
/// of those that end at the same place the longest.
#[derive(Debug)]
pub struct StopTexts {
    stops: Vec<String>,
    held: String,
}

impl StopTexts {
    /// Looks for `stops`, none of which is empty.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), held: String::new() }
    }

    /// Adds a piece; returns what can be shown now, and whether the text ends with it.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        for c in piece.chars() {
            self.held.push(c);
            let matches = self.stops.iter().filter(|stop| self.held.ends_with(stop.as_str()));
            if let Some(len) = matches.map(String::len).max() {
                self.held.truncate(self.held.len() - len);
                return (self.finish(), true);
            }
        }
        let starts = self.held.char_indices().map(|(start, _)| start);
        let may_match = |start: &usize| {
            let end = &self.held[*start..];
            self.stops.iter().any(|stop| stop.starts_with(end))
        };
        let start = starts.into_iter().find(may_match).unwrap_or(self.held.len());
        let rest = self.held.split_off(start);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Ends the text, and returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<_> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut texts = StopTexts::new(&stops);
        let mut shown = Vec::new();
        for piece in pieces {
            let (text, found) = texts.push(piece);
            shown.push(text);
            if found {
                return (shown, true);
            }
        }
        shown.push(texts.finish());
        (shown, false)
    }

    fn check(stops: &[&str], pieces: &[&str], expected: &[&str], found: bool) {
        let expected = expected.iter().map(|&text| text.to_owned()).collect();
        assert_eq!(run(stops, pieces), (expected, found), "{stops:?} in {pieces:?}");
    }

    #[test]
    fn a_beginning_is_held_back() {
        check(&["END"], &["a E", "N", "D b"], &["a ", "", ""], true);
        check(&["END"], &["a E", "N", "E!"], &["a ", "", "ENE!", ""], false);
        check(&["END"], &["a E", "N"], &["a ", "", "EN"], false);
        // A match may begin within what was held for another.
        check(&["aab"], &["aa", "ab", "c"], &["", "a"], true);
        check(&["\n\n"], &["x\n", "\ny"], &["x", ""], true);
        check(&["é\u{301}🙂"], &["eé", "\u{301}", "🙂z"], &["e", "", ""], true);
    }

    #[test]
    fn the_first_that_is_complete_counts() {
        check(&["abcd", "bc"], &["xabcd"], &["xa"], true);
        check(&["bc", "abc"], &["xabcd"], &["x"], true);
        check(&["q"], &["abc"], &["abc", ""], false);
        check(&[], &["abc", "d"], &["abc", "d", ""], false);
    }

    /// Every way to cut a text gives the same.
    #[test]
    fn cuts_do_not_matter() {
        let text = "abacabadabacaba";
        for stops in [&["bad", "acab"][..], &["cabad", "aba"], &["dab", "ada"], &["x", "baz"]] {
            let (whole, found) = run(stops, &[text]);
            for cuts in 0..1 << (text.len() - 1) {
                let mut pieces = vec![];
                let mut start = 0;
                for i in 1..=text.len() {
                    if i == text.len() || cuts >> (i - 1) & 1 == 1 {
                        pieces.push(&text[start..i]);
                        start = i;
                    }
                }
                let (shown, cut_found) = run(stops, &pieces);
                assert_eq!((shown.concat(), cut_found), (whole.concat(), found), "{pieces:?}");
            }
        }
    }
}
