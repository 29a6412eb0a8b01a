//! Who did what, for people.

use super::Console;
use super::human;
use super::style::Tone;
use super::table::{Cell, Table};
use crate::view::{AuditCheck, AuditLine, AuditRecord};
use jiff::Timestamp;

/// Columns of one record, with the widths that they have where no table can be measured.
const COLUMNS: [(&str, usize); 7] =
    [(">SEQ", 6), ("TIME", 19), ("BY", 18), ("WHAT", 12), ("OUTCOME", 7), ("TARGET", 24), ("MORE", 0)];

/// Characters of a proof that are shown: all of a token's id, the begin of a certificate's hash. They are ASCII.
const VIA_SHOWN: usize = 22;

/// Characters of a target that are shown: any build's name that people give, and not all of a stranger's URL.
const TARGET_SHOWN: usize = 60;

/// Records as a table.
pub fn table(lines: &[AuditLine], console: &Console) -> Table {
    let mut table = Table::new(&COLUMNS.map(|(heading, _)| heading));
    for line in lines {
        table.row(cells(line, console).into_iter().map(|(text, tone)| Cell::toned(text, tone)).collect());
    }
    table
}

/// One record on a line of its own, as it comes.
pub fn line(line: &AuditLine, console: &Console) -> String {
    let mut table = Table::new(&COLUMNS.map(|(heading, _)| heading));
    let pad = |((text, tone), (heading, width)): ((String, Tone), (&str, usize))| {
        let text = if heading.starts_with('>') { format!("{text:>width$}") } else { format!("{text:width$}") };
        Cell::toned(text, tone)
    };
    table.row(cells(line, console).into_iter().zip(COLUMNS).map(pad).collect());
    let text = table.render(console.out);
    // Without the heading.
    let text = text.split_once('\n').map_or("", |(_, line)| line);
    format!("{}\n", text.trim_end())
}

fn cells(line: &AuditLine, console: &Console) -> Vec<(String, Tone)> {
    let record = match line {
        AuditLine::Record(record) => record,
        AuditLine::Damaged { damaged } => {
            let what = format!("no record stands at {damaged}; `railyard audit verify` tells more");
            let nothing = || (String::new(), Tone::Plain);
            let mut cells: Vec<_> = std::iter::repeat_with(nothing).take(COLUMNS.len() - 1).collect();
            cells.push((what, Tone::Bad));
            return cells;
        }
    };
    let at = record.at.parse::<Timestamp>().map_or_else(|_| record.at.clone(), |at| console.date(at));
    let tone = if record.outcome == "done" { Tone::Good } else { Tone::Bad };
    vec![
        (record.seq.to_string(), Tone::Plain),
        (at, Tone::Faint),
        (record.by.clone(), Tone::Plain),
        (record.what.clone(), Tone::Plain),
        (record.outcome.clone(), tone),
        (bounded(record.target.as_deref().unwrap_or_default()), Tone::Plain),
        (more(record), Tone::Faint),
    ]
}

/// Whatever else there is to say: why not, details, and from where.
fn more(record: &AuditRecord) -> String {
    let mut parts = Vec::new();
    parts.extend(record.reason.clone());
    parts.extend(record.details.iter().map(|(name, value)| format!("{name}={value}")));
    parts.extend(record.via.iter().map(|via| format!("via {}", short(via))));
    parts.extend(record.from.iter().map(|from| format!("from {from}")));
    parts.join(" ")
}

/// What one record names must not push the others' columns off the screen; `-o json` has all of it.
fn bounded(target: &str) -> String {
    match target.char_indices().nth(TARGET_SHOWN) {
        Some((end, _)) => format!("{}…", &target[..end]),
        None => target.to_owned(),
    }
}

/// A certificate's hash is told from others by its begin; `-o json` has all of it.
fn short(via: &str) -> String {
    match via.split_at_checked(VIA_SHOWN) {
        Some((begin, rest)) if !rest.is_empty() => format!("{begin}…"),
        _ => via.to_owned(),
    }
}

