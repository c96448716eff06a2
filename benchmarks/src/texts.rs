//! Real texts to measure with: those of the golden file, GoEmotions comments of 15 tokens on average, all distinct.

use std::path::Path;

/// The first lines of the golden file are made to be nasty; the rest are real.
const NASTY: usize = 100;

/// The real texts of `golden/emotion.jsonl` in the folder `models`, at most `most`.
///
/// # Errors
/// The file cannot be read, or is not what it should be.
pub fn real(models: &Path, most: usize) -> anyhow::Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Line {
        text: String,
    }
    let lines = std::fs::read_to_string(models.join("golden/emotion.jsonl"))?;
    let mut seen = std::collections::HashSet::new();
    let texts = lines.lines().skip(NASTY).map(|line| Ok(serde_json::from_str::<Line>(line)?.text));
    let texts =
        texts.filter(|text: &anyhow::Result<String>| text.as_ref().map_or(true, |text| seen.insert(text.clone())));
    texts.take(most).collect()
}
