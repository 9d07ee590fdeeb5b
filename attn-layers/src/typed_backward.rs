//! The gradients of the layer in one dtype: no allocation, any backend. What the forward pass did, backwards.

use crate::gradient_buffers::{AnyGradientBuffers, DenseGradientBuffers, GradientBuffers};
use crate::inputs::{AnyInputs, Inputs, same};
use crate::params::{AnyParams, Dense, Params};
use crate::plan::Plan;
use crate::residuals::{AnyResidualBuffers, ResidualBuffers};
use crate::scratch::{AnyScratch, Scratch};
use crate::typed::{
    AnyMultiHeadDotProductAttention, EPSILON, MultiHeadDotProductAttentionOf, Pass, Turn, matrix,
    read, whole,
};
use attn_core::{
    AnyView, AnyViewMut, Attention, AttentionBackward, Element, Kernels, Layout, NormalizeBackward,
    ProjectionBackward, Result, RowOrder, Storage, View, ViewMut,
};

#[attn_macros::dtype_variants(f32, f64, f16, bf16, name = "MultiHeadDotProductAttention")]
impl<T: Element> MultiHeadDotProductAttentionOf<T> {
    /// [`MultiHeadDotProductAttentionOf::apply`], keeping what the gradients need in buffers of the caller's: beside the inputs four arrays of
    /// the size of queries and keys and two numbers a row. [`Plan::forward_scratch`] says how much scratch it takes.
    ///
    /// # Errors
    ///
    /// Those of [`MultiHeadDotProductAttentionOf::apply`].
    #[dispatch]
    #[expect(clippy::too_many_arguments, reason = "apply's, and the residuals")]
    pub fn forward<B: Kernels<T>>(
        &self,
        backend: &B,
        plan: &Plan,
        params: &Params<'_, B::Storage, T>,
        inputs: Inputs<'_, B::Storage, T>,
        out: ViewMut<'_, B::Storage, T>,
        residuals: &mut ResidualBuffers<'_, B::Storage, T>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        let statistics = whole(
            residuals.statistics,
            Layout::contiguous(plan.statistics()?)?,
            "statistics",
        )?;
        let mut kept = Scratch {
            q: &mut *residuals.q,
            k: &mut *residuals.k,
            v: &mut *residuals.v,
            context: &mut *residuals.context,
            tiles: &mut *scratch.tiles,
        };
        let statistics = Some(statistics);
        self.run(backend, plan, params, inputs, out, statistics, &mut kept)
    }

    /// The gradients, from that of the output, `[batch..., query_length, out_features]`. Plan, parameters, inputs, mask and dropout are those of the
    /// forward pass. [`Plan::backward_scratch`] says how much scratch it takes: four more arrays of the size of queries and keys.
    ///
    /// ```
    /// use attn_layers::{
    ///     Cpu, Dense, DenseGradientBuffers, Dims, GradientBuffers, HostView, HostViewMut, InputGradients, Inputs,
    ///     MultiHeadDotProductAttentionF32, OwnedResiduals, OwnedScratch, Params,
    /// };
    ///
    /// let cpu = Cpu::detect();
    /// let layer = MultiHeadDotProductAttentionF32 { use_bias: false, ..MultiHeadDotProductAttentionF32::new(1) };
    /// let shape = Dims::new(&[2, 1])?; // [length, features]
    /// let plan = layer.plan(&shape, &shape, &shape)?;
    /// let one = [1.0f32];
    /// let dense = Dense { kernel: HostView::new(&one, &[1, 1, 1])?.into(), bias: None };
    /// let params = Params { query: dense, key: dense, value: dense, out: dense, query_ln: None, key_ln: None };
    /// let mut residuals = OwnedResiduals::new(&plan.residuals())?;
    /// let mut scratch = OwnedScratch::new(&plan.backward_scratch::<f32, _>(&cpu))?; // enough for both passes
    ///
    /// let x = [0.5f32, 0.5];
    /// let inputs = || Ok::<_, attn_layers::Error>(Inputs::self_attention(HostView::new(&x, &[2, 1])?));
    /// let mut y = [0.0f32; 2];
    /// let out = HostViewMut::new(&mut y, &[2, 1])?;
    /// layer.forward(&cpu, &plan, &params, inputs()?, out, &mut residuals.borrow(), &mut scratch.borrow())?;
    ///
    /// let (d_y, mut d_x, mut d_kernel) = ([1.0f32; 2], [0.0f32; 2], [0.0f32]);
    /// let not_wanted = || DenseGradientBuffers { kernel: None, bias: None };
    /// let mut gradients = GradientBuffers {
    ///     inputs: InputGradients::SelfAttention { x: HostViewMut::new(&mut d_x, &[2, 1])? },
    ///     query: not_wanted(),
    ///     key: not_wanted(),
    ///     value: DenseGradientBuffers { kernel: Some(HostViewMut::new(&mut d_kernel, &[1, 1, 1])?), bias: None },
    ///     out: not_wanted(),
    ///     query_ln: None,
    ///     key_ln: None,
    /// };
    /// let d_y = HostView::new(&d_y, &[2, 1])?;
    /// layer.backward(&cpu, &plan, &params, &inputs()?, &residuals.borrow(), d_y, &mut gradients, &mut scratch.borrow())?;
    /// assert_eq!((d_x, d_kernel), ([1.0, 1.0], [1.0]));
    /// # Ok::<(), attn_layers::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`MultiHeadDotProductAttentionOf::apply`]; [`Error::Shape`](crate::Error::Shape) for `d_out` and the gradients;
    /// [`Error::Together`](crate::Error::Together) for a gradient of a parameter that the layer has not.
    #[dispatch]
    #[expect(
        clippy::too_many_arguments,
        reason = "a backward pass reads all of its forward pass"
    )]
    pub fn backward<B: Kernels<T>>(
        &self,
        backend: &B,
        plan: &Plan,
        params: &Params<'_, B::Storage, T>,
        inputs: &Inputs<'_, B::Storage, T>,
        residuals: &ResidualBuffers<'_, B::Storage, T>,
        d_out: View<'_, B::Storage, T>,
        gradients: &mut GradientBuffers<'_, B::Storage, T>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        params.check(plan, self.use_bias, self.normalize_qk)?;
        inputs.check(plan, plan.key_length)?;
        same("d_out", d_out.shape(), plan.output()?)?;
        gradients.check(plan, self.use_bias, self.normalize_qk)?;
        self.check_rotary(plan, inputs, 0)?;
        let turn = self.turn(inputs, 0).map(Turn::back);
        let pass = BackwardPass {
            layer: self,
            pass: Pass {
                backend,
                plan,
                row_order: RowOrder::Any,
                use_bias: self.use_bias,
            },
            params,
            inputs,
        };
        pass.out(residuals, d_out, &mut gradients.out, scratch)?;
        pass.attend(residuals, scratch)?;
        let value = Input {
            dense: &params.value,
            input: inputs.v,
            heads: plan.keys()?,
            turn: None,
            scale: None,
            d_scale: None,
            d_input: gradients.inputs.value(),
            parameters: &mut gradients.value,
        };
        // The gradient of the context is dead from here on, that of the values after them: projections are made again there.
        pass.input(value, scratch.context, scratch.v, scratch.tiles)?;
        let query = Input {
            dense: &params.query,
            input: inputs.q,
            heads: plan.queries()?,
            turn,
            scale: params.query_ln.filter(|_| self.normalize_qk),
            d_scale: gradients.query_ln.as_mut().map(ViewMut::reborrow),
            d_input: gradients.inputs.query(),
            parameters: &mut gradients.query,
        };
        pass.input(query, scratch.context, scratch.q, scratch.tiles)?;
        let key = Input {
            dense: &params.key,
            input: inputs.k,
            heads: plan.keys()?,
            turn,
            scale: params.key_ln.filter(|_| self.normalize_qk),
            d_scale: gradients.key_ln.as_mut().map(ViewMut::reborrow),
            d_input: gradients.inputs.key(),
            parameters: &mut gradients.key,
        };
        pass.input(key, scratch.v, scratch.k, scratch.tiles)
    }
}

