//! What is timed: the shapes of the papers (16k tokens, 2048 features), decode over long caches, and plain float32.

use attn_core::DType;
use serde_json::{Value, json};

/// What a case computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Forward,
    Backward,
    /// One query for each head of a sequence.
    Decode,
    /// A dense layer, `[batch · query_length, depth] · [depth, heads]`.
    Project,
}

/// A case.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) operation: Operation,
    pub(crate) dtype: DType,
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) key_heads: usize,
    pub(crate) query_length: usize,
    pub(crate) key_length: usize,
    pub(crate) depth: usize,
    pub(crate) is_causal: bool,
}

impl Case {
    pub(crate) fn name(&self) -> String {
        let operation = match self.operation {
            Operation::Forward => "fwd",
            Operation::Backward => "bwd",
            Operation::Decode => "decode",
            Operation::Project => "project",
        };
        let dtype = format!("{:?}", self.dtype).to_lowercase();
        let mask = if self.is_causal { "-causal" } else { "" };
        match self.operation {
            Operation::Project => format!(
                "{operation}-{dtype}-{}x{}x{}",
                self.batch * self.query_length,
                self.depth,
                self.heads
            ),
            Operation::Decode => format!(
                "{operation}-{dtype}-b{}-h{}-kv{}-d{}-l{}",
                self.batch, self.heads, self.key_heads, self.depth, self.key_length
            ),
            _ => format!(
                "{operation}-{dtype}-d{}-l{}{mask}",
                self.depth, self.query_length
            ),
        }
    }

    /// Floating-point operations, as the papers count them: the products alone, half of them under a causal mask.
    pub(crate) fn operations(&self) -> f64 {
        let product = |sizes: [usize; 4]| sizes.iter().map(|&size| size as f64).product::<f64>();
        let sizes = [self.batch, self.heads, self.query_length, self.depth];
        match self.operation {
            Operation::Project => 2.0 * product(sizes),
            _ => {
                let seen = self.key_length as f64 / if self.is_causal { 2.0 } else { 1.0 };
                let forward = 4.0 * product(sizes) * seen;
                match self.operation {
                    Operation::Backward => 2.5 * forward,
                    _ => forward,
                }
            }
        }
    }

    /// Bytes that must be read: keys and values.
    pub(crate) fn cache_bytes(&self) -> f64 {
        let size = attn_core::ScalarType::from(self.dtype).size() as f64;
        let rows = (self.batch * self.key_heads * self.key_length) as f64;
        2.0 * rows * self.depth as f64 * size
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "name": self.name(),
            "operation": format!("{:?}", self.operation).to_lowercase(),
            "dtype": format!("{:?}", self.dtype).to_lowercase(),
            "batch": self.batch, "heads": self.heads, "key_heads": self.key_heads,
            "query_length": self.query_length, "key_length": self.key_length,
            "depth": self.depth, "causal": self.is_causal,
            "operations": self.operations(), "cache_bytes": self.cache_bytes(),
        })
    }
}

/// Tokens of a case of the papers, and features.
const TOKENS: usize = 16 << 10;
const FEATURES: usize = 2048;

fn paper(operation: Operation, dtype: DType, depth: usize, length: usize, causal: bool) -> Case {
    Case {
        operation,
        dtype,
        batch: TOKENS / length,
        heads: FEATURES / depth,
        key_heads: FEATURES / depth,
        query_length: length,
        key_length: length,
        depth,
        is_causal: causal,
    }
}

/// All cases, the most telling first.
pub(crate) fn all() -> Vec<Case> {
    use Operation::{Backward, Decode, Forward, Project};
    let mut cases = Vec::new();
    for length in [16 << 10, 4096, 1024, 512] {
        for depth in [128, 64, 256] {
            for causal in [false, true] {
                cases.push(paper(Forward, DType::BF16, depth, length, causal));
            }
        }
    }
    cases.push(paper(Forward, DType::F16, 128, 8192, false));
    for length in [16 << 10, 4096, 1024] {
        for depth in [128, 64] {
            for causal in [false, true] {
                cases.push(paper(Backward, DType::BF16, depth, length, causal));
            }
        }
    }
    for (batch, length) in [(1, 4096), (1, 65_536), (16, 8192), (64, 8192)] {
        for key_heads in [8, 32] {
            cases.push(Case {
                operation: Decode,
                dtype: DType::BF16,
                batch,
                heads: 32,
                key_heads,
                query_length: 1,
                key_length: length,
                depth: 128,
                is_causal: false,
            });
        }
    }
    for causal in [false, true] {
        cases.push(paper(Forward, DType::F32, 64, 2048, causal));
    }
    cases.push(paper(Backward, DType::F32, 64, 2048, false));
    for (dtype, rows, outputs) in [
        (DType::BF16, 8192, 8192),
        (DType::BF16, 16, 8192),
        (DType::F32, 4096, 4096),
    ] {
        cases.push(Case {
            operation: Project,
            dtype,
            batch: 1,
            heads: outputs,
            key_heads: outputs,
            query_length: rows,
            key_length: rows,
            depth: outputs,
            is_causal: false,
        });
    }
    cases
}
