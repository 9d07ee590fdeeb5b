//! `optax.adam` with `optax.cosine_decay_schedule`.

use crate::parameters::Parameters;
use anyhow::Result;
use core::f32::consts::PI;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

pub(crate) struct Adam {
    /// Running means of the gradients and of their squares.
    means: Parameters,
    squares: Parameters,
    steps: u32,
    learning_rate: f32,
    decay_steps: f32,
}

impl Adam {
    pub(crate) fn new(
        parameters: &Parameters,
        learning_rate: f64,
        decay_steps: usize,
    ) -> Result<Self> {
        Ok(Self {
            means: parameters.zeros_like()?,
            squares: parameters.zeros_like()?,
            steps: 0,
            learning_rate: learning_rate as f32,
            decay_steps: decay_steps as f32,
        })
    }

    /// Moves the parameters against their gradients.
    pub(crate) fn step(&mut self, parameters: &mut Parameters, gradients: &Parameters) {
        let rate = self.learning_rate();
        self.steps += 1;
        // The means start at 0; these take that out. (In `f32` the difference would lose four digits in the first steps.)
        let corrections =
            [BETA1, BETA2].map(|beta| (1.0 - f64::from(beta).powi(self.steps as i32)) as f32);
        let arrays = parameters.values_mut().zip(gradients.values());
        let states = self.means.values_mut().zip(self.squares.values_mut());
        for ((parameters, gradients), (means, squares)) in arrays.zip(states) {
            let numbers = parameters.iter_mut().zip(gradients);
            for ((parameter, &gradient), (mean, square)) in
                numbers.zip(means.iter_mut().zip(squares))
            {
                *mean = (1.0 - BETA1) * gradient + BETA1 * *mean;
                *square = (1.0 - BETA2) * (gradient * gradient) + BETA2 * *square;
                let (mean, square) = (*mean / corrections[0], *square / corrections[1]);
                *parameter -= rate * (mean / (square.sqrt() + EPSILON));
            }
        }
    }

    /// A half wave of the cosine, from the whole rate to none.
    fn learning_rate(&self) -> f32 {
        let done = (self.steps as f32).min(self.decay_steps) / self.decay_steps;
        self.learning_rate * (0.5 * (1.0 + (PI * done).cos()))
    }
}
