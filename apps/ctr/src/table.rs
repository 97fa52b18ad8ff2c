//! Tables for people.

use std::borrow::Cow;

/// Formats rows with aligned columns, each as wide as its widest cell.
pub(crate) fn text(head: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<Cow<'_, str>>> =
        rows.iter().map(|row| row.iter().map(|cell| sys::shown::escape(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let rows = rows.iter().map(|row| self::row(&widths, row));
    std::iter::once(row(&widths, head)).chain(rows).collect()
}

/// Formats one row with columns of at least the given widths. Characters that a terminal would obey are escaped.
pub(crate) fn row<S: AsRef<str>>(widths: &[usize], cells: &[S]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        line.push_str(&format!("{:<width$}   ", sys::shown::escape(cell.as_ref())));
    }
    line.truncate(line.trim_end_matches(' ').len());
    line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".to_string(), "bb".to_string()], vec!["long name".to_string(), String::new()]];
        assert_eq!(text(&["ID", "PATH"], &rows), "ID          PATH\na           bb\nlong name\n");
    }

    #[test]
    fn newlines_and_escape_sequences_in_cells_are_escaped_and_aligned() {
        let rows = [vec!["a\nforged   /etc".to_string(), "\x1b[2J".to_string()], vec!["b".into(), "c\u{202e}".into()]];
        let shown = text(&["ID", "PATH"], &rows);
        let wanted = "ID                 PATH\n\
            a\\nforged   /etc   \\u{1b}[2J\n\
            b                  c\\u{202e}\n";
        assert_eq!(shown, wanted);
    }
}
