use attn_macros::dtype_variants;

#[dtype_variants(f32)]
pub struct Layer<U>(U);

#[dtype_variants(f32)]
pub struct Defaulted<T = f32>(T);

pub struct Of<T>(T);

#[dtype_variants(f32)]
impl Of<u8> {
    #[dispatch]
    pub fn method(&self) {}
}

#[dtype_variants(f32)]
impl<T> Of<Vec<T>> {
    #[dispatch]
    pub fn other_method(&self) {}
}

#[dtype_variants(f32)]
impl<T> Of<Option<T>> {
    pub fn unmarked(&self) {}
}

fn main() {}
