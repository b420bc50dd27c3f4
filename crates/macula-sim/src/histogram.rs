//! Counts of small whole numbers: hops, links, milliseconds.

/// How often each number came up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: u64,
}

/// Larger numbers are counted as this one.
const MAX: u64 = 1 << 20;

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, number: u64) {
        let place = number.min(MAX) as usize;
        if self.counts.len() <= place {
            self.counts.resize(place + 1, 0);
        }
        self.counts[place] += 1;
        self.total += 1;
        self.sum += number;
    }

    /// How many were counted.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The mean; 0 of nothing.
    pub fn mean(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.sum as f64 / self.total as f64 }
    }

    /// The smallest number that at least this share does not exceed; 0 of nothing.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (share * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (number, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return number as u64;
            }
        }
        0
    }

    /// The largest number counted; 0 of nothing.
    pub fn max(&self) -> u64 {
        self.counts.iter().rposition(|count| *count > 0).unwrap_or(0) as u64
    }

    /// How often each number came up, from 0.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Takes another's counts in.
    pub fn merge(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, more)| *own += more);
        self.total += other.total;
        self.sum += other.sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_the_numbers_that_were_counted() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.max()), (0, 0));
        (1..=100).for_each(|number| histogram.add(number));
        assert_eq!(histogram.quantile(0.5), 50);
        assert_eq!(histogram.quantile(0.99), 99);
        assert_eq!(histogram.max(), 100);
        assert_eq!(histogram.mean(), 50.5);
    }
}
