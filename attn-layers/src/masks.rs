//! Flax's mask helpers, values and dtypes as there.

use crate::tensor::{Tensor, TensorView};
use attn_core::{Dims, Error, Result, ScalarType};

/// `flax.linen.make_attention_mask` with its default `pairwise_fn`, the product: `[batch..., query_length]` and
/// `[batch..., key_length]` give `[1 × extra_batch_dims, batch..., 1, query_length, key_length]` in `dtype`.
///
/// ```
/// use attn_layers::{ScalarType, make_attention_mask, tensor::TensorView};
/// let valid = TensorView::from_slice(&[1.0f32, 1.0, 0.0], &[3])?;
/// let mask = make_attention_mask(&valid, &valid, 0, ScalarType::F32)?;
/// assert_eq!(mask.shape().as_slice(), [1, 3, 3]);
/// assert_eq!(mask.to_vec_f64()[..3], [1.0, 1.0, 0.0]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Rank`], [`Error::Broadcast`] if the batch axes do not fit.
pub fn make_attention_mask(
    query_input: &TensorView<'_>,
    key_input: &TensorView<'_>,
    extra_batch_dims: usize,
    dtype: ScalarType,
) -> Result<Tensor> {
    make_attention_mask_with(
        query_input,
        key_input,
        product_of(query_input.scalar(), key_input.scalar()),
        extra_batch_dims,
        dtype,
    )
}

/// The product, which wraps around in an integer type as it does in JAX: `uint8` 16 by 16 is 0.
fn product_of(query: ScalarType, key: ScalarType) -> fn(f64, f64) -> f64 {
    macro_rules! wrapping {
        ($type:ty) => {
            |query, key| f64::from((query as $type).wrapping_mul(key as $type))
        };
    }
    match query {
        _ if query != key => |query, key| query * key,
        ScalarType::I8 => wrapping!(i8),
        ScalarType::U8 => wrapping!(u8),
        ScalarType::I16 => wrapping!(i16),
        ScalarType::U16 => wrapping!(u16),
        ScalarType::I32 => wrapping!(i32),
        ScalarType::U32 => wrapping!(u32),
        _ => |query, key| query * key,
    }
}

/// [`make_attention_mask`] with a `pairwise_fn` of the caller's.
///
/// # Errors
///
/// As [`make_attention_mask`].
pub fn make_attention_mask_with(
    query_input: &TensorView<'_>,
    key_input: &TensorView<'_>,
    pairwise_fn: impl Fn(f64, f64) -> f64,
    extra_batch_dims: usize,
    dtype: ScalarType,
) -> Result<Tensor> {
    let (query_batch, query_length) = split_length("query_input", query_input)?;
    let (key_batch, key_length) = split_length("key_input", key_input)?;
    let batch = query_batch.broadcast(&key_batch).ok_or(Error::Broadcast {
        argument: "key_input",
        got: key_batch,
        wanted: query_batch,
    })?;
    let shape = mask_shape(extra_batch_dims, &batch, query_length, key_length)?;
    let query_layout =
        attn_core::Layout::contiguous(query_batch)?.broadcast_to("query_input", &batch)?;
    let key_layout = attn_core::Layout::contiguous(key_batch)?.broadcast_to("key_input", &batch)?;
    let values = (0..batch.elements()?).flat_map(|entry| {
        let query_row = query_layout.base(batch.rank(), entry) * query_length;
        let key_row = key_layout.base(batch.rank(), entry) * key_length;
        let pairwise_fn = &pairwise_fn;
        (0..query_length).flat_map(move |query| {
            (0..key_length).map(move |key| {
                pairwise_fn(
                    query_input.get_f64(query_row + query),
                    key_input.get_f64(key_row + key),
                )
            })
        })
    });
    Tensor::from_f64s(dtype, &shape, values)
}

