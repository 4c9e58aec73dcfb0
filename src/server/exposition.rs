//! Writing metrics in Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};

use crate::engine::Histogram;

/// Content type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text so far. Labels given to [`Exposition::labelled`] are on every sample.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    labels: String,
}

impl Exposition {
    /// An empty text whose samples all have these labels.
    pub fn labelled(labels: &[(&str, &str)]) -> Self {
        Self { text: String::new(), labels: written(labels) }
    }

    /// A value that goes up and down.
    pub fn gauge(&mut self, name: &str, description: &str, value: impl Display) {
        self.family(name, "gauge", description);
        self.sample(name, &[], value);
    }

    /// A total since the start.
    pub fn counter(&mut self, name: &str, description: &str, value: impl Display) {
        self.family(name, "counter", description);
        self.sample(name, &[], value);
    }

    /// Begins a metric; its samples follow.
    pub fn family(&mut self, name: &str, kind: &str, description: &str) {
        // Writing to a string cannot fail, here and below.
        let _ = write!(self.text, "# HELP {name} {description}\n# TYPE {name} {kind}\n");
    }

    /// One sample with labels of its own.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let own = written(labels);
        let comma = if own.is_empty() || self.labels.is_empty() { "" } else { "," };
        let _ = if own.is_empty() && self.labels.is_empty() {
            writeln!(self.text, "{name} {value}")
        } else {
            writeln!(self.text, "{name}{{{}{comma}{own}}} {value}", self.labels)
        };
    }

    /// A distribution; values are multiplied by `scale`, which turns seconds into other units.
    pub fn histogram(&mut self, name: &str, description: &str, histogram: &Histogram, scale: f64) {
        self.family(name, "histogram", description);
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        let bounds = histogram.bounds.iter().map(|bound| (bound * scale).to_string());
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(&histogram.counts) {
            below += count;
            self.sample(&bucket, &[("le", &bound)], below);
        }
        self.sample(&format!("{name}_sum"), &[], histogram.sum * scale);
        self.sample(&format!("{name}_count"), &[], below);
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.text
    }
}

fn written(labels: &[(&str, &str)]) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let pairs: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    pairs.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_joined() {
        let mut text = Exposition::labelled(&[("model_name", "a\"b\\c\nd")]);
        text.gauge("x", "What.", 1);
        text.sample("x", &[("purpose", "p")], 2.5);
        let expected = "# HELP x What.\n# TYPE x gauge\n\
            x{model_name=\"a\\\"b\\\\c\\nd\"} 1\nx{model_name=\"a\\\"b\\\\c\\nd\",purpose=\"p\"} 2.5\n";
        assert_eq!(text.finish(), expected);
    }

    #[test]
    fn buckets_accumulate() {
        let mut text = Exposition::default();
        let histogram = Histogram { bounds: &[0.5, 1.0], counts: vec![1, 0, 2], sum: 7.25 };
        text.histogram("t_ms", "Times.", &histogram, 1000.0);
        let expected = "# HELP t_ms Times.\n# TYPE t_ms histogram\n\
            t_ms_bucket{le=\"500\"} 1\nt_ms_bucket{le=\"1000\"} 1\nt_ms_bucket{le=\"+Inf\"} 3\n\
            t_ms_sum 7250\nt_ms_count 3\n";
        assert_eq!(text.finish(), expected);
    }
}
