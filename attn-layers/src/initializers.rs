//! What parameters start from (`jax.nn.initializers`), bit for bit.
//!
//! Numbers are drawn and scaled in the parameter's own dtype, every step rounded.

use crate::random::{
    Counters, Key, NormalDraw, Range, Rngs, TruncatedDraw, constant, product, quotient, root,
};
use attn_core::{DType, Dims, Element, Error, Result};
use core::f64::consts::SQRT_2;
use core::fmt;

/// Deviation of a normal number of deviation 1 that is cut at -2 and 2.
const TRUNCATED_DEVIATION: f64 = 0.879_625_661_034_239_8;

/// A function of `jax.nn.initializers`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Initializer<'h> {
    /// `lecun_normal()`, the default of kernels.
    LecunNormal,
    /// `lecun_uniform()`.
    LecunUniform,
    /// `he_normal()`.
    HeNormal,
    /// `he_uniform()`.
    HeUniform,
    /// `xavier_normal()`, also called `glorot_normal()`.
    XavierNormal,
    /// `xavier_uniform()`, also called `glorot_uniform()`.
    XavierUniform,
    /// `variance_scaling(scale, mode, distribution)`, of which those above are special cases.
    VarianceScaling {
        /// The variance, times the size that `mode` names.
        scale: f64,
        /// Which size of the array divides the variance.
        mode: FanMode,
        /// What is drawn.
        distribution: Distribution,
    },
    /// `normal(stddev)`.
    Normal {
        /// Standard deviation.
        stddev: f64,
    },
    /// `truncated_normal(stddev, lower, upper)`.
    TruncatedNormal {
        /// Standard deviation before the cut.
        stddev: f64,
        /// The lower cut, in deviations; -2 by default in JAX.
        lower: f64,
        /// The upper cut, in deviations; 2 by default in JAX.
        upper: f64,
    },
    /// `uniform(scale)`.
    Uniform {
        /// The end of the range that begins at 0.
        scale: f64,
    },
    /// `constant(value)`.
    Constant {
        /// The value.
        value: f64,
    },
    /// `zeros`, the default of biases.
    Zeros,
    /// `ones`.
    Ones,
    /// A user's own.
    Function(Function<'h>),
}

/// Which size of an array `variance_scaling` divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FanMode {
    /// `fan_in`: the inputs.
    In,
    /// `fan_out`: the outputs.
    Out,
    /// `fan_avg`: the mean of both.
    Average,
    /// `fan_geo_avg`: the geometric mean of both.
    GeometricAverage,
}

/// What `variance_scaling` draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Distribution {
    /// `truncated_normal`, cut at two deviations and widened for it.
    TruncatedNormal,
    /// `normal`.
    Normal,
    /// `uniform`, around 0.
    Uniform,
}

/// In which order JAX multiplies a normal number by its deviation; the results differ in the last bits. Only initializers that draw
/// whole normal numbers are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NormalOrder {
    /// `(sqrt(2) * erf_inv(u)) * stddev`: JAX up to 0.11.
    #[default]
    DeviationLast,
    /// `(sqrt(2) * stddev) * erf_inv(u)`: JAX since 0.12.
    DeviationFirst,
}

/// How JAX draws and scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drawing {
    /// `jax_threefry_partitionable`.
    pub counters: Counters,
    /// JAX's version, as far as it matters.
    pub normal_order: NormalOrder,
}

/// An initializer of the user's own. Needs no allocator: it writes where it is told.
///
/// ```
/// use attn_layers::initializers::{Drawing, Function, Initializer, InitializerFunction, ValuesMut};
/// use attn_layers::{Result, random::Key};
///
/// struct Identity;
/// impl InitializerFunction for Identity {
///     fn fill(&self, _: Key, shape: &[usize], mut out: ValuesMut<'_>) -> Result<()> {
///         let columns = shape.last().copied().unwrap_or(1);
///         out.set_all(|index| if index / columns == index % columns { 1.0 } else { 0.0 });
///         Ok(())
///     }
/// }
/// let mut out = [9.0f32; 4];
/// let init = Initializer::Function(Function(&Identity));
/// init.fill(Key::from_words([0, 0]), &[2, 2], Drawing::default(), &mut out)?;
/// assert_eq!(out, [1.0, 0.0, 0.0, 1.0]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
pub trait InitializerFunction {
    /// Fills `out`, the row-major values of an array of `shape`, as Flax's initializers get it: the kernel of query, key and value is
    /// `[features, heads * head_dim]`, that of out `[heads * head_dim, features]`; biases have one axis.
    ///
    /// # Errors
    ///
    /// What the function finds wrong.
    fn fill(&self, key: Key, shape: &[usize], out: ValuesMut<'_>) -> Result<()>;
}

/// A user's [`InitializerFunction`]; equal to itself only.
#[derive(Clone, Copy)]
pub struct Function<'h>(pub &'h dyn InitializerFunction);

