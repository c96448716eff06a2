//! The command line: what can be asked of the program, and the one place that speaks to the process: signals, exit
//! codes, standard output, the log's subscriber.

mod bench;
mod commands;
mod doctor;
mod dream;
mod eval;
mod history;
mod intents;
mod memory;
mod models;
mod rejects;
mod replay;
mod serve;
mod synesthesia;
mod topics;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use self::topics::Topics;
use crate::capacity;
use crate::config::{self, Config};
use crate::up::Role;

/// Undertone reads the undertone of conversations as they happen.
#[derive(Debug, Parser)]
#[command(name = "undertone", version, max_term_width = 100, arg_required_else_help = true)]
#[command(
    after_help = "Begin with `undertone demo`, or with `undertone up` and `undertone watch` beside it. The manual \
                        pages of all commands are written by `undertone man --dir DIR`."
)]
pub struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

/// Where the settings come from.
#[derive(Debug, Clone, Default, Args)]
struct Settings {
    /// File of settings; `undertone config print` shows all of them.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of all state; wins over [data] dir.
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every role in this process.
    Up {
        /// Keep nothing: all state goes to a temporary folder that is removed at the end.
        #[arg(long, conflicts_with = "data_dir")]
        ephemeral: bool,
    },
    /// Run some roles in this process; others run elsewhere on the same log.
    Run {
        /// The roles.
        #[arg(required = true, value_enum, value_name = "ROLE")]
        roles: Vec<Role>,
    },
    /// Show or check the settings.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show the topics and schemas that exist and those that are wanted, or create and register what is missing.
    Topics(Topics),
    /// Find out what is missing on this machine, and how to mend it.
    Doctor,
    /// Draw the live stream in the terminal; as lines where the output is no terminal.
    Watch {
        /// Follow this conversation; without it, all of them.
        conversation: Option<String>,
        /// Address of a running Undertone; without it, that of [http] listen.
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
    /// Show how the running pipeline does; as lines where the output is no terminal.
    Top(Top),
    /// Play a real conversation through the front door, and watch.
    Demo(Demo),
    /// Run the models on texts and show what they add.
    Analyze {
        /// The texts, each for itself.
        #[arg(required = true, value_name = "TEXT")]
        texts: Vec<String>,
        /// Which models.
        #[arg(long, value_enum, default_value_t = TierChoice::Full)]
        tier: TierChoice,
        /// One JSON object a text, rather than a drawing.
        #[arg(long)]
        json: bool,
        /// Whoever wrote the texts agrees to what they say of the writer: a weak signal, and style alone under 200 words.
        #[arg(long)]
        consent: bool,
    },
    /// Show a text as a palette, a sound and a texture; draw it, and play it into a file.
    Synesthesia(Synesthesia),
    /// Dream: a few lines of verse, in a feeling, or in the mood of a conversation.
    Dream(Dream),
    /// Score the models on labelled texts, beside a simpler model on the same texts.
    Eval(Eval),
    /// Check the intents that you name by examples.
    #[command(subcommand)]
    Intents(intents::IntentsCommand),
    /// Show or rebuild what is known of conversations.
    #[command(subcommand)]
    Contexts(ContextsCommand),
    /// Recall what was said, or draw where it is remembered.
    #[command(subcommand)]
    Memory(memory::MemoryCommand),
    /// Compare what is kept of turns with the log.
    #[command(subcommand)]
    History(history::HistoryCommand),
    /// List, show or drive in again the inputs at fault, while the log runs.
    #[command(subcommand)]
    Rejects(rejects::RejectsCommand),
    /// Run turns once more through other models or settings, into a topic and contexts of their own.
    Replay(replay::Options),
    /// Compute partitions, processes, memory and disk for a load, from what a turn and a socket cost.
    Capacity {
        /// Inputs of your own, rather than those that are shipped; `--print` shows the shipped ones.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Print the inputs, as the file to begin with.
        #[arg(long, conflicts_with = "file")]
        print: bool,
    },
    /// Measure the program beside a peer or a limit, or kill it and count.
    Bench {
        #[command(subcommand)]
        command: bench::BenchCommand,
        /// One JSON object, rather than a table.
        #[arg(long, global = true)]
        json: bool,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page, or write the pages of all commands.
    Man {
        /// Folder to write a page for each command to, rather than printing the first.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// What to score, and on which texts.
#[derive(Debug, Args)]
struct Eval {
    /// What the models are asked to tell.
    #[arg(value_parser = eval::tasks())]
    task: String,
    /// JSON lines; what stands in a line depends on the task, and a line at fault is told with what it should be.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Which models.
    #[arg(long, value_enum, default_value_t = TierChoice::Full)]
    tier: TierChoice,
    /// Labels to choose among, for emotion-transfer; those in the data if absent.
    #[arg(long, value_name = "LABEL", value_delimiter = ',')]
    labels: Vec<String>,
    /// The shipped set of intents, for intent.
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
    /// Intents of your own, each with example sentences, for intent.
    #[arg(long, value_name = "FILE", conflicts_with = "set")]
    examples: Option<PathBuf>,
    /// Actions of tasks, {task: [label, …]} or {task: {label: template}}, for next-action; the shipped ones if absent.
    #[arg(long, value_name = "FILE")]
    actions: Option<PathBuf>,
    /// Language of the texts, as an ISO 639-3 code, for language; that of each line if absent.
    #[arg(long, value_name = "CODE")]
    language: Option<String>,
    /// Lines that the decoder was trained on, to count copies, for dreams.
    #[arg(long, value_name = "FILE")]
    train: Option<PathBuf>,
    /// Conversations to dream of, for dreams; JSON lines as for coherence.
    #[arg(long, value_name = "FILE")]
    conversations: Option<PathBuf>,
    /// What pictures show is remembered with what is said, for memory.
    #[arg(long)]
    captions: bool,
    /// One JSON object, rather than a table.
    #[arg(long)]
    json: bool,
}

/// What to see and to hear, and where.
#[derive(Debug, Args)]
struct Synesthesia {
    /// The text.
    text: String,
    /// File to draw a picture to, as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// File to play a sound to, as WAV.
    #[arg(long, value_name = "FILE")]
    wav: Option<PathBuf>,
    /// Which models.
    #[arg(long, value_enum, default_value_t = TierChoice::Full)]
    tier: TierChoice,
    /// One JSON object, rather than words.
    #[arg(long)]
    json: bool,
}

/// What to dream of, and how often.
#[derive(Debug, Args)]
struct Dream {
    /// A feeling: one of the 28 of stage emotion.
    #[arg(long, value_name = "NAME", value_parser = schemas::GoEmotions::LABELS)]
    emotion: Option<String>,
    /// A conversation of the history, for its mood, its colours and its words.
    #[arg(long, value_name = "ID", conflicts_with = "emotion")]
    conversation: Option<String>,
    /// How many dreams.
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    count: u64,
    /// The same seed gives the same dreams.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object a dream, rather than its lines.
    #[arg(long)]
    json: bool,
}

/// Whom to look at, and how.
#[derive(Debug, Args)]
struct Top {
    /// Address of a running process, once for each; without it, that of [http] listen.
    #[arg(long, value_name = "URL")]
    url: Vec<String>,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
    /// Look once and end; exit status 1 if no process answers.
    #[arg(long)]
    once: bool,
    /// One JSON object a look, rather than a drawing or lines.
    #[arg(long)]
    json: bool,
}

/// What to play, and to whom.
#[derive(Debug, Args)]
struct Demo {
    /// Which of the bundled conversations.
    #[arg(value_parser = crate::demo::names(), default_value = crate::demo::FIRST)]
    conversation: String,
    /// How fast: 2 is twice as fast as the natural pace.
    #[arg(long, default_value_t = 1.0, value_parser = crate::demo::parse_speed)]
    speed: f64,
    /// Play into a running Undertone at this address, rather than into one of its own that keeps nothing.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the settings in force; secrets are masked.
    Print {
        /// Print the defaults with their documentation.
        #[arg(long)]
        default: bool,
    },
    /// Check the settings and say what is wrong with them.
    Check,
}

#[derive(Debug, Subcommand)]
enum ContextsCommand {
    /// Print the context of a conversation.
    Show {
        /// Its id.
        conversation: String,
    },
    /// Fold all contexts again from the log and the enriched turns, after the store lost writes. Stop the processors
    /// first.
    Rebuild {
        /// Only forget them: they are of another log, and the group has committed nothing on this one.
        #[arg(long)]
        forget: bool,
    },
}

/// Which models run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TierChoice {
    /// Transformer encoder.
    Full,
    /// N-gram and static embedding.
    Fast,
}

impl From<TierChoice> for schemas::Tier {
    fn from(choice: TierChoice) -> schemas::Tier {
        match choice {
            TierChoice::Full => schemas::Tier::Full,
            TierChoice::Fast => schemas::Tier::Fast,
        }
    }
}

/// Runs one command.
pub fn main(cli: Cli) -> ExitCode {
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "undertone: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let settings = &cli.settings;
    match cli.command {
        Command::Up { ephemeral } => serve::up(settings.load()?, ephemeral),
        Command::Run { roles } => serve::run(settings.load()?, &roles),
        Command::Config(ConfigCommand::Print { default: true }) => say(config::DEFAULT),
        Command::Config(ConfigCommand::Print { default: false }) => commands::config_print(settings),
        Command::Config(ConfigCommand::Check) => commands::config_check(settings),
        Command::Topics(args) => topics::topics(&settings.load()?, &args),
        Command::Doctor => doctor::doctor(settings),
        Command::Watch { conversation, url } => serve::watch(settings, conversation, url),
        Command::Top(top) => serve::top(settings, &top),
        Command::Demo(demo) => serve::demo(settings.load()?, &demo),
        Command::Analyze { texts, tier, json, consent } => {
            models::analyze(&settings.load()?, &texts, tier.into(), json, consent)
        }
        Command::Synesthesia(args) => synesthesia::synesthesia(&settings.load()?, &args),
        Command::Dream(args) => dream::dream(&settings.load()?, &args),
        Command::Eval(eval) => eval::eval(&settings.load()?, &eval),
        Command::Intents(command) => intents::intents(&settings.load()?, command),
        Command::Contexts(ContextsCommand::Show { conversation }) => {
            models::contexts_show(&settings.load()?, &conversation)
        }
        Command::Contexts(ContextsCommand::Rebuild { forget }) => models::contexts_rebuild(settings.load()?, forget),
        Command::Replay(options) => replay::replay(&settings.load()?, &options),
        Command::Bench { command, json } => bench::bench(settings, &command, json),
        Command::Capacity { print: true, .. } => say(capacity::SHIPPED),
        Command::Capacity { file, print: false } => commands::capacity(file.as_deref()),
        Command::Memory(command) => memory::memory(&settings.load()?, command),
        Command::History(command) => history::history(settings, &command),
        Command::Rejects(command) => rejects::rejects(&settings.load()?, command),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "undertone", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir: Some(dir) } => {
            clap_mangen::generate_to(Cli::command(), &dir)
                .with_context(|| format!("write the pages to {}; does the folder exist?", dir.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir: None } => {
            clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Settings {
    fn load(&self) -> anyhow::Result<Config> {
        let mut config = config::load(self.config.as_deref(), variables())?;
        if let Some(dir) = &self.data_dir {
            dir.clone_into(&mut config.data.dir);
        }
        Ok(config)
    }

    fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }
}

/// The environment; a variable that is no UTF-8 is none of ours.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Prints to standard output. Whoever reads it may have gone: that is an end, not a fault.
fn say(text: &str) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    let _ = write!(out, "{text}{end}").and_then(|()| out.flush());
    Ok(ExitCode::SUCCESS)
}

/// A runtime for a command that waits for few things.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_may_stand_before_and_after_the_command() {
        for line in [["undertone", "--data-dir", "d", "up"], ["undertone", "up", "--data-dir", "d"]] {
            assert_eq!(Cli::parse_from(line).settings.data_dir.as_deref(), Some(Path::new("d")));
        }
        assert!(Cli::try_parse_from(["undertone", "up", "--ephemeral", "--data-dir", "d"]).is_err());
        assert!(Cli::try_parse_from(["undertone", "run"]).is_err());
    }

    #[test]
    fn manual_page_and_completions_name_every_command() {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page).unwrap();
        let mut completions = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "undertone", &mut completions);
        let (page, completions) = (String::from_utf8(page).unwrap(), String::from_utf8(completions).unwrap());
        for command in Cli::command().get_subcommands() {
            assert!(page.contains(command.get_name()), "{}", command.get_name());
            assert!(completions.contains(command.get_name()), "{}", command.get_name());
        }
    }
}
