//! `module.init`: the parameters that Flax starts from, bit for bit.
//!
//! [`Param`] lists them in Flax's order of creation; each is drawn by itself from its own key, so none needs the others and nothing is
//! allocated. With `alloc`, [`MultiHeadDotProductAttention::init`](crate::MultiHeadDotProductAttention::init) makes the whole tree.

mod param;
#[cfg(feature = "alloc")]
mod tree;

pub use param::{Param, ParamSizes};
#[cfg(feature = "alloc")]
pub use tree::{InitShapes, InitialParams};

use crate::initializers::Initializer;
use crate::random::Rngs;
use attn_core::{Element, Result};

/// The fields of a layer that its initial parameters follow from, besides its sizes.
///
/// ```
/// use attn_layers::{Dims, MultiHeadDotProductAttentionF32, init::{Init, Param}, random::{Key, Rngs}};
///
/// let layer = MultiHeadDotProductAttentionF32 { qkv_features: Some(6), ..MultiHeadDotProductAttentionF32::new(2) };
/// let shape = Dims::new(&[1, 4, 8])?;
/// let sizes = layer.plan(&shape, &shape, &shape)?.param_sizes();
/// let rngs = Rngs::params(Key::from_words([0, 42]));
///
/// assert_eq!(Param::QueryKernel.shape(&sizes)?.as_slice(), [8, 2, 3]);
/// let mut kernel = [0.0f32; 48];
/// Init::default().fill(Param::QueryKernel, &sizes, &rngs, &mut kernel)?;
/// assert_eq!(kernel[..2], [0.567926, 0.49831283]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Init<'h> {
    /// Initializer of the kernels of query, key, value, and of out unless it has its own.
    pub kernel: Initializer<'h>,
    /// Initializer of out's kernel.
    pub out_kernel: Option<Initializer<'h>>,
    /// Initializer of the biases of query, key, value, and of out unless it has its own.
    pub bias: Initializer<'h>,
    /// Initializer of out's bias.
    pub out_bias: Option<Initializer<'h>>,
    /// Names of the modules from the root down to the layer; empty at the root.
    pub path: &'h [&'h str],
}

impl Default for Init<'_> {
    /// Flax's defaults, at the root.
    fn default() -> Self {
        Self {
            kernel: Initializer::LecunNormal,
            out_kernel: None,
            bias: Initializer::Zeros,
            out_bias: None,
            path: &[],
        }
    }
}

impl<'h> Init<'h> {
    /// Fills `out`, row-major, with the initial values of `param`: shape [`Param::shape`]. Its dtype is `T`, the caller's choice; a layer's
    /// `init` also narrows `float64` where JAX does.
    ///
    /// # Errors
    ///
    /// [`Error::ParamsRngMissing`](crate::Error::ParamsRngMissing), and those of [`Initializer::fill`].
    pub fn fill<T: Element>(
        &self,
        param: Param,
        sizes: &ParamSizes,
        rngs: &Rngs,
        out: &mut [T],
    ) -> Result<()> {
        let key = rngs.param_key(self.path, param.scope(), param.count())?;
        let shape = param.flat_shape(sizes)?;
        self.initializer(param)
            .fill(key, &shape, rngs.drawing(), out)
    }

    fn initializer(&self, param: Param) -> Initializer<'h> {
        match param {
            Param::QueryKernel | Param::KeyKernel | Param::ValueKernel => self.kernel,
            Param::QueryBias | Param::KeyBias | Param::ValueBias => self.bias,
            Param::QueryScale | Param::KeyScale => Initializer::Ones,
            Param::OutKernel => self.out_kernel.unwrap_or(self.kernel),
            Param::OutBias => self.out_bias.unwrap_or(self.bias),
        }
    }
}
