//! Memory of each thread's own.

use crate::finding::{Checked, Fault, FindingKind};

/// Local memory of the threads of a block.
#[derive(Debug, Default)]
pub(crate) struct Local {
    bytes: usize,
    data: Vec<u8>,
    written: Vec<u8>,
}

impl Local {
    /// Memory for `threads` threads of `bytes` each.
    pub(crate) fn reset(&mut self, threads: usize, bytes: usize) {
        self.bytes = bytes;
        self.data.clear();
        self.data.resize(threads * bytes, 0xcd);
        self.written.clear();
        self.written.resize(threads * bytes, 0);
    }

    fn place(&self, thread: usize, address: u64, bytes: usize) -> Checked<usize> {
        if address.saturating_add(bytes as u64) > self.bytes as u64 {
            return Err(Fault::new(
                FindingKind::OutOfBounds,
                format!(
                    "{bytes} bytes at byte {address} of local memory, which has {} bytes",
                    self.bytes
                ),
            ));
        }
        if !address.is_multiple_of(bytes as u64) {
            return Err(Fault::new(
                FindingKind::Misaligned,
                format!("byte {address} of local memory for {bytes} bytes"),
            ));
        }
        Ok(thread * self.bytes + address as usize)
    }

    pub(crate) fn load(&self, thread: usize, address: u64, bytes: usize) -> Checked<u128> {
        let at = self.place(thread, address, bytes)?;
        if self.written[at..at + bytes].contains(&0) {
            return Err(Fault::new(
                FindingKind::Unwritten,
                format!("byte {address} of local memory"),
            ));
        }
        let mut value = [0; 16];
        value[..bytes].copy_from_slice(&self.data[at..at + bytes]);
        Ok(u128::from_le_bytes(value))
    }

    pub(crate) fn store(
        &mut self,
        thread: usize,
        address: u64,
        bytes: usize,
        value: u128,
    ) -> Checked<()> {
        let at = self.place(thread, address, bytes)?;
        self.data[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        self.written[at..at + bytes].fill(1);
        Ok(())
    }
}
