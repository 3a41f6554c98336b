//! Prometheus text, as far as a test asks of it.

use std::collections::BTreeMap;

/// Samples of a scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Name with its labels, as written, and value.
    pub samples: BTreeMap<String, f64>,
}

impl Metrics {
    /// Parses the text format.
    pub fn parse(text: &str) -> Metrics {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Metrics { samples: samples.collect() }
    }

    /// The sum of a metric over all its labels; 0 when it is not there.
    pub fn sum(&self, name: &str) -> f64 {
        self.with(name, "")
    }

    /// The sum of a metric over the samples whose labels hold this text, for instance `tier="disk"`.
    pub fn with(&self, name: &str, label: &str) -> f64 {
        let is_it = |sample: &str| {
            let (base, labels) = sample.split_once('{').unwrap_or((sample, ""));
            base == name && labels.contains(label)
        };
        self.samples.iter().filter(|(sample, _)| is_it(sample)).map(|(_, value)| value).sum()
    }

    /// Whether there is a metric of that name.
    pub fn has(&self, name: &str) -> bool {
        self.samples.keys().any(|sample| sample.split('{').next() == Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_labels() {
        let text = "# HELP a b\n# TYPE a counter\na{t=\"x\",u=\"1\"} 2\na{t=\"y\"} 3\nab 7\n";
        let metrics = Metrics::parse(text);
        assert_eq!((metrics.sum("a"), metrics.with("a", "t=\"x\""), metrics.sum("none")), (5.0, 2.0, 0.0));
        assert!(metrics.has("ab") && !metrics.has("b"));
    }
}
