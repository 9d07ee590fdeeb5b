//! A call that has been checked: where its arrays lie, what they are computed in, and the request that it amounts to.

use super::arguments::{Attention, Opset};
use super::{heads, mask, past};
use crate::tensor::{Tensor, TensorView, filled};
use alloc::{borrow::Cow, vec::Vec};
use attn_core::{
    Alignment, Attention as Request, AttentionShape, Causal, DType, Dims, Element, Error, Flat,
    FullyMasked, Host, HostView, Layout, Result, ScalarType, Scale, Sequences, Window,
};

/// A checked call.
pub(super) struct Prepared<'a> {
    pub(super) arguments: Attention<'a>,
    /// What it is computed in.
    pub(super) dtype: DType,
    /// `Q`, `K` and `V` as they were given, as `[batch, length, heads, head_size]`.
    pub(super) given: [Layout; 3],
    /// Past and new keys and values, `[batch, heads, total_length, head_size]`, if they are not those given.
    pub(super) present: Option<[Tensor; 2]>,
    /// All keys and all values, as `[batch, total_length, heads, head_size]`.
    pub(super) all: [Layout; 2],
    /// How many keys the mask does not cut off.
    seen: usize,
    /// Keys of each batch entry that are no padding.
    key_lengths: Option<Vec<i32>>,
    mask: Option<mask::Parts<'a>>,
}

/// The arrays of a call in the type it is computed in.
pub(super) struct Operands<'a, T: Element> {
    query: Cow<'a, [T]>,
    key: Cow<'a, [T]>,
    value: Cow<'a, [T]>,
    added: Option<(Cow<'a, [T::Acc]>, Dims)>,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(arguments: &Attention<'a>) -> Result<Self> {
        arguments.check()?;
        let Attention { q, k, v, .. } = arguments;
        check_types(arguments)?;
        let counts = [arguments.q_num_heads, arguments.kv_num_heads];
        let given = heads::layouts([q.shape(), k.shape(), v.shape()], counts)?;
        let [query, key, value] = &given;
        AttentionShape::of(query.shape(), key.shape(), value.shape())?;
        let present = match (arguments.past_key, arguments.past_value) {
            (None, None) if !arguments.present => None,
            (past_key, past_value) => Some([
                past::join("past_key", past_key.as_ref(), k, key)?,
                past::join("past_value", past_value.as_ref(), v, value)?,
            ]),
        };
        let all = match &present {
            None => [*key, *value],
            Some([key, value]) => [joined(key)?, joined(value)?],
        };
        let [keys, values] = [all[0].shape(), all[1].shape()];
        let total = AttentionShape::of(query.shape(), keys, values)?.key_length;
        let seen = seen(arguments, total);
        let prepared = Self {
            arguments: *arguments,
            dtype: computed_in(arguments),
            given,
            present,
            all,
            seen,
            key_lengths: key_lengths(arguments, keys[0], seen)?,
            mask: arguments.attn_mask.map(mask::Parts::new).transpose()?,
        };
        Ok(prepared)
    }

    /// All keys, past ones first.
    pub(super) fn key(&self) -> TensorView<'_> {
        self.present
            .as_ref()
            .map_or(self.arguments.k, |all| all[0].view())
    }

    /// All values, past ones first.
    pub(super) fn value(&self) -> TensorView<'_> {
        self.present
            .as_ref()
            .map_or(self.arguments.v, |all| all[1].view())
    }

    /// Keys and values without those that the mask cuts off.
    pub(super) fn cut(&self) -> Result<[Layout; 2]> {
        let [key, value] = &self.all;
        Ok([heads::cut(key, self.seen)?, heads::cut(value, self.seen)?])
    }

    /// The sizes of the request.
    pub(super) fn shape(&self) -> Result<AttentionShape> {
        let [key, value] = self.cut()?;
        AttentionShape::of(self.given[0].shape(), key.shape(), value.shape())
    }

    /// `[batch, q_num_heads, q_length, total_length]`.
    pub(super) fn scores(&self) -> Result<Dims> {
        let query = self.given[0].shape();
        AttentionShape::of(query, self.all[0].shape(), self.all[1].shape())?.weights(query)
    }

    /// Whether some keys do not take part in the request, or lie outside of its sequences.
    pub(super) fn leaves_keys_out(&self) -> bool {
        self.key_lengths.is_some() || self.seen < self.all[0].shape()[1]
    }

    /// What is added to the scores.
    pub(super) fn added(&self) -> Option<TensorView<'_>> {
        self.mask.as_ref().and_then(mask::Parts::added)
    }

    pub(super) fn operands<T: Element>(&self) -> Result<Operands<'_, T>> {
        let added = match self.added() {
            Some(view) => Some((view.cast()?, *view.shape())),
            None => None,
        };
        Ok(Operands {
            query: self.arguments.q.cast()?,
            key: self.key().cast()?,
            value: self.value().cast()?,
            added,
        })
    }

    /// The request for `Y`.
    pub(super) fn request<'b, T: Element>(
        &'b self,
        operands: &'b Operands<'_, T>,
    ) -> Result<Request<'b, Host, T>> {
        let arguments = &self.arguments;
        let [key, value] = self.cut()?;
        let alignment = self.alignment();
        let [left, right] = [arguments.left_window_size, arguments.right_window_size];
        let window =
            (left.is_some() || right.is_some()).then(|| Window::new(alignment, left, right));
        let keep = self.mask.as_ref().map(mask::Parts::keep).transpose()?;
        let added = operands.added.as_ref();
        let request = Request::new(
            HostView::with_layout(&operands.query, self.given[0])?,
            HostView::with_layout(&operands.key, key)?,
            HostView::with_layout(&operands.value, value)?,
        )
        .with_bias(
            added
                .map(|(data, shape)| HostView::new(data, shape))
                .transpose()?,
        )
        .with_mask(keep.flatten())
        .with_causal(arguments.is_causal.then(|| Causal::aligned(alignment)))
        .with_window(window)
        .with_sequences(
            self.key_lengths
                .as_deref()
                .map(|lengths| Sequences::Padded {
                    key_lengths: Flat::new(lengths),
                    query_lengths: None,
                }),
        )
        .with_fully_masked(FullyMasked::Zero);
        Ok(self.scored(request))
    }

    /// A request for nothing but the scores of all keys, before anything hides one: its values have no elements.
    pub(super) fn request_for_scores<'b, T: Element>(
        &'b self,
        operands: &'b Operands<'_, T>,
    ) -> Result<Request<'b, Host, T>> {
        let [key, _] = &self.all;
        let &[batch, length, heads, _] = key.shape().as_slice() else {
            return Err(Error::Rank {
                argument: "K",
                got: key.shape().rank(),
                wanted: "[batch, length, heads, head_size]",
            });
        };
        let request = Request::new(
            HostView::with_layout(&operands.query, self.given[0])?,
            HostView::with_layout(&operands.key, *key)?,
            HostView::new(&[], &[batch, length, heads, 0])?,
        );
        Ok(self.scored(request.with_fully_masked(FullyMasked::Zero)))
    }

    fn scored<'b, T: Element>(&self, request: Request<'b, Host, T>) -> Request<'b, Host, T> {
        let scale = self.arguments.scale;
        request
            .with_scale(scale.map_or(Scale::InverseSqrtDepth, |scale| Scale::Value(scale.into())))
            .with_softcap(self.arguments.cap())
    }

    /// Where the queries lie: behind the past, or at the end of a cache that is kept outside.
    fn alignment(&self) -> Alignment {
        if self.key_lengths.is_some() {
            return Alignment::BottomRight;
        }
        let new = self.given[1].shape()[1];
        Alignment::Offset(self.all[0].shape()[1].saturating_sub(new).cast_signed())
    }
}

