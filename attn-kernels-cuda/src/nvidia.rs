//! NVIDIA's driver, through `cudarc`.
//!
//! Its library is opened when a device is first asked for. `cudarc` panics where a library or a function of it is missing, so
//! everything here begins with the question whether it is there, and how old it is.

mod library;

use crate::cuda::CudaDevice;
use crate::driver::{
    DeviceInfo, Driver, DriverError, Image, Launch, Matmul, MatmulAddresses, ModuleId, TensorMap,
};
use crate::error::CudaError;
use core::ffi::c_void;
use core::ptr;
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use cudarc::driver::{CudaContext, CudaStream, result};
use library::Library;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};

/// File name of the driver's library.
const LIBRARY: &str = if cfg!(windows) {
    "nvcuda.dll"
} else {
    "libcuda.so.1"
};

/// The CUDA version whose compiler made this crate's code.
const NEEDED: u32 = 13000;

impl CudaDevice {
    /// The device with this number, counted as the driver counts, on a stream of its own.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoDriver`], [`CudaError::OldDriver`], [`CudaError::NoDevice`], and the driver's own.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        let version = driver_version()?;
        let count = CudaContext::device_count().map_err(at("counting devices"))?;
        let count = usize::try_from(count).unwrap_or(0);
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).map_err(at("opening a device"))?;
        let stream = context.new_stream().map_err(at("making a stream"))?;
        Ok(Self::with_driver(Arc::new(Nvidia::new(stream, version)?)))
    }

    /// The device of a stream of the caller's; everything runs on that stream.
    ///
    /// # Errors
    ///
    /// [`CudaError::OldDriver`], and the driver's own.
    pub fn on_stream(stream: Arc<CudaStream>) -> Result<Self, CudaError> {
        let version = driver_version()?;
        Ok(Self::with_driver(Arc::new(Nvidia::new(stream, version)?)))
    }
}

/// The driver's CUDA version, if it is there and new enough.
fn driver_version() -> Result<u32, CudaError> {
    // SAFETY: opens the driver's library, whose initialisers are those of any program that uses CUDA, and closes it.
    #[expect(unsafe_code, reason = "loading a library runs its code")]
    let is_there = unsafe { sys::is_culib_present() };
    if !is_there {
        return Err(CudaError::NoDriver {
            looked_for: LIBRARY,
            next: "Install NVIDIA's driver, add its folder to the loader's search path, or use the CPU backend",
        });
    }
    let mut version = 0;
    // SAFETY: the function writes one number, and every driver has it.
    #[expect(unsafe_code, reason = "a function of C")]
    let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    asked.result().map_err(at("asking the driver's version"))?;
    let got = u32::try_from(version).unwrap_or(0);
    if got < NEEDED {
        return Err(CudaError::OldDriver {
            got,
            wanted: NEEDED,
        });
    }
    Ok(got)
}

/// A driver's refusal of an operation.
fn at(operation: &'static str) -> impl Fn(result::DriverError) -> DriverError {
    move |error| {
        let words = error.error_string();
        DriverError {
            operation,
            code: error.0 as i32,
            message: words.map_or_else(
                |_| "an error that the driver does not name".to_owned(),
                |words| words.to_string_lossy().into_owned(),
            ),
        }
    }
}

/// A stream on a device.
struct Nvidia {
    stream: Arc<CudaStream>,
    info: DeviceInfo,
    modules: Mutex<Modules>,
    library: Mutex<Opened>,
}

/// The library of products.
enum Opened {
    NotYet,
    Missing,
    Is(Library),
}

/// What was loaded. Handles are kept as numbers: they belong to the context, not to a thread.
#[derive(Default)]
struct Modules {
    loaded: Vec<usize>,
    functions: HashMap<(u64, String), Function>,
}

#[derive(Clone, Copy)]
struct Function {
    handle: usize,
    /// Dynamic shared memory that it may ask for so far.
    shared: u32,
}

impl core::fmt::Debug for Nvidia {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Nvidia").field(&self.info.name).finish()
    }
}

