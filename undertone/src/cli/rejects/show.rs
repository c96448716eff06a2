//! One reject whole: why, its headers, its bytes; what strangers wrote does not steer the terminal.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use schemas::Codec;
use schemas::envelope::rfc3339;
use serde_json::json;
use store::log::Kafka;

use super::{row, summary};
use crate::cli::say;
use crate::rejects::{Reader, Selection, Which};

/// Bytes in a line of a hexadecimal dump.
const DUMP_LINE_BYTES: usize = 16;

pub(super) async fn show(
    kafka: &Kafka,
    codec: &Codec,
    which: Which,
    raw: bool,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let selection = Selection { which: vec![which], ..Selection::default() };
    let mut reader = Reader::open(kafka, codec).await?;
    let mut last = None;
    while let Some(found) = reader.next().await? {
        if selection.takes(&found) {
            // Tried again under the same id: the latest try is the one that is open.
            last = Some(found);
        }
    }
    let found =
        last.context("there is no such reject; `undertone rejects list --redriven` shows those that there are")?;
    let reject = &found.reject;
    if raw {
        // Whoever reads it may have gone: that is an end, not a fault.
        let _ = std::io::stdout().lock().write_all(&reject.raw);
        return Ok(ExitCode::SUCCESS);
    }
    if json {
        let mut value = summary(&found);
        let headers = reject.headers.iter().map(|header| (header.name.as_str(), text_or_hex(&header.value)));
        value["headers"] = headers.map(|(name, value)| json!({ "name": name, "value": value })).collect();
        value[if std::str::from_utf8(&reject.raw).is_ok() { "raw" } else { "raw_hex" }] =
            json!(text_or_hex(&reject.raw));
        return say(&serde_json::to_string_pretty(&value)?);
    }
    let mut text = row(&found);
    text += &format!("\nid         {}\nwhy        {}\n", reject.id, reject.detail);
    if let Some(key) = &reject.key {
        text += &format!("key        {}\n", text_or_hex(key));
    }
    for header in &reject.headers {
        text += &format!("header     {}: {}\n", header.name, text_or_hex(&header.value));
    }
    if let Some(note) = &found.redriven {
        let to = note.topic.as_ref().map_or_else(String::new, |topic| format!(", to {topic}"));
        text += &format!("redriven   {}: {}{to}\n", rfc3339(note.at), note.outcome);
    }
    text += "\n";
    match std::str::from_utf8(&reject.raw) {
        Ok(words) => text += &printable(words),
        Err(_) => text += &dump(&reject.raw),
    }
    say(&text)
}

/// What strangers wrote, without what would steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

fn text_or_hex(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => printable(text),
        Err(_) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn dump(bytes: &[u8]) -> String {
    let line = |(number, line): (usize, &[u8])| {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String =
            line.iter().map(|&b| if b.is_ascii_graphic() || b == b' ' { b as char } else { '.' }).collect();
        format!(
            "{:08x}  {:<width$}  {text}\n",
            number * DUMP_LINE_BYTES,
            hex.join(" "),
            width = 3 * DUMP_LINE_BYTES - 1
        )
    };
    bytes.chunks(DUMP_LINE_BYTES).enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_strangers_do_not_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\r\n\tc"), "a\u{fffd}[31mb\u{fffd}\n\tc");
        assert_eq!(text_or_hex(&[0xff, 0x00]), "ff00");
        assert_eq!(dump(b"ab\x00"), format!("00000000  {:<47}  ab.\n", "61 62 00"));
    }
}
