use attn_macros::dtype_variants;

#[dtype_variants(f32)]
pub struct Layer<T>(T);

#[dtype_variants(f32)]
impl<T> Layer<T> {
    #[dispatch]
    pub fn no_self() {}

    #[dispatch]
    pub fn cannot_fail(&self, other: &Layer<T>) {
        let _ = other;
    }

    #[dispatch]
    pub fn not_a_type_of_ours(&self, other: &[T]) -> Result<(), attn_core::Error> {
        let _ = other;
        Ok(())
    }
}

fn main() {}
