//! The layer in one dtype: no allocation, any backend. Project three times, normalise, attend, project.

use crate::inputs::{AnyInputs, Inputs, same};
use crate::params::{AnyParams, Dense, Params};
use crate::plan::Plan;
use crate::scratch::{AnyScratch, Scratch};
use attn_core::{
    AnyViewMut, Attention, Dims, Element, Error, FullyMasked, Kernels, Layout, Projection, Result,
    Rotary, RotaryTable, Rotate, RowOrder, Storage, View, ViewMut, view::Buffer,
};
use core::marker::PhantomData;

/// Flax's epsilon of the layer norms of `normalize_qk`.
pub(crate) const EPSILON: f64 = 1e-6;

/// `flax.linen.MultiHeadDotProductAttention` computing wholly in `T`: its constructor fields that matter to a call, no
/// data. The named variants are [`MultiHeadDotProductAttentionF32`], …; [`AnyMultiHeadDotProductAttention`] holds one of
/// them, chosen when the weights' dtype is known.
///
/// ```
/// use attn_layers::{Cpu, Dense, Dims, HostView, HostViewMut, Inputs, MultiHeadDotProductAttentionF32, OwnedScratch, Params};
///
/// let cpu = Cpu::detect();
/// let layer = MultiHeadDotProductAttentionF32::new(1);
/// let shape = Dims::new(&[2, 1])?; // [length, features]
/// let plan = layer.plan(&shape, &shape, &shape)?;
/// let (one, zero) = ([1.0f32], [0.0f32]);
/// let input = Dense { kernel: HostView::new(&one, &[1, 1, 1])?.into(), bias: Some(HostView::new(&zero, &[1, 1])?) };
/// let out = Dense { kernel: HostView::new(&one, &[1, 1, 1])?.into(), bias: Some(HostView::new(&zero, &[1])?) };
/// let params = Params { query: input, key: input, value: input, out, query_ln: None, key_ln: None };
/// let mut scratch = OwnedScratch::new(&plan.scratch::<f32, _>(&cpu))?;
///
/// let x = [0.5f32, 0.5];
/// let mut y = [0.0f32; 2];
/// let inputs = Inputs::self_attention(HostView::new(&x, &[2, 1])?);
/// layer.apply(&cpu, &plan, &params, inputs, HostViewMut::new(&mut y, &[2, 1])?, &mut scratch.borrow())?;
/// assert_eq!(y, [0.5, 0.5]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
#[attn_macros::dtype_variants(
    f32,
    f64,
    f16,
    bf16,
    name = "MultiHeadDotProductAttention",
    derive(Debug, Clone)
)]
#[derive(Debug, Clone)]
pub struct MultiHeadDotProductAttentionOf<T> {
    /// Number of heads.
    pub num_heads: usize,
    /// Number of heads of keys and values, each of which serves `num_heads / num_kv_heads` heads of queries; `None` is `num_heads`.
    pub num_kv_heads: Option<usize>,
    /// Total width of query, key and value; `None` or 0 is the width of `inputs_q`.
    pub qkv_features: Option<usize>,
    /// Width of the output; `None` or 0 is the width of `inputs_q`.
    pub out_features: Option<usize>,
    /// Whether the dense layers have a bias.
    pub use_bias: bool,
    /// Layer norm over `head_dim` of queries and keys.
    pub normalize_qk: bool,
    /// Rotary embedding of queries and keys, after the layer norm. Rows lie at the positions from 0 on, in decoding from `cache_index` on.
    pub rotary: Option<Rotary>,
    /// What a query gets that sees no key.
    pub fully_masked: FullyMasked,
    /// The dtype; no data. Take it from [`MultiHeadDotProductAttentionOf::new`].
    pub dtype: PhantomData<T>,
}

#[attn_macros::dtype_variants(f32, f64, f16, bf16, name = "MultiHeadDotProductAttention")]
impl<T: Element> MultiHeadDotProductAttentionOf<T> {
    /// Flax's defaults.
    #[must_use]
    pub const fn new(num_heads: usize) -> Self {
        Self {
            num_heads,
            num_kv_heads: None,
            qkv_features: None,
            out_features: None,
            use_bias: true,
            normalize_qk: false,
            rotary: None,
            fully_masked: FullyMasked::MeanOfValues,
            dtype: PhantomData,
        }
    }

    /// The sizes of a call with inputs of these shapes, `[batch..., length, features]`.
    ///
    /// # Errors
    ///
    /// [`Error::NoHeads`], [`Error::HeadsDoNotDivide`], [`Error::KvHeadsDoNotDivide`], [`Error::Rank`], [`Error::Mismatch`],
    /// [`Error::TooLarge`].
    #[dispatch]
    pub fn plan(&self, inputs_q: &Dims, inputs_k: &Dims, inputs_v: &Dims) -> Result<Plan> {
        Plan::new(
            self.num_heads,
            self.num_kv_heads,
            self.qkv_features,
            self.out_features,
            [inputs_q, inputs_k, inputs_v],
        )
    }

