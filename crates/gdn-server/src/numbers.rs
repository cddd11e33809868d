//! Numbers as JSON has them: 8.0 is a whole one, and some are too near to 0 or too far from it
//! for an `f32`.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, Unexpected, Visitor},
};

/// A field with a whole number.
pub(crate) fn whole<'de, T: Integer, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Whole<T>>::deserialize(from)?.map(|whole| whole.0))
}

/// A field with a list of them.
pub(crate) fn wholes<'de, T: Integer, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Ok(Option::<Vec<Whole<T>>>::deserialize(from)?.map(plain))
}

/// What a list of them holds.
pub(crate) fn plain<T>(list: Vec<Whole<T>>) -> Vec<T> {
    list.into_iter().map(|whole| whole.0).collect()
}

/// A field with any number. One that is not 0 never becomes 0, which may be out of its range, nor
/// infinite.
pub(crate) fn float<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f32>, D::Error> {
    let number = Option::<f64>::deserialize(from)?;
    Ok(number.map(|number| {
        let near = number as f32;
        if near == 0.0 && number != 0.0 {
            f32::MIN_POSITIVE.copysign(near)
        } else {
            near.clamp(f32::MIN, f32::MAX)
        }
    }))
}

/// What a whole number can be kept as.
pub(crate) trait Integer: TryFrom<i128> {
    const EXPECTED: &'static str;
}

impl Integer for usize {
    const EXPECTED: &'static str = "a whole number, at least 0";
}

impl Integer for u32 {
    const EXPECTED: &'static str = "a whole number, at least 0";
}

impl Integer for i64 {
    const EXPECTED: &'static str = "a whole number";
}

/// A whole number, be it written as 8 or as 8.0.
#[derive(Debug)]
pub(crate) struct Whole<T>(pub(crate) T);

/// `None` for what has a fraction, or is so large that it may have been another number: what no
/// integer holds is read as a float, too.
pub(crate) fn from_float<T: Integer>(number: f64) -> Option<T> {
    let whole = number.fract() == 0.0 && number.abs() < 2_f64.powi(63);
    whole.then(|| T::try_from(number as i128).ok())?
}

impl<'de, T: Integer> Deserialize<'de> for Whole<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number<T>(PhantomData<T>);

        impl<T: Integer> Visitor<'_> for Number<T> {
            type Value = Whole<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Whole<T>, E> {
                // No more than of floats: a bound that the document can name.
                let whole =
                    i64::try_from(number).ok().and_then(|whole| T::try_from(whole.into()).ok());
                let wrong = || E::invalid_value(Unexpected::Unsigned(number), &self);
                whole.map(Whole).ok_or_else(wrong)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Whole<T>, E> {
                let whole = T::try_from(number.into()).map(Whole);
                whole.map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Whole<T>, E> {
                let whole = from_float(number).map(Whole);
                whole.ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
            }
        }

        deserializer.deserialize_any(Number(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Fields {
        #[serde(default, deserialize_with = "whole")]
        count: Option<usize>,
        #[serde(default, deserialize_with = "whole")]
        signed: Option<i64>,
        #[serde(default, deserialize_with = "wholes")]
        tokens: Option<Vec<u32>>,
        #[serde(default, deserialize_with = "float")]
        float: Option<f32>,
    }

    fn parse(text: &str) -> Result<Fields, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn whole_numbers() {
        let fields = parse(r#"{"count": 8.0, "signed": -1.0, "tokens": [7, 4294967295.0, 1e2]}"#);
        let fields = fields.unwrap();
        assert_eq!((fields.count, fields.signed), (Some(8), Some(-1)));
        assert_eq!(fields.tokens, Some(vec![7, u32::MAX, 100]));
        let fields = parse(r#"{"count": 9223372036854775807, "signed": null}"#).unwrap();
        assert_eq!((fields.count, fields.signed), (Some(i64::MAX as usize), None));
        let wrong = [
            r#"{"count": 8.5}"#,
            r#"{"count": -1}"#,
            r#"{"count": -1.0}"#,
            r#"{"count": 1e300}"#,
            r#"{"count": 9223372036854775808}"#,
            r#"{"count": "8"}"#,
            r#"{"count": true}"#,
            r#"{"signed": 9223372036854775808}"#,
            r#"{"signed": -9223372036854775809}"#,
            r#"{"tokens": [4294967296.0]}"#,
        ];
        for text in wrong {
            let error = parse(text).unwrap_err();
            assert!(error.contains("expected a whole number"), "{text}: {error}");
        }
    }

    #[test]
    fn numbers_that_an_f32_has_not() {
        let float = |text: &str| parse(&format!("{{\"float\": {text}}}")).unwrap().float;
        assert_eq!(float("0.7"), Some(0.7));
        assert_eq!(float("0"), Some(0.0));
        assert_eq!(float("5e-324"), Some(f32::MIN_POSITIVE));
        assert_eq!(float("-5e-324"), Some(-f32::MIN_POSITIVE));
        assert_eq!(float("1e200"), Some(f32::MAX));
        assert_eq!(float("null"), None);
    }
}
