//! Fields that several routes have, and what they come to.

use std::{collections::BTreeMap, fmt, marker::PhantomData, sync::Arc};

use gdn_model::SamplingParams;
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor, value},
};

use crate::{
    App,
    error::{ApiError, Result},
    id, limits,
    numbers::{self, Whole},
};

/// How tokens are chosen and where answers end, by the names of OpenAI's API and of
/// vLLM's beyond it.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct SamplingFields {
    #[serde(default, deserialize_with = "numbers::float")]
    pub(crate) temperature: Option<f32>,
    #[serde(default, deserialize_with = "numbers::float")]
    pub(crate) top_p: Option<f32>,
    #[serde(default, deserialize_with = "numbers::whole")]
    pub(crate) top_k: Option<i64>,
    #[serde(default, deserialize_with = "numbers::float")]
    pub(crate) min_p: Option<f32>,
    #[serde(default, deserialize_with = "numbers::float")]
    pub(crate) repetition_penalty: Option<f32>,
    #[serde(default, deserialize_with = "numbers::float")]
    pub(crate) presence_penalty: Option<f32>,
    #[serde(default, deserialize_with = "numbers::float")]
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) logit_bias: Option<BTreeMap<String, f64>>,
    #[serde(default, deserialize_with = "numbers::whole")]
    pub(crate) seed: Option<i64>,
    #[serde(default, deserialize_with = "numbers::whole")]
    pub(crate) n: Option<usize>,
    pub(crate) stop: Option<OneOrMany<String>>,
    #[serde(default, deserialize_with = "numbers::wholes")]
    pub(crate) stop_token_ids: Option<Vec<u32>>,
    #[serde(default, deserialize_with = "numbers::whole")]
    pub(crate) min_tokens: Option<usize>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) skip_special_tokens: Option<bool>,
    #[serde(rename = "use_beam_search")]
    _use_beam_search: Option<NotDone>,
    #[serde(rename = "include_stop_str_in_output")]
    _include_stop_str_in_output: Option<NotDone>,
    #[serde(rename = "no_stop_trim")]
    _no_stop_trim: Option<NotDone>,
    #[serde(rename = "prompt_logprobs")]
    _prompt_logprobs: Option<NotDone>,
    #[serde(rename = "structured_outputs")]
    _structured_outputs: Option<NotDone>,
    #[serde(rename = "structural_tag")]
    _structural_tag: Option<NotDone>,
    #[serde(rename = "guided_json")]
    _guided_json: Option<NotDone>,
    #[serde(rename = "guided_regex")]
    _guided_regex: Option<NotDone>,
    #[serde(rename = "guided_choice")]
    _guided_choice: Option<NotDone>,
    #[serde(rename = "guided_grammar")]
    _guided_grammar: Option<NotDone>,
}

/// What those fields come to.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) sampling: SamplingParams,
    /// Answers to each prompt.
    pub(crate) n: usize,
    pub(crate) stop: Arc<[String]>,
    pub(crate) stop_tokens: Arc<[u32]>,
    /// Those of them that the model names, which need no word of explanation.
    pub(crate) eos: Arc<[u32]>,
    pub(crate) min_tokens: usize,
    pub(crate) skip_special: bool,
}

impl SamplingFields {
    /// These fields before what the model wants.
    pub(crate) fn resolve(self, app: &App) -> Result<Wanted> {
        let generation = &app.text().generation;
        let default = generation.sampling();
        let top_k = match self.top_k {
            None => default.top_k,
            Some(-1) => 0,
            Some(top_k) => usize::try_from(top_k).map_err(|_| {
                ApiError::field("top_k", format!("expected -1 or a number above, got {top_k}"))
            })?,
        };
        let sampling = SamplingParams {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_k,
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            logit_bias: logit_bias(self.logit_bias.unwrap_or_default())?,
            seed: self.seed.map_or_else(id::random, |seed| seed as u64),
        };
        sampling.validate().map_err(ApiError::model)?;
        let n = self.n.unwrap_or(1);
        in_range("n", n, 1, limits::CHOICES)?;
        let stop = self.stop.map(|stop| stop.0).unwrap_or_default();
        in_range("stop", stop.len(), 0, limits::STOPS)?;
        if let Some(i) = stop.iter().position(|stop| stop.is_empty()) {
            return Err(ApiError::field(format!("stop[{i}]"), "expected a text, got an empty one"));
        }
        for (i, stop) in stop.iter().enumerate() {
            in_range(format!("stop[{i}]"), stop.len(), 1, limits::STOP_BYTES)?;
        }
        let mut stop_tokens = self.stop_token_ids.unwrap_or_default();
        in_range("stop_token_ids", stop_tokens.len(), 0, limits::STOP_TOKENS)?;
        let eos = match self.ignore_eos.unwrap_or(false) {
            true => Vec::new(),
            false => generation.eos.clone(),
        };
        stop_tokens.extend(&eos);
        Ok(Wanted {
            sampling,
            n,
            stop: stop.into(),
            stop_tokens: stop_tokens.into(),
            eos: eos.into(),
            min_tokens: self.min_tokens.unwrap_or(0),
            skip_special: self.skip_special_tokens.unwrap_or(true),
        })
    }
}