impl fmt::Debug for Function<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Function")
    }
}

impl PartialEq for Function<'_> {
    fn eq(&self, other: &Self) -> bool {
        core::ptr::addr_eq(self.0, other.0)
    }
}

macro_rules! values_mut {
    ($(($type:ty, $variant:ident, $acc:ty)),* $(,)?) => {
        /// Values to be written, in one of the dtypes.
        #[derive(Debug)]
        pub enum ValuesMut<'a> {
            $(
                #[doc = concat!("In `", stringify!($variant), "`.")]
                $variant(&'a mut [$type]),
            )*
        }

        impl<'a> ValuesMut<'a> {
            fn of<T: Element>(values: &'a mut [T]) -> Self {
                match T::DTYPE {
                    $(DType::$variant => Self::$variant(bytemuck::cast_slice_mut(values)),)*
                }
            }

            /// Their dtype.
            #[must_use]
            pub fn dtype(&self) -> DType {
                match self {
                    $(Self::$variant(_) => DType::$variant,)*
                }
            }

            /// How many there are.
            #[must_use]
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(values) => values.len(),)*
                }
            }

            /// Whether there is none.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Sets each to what `value` gives for its index, rounded once.
            pub fn set_all(&mut self, mut value: impl FnMut(usize) -> f64) {
                match self {
                    $(Self::$variant(values) => {
                        for (index, to) in values.iter_mut().enumerate() {
                            *to = <$type as Element>::from_f64(value(index));
                        }
                    })*
                }
            }
        }
    };
}
attn_core::for_each_dtype!(values_mut);

impl Rngs {
    /// How initializers draw from these streams.
    #[must_use]
    pub fn drawing(&self) -> Drawing {
        Drawing {
            counters: self.convention.counters,
            normal_order: self.normal_order,
        }
    }
}

impl Initializer<'_> {
    /// Fills `out` with an array of `shape`, row-major: `initializer(key, shape, dtype)` of JAX. Flax's dense layers give it flattened
    /// shapes; see [`InitializerFunction::fill`].
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], [`Error::Rank`] for a shape beyond all bounds, [`Error::Buffer`] if `out` has not its size,
    /// [`Error::FanShape`] where the variance is to be scaled by a shape of fewer than two axes (Flax: `ValueError`) or without elements
    /// (`ZeroDivisionError`), [`Error::RandomLength`] where old counters do not reach that far, and what a user's function reports.
    ///
    /// ```
    /// use attn_layers::{Initializer, initializers::Drawing, random::{Key, Rngs}};
    /// let key = Rngs::params(Key::from_words([0, 42])).param_key(&[], "query", 1)?;
    /// let mut kernel = [0.0f32; 48];
    /// Initializer::LecunNormal.fill(key, &[8, 6], Drawing::default(), &mut kernel)?;
    /// assert_eq!(kernel[..2], [0.567926, 0.49831283]);
    /// # Ok::<(), attn_layers::Error>(())
    /// ```
    pub fn fill<T: Element>(
        &self,
        key: Key,
        shape: &[usize],
        drawing: Drawing,
        out: &mut [T],
    ) -> Result<()> {
        let shape = Dims::new(shape)?;
        let wanted = shape.elements()?;
        if out.len() != wanted {
            return Err(Error::Buffer {
                argument: "out",
                got: out.len(),
                wanted,
            });
        }
        if let Some((scale, mode, distribution)) = self.variance_scaling() {
            let variance = constant(scale / mode.size(&shape)?);
            return distribution.fill(key, variance, drawing, out);
        }
        match *self {
            Self::Normal { stddev } => normal(key, constant(stddev), drawing, out),
            Self::TruncatedNormal {
                stddev,
                lower,
                upper,
            } => truncated(key, [lower, upper], constant(stddev), drawing, out),
            Self::Uniform { scale } => uniform(key, 0.0, constant(scale), drawing, out),
            Self::Constant { value } => {
                out.fill(constant(value));
                Ok(())
            }
            Self::Ones => {
                out.fill(constant(1.0));
                Ok(())
            }
            Self::Function(Function(function)) => function.fill(key, &shape, ValuesMut::of(out)),
            // Those that scale the variance are done already.
            _ => {
                out.fill(constant(0.0));
                Ok(())
            }
        }
    }

    /// The arguments of `variance_scaling`, if it is one of that family.
    fn variance_scaling(&self) -> Option<(f64, FanMode, Distribution)> {
        use Distribution::{TruncatedNormal, Uniform};
        use FanMode::{Average, In};
        match *self {
            Self::LecunNormal => Some((1.0, In, TruncatedNormal)),
            Self::LecunUniform => Some((1.0, In, Uniform)),
            Self::HeNormal => Some((2.0, In, TruncatedNormal)),
            Self::HeUniform => Some((2.0, In, Uniform)),
            Self::XavierNormal => Some((1.0, Average, TruncatedNormal)),
            Self::XavierUniform => Some((1.0, Average, Uniform)),
            Self::VarianceScaling {
                scale,
                mode,
                distribution,
            } => Some((scale, mode, distribution)),
            _ => None,
        }
    }
}

