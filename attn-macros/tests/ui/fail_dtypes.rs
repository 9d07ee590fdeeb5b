use attn_macros::dtype_variants;

#[dtype_variants(f32, f8, f32)]
pub struct Layer<T>(T);

#[dtype_variants()]
pub struct Other<T>(T);

fn main() {
    let _ = (Layer(1), Other(1));
}
