//! What is said of repeated measurements: the middle, and how far they lie apart.

use serde::{Deserialize, Serialize};

/// Order statistics of a sample. A shared machine disturbs upwards and downwards, so no mean is given.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Statistics {
    /// Number of values.
    pub(crate) count: usize,
    /// The least value.
    pub(crate) least: f64,
    /// A quarter of the values lies below.
    pub(crate) lower_quartile: f64,
    /// The middle value.
    pub(crate) median: f64,
    /// A quarter of the values lies above.
    pub(crate) upper_quartile: f64,
    /// The greatest value.
    pub(crate) most: f64,
}

impl Statistics {
    /// Of these values; `None` if there is none, or one is no number.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        if values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        values.sort_by(f64::total_cmp);
        Some(Self {
            count: values.len(),
            least: *values.first()?,
            lower_quartile: quantile(&values, 0.25),
            median: quantile(&values, 0.5),
            upper_quartile: quantile(&values, 0.75),
            most: *values.last()?,
        })
    }
}

/// Between the two values around the wanted rank (type 7 of Hyndman and Fan 1996, the usual one). `sorted` is not empty.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "ranks are small and not negative"
)]
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = share * (sorted.len() - 1) as f64;
    let (below, above) = (rank.floor() as usize, rank.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * rank.fract()
}

/// A number for people: three digits that count, thousands apart.
pub(crate) fn readable(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        _ if size >= 100.0 || size == 0.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if size < 1000.0 {
        return text;
    }
    let start = usize::from(value < 0.0);
    let mut grouped = String::new();
    for (position, digit) in text.char_indices() {
        if position > start && (text.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_odd_even_and_single() {
        let odd = Statistics::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!(
            (odd.count, odd.least, odd.median, odd.most),
            (3, 1.0, 2.0, 3.0)
        );
        assert_eq!((odd.lower_quartile, odd.upper_quartile), (1.5, 2.5));
        let even = Statistics::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(
            (even.lower_quartile, even.median, even.upper_quartile),
            (1.75, 2.5, 3.25)
        );
        let one = Statistics::of(vec![7.0]).unwrap();
        assert_eq!(
            (one.least, one.lower_quartile, one.median, one.most),
            (7.0, 7.0, 7.0, 7.0)
        );
    }

    #[test]
    fn of_nothing_and_of_what_is_no_number() {
        assert!(Statistics::of(vec![]).is_none());
        assert!(Statistics::of(vec![1.0, f64::NAN]).is_none());
        assert!(Statistics::of(vec![f64::INFINITY]).is_none());
    }

    #[test]
    fn numbers_are_readable() {
        let cases = [
            (0.0, "0"),
            (0.01234, "0.012"),
            (1.2345, "1.23"),
            (12.345, "12.3"),
            (999.4, "999"),
            (12_345.6, "12,346"),
            (1_234_567.0, "1,234,567"),
            (-1234.0, "-1,234"),
        ];
        for (value, text) in cases {
            assert_eq!(readable(value), text);
        }
    }
}
