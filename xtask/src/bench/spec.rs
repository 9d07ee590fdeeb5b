//! What a case computes: its kind and sizes, read from and written to the worker protocol's JSON.

use anyhow::{Context, Result, bail};
use attn_core::DType;
use serde_json::{Map, Value, json};

/// A case: what is computed, on which inputs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spec {
    /// Its name.
    pub(crate) name: String,
    /// The name of its inputs, which several cases may share.
    pub(crate) data: String,
    /// The dtype that it computes in; inputs are `f32` and are rounded before the clock starts.
    pub(crate) dtype: DType,
    pub(crate) work: Work,
}

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Work {
    /// Self-attention with its dense layers and biases.
    Layer(LayerSizes, Pass),
    /// The attention core.
    Core(CoreSizes),
    /// A product of two matrices, the right one known beforehand.
    Product(ProductSizes),
}

/// How much of a layer is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pass {
    Forward,
    /// Forward and the gradients of the input and of every parameter.
    Train,
    /// Forward with dropout of attention weights, one mask for all heads and batch entries.
    Dropout {
        rate: f64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerSizes {
    pub(crate) batch: usize,
    pub(crate) length: usize,
    pub(crate) features: usize,
    pub(crate) heads: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CoreSizes {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    /// Heads of keys and values, each shared by as many query heads as there are for one.
    pub(crate) kv_heads: usize,
    pub(crate) query_length: usize,
    pub(crate) key_length: usize,
    pub(crate) depth: usize,
    /// Query `i` sees keys up to `i`.
    pub(crate) causal: bool,
    /// Keys from here on are padding.
    pub(crate) valid: Option<usize>,
}

/// `[rows, inner] · [inner, columns]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProductSizes {
    pub(crate) rows: usize,
    pub(crate) inner: usize,
    pub(crate) columns: usize,
}

impl Spec {
    /// Reads a request's `spec`.
    pub(crate) fn from_json(value: &Value) -> Result<Self> {
        let name = text(value, "name")?;
        let data = value["data"].as_str().unwrap_or(name);
        Ok(Self {
            name: name.to_owned(),
            data: data.to_owned(),
            dtype: dtype(value["dtype"].as_str().unwrap_or("f32"))?,
            work: Work::from_json(value)?,
        })
    }

    /// What [`Spec::from_json`] reads.
    pub(crate) fn to_json(&self) -> Value {
        let mut object = self.work.to_json();
        object.insert("name".to_owned(), json!(self.name));
        object.insert("data".to_owned(), json!(self.data));
        object.insert("dtype".to_owned(), json!(short_name(self.dtype)));
        Value::Object(object)
    }
}

impl Work {
    fn from_json(value: &Value) -> Result<Self> {
        match text(value, "kind")? {
            "layer" => Ok(Self::Layer(LayerSizes::from_json(value)?, Pass::Forward)),
            "train" => Ok(Self::Layer(LayerSizes::from_json(value)?, Pass::Train)),
            "dropout" => {
                let rate = value["p"].as_f64().context("the spec has no rate `p`")?;
                let pass = Pass::Dropout { rate };
                Ok(Self::Layer(LayerSizes::from_json(value)?, pass))
            }
            "core" => Ok(Self::Core(CoreSizes::from_json(value)?)),
            "gemm" => Ok(Self::Product(ProductSizes {
                rows: size(value, "M")?,
                inner: size(value, "K")?,
                columns: size(value, "N")?,
            })),
            other => bail!("there is no kind of case `{other}`"),
        }
    }

    fn to_json(self) -> Map<String, Value> {
        let value = match self {
            Self::Layer(sizes, pass) => {
                let (kind, rate) = match pass {
                    Pass::Forward => ("layer", None),
                    Pass::Train => ("train", None),
                    Pass::Dropout { rate } => ("dropout", Some(rate)),
                };
                json!({
                    "kind": kind, "B": sizes.batch, "L": sizes.length, "D": sizes.features, "H": sizes.heads, "p": rate,
                })
            }
            Self::Core(sizes) => json!({
                "kind": "core", "B": sizes.batch, "H": sizes.heads, "Hkv": sizes.kv_heads, "Lq": sizes.query_length,
                "Lk": sizes.key_length, "d": sizes.depth, "causal": sizes.causal, "valid": sizes.valid,
            }),
            Self::Product(sizes) => {
                json!({"kind": "gemm", "M": sizes.rows, "K": sizes.inner, "N": sizes.columns})
            }
        };
        match value {
            Value::Object(object) => object,
            _ => Map::new(),
        }
    }

    /// Floating-point operations that are of use: scores behind a mask do not count, a training step counts as three forward passes.
    pub(crate) fn flops(self) -> f64 {
        match self {
            Self::Layer(sizes, pass) => {
                let rows = (sizes.batch * sizes.length) as f64;
                let features = sizes.features as f64;
                let dense = 8.0 * rows * features * features;
                let attention = 4.0 * rows * sizes.length as f64 * features;
                let passes = if pass == Pass::Train { 3.0 } else { 1.0 };
                passes * (dense + attention)
            }
            Self::Core(sizes) => 4.0 * sizes.scores() * sizes.depth as f64,
            Self::Product(sizes) => {
                2.0 * sizes.rows as f64 * sizes.inner as f64 * sizes.columns as f64
            }
        }
    }

    /// Exponentials that softmax must make.
    pub(crate) fn exponentials(self) -> f64 {
        match self {
            Self::Layer(sizes, _) => {
                (sizes.batch * sizes.heads * sizes.length * sizes.length) as f64
            }
            Self::Core(sizes) => sizes.scores(),
            Self::Product(_) => 0.0,
        }
    }
}

impl LayerSizes {
    fn from_json(value: &Value) -> Result<Self> {
        Ok(Self {
            batch: size(value, "B")?,
            length: size(value, "L")?,
            features: size(value, "D")?,
            heads: size(value, "H")?,
        })
    }

    /// Features of one head.
    pub(crate) const fn depth(self) -> usize {
        self.features / self.heads
    }
}

impl CoreSizes {
    fn from_json(value: &Value) -> Result<Self> {
        let this = Self {
            batch: size(value, "B")?,
            heads: size(value, "H")?,
            kv_heads: size(value, "Hkv")?,
            query_length: size(value, "Lq")?,
            key_length: size(value, "Lk")?,
            depth: size(value, "d")?,
            causal: value["causal"].as_bool().unwrap_or(false),
            valid: optional_size(value, "valid")?.filter(|&valid| valid > 0),
        };
        if !this.heads.is_multiple_of(this.kv_heads) {
            bail!(
                "{} heads do not share {} heads of keys evenly",
                this.heads,
                this.kv_heads
            );
        }
        Ok(this)
    }

    /// Query heads that share one head of keys and values.
    pub(crate) const fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// How many keys, from the first on, a query sees.
    pub(crate) fn visible(self, query: usize) -> usize {
        let causal = if self.causal {
            query + 1
        } else {
            self.key_length
        };
        causal
            .min(self.valid.unwrap_or(self.key_length))
            .min(self.key_length)
    }

    /// Scores that no mask hides.
    fn scores(self) -> f64 {
        let pairs: usize = (0..self.query_length)
            .map(|query| self.visible(query))
            .sum();
        (self.batch * self.heads * pairs) as f64
    }

    /// Keys that some query sees.
    pub(crate) fn keys_read(self) -> usize {
        (0..self.query_length)
            .map(|query| self.visible(query))
            .max()
            .unwrap_or(0)
    }
}

/// The dtype's name in the protocol.
pub(crate) const fn short_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
    }
}

