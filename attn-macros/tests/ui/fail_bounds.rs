use attn_macros::dtype_variants;

pub trait Element {
    type Acc;
}

pub trait Holds<T> {}

#[dtype_variants(f32)]
pub struct Layer<S: Holds<T::Acc>, T: Element>(S, T);

#[dtype_variants(f32)]
impl<S: Holds<<T as Element>::Acc>, T: Element> Layer<S, T> {
    #[dispatch]
    pub fn apply<B>(&self, backend: &B)
    where
        B: Holds<T::Acc>,
    {
        let _ = backend;
    }
}

fn main() {}
