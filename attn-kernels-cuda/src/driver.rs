//! What a device does for the backend: memory, modules, launches. A driver's library behind `cudarc` is one implementation,
//! the emulator of the tests another, so the same launches and the same PTX run on both.

use attn_core::DType;
use core::fmt;

/// Why a device refused an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverError {
    /// What was asked.
    pub operation: &'static str,
    /// The driver's number (`CUresult`), or one of the emulator's, below 0.
    pub code: i32,
    /// What the driver or the emulator says of it.
    pub message: String,
}

impl DriverError {
    /// `CUDA_ERROR_OUT_OF_MEMORY`.
    pub const OUT_OF_MEMORY: i32 = 2;
    /// Access outside of what is allocated, misaligned or of bytes that nothing wrote, a race, a deadlock: the emulator's findings.
    pub const FINDING: i32 = -1;
    /// An instruction that the emulator does not know.
    pub const UNKNOWN_INSTRUCTION: i32 = -2;
    /// A kernel or parameter that the module does not have.
    pub const NO_KERNEL: i32 = -3;
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.operation, self.message, self.code)
    }
}

impl core::error::Error for DriverError {}

/// What is known of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// Compute capability, as `(9, 0)`.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that a block may ask for, in bytes.
    pub shared_per_block: u32,
    /// The CUDA version of its driver, as 13000; 0 for the emulator.
    pub driver_version: u32,
    /// Whether it executes PTX text itself and takes no machine code.
    pub wants_ptx: bool,
}

/// Code for a device.
#[derive(Debug, Clone, Copy)]
pub enum Image<'a> {
    /// PTX text.
    Ptx(&'a str),
    /// Machine code.
    Cubin(&'a [u8]),
}

/// A module that a driver has loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModuleId(pub u64);

/// A launch: which kernel, on how many threads, with which parameters.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The module.
    pub module: ModuleId,
    /// The kernel's name in it.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
    /// The bytes of each parameter.
    pub params: &'a [&'a [u8]],
}

/// What a tensor map describes: an array of 16-bit elements in global memory, and the box that one copy brings into shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMap {
    /// Address of the first element.
    pub address: u64,
    /// Axis lengths, the fastest first.
    pub dims: [u64; 4],
    /// Bytes from one index of axes 1, 2 and 3 to the next.
    pub strides: [u64; 3],
    /// Elements of the box along each axis.
    pub box_dims: [u32; 4],
    /// Whether elements are bf16 rather than f16.
    pub is_bf16: bool,
}

/// A factor of a product: a row-major matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Factor {
    /// Elements from one row to the next.
    pub stride: u64,
    /// Whether it is stored the other way round than it is multiplied.
    pub is_transposed: bool,
}

/// The size and kind of a product `out[m, n] = a[m, k] · b[k, n] + bias[n]` of row-major matrices, whose addresses and strides are
/// multiples of 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Matmul {
    /// Of all matrices. Sums are made in its accumulator.
    pub dtype: DType,
    /// `m`, `n` and `k`.
    pub sizes: [u64; 3],
    /// The left factor.
    pub a: Factor,
    /// The right factor.
    pub b: Factor,
    /// Elements from one row of the output to the next.
    pub out_stride: u64,
    /// Whether there is a bias.
    pub has_bias: bool,
    /// Whether the product is added to what is there.
    pub accumulate: bool,
}

/// Where the matrices of a [`Matmul`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatmulAddresses {
    /// The left factor.
    pub a: u64,
    /// The right factor.
    pub b: u64,
    /// The output.
    pub out: u64,
    /// The bias, if there is one.
    pub bias: u64,
}

/// A device that computes. All calls act in the order in which they are made (on one stream); only [`Driver::download`] and
/// [`Driver::synchronize`] wait.
pub trait Driver: Send + Sync + fmt::Debug {
    /// What is known of the device.
    fn info(&self) -> &DeviceInfo;

    /// New memory, aligned to 256 bytes. Its content is undefined.
    ///
    /// # Errors
    ///
    /// [`DriverError::OUT_OF_MEMORY`] and the driver's own.
    fn allocate(&self, bytes: usize) -> Result<u64, DriverError>;

    /// Gives memory back, once what was asked before is done with it.
    fn free(&self, address: u64);

    /// Copies from the host.
    ///
    /// # Errors
    ///
    /// The driver's own.
    fn upload(&self, to: u64, from: &[u8]) -> Result<(), DriverError>;

    /// Waits, and copies to the host.
    ///
    /// # Errors
    ///
    /// The driver's own; also those of launches before it.
    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DriverError>;

    /// Copies within the device.
    ///
    /// # Errors
    ///
    /// The driver's own.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), DriverError>;

    /// Fills memory with a byte.
    ///
    /// # Errors
    ///
    /// The driver's own.
    fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), DriverError>;

    /// Loads code.
    ///
    /// # Errors
    ///
    /// The driver's own, as for code of another architecture.
    fn load(&self, image: Image<'_>) -> Result<ModuleId, DriverError>;

    /// Starts a kernel.
    ///
    /// # Safety
    ///
    /// The parameters are those that the kernel declares, and every address in them names memory that the kernel may access as
    /// it does.
    ///
    /// # Errors
    ///
    /// The driver's own; the emulator's findings.
    #[expect(unsafe_code, reason = "a kernel accesses what its parameters say")]
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), DriverError>;

    /// The 128 bytes that describe an array to the copy engine of sm_90, with 128-byte swizzle and zeros outside the array.
    ///
    /// # Errors
    ///
    /// The driver's own.
    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16], DriverError>;

    /// A product by the vendor's library; `None` where there is no library, or none of its kernels fits.
    ///
    /// # Safety
    ///
    /// The addresses name matrices as `call` says, which may be read and, the output, written.
    ///
    /// # Errors
    ///
    /// The library's own.
    #[expect(unsafe_code, reason = "a library accesses what its arguments say")]
    unsafe fn matmul(
        &self,
        _call: &Matmul,
        _at: MatmulAddresses,
    ) -> Option<Result<(), DriverError>> {
        None
    }

    /// Waits until everything asked is done.
    ///
    /// # Errors
    ///
    /// The driver's own; also those of launches before it.
    fn synchronize(&self) -> Result<(), DriverError>;
}
