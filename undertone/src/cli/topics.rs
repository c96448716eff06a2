//! `undertone topics` and `undertone topics apply`: the topics, and the schemas of what stands in them; and
//! `undertone topics grow`: more partitions.
//!
//! The schemas come first: they need no log, and an embedded one runs only in a process that needs them registered.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use store::log::Admin;
use store::registry::subjects::{self, Finding, LEVEL, State};
use store::registry::{Client, RegistryError};

use super::replay::reach;
use super::{runtime, say};
use crate::config::Config;
use crate::health::Health;
use crate::telemetry::Metrics;
use crate::topics::grow::{self, QUIET_FOR};
use crate::topics::{self, Difference, State as TopicState};
use crate::{telemetry, up};

#[derive(Debug, Args)]
pub(super) struct Topics {
    /// The schemas alone: no log is asked.
    #[arg(long)]
    schemas: bool,
    #[command(subcommand)]
    command: Option<TopicsCommand>,
}

#[derive(Debug, Subcommand)]
enum TopicsCommand {
    /// Create the topics that are missing, and register the schemas that are; what exists stays as it is. Status 1 if the
    /// registry refuses a schema.
    Apply {
        /// Only say what would be done; status 1 if the registry would refuse a schema.
        #[arg(long)]
        dry_run: bool,
        /// The schemas alone: no log is asked.
        #[arg(long)]
        schemas: bool,
    },
    /// Add partitions to all topics, if every turn in them is worked off and nobody works on them.
    Grow {
        /// How many each of them is to have.
        #[arg(long, value_name = "N")]
        partitions: i32,
        /// Only look whether they can be added, and say to which topics.
        #[arg(long)]
        dry_run: bool,
    },
}

/// What is to be done about what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Show,
    DryRun,
    Apply,
}

