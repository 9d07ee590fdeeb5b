//! cuBLASLt, which multiplies large matrices: opened when it is first asked for, and not missed where it is not installed.
//!
//! It counts columns first, so a row-major `out = a · b` is its `outᵀ = bᵀ · aᵀ`.

use crate::driver::{DriverError, Factor, Matmul, MatmulAddresses};
use attn_core::DType;
use core::ffi::c_void;
use core::ptr;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUstream;
use std::collections::HashMap;

/// Memory for the library's own sums, in bytes: what it recommends for recent devices.
pub(super) const WORKSPACE: usize = 32 << 20;
/// Plans that are kept; a program whose sizes change all the time begins anew.
const MAX_PLANS: usize = 512;
/// `CUBLAS_OP_N` and `CUBLAS_OP_T`, which a header of another library declares.
const AS_IT_IS: i32 = 0;
const TRANSPOSE: i32 = 1;
/// What addresses and strides are multiples of.
const ALIGNMENT: u32 = 16;

/// The library's handle, the memory it works in, and the plans made so far.
///
/// Handles are kept as numbers: they belong to the context, not to a thread.
pub(super) struct Library {
    handle: usize,
    workspace: u64,
    plans: HashMap<Matmul, Option<Plan>>,
}

/// What the library needs to know of products of one size and kind.
struct Plan {
    description: usize,
    /// Of the library's left and right factor, and of the output.
    layouts: [usize; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
}

impl Library {
    /// Opens the library, if it is there; `workspace` gives memory of [`WORKSPACE`] bytes.
    pub(super) fn open(
        workspace: impl FnOnce() -> Result<u64, DriverError>,
    ) -> Result<Option<Self>, DriverError> {
        // SAFETY: opens the library, whose initialisers are those of any program that uses it, and closes it.
        #[expect(unsafe_code, reason = "loading a library runs its code")]
        let is_there = unsafe { sys::is_culib_present() };
        if !is_there {
            return Ok(None);
        }
        let handle = result::create_handle().map_err(at("opening cuBLASLt"))?;
        Ok(Some(Self {
            handle: handle as usize,
            workspace: workspace()?,
            plans: HashMap::new(),
        }))
    }

    /// Memory to give back once the library is closed.
    pub(super) const fn workspace(&self) -> u64 {
        self.workspace
    }

    /// Starts a product on a stream; `None` if no kernel of the library fits.
    ///
    /// # Safety
    ///
    /// As [`Driver::matmul`](crate::driver::Driver::matmul).
    #[expect(unsafe_code, reason = "the library accesses what its arguments say")]
    pub(super) unsafe fn multiply(
        &mut self,
        call: &Matmul,
        addresses: MatmulAddresses,
        stream: CUstream,
    ) -> Option<Result<(), DriverError>> {
        if self.plans.len() >= MAX_PLANS && !self.plans.contains_key(call) {
            self.plans.clear();
        }
        if !self.plans.contains_key(call) {
            let plan = match Plan::new(self.handle, call) {
                Ok(plan) => Some(plan),
                Err(error) if is_unsupported(error) => None,
                Err(error) => return Some(Err(at("planning a product")(error))),
            };
            self.plans.insert(*call, plan);
        }
        let plan = self.plans.get(call)?.as_ref()?;
        // SAFETY: the plan is of this library and describes the matrices of the call, which are the caller's to vouch for.
        let started = unsafe { plan.start(self, call, addresses, stream) };
        Some(started.map_err(at("a product by cuBLASLt")))
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: the handle was made by this library's `open` and is used by nothing after.
        #[expect(unsafe_code, reason = "a function of C")]
        // A failure leaves the handle to the context's end.
        let _ = unsafe { result::destroy_handle(self.handle as sys::cublasLtHandle_t) };
    }
}

impl Plan {
    fn new(handle: usize, call: &Matmul) -> Result<Self, CublasError> {
        let (data, compute, scale) = types(call.dtype);
        let [m, n, k] = call.sizes;
        let layout = |factor: Factor, rows: u64, columns: u64| {
            let (rows, columns) = match factor.is_transposed {
                true => (columns, rows),
                false => (rows, columns),
            };
            result::create_matrix_layout(data, columns, rows, factor.stride as i64)
        };
        let out = Factor {
            stride: call.out_stride,
            is_transposed: false,
        };
        // What is made is in the plan at once, whose drop takes zeros for what is not there.
        let mut plan = Self {
            description: result::create_matmul_desc(compute, scale)? as usize,
            layouts: [0; 3],
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspace: 0,
        };
        plan.layouts[0] = layout(call.b, k, n)? as usize;
        plan.layouts[1] = layout(call.a, m, k)? as usize;
        plan.layouts[2] = layout(out, m, n)? as usize;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let operation = |factor: Factor| match factor.is_transposed {
            true => TRANSPOSE,
            false => AS_IT_IS,
        };
        plan.describe(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &operation(call.b))?;
        plan.describe(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &operation(call.a))?;
        if call.has_bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as i32;
            plan.describe(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        plan.choose(handle)?;
        Ok(plan)
    }

    /// Sets an attribute of the description.
    fn describe<V>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &V,
    ) -> Result<(), CublasError> {
        let description = self.description as sys::cublasLtMatmulDesc_t;
        // SAFETY: the description lives, and the library copies the value, whose size it is told.
        #[expect(unsafe_code, reason = "a function of C")]
        unsafe {
            result::set_matmul_desc_attribute(
                description,
                attribute,
                ptr::from_ref(value).cast(),
                size_of::<V>(),
            )
        }
    }

