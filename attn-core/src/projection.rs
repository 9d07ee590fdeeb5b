//! One dense layer as a value: its input, its kernel as it lies or packed, its bias.

use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::layout::{Dims, Layout};
use crate::view::{Buffer, Storage, View};
use core::fmt;

/// Whether the rounding of a row may depend on how many rows are computed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowOrder {
    /// It may: the fastest product for the size at hand.
    #[default]
    Any,
    /// It must not: a row has the same bits whether computed alone or among others. Decoding token by token then
    /// equals prefilling all at once.
    Fixed,
}

/// How a backend packs a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// Elements of the buffer.
    pub elements: usize,
    /// Columns that lie together. Backends, or instruction sets, that pack alike have the same number.
    pub panel: usize,
}

/// A kernel that [`Kernels::pack`](crate::Kernels::pack) put in the order in which a backend reads it.
pub struct PackedKernel<'a, S: Storage, T: Element> {
    buf: &'a S::Buf<T>,
    features: usize,
    outputs: usize,
    panel: usize,
}

impl<'a, S: Storage, T: Element> PackedKernel<'a, S, T> {
    /// The buffer of a kernel `[features, outputs]`, packed so.
    ///
    /// # Errors
    ///
    /// [`Error::Buffer`] if `buf` is not as long as the packing says.
    pub fn new(
        buf: &'a S::Buf<T>,
        features: usize,
        outputs: usize,
        packing: Packing,
    ) -> Result<Self> {
        if buf.len() != packing.elements {
            return Err(Error::Buffer {
                argument: "packed kernel",
                got: buf.len(),
                wanted: packing.elements,
            });
        }
        Ok(Self {
            buf,
            features,
            outputs,
            panel: packing.panel,
        })
    }

    /// `[features, outputs]`.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], never with two axes.
    pub fn shape(&self) -> Result<Dims> {
        Dims::new(&[self.features, self.outputs])
    }

    /// The buffer, if the kernel was packed as `wanted`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`], naming `backend`, if it was packed for another one.
    pub fn buf_packed_as(
        &self,
        backend: &'static str,
        wanted: Option<Packing>,
    ) -> Result<&'a S::Buf<T>> {
        match wanted {
            Some(packing) if packing.panel == self.panel && packing.elements == self.buf.len() => {
                Ok(self.buf)
            }
            _ => Err(Error::Unsupported {
                backend,
                feature: "this packed kernel: another backend or instruction set packed it",
                instead: "Pack the kernel with the backend that is to read it",
            }),
        }
    }
}

impl<S: Storage, T: Element> Clone for PackedKernel<'_, S, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage, T: Element> Copy for PackedKernel<'_, S, T> {}

impl<S: Storage, T: Element> fmt::Debug for PackedKernel<'_, S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedKernel")
            .field("features", &self.features)
            .field("outputs", &self.outputs)
            .finish_non_exhaustive()
    }
}

/// The kernel of a dense layer.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "without an allocator there is no box for the larger one"
)]
pub enum DenseKernel<'a, S: Storage, T: Element> {
    /// As it lies; the shape is the user's to say, such as `[features, outputs]`.
    Plain(View<'a, S, T>),
    /// Packed beforehand.
    Packed(PackedKernel<'a, S, T>),
}

impl<S: Storage, T: Element> Clone for DenseKernel<'_, S, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage, T: Element> Copy for DenseKernel<'_, S, T> {}

impl<'a, S: Storage, T: Element> From<View<'a, S, T>> for DenseKernel<'a, S, T> {
    fn from(view: View<'a, S, T>) -> Self {
        Self::Plain(view)
    }
}

impl<'a, S: Storage, T: Element> From<PackedKernel<'a, S, T>> for DenseKernel<'a, S, T> {
    fn from(packed: PackedKernel<'a, S, T>) -> Self {
        Self::Packed(packed)
    }
}

impl<'a, S: Storage, T: Element> DenseKernel<'a, S, T> {
    /// `[features, outputs]`.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] if a plain kernel is no matrix.
    pub fn sizes(&self) -> Result<(usize, usize)> {
        match self {
            Self::Packed(packed) => Ok((packed.features, packed.outputs)),
            Self::Plain(view) => match view.shape().as_slice() {
                &[features, outputs] => Ok((features, outputs)),
                _ => Err(Error::Rank {
                    argument: "kernel",
                    got: view.shape().rank(),
                    wanted: "[features, outputs]",
                }),
            },
        }
    }