impl Nvidia {
    fn new(stream: Arc<CudaStream>, driver_version: u32) -> Result<Self, DriverError> {
        let context = stream.context();
        let number = |attribute| {
            let value = context.attribute(attribute);
            value.map(|value| u32::try_from(value).unwrap_or(0))
        };
        let ask = at("asking what a device can do");
        let info = DeviceInfo {
            name: context.name().map_err(&ask)?,
            capability: (
                number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR).map_err(&ask)?,
                number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR).map_err(&ask)?,
            ),
            multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
                .map_err(&ask)?,
            shared_per_block: number(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )
            .map_err(&ask)?,
            driver_version,
            wants_ptx: false,
        };
        Ok(Self {
            stream,
            info,
            modules: Mutex::default(),
            library: Mutex::new(Opened::NotYet),
        })
    }

    /// Makes the context this thread's and runs a function of the driver.
    fn run<R>(
        &self,
        operation: &'static str,
        call: impl FnOnce(sys::CUstream) -> Result<R, result::DriverError>,
    ) -> Result<R, DriverError> {
        let bound = self.stream.context().bind_to_thread();
        bound
            .and_then(|()| call(self.stream.cu_stream()))
            .map_err(at(operation))
    }

    /// A kernel that may use this much dynamic shared memory.
    fn function(&self, launch: &Launch<'_>) -> Result<sys::CUfunction, DriverError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (launch.module.0, launch.kernel.to_owned());
        if let Some(function) = modules.functions.get(&key)
            && function.shared >= launch.shared
        {
            return Ok(function.handle as sys::CUfunction);
        }
        let missing = || DriverError {
            operation: "finding a kernel",
            code: DriverError::NO_KERNEL,
            message: format!("no kernel `{}`", launch.kernel),
        };
        let index = usize::try_from(launch.module.0).map_err(|_| missing())?;
        let module = *modules.loaded.get(index).ok_or_else(missing)? as sys::CUmodule;
        let name = CString::new(launch.kernel).map_err(|_| missing())?;
        let handle = self.run("finding a kernel", |_| {
            // SAFETY: the module was loaded by this driver and is never unloaded before it.
            #[expect(unsafe_code, reason = "a function of C")]
            unsafe {
                result::module::get_function(module, name)
            }
        })?;
        if launch.shared > 0 {
            // What a kernel has of its own counts too, so even less than the usual 48 KiB may need asking.
            self.run("asking for shared memory", |_| {
                let attribute =
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: the function was found above.
                #[expect(unsafe_code, reason = "a function of C")]
                unsafe {
                    result::function::set_function_attribute(
                        handle,
                        attribute,
                        launch.shared as i32,
                    )
                }
            })?;
        }
        let function = Function {
            handle: handle as usize,
            shared: launch.shared,
        };
        modules.functions.insert(key, function);
        Ok(handle)
    }
}

impl Driver for Nvidia {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DriverError> {
        let is_ordered = self.stream.context().has_async_alloc();
        self.run("allocation", |stream| {
            if is_ordered {
                // SAFETY: the memory is used on this stream alone, and nothing reads it before it is written.
                #[expect(unsafe_code, reason = "a function of C")]
                return unsafe { result::malloc_async(stream, bytes) };
            }
            // SAFETY: nothing reads the memory before it is written.
            #[expect(unsafe_code, reason = "a function of C")]
            unsafe {
                result::malloc_sync(bytes)
            }
        })
    }

