//! A node of attention from a model file, with the weights that the file has for its inputs.
//!
//! The operators are ONNX's `Attention`, and `MultiHeadAttention` and `Attention` of `com.microsoft`, ONNX Runtime's own. The file is
//! read in place; what is not needed for the node is passed over. Files are not trusted: every length is held against the file, and
//! nothing is read by recursion, so nodes inside of another node's graph are not found.
//!
//! ```no_run
//! use attn_layers::{Cpu, onnx::Model, tensor::TensorView};
//! let bytes = std::fs::read("model.onnx")?;
//! let model = Model::read(&bytes)?;
//! let node = model.node(None)?;
//! let query = TensorView::from_slice(&[0.0f32; 64], &[1, 8, 8])?;
//! let outputs = node.apply(&Cpu::detect(), &[("hidden_states", query)])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attributes;
mod contrib;
mod error;
mod graph;
mod node;
mod proto;
mod wire;

pub use error::ModelError;
pub use graph::Model;
pub use node::{Node, Operator};
