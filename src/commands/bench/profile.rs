//! Where the time of a step goes, by part of a layer: time, bytes and bandwidth of each, and what lies between them.

use serde_json::{Value as Json, json};
use worker_orcd_core::{PlanProfile, ProfileEntry};

use super::median;
use super::roof::Roof;
use super::work::{StepTokens, Work, Workload};
use crate::commands::CommandError;
use crate::engine::direct::DirectRun;

/// The launches of one label in all layers.
#[derive(Debug, Default, PartialEq)]
struct Part {
    name: String,
    launches: usize,
    time_us: f64,
    work: Work,
}

/// Adds the parts of steps up.
#[derive(Debug)]
pub(super) struct Profiler<'a> {
    workload: Workload<'a>,
    repeats: usize,
    /// In order of first appearance.
    parts: Vec<Part>,
    /// Of nodes that no label names.
    unnamed: Work,
}

impl<'a> Profiler<'a> {
    /// Nothing yet; each launch's time will be the median of `repeats`.
    pub(super) fn new(workload: Workload<'a>, repeats: usize) -> Self {
        Self { workload, repeats: repeats.max(1), parts: vec![], unnamed: Work::default() }
    }

    /// Profiles a step of one sequence, with one output row.
    pub(super) fn add(
        &mut self,
        run: &mut DirectRun,
        tokens: &[u32],
        step: StepTokens,
    ) -> Result<(), CommandError> {
        // The first profiled step pays for what only profiling needs.
        run.profile(tokens, step.start)?;
        let profiles = (0..self.repeats)
            .map(|_| run.profile(tokens, step.start))
            .collect::<Result<Vec<PlanProfile>, _>>()?;
        self.add_entries(&medians(&profiles), StepTokens { rows: 1, ..step });
        Ok(())
    }

    /// A node's bytes count where its label comes last: what bears it before only prepares.
    fn add_entries(&mut self, entries: &[ProfileEntry], step: StepTokens) {
        let mut works = vec![Work::default(); entries.len()];
        for node in self.workload.program.nodes() {
            let names = |entry: &ProfileEntry| entry.label.split('+').any(|label| label == node.label);
            let place = entries.iter().rposition(names).and_then(|index| works.get_mut(index));
            *place.unwrap_or(&mut self.unnamed) += self.workload.node(node, &step);
        }
        for (entry, work) in entries.iter().zip(works) {
            let name = entry.label.split('+').map(of_layer).collect::<Vec<_>>().join("+");
            let index = self.parts.iter().position(|part| part.name == name).unwrap_or_else(|| {
                self.parts.push(Part { name, ..Part::default() });
                self.parts.len() - 1
            });
            if let Some(part) = self.parts.get_mut(index) {
                part.launches += 1;
                part.time_us += entry.time_us;
                part.work += work;
            }
        }
    }

