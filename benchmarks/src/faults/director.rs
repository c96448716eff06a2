//! Lets the faults happen, one after the other, and brings everything back to rest at the end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use schemas::topic;
use store::context::Contexts;
use store::log::{Admin, Kafka, LogError};
use tokio::sync::watch;

use super::cache::{Cache, Mishap};
use super::fleet::{Due, Ended, Fleet};
use super::plan::{Fault, Step, Store, Target};
use super::store as files;
use super::timeline::{Lane, Mark, name};

/// How long the pipeline may take to get on with its work after a fault.
const PROGRESS_MAX: Duration = Duration::from_secs(90);
/// How long a role may take to notice that it cannot write to its disk.
const REFUSED_MAX: Duration = Duration::from_secs(10);
/// How long processors may take to find out that their store has gone back in time: they must be given partitions.
const NOTICED_MAX: Duration = Duration::from_secs(60);
/// Turns between a backup and its restoration.
const BACKUP_TURNS: u64 = 100;
/// Turns by which a replica of the cache lags when it takes over.
const REPLICA_TURNS: u64 = 30;
/// Tries to rebuild: what a killed process left open may have to time out first.
const REBUILDS_MAX: usize = 5;
/// How long the readers of the log may take to catch up at the end.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(120);
/// Pause between two questions to the brokers.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long a killed broker is away before a frozen processor could have waited for it.
const BROKER_AWAY: Duration = Duration::from_millis(300);

/// One chain of the processors: its processes, and how it is told to rebuild.
#[derive(Debug, Clone)]
pub(super) struct Chained {
    /// Its consumer group.
    pub(super) group: String,
    /// What it reads.
    pub(super) topic: String,
    /// Its name, of its watermarks.
    pub(super) name: String,
    /// The variables of its processes.
    pub(super) variables: Vec<(&'static str, String)>,
}

/// What is counted beside the findings.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    /// Faults, by class.
    pub(super) faults: BTreeMap<&'static str, u64>,
    /// Kills, by process.
    pub(super) kills: BTreeMap<String, u64>,
    /// Times that contexts were rebuilt because processors refused them.
    pub(super) rebuilds: u64,
    /// Times that processors went on with contexts that had lost what was committed.
    pub(super) accepted_too_old: u64,
}

pub(super) struct Director {
    pub(super) fleet: Fleet,
    pub(super) kafka: Kafka,
    pub(super) cache: Option<Cache>,
    pub(super) session: Duration,
    pub(super) chains: Vec<Chained>,
    /// Committed enriched turns so far.
    pub(super) enriched: watch::Receiver<u64>,
    pub(super) counts: Counts,
    pub(super) kills: usize,
}

impl Director {
    /// All of them.
    pub(super) async fn run(&mut self, steps: &[Step], tell: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        for step in steps {
            if step.settled {
                self.progress(1).await?;
            }
            self.fleet.pass(step.pause).await?;
            *self.counts.faults.entry(name(&step.fault)).or_default() += 1;
            let ended = self.fleet.ended.len();
            self.fault(step.fault).await.with_context(|| format!("fault {:?}", step.fault))?;
            let (at, turns) = (self.fleet.elapsed().as_secs_f64(), *self.enriched.borrow());
            let kills: u64 = self.counts.kills.values().sum();
            tell(&format!("{at:6.1} s  {kills} kills of at least {}, {turns} turns: {:?}", self.kills, step.fault));
            for ended in self.fleet.ended.get(ended..).unwrap_or_default() {
                tell(&format!("          {} ended by itself: {}", ended.name, ended.reason));
            }
        }
        Ok(())
    }

