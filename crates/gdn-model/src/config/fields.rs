//! Typed access to the fields of a JSON object, with errors that name them.

use std::{fmt::Display, path::Path};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Dims beyond this are nonsense, and products of two would overflow.
const MAX_SIZE: u64 = 1 << 24;

/// An object of the config.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// What leads to the object, with a dot behind, or nothing.
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(path: &'a Path, prefix: &str, value: &'a Value) -> Result<Self> {
        let Value::Object(map) = value else {
            let field = prefix.trim_end_matches('.');
            return Err(Error::Config {
                path: path.to_owned(),
                field: if field.is_empty() { "the whole file" } else { field }.to_owned(),
                expected: "an object".to_owned(),
                got: value.to_string(),
            });
        };
        Ok(Self { path, prefix: prefix.to_owned(), map })
    }

    /// An object inside this one, if it is there.
    pub(super) fn object(&self, name: &str) -> Result<Option<Self>> {
        let prefix = format!("{}{name}.", self.prefix);
        self.value(name).map(|value| Self::new(self.path, &prefix, value)).transpose()
    }

    /// A field that may be missing or null.
    pub(super) fn get<T: DeserializeOwned>(&self, name: &str, expected: &str) -> Result<Option<T>> {
        let parse = |value: &Value| {
            serde_json::from_value(value.clone()).map_err(|_| self.error(name, expected, value))
        };
        self.value(name).map(parse).transpose()
    }

    /// A field, or `default` if it is missing or null.
    pub(super) fn or<T: DeserializeOwned>(&self, name: &str, default: T) -> Result<T> {
        let kind = std::any::type_name::<T>().rsplit("::").next().unwrap_or_default();
        Ok(self.get(name, kind)?.unwrap_or(default))
    }

    /// A field that must be there.
    pub(super) fn need<T: DeserializeOwned>(&self, name: &str, expected: &str) -> Result<T> {
        self.get(name, expected)?.ok_or_else(|| self.error(name, expected, "none"))
    }

    /// A dim or a count, which must be there.
    pub(super) fn size(&self, name: &str) -> Result<usize> {
        let expected = "a whole number from 1 to 16777216";
        let size: u64 = self.need(name, expected)?;
        self.check(name, (1..=MAX_SIZE).contains(&size), expected, &size)?;
        Ok(size as usize)
    }

    /// `Err` if the field is there.
    pub(super) fn reject(&self, name: &str, expected: &str) -> Result<()> {
        self.value(name).map_or(Ok(()), |value| Err(self.error(name, expected, value)))
    }

    /// `Err` unless `fine`.
    pub(super) fn check(
        &self,
        name: &str,
        fine: bool,
        expected: &str,
        got: &dyn Display,
    ) -> Result<()> {
        if fine { Ok(()) } else { Err(self.error(name, expected, got)) }
    }

    pub(super) fn error(&self, name: &str, expected: &str, got: impl Display) -> Error {
        Error::Config {
            path: self.path.to_owned(),
            field: format!("{}{name}", self.prefix),
            expected: expected.to_owned(),
            got: got.to_string(),
        }
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }
}
