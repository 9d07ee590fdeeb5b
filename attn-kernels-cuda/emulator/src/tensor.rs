//! Matrices of a warp: products, and their way between registers and shared memory.
//!
//! Products of factors are exact; sums are `f32`, in the order of the inner index, each rounded to nearest. A tensor core adds several
//! products at once and cuts the result off, so its last bits differ.

use crate::{
    alu::{bf16_to_f32, f16_to_f32, f32_to_f16},
    block::Block,
    finding::Checked,
    lanes::LANES,
    program::{Address, Element, MmaShape, Row},
    shared::conflicts,
    warp::Warp,
};

/// Rows of the left factor and of the result.
const M: usize = 16;
/// Columns of the right factor and of the result.
const N: usize = 8;
/// The longest inner index.
const K: usize = 16;

/// An element as a number.
pub(crate) fn widen(element: Element, bits: u32) -> f32 {
    match element {
        Element::F16 => f16_to_f32(bits & 0xffff),
        Element::BF16 => bf16_to_f32(bits & 0xffff),
        // The lower bits of a register that holds a tf32 are not looked at.
        Element::TF32 => f32::from_bits(bits & 0xffff_e000),
    }
}

/// `d = a b + c`.
pub(crate) fn mma(
    warp: &mut Warp,
    shape: MmaShape,
    d: &[Row],
    a: &[Row],
    b: &[Row],
    c: &[Row],
) -> Checked<()> {
    for &row in a.iter().chain(b).chain(c) {
        Warp::need(
            u32::MAX,
            warp.defined(row),
            "a factor or summand of a matrix product",
        )?;
    }
    let k = usize::from(shape.k);
    let mut left = [[0f32; K]; M];
    let mut right = [[0f32; N]; K];
    let paired = shape.element != Element::TF32;
    for (index, &row) in a.iter().enumerate() {
        let values = warp.l(row);
        for (lane, &bits) in values.iter().enumerate() {
            let (group, place) = (lane / 4, lane % 4);
            let to = &mut left[group + 8 * (index % 2)];
            if paired {
                let first = 2 * place + 8 * (index / 2);
                to[first] = widen(shape.element, bits);
                to[first + 1] = widen(shape.element, bits >> 16);
            } else {
                to[place + 4 * (index / 2)] = widen(shape.element, bits);
            }
        }
    }
    for (index, &row) in b.iter().enumerate() {
        let values = warp.l(row);
        for (lane, &bits) in values.iter().enumerate() {
            let (group, place) = (lane / 4, lane % 4);
            if paired {
                let first = 2 * place + 8 * index;
                right[first][group] = widen(shape.element, bits);
                right[first + 1][group] = widen(shape.element, bits >> 16);
            } else {
                right[place + 4 * index][group] = widen(shape.element, bits);
            }
        }
    }
    let mut sums = [[0f32; N]; M];
    for (index, &row) in c.iter().enumerate() {
        let values = warp.l(row);
        for (lane, &bits) in values.iter().enumerate() {
            let (group, place) = (lane / 4, lane % 4);
            if shape.half_sums {
                sums[group + 8 * index][2 * place] = f16_to_f32(bits);
                sums[group + 8 * index][2 * place + 1] = f16_to_f32(bits >> 16);
            } else {
                sums[group + 8 * (index / 2)][2 * place + index % 2] = f32::from_bits(bits);
            }
        }
    }
    for (sums, left) in sums.iter_mut().zip(&left) {
        for (&x, right) in left.iter().zip(&right).take(k) {
            for (sum, &y) in sums.iter_mut().zip(right) {
                *sum += x * y;
            }
        }
    }
    for (index, &row) in d.iter().enumerate() {
        let value = core::array::from_fn(|lane| {
            let (group, place) = (lane / 4, lane % 4);
            if shape.half_sums {
                let from = &sums[group + 8 * index];
                f32_to_f16(from[2 * place]) | f32_to_f16(from[2 * place + 1]) << 16
            } else {
                sums[group + 8 * (index / 2)][2 * place + index % 2].to_bits()
            }
        });
        warp.set_l(row, &value, u32::MAX, u32::MAX);
    }
    Ok(())
}

impl Block<'_> {
    /// `ldmatrix`: lane `8 i + r` has the address of row `r` of matrix `i`.
    pub(crate) fn load_matrix(
        &mut self,
        warp: &mut Warp,
        at: &Address,
        transposed: bool,
        to: &[Row],
    ) -> Checked<()> {
        let count = 8 * to.len();
        let lanes = if count == LANES {
            u32::MAX
        } else {
            (1 << count) - 1
        };
        Self::need_address(warp, at, lanes)?;
        let mut rows = [[0u16; 8]; LANES];
        let mut banks = [0; LANES];
        for (lane, row) in rows.iter_mut().enumerate().take(count) {
            let (_, address) = crate::access::resolve(at.window, Self::address(warp, at, lane));
            banks[lane] = address as u32;
            let value = self
                .shared_read(warp, address, 16, lane)
                .map_err(|fault| fault.by(lane))?;
            for (column, to) in row.iter_mut().enumerate() {
                *to = (value >> (16 * column)) as u16;
            }
        }
        self.counts.conflicts[warp.pc as usize] += conflicts(&banks[..count], 16);
        for (matrix, &to) in to.iter().enumerate() {
            let rows = &rows[8 * matrix..8 * matrix + 8];
            let value = core::array::from_fn(|lane| {
                let (group, place) = (lane / 4, 2 * (lane % 4));
                let (low, high) = if transposed {
                    (rows[place][group], rows[place + 1][group])
                } else {
                    (rows[group][place], rows[group][place + 1])
                };
                u32::from(low) | u32::from(high) << 16
            });
            warp.set_l(to, &value, u32::MAX, u32::MAX);
        }
        Ok(())
    }

    /// `stmatrix`, the other way.
    pub(crate) fn store_matrix(
        &mut self,
        warp: &mut Warp,
        at: &Address,
        transposed: bool,
        from: &[Row],
    ) -> Checked<()> {
        let count = 8 * from.len();
        let lanes = if count == LANES {
            u32::MAX
        } else {
            (1 << count) - 1
        };
        Self::need_address(warp, at, lanes)?;
        let mut rows = [[0u16; 8]; LANES];
        for (matrix, &from) in from.iter().enumerate() {
            Warp::need(u32::MAX, warp.defined(from), "an element of a matrix")?;
            for (lane, &bits) in warp.l(from).iter().enumerate() {
                let (group, place) = (lane / 4, 2 * (lane % 4));
                for (part, value) in [bits as u16, (bits >> 16) as u16].into_iter().enumerate() {
                    if transposed {
                        rows[8 * matrix + place + part][group] = value;
                    } else {
                        rows[8 * matrix + group][place + part] = value;
                    }
                }
            }
        }
        let mut banks = [0; LANES];
        for (lane, row) in rows.iter().enumerate().take(count) {
            let (_, address) = crate::access::resolve(at.window, Self::address(warp, at, lane));
            banks[lane] = address as u32;
            let value = row.iter().enumerate().fold(0u128, |all, (column, &x)| {
                all | u128::from(x) << (16 * column)
            });
            self.shared_write(warp, address, 16, value, lane)
                .map_err(|fault| fault.by(lane))?;
        }
        self.counts.conflicts[warp.pc as usize] += conflicts(&banks[..count], 16);
        Ok(())
    }
}