    /// The forward pass. `out` is `[batch..., query_length, out_features]`.
    ///
    /// # Errors
    ///
    /// [`Error::ParamMissing`], [`Error::ParamShape`], [`Error::Shape`], [`Error::Broadcast`], [`Error::Scratch`], and the backend's own.
    #[dispatch]
    pub fn apply<B: Kernels<T>>(
        &self,
        backend: &B,
        plan: &Plan,
        params: &Params<'_, B::Storage, T>,
        inputs: Inputs<'_, B::Storage, T>,
        out: ViewMut<'_, B::Storage, T>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        self.run(backend, plan, params, inputs, out, None, scratch)
    }

    /// The forward pass; its queries, keys, values and context stay in the scratch.
    #[expect(clippy::too_many_arguments, reason = "apply's, and the statistics")]
    pub(crate) fn run<B: Kernels<T>>(
        &self,
        backend: &B,
        plan: &Plan,
        params: &Params<'_, B::Storage, T>,
        inputs: Inputs<'_, B::Storage, T>,
        out: ViewMut<'_, B::Storage, T>,
        statistics: Option<ViewMut<'_, B::Storage, T::Acc>>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        params.check(plan, self.use_bias, self.normalize_qk)?;
        inputs.check(plan, plan.key_length)?;
        self.check_rotary(plan, &inputs, 0)?;
        same("output", out.shape(), plan.output()?)?;
        let pass = Pass {
            backend,
            plan,
            row_order: RowOrder::Any,
            use_bias: self.use_bias,
        };
        self.project_inputs(&pass, params, &inputs, scratch)?;
        let turn = self.turn(&inputs, 0);
        pass.rotate(turn, whole(scratch.q, plan.queries()?, "q")?)?;
        pass.rotate(turn, whole(scratch.k, plan.keys()?, "k")?)?;
        self.attend(&pass, inputs, statistics, scratch)?;
        let context = read(scratch.context, plan.flat_context()?)?;
        pass.dense(&params.out, context, out, scratch.tiles)
    }

    /// Whether the rows of a call that begins at position `first` can turn.
    pub(crate) fn check_rotary<S: Storage>(
        &self,
        plan: &Plan,
        inputs: &Inputs<'_, S, T>,
        first: usize,
    ) -> Result<()> {
        let table = inputs.rotary_table.as_ref();
        let Some(rotary) = &self.rotary else {
            return match table {
                None => Ok(()),
                Some(_) => Err(Error::Together {
                    left: "rotary_table",
                    right: "rotary",
                }),
            };
        };
        let length = plan.query_length.max(plan.key_length);
        rotary.check(plan.head_dim, table, first, length)
    }

    /// Queries, keys and values into the scratch, normalised where the layer does.
    pub(crate) fn project_inputs<B: Kernels<T>>(
        &self,
        pass: &Pass<'_, B>,
        params: &Params<'_, B::Storage, T>,
        inputs: &Inputs<'_, B::Storage, T>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        let plan = pass.plan;
        let queries = plan.queries()?;
        let keys = plan.keys()?;
        let mut outs = [
            whole(scratch.q, queries, "q")?,
            whole(scratch.k, keys, "k")?,
            whole(scratch.v, keys, "v")?,
        ];
        let [q, k, v] = plan.features;
        let calls = [
            pass.projection(&params.query, inputs.q, q, plan.hidden)?,
            pass.projection(&params.key, inputs.k, k, plan.kv_hidden)?,
            pass.projection(&params.value, inputs.v, v, plan.kv_hidden)?,
        ];
        pass.backend
            .project_each(&calls, &mut outs, scratch.tiles)?;
        if self.normalize_qk {
            let [q, k, _] = outs;
            pass.normalize(params.query_ln, q)?;
            pass.normalize(params.key_ln, k)?;
        }
        Ok(())
    }

    /// How the rows of a call turn that begins at position `first`.
    pub(crate) fn turn<'t, S: Storage>(
        &self,
        inputs: &Inputs<'t, S, T>,
        first: usize,
    ) -> Option<Turn<'t, S, T>> {
        self.rotary.map(|rotary| Turn {
            rotary,
            first,
            table: inputs.rotary_table,
            inverse: false,
        })
    }

    /// The attention core, from the scratch into its `context`.
    fn attend<B: Kernels<T>>(
        &self,
        pass: &Pass<'_, B>,
        inputs: Inputs<'_, B::Storage, T>,
        statistics: Option<ViewMut<'_, B::Storage, T::Acc>>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        let plan = pass.plan;
        let queries = plan.queries()?;
        let keys = plan.keys()?;
        let call = Attention::new(
            read(scratch.q, queries)?,
            read(scratch.k, keys)?,
            read(scratch.v, keys)?,
        )
        .with_mask(inputs.mask)
        .with_causal(inputs.causal)
        .with_fully_masked(self.fully_masked)
        .with_dropout(inputs.dropout)
        .with_weights(inputs.weights)
        .with_statistics(statistics);
        let context = whole(scratch.context, plan.context()?, "context")?;
        pass.backend.attend(call, context, scratch.tiles)
    }
}

