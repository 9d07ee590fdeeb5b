//! A table in plain text.

/// Columns aligned to their widest cell; the first two to the left, the others, which hold numbers or marks, to the right.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        let mut table = Self::default();
        table.push(header.iter().map(|cell| (*cell).to_owned()).collect());
        table
    }

    pub(crate) fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }
}

impl core::fmt::Display for Table {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<_> = (0..columns).map(|column| self.width(column)).collect();
        for row in &self.rows {
            let cells: Vec<_> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, &width))| align(cell, width, column))
                .collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

impl Table {
    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

fn align(cell: &str, width: usize, column: usize) -> String {
    if column < 2 {
        format!("{cell:<width$}")
    } else {
        format!("{cell:>width$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["isa", "dtype", "passed"]);
        table.push(vec!["avx2".into(), "f32".into(), "11".into()]);
        table.push(vec!["portable".into(), "bf16".into(), "9".into()]);
        let wanted = "\
isa       dtype  passed
avx2      f32        11
portable  bf16        9
";
        assert_eq!(table.to_string(), wanted);
    }

    #[test]
    fn an_empty_table_is_empty() {
        assert_eq!(Table::default().to_string(), "");
    }
}