    /// All parts beside the time that the same steps take when nobody looks.
    ///
    /// What lies between the parts is that time less their sum: waiting, launching, the host's share. It is negative
    /// where neighbours overlap, which a clock between them forbids, or where the clocks themselves cost more.
    pub(super) fn report(&self, roof: &Roof, unprofiled_us: f64) -> Json {
        let total: f64 = self.parts.iter().map(|part| part.time_us).sum();
        let launches: usize = self.parts.iter().map(|part| part.launches).sum();
        let row = |part: &Part| {
            let per_second = part.work.bytes() / part.time_us * 1e6;
            json!({
                "part": part.name, "launches": part.launches, "time_us": part.time_us,
                "us_per_launch": part.time_us / part.launches.max(1) as f64, "share": part.time_us / total,
                "weight_bytes": part.work.weight_bytes.round() as u64, "cache_bytes": part.work.cache_bytes.round() as u64,
                "gigabytes_per_second": per_second / 1e9, "fraction_of_bandwidth": roof.fraction(per_second),
            })
        };
        json!({
            "measured": "each part by itself with a clock around it, which forbids overlap and costs time; \
                         unprofiled_us is the same work without clocks, gaps_us that less the parts",
            "total_us": total, "unprofiled_us": unprofiled_us, "gaps_us": unprofiled_us - total,
            "gaps_us_per_launch": (unprofiled_us - total) / launches.max(1) as f64, "launches": launches,
            "unnamed_bytes": self.unnamed.bytes().round() as u64,
            "parts": self.parts.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// The median time of each entry over profiles of one plan, whose entries are the same.
fn medians(profiles: &[PlanProfile]) -> Vec<ProfileEntry> {
    let entries = profiles.first().map_or(&[][..], |profile| &profile.entries);
    let middle = |(index, entry): (usize, &ProfileEntry)| {
        let times = profiles.iter().filter_map(|profile| profile.entries.get(index));
        let mut times: Vec<f64> = times.map(|entry| entry.time_us).collect();
        times.sort_by(f64::total_cmp);
        ProfileEntry { label: entry.label.clone(), time_us: median(&times) }
    };
    entries.iter().enumerate().map(middle).collect()
}

/// A label without its layer's number.
fn of_layer(label: &str) -> String {
    label.split('.').filter(|part| part.parse::<u32>().is_err()).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use worker_orcd_core::{DType, KvElement, ProgramBuilder, StepShape, WeightId, WeightSpec};

    use super::*;

    fn entry(label: &str, time_us: f64) -> ProfileEntry {
        ProfileEntry { label: label.to_owned(), time_us }
    }

    #[test]
    fn fused_and_prepared_nodes_count_once_and_layers_add_up() {
        let specs = [
            WeightSpec::matrix("table", DType::F32, 4, 32),
            WeightSpec::matrix("square", DType::F32, 32, 32),
            WeightSpec::vector("norm", 1, 32),
        ];
        let shape = StepShape { tokens: 1, rows: 1, sequences: 1 };
        let mut b = ProgramBuilder::new("two layers", shape, &specs);
        let mut x = b.embed("embed", WeightId(0)).unwrap();
        for layer in 0..2 {
            x = b.rms_norm(format!("layers.{layer}.norm"), x, WeightId(2), 0.0).unwrap();
            x = b.linear(format!("layers.{layer}.up"), x, WeightId(1), None).unwrap();
        }
        let program = b.finish();
        let workload = Workload { program: &program, specs: &specs, element: KvElement::F16 };
        let entries = [
            entry("layers.0.up", 1.0),
            entry("layers.0.norm+layers.0.up", 4.0),
            entry("layers.1.up", 2.0),
            entry("layers.1.norm+layers.1.up", 8.0),
        ];
        let mut profiler = Profiler::new(workload, 1);
        let step = StepTokens::decode(1, 0);
        profiler.add_entries(&entries, step);
        let [prepared, fused] = &profiler.parts[..] else { panic!("{:?}", profiler.parts) };
        assert_eq!((prepared.name.as_str(), prepared.launches), ("layers.up", 2));
        assert_eq!(prepared.work, Work::default());
        assert_eq!((fused.name.as_str(), fused.launches), ("layers.norm+layers.up", 2));
        let bytes = 2.0 * (32.0 * 32.0 * 4.0 + 32.0 * 4.0);
        assert!((fused.work.weight_bytes - bytes).abs() < 1e-9, "{fused:?}");
        assert!((profiler.unnamed.bytes() - 128.0).abs() < 1e-9, "the embedding's row: {profiler:?}");
        let report = profiler.report(&Roof::default(), 20.0);
        assert_eq!((report["total_us"].as_f64(), report["gaps_us"].as_f64()), (Some(15.0), Some(5.0)));
        assert_eq!(report["parts"][1]["share"], 0.8);
        let rate = report["parts"][1]["gigabytes_per_second"].as_f64().unwrap();
        assert!((rate - bytes / 12.0 / 1e3).abs() < 1e-9);
    }

    #[test]
    fn each_entry_has_its_own_median() {
        let profile = |first, second| PlanProfile { entries: vec![entry("a", first), entry("b", second)] };
        let found = medians(&[profile(3.0, 1.0), profile(1.0, 9.0), profile(2.0, 5.0)]);
        assert_eq!(found, [entry("a", 2.0), entry("b", 5.0)]);
    }
}
