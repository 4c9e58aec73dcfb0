//! Results beside their limits: what the device's own bandwidth, measured in the same run, would allow.

use serde_json::{Value as Json, json};
use worker_orcd_core::{Backend, Bandwidth};

use super::work::Work;
use crate::commands::CommandError;

/// What a device allows at most.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Roof {
    /// What its copies reach.
    pub(super) bandwidth: Bandwidth,
    /// Operations per second, where somebody said.
    pub(super) operations_per_second: Option<f64>,
}

impl Roof {
    /// Asks the device, before it holds a model.
    pub(super) fn measured(backend: &mut dyn Backend) -> Result<Self, CommandError> {
        Ok(Self { bandwidth: backend.measure_bandwidth()?, operations_per_second: None })
    }

    /// The limits themselves, in units of 10⁹.
    pub(super) fn report(&self) -> Json {
        let giga = |per_second: Option<f64>| per_second.map(|rate| rate / 1e9);
        json!({
            "copy_gigabytes_per_second": giga(self.bandwidth.copy_bytes_per_second),
            "upload_gigabytes_per_second": giga(self.bandwidth.upload_bytes_per_second),
            "giga_operations_per_second": giga(self.operations_per_second),
        })
    }

    /// Seconds that `work` takes at least, and which of the two limits says so; `None` where neither is known.
    pub(super) fn seconds(&self, work: &Work) -> Option<(f64, &'static str)> {
        let memory = self.bandwidth.copy_bytes_per_second.map(|rate| (work.bytes() / rate, "memory"));
        let arithmetic = self.operations_per_second.map(|rate| (work.operations / rate, "arithmetic"));
        [memory, arithmetic].into_iter().flatten().max_by(|left, right| left.0.total_cmp(&right.0))
    }

    /// Adds to a result whose `work` makes `tokens` tokens: what it moves, how fast it did at `tokens_per_second`, and
    /// how fast it could.
    pub(super) fn judge(&self, result: &mut Json, work: &Work, tokens: usize, tokens_per_second: f64) {
        let per_second = tokens_per_second / tokens.max(1) as f64;
        let limit = self.seconds(work);
        let limit_rate = limit.map(|(seconds, _)| tokens as f64 / seconds);
        result["weight_bytes"] = json!(work.weight_bytes.round() as u64);
        result["cache_bytes"] = json!(work.cache_bytes.round() as u64);
        result["giga_operations"] = json!(work.operations / 1e9);
        result["gigabytes_per_second"] = json!(work.bytes() * per_second / 1e9);
        result["giga_operations_per_second"] = json!(work.operations * per_second / 1e9);
        result["limited_by"] = json!(limit.map(|(_, by)| by));
        result["limit_tokens_per_second"] = json!(limit_rate);
        result["fraction_of_limit"] = json!(limit_rate.map(|limit| tokens_per_second / limit));
    }

    /// A rate in bytes per second as a fraction of what copies reach.
    pub(super) fn fraction(&self, bytes_per_second: f64) -> Option<f64> {
        self.bandwidth.copy_bytes_per_second.map(|limit| bytes_per_second / limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work { weight_bytes: 2e9, cache_bytes: 1e9, operations: 4e12 };

    fn roof(copy: Option<f64>, operations: Option<f64>) -> Roof {
        let bandwidth = Bandwidth { copy_bytes_per_second: copy, upload_bytes_per_second: None };
        Roof { bandwidth, operations_per_second: operations }
    }

    #[test]
    fn the_slower_of_memory_and_arithmetic_is_the_limit() {
        assert_eq!(roof(Some(3e12), None).seconds(&WORK), Some((1e-3, "memory")));
        assert_eq!(roof(Some(3e12), Some(1e15)).seconds(&WORK), Some((4e-3, "arithmetic")));
        assert_eq!(roof(Some(3e11), Some(1e15)).seconds(&WORK), Some((1e-2, "memory")));
        assert_eq!(roof(None, None).seconds(&WORK), None);
    }

    #[test]
    fn a_result_is_a_fraction_of_its_limit_and_of_nothing_where_none_is_known() {
        let mut result = json!({});
        // A batch of 8 in a step that takes a thousandth of a second at best, twice that here.
        roof(Some(3e12), None).judge(&mut result, &WORK, 8, 4000.0);
        let number = |name: &str| result[name].as_f64().unwrap();
        assert!((number("limit_tokens_per_second") - 8000.0).abs() < 1e-6);
        assert!((number("fraction_of_limit") - 0.5).abs() < 1e-9);
        assert!((number("gigabytes_per_second") - 1500.0).abs() < 1e-6);
        roof(None, None).judge(&mut result, &WORK, 8, 4000.0);
        assert!(result["fraction_of_limit"].is_null() && result["limit_tokens_per_second"].is_null());
    }
}
