use attn_macros::dtype_variants;

#[dtype_variants(f32)]
pub struct Layer<T>(T);

#[dtype_variants(f32)]
impl<T> Layer<T> {
    #[dispatch]
    pub fn bare(self) -> T {
        self.0
    }

    #[dispatch]
    pub fn nested(self) -> Option<Layer<T>> {
        Some(self)
    }

    #[dispatch]
    pub fn nested_in_result(self) -> Result<Vec<Self>, attn_core::Error> {
        Ok(vec![self])
    }

    #[dispatch]
    pub fn in_the_error(self) -> Result<(), Layer<T>> {
        Err(self)
    }
}

fn main() {}