fn logit_bias(bias: BTreeMap<String, f64>) -> Result<Vec<(u32, f32)>> {
    in_range("logit_bias", bias.len(), 0, limits::BIASES)?;
    let bias = bias.into_iter().map(|(token, bias)| {
        let digits = (1..10).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_digit());
        let Some(id) = token.parse().ok().filter(|_| digits) else {
            let what = format!("expected tokens by number, got {token:?}");
            return Err(ApiError::field("logit_bias", what));
        };
        if !(-100.0..=100.0).contains(&bias) {
            let what = format!("expected -100 to 100, got {bias}");
            return Err(ApiError::field(format!("logit_bias.{token}"), what));
        }
        Ok((id, bias as f32))
    });
    bias.collect()
}

/// `Err` for a number that is out of its range.
pub(crate) fn in_range(
    param: impl Into<std::borrow::Cow<'static, str>>,
    got: usize,
    least: usize,
    most: usize,
) -> Result<()> {
    if (least..=most).contains(&got) {
        return Ok(());
    }
    Err(ApiError::field(param, format!("expected {least} to {most}, got {got}")))
}

/// The tokens of an answer, if `wanted` are asked for and the prompt has so many.
///
/// # Errors
/// If they do not fit behind the prompt, which `prompt` is called in the request.
pub(crate) fn max_tokens(
    app: &App,
    prompt_tokens: usize,
    wanted: Option<usize>,
    default: usize,
    [prompt, name]: [&'static str; 2],
) -> Result<usize> {
    let limit = app.limit();
    let least = usize::from(wanted != Some(0));
    let room = match limit.checked_sub(prompt_tokens) {
        Some(room) if room >= least => room,
        _ => return Err(ApiError::too_long(limit - least, prompt_tokens, prompt)),
    };
    match wanted {
        None => Ok(default.min(room)),
        Some(wanted) if wanted <= room => Ok(wanted),
        Some(wanted) => {
            let what = format!(
                "expected at most {room}, since the prompt has {prompt_tokens} of {limit} tokens, \
                 got {wanted}"
            );
            Err(ApiError::field(name, what))
        }
    }
}

/// How an answer is streamed.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct StreamOptions {
    pub(crate) include_usage: Option<bool>,
}

/// A field of other servers that would change the answer, and does not here: better no
/// answer than another one. Null, false and an empty list ask for nothing.
#[derive(Debug)]
pub(crate) struct NotDone;

impl<'de> Deserialize<'de> for NotDone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Bool(false) => Ok(Self),
            serde_json::Value::Array(list) if list.is_empty() => Ok(Self),
            _ => Err(de::Error::custom("expected none, as this is not done here, got one")),
        }
    }
}

/// A value, or a list of such.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OneOrMany<T>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Texts<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(value::StrDeserializer::new(text)).map(|one| OneOrMany(vec![one]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(value::SeqAccessDeserializer::new(seq)).map(OneOrMany)
            }
        }

        deserializer.deserialize_any(Texts(PhantomData))
    }
}

/// One prompt or several.
#[derive(Debug, PartialEq)]
pub(crate) struct Prompts {
    pub(crate) each: Inputs,
    /// Whether a list of them came, be it of one.
    pub(crate) list: bool,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Inputs {
    Texts(Vec<String>),
    Tokens(Vec<Vec<u32>>),
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        const EXPECTED: &str = "a text, a list of texts, a list of tokens, or a list of such lists";

        impl<'de> Visitor<'de> for Any {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts { each: Inputs::Texts(vec![text.to_owned()]), list: false })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                // What the first is, the others must be.
                let (each, list) = match seq.next_element()? {
                    None => (Inputs::Tokens(vec![Vec::new()]), false),
                    Some(Element::Token(first)) => {
                        let rest: Vec<Whole<u32>> = rest(Whole(first), seq)?;
                        (Inputs::Tokens(vec![numbers::plain(rest)]), false)
                    }
                    Some(Element::Tokens(first)) => {
                        let rest: Vec<Vec<Whole<u32>>> = rest(first, seq)?;
                        (Inputs::Tokens(rest.into_iter().map(numbers::plain).collect()), true)
                    }
                    Some(Element::Text(first)) => (Inputs::Texts(rest(first, seq)?), true),
                };
                Ok(Prompts { each, list })
            }
        }

        deserializer.deserialize_any(Any)
    }
}

fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    first: T,
    mut seq: A,
) -> Result<Vec<T>, A::Error> {
    let mut all = vec![first];
    while let Some(next) = seq.next_element()? {
        all.push(next);
    }
    Ok(all)
}

enum Element {
    Text(String),
    Token(u32),
    Tokens(Vec<Whole<u32>>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a token or a list of tokens")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, token: u64) -> Result<Element, E> {
                let expected = &"a token, a whole number of 32 bits";
                u32::try_from(token)
                    .map(Element::Token)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(token), expected))
            }

            fn visit_f64<E: de::Error>(self, token: f64) -> Result<Element, E> {
                let expected = &"a token, a whole number of 32 bits";
                numbers::from_float(token)
                    .map(Element::Token)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Float(token), expected))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Element, A::Error> {
                Vec::deserialize(value::SeqAccessDeserializer::new(seq)).map(Element::Tokens)
            }
        }

        deserializer.deserialize_any(Any)
    }
}

impl Prompts {
    pub(crate) fn len(&self) -> usize {
        match &self.each {
            Inputs::Texts(texts) => texts.len(),
            Inputs::Tokens(lists) => lists.len(),
        }
    }

    /// The tokens of each, and its text if it came as one.
    pub(crate) async fn encode(self, app: &App) -> Result<Vec<(Vec<u32>, Option<String>)>> {
        match self.each {
            Inputs::Tokens(lists) => Ok(lists.into_iter().map(|tokens| (tokens, None)).collect()),
            Inputs::Texts(texts) => {
                let bytes = texts.iter().map(String::len).sum();
                let tokenizer = app.text().tokenizer.clone();
                let work = move || {
                    let encode = |text: String| Ok((tokenizer.encode(&text)?, Some(text)));
                    texts.into_iter().map(encode).collect::<Result<_, _>>()
                };
                crate::body::off_thread(bytes, work).await?.map_err(ApiError::model)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_have_four_forms() {
        let parse = |text: &str| serde_json::from_str::<Prompts>(text).map_err(|e| e.to_string());
        let texts = |list, texts: &[&str]| {
            let texts = texts.iter().map(|&text| text.to_owned()).collect();
            Ok(Prompts { each: Inputs::Texts(texts), list })
        };
        let tokens = |list, lists: &[&[u32]]| {
            let lists = lists.iter().map(|list| list.to_vec()).collect();
            Ok(Prompts { each: Inputs::Tokens(lists), list })
        };
        assert_eq!(parse(r#""a""#), texts(false, &["a"]));
        assert_eq!(parse(r#"["a", "b"]"#), texts(true, &["a", "b"]));
        assert_eq!(parse("[1, 2]"), tokens(false, &[&[1, 2]]));
        assert_eq!(parse("[[1, 2], [], [3]]"), tokens(true, &[&[1, 2], &[], &[3]]));
        assert_eq!(parse("[1.0, 2]"), tokens(false, &[&[1, 2]]));
        assert_eq!(parse("[[1, 2.0]]"), tokens(true, &[&[1, 2]]));
        assert_eq!(parse("[]"), tokens(false, &[&[]]));
        for wrong in
            ["7", "null", "{}", r#"[1, "a"]"#, r#"["a", 1]"#, "[-1]", "[4294967296]", "[1.5]"]
        {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains("expected"), "{wrong}: {error}");
        }
    }

    #[test]
    fn one_text_is_a_list_of_one() {
        let parse = |text: &str| serde_json::from_str::<OneOrMany<String>>(text).ok();
        assert_eq!(parse(r#""a""#), Some(OneOrMany(vec!["a".to_owned()])));
        assert_eq!(parse(r#"["a"]"#), Some(OneOrMany(vec!["a".to_owned()])));
        assert_eq!(parse("[]"), Some(OneOrMany(vec![])));
        assert_eq!(parse("3"), None);
    }
}
