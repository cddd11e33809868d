//! Grammars that answers must follow.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use gdn_engine::Constraint;
use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar, toktrie::TokEnv};

use crate::{
    error::{ApiError, Result},
    vocabulary::Vocabulary,
};

/// What ends thoughts, during which anything goes.
const THOUGHTS_END: &[u8] = b"</think>";

/// Compiles grammars for a vocabulary.
pub(crate) struct Grammars {
    factory: ParserFactory,
    vocabulary: Vocabulary,
    eos: Arc<[u32]>,
}

/// A compiled grammar, to begin answers with.
pub(crate) struct Grammar {
    matcher: Mutex<Matcher>,
    vocabulary: Vocabulary,
    eos: Arc<[u32]>,
    thinking: bool,
}

impl Grammars {
    /// `eos` are the tokens that end answers.
    ///
    /// # Errors
    /// What is wrong with the vocabulary.
    pub(crate) fn new(vocabulary: &Vocabulary, eos: &[u32]) -> Result<Self, String> {
        // Something must end an answer that could go on.
        let eos = match eos.is_empty() {
            true => vec![vocabulary.special()],
            false => eos.to_vec(),
        };
        let environment: TokEnv = Arc::new(vocabulary.environment(eos[0]));
        let mut factory =
            ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
        factory.quiet();
        Ok(Self { factory, vocabulary: vocabulary.clone(), eos: eos.into() })
    }

    /// Compiles a grammar; with `thinking` it begins behind the thoughts.
    ///
    /// # Errors
    /// A grammar that is wrong, or too large; it came in the field `param`.
    pub(crate) fn compile(
        &self,
        grammar: TopLevelGrammar,
        thinking: bool,
        param: &'static str,
    ) -> Result<Grammar> {
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(ApiError::field(param, reason(&error)));
        }
        // It says only here that no text matches.
        if matcher.compute_mask().is_err() {
            return Err(ApiError::field(
                param,
                "expected what some text can match, got the opposite",
            ));
        }
        let (vocabulary, eos) = (self.vocabulary.clone(), self.eos.clone());
        Ok(Grammar { matcher: Mutex::new(matcher), vocabulary, eos, thinking })
    }
}

/// The first line of an error: the grammar and its state follow.
fn reason(error: impl fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

impl Grammar {
    /// For an answer of its own.
    pub(crate) fn start(&self) -> Result<Follow> {
        // Nothing changes it: it is whole whenever someone panics.
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        Ok(Follow {
            matcher,
            vocabulary: self.vocabulary.clone(),
            eos: self.eos.clone(),
            thoughts: self.thinking.then(Vec::new),
        })
    }
}

/// An answer that follows a grammar.
pub(crate) struct Follow {
    matcher: Matcher,
    vocabulary: Vocabulary,
    eos: Arc<[u32]>,
    /// The end of the thoughts so far; `None` behind them.
    thoughts: Option<Vec<u8>>,
}

impl Constraint for Follow {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        if self.thoughts.is_some() {
            return Ok(());
        }
        let mut mask = self.matcher.compute_mask().map_err(reason)?;
        // The matcher knows one token that ends answers; there may be more.
        let complete = self.matcher.is_accepting().map_err(reason)?;
        for &token in &*self.eos {
            if (token as usize) < mask.len() {
                mask.set(token as usize, complete);
            }
        }
        let mut any = false;
        for (token, logit) in logits.iter_mut().enumerate() {
            if token < mask.len() && mask.get(token) {
                any = true;
            } else {
                *logit = f32::NEG_INFINITY;
            }
        }
        if any { Ok(()) } else { Err("the grammar leaves no token".to_owned()) }
    }

    fn accept(&mut self, token: u32) -> Result<bool, String> {
        if let Some(thoughts) = &mut self.thoughts {
            thoughts.extend(self.vocabulary.bytes(token));
            if thoughts.windows(THOUGHTS_END.len()).any(|window| window == THOUGHTS_END) {
                self.thoughts = None;
            } else {
                let done = thoughts.len().saturating_sub(THOUGHTS_END.len());
                thoughts.drain(..done);
            }
            return Ok(false);
        }
        if self.eos.contains(&token) {
            return Ok(true);
        }
        self.matcher.consume_token(token).map_err(reason)?;
        Ok(self.matcher.is_stopped())
    }
}

macro_rules! opaque {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}