impl FanMode {
    /// The size of `shape`: its last two axes are inputs and outputs, those before belong to both.
    fn size(self, shape: &Dims) -> Result<f64> {
        let (inputs, outputs) = match *shape.as_slice() {
            [.., inputs, outputs] if !shape.contains(&0) => (inputs as f64, outputs as f64),
            _ => return Err(Error::FanShape { got: *shape }),
        };
        let field = shape.elements()? as f64 / inputs / outputs;
        let (fan_in, fan_out) = (inputs * field, outputs * field);
        Ok(match self {
            Self::In => fan_in,
            Self::Out => fan_out,
            Self::Average => (fan_in + fan_out) / 2.0,
            Self::GeometricAverage => libm::sqrt(fan_in * fan_out),
        })
    }
}

impl Distribution {
    fn fill<T: Element>(
        self,
        key: Key,
        variance: T,
        drawing: Drawing,
        out: &mut [T],
    ) -> Result<()> {
        match self {
            Self::TruncatedNormal => {
                let deviation = quotient(root(variance), constant(TRUNCATED_DEVIATION));
                truncated(key, [-2.0, 2.0], deviation, drawing, out)
            }
            Self::Normal => normal(key, root(variance), drawing, out),
            Self::Uniform => {
                let half_width = root(product(constant(3.0), variance));
                uniform(key, -1.0, half_width, drawing, out)
            }
        }
    }
}

fn normal<T: Element>(key: Key, deviation: T, drawing: Drawing, out: &mut [T]) -> Result<()> {
    let sqrt2 = constant(SQRT_2);
    let both = product(sqrt2, deviation);
    NormalDraw::new().fill(key, drawing.counters, out, |value| {
        match drawing.normal_order {
            NormalOrder::DeviationLast => product(product(sqrt2, value), deviation),
            NormalOrder::DeviationFirst => product(both, value),
        }
    })
}

fn truncated<T: Element>(
    key: Key,
    [lower, upper]: [f64; 2],
    deviation: T,
    drawing: Drawing,
    out: &mut [T],
) -> Result<()> {
    TruncatedDraw::new(lower, upper).fill(key, drawing.counters, out, |value| {
        product(value, deviation)
    })
}

/// Uniform numbers from `low` to 1, times `scale`.
fn uniform<T: Element>(
    key: Key,
    low: f64,
    scale: T,
    drawing: Drawing,
    out: &mut [T],
) -> Result<()> {
    Range::new(constant(low), constant(1.0))
        .fill(key, drawing.counters, out, |value| product(value, scale))
}