pub(super) fn topics(config: &Config, args: &Topics) -> anyhow::Result<ExitCode> {
    let (what, schemas_alone) = match args.command {
        None => (What::Show, args.schemas),
        Some(TopicsCommand::Apply { dry_run, schemas }) => {
            (if dry_run { What::DryRun } else { What::Apply }, schemas || args.schemas)
        }
        Some(TopicsCommand::Grow { partitions, dry_run }) => return grow(config, partitions, dry_run),
    };
    runtime()?.block_on(async {
        // Neither waits for the other: what one says is worth hearing while the other is away.
        let schemas = schemas_of(config, what).await;
        if !schemas_alone {
            topics_of(config, what).await?;
        }
        let refused = schemas?;
        Ok(if refused && what != What::Show { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })
}

/// Whether the registry refuses a schema.
async fn schemas_of(config: &Config, what: What) -> anyhow::Result<bool> {
    let Some(settings) = config.registry.settings() else {
        say("schemas: those that are compiled in ([registry] kind = \"embedded\"); nothing to register\n")?;
        return Ok(false);
    };
    let client = Client::new(&settings, &Metrics::new().meter()).context("make a client of the schema registry")?;
    let wanted = up::subjects(config);
    let findings = subjects::compare(&client, &wanted).await.context("compare the schemas with the registry's")?;
    let mut lines = String::new();
    let (mut refused, mut done) = (false, 0);
    for finding in &findings {
        let state = match what {
            What::Apply if finding.is_open() => match subjects::apply(&client, finding).await {
                Ok(place) => {
                    done += 1;
                    format!("registered: id {}, version {}, {LEVEL}", place.id, place.version)
                }
                Err(RegistryError::Incompatible { message, .. }) => {
                    refused = true;
                    format!("refused as incompatible: {message}")
                }
                Err(error) => {
                    say(&lines)?;
                    return Err(error).with_context(|| format!("register the schemas of {}", finding.subject.name));
                }
            },
            _ => {
                refused |= matches!(finding.state, State::Incompatible(_));
                described(finding)
            }
        };
        lines += &format!("{:<42} {state}\n", finding.subject.name);
    }
    let open = findings.iter().filter(|finding| finding.is_open()).count();
    lines += &format!("schemas at {}: ", client.address());
    lines += &match what {
        What::Show if open > 0 => format!("{open} to register or set with `undertone topics apply`\n"),
        What::Show => "all registered\n".to_owned(),
        What::DryRun => format!("{open} would be registered or set\n"),
        What::Apply => format!("{done} registered or set\n"),
    };
    if refused {
        lines += "A schema that is refused breaks readers or writers of those that are registered: change it so that each \
                  version reads the others' records (new fields with a default, none removed without one), or, where \
                  something else was registered under our subjects, remove that from the registry\n";
    }
    say(&lines)?;
    Ok(refused)
}

fn described(finding: &Finding) -> String {
    let level = finding.level.as_deref().filter(|level| *level != LEVEL);
    match (&finding.state, level) {
        (State::Registered(place), None) => format!("id {}, version {}, {LEVEL}", place.id, place.version),
        (State::Registered(place), Some(level)) => {
            format!("id {}, version {}, but {level} in place of {LEVEL}", place.id, place.version)
        }
        (State::Missing, _) => "missing".to_owned(),
        (State::Incompatible(said), _) if said.is_empty() => "incompatible with what is registered".to_owned(),
        (State::Incompatible(said), _) => format!("incompatible with what is registered: {said}"),
    }
}

async fn topics_of(config: &Config, what: What) -> anyhow::Result<()> {
    let kafka = up::kafka_of(config);
    let admin = Admin::connect(&kafka).context("connect to the log (settings: [kafka])")?;
    let existing = admin.topics().await.with_context(|| {
        let mend = match config.is_embedded() {
            true => "the embedded broker runs only in `undertone up` or `undertone run broker`: start one of them",
            false => "is it running, and is [kafka] bootstrap right?",
        };
        format!("list the topics at {}; {mend}", kafka.bootstrap)
    })?;
    let wanted = up::topics_wanted(config);
    let findings = topics::compare(&wanted, &existing, &kafka.bootstrap);
    let mut text = String::new();
    for finding in &findings {
        let state = match &finding.state {
            TopicState::Same => "exists".to_owned(),
            TopicState::Missing(spec) => format!("missing: {} partitions", spec.partitions),
            TopicState::Differs(differences) => {
                let told = differences.iter().map(|Difference { what, mend }| match mend {
                    Some(mend) => format!("{what} (keeps the program from starting; {mend})"),
                    None => what.clone(),
                });
                format!("exists, but {}", told.collect::<Vec<_>>().join("; "))
            }
        };
        text += &format!("{:<42} {state}\n", finding.name);
    }
    for other in existing.iter().filter(|topic| !wanted.iter().any(|spec| spec.name == topic.name)) {
        text += &format!("{:<42} not wanted here\n", other.name);
    }
    let missing = findings.iter().filter(|f| matches!(f.state, TopicState::Missing(_))).count();
    match what {
        What::Show if missing > 0 => text += "create what is missing with `undertone topics apply`\n",
        What::Show => {}
        What::DryRun => text += &format!("{missing} would be created\n"),
        What::Apply => {
            let created = topics::apply(&admin, &findings).await.context("create the missing topics")?;
            text += &format!("{} created\n", created.len());
        }
    }
    say(&text)?;
    Ok(())
}

/// Adds partitions to all topics, if everything in them is worked off.
fn grow(config: &Config, partitions: i32, dry_run: bool) -> anyhow::Result<ExitCode> {
    telemetry::start_log(&config.log, None)?;
    runtime()?.block_on(async {
        let (kafka, broker) = reach(config).await?;
        let grown = async {
            let admin = Admin::connect(&kafka).context("connect to the log (settings: [kafka])")?;
            let order = processors::stages::ORDER;
            let existing = admin.topics().await.context("list the topics")?;
            let readers = grow::readers(&config.processors.group, &config.history.group, order, &existing);
            let growth = grow::plan(&admin, &readers, &existing, order, partitions, QUIET_FOR).await?;
            if !dry_run {
                let contexts = up::Databases::new(Health::default()).contexts(config).await?;
                grow::grow(&admin, &contexts, &growth).await?;
            }
            Ok::<_, anyhow::Error>(growth.topics)
        };
        let grown = grown.await;
        if let Some(broker) = broker {
            broker.stop().await;
        }
        let grown = grown?;
        if grown.is_empty() {
            return say(&format!("all topics have {partitions} partitions"));
        }
        let done = if dry_run { "would get" } else { "have" };
        let mut text: String = grown.iter().map(|topic| format!("{topic}\n")).collect();
        text += &format!("{} topics {done} {partitions} partitions\n", grown.len());
        if !dry_run {
            text += &format!("set [kafka] partitions = {partitions}, and start the roles again, the intake too\n");
        }
        say(&text)
    })
}
