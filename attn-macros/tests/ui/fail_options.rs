use attn_macros::dtype_variants;

#[dtype_variants(f32, naem = "X", name = "not an ident")]
pub struct Layer<T>(T);

fn main() {}
