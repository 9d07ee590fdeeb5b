//! The layer in twice the precision of `f64`, one straightforward loop for each step, on stored inputs and parameters.

use super::Parameters;
use super::twice::Twice;
use attn_layers::tensor::Tensor;

/// Whether query `q` of batch entry `b` and head `h` sees key `k`, as `(b, h, q, k)`.
pub(crate) type Sees<'a> = &'a dyn Fn(usize, usize, usize, usize) -> bool;

/// A call without what does not change exact arithmetic: dtypes, dropout, the cache.
pub(crate) struct Truth<'a> {
    pub(crate) params: &'a Parameters,
    pub(crate) num_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) use_bias: bool,
    pub(crate) normalize_qk: bool,
    pub(crate) sees: Sees<'a>,
}

/// Rows of features, `[batch × length, width]`.
struct Rows {
    data: Vec<Twice>,
    width: usize,
}

impl Rows {
    fn of(tensor: &Tensor) -> Self {
        Self {
            data: wide(tensor),
            width: *tensor.shape().last().expect("a features axis"),
        }
    }
}

pub(crate) fn wide(tensor: &Tensor) -> Vec<Twice> {
    tensor.view().iter_f64().map(Twice::from).collect()
}

impl Truth<'_> {
    /// Output `[batch..., query_length, out_features]` and weights `[batch..., heads, query_length, key_length]`.
    pub(crate) fn of(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> (Vec<Twice>, Vec<Twice>) {
        let hidden = self.num_heads * self.head_dim;
        let mut query = self.dense("query", &Rows::of(q), hidden);
        let mut key = self.dense("key", &Rows::of(k), hidden);
        let value = self.dense("value", &Rows::of(v), hidden);
        if self.normalize_qk {
            self.normalize("query_ln/scale", &mut query);
            self.normalize("key_ln/scale", &mut key);
        }
        let length = |input: &Tensor| input.shape()[input.shape().rank() - 2];
        let core = Core {
            batch: q.shape()[..q.shape().rank() - 2].iter().product(),
            lengths: [length(q), length(k)],
            num_heads: self.num_heads,
            depths: [self.head_dim; 2],
            bias: &|_, _, _, _| Twice::ZERO,
            sees: self.sees,
        };
        let (context, weights) = core.of(&query.data, &key.data, &value.data);
        let context = Rows {
            data: context,
            width: hidden,
        };
        let out_features = self.params.get("out/bias").shape()[0];
        (self.dense("out", &context, out_features).data, weights)
    }

    fn dense(&self, scope: &str, input: &Rows, outputs: usize) -> Rows {
        let kernel = wide(self.params.get(&format!("{scope}/kernel")));
        let bias = wide(self.params.get(&format!("{scope}/bias")));
        let mut data = Vec::new();
        for row in input.data.chunks(input.width) {
            for output in 0..outputs {
                let column = kernel[output..].iter().step_by(outputs);
                let sum = Twice::sum(row.iter().zip(column).map(|(x, w)| *x * *w));
                data.push(if self.use_bias {
                    sum + bias[output]
                } else {
                    sum
                });
            }
        }
        Rows {
            data,
            width: outputs,
        }
    }

    fn normalize(&self, scale: &str, rows: &mut Rows) {
        let scale = wide(self.params.get(scale));
        let depth = Twice::from(self.head_dim as f64);
        for head in rows.data.chunks_mut(self.head_dim) {
            let mean = Twice::sum(head.iter().copied()) / depth;
            let squares = head.iter().map(|x| (*x - mean) * (*x - mean));
            let deviation = (Twice::sum(squares) / depth + Twice::from(1e-6)).sqrt();
            for (x, scale) in head.iter_mut().zip(&scale) {
                *x = (*x - mean) / deviation * *scale;
            }
        }
    }
}

/// The attention core, `[batch, length, heads, depth]`.
pub(crate) struct Core<'a> {
    pub(crate) batch: usize,
    /// Of queries and keys.
    pub(crate) lengths: [usize; 2],
    pub(crate) num_heads: usize,
    /// Of queries and values.
    pub(crate) depths: [usize; 2],
    /// As `sees`.
    pub(crate) bias: &'a dyn Fn(usize, usize, usize, usize) -> Twice,
    pub(crate) sees: Sees<'a>,
}

impl Core<'_> {
    pub(crate) fn of(&self, q: &[Twice], k: &[Twice], v: &[Twice]) -> (Vec<Twice>, Vec<Twice>) {
        let [queries, keys] = self.lengths;
        let (heads, depth) = (self.num_heads, self.depths[1]);
        let mut out = vec![Twice::ZERO; self.batch * queries * heads * depth];
        let mut weights = Vec::new();
        for b in 0..self.batch {
            for h in 0..heads {
                for i in 0..queries {
                    let row = self.weights([b, h, i], q, k);
                    let to = ((b * queries + i) * heads + h) * depth;
                    for (j, weight) in row.iter().enumerate() {
                        let from = ((b * keys + j) * heads + h) * depth;
                        for d in 0..depth {
                            out[to + d] = out[to + d] + *weight * v[from + d];
                        }
                    }
                    weights.extend(row);
                }
            }
        }
        (out, weights)
    }

    /// The weights of one query: uniform where it sees no key.
    fn weights(&self, [b, h, i]: [usize; 3], q: &[Twice], k: &[Twice]) -> Vec<Twice> {
        let ([queries, keys], [depth, _]) = (self.lengths, self.depths);
        let at =
            |length: usize, position: usize| ((b * length + position) * self.num_heads + h) * depth;
        let root = Twice::from(depth as f64).sqrt();
        let score = |j: usize| {
            let (from, to) = (at(queries, i), at(keys, j));
            let products = (0..depth).map(|d| q[from + d] * k[to + d]);
            Twice::sum(products) / root + (self.bias)(b, h, i, j)
        };
        let scores: Vec<Option<Twice>> = (0..keys)
            .map(|j| (self.sees)(b, h, i, j).then(|| score(j)))
            .collect();
        let Some(largest) = scores
            .iter()
            .flatten()
            .copied()
            .reduce(|a, b| if a > b { a } else { b })
        else {
            return vec![Twice::from(1.0) / Twice::from(keys as f64); keys];
        };
        let exponentials: Vec<Twice> = scores
            .iter()
            .map(|score| score.map_or(Twice::ZERO, |score| (score - largest).exp()))
            .collect();
        let total = Twice::sum(exponentials.iter().copied());
        exponentials.into_iter().map(|e| e / total).collect()
    }
}
