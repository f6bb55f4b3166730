//! Tables and numbers for people.

use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::{SignedDuration, Timestamp};

use crate::record::{Agreement, Index};

/// A table with a heading and no frame; the columns in `right` are numbers.
pub fn table(heading: &[&str], rows: Vec<Vec<String>>, right: &[usize]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heading.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| shown(cell)));
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    // Cells are padded on both sides; a line begins with its first cell.
    let trimmed = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned();
    let lines: Vec<String> = table.lines().map(trimmed).collect();
    format!("{}\n", lines.join("\n"))
}

/// Text of foreign origin, so that a terminal shows it and obeys none of it: control characters and those that turn the direction of writing
/// are escaped.
pub fn shown(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control() || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if obeyed(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// The members of a backup, a row each.
pub fn members(index: &Index) -> String {
    let rows = index.members.iter().map(|member| {
        vec![
            member.name.clone(),
            member.id.to_string(),
            or_dash(member.version.as_ref()),
            or_dash(member.revision.or(member.status_revision)),
            or_dash(member.hash_kv.map(|hash| format!("{hash:08x}"))),
            or_dash(member.agreement.map(Agreement::as_str)),
            or_dash(member.plain_bytes.map(size)),
            or_dash(member.sealed_bytes.map(size)),
            member.proof.to_string(),
            member.error.clone().unwrap_or_default(),
        ]
    });
    let heading = ["member", "id", "etcd", "revision", "hashkv", "agreement", "plain", "sealed", "proof", "error"];
    table(&heading, rows.collect(), &[3, 6, 7])
}

/// Text for people, line by line.
#[derive(Default)]
pub struct Text(String);

impl Text {
    /// Adds a line.
    pub fn line(&mut self, line: impl AsRef<str>) {
        let lines: Vec<String> = line.as_ref().split('\n').map(shown).collect();
        self.0.push_str(&lines.join("\n"));
        self.0.push('\n');
    }

    /// The whole, each line with its end.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// Bytes with an IEC unit, three digits at the most: `23 B`, `1.5 KiB`, `612 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths in integers: a float would round 1023.96 MiB to "1024.0 MiB".
    let mut unit = "KiB";
    let mut tenths = u128::from(bytes).saturating_mul(10) / 1024;
    for next in UNITS.into_iter().skip(1) {
        if tenths < 10 * 1024 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    if tenths < 1000 { format!("{}.{} {unit}", tenths / 10, tenths % 10) } else { format!("{} {unit}", tenths / 10) }
}

/// An age in its largest unit: `45s`, `12m`, `5h`, `3d`.
pub fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.duration_since(then).max(SignedDuration::ZERO).as_secs();
    match seconds {
        0..=59 => format!("{seconds}s"),
        60..=3_599 => format!("{}m", seconds / 60),
        3_600..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A duration as it is written in a policy and in flags: `30s`, `90m`, `26h`, `5d`.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let whole = |(_, length): &(&str, u64)| seconds >= *length && seconds.is_multiple_of(*length);
    match [("d", 86_400), ("h", 3_600), ("m", 60)].iter().find(|unit| whole(unit)) {
        Some((unit, length)) => format!("{}{unit}", seconds / length),
        None => format!("{seconds}s"),
    }
}

/// A number, or a dash.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1023 KiB"),
            (612 << 20, "612 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn ages_have_one_unit_and_are_never_negative() {
        let then: Timestamp = "2026-11-22T02:00:00Z".parse().unwrap();
        for (seconds, text) in [(-5, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (172_800, "2d"), (864_000, "10d")] {
            assert_eq!(age(then + SignedDuration::from_secs(seconds), then), text);
        }
    }
}
