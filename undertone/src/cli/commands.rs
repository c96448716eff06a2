//! The commands that answer and end at once: `config`, `capacity`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use super::{Settings, say, variables};
use crate::{capacity, config};

pub(super) fn config_print(settings: &Settings) -> anyhow::Result<ExitCode> {
    // Checked first: what is printed is what would run.
    settings.load()?;
    let mut table = config::table(settings.file(), variables())?;
    if let (Some(dir), Some(data)) = (&settings.data_dir, table.get_mut("data").and_then(|data| data.as_table_mut())) {
        data.insert("dir".to_owned(), dir.display().to_string().into());
    }
    say(&toml::to_string(&config::masked(&table)).context("write the settings")?)
}

pub(super) fn config_check(settings: &Settings) -> anyhow::Result<ExitCode> {
    let config = settings.load()?;
    config.check_only_machine()?;
    say("the settings are good")
}

pub(super) fn capacity(file: Option<&Path>) -> anyhow::Result<ExitCode> {
    let inputs = match file {
        None => capacity::read(capacity::SHIPPED).context("read the shipped inputs")?,
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            capacity::read(&text).with_context(|| format!("read {}", file.display()))?
        }
    };
    say(&capacity::tables(&inputs))
}
