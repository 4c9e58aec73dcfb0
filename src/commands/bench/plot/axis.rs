//! Axes of a plot: what they span, where their ticks are, and where a value lies on them.

/// How values become distances.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scale {
    Linear,
    Logarithmic,
}

/// One axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// Logarithmic, with a tick at every power of two.
    pub(super) fn powers_of_two(low: f64, high: f64) -> Self {
        let first = low.max(1.0).log2().floor();
        let last = high.max(1.0).log2().ceil().max(first + 1.0);
        let ticks = (first as i32..=last as i32).map(|power| 2_f64.powi(power)).collect();
        Self::spanning(Scale::Logarithmic, ticks)
    }

    /// Logarithmic, with ticks at 1, 2 and 5 times every power of ten; over more than three of those at these alone.
    pub(super) fn decades(low: f64, high: f64) -> Self {
        let (low, high) = (low.max(1e-6), high.max(1e-6));
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let steps: &[f64] = if high / low > 1e3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let all: Vec<f64> =
            decades.flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power))).collect();
        let below = all.iter().rposition(|tick| *tick <= low).unwrap_or(0);
        let above = all.iter().position(|tick| *tick >= high).unwrap_or(all.len() - 1).max(below + 1);
        Self::spanning(Scale::Logarithmic, all.get(below..=above).unwrap_or(&all).to_vec())
    }

    /// Linear from zero, with about five ticks at round numbers.
    pub(super) fn from_zero(_: f64, high: f64) -> Self {
        let high = high.max(1.0);
        let power = 10_f64.powf((high / 5.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| high / step <= 5.0);
        let step = step.unwrap_or(high);
        let count = (high / step).ceil() as i32;
        Self::spanning(Scale::Linear, (0..=count).map(|index| f64::from(index) * step).collect())
    }

    fn spanning(scale: Scale, ticks: Vec<f64>) -> Self {
        let (low, high) = (ticks.first().copied().unwrap_or(0.0), ticks.last().copied().unwrap_or(1.0));
        Self { scale, low, high, ticks }
    }

    /// Ascending; the first and the last are the axis's ends.
    pub(super) fn ticks(&self) -> &[f64] {
        &self.ticks
    }

    /// Where a value lies between the ends, 0 to 1.
    pub(super) fn share(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => (value / self.low).ln() / (self.high / self.low).ln(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_span_what_is_drawn() {
        assert_eq!(Axis::powers_of_two(1.0, 64.0).ticks(), [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]);
        assert_eq!(Axis::powers_of_two(3.0, 3.0).ticks(), [2.0, 4.0]);
        assert_eq!(Axis::powers_of_two(4.0, 4.0).ticks(), [4.0, 8.0]);
        assert_eq!(Axis::decades(353.0, 14_800.0).ticks(), [200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4]);
        assert_eq!(Axis::decades(353.0, 490_000.0).ticks(), [100.0, 1e3, 1e4, 1e5, 1e6]);
        assert_eq!(Axis::decades(100.0, 100.0).ticks(), [100.0, 200.0]);
        assert_eq!(Axis::from_zero(64.0, 3500.0).ticks(), [0.0, 1000.0, 2000.0, 3000.0, 4000.0]);
        assert_eq!(Axis::from_zero(0.0, 0.0).ticks().len(), 6);
    }

    #[test]
    fn shares_run_from_end_to_end() {
        let axis = Axis::powers_of_two(1.0, 64.0);
        for (value, share) in [(1.0, 0.0), (8.0, 0.5), (64.0, 1.0)] {
            assert!((axis.share(value) - share).abs() < 1e-12, "{value}");
        }
        assert!((Axis::from_zero(0.0, 4000.0).share(1000.0) - 0.25).abs() < 1e-12);
    }
}
