use attn_macros::dtype_variants;

#[dtype_variants(f32)]
pub enum Layer<T> {
    A(T),
}

pub struct Named<T>(T);

#[dtype_variants(f32)]
impl<T> Drop for Named<T> {
    fn drop(&mut self) {}
}

fn main() {}