/// What a check found; faults go line by line.
pub fn check(check: &AuditCheck) -> String {
    let mut text = String::new();
    for fault in &check.faults {
        text.push_str(&fault.sentence());
        text.push('\n');
    }
    if check.more_faults > 0 {
        text.push_str(&format!("and {} more\n", check.more_faults));
    }
    if check.good {
        let records = human::count(usize::try_from(check.records).unwrap_or(usize::MAX), "record");
        let files = human::count(usize::try_from(check.files).unwrap_or(usize::MAX), "file");
        text.push_str(&format!("good: {records} in {files}\n"));
    }
    text.push_str(&format!("head {}\n", check.head));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::render::style::Style;
    use jiff::tz::TimeZone;

    fn console() -> Console {
        Console { format: Format::Table, out: Style::PLAIN, err: Style::PLAIN, zone: TimeZone::UTC }
    }

    fn record(seq: u64, outcome: &str) -> AuditLine {
        AuditLine::Record(Box::new(AuditRecord {
            seq,
            at: "2026-11-22T01:50:59.123Z".to_owned(),
            by: "operator/olga".to_owned(),
            from: Some("10.0.0.7:51234".to_owned()),
            via: Some(format!("cert:{}", "2941ec50319fea04".repeat(4))),
            what: "cancel".to_owned(),
            target: Some("mini/1.0".to_owned()),
            outcome: outcome.to_owned(),
            reason: (outcome == "refused").then(|| "it has\nended".to_owned()),
            details: [("count".to_owned(), "2".to_owned())].into(),
            prev: "00".to_owned(),
            hash: "11".to_owned(),
        }))
    }

    #[test]
    fn records_are_a_table_that_aligns() {
        let lines = [record(9, "done"), record(10, "refused"), AuditLine::Damaged { damaged: "f, byte 3".to_owned() }];
        let want = "\
SEQ  TIME                 BY             WHAT    OUTCOME  TARGET    MORE
  9  2026-11-22 01:50:59  operator/olga  cancel  done     mini/1.0  count=2 via cert:2941ec50319fea042… from 10.0.0.7:51234
 10  2026-11-22 01:50:59  operator/olga  cancel  refused  mini/1.0  it has ended count=2 via cert:2941ec50319fea042… from 10.0.0.7:51234
                                                                    no record stands at f, byte 3; `railyard audit verify` tells more
";
        assert_eq!(table(&lines, &console()).render(Style::PLAIN), want);
        let want = "     9  2026-11-22 01:50:59  operator/olga       cancel        done     mini/1.0                  \
                    count=2 via cert:2941ec50319fea042… from 10.0.0.7:51234\n";
        assert_eq!(line(&lines[0], &console()), want);
        let mut long = record(1, "refused");
        let AuditLine::Record(one) = &mut long else { panic!("it is a record") };
        one.target = Some("é".repeat(500));
        let text = table(&[long], &console()).render(Style::PLAIN);
        let shown = format!("  {}…  it has ended", "é".repeat(TARGET_SHOWN));
        assert!(text.contains(&shown), "{text}");
    }

    #[test]
    fn a_record_is_printed_with_the_fields_of_the_file() {
        let AuditLine::Record(record) = record(9, "done") else { panic!("it is one") };
        let want = "{\"seq\":9,\"at\":\"2026-11-22T01:50:59.123Z\",\"by\":\"operator/olga\",\"from\":\"10.0.0.7:51234\",\
                    \"via\":\"cert:2941ec50319fea042941ec50319fea042941ec50319fea042941ec50319fea04\",\
                    \"what\":\"cancel\",\"target\":\"mini/1.0\",\"outcome\":\"done\",\"details\":{\"count\":\"2\"},\
                    \"prev\":\"00\",\"hash\":\"11\"}";
        assert_eq!(serde_json::to_string(&record).unwrap(), want);
    }
}