opaque!(Grammars, Grammar, Follow);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use gdn_model::Tokenizer;
    use serde_json::{Value, json};

    use super::*;
    use crate::grammar::{self, Function};

    struct Bench {
        tokenizer: Tokenizer,
        grammars: Grammars,
        eos: u32,
        vocab: usize,
    }

    fn bench() -> Bench {
        let folder = "../gdn-model/tests/fixtures/qwen3_5_trained";
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let tokenizer = Tokenizer::load(&folder).unwrap();
        let vocabulary = Vocabulary::new(&tokenizer);
        let eos = tokenizer.token_id("<|im_end|>").unwrap();
        let grammars = Grammars::new(&vocabulary, &[eos]).unwrap();
        Bench { tokenizer, grammars, eos, vocab: 2048 }
    }

    impl Bench {
        /// Whether a text is possible, and may end there.
        fn takes(&self, grammar: &Grammar, text: &str) -> bool {
            let mut follow = grammar.start().unwrap();
            let tokens = self.tokenizer.encode(text).unwrap();
            let last = tokens.len() - 1;
            for (i, token) in tokens.into_iter().enumerate() {
                let mut logits = vec![0.0; self.vocab];
                follow.mask(&mut logits).unwrap();
                if logits[token as usize] != 0.0 {
                    return false;
                }
                if follow.accept(token).unwrap() {
                    return i == last;
                }
            }
            let mut logits = vec![0.0; self.vocab];
            follow.mask(&mut logits).unwrap();
            logits[self.eos as usize] == 0.0 && follow.accept(self.eos).unwrap()
        }

        fn check(&self, grammar: TopLevelGrammar, thinking: bool, good: &[&str], bad: &[&str]) {
            let grammar = self.grammars.compile(grammar, thinking, "tools").unwrap();
            good.iter().for_each(|text| assert!(self.takes(&grammar, text), "{text}"));
            bad.iter().for_each(|text| assert!(!self.takes(&grammar, text), "{text}"));
        }
    }

    fn functions() -> [Function; 2] {
        let parameters = json!({
            "type": "object",
            "properties": {
                "city": { "type": "string" },
                "unit": { "type": "string", "enum": ["C", "F"] },
                "days": { "type": "integer", "minimum": 1, "maximum": 9 },
                "places": { "type": "array", "items": { "$ref": "#/$defs/place" } },
            },
            "required": ["city", "days"],
            "$defs": { "place": { "type": "boolean" } },
        });
        let none = json!({ "type": "object", "properties": {} });
        let function =
            |name: &str, parameters: Value| Function { name: name.to_owned(), parameters };
        [function("weather", parameters), function("now", none)]
    }

    #[test]
    fn calls_in_xml() {
        let parameter =
            |name: &str, value: &str| format!("<parameter={name}>\n{value}\n</parameter>\n");
        let call = |name: &str, parameters: &str| {
            format!("<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>")
        };
        let (city, days) = (parameter("city", "O\n<slo>\n"), parameter("days", "3"));
        let least = call("weather", &format!("{city}{days}"));
        let all = call(
            "weather",
            &format!("{city}{}{days}{}", parameter("unit", "F"), parameter("places", "[true]")),
        );
        let now = call("now", "");
        let two = format!("{now}\n{least}");
        let bad = [
            call("weather", &city),
            call("weather", &format!("{city}{}", parameter("days", "10"))),
            call("weather", &format!("{city}{}{days}", parameter("unit", "K"))),
            call("weather", &format!("{city}{days}{}", parameter("places", "[1]"))),
            call("other", ""),
            format!("Well. {now}"),
            "Well.".to_owned(),
        ];
        let bad: Vec<&str> = bad.iter().map(String::as_str).collect();
        let bench = bench();
        let grammar = |one_call| grammar::calls(&functions(), one_call, true, false);
        bench.check(grammar(false), false, &[&least, &all, &now, &two], &bad);
        bench.check(grammar(true), false, &[&least, &now], &[&two]);
        let thought = format!("Well, well.\n</think>\n\n{now}");
        let grammar = grammar::calls(&functions(), true, true, true);
        bench.check(grammar, true, &[&thought], &["Well, well.</think>\n\nNo.", &now]);
    }

    #[test]
    fn calls_as_json() {
        let least = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\", \"days\": 3}}\n</tool_call>";
        let now = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
        let bad = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";
        let grammar = grammar::calls(&functions(), false, false, false);
        bench().check(grammar, false, &[least, now], &[bad, "<tool_call>\n{}\n</tool_call>"]);
    }

    #[test]
    fn without_tokens_that_end_answers_a_special_one_does() {
        let bench = bench();
        let vocabulary = bench.grammars.vocabulary.clone();
        let grammars = Grammars::new(&vocabulary, &[]).unwrap();
        let [end] = *grammars.eos else { panic!("{:?}", grammars.eos) };
        assert!(bench.tokenizer.is_special(end));
        let bench = Bench { grammars, eos: end, ..bench };
        bench.check(grammar::regex("ab*"), false, &["a", "ab", "abbb"], &["b", "ac"]);
    }
}