    /// Lets the library choose its kernel.
    fn choose(&mut self, handle: usize) -> Result<(), CublasError> {
        let preference = Preference(result::create_matmul_pref()?);
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        preference.set(
            Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            &(WORKSPACE as u64),
        )?;
        for matrix in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(matrix, &ALIGNMENT)?;
        }
        // Parts of a sum must not be rounded to 16 bits before they are added.
        let reductions = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        preference.set(
            Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            &(reductions as u32),
        )?;
        let [a, b, out] = self
            .layouts
            .map(|layout| layout as sys::cublasLtMatrixLayout_t);
        // SAFETY: everything was made above and lives.
        #[expect(unsafe_code, reason = "a function of C")]
        let chosen = unsafe {
            result::get_matmul_algo_heuristic(
                handle as sys::cublasLtHandle_t,
                self.description as sys::cublasLtMatmulDesc_t,
                a,
                b,
                out,
                out,
                preference.0,
            )
        }?;
        self.algorithm = chosen.algo;
        self.workspace = chosen.workspaceSize;
        Ok(())
    }

    /// # Safety
    ///
    /// As [`Library::multiply`].
    #[expect(unsafe_code, reason = "the library accesses what its arguments say")]
    unsafe fn start(
        &self,
        library: &Library,
        call: &Matmul,
        addresses: MatmulAddresses,
        stream: CUstream,
    ) -> Result<(), CublasError> {
        if call.has_bias {
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            self.describe(attribute, &addresses.bias)?;
        }
        let pointer = |address: u64| ptr::with_exposed_provenance_mut::<c_void>(address as usize);
        let beta = f64::from(u8::from(call.accumulate));
        let (alpha_64, beta_64, alpha_32, beta_32) = (1.0f64, beta, 1.0f32, beta as f32);
        let (alpha, beta): (*const c_void, *const c_void) = match call.dtype {
            DType::F64 => (
                ptr::from_ref(&alpha_64).cast(),
                ptr::from_ref(&beta_64).cast(),
            ),
            DType::F32 | DType::F16 | DType::BF16 => (
                ptr::from_ref(&alpha_32).cast(),
                ptr::from_ref(&beta_32).cast(),
            ),
        };
        let [a, b, out] = self
            .layouts
            .map(|layout| layout as sys::cublasLtMatrixLayout_t);
        // SAFETY: handle, description and layouts live; the numbers are read before the call returns; the workspace is used on this
        // stream alone; the matrices are the caller's to vouch for.
        unsafe {
            result::matmul(
                library.handle as sys::cublasLtHandle_t,
                self.description as sys::cublasLtMatmulDesc_t,
                alpha,
                beta,
                pointer(addresses.b),
                a,
                pointer(addresses.a),
                b,
                pointer(addresses.out),
                out,
                pointer(addresses.out),
                out,
                &raw const self.algorithm,
                pointer(library.workspace),
                self.workspace,
                stream.cast(),
            )
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // A failure leaves a description to the context's end.
        for layout in self.layouts.iter().filter(|&&layout| layout != 0) {
            // SAFETY: made by `Plan::new`, and used by nothing after.
            #[expect(unsafe_code, reason = "a function of C")]
            let _ =
                unsafe { result::destroy_matrix_layout(*layout as sys::cublasLtMatrixLayout_t) };
        }
        // SAFETY: as above.
        #[expect(unsafe_code, reason = "a function of C")]
        let _ =
            unsafe { result::destroy_matmul_desc(self.description as sys::cublasLtMatmulDesc_t) };
    }
}

/// What the library should look for in a kernel.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn set<V>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &V,
    ) -> Result<(), CublasError> {
        // SAFETY: the preference lives, and the library copies the value, whose size it is told.
        #[expect(unsafe_code, reason = "a function of C")]
        unsafe {
            result::set_matmul_pref_attribute(
                self.0,
                attribute,
                ptr::from_ref(value).cast(),
                size_of::<V>(),
            )
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it was made by the library and is used by nothing after.
        #[expect(unsafe_code, reason = "a function of C")]
        // A failure leaves it to the context's end.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// The types of elements, of sums and of factors on them. Sums of f32 are true f32.
const fn types(
    dtype: DType,
) -> (
    sys::cudaDataType,
    sys::cublasComputeType_t,
    sys::cudaDataType,
) {
    use sys::cublasComputeType_t::{CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F};
    use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_16F, CUDA_R_32F, CUDA_R_64F};
    match dtype {
        DType::F32 => (CUDA_R_32F, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        DType::F64 => (CUDA_R_64F, CUBLAS_COMPUTE_64F, CUDA_R_64F),
        DType::F16 => (CUDA_R_16F, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        DType::BF16 => (CUDA_R_16BF, CUBLAS_COMPUTE_32F, CUDA_R_32F),
    }
}

const fn is_unsupported(error: CublasError) -> bool {
    use sys::cublasStatus_t::{CUBLAS_STATUS_INVALID_VALUE, CUBLAS_STATUS_NOT_SUPPORTED};
    matches!(
        error.0,
        CUBLAS_STATUS_NOT_SUPPORTED | CUBLAS_STATUS_INVALID_VALUE
    )
}

/// The library's refusal of an operation.
fn at(operation: &'static str) -> impl Fn(CublasError) -> DriverError {
    move |error| DriverError {
        operation,
        code: error.0 as i32,
        message: format!("{:?}", error.0),
    }
}
