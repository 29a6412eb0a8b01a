//! A directory as a web page: no scripts, nothing from elsewhere, readable on a telephone.

use super::listing::{Build, Column, Kind, Line, Order, Page};
use bytesize::ByteSize;
use jiff::Timestamp;
use railyard_common::path::{url_part, url_path};
use std::fmt::Write as _;

const STYLE: &str = "body{font:15px/1.6 ui-monospace,monospace;margin:2em auto;max-width:70em;padding:0 1em}\
h1{font-size:1.2em}h2{font-size:1em}table{border-collapse:collapse}tr:hover{background:#8882}\
th{text-align:left;font-weight:normal}td,th{padding:0 2em 0 0;white-space:nowrap}.n{text-align:right}\
a{text-decoration:none}a:hover{text-decoration:underline}th,footer{color:#888}\
@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8cf}}";

// Writing to a string cannot fail.
pub(super) fn html(page: &Page, order: Order) -> String {
    let title = escape(&format!("/{}", page.path));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style>\n<h1>{}</h1>\n",
        trail(&page.path)
    );
    if !page.builds.is_empty() {
        out.push_str("<h2>Builds</h2>\n<table>\n");
        for Build { build, ended } in &page.builds {
            let (link, name, date) = (url_path(build), escape(build), date(ended));
            let _ = writeln!(out, "<tr><td><a href=\"builds/{link}/build.json\">{name}</a><td>{date}");
        }
        out.push_str("</table>\n<h2>Everything</h2>\n");
    }
    out.push_str("<table>\n");
    heads(&mut out, order);
    if !page.path.is_empty() {
        out.push_str("<tr><td><a href=\"../\">../</a><td><td>\n");
    }
    for line in &page.entries {
        row(&mut out, line);
    }
    out.push_str("</table>\n");
    foot(&mut out, page);
    out
}

/// Where this is, each directory above it a link.
fn trail(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let up = |levels: usize| if levels == 0 { "./".to_owned() } else { "../".repeat(levels) };
    let mut out = format!("<a href=\"{}\">/</a>", up(parts.len()));
    for (n, part) in parts.iter().enumerate() {
        let _ = write!(out, " <a href=\"{}\">{}</a> /", up(parts.len() - 1 - n), escape(part));
    }
    out
}

/// The columns' names; each orders by its column, and the other way round if it does already.
fn heads(out: &mut String, order: Order) {
    out.push_str("<tr>");
    for column in Column::ALL {
        let (name, is_it) = (column.as_str(), order.by == column);
        let class = if column == Column::Size { " class=\"n\"" } else { "" };
        let (turn, arrow) = match (is_it, order.descending) {
            (true, false) => ("&amp;order=desc", " \u{2191}"),
            (true, true) => ("", " \u{2193}"),
            (false, _) => ("", ""),
        };
        let _ = write!(out, "<th{class}><a href=\"?sort={name}{turn}\">{name}</a>{arrow}");
    }
    out.push('\n');
}

fn row(out: &mut String, line: &Line) {
    let Line { name, kind, size, modified } = line;
    let slash = if *kind == Kind::Directory { "/" } else { "" };
    let (link, name, date) = (url_part(name), escape(name), date(modified));
    let size = size.map_or(String::new(), |size| format!("<span title=\"{size} bytes\">{}</span>", human(size)));
    // The dot keeps a name with a colon from being taken for a scheme.
    let _ = writeln!(out, "<tr><td><a href=\"./{link}{slash}\">{name}{slash}</a><td class=\"n\">{size}<td>{date}");
}

fn foot(out: &mut String, page: &Page) {
    let files = page.entries.iter().filter_map(|line| line.size);
    let (count, total) = files.fold((0, 0u64), |(count, total), size| (count + 1, total.saturating_add(size)));
    let dirs = page.entries.len() - count;
    let more = if page.truncated { " and more, which are not shown" } else { "" };
    let (count, dirs) = (counted(count, "file"), counted(dirs, "director"));
    let total = human(total);
    let _ =
        writeln!(out, "<footer><p>{dirs}, {count}, {total}{more} \u{b7} <a href=\"?format=json\">JSON</a></footer>");
}

fn counted(n: usize, noun: &str) -> String {
    match (noun, n) {
        ("director", 1) => "1 directory".to_owned(),
        ("director", n) => format!("{n} directories"),
        (noun, 1) => format!("1 {noun}"),
        (noun, n) => format!("{n} {noun}s"),
    }
}

fn human(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

fn date(at: &Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(path: &str, entries: Vec<Line>) -> Page {
        Page { path: path.to_owned(), entries, truncated: false, builds: Vec::new() }
    }

    #[test]
    fn names_can_do_no_harm() {
        let name = "<script>\"&'javascript:x.txt".to_owned();
        let line = Line { name, kind: Kind::File, size: Some(2048), modified: Timestamp::UNIX_EPOCH };
        let html = html(&page("a<b", vec![line]), Order::default());
        assert!(!html.contains("<script>") && !html.contains("a<b"), "{html}");
        assert!(html.contains("href=\"./%3Cscript%3E%22%26%27javascript%3Ax.txt\""), "{html}");
        assert!(html.contains("2.0 KiB") && html.contains("1970-01-01 00:00:00 UTC"), "{html}");
    }

    #[test]
    fn every_directory_above_is_a_link_and_columns_turn_round() {
        let html = html(&page("images/amd64/1.0", Vec::new()), Order::parse("sort=size"));
        let trail = "<a href=\"../../../\">/</a> <a href=\"../../\">images</a> / <a href=\"../\">amd64</a> / \
                     <a href=\"./\">1.0</a> /";
        assert!(html.contains(trail), "{html}");
        assert!(html.contains("?sort=size&amp;order=desc") && html.contains("\"?sort=name\""), "{html}");
        assert!(html.contains("0 directories, 0 files, 0 B"), "{html}");
    }
}