/// `flax.linen.make_causal_mask`: for `x` `[batch..., length]`, of which only the shape counts, 1 where the query is not before the
/// key, `[1 × extra_batch_dims, batch..., 1, length, length]` in `dtype`.
///
/// ```
/// use attn_layers::{ScalarType, make_causal_mask, tensor::TensorView};
/// let x = TensorView::from_slice(&[0.0f32; 2], &[2])?;
/// assert_eq!(make_causal_mask(&x, 0, ScalarType::Bool)?.to_vec_f64(), [1.0, 0.0, 1.0, 1.0]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Rank`], [`Error::TooLarge`].
pub fn make_causal_mask(
    x: &TensorView<'_>,
    extra_batch_dims: usize,
    dtype: ScalarType,
) -> Result<Tensor> {
    let (batch, length) = split_length("x", x)?;
    let shape = mask_shape(extra_batch_dims, &batch, length, length)?;
    let values = (0..batch.elements()?).flat_map(|_| {
        (0..length)
            .flat_map(move |query| (0..length).map(move |key| f64::from(u8::from(query >= key))))
    });
    Tensor::from_f64s(dtype, &shape, values)
}

/// `flax.linen.combine_masks`: the logical and of the masks that are given, in `dtype`; a single one is only cast; `None` if there is
/// none.
///
/// ```
/// use attn_layers::{ScalarType, combine_masks, tensor::TensorView};
/// let a = TensorView::from_slice(&[1.0f32, 2.0], &[2])?;
/// let b = TensorView::from_slice(&[0.0f32, 1.0], &[2])?;
/// let both = combine_masks(&[Some(a), None, Some(b)], ScalarType::F32)?.expect("two masks");
/// assert_eq!(both.to_vec_f64(), [0.0, 1.0]);
/// let one = combine_masks(&[Some(a)], ScalarType::F32)?.expect("one mask");
/// assert_eq!(one.to_vec_f64(), [1.0, 2.0]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::MaskRank`] if their ranks differ, [`Error::Broadcast`] if their shapes do not fit.
pub fn combine_masks(
    masks: &[Option<TensorView<'_>>],
    dtype: ScalarType,
) -> Result<Option<Tensor>> {
    let mut given = masks.iter().flatten();
    let Some(first) = given.next() else {
        return Ok(None);
    };
    if let Some(other) = given
        .clone()
        .find(|mask| mask.shape().rank() != first.shape().rank())
    {
        return Err(Error::MaskRank {
            left: first.shape().rank(),
            right: other.shape().rank(),
        });
    }
    let mut combined: Option<Tensor> = None;
    for mask in given {
        let left = combined.as_ref().map_or(*first, Tensor::view);
        combined = Some(logical_and(&left, mask, dtype)?);
    }
    match combined {
        Some(combined) => Ok(Some(combined)),
        None => Ok(Some(first.to_scalar(dtype)?)),
    }
}

fn logical_and(left: &TensorView<'_>, right: &TensorView<'_>, dtype: ScalarType) -> Result<Tensor> {
    let shape = left
        .shape()
        .broadcast(right.shape())
        .ok_or(Error::Broadcast {
            argument: "mask",
            got: *right.shape(),
            wanted: *left.shape(),
        })?;
    let broadcast = |view: &TensorView<'_>| {
        attn_core::Layout::contiguous(*view.shape())?.broadcast_to("mask", &shape)
    };
    let (left_layout, right_layout) = (broadcast(left)?, broadcast(right)?);
    let values = (0..shape.elements()?).map(|index| {
        let both = left.is_nonzero(left_layout.base(shape.rank(), index))
            && right.is_nonzero(right_layout.base(shape.rank(), index));
        f64::from(u8::from(both))
    });
    Tensor::from_f64s(dtype, &shape, values)
}

fn split_length(argument: &'static str, input: &TensorView<'_>) -> Result<(Dims, usize)> {
    match input.shape().split_last() {
        Some((&length, batch)) => Ok((Dims::new(batch)?, length)),
        None => Err(Error::Rank {
            argument,
            got: 0,
            wanted: "[batch..., length]",
        }),
    }
}

fn mask_shape(
    extra_batch_dims: usize,
    batch: &Dims,
    query_length: usize,
    key_length: usize,
) -> Result<Dims> {
    let mut shape = Dims::SCALAR;
    for _ in 0..extra_batch_dims {
        shape = shape.push(1)?;
    }
    shape.concat(batch)?.concat(&[1, query_length, key_length])
}