    fn free(&self, address: u64) {
        let is_ordered = self.stream.context().has_async_alloc();
        // A failure here is an earlier launch's, which the next operation reports.
        let _ = self.run("giving memory back", |stream| {
            if is_ordered {
                // SAFETY: the address came from `allocate` on this stream and is given back once, by its buffer.
                #[expect(unsafe_code, reason = "a function of C")]
                return unsafe { result::free_async(address, stream) };
            }
            // SAFETY: the address came from `allocate` and is given back once, by its buffer.
            #[expect(unsafe_code, reason = "a function of C")]
            unsafe {
                result::free_sync(address)
            }
        });
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<(), DriverError> {
        self.run("copying to the device", |stream| {
            // SAFETY: `to` has as many bytes; `from` lives until the stream is done, which is waited for: were it pinned memory, the
            // copy would go on after the call.
            #[expect(unsafe_code, reason = "a function of C")]
            unsafe {
                result::memcpy_htod_async(to, from, stream)
            }
        })?;
        self.synchronize()
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DriverError> {
        self.run("copying to the host", |stream| {
            // SAFETY: as `upload`, the other way.
            #[expect(unsafe_code, reason = "a function of C")]
            unsafe {
                result::memcpy_dtoh_async(to, from, stream)
            }
        })?;
        self.synchronize()
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), DriverError> {
        self.run("copying on the device", |stream| {
            // SAFETY: both are memory of the device of that many bytes.
            #[expect(unsafe_code, reason = "a function of C")]
            unsafe {
                result::memcpy_dtod_async(to, from, bytes, stream)
            }
        })
    }

    fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), DriverError> {
        self.run("filling memory", |stream| {
            // SAFETY: `to` is memory of the device of that many bytes.
            #[expect(unsafe_code, reason = "a function of C")]
            unsafe {
                result::memset_d8_async(to, byte, bytes, stream)
            }
        })
    }

    fn load(&self, image: Image<'_>) -> Result<ModuleId, DriverError> {
        let text = match image {
            Image::Cubin(code) => code.to_vec(),
            // The driver reads text up to its first zero.
            Image::Ptx(text) => text.bytes().chain([0]).collect(),
        };
        let module = self.run("loading code", |_| {
            // SAFETY: a whole image, which the driver copies.
            #[expect(unsafe_code, reason = "a function of C")]
            unsafe {
                result::module::load_data(text.as_ptr().cast())
            }
        })?;
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules.loaded.push(module as usize);
        Ok(ModuleId(modules.loaded.len() as u64 - 1))
    }

    #[expect(unsafe_code, reason = "the trait's contract")]
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), DriverError> {
        let function = self.function(launch)?;
        let mut params: Vec<*mut c_void> = launch
            .params
            .iter()
            .map(|bytes| bytes.as_ptr().cast_mut().cast())
            .collect();
        let [grid, block] = [launch.grid, launch.block].map(|[x, y, z]| (x, y, z));
        self.run("launch", |stream| {
            // SAFETY: the function is of a loaded module; its parameters are copied before the call returns and never written; what
            // they name is the caller's to vouch for.
            unsafe {
                result::launch_kernel(function, grid, block, launch.shared, stream, &mut params)
            }
        })
    }

    #[expect(unsafe_code, reason = "the trait's contract")]
    unsafe fn matmul(
        &self,
        call: &Matmul,
        addresses: MatmulAddresses,
    ) -> Option<Result<(), DriverError>> {
        let mut opened = self.library.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.run("a product", |_| Ok(())) {
            return Some(Err(error));
        }
        if matches!(*opened, Opened::NotYet) {
            *opened = match Library::open(|| self.allocate(library::WORKSPACE)) {
                Ok(Some(library)) => Opened::Is(library),
                Ok(None) => Opened::Missing,
                Err(error) => return Some(Err(error)),
            };
        }
        match &mut *opened {
            // SAFETY: the caller's, word for word; the context is this thread's.
            Opened::Is(library) => unsafe {
                library.multiply(call, addresses, self.stream.cu_stream())
            },
            Opened::Missing | Opened::NotYet => None,
        }
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16], DriverError> {
        use sys::CUtensorMapDataType_enum as DataType;
        let mut encoded = sys::CUtensorMap_st { opaque: [0; 16] };
        let dtype = match map.is_bf16 {
            true => DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            false => DataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        };
        self.run("describing an array", |_| {
            // SAFETY: the arrays have the four axes (three strides) that are said; the function writes the map alone.
            #[expect(unsafe_code, reason = "a function of C")]
            let made = unsafe {
                sys::cuTensorMapEncodeTiled(
                    &raw mut encoded,
                    dtype,
                    4,
                    ptr::with_exposed_provenance_mut(map.address as usize),
                    map.dims.as_ptr(),
                    map.strides.as_ptr(),
                    map.box_dims.as_ptr(),
                    [1u32; 4].as_ptr(),
                    sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                    sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
                    sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                    sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                )
            };
            made.result()
        })?;
        Ok(encoded.opaque)
    }

    fn synchronize(&self) -> Result<(), DriverError> {
        self.run("waiting for the device", |stream| {
            // SAFETY: the stream lives as long as this driver.
            #[expect(unsafe_code, reason = "a function of C")]
            unsafe {
                result::stream::synchronize(stream)
            }
        })
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        let library = self.library.get_mut();
        let library = library.unwrap_or_else(PoisonError::into_inner);
        if let Opened::Is(library) = core::mem::replace(library, Opened::Missing) {
            let workspace = library.workspace();
            drop(library);
            self.free(workspace);
        }
        let modules = self
            .modules
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let loaded = core::mem::take(&mut modules.loaded);
        for module in loaded {
            // A failure leaves the module to the context's end.
            let _ = self.run("unloading code", |_| {
                // SAFETY: the module was loaded by this driver, once, and is not used after.
                #[expect(unsafe_code, reason = "a function of C")]
                unsafe {
                    result::module::unload(module as sys::CUmodule)
                }
            });
        }
    }
}
