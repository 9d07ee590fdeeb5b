use attn_macros::dtype_variants;

#[dtype_variants(f32, f16, over = "U")]
pub struct Layer<'a, S: Copy, U>
where
    S: Default,
    U: Copy,
{
    pub a: &'a S,
    pub b: U,
}

fn main() {
    let any: AnyLayer<'_, u8> = LayerF32 { a: &1u8, b: 2.0 }.into();
    assert_eq!(any.dtype(), attn_core::DType::F32);
}
