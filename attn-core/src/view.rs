//! A borrowed buffer with a layout, over the storage that a backend computes in.

use crate::dtype::{DType, Scalar};
use crate::error::{Error, Result};
use crate::layout::{Dims, Layout};
use core::fmt;

/// A buffer of `T` in some storage. Only its length is known here; its elements may lie on a device.
pub trait Buffer<T: Scalar> {
    /// Number of elements.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Scalar> Buffer<T> for [T] {
    fn len(&self) -> usize {
        <[T]>::len(self)
    }
}

/// A place where buffers live: the host's memory, or a device's.
///
/// Buffers are borrowed by plain `&` and `&mut`, and a part of one is named by a [`Layout`], so a storage needs no
/// slice types of its own.
pub trait Storage: Copy + fmt::Debug + 'static {
    /// The buffer of `T`, `[T]` on the host.
    type Buf<T: Scalar>: Buffer<T> + ?Sized;
}

/// The host's memory: buffers are slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host;

impl Storage for Host {
    type Buf<T: Scalar> = [T];
}

/// A shared view: a buffer and where the array's elements lie in it. The constructors check that every element is inside.
pub struct View<'a, S: Storage, T: Scalar> {
    buf: &'a S::Buf<T>,
    layout: Layout,
}

/// A view that can be written. No two elements share an index.
pub struct ViewMut<'a, S: Storage, T: Scalar> {
    buf: &'a mut S::Buf<T>,
    layout: Layout,
}

/// A view of a slice.
pub type HostView<'a, T> = View<'a, Host, T>;
/// A mutable view of a slice.
pub type HostViewMut<'a, T> = ViewMut<'a, Host, T>;

/// A buffer that is read from its first element to its last, without a layout: small arrays such as one number for each head.
pub struct Flat<'a, S: Storage, T: Scalar> {
    buf: &'a S::Buf<T>,
}

impl<'a, S: Storage, T: Scalar> Flat<'a, S, T> {
    /// All of `buf`.
    #[must_use]
    pub const fn new(buf: &'a S::Buf<T>) -> Self {
        Self { buf }
    }

    /// The buffer.
    #[must_use]
    pub const fn buf(&self) -> &'a S::Buf<T> {
        self.buf
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    pub(crate) fn check_len(&self, argument: &'static str, wanted: usize) -> Result<()> {
        let got = self.len();
        if got == wanted {
            return Ok(());
        }
        Err(Error::Buffer {
            argument,
            got,
            wanted,
        })
    }
}

impl<S: Storage, T: Scalar> Clone for Flat<'_, S, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage, T: Scalar> Copy for Flat<'_, S, T> {}

impl<S: Storage, T: Scalar> fmt::Debug for Flat<'_, S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flat<{}>[{}]", T::SCALAR, self.len())
    }
}

/// As [`Flat`], and can be written.
pub struct FlatMut<'a, S: Storage, T: Scalar> {
    buf: &'a mut S::Buf<T>,
}

impl<'a, S: Storage, T: Scalar> FlatMut<'a, S, T> {
    /// All of `buf`.
    pub const fn new(buf: &'a mut S::Buf<T>) -> Self {
        Self { buf }
    }

    /// The buffer.
    pub const fn buf_mut(&mut self) -> &mut S::Buf<T> {
        self.buf
    }

    /// A shared view of the same elements.
    #[must_use]
    pub const fn as_flat(&self) -> Flat<'_, S, T> {
        Flat { buf: self.buf }
    }

    /// A shorter borrow of the same elements.
    pub const fn reborrow(&mut self) -> FlatMut<'_, S, T> {
        FlatMut { buf: self.buf }
    }
}

impl<S: Storage, T: Scalar> fmt::Debug for FlatMut<'_, S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlatMut<{}>[{}]", T::SCALAR, self.buf.len())
    }
}

fn check_bounds(layout: &Layout, len: usize) -> Result<()> {
    if layout.end()? > len {
        return Err(Error::Buffer {
            argument: "buffer",
            got: len,
            wanted: layout.end()?,
        });
    }
    Ok(())
}