/// How rows turn.
pub(crate) struct Turn<'a, S: Storage, T: Element> {
    rotary: Rotary,
    first: usize,
    table: Option<RotaryTable<'a, S, T::Acc>>,
    /// Whether they are gradients.
    inverse: bool,
}

impl<S: Storage, T: Element> Turn<'_, S, T> {
    /// The same for gradients.
    pub(crate) fn back(self) -> Self {
        Self {
            inverse: true,
            ..self
        }
    }
}

impl<S: Storage, T: Element> Clone for Turn<'_, S, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage, T: Element> Copy for Turn<'_, S, T> {}

/// What the steps of one pass share.
pub(crate) struct Pass<'a, B> {
    pub(crate) backend: &'a B,
    pub(crate) plan: &'a Plan,
    pub(crate) row_order: RowOrder,
    pub(crate) use_bias: bool,
}

impl<B> Pass<'_, B> {
    /// `DenseGeneral`: the first or last two axes of the kernel are heads and head_dim, those of `out` may be.
    pub(crate) fn dense<T: Element>(
        &self,
        dense: &Dense<'_, B::Storage, T>,
        input: View<'_, B::Storage, T>,
        out: ViewMut<'_, B::Storage, T>,
        tiles: &mut <B::Storage as Storage>::Buf<T::Acc>,
    ) -> Result<(), B::Error>
    where
        B: Kernels<T>,
    {
        let (features, outputs) = matrix(&input, out.shape())?;
        let call = self.projection(dense, input, features, outputs)?;
        self.backend.project(&call, out, tiles)
    }

    /// The call of a dense layer, `[features, outputs]`.
    fn projection<'p, S: Storage, T: Element>(
        &self,
        dense: &Dense<'p, S, T>,
        input: View<'p, S, T>,
        features: usize,
        outputs: usize,
    ) -> Result<Projection<'p, S, T>> {
        let bias = dense.bias.as_ref().filter(|_| self.use_bias);
        let bias = bias.map(|bias| bias.reshape(&[outputs]));
        Ok(Projection {
            input,
            kernel: dense.kernel.as_matrix(features, outputs)?,
            bias: bias.transpose()?,
            row_order: self.row_order,
        })
    }

    /// Rotary embedding, or its gradient, in place; nothing without a turn.
    pub(crate) fn rotate<T: Element>(
        &self,
        turn: Option<Turn<'_, B::Storage, T>>,
        x: ViewMut<'_, B::Storage, T>,
    ) -> Result<(), B::Error>
    where
        B: Kernels<T>,
    {
        let Some(turn) = turn else { return Ok(()) };
        let call = Rotate::new(x, turn.rotary, turn.first);
        let call = call.with_table(turn.table).with_inverse(turn.inverse);
        self.backend.rotate(call)
    }

    pub(crate) fn normalize<T: Element>(
        &self,
        scale: Option<View<'_, B::Storage, T::Acc>>,
        x: ViewMut<'_, B::Storage, T>,
    ) -> Result<(), B::Error>
    where
        B: Kernels<T>,
    {
        match scale {
            Some(scale) => self.backend.normalize(x, scale, EPSILON),
            None => Ok(()),
        }
    }
}

/// Features and outputs of a dense layer from `[batch..., length, features]` to `[batch..., length, outputs...]`.
pub(crate) fn matrix<S: Storage, T: Element>(
    input: &View<'_, S, T>,
    out: &Dims,
) -> Result<(usize, usize)> {
    let Some((&features, rows)) = input.shape().split_last() else {
        return Err(Error::Rank {
            argument: "inputs",
            got: 0,
            wanted: "[batch..., length, features]",
        });
    };
    let outputs = Dims::new(out.get(rows.len()..).unwrap_or(&[]))?.elements()?;
    Ok((features, outputs))
}

/// The first elements of a scratch buffer as an array.
pub(crate) fn whole<'b, S: Storage, T: attn_core::Scalar>(
    buf: &'b mut S::Buf<T>,
    layout: Layout,
    name: &'static str,
) -> Result<ViewMut<'b, S, T>> {
    let (got, wanted) = (buf.len(), layout.end()?);
    if got < wanted {
        return Err(Error::Scratch {
            argument: name,
            got,
            wanted,
        });
    }
    ViewMut::with_layout(buf, layout)
}

pub(crate) fn read<'b, S: Storage, T: attn_core::Scalar>(
    buf: &'b S::Buf<T>,
    layout: Layout,
) -> Result<View<'b, S, T>> {
    View::with_layout(buf, layout)
}
