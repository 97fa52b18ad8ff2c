//! Tables for people.

use std::io::{self, Write};

/// Writes rows with their columns aligned, each as wide as its widest cell.
pub(crate) fn write(out: &mut impl Write, head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    write_row(out, &widths, head)?;
    rows.iter().try_for_each(|row| write_row(out, &widths, row))
}

/// Writes one row with columns of at least the given widths.
pub(crate) fn write_row<S: AsRef<str>>(out: &mut impl Write, widths: &[usize], row: &[S]) -> io::Result<()> {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        line.push_str(&format!("{:<width$}   ", cell.as_ref()));
    }
    writeln!(out, "{}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut out = Vec::new();
        let rows = [vec!["a".to_string(), "bb".to_string()], vec!["long name".to_string(), String::new()]];
        write(&mut out, &["ID", "PATH"], &rows).expect("writes");
        assert_eq!(String::from_utf8(out).expect("utf-8"), "ID          PATH\na           bb\nlong name\n");
    }
}
