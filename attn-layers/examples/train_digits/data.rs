//! Images, labels, and what Flax made of them.

use crate::model::{Classifier, Description, SIDE};
use crate::parameters::Parameters;
use anyhow::{Context, Result, ensure};
use attn_layers::io::Tree;
use attn_layers::{Cpu, DType};
use serde_json::Value;

/// Reads a file beside this one.
pub(crate) fn read(name: &str) -> Result<Vec<u8>> {
    let path = format!(
        "{}/examples/train_digits/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read(&path).context(path)
}

/// Images `[images, 8, 8]` with their labels.
pub(crate) struct Images {
    pub(crate) pixels: Vec<f32>,
    pub(crate) labels: Vec<usize>,
}

impl Images {
    fn load(file: &str) -> Result<Self> {
        let bytes = read(file)?;
        let tree = Tree::read(&bytes)?;
        let values = |name: &str| -> Result<Vec<f32>> {
            let tensor = tree.tensor(name);
            Ok(tensor
                .with_context(|| format!("{file}: there is no {name}"))?
                .to_vec()?)
        };
        let labels = values("labels")?.into_iter().map(|label| label as usize);
        let images = Self {
            pixels: values("images")?,
            labels: labels.collect(),
        };
        ensure!(
            images.pixels.len() == images.labels.len() * SIDE * SIDE,
            "{file}: images and labels do not fit"
        );
        Ok(images)
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// Those of `rows`, in that order.
    pub(crate) fn batch(&self, rows: &[usize]) -> Self {
        let of = |row: &usize| &self.pixels[row * SIDE * SIDE..][..SIDE * SIDE];
        Self {
            pixels: rows.iter().flat_map(of).copied().collect(),
            labels: rows.iter().map(|&row| self.labels[row]).collect(),
        }
    }
}

/// The digits: to train on, and held out.
pub(crate) struct Data {
    pub(crate) train: Images,
    test: Images,
}

impl Data {
    pub(crate) fn load() -> Result<Self> {
        Ok(Self {
            train: Images::load("train.safetensors")?,
            test: Images::load("../digits/digits_test.safetensors")?,
        })
    }

    /// The part of the held-out images that the classifier of the example `digits` gets right with these parameters.
    pub(crate) fn accuracy(
        &self,
        description: &Description,
        cpu: &Cpu,
        parameters: &Parameters,
    ) -> Result<f32> {
        let file = parameters.to_file()?;
        let tree = Tree::read(&file)?;
        let classifier = Classifier::new(*description, &tree, DType::F32)?;
        let logits = classifier.classify(cpu, &self.test.pixels, false)?.logits;
        let right = logits
            .chunks_exact(classifier.classes())
            .zip(&self.test.labels)
            .filter(|(logits, label)| largest(logits) == **label)
            .count();
        Ok(right as f32 / self.test.len() as f32)
    }
}

/// The index of the first largest number.
fn largest(numbers: &[f32]) -> usize {
    (1..numbers.len()).fold(0, |best, i| match numbers[i] > numbers[best] {
        true => i,
        false => best,
    })
}

/// How the classifier is trained.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) seed: i64,
    pub(crate) epochs: usize,
    pub(crate) batch: usize,
    pub(crate) learning_rate: f64,
    pub(crate) dropout_rate: f64,
}

/// What `record.py` recorded of Flax.
pub(crate) struct Recorded {
    pub(crate) settings: Settings,
    /// Path and SHA-1 of each initial parameter, in Flax's order.
    pub(crate) parameters: Vec<(String, String)>,
    /// Losses of the first steps without dropout.
    pub(crate) losses: Vec<f64>,
    /// The same in `float64`.
    pub(crate) losses_in_float64: Vec<f64>,
    /// The loss of the first step with dropout.
    pub(crate) first_loss_with_dropout: f64,
    accuracy_with_dropout: Vec<f32>,
    accuracy_without_dropout: Vec<f32>,
}

impl Recorded {
    pub(crate) fn load() -> Result<Self> {
        let json: Value = serde_json::from_slice(&read("recorded.json")?)?;
        let list = |name: &str| {
            json[name]
                .as_array()
                .with_context(|| format!("{name} is missing"))
        };
        let numbers = |name: &str| -> Result<Vec<f64>> {
            let numbers = list(name)?.iter().map(Value::as_f64);
            numbers
                .collect::<Option<_>>()
                .with_context(|| format!("{name} is no list of numbers"))
        };
        let narrow = |name: &str| -> Result<Vec<f32>> {
            Ok(numbers(name)?.into_iter().map(|x| x as f32).collect())
        };
        let pair = |value: &Value| Some((value[0].as_str()?.into(), value[1].as_str()?.into()));
        let parameters = list("parameters")?.iter().map(pair);
        Ok(Self {
            settings: Settings::parse(&json["training"]).context("training")?,
            parameters: parameters.collect::<Option<_>>().context("parameters")?,
            losses: numbers("losses")?,
            losses_in_float64: numbers("losses_in_float64")?,
            first_loss_with_dropout: json["first_loss_with_dropout"]
                .as_f64()
                .context("first_loss_with_dropout is missing")?,
            accuracy_with_dropout: narrow("accuracy_with_dropout")?,
            accuracy_without_dropout: narrow("accuracy_without_dropout")?,
        })
    }

    /// Flax's test accuracy after each epoch.
    pub(crate) fn accuracy(&self, dropout: bool) -> &[f32] {
        match dropout {
            true => &self.accuracy_with_dropout,
            false => &self.accuracy_without_dropout,
        }
    }
}

impl Settings {
    fn parse(json: &Value) -> Option<Self> {
        Some(Self {
            seed: json["seed"].as_i64()?,
            epochs: json["epochs"].as_u64()? as usize,
            batch: json["batch"].as_u64().filter(|batch| *batch > 0)? as usize,
            learning_rate: json["learning_rate"].as_f64()?,
            dropout_rate: json["dropout_rate"].as_f64()?,
        })
    }
}
