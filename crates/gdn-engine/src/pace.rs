//! How many tokens of prompts may go along with answers.

/// Fits them to what steps take, so that no token of an answer comes much later than its
/// neighbours.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// Seconds of a step that generates alone, lately.
    decode_s: Option<f64>,
    allowed: usize,
    least: usize,
    most: usize,
}

/// A step with prompts should take at most so many times as long as one without.
const STRETCH: f64 = 1.9;
/// Below this more is tried.
const ROOM: f64 = 1.6;
/// How much the last step counts.
const WEIGHT: f64 = 0.2;
/// Prompts that wait with so many tokens are worth a slower step with a token of these.
const BACKLOG: usize = 8;

impl Pace {
    /// From `least` tokens to `most`, which are at least 1.
    pub(crate) fn new(least: usize, most: usize) -> Self {
        Self { decode_s: None, allowed: most, least: least.min(most), most }
    }

    /// The tokens of prompts for a step that generates too, with so many to come.
    pub(crate) fn allowed(&self, backlog: usize) -> usize {
        // A queue of prompts waits longer for small pieces than answers do for large ones.
        self.allowed.max(backlog / BACKLOG).min(self.most)
    }

    /// Hears what a step took that generated, and ran so many tokens of prompts.
    pub(crate) fn hear(&mut self, prompts: usize, seconds: f64) {
        if prompts == 0 {
            let before = self.decode_s.unwrap_or(seconds);
            self.decode_s = Some(before + WEIGHT * (seconds - before));
            return;
        }
        let Some(decode_s) = self.decode_s else { return };
        if seconds > STRETCH * decode_s && prompts <= self.allowed {
            self.allowed = (prompts / 2).max(self.least);
        } else if seconds < ROOM * decode_s && 2 * prompts > self.allowed {
            self.allowed = (self.allowed + self.least).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of 10 ms, and of so much more for each token of a prompt.
    fn settle(pace: &mut Pace, per_token: f64) -> usize {
        for _ in 0..100 {
            pace.hear(0, 0.010);
            let prompts = pace.allowed(0);
            pace.hear(prompts, 0.010 + per_token * prompts as f64);
        }
        pace.allowed(0)
    }

    #[test]
    fn steps_stay_below_twice_their_length() {
        let mut pace = Pace::new(16, 512);
        assert_eq!(pace.allowed(0), 512, "nothing is known yet");
        // 0.1 ms a token: 60 to 90 tokens take 16 to 19 ms.
        let allowed = settle(&mut pace, 1e-4);
        assert!((60..=90).contains(&allowed), "{allowed}");
        // Cheaper ones are let in again.
        let allowed = settle(&mut pace, 1e-5);
        assert_eq!(allowed, 512);
        // However dear, prompts go on.
        assert_eq!(settle(&mut pace, 1.0), 16);
    }

    #[test]
    fn a_queue_of_prompts_goes_first() {
        let mut pace = Pace::new(16, 512);
        settle(&mut pace, 1.0);
        assert_eq!(pace.allowed(100), 16);
        assert_eq!(pace.allowed(2048), 256);
        assert_eq!(pace.allowed(1 << 20), 512);
        // Steps that were larger than allowed say nothing of what is.
        let before = pace.allowed(0);
        pace.hear(512, 9.0);
        assert_eq!(pace.allowed(0), before);
        assert_eq!(Pace::new(16, 4).allowed(0), 4);
    }
}
