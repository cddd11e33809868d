//! How many tokens of prompts may go along with answers.

use std::collections::HashMap;

/// Fits them to what steps take, so that no token of an answer comes much later than its
/// neighbours.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// What is known of steps with about as many answers; of others it says little.
    known: HashMap<usize, Known>,
    least: usize,
    most: usize,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    /// Seconds of a step that generates alone, lately.
    decode_s: Option<f64>,
    /// Tokens of prompts.
    allowed: usize,
}

/// Numbers of answers that make no difference.
const ALIKE: usize = 8;
/// A step with prompts should take at most so many times as long as one without.
const STRETCH: f64 = 1.9;
/// Below this more is tried.
const ROOM: f64 = 1.6;
/// How much the last step counts.
const WEIGHT: f64 = 0.2;
/// Prompts that wait with so many tokens are worth a slower step with a token of these.
const BACKLOG: usize = 16;

impl Pace {
    /// From `least` tokens to `most`, which are at least 1.
    pub(crate) fn new(least: usize, most: usize) -> Self {
        Self { known: HashMap::new(), least: least.min(most), most }
    }

    /// The tokens of prompts for a step that generates so many, with so many to come.
    fn allowed(&self, decodes: usize, backlog: usize) -> usize {
        let known = self.known.get(&(decodes / ALIKE));
        let allowed = known.map_or(self.most, |known| known.allowed);
        // A queue of prompts waits longer for small pieces than answers do for large ones.
        allowed.max(backlog / BACKLOG).min(self.most)
    }

    /// The same, so that the pieces of what is to come are of one size: with a smaller last
    /// one nothing is won, as the longest step counts.
    pub(crate) fn piece(&self, decodes: usize, backlog: usize) -> usize {
        let allowed = self.allowed(decodes, backlog);
        let pieces = backlog.div_ceil(allowed).max(1);
        backlog.div_ceil(pieces)
    }

    /// Hears what a step took that generated so many tokens, and ran so many of prompts.
    pub(crate) fn hear(&mut self, decodes: usize, prompts: usize, seconds: f64) {
        let &mut Self { least, most, .. } = self;
        let unknown = Known { decode_s: None, allowed: most };
        let known = self.known.entry(decodes / ALIKE).or_insert(unknown);
        if prompts == 0 {
            let before = known.decode_s.unwrap_or(seconds);
            known.decode_s = Some(before + WEIGHT * (seconds - before));
            return;
        }
        let Some(decode_s) = known.decode_s else { return };
        if seconds > STRETCH * decode_s && prompts <= known.allowed {
            known.allowed = (prompts / 2).max(least);
        } else if seconds < ROOM * decode_s && 2 * prompts > known.allowed {
            known.allowed = (known.allowed + least).min(most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of 10 ms, and of so much more for each token of a prompt.
    fn settle(pace: &mut Pace, decodes: usize, per_token: f64) -> usize {
        for _ in 0..100 {
            pace.hear(decodes, 0, 0.010);
            let prompts = pace.allowed(decodes, 0);
            pace.hear(decodes, prompts, 0.010 + per_token * prompts as f64);
        }
        pace.allowed(decodes, 0)
    }

    #[test]
    fn steps_stay_below_twice_their_length() {
        let mut pace = Pace::new(16, 512);
        assert_eq!(pace.allowed(3, 0), 512, "nothing is known yet");
        // 0.1 ms a token: 60 to 90 tokens take 16 to 19 ms.
        let allowed = settle(&mut pace, 3, 1e-4);
        assert!((60..=90).contains(&allowed), "{allowed}");
        // Cheaper ones are let in again.
        let allowed = settle(&mut pace, 3, 1e-5);
        assert_eq!(allowed, 512);
        // However dear, prompts go on.
        assert_eq!(settle(&mut pace, 3, 1.0), 16);
    }

    /// A few answers alone say nothing of steps with many, which may never run alone.
    #[test]
    fn each_number_of_answers_has_its_own_pace() {
        let mut pace = Pace::new(16, 512);
        assert_eq!(settle(&mut pace, 1, 1.0), 16);
        for _ in 0..10 {
            pace.hear(128, 512, 9.0);
        }
        assert_eq!(pace.allowed(128, 0), 512);
        assert_eq!(pace.allowed(2, 0), 16);
    }

    #[test]
    fn a_queue_of_prompts_goes_first() {
        let mut pace = Pace::new(16, 512);
        settle(&mut pace, 3, 1.0);
        assert_eq!(pace.allowed(3, 100), 16);
        assert_eq!(pace.allowed(3, 2048), 128);
        assert_eq!(pace.allowed(3, 1 << 20), 512);
        // Steps that were larger than allowed say nothing of what is.
        let before = pace.allowed(3, 0);
        pace.hear(3, 512, 9.0);
        assert_eq!(pace.allowed(3, 0), before);
        assert_eq!(Pace::new(16, 4).allowed(3, 0), 4);
    }

    #[test]
    fn pieces_are_of_one_size() {
        let mut pace = Pace::new(48, 512);
        settle(&mut pace, 16, 1.0);
        for (backlog, piece) in [(0, 0), (1, 1), (48, 48), (49, 25), (128, 43), (8192, 512)] {
            assert_eq!(pace.piece(16, backlog), piece, "{backlog}");
        }
    }
}
