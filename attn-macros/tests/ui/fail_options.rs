use attn_macros::dtype_variants;

#[dtype_variants(f32, naem = "X", name = "not an ident")]
pub struct Layer<T>(T);

#[dtype_variants(f32, name = "A", name = "B", derive = "Debug", over(T), crate(core))]
pub struct Other<T>(T);

#[dtype_variants(f32, name(C), derive(Debug))]
impl<T> Layer<T> {
    #[dispatch]
    pub fn method(&self) {}
}

fn main() {}
