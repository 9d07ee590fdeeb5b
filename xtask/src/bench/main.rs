//! The program behind `cargo xtask bench`: times the layers and their parts.
#![expect(
    clippy::print_stdout,
    reason = "a command-line tool speaks on its streams"
)]
#![expect(
    clippy::std_instead_of_alloc,
    reason = "a program with std has no need to name alloc"
)]

mod cases;
mod data;
mod job;
mod spec;
mod worker;

use anyhow::Result;

fn main() -> Result<()> {
    worker::command()
}
