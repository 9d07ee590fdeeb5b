use attn_macros::dtype_variants;

#[dtype_variants(f32)]
pub struct Layer<T>(T);

#[dtype_variants(f32)]
impl<T> Layer<T> {
    #[dispatch]
    pub fn no_self() {}

    #[dispatch]
    pub fn boxed(self: Box<Self>) {}

    #[dispatch]
    pub async fn waits(&self) {}

    #[dispatch]
    pub const fn constant(&self) {}

    #[dispatch]
    pub unsafe fn careful(&self) {}

    #[dispatch]
    pub fn cannot_fail(&self, other: &Layer<T>) {
        let _ = other;
    }

    #[dispatch]
    pub fn not_a_type_of_ours(&self, other: &[T]) -> Result<(), attn_core::Error> {
        let _ = other;
        Ok(())
    }

    #[dispatch]
    pub fn not_a_name(&self, (a, b): (u8, u8)) {
        let _ = (a, b);
    }
}

fn main() {}
