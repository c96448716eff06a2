//! The commands that answer and end: `config`, `topics`.

use std::process::ExitCode;

use anyhow::Context as _;
use store::log::Admin;

use super::{Settings, runtime, say, variables};
use crate::config::{self, Config};
use crate::topics::{self, State};
use crate::up;

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

/// `apply`: whether to create what is missing, and if so whether only to say it.
pub(super) fn topics(config: &Config, apply: Option<bool>) -> anyhow::Result<ExitCode> {
    let kafka = up::kafka_of(config);
    runtime()?.block_on(async {
        let admin = Admin::connect(&kafka).context("connect to the log (settings: [kafka])")?;
        let existing = admin.topics().await.with_context(|| {
            let mend = match config.is_embedded() {
                true => "the embedded broker runs only in `undertone up` or `undertone run broker`: start one of them",
                false => "is it running, and is [kafka] bootstrap right?",
            };
            format!("list the topics at {}; {mend}", kafka.bootstrap)
        })?;
        let wanted = up::topics_wanted(config);
        let findings = topics::compare(&wanted, &existing);
        let mut text = String::new();
        for finding in &findings {
            let state = match &finding.state {
                State::Same => "exists".to_owned(),
                State::Missing(spec) => format!("missing: {} partitions", spec.partitions),
                State::Differs(lines) => format!("exists, but {}", lines.join("; ")),
            };
            text += &format!("{:<36} {state}\n", finding.name);
        }
        for other in existing.iter().filter(|topic| !wanted.iter().any(|spec| spec.name == topic.name)) {
            text += &format!("{:<36} not wanted here\n", other.name);
        }
        let missing = findings.iter().filter(|f| matches!(f.state, State::Missing(_))).count();
        match apply {
            None if missing > 0 => text += "create what is missing with `undertone topics apply`\n",
            None => {}
            Some(true) => text += &format!("{missing} would be created\n"),
            Some(false) => {
                let created = topics::apply(&admin, &findings).await.context("create the missing topics")?;
                text += &format!("{} created\n", created.len());
            }
        }
        say(&text)
    })
}
