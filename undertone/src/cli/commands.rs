//! The commands that answer and end at once: `config`.

use std::process::ExitCode;

use anyhow::Context as _;

use super::{Settings, say, variables};
use crate::config;

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