/// What the steps of one backward pass share.
struct BackwardPass<'a, B: Kernels<T>, T: Element> {
    layer: &'a MultiHeadDotProductAttentionOf<T>,
    pass: Pass<'a, B>,
    params: &'a Params<'a, B::Storage, T>,
    inputs: &'a Inputs<'a, B::Storage, T>,
}

impl<B: Kernels<T>, T: Element> BackwardPass<'_, B, T> {
    /// Through `out`, into the scratch's `context`.
    fn out(
        &self,
        residuals: &ResidualBuffers<'_, B::Storage, T>,
        d_out: View<'_, B::Storage, T>,
        parameters: &mut DenseGradientBuffers<'_, B::Storage, T>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        let plan = self.pass.plan;
        let flat = plan.flat_context()?;
        let context = read(residuals.context, flat)?;
        let d_context = whole(scratch.context, flat, "context")?;
        self.pass.dense_backward(
            &self.params.out,
            context,
            d_out,
            (Some(d_context), false),
            parameters,
            scratch.tiles,
        )
    }

    /// Through the attention core, into the scratch's `q`, `k` and `v`.
    fn attend(
        &self,
        residuals: &ResidualBuffers<'_, B::Storage, T>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        let (plan, inputs) = (self.pass.plan, self.inputs);
        let (context, queries, keys) = (plan.context()?, plan.queries()?, plan.keys()?);
        let call = Attention::new(
            read(residuals.q, queries)?,
            read(residuals.k, keys)?,
            read(residuals.v, keys)?,
        )
        .with_mask(inputs.mask)
        .with_causal(inputs.causal)
        .with_fully_masked(self.layer.fully_masked)
        .with_dropout(inputs.dropout);
        let request = AttentionBackward {
            call,
            out: read(residuals.context, context)?,
            statistics: read(
                residuals.statistics,
                Layout::contiguous(plan.statistics()?)?,
            )?,
            d_out: read(scratch.context, context)?,
            d_query: whole(scratch.q, queries, "q")?,
            d_key: whole(scratch.k, keys, "k")?,
            d_value: whole(scratch.v, keys, "v")?,
            d_bias: None,
            d_relative: None,
            d_sinks: None,
        };
        self.pass.backend.attend_backward(request, scratch.tiles)
    }

    /// Through the dense layer of an input, and the layer norm and the rotation after it if there are any.
    fn input(
        &self,
        part: Input<'_, '_, B::Storage, T>,
        raw: &mut <B::Storage as Storage>::Buf<T>,
        gradient: &mut <B::Storage as Storage>::Buf<T>,
        tiles: &mut <B::Storage as Storage>::Buf<T::Acc>,
    ) -> Result<(), B::Error> {
        let pass = &self.pass;
        let heads = part.heads;
        pass.rotate(part.turn, whole(gradient, heads, "gradient")?)?;
        if let Some(scale) = part.scale {
            let projected = whole(raw, heads, "projection")?;
            pass.dense(part.dense, part.input, projected, tiles)?;
            pass.backend.normalize_backward(NormalizeBackward {
                x: read(raw, heads)?,
                scale,
                epsilon: EPSILON,
                gradient: whole(gradient, heads, "gradient")?,
                d_scale: part.d_scale,
            })?;
        }
        pass.dense_backward(
            part.dense,
            part.input,
            read(gradient, heads)?,
            part.d_input,
            part.parameters,
            tiles,
        )
    }
}

