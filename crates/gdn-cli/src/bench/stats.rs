//! Medians and quartiles.

use serde::Serialize;

/// The value that this part of `sorted`, which is not empty, is not above, interpolated.
pub(crate) fn quantile(sorted: &[f64], part: f64) -> f64 {
    let position = part * (sorted.len() - 1) as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * position.fract()
}

/// A sample in three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) lower_quartile: f64,
    pub(super) median: f64,
    pub(super) upper_quartile: f64,
}

impl Summary {
    /// Of a sample that is not empty.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        Self {
            lower_quartile: quantile(&values, 0.25),
            median: quantile(&values, 0.5),
            upper_quartile: quantile(&values, 0.75),
        }
    }

    /// The same of `f` of every value, for an `f` that keeps their order.
    pub(super) fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self {
            lower_quartile: f(self.lower_quartile),
            median: f(self.median),
            upper_quartile: f(self.upper_quartile),
        }
    }

    /// Half the distance of the quartiles, in percent of the median.
    pub(super) fn spread(&self) -> f64 {
        50.0 * (self.upper_quartile - self.lower_quartile) / self.median
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_interpolate() {
        let summary = Summary::of([4.0, 1.0, 3.0, 2.0]);
        let expected = Summary { lower_quartile: 1.75, median: 2.5, upper_quartile: 3.25 };
        assert_eq!(summary, expected);
        assert_eq!(summary.spread(), 30.0);
    }

    #[test]
    fn one_value_has_no_spread() {
        assert_eq!(Summary::of([7.0]).spread(), 0.0);
    }
}
