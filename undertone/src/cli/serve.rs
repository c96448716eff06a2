//! The commands that run until they are told to stop: `up`, `run`, `watch`, `top`, `demo`.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::{Demo, Settings, Top, runtime, say};
use crate::config::{Config, StoreKind};
use crate::up::{self, Role, Running};
use crate::watch::feed::Follow;
use crate::watch::{self, Until};
use crate::{demo, telemetry, top};

/// Exit code after a second signal: as a shell reports an interrupt.
const INTERRUPTED: i32 = 130;

pub(super) fn up(mut config: Config, ephemeral: bool) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        !ephemeral || config.history.kind == StoreKind::Sqlite && config.context.kind == StoreKind::Sqlite,
        "--ephemeral keeps nothing, and [history] or [context] kind = \"scylla\" keeps it on a server: leave one of them out"
    );
    let kept = if ephemeral { Some(temporary(&mut config)?) } else { None };
    let code = run(config, &[]);
    drop(kept);
    code
}

pub(super) fn run(config: Config, roles: &[Role]) -> anyhow::Result<ExitCode> {
    telemetry::start_log(&config.log, None)?;
    runtime()?.block_on(async {
        let stop = on_signal()?;
        let mut running = tokio::select! {
            running = up::start(config, roles) => running?,
            () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
        };
        say(&ready(&running))?;
        let failed = tokio::select! {
            failed = running.failed() => Some(failed),
            () = stop.cancelled() => None,
        };
        tracing::info!("stopping; a second signal ends at once");
        let report = running.stop().await;
        if let Some(failed) = failed {
            return Err(failed.into());
        }
        anyhow::ensure!(
            report.drained,
            "not everything was finished in time, the rest was cut off as by a crash; raise [shutdown] \
             drain_seconds_max"
        );
        Ok(ExitCode::SUCCESS)
    })
}

/// What a person wants to know at the start.
fn ready(running: &Running) -> String {
    let roles: Vec<&str> = running.roles().iter().map(|role| role.name()).collect();
    let page =
        if running.roles().contains(&Role::Api) { format!("\n  page   {}/", running.url()) } else { String::new() };
    format!(
        "undertone is ready after {} ms\n  http   {}{page}\n  kafka  {}\n  data   {}\n  roles  {}\n",
        running.started_in().as_millis(),
        running.url(),
        running.kafka(),
        absolute(running.data_dir()),
        roles.join(", "),
    )
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// Moves all state of this run to a folder that goes with the returned value.
fn temporary(config: &mut Config) -> anyhow::Result<tempfile::TempDir> {
    let dir = crate::temporary::folder()?;
    let Config { data, broker, .. } = config;
    dir.path().clone_into(&mut data.dir);
    broker.dir = Default::default();
    config.context.kind = StoreKind::Sqlite;
    config.context.path = Default::default();
    config.history.kind = StoreKind::Sqlite;
    config.history.path = Default::default();
    Ok(dir)
}

/// A token that the first SIGINT or SIGTERM cancels; the second ends the process at once.
pub(super) fn on_signal() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if cancelled.is_cancelled() {
                std::process::exit(INTERRUPTED);
            }
            cancelled.cancel();
        }
    });
    Ok(token)
}

pub(super) fn watch(
    settings: &Settings,
    conversation: Option<String>,
    url: Option<String>,
) -> anyhow::Result<ExitCode> {
    let url = match url {
        Some(url) => url,
        None => format!("http://{}", settings.load()?.http.listen),
    };
    let follow = conversation.map_or(Follow::All, Follow::Conversation);
    runtime()?.block_on(async {
        let stop = on_signal()?;
        watch::run(&url, follow, Until::Stopped, stop).await
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn top(settings: &Settings, args: &Top) -> anyhow::Result<ExitCode> {
    let urls = match args.url.is_empty() {
        true => vec![format!("http://{}", settings.load()?.http.listen)],
        false => args.url.clone(),
    };
    let options = top::Options { every: Duration::from_secs(args.every), once: args.once, json: args.json };
    let answers = runtime()?.block_on(async {
        let stop = on_signal()?;
        top::run(&urls, options, stop).await
    })?;
    Ok(if answers || !args.once { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn demo(mut config: Config, args: &Demo) -> anyhow::Result<ExitCode> {
    let script = demo::script(&args.conversation)?;
    let kept = if args.url.is_none() { Some(temporary(&mut config)?) } else { None };
    // The terminal is drawn on: the log goes beside the state.
    let drawn = std::io::stdout().is_terminal();
    let log_file = kept.as_ref().filter(|_| drawn).map(|dir| dir.path().join("undertone.log"));
    if args.url.is_none() {
        telemetry::start_log(&config.log, log_file.as_deref())?;
    }
    runtime()?.block_on(async {
        let stop = on_signal()?;
        let running = match &args.url {
            Some(_) => None,
            None => Some(up::start(config, &[]).await?),
        };
        let url = match (&args.url, &running) {
            (Some(url), _) => url.clone(),
            (None, Some(running)) => running.url(),
            (None, None) => unreachable!("without an address a pipeline was started"),
        };
        if let Some(running) = &running
            && !drawn
        {
            say(&ready(running))?;
        }
        let room = script.room();
        let until = Until::Turns(script.turns.len());
        let shown = watch::run(&url, Follow::Conversation(room.clone()), until, stop.clone());
        let playing = tokio::spawn(demo::play(url.clone(), script, room, args.speed, stop.clone()));
        let shown = shown.await;
        stop.cancel();
        let played = playing.await.context("the player ended abnormally")?;
        if let Some(running) = running {
            running.stop().await;
        }
        shown.and(played)
    })?;
    let _ = std::io::stdout().flush();
    Ok(ExitCode::SUCCESS)
}
