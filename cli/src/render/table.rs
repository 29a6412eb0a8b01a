//! Tables that align.

use super::ansi;
use super::style::{Style, Tone};

/// One cell: its text and what that text is.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Text of a tone. Control characters, which a worker or container may have put there, are left out.
    pub fn toned(text: impl AsRef<str>, tone: Tone) -> Self {
        Self { text: ansi::one_line(text.as_ref()), tone }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// Which side of its column a cell leans on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows below a heading.
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Cell>>,
}

/// Between two columns.
const GAP: &str = "  ";

impl Table {
    /// An empty table. A heading that begins with `>` makes its column lean to the right.
    pub fn new(headings: &[&'static str]) -> Self {
        let column = |heading: &&'static str| match heading.strip_prefix('>') {
            Some(rest) => (rest, Align::Right),
            None => (*heading, Align::Left),
        };
        Self { columns: headings.iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row; a short one is filled with nothing.
    pub fn row(&mut self, cells: Vec<Cell>) {
        assert!(cells.len() <= self.columns.len(), "more cells than columns");
        self.rows.push(cells);
    }

    /// The table as lines. Columns that are empty in every row are left out.
    pub fn render(&self, style: Style) -> String {
        let width = |index: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.text.chars().count()).max();
            cells.filter(|&widest| widest > 0).map(|widest| widest.max(self.columns[index].0.chars().count()))
        };
        let widths: Vec<Option<usize>> = (0..self.columns.len()).map(width).collect();
        let headings: Vec<Cell> = self.columns.iter().map(|(heading, _)| Cell::toned(heading, Tone::Heading)).collect();
        let mut out = String::new();
        for row in std::iter::once(&headings).chain(&self.rows) {
            self.line(row, &widths, style, &mut out);
        }
        out
    }

    fn line(&self, row: &[Cell], widths: &[Option<usize>], style: Style, out: &mut String) {
        let mut line = String::new();
        let mut pending = String::new();
        for (index, width) in widths.iter().enumerate() {
            let Some(width) = width else { continue };
            let (text, tone) = row.get(index).map_or(("", Tone::Plain), |cell| (cell.text.as_str(), cell.tone));
            let fill = " ".repeat(width.saturating_sub(text.chars().count()));
            let (before, after) = match self.columns[index].1 {
                Align::Left => (String::new(), fill),
                Align::Right => (fill, String::new()),
            };
            pending.push_str(&before);
            // Spaces are written only when something follows: no line ends in blanks.
            if !text.is_empty() {
                line.push_str(&pending);
                pending.clear();
                line.push_str(&style.paint(tone, text));
            }
            pending.push_str(&after);
            pending.push_str(GAP);
        }
        out.push_str(&line);
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["JOB", ">SIZE", "NOTE", "STATE"]);
        table.row(vec!["a".into(), "5 B".into(), "".into(), Cell::toned("failed", Tone::Bad)]);
        table.row(vec!["longer-name".into(), "12 KiB".into()]);
        table
    }

    #[test]
    fn columns_align_and_empty_ones_are_left_out() {
        let want = "\
JOB            SIZE  STATE
a               5 B  failed
longer-name  12 KiB
";
        assert_eq!(table().render(Style::PLAIN), want);
    }

    #[test]
    fn colours_do_not_count_as_width() {
        let style = Style { terminal: true, colour: true };
        let coloured = table().render(style);
        assert!(coloured.contains("5 B  \x1b[31mfailed\x1b[0m\n"), "{coloured:?}");
    }

    #[test]
    fn a_cell_cannot_write_to_the_terminal() {
        let mut table = Table::new(&["X"]);
        table.row(vec!["a\x1b[2Jb\nc\x07".into()]);
        assert_eq!(table.render(Style::PLAIN), "X\nab c\n");
    }
}
