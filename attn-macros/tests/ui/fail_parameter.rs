use attn_macros::dtype_variants;

#[dtype_variants(f32)]
pub struct Layer<U>(U);

#[dtype_variants(f32)]
pub struct Defaulted<T = f32>(T);

fn main() {}
