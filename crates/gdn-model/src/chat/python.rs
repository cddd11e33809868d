//! What templates take from Python: its text of numbers, JSON as `json.dumps`
//! writes it, and the functions that Hugging Face adds.

use std::fmt::{self, Write};

use jiff::Zoned;
use minijinja::{
    Environment, Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

/// An error that the template asked for.
#[derive(Debug)]
pub(super) struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

pub(super) fn install(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| text(value));
    environment.set_formatter(|out, _, value| out.write_str(&text(value)).map_err(Error::from));
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        let error = Error::new(ErrorKind::InvalidOperation, message.clone());
        Err(error.with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = jiff::fmt::strtime::format(&format, &Zoned::now());
        now.map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
}

/// `str(value)`, where minijinja's differs.
fn text(value: &Value) -> String {
    let mut out = String::new();
    match value.kind() {
        ValueKind::Number => number(value, &mut out),
        _ => _ = write!(out, "{value}"),
    }
    out
}

fn number(value: &Value, out: &mut String) {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float_repr(float, out),
        _ => _ = write!(out, "{value}"),
    }
}

/// The shortest digits that give the same number, as in Rust; but where Python
/// has an exponent.
fn float_repr(float: f64, out: &mut String) {
    let scientific = format!("{float:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        _ = write!(out, "{float}");
        return;
    };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    _ = if (-4..16).contains(&exponent) {
        write!(out, "{float:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(out, "{digits}e{sign}{:02}", exponent.abs())
    };
}

/// `json.dumps(value, ensure_ascii=False, ..)`.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    // Hugging Face takes this one for compatibility; its default is what is done here.
    if options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false) {
        let message = "tojson: expected ensure_ascii=false, got true";
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            let message = "tojson: expected two separators";
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
    };
    let style = Json { indent, item, key, sort_keys: sort_keys.unwrap_or(false) };
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

struct Json {
    indent: Option<usize>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Json {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => number(value, out),
            ValueKind::String => json_string(value.as_str().unwrap_or_default(), out),
            ValueKind::Map => {
                let mut entries = entries(value);
                if self.sort_keys {
                    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                let write = |(key, value): &(Value, Value), out: &mut String| {
                    json_string(&text(key), out);
                    out.push_str(&self.key);
                    self.write(value, depth + 1, out)
                };
                self.list(['{', '}'], &entries, depth, out, write)?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let write = |item: &Value, out: &mut String| self.write(item, depth + 1, out);
                self.list(['[', ']'], &items(value), depth, out, write)?;
            }
            kind => {
                let message = format!("tojson: expected a JSON value, got {kind}");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn list<T>(
        &self,
        [open, close]: [char; 2],
        items: &[T],
        depth: usize,
        out: &mut String,
        write: impl Fn(&T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (i, item) in items.iter().enumerate() {
            out.push_str(if i > 0 { &self.item } else { "" });
            self.line(depth + 1, out);
            write(item, out)?;
        }
        if !items.is_empty() {
            self.line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }
}

fn json_string(text: &str, out: &mut String) {
    // Escapes what Python escapes, and nothing else.
    out.push_str(&serde_json::Value::from(text).to_string());
}

fn entries(map: &Value) -> Vec<(Value, Value)> {
    let keys = items(map).into_iter();
    keys.map(|key| (key.clone(), map.get_item(&key).unwrap_or_default())).collect()
}

fn items(value: &Value) -> Vec<Value> {
    value.try_iter().map(Iterator::collect).unwrap_or_default()
}
