//! What goes to stdout: a result, as text for people or as JSON for programs. Everything else goes to stderr.

use std::io::{self, Write};

use longshore_types::{Code, Error, Result};
use serde::Serialize;
use serde_json::Value;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// `--json`.
    pub json: bool,
}

impl Output {
    /// Prints a result: `value` as one line of JSON, or what `text` writes.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when nobody reads stdout.
    pub fn result(&self, value: &Value, text: impl FnOnce(&mut String)) -> Result<()> {
        if self.json {
            return self.line(&value.to_string());
        }
        let mut lines = String::new();
        text(&mut lines);
        self.line(lines.trim_end())
    }

    /// Prints one line, whole and at once.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when nobody reads stdout.
    pub fn line(&self, line: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}").and_then(|()| stdout.flush()).map_err(|error| {
            Error::new(Code::Unavailable, format!("cannot write to stdout: {error}")).with_source(error)
        })
    }
}

/// A value as JSON; our own types always are.
///
/// # Errors
/// [`Code::Internal`] when it is not.
pub fn json(value: impl Serialize) -> Result<Value> {
    serde_json::to_value(value)
        .map_err(|error| Error::new(Code::Internal, format!("cannot write the result as JSON: {error}")))
}

/// Columns of text, each as wide as its widest cell. A column of numbers (its last cell starts with a digit) is set to
/// the right.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let width = |column: usize| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let is_number = |cell: &String| cell.starts_with(|c: char| c.is_ascii_digit());
    // All but a heading: "16 chunks" under "FROM" is text like its neighbours.
    let is_numeric =
        |column: usize| cells(column).skip(1).all(is_number) && cells(column).next_back().is_some_and(is_number);
    let layout: Vec<(usize, bool)> = (0..columns).map(|column| (width(column), is_numeric(column))).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, (width, is_numeric)) in row.iter().zip(&layout) {
            let padding = " ".repeat(width - cell.chars().count());
            let (left, right) = if *is_numeric { (padding.as_str(), "") } else { ("", padding.as_str()) };
            line.push_str(&format!("{left}{cell}{right}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A row of a [`table`].
pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// A duration for people: `340 ms`, `12.3 s`, `4 min 05 s`.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), s % 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let text = table(&[row(["NAME", "SIZE", "FROM"]), row(["a", "10 B", "2 disks"]), row(["b", "5 B", "disk"])]);
        assert_eq!(text, "NAME  SIZE  FROM\na     10 B  2 disks\nb      5 B  disk\n");
    }

    #[test]
    fn durations_are_short() {
        for (value, text) in [(0.00004, "40 us"), (0.34, "340 ms"), (12.34, "12.3 s"), (245.0, "4 min 05 s")] {
            assert_eq!(seconds(value), text);
        }
    }
}