/// The layout of keys or values that were joined.
fn joined(array: &Tensor) -> Result<Layout> {
    match array.shape().as_slice() {
        &[batch, heads, length, size] => heads::by_heads(&[batch, heads, length, size]),
        _ => Layout::contiguous(*array.shape()),
    }
}

/// `Q` and `K` have one type, all three are floats.
fn check_types(arguments: &Attention<'_>) -> Result<()> {
    let Attention { q, k, v, .. } = arguments;
    for (argument, view) in [("Q", q), ("K", k), ("V", v)] {
        if view.scalar().float().is_none() {
            return Err(Error::DTypeMismatch {
                argument,
                got: view.scalar(),
                wanted: ScalarType::F32,
            });
        }
    }
    if k.scalar() != q.scalar() {
        return Err(Error::DTypeMismatch {
            argument: "K",
            got: k.scalar(),
            wanted: q.scalar(),
        });
    }
    Ok(())
}

/// What the arrays promote to. Sums of the 16-bit types are `f32` already, so only `f64` can ask for more: as the type of softmax,
/// or of what is added to the scores.
fn computed_in(arguments: &Attention<'_>) -> DType {
    let dtype = arguments.q.scalar().promote(arguments.v.scalar());
    let added = arguments.attn_mask.and_then(|mask| mask.scalar().float());
    let is_double = [arguments.softmax_precision, added].contains(&Some(DType::F64));
    if is_double { DType::F64 } else { dtype }
}

/// How many keys the mask leaves: a short one hides those beyond its last axis.
fn seen(arguments: &Attention<'_>, total: usize) -> usize {
    let last = arguments
        .attn_mask
        .as_ref()
        .and_then(|mask| mask.shape().last());
    match last {
        Some(&last) if arguments.opset >= Opset::V24 => last.min(total),
        _ => total,
    }
}

/// `nonpad_kv_seqlen` in the type of a request. No length may pass the keys that the mask leaves.
fn key_lengths(arguments: &Attention<'_>, batch: usize, seen: usize) -> Result<Option<Vec<i32>>> {
    const ARGUMENT: &str = "nonpad_kv_seqlen";
    let Some(given) = &arguments.nonpad_kv_seqlen else {
        return Ok(None);
    };
    if given.scalar() != ScalarType::I64 {
        return Err(Error::DTypeMismatch {
            argument: ARGUMENT,
            got: given.scalar(),
            wanted: ScalarType::I64,
        });
    }
    heads::same(ARGUMENT, given.shape(), &[batch])?;
    let most = i32::try_from(seen).map_err(|_| Error::TooLarge {
        argument: "K",
        got: *arguments.k.shape(),
    })?;
    let mut lengths = filled(0, batch, given.shape())?;
    for (index, (to, length)) in lengths.iter_mut().zip(given.iter_f64()).enumerate() {
        if !(0.0..=f64::from(most)).contains(&length) {
            return Err(Error::Entry {
                argument: ARGUMENT,
                index,
                got: length as i64,
                least: 0,
                most: most.into(),
            });
        }
        *to = length as i32;
    }
    Ok(Some(lengths))
}