impl<'a, S: Storage, T: Scalar> View<'a, S, T> {
    /// The whole of `buf` as a row-major array of `shape`.
    ///
    /// # Errors
    ///
    /// [`Error::Buffer`] if `buf` is not exactly as long as the shape; [`Error::Rank`], [`Error::TooLarge`].
    pub fn new(buf: &'a S::Buf<T>, shape: &[usize]) -> Result<Self> {
        let layout = Layout::contiguous(Dims::new(shape)?)?;
        if layout.elements() != buf.len() {
            return Err(Error::Buffer {
                argument: "buffer",
                got: buf.len(),
                wanted: layout.elements(),
            });
        }
        Ok(Self { buf, layout })
    }

    /// A part of `buf`.
    ///
    /// # Errors
    ///
    /// [`Error::Buffer`] if an element lies outside.
    pub fn with_layout(buf: &'a S::Buf<T>, layout: Layout) -> Result<Self> {
        check_bounds(&layout, buf.len())?;
        Ok(Self { buf, layout })
    }

    /// The buffer.
    #[must_use]
    pub fn buf(&self) -> &'a S::Buf<T> {
        self.buf
    }

    /// Where the elements lie.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Axis lengths.
    #[must_use]
    pub const fn shape(&self) -> &Dims {
        self.layout.shape()
    }

    /// numpy's broadcast to `shape`.
    ///
    /// # Errors
    ///
    /// [`Error::Broadcast`], naming `argument`.
    pub fn broadcast_to(&self, argument: &'static str, shape: &Dims) -> Result<Self> {
        Ok(Self {
            buf: self.buf,
            layout: self.layout.broadcast_to(argument, shape)?,
        })
    }

    /// The same elements, row-major, under another shape.
    ///
    /// # Errors
    ///
    /// [`Error::Strides`] if the view has gaps; [`Error::Shape`] if the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        Ok(Self {
            buf: self.buf,
            layout: reshape(&self.layout, shape)?,
        })
    }
}

impl<S: Storage, T: Scalar> Clone for View<'_, S, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage, T: Scalar> Copy for View<'_, S, T> {}

impl<S: Storage, T: Scalar> fmt::Debug for View<'_, S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View<{}>{:?}", T::SCALAR, self.layout.shape())
    }
}

impl<'a, S: Storage, T: Scalar> ViewMut<'a, S, T> {
    /// The whole of `buf` as a row-major array of `shape`.
    ///
    /// # Errors
    ///
    /// As [`View::new`].
    pub fn new(buf: &'a mut S::Buf<T>, shape: &[usize]) -> Result<Self> {
        let layout = *View::<S, T>::new(buf, shape)?.layout();
        Ok(Self { buf, layout })
    }

    /// A part of `buf`.
    ///
    /// # Errors
    ///
    /// [`Error::Buffer`] if an element lies outside; [`Error::Strides`] if two elements could share an index.
    pub fn with_layout(buf: &'a mut S::Buf<T>, layout: Layout) -> Result<Self> {
        check_bounds(&layout, buf.len())?;
        if !is_injective(&layout) {
            return Err(Error::Strides {
                argument: "output",
                wanted: "strides under which no two elements overlap",
            });
        }
        Ok(Self { buf, layout })
    }

    /// The buffer.
    pub fn buf_mut(&mut self) -> &mut S::Buf<T> {
        self.buf
    }

    /// Where the elements lie.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Axis lengths.
    #[must_use]
    pub const fn shape(&self) -> &Dims {
        self.layout.shape()
    }

    /// A shared view of the same elements.
    #[must_use]
    pub fn as_view(&self) -> View<'_, S, T> {
        View {
            buf: self.buf,
            layout: self.layout,
        }
    }

    /// A shorter borrow of the same elements.
    pub fn reborrow(&mut self) -> ViewMut<'_, S, T> {
        ViewMut {
            buf: self.buf,
            layout: self.layout,
        }
    }

    /// The same elements, row-major, under another shape.
    ///
    /// # Errors
    ///
    /// As [`View::reshape`].
    pub fn reshape(self, shape: &[usize]) -> Result<Self> {
        let layout = reshape(&self.layout, shape)?;
        Ok(Self {
            buf: self.buf,
            layout,
        })
    }
}

impl<S: Storage, T: Scalar> fmt::Debug for ViewMut<'_, S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ViewMut<{}>{:?}", T::SCALAR, self.layout.shape())
    }
}

