//! Another crate path, another parameter's name, a name of its own; nothing of the prelude is needed, nothing warned of.
#![deny(warnings)]

mod facade {
    pub use attn_core as core;
}

mod inner {
    use attn_macros::dtype_variants;

    /// Stand in the way of names that the expansion could mean.
    #[allow(dead_code)]
    pub struct Result;
    #[allow(dead_code)]
    pub trait From {}
    #[allow(dead_code)]
    pub trait TryFrom {}

    #[dtype_variants(
        f32,
        bf16,
        over = "U",
        name = "Layer",
        crate = "crate::facade::core",
        derive(Debug)
    )]
    #[derive(Debug)]
    pub struct LayerOf<U>(pub U);

    #[dtype_variants(f32, bf16, over = "U", name = "Layer", crate = "crate::facade::core")]
    impl<U> LayerOf<U> {
        #[dispatch]
        pub fn same(
            &self,
            mut other: LayerOf<U>,
        ) -> core::result::Result<LayerOf<U>, attn_core::Error>
        where
            U: Copy,
        {
            other.0 = self.0;
            Ok(other)
        }
    }
}

fn main() {
    let layer: inner::AnyLayer = inner::LayerOf(1.0f32).into();
    let other = inner::LayerOf(attn_core::bf16::ONE).into();
    let error = layer.same(other).unwrap_err();
    let wanted =
        attn_core::Error::dtype_mismatch("layer", attn_core::DType::BF16, attn_core::DType::F32);
    assert_eq!(error, wanted);
}
