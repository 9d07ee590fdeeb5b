//! Axes: where a number lies, and which numbers are written beside the axis.

/// How numbers are spread over an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spread {
    Linear,
    /// By their logarithms; numbers must be positive.
    Logarithmic,
}

/// An axis from one pixel to another.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    spread: Spread,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// From 0 to a round number that no value passes.
    pub(super) fn linear(values: impl Iterator<Item = f64>, [from, to]: [f64; 2]) -> Self {
        let largest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let step = step(largest);
        Self {
            spread: Spread::Linear,
            low: 0.0,
            high: step * (largest / step).ceil().max(1.0),
            from,
            to,
        }
    }

    /// Between powers of `base` around all values.
    pub(super) fn logarithmic(
        values: impl Iterator<Item = f64>,
        base: f64,
        [from, to]: [f64; 2],
    ) -> Self {
        let positive = values.filter(|value| value.is_finite() && *value > 0.0);
        let logarithms: Vec<f64> = positive.map(|value| value.log(base)).collect();
        let low = logarithms
            .iter()
            .copied()
            .fold(f64::INFINITY, f64::min)
            .floor();
        let high = logarithms
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max)
            .ceil();
        let (low, high) = if low.is_finite() {
            (low, high)
        } else {
            (0.0, 1.0)
        };
        Self {
            spread: Spread::Logarithmic,
            low: base.powf(low),
            high: base.powf(high.max(low + 1.0)),
            from,
            to,
        }
    }

    /// The pixel of a value; values outside lie on the nearer end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = match self.spread {
            Spread::Linear => (value - self.low) / (self.high - self.low),
            Spread::Logarithmic if value <= 0.0 => 0.0,
            Spread::Logarithmic => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        self.from + (self.to - self.from) * share.clamp(0.0, 1.0)
    }

    /// Numbers to write: round steps, or powers of 10.
    pub(super) fn ticks(&self) -> Vec<f64> {
        match self.spread {
            Spread::Linear => {
                let step = step(self.high);
                let count = (self.high / step).round() as usize;
                (0..=count).map(|n| step * n as f64).collect()
            }
            Spread::Logarithmic => {
                // A little room, since powers are rounded.
                let first = (self.low.log10() - 1e-9).ceil() as i32;
                let last = (self.high.log10() + 1e-9).floor() as i32;
                let every = ((last - first) / 8).max(0) as usize + 1;
                (first..=last)
                    .step_by(every)
                    .map(|power| 10f64.powi(power))
                    .collect()
            }
        }
    }
}

/// A round step of which four to ten make up `largest`.
fn step(largest: f64) -> f64 {
    if largest <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(largest.log10().floor());
    let steps = [0.1, 0.2, 0.5, 1.0].map(|step| step * power);
    steps
        .into_iter()
        .find(|step| largest / step <= 10.0 + 1e-9)
        .unwrap_or(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_axes_begin_at_zero_and_end_round() {
        let axis = Axis::linear([0.3, 0.93].into_iter(), [100.0, 200.0]);
        assert_eq!(axis.at(0.0), 100.0);
        assert!((axis.at(1.0) - 200.0).abs() < 1e-9);
        assert_eq!(axis.ticks().len(), 11);
        assert_eq!(
            Axis::linear([].into_iter(), [0.0, 1.0]).ticks().last(),
            Some(&1.0)
        );
    }

    #[test]
    fn logarithmic_axes_hold_every_value() {
        let axis = Axis::logarithmic([0.02, 700.0, 0.0, f64::NAN].into_iter(), 10.0, [300.0, 0.0]);
        assert_eq!(axis.at(0.01), 300.0);
        assert!(axis.at(1000.0).abs() < 1e-9);
        assert_eq!(axis.ticks().len(), 6);
        assert_eq!(axis.at(0.0), 300.0);
        let doubling = Axis::logarithmic([256.0, 8192.0].into_iter(), 2.0, [0.0, 5.0]);
        assert!((doubling.at(512.0) - 1.0).abs() < 1e-9);
    }
}