/// The dense layer of an input and the layer norm after it, and where their gradients go.
struct Input<'a, 'g, S: Storage, T: Element> {
    dense: &'a Dense<'a, S, T>,
    /// `[batch..., length, features]`.
    input: View<'a, S, T>,
    /// Of what comes out, `[batch..., length, heads, head_dim]`.
    heads: Layout,
    /// How its gradient turns back.
    turn: Option<Turn<'a, S, T>>,
    scale: Option<View<'a, S, T::Acc>>,
    d_scale: Option<ViewMut<'a, S, T::Acc>>,
    /// Where the gradient of the input goes, and whether it is added to what is there.
    d_input: (Option<ViewMut<'a, S, T>>, bool),
    parameters: &'a mut DenseGradientBuffers<'g, S, T>,
}

impl<B> Pass<'_, B> {
    /// The gradients of `DenseGeneral`, its axes flattened. That of the input is added to what is there, or not.
    fn dense_backward<T: Element>(
        &self,
        dense: &Dense<'_, B::Storage, T>,
        input: View<'_, B::Storage, T>,
        d_out: View<'_, B::Storage, T>,
        (d_input, accumulate): (Option<ViewMut<'_, B::Storage, T>>, bool),
        gradients: &mut DenseGradientBuffers<'_, B::Storage, T>,
        tiles: &mut <B::Storage as Storage>::Buf<T::Acc>,
    ) -> Result<(), B::Error>
    where
        B: Kernels<T>,
    {
        let matrix = matrix(&input, d_out.shape())?;
        let matrix = [matrix.0, matrix.1];
        let d_kernel = gradients.kernel.as_mut().map(ViewMut::reborrow);
        let d_bias = gradients.bias.as_mut().map(ViewMut::reborrow);
        let request = ProjectionBackward {
            input,
            kernel: dense.kernel.plain("the backward pass")?.reshape(&matrix)?,
            d_out,
            d_input,
            accumulate,
            d_kernel: d_kernel.map(|view| view.reshape(&matrix)).transpose()?,
            d_bias: d_bias.map(|view| view.reshape(&matrix[1..])).transpose()?,
        };
        self.backend.project_backward(request, tiles)
    }
}
