//! The values as Prometheus takes them: text format 0.0.4.
//!
//! Owns the metrics' names, units and labels; docs/observability.md lists them,
//! and a test holds the two against each other. The `prometheus` crate writes
//! the format. (`prometheus-client` was looked at too: it writes OpenMetrics
//! only, in which a counter's `# TYPE` line lacks the `_total` of its samples,
//! so that a parser of the older format takes every counter for untyped.)

mod families;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::HostStats;
use crate::metrics::{BUCKETS, bound_us};

/// The `Content-Type` of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text for `GET /metrics`.
pub fn text(stats: &HostStats) -> String {
    let mut text = String::new();
    for family in families::of(stats) {
        // A family without series, such as one of VMs where there are none,
        // is left out: the format has no way to say it.
        if !family.get_metric().is_empty()
            && let Err(error) = prometheus::TextEncoder.encode_utf8(&[family], &mut text)
        {
            log::error!("a metric can't be written: {error}");
        }
    }
    text
}

/// The labels of one series: name and value.
type Labels<'a> = &'a [(&'a str, &'a str)];

fn metric(labels: Labels<'_>) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(pair).collect());
    metric
}

/// A family being put together.
struct Family {
    family: MetricFamily,
    is_counter: bool,
}

impl Family {
    fn new(name: &str, help: &str, kind: MetricType) -> Self {
        Self::named(format!("leafblk_{name}"), help, kind)
    }

    /// One whose name is the same for all programs.
    fn of_process(name: &str, help: &str, kind: MetricType) -> Self {
        Self::named(format!("process_{name}"), help, kind)
    }

    fn named(name: String, help: &str, kind: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name);
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self { family, is_counter: matches!(kind, MetricType::COUNTER) }
    }

    fn counter(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::COUNTER)
    }

    fn gauge(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::GAUGE)
    }

    fn histogram(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::HISTOGRAM)
    }

    fn add(&mut self, labels: Labels<'_>, value: f64) {
        let mut metric = metric(labels);
        if self.is_counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.family.mut_metric().push(metric);
    }

    fn with(mut self, labels: Labels<'_>, value: f64) -> Self {
        self.add(labels, value);
        self
    }

    /// A series with the buckets of [`crate::metrics::Histogram`].
    fn add_latencies(&mut self, labels: Labels<'_>, counts: &[u64], sum_ns: u64) {
        let mut cumulative = 0;
        let bounded = counts.iter().take(BUCKETS).enumerate().map(|(bucket, count)| {
            cumulative += count;
            let mut entry = Bucket::default();
            entry.set_upper_bound(bound_us(bucket) as f64 / 1e6);
            entry.set_cumulative_count(cumulative);
            entry
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(bounded.collect());
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(seconds(sum_ns));
        let mut metric = metric(labels);
        metric.set_histogram(histogram);
        self.family.mut_metric().push(metric);
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

#[cfg(test)]
mod tests;
