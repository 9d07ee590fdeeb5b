//! The ONNX operator `Attention` (opsets 23, 24 and 25) as a function on arrays.
//!
//! Names are the operator's. It is one request to a backend: heads stay where they lie, in rank 3 and in rank 4, a mask is read as it
//! is given, and no array of queries by keys is made but the one that is asked for.
//!
//! A boolean `attn_mask` is true where a query sees a key; another is added to the scores, and hides a key where it is `-inf`. A query
//! that sees no key gets zero, in every opset, as the errata of opsets 23 and 24 say.
//!
//! Scores and softmax are computed in `float32` at least, and rounded once: never in less than `softmax_precision` asks for.

mod arguments;
mod forward;
mod heads;
mod mask;
#[cfg(feature = "onnx")]
mod model;
mod past;
mod prepared;
mod vjp;

pub use arguments::{Attention, Opset, precision_of_type, stage_of_mode, window_of_size};
pub use forward::{Outputs, attention};
#[cfg(feature = "onnx")]
pub use model::{Model, ModelError, Node, Operator};
pub use vjp::{Gradients, Residuals, attention_vjp};