macro_rules! any_views {
    ($(($type:ty, $variant:ident, $acc:ty)),+ $(,)?) => {
        /// A [`View`] of a dtype known only at run time.
        #[derive(Debug, Clone, Copy)]
        pub enum AnyView<'a, S: Storage> {
            $(
                #[doc = concat!(" Of `", stringify!($variant), "`.")]
                $variant(View<'a, S, $type>),
            )+
        }

        /// A [`ViewMut`] of a dtype known only at run time.
        #[derive(Debug)]
        pub enum AnyViewMut<'a, S: Storage> {
            $(
                #[doc = concat!(" Of `", stringify!($variant), "`.")]
                $variant(ViewMut<'a, S, $type>),
            )+
        }

        impl<S: Storage> AnyView<'_, S> {
            /// Its dtype.
            #[must_use]
            pub const fn dtype(&self) -> DType {
                match self {
                    $(Self::$variant(_) => DType::$variant,)+
                }
            }
        }

        impl<S: Storage> AnyViewMut<'_, S> {
            /// Its dtype.
            #[must_use]
            pub const fn dtype(&self) -> DType {
                match self {
                    $(Self::$variant(_) => DType::$variant,)+
                }
            }
        }

        $(
            impl<'a, S: Storage> From<View<'a, S, $type>> for AnyView<'a, S> {
                fn from(view: View<'a, S, $type>) -> Self {
                    Self::$variant(view)
                }
            }

            impl<'a, S: Storage> From<ViewMut<'a, S, $type>> for AnyViewMut<'a, S> {
                fn from(view: ViewMut<'a, S, $type>) -> Self {
                    Self::$variant(view)
                }
            }

            impl<'a, S: Storage> TryFrom<AnyView<'a, S>> for View<'a, S, $type> {
                type Error = Error;
                fn try_from(any: AnyView<'a, S>) -> Result<Self> {
                    match any {
                        AnyView::$variant(view) => Ok(view),
                        other => Err(Error::dtype_mismatch("view", other.dtype(), DType::$variant)),
                    }
                }
            }

            impl<'a, S: Storage> TryFrom<AnyViewMut<'a, S>> for ViewMut<'a, S, $type> {
                type Error = Error;
                fn try_from(any: AnyViewMut<'a, S>) -> Result<Self> {
                    match any {
                        AnyViewMut::$variant(view) => Ok(view),
                        other => Err(Error::dtype_mismatch("output", other.dtype(), DType::$variant)),
                    }
                }
            }
        )+
    };
}
crate::for_each_dtype!(any_views);

fn reshape(layout: &Layout, shape: &[usize]) -> Result<Layout> {
    let shape = Dims::new(shape)?;
    let target = Layout::contiguous(shape)?;
    if !layout.is_contiguous() {
        return Err(Error::Strides {
            argument: "view",
            wanted: "row-major elements without gaps",
        });
    }
    if target.elements() != layout.elements() {
        return Err(Error::Shape {
            argument: "shape",
            got: shape,
            wanted: *layout.shape(),
        });
    }
    Layout::strided(layout.offset(), shape, target.strides())
}

/// Sufficient test that no two elements share an index: sorted by stride, each stride passes the extent of the smaller ones.
fn is_injective(layout: &Layout) -> bool {
    if layout.elements() <= 1 {
        return true;
    }
    let mut reach = 0usize;
    let mut done = [false; crate::layout::MAX_RANK];
    for _ in 0..layout.shape().rank() {
        let next = (0..layout.shape().rank())
            .filter(|&axis| !done[axis])
            .min_by_key(|&axis| layout.strides()[axis]);
        let Some(axis) = next else { break };
        done[axis] = true;
        let (dim, stride) = (layout.shape()[axis], layout.strides()[axis]);
        if dim == 1 {
            continue;
        }
        if stride <= reach {
            return false;
        }
        reach += (dim - 1) * stride;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn view_checks_its_buffer() {
        let data = [0f32; 6];
        assert!(HostView::new(&data, &[2, 3]).is_ok());
        assert!(matches!(
            HostView::new(&data, &[2, 4]),
            Err(Error::Buffer {
                got: 6,
                wanted: 8,
                ..
            })
        ));
    }

    #[test]
    fn overlapping_output_is_refused() {
        let mut data = [0f32; 6];
        let layout = Layout::strided(0, Dims::new(&[2, 3]).unwrap(), &[0, 1]).unwrap();
        assert!(matches!(
            HostViewMut::with_layout(&mut data, layout),
            Err(Error::Strides { .. })
        ));
        let transposed = Layout::strided(0, Dims::new(&[3, 2]).unwrap(), &[1, 3]).unwrap();
        assert!(HostViewMut::with_layout(&mut data, transposed).is_ok());
    }
}