fn dtype(name: &str) -> Result<DType> {
    match name {
        "f32" => Ok(DType::F32),
        "f64" => Ok(DType::F64),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        other => bail!(
            "there is no dtype `{other}` here: keys and values are f32, f64, f16 or bf16, not quantised"
        ),
    }
}

fn text<'v>(value: &'v Value, key: &str) -> Result<&'v str> {
    value[key]
        .as_str()
        .with_context(|| format!("the spec has no text `{key}`"))
}

fn size(value: &Value, key: &str) -> Result<usize> {
    let size =
        optional_size(value, key)?.with_context(|| format!("the spec has no size `{key}`"))?;
    if size == 0 {
        bail!("the size `{key}` is 0");
    }
    Ok(size)
}

fn optional_size(value: &Value, key: &str) -> Result<Option<usize>> {
    match &value[key] {
        Value::Null => Ok(None),
        Value::Number(number) => {
            let size = number.as_u64().and_then(|size| usize::try_from(size).ok());
            size.map(Some)
                .with_context(|| format!("`{key}` is {number}, no size"))
        }
        other => bail!("`{key}` is {other}, no size"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases;

    #[test]
    fn a_spec_is_read_as_it_was_written() {
        for spec in cases::all() {
            assert_eq!(Spec::from_json(&spec.to_json()).unwrap(), spec);
        }
    }

    #[test]
    fn what_a_spec_lacks_is_named() {
        let missing =
            Spec::from_json(&json!({"name": "X", "kind": "gemm", "M": 1, "N": 2})).unwrap_err();
        assert!(missing.to_string().contains("`K`"));
        let quantised =
            json!({"name": "X", "kind": "gemm", "M": 1, "N": 2, "K": 3, "dtype": "q8_0"});
        assert!(
            Spec::from_json(&quantised)
                .unwrap_err()
                .to_string()
                .contains("quantised")
        );
        let groups = json!({"name": "X", "kind": "core", "B": 1, "H": 3, "Hkv": 2, "Lq": 1, "Lk": 1, "d": 1});
        assert!(Spec::from_json(&groups).is_err());
    }

    #[test]
    fn masked_scores_do_not_count() {
        let sizes = CoreSizes {
            batch: 1,
            heads: 2,
            kv_heads: 1,
            query_length: 4,
            key_length: 4,
            depth: 8,
            causal: true,
            valid: Some(3),
        };
        // Queries see 1, 2, 3 and again 3 keys.
        let work = Work::Core(sizes);
        assert_eq!(work.exponentials(), 18.0);
        assert_eq!(work.flops(), 18.0 * 32.0);
        assert_eq!(sizes.keys_read(), 3);
    }
}
