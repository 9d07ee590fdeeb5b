//! The storage of a device's memory.

use crate::driver::Driver;
use crate::error::CudaError;
use attn_core::{Buffer, Scalar, Storage};
use core::fmt;
use core::marker::PhantomData;
use std::sync::Arc;

/// The memory of a CUDA device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device;

impl Storage for Device {
    type Buf<T: Scalar> = DeviceBuffer<T>;
}

/// A buffer of `T` in a device's memory. Make it by [`CudaDevice`](crate::CudaDevice); dropping it gives the memory back.
pub struct DeviceBuffer<T> {
    address: u64,
    len: usize,
    /// Gives the memory back, unless it is the caller's.
    owner: Option<Arc<dyn Driver>>,
    element: PhantomData<T>,
}

impl<T: Scalar> DeviceBuffer<T> {
    /// New memory of undefined content.
    pub(crate) fn new(driver: &Arc<dyn Driver>, len: usize) -> Result<Self, CudaError> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(CudaError::OutOfMemory { bytes: usize::MAX })?;
        Ok(Self {
            // A device gives no memory of 0 bytes; an address is needed nevertheless.
            address: crate::launch::allocate(&**driver, bytes.max(1))?,
            len,
            owner: Some(Arc::clone(driver)),
            element: PhantomData,
        })
    }

    /// Memory that the caller keeps, such as a part of an allocation of another library.
    ///
    /// # Safety
    ///
    /// `address` names `len` elements in the memory of the device that the buffer is used with, aligned for `T`, which live and are
    /// accessed by nothing else in an order that the stream does not know for as long as the buffer is used.
    #[must_use]
    #[expect(unsafe_code, reason = "the memory is the caller's")]
    pub const unsafe fn borrowed(address: u64, len: usize) -> Self {
        Self {
            address,
            len,
            owner: None,
            element: PhantomData,
        }
    }

    /// Where it lies in the device's memory.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.address
    }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if let Some(driver) = &self.owner {
            driver.free(self.address);
        }
    }
}

impl<T> fmt::Debug for DeviceBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceBuffer[{}]", self.len)
    }
}

impl<T: Scalar> Buffer<T> for DeviceBuffer<T> {
    fn len(&self) -> usize {
        self.len
    }
}
