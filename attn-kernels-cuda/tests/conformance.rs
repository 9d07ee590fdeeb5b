//! The place of the conformance tests in the matrix: `cuda::f32::device`, … Without a device that computes each prints
//! `SKIPPED` and the reason, or fails where `ATTN_REQUIRE` names `cuda` or says `all`.

use attn_core::Kernels;
use attn_kernels_cuda::Cuda;

/// Passes on a device that computes in `T`.
fn computes<T: attn_core::Element>(test: &str)
where
    Cuda: Kernels<T>,
{
    let Err(missing) = Cuda::new(0) else { return };
    let required = std::env::var("ATTN_REQUIRE").unwrap_or_default();
    let asked = required
        .split(',')
        .any(|name| matches!(name, "cuda" | "all"));
    assert!(!asked, "cuda is required: {missing}");
    report(test, &missing.to_string());
}

#[expect(clippy::print_stderr, reason = "a skip must be seen")]
fn report(test: &str, reason: &str) {
    eprintln!("SKIPPED {test}: {reason}");
}

macro_rules! dtypes {
    ($($dtype:ident: $type:ty),+) => {$(
        mod $dtype {
            #[test]
            fn device() {
                crate::computes::<$type>(module_path!());
            }
        }
    )+};
}

mod cuda {
    dtypes!(f32: f32, f64: f64, f16: attn_core::f16, bf16: attn_core::bf16);
}