    async fn fault(&mut self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Kill { target, away } => self.kill(target, away).await?,
            Fault::KillAll { away } => self.strike_all(away)?,
            Fault::Stop { target, beyond, again } => {
                self.fleet.freeze(target);
                let woken = self.session + beyond;
                self.fleet.later(woken, target, Due::Thaw);
                if let Some(again) = again {
                    self.fleet.later(woken + again, target, Due::Freeze);
                    self.fleet.later(woken + again + woken, target, Due::Thaw);
                }
            }
            Fault::StopInDoubt { target, after, beyond } => {
                self.kill(Target::Broker, BROKER_AWAY.max(after)).await?;
                self.fleet.pass(after).await?;
                self.fleet.freeze(target);
                self.fleet.later(self.session + BROKER_AWAY + beyond, target, Due::Thaw);
            }
            Fault::Add => {
                self.fleet.start(Target::Extra)?;
                self.fleet.mark(Lane::Process(Target::Extra), Mark::Started);
            }
            Fault::Remove => self.fleet.leave(Target::Extra),
            Fault::Slow { store, held } => {
                files::hold(&self.file(store), held)?;
                self.fleet.mark(Lane::Store(store), Mark::Slow);
            }
            Fault::Refuse { store } => self.refuse(store).await?,
            Fault::Forget { store, last } => {
                let copy = self.copy(store).await?;
                self.fleet.pass(last).await?;
                self.fleet.mark(Lane::Store(store), Mark::Forgot);
                self.restore(store, &copy).await?;
            }
            Fault::Restore { store } => {
                let copy = self.copy(store).await?;
                self.progress(BACKUP_TURNS).await?;
                self.fleet.mark(Lane::Store(store), Mark::Restored);
                self.restore(store, &copy).await?;
            }
            Fault::Cache { mishap } => self.mishap(mishap).await?,
        }
        Ok(())
    }

    async fn mishap(&mut self, mishap: Mishap) -> anyhow::Result<()> {
        let Some(mut cache) = self.cache.take() else { return Ok(()) };
        let mark = match mishap {
            Mishap::Flush => cache.flush().await.map(|()| Mark::Forgot)?,
            Mishap::Silence(time) => cache.silence(time).await.map(|()| Mark::Slow)?,
            Mishap::Kill(away) => cache.kill(away).await.map(|()| Mark::Killed)?,
            Mishap::BringBack => {
                cache.remember().await?;
                self.progress(REPLICA_TURNS).await?;
                cache.bring_back().await.map(|()| Mark::Restored)?
            }
        };
        self.fleet.mark(Lane::Cache, mark);
        self.cache = Some(cache);
        Ok(())
    }

    /// Waits until the pipeline has enriched some more turns.
    async fn progress(&mut self, turns: u64) -> anyhow::Result<()> {
        let wanted = *self.enriched.borrow() + turns;
        let enriched = self.enriched.clone();
        let went_on = self.fleet.until(PROGRESS_MAX, |_| *enriched.borrow() >= wanted).await?;
        anyhow::ensure!(
            went_on,
            "no turn came through for {} s; the logs of the processes are in {}",
            PROGRESS_MAX.as_secs(),
            self.fleet.logs().display()
        );
        Ok(())
    }

    async fn kill(&mut self, target: Target, away: Duration) -> anyhow::Result<()> {
        let up = self.fleet.until(PROGRESS_MAX, |fleet| fleet.is_up(target)).await?;
        anyhow::ensure!(up, "{target:?} does not start");
        self.strike(target, away)
    }

    /// Everything that is there, the readers before the broker: whatever they have on its way to it is cut off.
    fn strike_all(&mut self, away: Duration) -> anyhow::Result<()> {
        let up: Vec<Target> =
            self.fleet.slots.keys().rev().copied().filter(|target| self.fleet.is_up(*target)).collect();
        up.into_iter().try_for_each(|target| self.strike(target, away))
    }

    fn strike(&mut self, target: Target, away: Duration) -> anyhow::Result<()> {
        self.fleet.kill(target)?;
        self.fleet.mark(Lane::Process(target), Mark::Killed);
        self.fleet.later(away, target, Due::Start);
        let name = self.fleet.slots.get(&target).map_or_else(|| "broker".to_owned(), |slot| slot.name.clone());
        *self.counts.kills.entry(name).or_default() += 1;
        Ok(())
    }

    /// The role cannot write any more; it ends, and the one that is started after it can.
    async fn refuse(&mut self, store: Store) -> anyhow::Result<()> {
        let users = self.users(store);
        let awake =
            |fleet: &Fleet, target: &Target| fleet.slots.get(target).is_some_and(|slot| slot.said("http").is_some());
        self.fleet.until(PROGRESS_MAX, |fleet| users.iter().any(|target| awake(fleet, target))).await?;
        let Some(target) = users.into_iter().find(|target| awake(&self.fleet, target)) else { return Ok(()) };
        self.fleet.slots[&target].bound_files(Some(0));
        self.fleet.mark(Lane::Store(store), Mark::Refused);
        if self.fleet.until(REFUSED_MAX, |fleet| !fleet.is_up(target)).await? {
            // As it must; explained.
            let name = self.fleet.slots[&target].name.clone();
            let last = self.fleet.ended.iter().rposition(|ended| ended.name == name);
            last.map(|last| self.fleet.ended.remove(last));
        } else {
            // It had nothing to write.
            self.fleet.slots[&target].bound_files(None);
        }
        Ok(())
    }

    fn file(&self, store: Store) -> PathBuf {
        let data = self.fleet.program.folder.join("data");
        data.join(match store {
            Store::Contexts => "contexts.sqlite",
            Store::History => "history.sqlite",
        })
    }

    fn users(&self, store: Store) -> Vec<Target> {
        let is_user = |target: &Target| match store {
            Store::Contexts => matches!(target, Target::Processors(_) | Target::Extra),
            Store::History => *target == Target::History,
        };
        self.fleet.slots.keys().copied().filter(is_user).collect()
    }

    async fn copy(&mut self, store: Store) -> anyhow::Result<PathBuf> {
        let (file, to) = (self.file(store), self.fleet.program.folder.join(format!("{store:?}.copy")));
        let copied = to.clone();
        tokio::task::spawn_blocking(move || files::copy(&file, &copied)).await??;
        Ok(to)
    }

    /// All processes of the store die, it is as it was in the copy, and they start again. If they refuse it, they are
    /// given what they ask for; if they must refuse it and do not, that is counted.
    async fn restore(&mut self, store: Store, copy: &Path) -> anyhow::Result<()> {
        let mut users = self.users(store);
        users.retain(|target| *target != Target::Extra || self.fleet.is_up(*target));
        self.kill_all(&users)?;
        files::replace(&self.file(store), copy)?;
        if store == Store::History {
            // It reads up to the present by itself; whether it did, the comparison shows.
            return self.start_all(&users);
        }
        let lost = self.lost(copy).await?;
        let ended = self.fleet.ended.len();
        self.start_all(&users)?;
        let refuses = |fleet: &mut Fleet| fleet.ended.iter().skip(ended).any(Ended::names_the_mend);
        if lost && self.fleet.until(NOTICED_MAX, refuses).await? {
            self.kill_all(&users)?;
            self.rebuild().await?;
            self.fleet.ended.retain(|ended| !ended.names_the_mend());
            self.start_all(&users)?;
        } else if lost {
            self.counts.accepted_too_old += 1;
        }
        Ok(())
    }

    fn kill_all(&mut self, targets: &[Target]) -> anyhow::Result<()> {
        targets.iter().try_for_each(|target| self.fleet.kill(*target))
    }

    fn start_all(&mut self, targets: &[Target]) -> anyhow::Result<()> {
        targets.iter().try_for_each(|target| self.fleet.start(*target))
    }

    /// Whether a copy of the contexts stands before what the groups have committed. No processor runs now, so the
    /// answer stays true.
    async fn lost(&mut self, copy: &Path) -> anyhow::Result<bool> {
        let looked_at = copy.with_extension("looked-at");
        std::fs::copy(copy, &looked_at).context("look at a copy")?;
        let watermarks = Contexts::open(&looked_at).await?.watermarks().await?;
        let mut lost = false;
        for chain in self.chains.clone() {
            let committed = self.committed(&chain.group, &chain.topic).await?;
            lost |= committed.iter().any(|(partition, committed)| {
                let of = watermarks.iter().find(|mark| mark.chain == chain.name && mark.partition == *partition);
                of.and_then(|mark| mark.watermark).is_none_or(|watermark| watermark < *committed)
            });
        }
        Ok(lost)
    }

    /// `undertone contexts rebuild`, for each chain. Its processors do not run.
    async fn rebuild(&mut self) -> anyhow::Result<()> {
        for chain in self.chains.clone() {
            for attempt in 1.. {
                let mut command = self.fleet.program.command(&["contexts", "rebuild"], &chain.variables);
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                let output = tokio::task::spawn_blocking(move || command.output());
                while !output.is_finished() {
                    self.fleet.pass(ASK_AGAIN / 4).await?;
                }
                let output = output.await?.context("run the rebuild")?;
                if output.status.success() {
                    break;
                }
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                anyhow::ensure!(attempt < REBUILDS_MAX, "contexts rebuild failed: {said}");
                self.fleet.pass(ASK_AGAIN).await?;
            }
        }
        self.counts.rebuilds += 1;
        self.fleet.mark(Lane::Store(Store::Contexts), Mark::Rebuilt);
        Ok(())
    }

    /// What a group has committed, asked until somebody answers.
    async fn committed(&mut self, group: &str, topic: &str) -> anyhow::Result<BTreeMap<i32, i64>> {
        let admin = Admin::connect(&self.kafka)?;
        let begun = Instant::now();
        loop {
            match admin.committed(group, topic).await {
                Ok(committed) => return Ok(committed),
                Err(LogError::Transient(_) | LogError::UnknownTopic(_)) if begun.elapsed() < PROGRESS_MAX => {
                    self.fleet.pass(ASK_AGAIN).await?;
                }
                Err(error) => return Err(error).context("ask for committed offsets"),
            }
        }
    }

    /// Everything runs again, and waits until every reader of the log has read all of it.
    pub(super) async fn catch_up(&mut self) -> anyhow::Result<()> {
        let mut readers: Vec<(String, String)> =
            self.chains.iter().map(|chain| (chain.group.clone(), chain.topic.clone())).collect();
        readers.push(("undertone.history".to_owned(), topic::TURNS_ENRICHED.to_owned()));
        let admin = Admin::connect(&self.kafka)?;
        let begun = Instant::now();
        loop {
            self.fleet.settle()?;
            let mut behind = Vec::new();
            for (group, topic) in &readers {
                let ends = match admin.offsets(topic).await {
                    Ok(ends) => ends,
                    Err(error) if error.is_transient() => BTreeMap::from([(0, (0, i64::MAX))]),
                    Err(error) => return Err(error).context("ask for the ends"),
                };
                let committed = self.committed(group, topic).await?;
                let is_behind =
                    |(partition, (low, high)): (&i32, &(i64, i64))| committed.get(partition).unwrap_or(low) < high;
                if ends.iter().any(is_behind) {
                    behind.push(format!("{group}: {committed:?} of {ends:?}"));
                }
            }
            if behind.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(
                begun.elapsed() < CAUGHT_UP_MAX,
                "not all was read within {} s: {}; the logs of the processes are in {}",
                CAUGHT_UP_MAX.as_secs(),
                behind.join("; "),
                self.fleet.logs().display()
            );
            self.fleet.pass(ASK_AGAIN).await?;
        }
    }

    /// SIGTERM to everything that reads or writes the log; all of it must end well.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        let all: Vec<Target> = self.fleet.slots.keys().copied().filter(|target| *target != Target::Broker).collect();
        for target in &all {
            self.fleet.leave(*target);
        }
        let gone = |fleet: &mut Fleet| all.iter().all(|target| !fleet.is_up(*target));
        anyhow::ensure!(self.fleet.until(PROGRESS_MAX, gone).await?, "a process does not end on SIGTERM");
        Ok(())
    }
}
