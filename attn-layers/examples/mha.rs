//! The shortest way from a file that Flax wrote to an output.
#![expect(clippy::print_stdout, reason = "a program prints")]

use attn_layers::tensor::Tensor;
use attn_layers::{Call, Cpu, MultiHeadDotProductAttention, ScalarType, io::Tree};

fn main() -> Result<(), Box<dyn core::error::Error>> {
    let file = std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/digits/digits.msgpack"
    ))?;
    let model = Tree::read(&file)?;
    let params = model.subtree("params/block_0/attention")?;

    let layer = MultiHeadDotProductAttention::new(4);
    let x = Tensor::from_f64s(
        ScalarType::F32,
        &[1, 3, 32],
        (0..96).map(|i| f64::from(i).sin()),
    )?;
    let y = layer.apply(&Cpu::detect(), &params, Call::new(x.view()))?;

    println!("{:?}: {:.4?} ...", y.out, &y.out.to_vec_f64()[..6]);
    Ok(())
}
