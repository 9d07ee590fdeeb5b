//! Random numbers of a case: its keys, the settings that they are drawn with, and which weights a dropout keeps.

use super::case::Case;
use anyhow::{Context, Result, ensure};
use attn_layers::core::{AttentionShape, Dropout};
use attn_layers::random::{Convention, Counters, DefaultWidth, Key, PathNames, Rngs, Stream};
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{DType, Dims, ScalarType};

/// Most elements of a mask of kept weights that a case may ask for.
const MOST_WEIGHTS: usize = 1 << 24;

impl Case {
    /// The words of the key that is an argument of the call.
    pub(crate) fn dropout_rng(&self) -> Result<Option<[u32; 2]>> {
        let name = self.call.text("dropout_rng")?;
        Ok(name.map(|name| self.key(name)).transpose()?.map(Key::words))
    }

    /// The streams given to `apply` or `init`. Of the others nothing is ever drawn.
    pub(crate) fn streams(&self) -> Result<Rngs> {
        let stream = |name| {
            let tensor = self.rngs.text(name)?;
            tensor.map(|tensor| self.key(tensor)).transpose()
        };
        Ok(Rngs {
            params: stream("params")?,
            dropout: stream("dropout")?,
            convention: self.convention(),
            names: match self.separator {
                true => PathNames::Separated,
                false => PathNames::Joined,
            },
            ..Rngs::default()
        })
    }

    /// How JAX was set up.
    pub(crate) fn convention(&self) -> Convention {
        Convention {
            counters: match self.partitionable {
                true => Counters::PerElement,
                false => Counters::SplitInHalves,
            },
            width: match self.x64 {
                true => DefaultWidth::Bits64,
                false => DefaultWidth::Bits32,
            },
        }
    }

    /// Checks that the key `words` is that of the seed, where the case says it.
    pub(crate) fn check_seed(&self, key: Key) -> Result<()> {
        let Some(seed) = self.seed else {
            return Ok(());
        };
        let made = Key::new(seed, self.convention().width);
        ensure!(
            made == key,
            "the seed {seed} makes the key {:?}, wanted {:?}",
            made.words(),
            key.words()
        );
        Ok(())
    }

    fn key(&self, name: &str) -> Result<Key> {
        let key = self.inputs.view(name)?;
        ensure!(
            key.scalar() == ScalarType::U32 && key.shape().rank() == 1,
            "the key {name} is {key:?}; words of uint32 are needed"
        );
        let words: Vec<u32> = key.iter_f64().map(|word| word as u32).collect();
        Ok(Key::from_slice(&words)?)
    }
}

/// What a dropout draws for.
pub(crate) struct Drawn {
    pub(crate) key: Key,
    pub(crate) rate: f64,
    pub(crate) broadcast: bool,
    pub(crate) batch: Vec<usize>,
    pub(crate) num_heads: usize,
    pub(crate) query_length: usize,
    pub(crate) key_length: usize,
}

impl Drawn {
    /// The dropout of the layer's call, if any is active.
    pub(crate) fn in_layer(
        case: &Case,
        query_length: usize,
        key_length: usize,
    ) -> Result<Option<Self>> {
        let rate = case.config.number("dropout_rate")?.unwrap_or(0.0);
        let deterministic = case.config.flag("deterministic")?;
        let deterministic = deterministic.or(case.call.flag("deterministic")?);
        if rate <= 0.0 || deterministic != Some(false) {
            return Ok(None);
        }
        let key = match case.dropout_rng()? {
            Some(words) => Key::from_words(words),
            None => case
                .streams()?
                .make_rng(Stream::Dropout, &case.path(), case.make_rng_count)?,
        };
        let inputs_q = case.tensor("inputs_q")?;
        let [batch @ .., _, _] = &inputs_q.shape()[..] else {
            return Ok(None);
        };
        Ok(Some(Self {
            key,
            rate,
            broadcast: case.config.flag("broadcast_dropout")?.unwrap_or(true),
            batch: batch.to_vec(),
            num_heads: case.config.size("num_heads")?.unwrap_or(0),
            query_length,
            key_length,
        }))
    }

    /// The dropout of the function's call, if any is active.
    pub(crate) fn in_function(
        case: &Case,
        query: &TensorView<'_>,
        key: &TensorView<'_>,
    ) -> Result<Option<Self>> {
        let rate = case.call.number("dropout_rate")?.unwrap_or(0.0);
        let off = case.call.flag("deterministic")?.unwrap_or(false);
        let (false, true, Some(words)) = (off, rate > 0.0, case.dropout_rng()?) else {
            return Ok(None);
        };
        let ([batch @ .., query_length, num_heads, _], [.., key_length, _, _]) =
            (&query.shape()[..], &key.shape()[..])
        else {
            return Ok(None);
        };
        Ok(Some(Self {
            key: Key::from_words(words),
            rate,
            broadcast: case.call.flag("broadcast_dropout")?.unwrap_or(true),
            batch: batch.to_vec(),
            num_heads: *num_heads,
            query_length: *query_length,
            key_length: *key_length,
        }))
    }

    /// 1 where a weight is kept, 0 where it is dropped: one mask, or one for each head of each batch entry.
    pub(crate) fn kept(&self, convention: Convention) -> Result<Tensor> {
        let heads = |length| Dims::new(&[&self.batch[..], &[length, self.num_heads, 1]].concat());
        let (query, key) = (heads(self.query_length)?, heads(self.key_length)?);
        let shape = AttentionShape::of(&query, &key, &key)?;
        // The dtype decides on the multiplier, not on the mask.
        let dropout = Dropout::new(self.key, self.rate, DType::F32, self.broadcast, convention)?;
        let bits = dropout.context("a rate of 0 drops nothing")?.bits(&shape)?;
        let (matrices, leading) = match self.broadcast {
            true => (1, vec![1; self.batch.len() + 1]),
            false => (
                shape.batch * shape.num_heads,
                [self.batch.as_slice(), &[self.num_heads]].concat(),
            ),
        };
        let dims = [leading.as_slice(), &[self.query_length, self.key_length]].concat();
        let elements = dims.iter().try_fold(1usize, |n, &axis| n.checked_mul(axis));
        ensure!(
            elements.is_some_and(|elements| elements <= MOST_WEIGHTS),
            "a mask of shape {dims:?} is too large for a case"
        );
        let mut kept = Vec::new();
        for matrix in 0..matrices {
            for query in 0..self.query_length {
                let row = 0..self.key_length;
                kept.extend(row.map(|key| u8::from(bits.keeps(matrix, query, key))));
            }
        }
        Ok(TensorView::new(ScalarType::U8, &dims, &kept)?.to_tensor()?)
    }
}
