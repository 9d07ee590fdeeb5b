//! The training loop: which images, which keys, which step of the optimizer.

use crate::adam::Adam;
use crate::data::{Data, Settings};
use crate::model::Description;
use crate::parameters::Parameters;
use crate::pass::{Pass, loss_and_gradients};
use anyhow::Result;
use attn_layers::Cpu;
use attn_layers::random::{Bits, Counters, DefaultWidth, Key};

pub(crate) struct Training<'a> {
    description: &'a Description,
    cpu: &'a Cpu,
    data: &'a Data,
    settings: Settings,
    dropout: bool,
    parameters: Parameters,
    optimizer: Adam,
    /// From which each step's dropout key is split.
    key: Key,
    epochs: u32,
}

/// What an epoch gives.
pub(crate) struct Epoch {
    /// Of its last step.
    pub(crate) loss: f32,
}

impl<'a> Training<'a> {
    /// Training from Flax's initial parameters.
    pub(crate) fn new(
        description: &'a Description,
        cpu: &'a Cpu,
        data: &'a Data,
        settings: &Settings,
        dropout: bool,
    ) -> Result<Self> {
        let parameters = Parameters::initial(description, settings.seed)?;
        let steps = settings.epochs * (data.train.len() / settings.batch);
        Ok(Self {
            optimizer: Adam::new(&parameters, settings.learning_rate, steps)?,
            key: Key::new(settings.seed + 1, DefaultWidth::Bits32),
            epochs: 0,
            settings: *settings,
            description,
            cpu,
            data,
            dropout,
            parameters,
        })
    }

    /// Trains on every image once but for the last incomplete batch.
    pub(crate) fn epoch(&mut self) -> Result<Epoch> {
        let mut loss = f32::NAN;
        self.steps(usize::MAX, |step| loss = step)?;
        Ok(Epoch { loss })
    }

    /// As [`Training::epoch`], but at most `limit` steps, each of whose losses `watch` sees.
    pub(crate) fn steps(&mut self, limit: usize, mut watch: impl FnMut(f32)) -> Result<()> {
        let order = self.order()?;
        for rows in order.chunks_exact(self.settings.batch).take(limit) {
            watch(self.step(rows)?);
        }
        self.epochs += 1;
        Ok(())
    }

    pub(crate) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub(crate) fn into_parameters(self) -> Parameters {
        self.parameters
    }

    fn step(&mut self, rows: &[usize]) -> Result<f32> {
        let own = self.split()?;
        let pass = Pass {
            description: self.description,
            cpu: self.cpu,
            parameters: &self.parameters,
            dropout_rate: self.settings.dropout_rate,
            dropout: self.dropout.then_some(own),
        };
        let (loss, gradients) = loss_and_gradients(&pass, &self.data.train.batch(rows))?;
        self.optimizer.step(&mut self.parameters, &gradients);
        Ok(loss)
    }

    /// `key, own = jax.random.split(key)`.
    fn split(&mut self) -> Result<Key> {
        let mut keys = self.key.split(2, Counters::PerElement)?;
        self.key = keys.next().unwrap_or(self.key);
        Ok(keys.next().unwrap_or(self.key))
    }

    /// The images of this epoch, sorted by random words.
    fn order(&self) -> Result<Vec<usize>> {
        let key = Key::new(self.settings.seed + 2, DefaultWidth::Bits32).fold_in(self.epochs);
        let words = Bits::of_32(key, Counters::PerElement, self.data.train.len() as u64)?;
        let mut order: Vec<_> = (0..self.data.train.len()).collect();
        order.sort_by_key(|&row| words.at(row as u64));
        Ok(order)
    }
}