    /// A plain kernel under the shape `[features, outputs]`; a packed one stays as it is.
    ///
    /// # Errors
    ///
    /// As [`View::reshape`].
    pub fn as_matrix(&self, features: usize, outputs: usize) -> Result<Self> {
        match self {
            Self::Packed(_) => Ok(*self),
            Self::Plain(view) => view.reshape(&[features, outputs]).map(Self::Plain),
        }
    }

    /// The kernel as it lies.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`], naming `who` needs it, for a packed one.
    pub fn plain(&self, who: &'static str) -> Result<View<'a, S, T>> {
        match self {
            Self::Plain(view) => Ok(*view),
            Self::Packed(_) => Err(Error::Unsupported {
                backend: who,
                feature: "packed kernels",
                instead: "Give the kernel as it lies",
            }),
        }
    }
}

/// How the columns of an output lie: in groups, side by side within each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnGroups {
    /// Columns of a group.
    pub columns: usize,
    /// Elements from one group to the next.
    pub stride: usize,
    /// Elements from one column of a group to the next.
    pub column_stride: usize,
    /// Axes of the array that are columns.
    pub axes: usize,
}

impl ColumnGroups {
    /// Of an array `[rows..., columns]`, or `[rows..., groups, columns]`, with `row_axes` row axes.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], naming `argument`.
    pub fn new(argument: &'static str, layout: &Layout, row_axes: usize) -> Result<Self> {
        let (shape, strides) = (layout.shape(), layout.strides());
        let axes = shape.rank().saturating_sub(row_axes);
        let (columns, column_stride) = match (axes, shape.last(), strides.last()) {
            (1 | 2, Some(&columns), Some(&stride)) => (columns, stride),
            _ => {
                return Err(Error::Rank {
                    argument,
                    got: shape.rank(),
                    wanted: "[rows..., outputs] or [rows..., heads, head_dim]",
                });
            }
        };
        let stride = if axes == 2 {
            strides[row_axes]
        } else {
            columns
        };
        Ok(Self {
            columns,
            stride,
            column_stride,
            axes,
        })
    }

    /// Where a column lies from the start of its row.
    #[must_use]
    pub const fn at(&self, column: usize) -> usize {
        column / self.columns * self.stride + column % self.columns * self.column_stride
    }
}

/// A dense layer: `input · kernel + bias` over the last axis (`flax.linen.DenseGeneral` with its axes flattened).
#[derive(Debug)]
pub struct Projection<'a, S: Storage, T: Element> {
    /// `[rows..., features]`, any number of row axes; the last axis contiguous.
    pub input: View<'a, S, T>,
    /// `[features, outputs]`.
    pub kernel: DenseKernel<'a, S, T>,
    /// `[outputs]`.
    pub bias: Option<View<'a, S, T>>,
    /// Whether rows must be rounded independently of each other.
    pub row_order: RowOrder,
}

impl<S: Storage, T: Element> Projection<'_, S, T> {
    /// Checks that all parts fit each other and `out`, which is `[rows..., outputs]` or `[rows..., heads, head_dim]`, and gives
    /// `(rows, features, outputs)`.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], [`Error::Shape`].
    pub fn sizes(&self, out: &Dims) -> Result<(usize, usize, usize)> {
        let (features, outputs) = self.kernel.sizes()?;
        let Some((&last, rows)) = self.input.shape().split_last() else {
            return Err(Error::Rank {
                argument: "input",
                got: 0,
                wanted: "[rows..., features]",
            });
        };
        let rows = Dims::new(rows)?;
        if last != features {
            return Err(Error::Shape {
                argument: "input",
                got: *self.input.shape(),
                wanted: rows.push(features)?,
            });
        }
        let heads = out.as_slice().strip_prefix(rows.as_slice());
        let split = matches!(heads, Some(&[heads, head_dim]) if heads.checked_mul(head_dim) == Some(outputs));
        if *out != rows.push(outputs)? && !split {
            return Err(Error::Shape {
                argument: "output",
                got: *out,
                wanted: rows.push(outputs)?,
            });
        }
        if let Some(bias) = &self.bias
            && bias.shape().as_slice() != [outputs]
        {
            return Err(Error::Shape {
                argument: "bias",
                got: *bias.shape(),
                wanted: Dims::new(&[outputs])?,
            });
        }
        Ok((rows.elements()?, features, outputs))
    }
}
