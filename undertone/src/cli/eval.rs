//! `undertone eval`: scores the shipped models on labelled texts, with a simpler model's figures beside.
//!
//! The result goes to standard output, and what happens meanwhile to the error stream. The figures themselves are
//! computed by `processors::eval`.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use flate2::read::MultiGzDecoder;
use processors::Models;
use processors::eval::{Case, Choices, Figure, Report, TASKS, Task};

use super::say;
use crate::config::Config;
use crate::locate;

/// Largest file of labelled texts, in bytes: it is read whole, and its checksum stands in the report.
const DATA_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// What a gzip stream begins with (RFC 1952).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The names of all tasks, for the command line.
pub(super) fn tasks() -> Vec<&'static str> {
    TASKS.iter().map(|task| task.name()).collect()
}

pub(super) fn eval(config: &Config, args: &super::Eval) -> anyhow::Result<ExitCode> {
    let task = TASKS.iter().find(|task| task.name() == args.task);
    let task = task.with_context(|| format!("there is no task \"{}\"; there are {}", args.task, tasks().join(", ")))?;
    let data = read(&args.data)?;
    let lines = data.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count();
    progress(&format!("loading the models for {lines} texts"));
    let (dir, library) = (locate::models(&config.models.dir)?, locate::onnxruntime(&config.models.onnxruntime)?);
    let models = Models::open(&dir, &library, &config.options())?;
    config.dialogue.wanted().configure(&models).context("read [dialogue]")?;
    let tier = args.tier.into();
    progress(&format!("scoring {lines} texts with the {} tier", schemas::Tier::name(tier)));
    let begun = Instant::now();
    let choices = Choices {
        labels: args.labels.clone(),
        set: args.set.clone(),
        examples: args.examples.clone(),
        actions: args.actions.clone(),
        language: args.language.clone(),
        training: args.train.as_deref().map(read).transpose()?.unwrap_or_default(),
        conversations: args.conversations.as_deref().map(read).transpose()?.unwrap_or_default(),
        captions: args.captions,
    };
    let case = Case { models: &models, tier, data: &data, choices: &choices };
    let report = task.run(&case).with_context(|| format!("evaluate on {}", args.data.display()))?;
    progress(&format!("done in {:.1} s", begun.elapsed().as_secs_f64()));
    if args.json {
        return say(&serde_json::to_string(&report).context("write the report")?);
    }
    say(&table(*task, &report))
}

fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let size = std::fs::metadata(path).with_context(|| format!("read {}; check the path", path.display()))?.len();
    anyhow::ensure!(
        size <= DATA_BYTES_MAX,
        "{} has {size} bytes, at most {DATA_BYTES_MAX} are read; split it",
        path.display()
    );
    let data = std::fs::read(path).with_context(|| format!("read {}; check its permissions", path.display()))?;
    if !data.starts_with(&GZIP_MAGIC) {
        return Ok(data);
    }
    let mut lines = Vec::new();
    let mut unpacked = MultiGzDecoder::new(data.as_slice()).take(DATA_BYTES_MAX + 1);
    unpacked.read_to_end(&mut lines).with_context(|| format!("unpack {}; is it whole?", path.display()))?;
    anyhow::ensure!(
        lines.len() as u64 <= DATA_BYTES_MAX,
        "{} unpacks to more than {DATA_BYTES_MAX} bytes; split it",
        path.display()
    );
    Ok(lines)
}

fn table(task: &dyn Task, report: &Report) -> String {
    let width = report.model.chars().count().max(26);
    let cell = |figure: Option<&Figure>| {
        figure.map_or_else(|| "-".to_owned(), |f| format!("{:.3}  ({:.3} – {:.3})", f.value, f.low, f.high))
    };
    let mut text = format!("{} on {} texts, {} tier\n\n", report.task, report.n, report.tier.name());
    text += &format!("{:<24}  {:<width$}  {}\n", "", report.model, report.baseline.name);
    for (name, shown) in task.rows().iter().filter(|(name, _)| report.metrics.contains_key(*name)) {
        let (ours, theirs) = (cell(report.metrics.get(*name)), cell(report.baseline.metrics.get(*name)));
        text += &format!("{shown:<24}  {ours:<width$}  {theirs}\n");
    }
    text += "\nin brackets: 95 % interval by 1,000 bootstrap resamples; ↑ more is better, ↓ less is\n";
    text += &format!("speed   {:.0} texts/s on the cores of this machine\n", report.turns_per_second);
    text += &format!("sha256  {}\n", report.data_sha256);
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use processors::eval::Baseline;
    use schemas::Tier;

    use super::*;

    #[test]
    fn table_shows_every_figure_beside_the_baselines() {
        for task in TASKS {
            let metrics = |value| -> BTreeMap<String, Figure> {
                let figure = Figure { value, low: 0.1, high: 0.9 };
                task.rows().iter().map(|(name, _)| ((*name).to_owned(), figure)).collect()
            };
            let report = Report {
                task: task.name().into(),
                data_sha256: "ab".into(),
                n: 7,
                model: "m@1".into(),
                tier: Tier::Full,
                metrics: metrics(0.5),
                baseline: Baseline { name: "simple".into(), metrics: metrics(0.25) },
                turns_per_second: 12.0,
            };
            let text = table(*task, &report);
            for (_, shown) in task.rows() {
                let line = text.lines().find(|line| line.starts_with(shown)).unwrap();
                assert!(line.find("0.500").unwrap() < line.find("0.250").unwrap(), "{line}");
            }
        }
    }

    #[test]
    fn compressed_data_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dev.jsonl.gz");
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(b"{}\n").unwrap();
        let packed = packed.finish().unwrap();
        std::fs::write(&path, &packed).unwrap();
        assert_eq!(read(&path).unwrap(), b"{}\n");
        std::fs::write(&path, &packed[..packed.len() - 9]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("is it whole?"));
        assert!(read(&dir.path().join("none")).unwrap_err().to_string().contains("check the path"));
    }
}
