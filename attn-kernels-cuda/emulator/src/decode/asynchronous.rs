//! Copies that go on while the program does.

use super::{Decoded, Decoder, Opcode, arithmetic::count, operand::Operand};
use crate::{
    program::{Op, Window},
    types::Ty,
};

impl<'a> Decoder<'a> {
    /// Decodes an instruction of the copy engines; false if it is none.
    pub(super) fn asynchronous(
        &mut self,
        opcode: &Opcode<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<bool> {
        if opcode.base != "cp" || !opcode.has("async") || opcode.has("bulk") {
            return Ok(false);
        }
        if opcode.has("commit_group") {
            self.emit(Op::CopyCommit);
        } else if opcode.has("wait_group") {
            let [keep] = operands else {
                return Err(count());
            };
            let keep = Self::immediate(keep)? as u32;
            self.emit(Op::CopyWait { keep, all: false });
        } else if opcode.has("wait_all") {
            self.emit(Op::CopyWait { keep: 0, all: true });
        } else if opcode.has("mbarrier") {
            return Ok(false);
        } else {
            let [to, from, size, rest @ ..] = operands else {
                return Err(count());
            };
            let size = Self::immediate(size)?;
            if !matches!(size, 4 | 8 | 16) || (opcode.has("cg") && size != 16) {
                return Err(format!("{size} bytes"));
            }
            let (mut source, mut ignore) = (None, None);
            for operand in rest {
                match operand {
                    Operand::Pred(pred) => ignore = Some(*pred),
                    // A 64-bit register is a cache policy.
                    Operand::Reg(crate::program::Reg::Q(_), _) => {}
                    other => source = Some(self.row(other, Ty::U32)?),
                }
            }
            let op = Op::CopyAsync {
                to: self.address(to, Window::Shared)?,
                from: self.address(from, Window::Global)?,
                size: size as u8,
                source,
                ignore,
            };
            self.emit(op);
        }
        Ok(true)
    }
}
