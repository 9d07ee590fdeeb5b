//! The next character from its logits.

use anyhow::Result;
use attn_layers::random::{self, Counters, DefaultWidth, Key};

/// How characters are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sampling {
    /// What logits are divided by; at 0 the most likely character is taken.
    pub(crate) temperature: f32,
    /// How many of the most likely characters may be drawn; all without it.
    pub(crate) top_k: Option<usize>,
    pub(crate) seed: u32,
}

impl Sampling {
    /// Draws the `token`-th character of a continuation, the same for the same numbers.
    pub(crate) fn draw(&self, logits: &[f32], continuation: u32, token: u32) -> Result<usize> {
        if self.temperature == 0.0 {
            return Ok(most_likely(logits));
        }
        let key = Key::new(self.seed.into(), DefaultWidth::Bits32)
            .fold_in(continuation)
            .fold_in(token);
        let mut uniform = [0.0f64];
        random::uniform(key, Counters::PerElement, 0.0, 1.0, &mut uniform)?;
        Ok(self.at(logits, uniform[0]))
    }

    /// The character at this part, from 0 to 1, of all probability, the likeliest first.
    fn at(&self, logits: &[f32], part: f64) -> usize {
        let mut ids: Vec<usize> = (0..logits.len()).collect();
        ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        ids.truncate(self.top_k.unwrap_or(usize::MAX).max(1));
        let weight = |id: usize| f64::from((logits[id] - logits[ids[0]]) / self.temperature).exp();
        let mut rest = part * ids.iter().map(|&id| weight(id)).sum::<f64>();
        for &id in &ids {
            rest -= weight(id);
            if rest < 0.0 {
                return id;
            }
        }
        // Rounding may leave a little at the end.
        ids[ids.len() - 1]
    }
}

/// The id of the largest logit, the first of equals.
pub(crate) fn most_likely(logits: &[f32]) -> usize {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [0.5, 2.0, -1.0, 1.0];

    fn sampling(temperature: f32, top_k: Option<usize>) -> Sampling {
        Sampling {
            temperature,
            top_k,
            seed: 3,
        }
    }

    /// How often each character is drawn.
    fn shares(sampling: Sampling) -> [f64; 4] {
        let mut counts = [0.0; 4];
        for token in 0..4000 {
            counts[sampling.draw(&LOGITS, 0, token).unwrap()] += 1.0 / 4000.0;
        }
        counts
    }

    #[test]
    fn characters_come_as_often_as_they_are_likely() {
        for (temperature, top_k) in [(1.0, None), (0.5, None), (2.0, Some(2)), (1.0, Some(9))] {
            let got = shares(sampling(temperature, top_k));
            let allowed = |id: usize| top_k != Some(2) || id == 1 || id == 3;
            let weight = |id: usize| match allowed(id) {
                true => f64::from(LOGITS[id] / temperature).exp(),
                false => 0.0,
            };
            let sum: f64 = (0..4).map(weight).sum();
            for (id, got) in got.into_iter().enumerate() {
                let wanted = weight(id) / sum;
                // Five standard deviations of a mean of 4000.
                let deviation = (wanted * (1.0 - wanted) / 4000.0).sqrt();
                assert!(
                    (got - wanted).abs() <= 5.0 * deviation,
                    "{id} at {temperature}, {top_k:?}: {got}, {wanted} is wanted"
                );
            }
        }
    }

    #[test]
    fn without_temperature_the_likeliest_is_taken() {
        for token in 0..20 {
            assert_eq!(sampling(0.0, None).draw(&LOGITS, 1, token).unwrap(), 1);
            assert_eq!(sampling(5.0, Some(1)).draw(&LOGITS, 1, token).unwrap(), 1);
        }
    }

    #[test]
    fn every_number_counts() {
        let many = |sampling: Sampling, continuation| -> Vec<usize> {
            let draw = |token| sampling.draw(&LOGITS, continuation, token).unwrap();
            (0..50).map(draw).collect()
        };
        let first = many(sampling(1.0, None), 0);
        assert_eq!(first, many(sampling(1.0, None), 0));
        assert_ne!(first, many(sampling(1.0, None), 1));
        let other = Sampling {
            seed: 4,
            ..sampling(1.0, None)
        };
        assert_ne!(first, many(other, 0));
    }
}
