#![cfg_attr(feature = "std", doc = include_str!("../../README.md"))]
#![cfg_attr(
    not(feature = "std"),
    doc = "Attention layers trained in Flax, in Rust. The whole description, with its examples, comes with the feature `std`."
)]
#![no_std]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod decode;
mod extend;
mod gradient_buffers;
pub mod init;
pub mod initializers;
mod inputs;
pub mod io;
mod kv_cache;
#[cfg(feature = "alloc")]
pub mod onnx;
#[cfg(feature = "alloc")]
mod packed;
mod params;
mod plan;
pub mod random;
mod residuals;
mod scratch;
pub mod tensor;
mod typed;
mod typed_backward;

#[cfg(feature = "alloc")]
mod axis;
#[cfg(feature = "alloc")]
mod backward;
#[cfg(feature = "alloc")]
mod bind;
#[cfg(feature = "alloc")]
mod cache;
#[cfg(feature = "alloc")]
mod dropout;
#[cfg(feature = "alloc")]
mod einsum;
#[cfg(feature = "alloc")]
mod einsum_backward;
#[cfg(feature = "alloc")]
mod forward;
#[cfg(feature = "alloc")]
mod functions;
#[cfg(feature = "alloc")]
mod gradients;
#[cfg(feature = "alloc")]
mod hooks;
#[cfg(feature = "alloc")]
mod layer;
#[cfg(feature = "alloc")]
mod masks;
#[cfg(feature = "alloc")]
mod merge;
#[cfg(feature = "alloc")]
mod prefill;
#[cfg(feature = "alloc")]
mod product;
#[cfg(feature = "alloc")]
mod rotary;
#[cfg(feature = "alloc")]
mod stage;
#[cfg(feature = "alloc")]
mod stage_backward;
#[cfg(feature = "alloc")]
mod vjp;

pub use attn_core::{
    self as core, DType, DenseKernel, Dims, Error, FullyMasked, HostView, HostViewMut,
    PackedKernel, Pairing, Positions, Result, Rotary, RotaryScaling, RotaryTable, ScalarType, bf16,
    f16,
};
#[cfg(feature = "cpu")]
pub use attn_kernels_cpu::{self as cpu, Cpu};
#[cfg(feature = "cuda")]
pub use attn_kernels_cuda as cuda;

pub use decode::{
    AnyDecodeCache, DecodeCache, DecodeCacheBF16, DecodeCacheF16, DecodeCacheF32, DecodeCacheF64,
    OnFull,
};
pub use extend::{
    AnyNextTokens, NextTokens, NextTokensBF16, NextTokensF16, NextTokensF32, NextTokensF64,
};
pub use gradient_buffers::{
    AnyGradientBuffers, DenseGradientBuffers, GradientBuffers, GradientBuffersBF16,
    GradientBuffersF16, GradientBuffersF32, GradientBuffersF64, InputGradients,
};
pub use initializers::Initializer;
pub use inputs::{AnyInputs, Inputs, InputsBF16, InputsF16, InputsF32, InputsF64};
#[cfg(feature = "alloc")]
pub use kv_cache::OwnedKvCache;
pub use kv_cache::{
    AnyKvCache, KvCache, KvCacheBF16, KvCacheBuffers, KvCacheF16, KvCacheF32, KvCacheF64,
    KvCachePlan, KvCacheSizes, KvFormat, KvLayout, RowBuffers, RowSizes,
};
pub use params::{
    AnyParams, Dense, ParamSource, Params, ParamsBF16, ParamsF16, ParamsF32, ParamsF64, SplitHeads,
};
pub use plan::{Plan, ResidualSizes, ScratchSizes};
pub use residuals::{
    AnyResidualBuffers, ResidualBuffers, ResidualBuffersBF16, ResidualBuffersF16,
    ResidualBuffersF32, ResidualBuffersF64,
};
pub use scratch::{AnyScratch, Scratch, ScratchBF16, ScratchF16, ScratchF32, ScratchF64};
pub use typed::{
    AnyMultiHeadDotProductAttention, MultiHeadDotProductAttentionBF16,
    MultiHeadDotProductAttentionF16, MultiHeadDotProductAttentionF32,
    MultiHeadDotProductAttentionF64, MultiHeadDotProductAttentionOf,
};

#[cfg(feature = "alloc")]
pub use backward::Residuals;
#[cfg(feature = "alloc")]
pub use cache::{AnyCache, CacheAccess};
#[cfg(feature = "alloc")]
pub use functions::{DotProductAttention, dot_product_attention, dot_product_attention_weights};
#[cfg(feature = "alloc")]
pub use gradients::{Gradients, ParamGradients};
#[cfg(feature = "alloc")]
pub use hooks::{AttentionArgs, AttentionFn, DotGeneral, DotGeneralCls, Einsum, EinsumCls};
#[cfg(feature = "alloc")]
pub use init::{InitShapes, InitialParams};
#[cfg(feature = "alloc")]
pub use layer::{
    Call, MultiHeadAttention, MultiHeadDotProductAttention, Output, Precision, SelfAttention,
};
#[cfg(feature = "alloc")]
pub use masks::{combine_masks, make_attention_mask, make_attention_mask_with, make_causal_mask};
#[cfg(feature = "alloc")]
pub use merge::{PartialAttention, merge_attention, partial_attention};
#[cfg(feature = "alloc")]
pub use packed::PackedParams;
#[cfg(feature = "alloc")]
pub use residuals::OwnedResiduals;
#[cfg(feature = "alloc")]
pub use rotary::{RotaryEmbedding, rotary_embedding, rotary_embedding_vjp};
#[cfg(feature = "alloc")]
pub use scratch::OwnedScratch;
#[cfg(feature = "alloc")]
pub use stage::HostKernels;
#[cfg(feature = "alloc")]
pub use vjp::{AttentionGradients, AttentionResiduals, dot_product_attention_vjp};
