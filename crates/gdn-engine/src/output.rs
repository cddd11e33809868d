//! From tokens to text, up to a text that ends it.

mod stop;

use gdn_model::{Result, TextStream, Tokenizer};

pub use self::stop::StopTexts;

/// The text of an answer, token by token, up to the first of some texts.
#[derive(Debug)]
pub struct TextOutput {
    stream: TextStream,
    stops: StopTexts,
}

impl TextOutput {
    /// A text without special tokens that ends before the first of `stops`; none of them
    /// is empty.
    pub fn new(tokenizer: &Tokenizer, stops: &[String]) -> Self {
        let stream = tokenizer.stream().skip_special();
        Self { stream, stops: StopTexts::new(stops) }
    }

    /// The same with special tokens.
    pub fn with_special(tokenizer: &Tokenizer, stops: &[String]) -> Self {
        Self { stream: tokenizer.stream(), stops: StopTexts::new(stops) }
    }

    /// Adds a token; returns the text that is certain now, and whether it ends with it.
    ///
    /// # Errors
    /// As [`TextStream::push`].
    pub fn push(&mut self, token: u32) -> Result<(String, bool)> {
        match self.stream.push(token)? {
            Some(piece) => Ok(self.stops.push(&piece)),
            None => Ok((String::new(), false)),
        }
    }

    /// Ends the text, and returns what was held back.
    pub fn finish(&mut self) -> String {
        // What a stop text cut off stays off.
        let (mut rest, _) = self.stops.push(&self.stream.finish().unwrap_or_default());
        rest.push_str(&self.stops.finish());
        rest
    }
}
