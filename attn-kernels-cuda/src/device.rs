//! The storage of a device's memory.

use attn_core::{Buffer, Scalar, Storage};
use core::convert::Infallible;
use core::marker::PhantomData;

/// The memory of a CUDA device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device;

/// A buffer of `T` in a device's memory. This version has no way to make one.
#[derive(Debug)]
pub struct DeviceBuffer<T> {
    never: Infallible,
    element: PhantomData<T>,
}

impl<T: Scalar> Buffer<T> for DeviceBuffer<T> {
    fn len(&self) -> usize {
        match self.never {}
    }
}

impl Storage for Device {
    type Buf<T: Scalar> = DeviceBuffer<T>;
}
