//! The processes of a run: which there are, what is due to happen to them, and which ended by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::watch;

use super::plan::Target;
use super::process::{Program, Slot};
use super::timeline::{Lane, Mark, Timeline};

/// Time between two looks at the processes.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A process that ended by itself is started again after this time, as a supervisor would.
const START_AGAIN: Duration = Duration::from_millis(200);
/// How long a process may take to end in an orderly way.
const LEAVE_MAX: Duration = Duration::from_secs(30);
/// Tries to start a server that is not ours.
const STARTS_MAX: u32 = 3;
/// What a role's last words say when its store has gone back in time.
const MEND: &str = "undertone contexts rebuild";

/// A process that ended by itself.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) name: String,
    pub(super) at: Duration,
    pub(super) status: String,
    /// Its last words.
    pub(super) reason: String,
}

impl Ended {
    /// Whether it refused its store and named the mend.
    pub(super) fn names_the_mend(&self) -> bool {
        self.reason.contains(MEND)
    }
}

/// Something that will be done to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Start,
    Freeze,
    Thaw,
}

/// A Kafka that is not ours, and the command that kills and starts it; `{}` stands for `kill` or `start`.
#[derive(Debug)]
pub(super) struct Server {
    command: String,
    starting: Option<Child>,
    starts: u32,
    up: bool,
}

impl Server {
    pub(super) fn new(command: &str) -> Server {
        let command = if command.contains("{}") { command.to_owned() } else { format!("{command} {{}}") };
        Server { command, starting: None, starts: 0, up: true }
    }

    fn run(&self, verb: &str) -> anyhow::Result<Child> {
        let line = self.command.replace("{}", verb);
        let mut command = Command::new("sh");
        command.args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().with_context(|| format!("run `{line}`"))
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) program: Program,
    pub(super) slots: BTreeMap<Target, Slot>,
    pub(super) server: Option<Server>,
    pub(super) timeline: Timeline,
    /// Ended by themselves, and not yet explained.
    pub(super) ended: Vec<Ended>,
    /// Where the intake is, when it is there.
    pub(super) address: watch::Sender<Option<String>>,
    due: Vec<(Instant, Target, Due)>,
    leaving: BTreeSet<Target>,
    begun: Instant,
}

impl Fleet {
    pub(super) fn new(program: Program, slots: BTreeMap<Target, Slot>, server: Option<Server>) -> Fleet {
        Fleet {
            program,
            slots,
            server,
            timeline: Timeline::default(),
            ended: Vec::new(),
            address: watch::Sender::new(None),
            due: Vec::new(),
            leaving: BTreeSet::new(),
            begun: Instant::now(),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn mark(&mut self, lane: Lane, mark: Mark) {
        self.timeline.mark(self.begun.elapsed(), lane, mark);
    }

    /// Whether the process is there.
    pub(super) fn is_up(&self, target: Target) -> bool {
        match (&self.server, target) {
            (Some(server), Target::Broker) => server.up,
            _ => self.slots.get(&target).is_some_and(Slot::is_up),
        }
    }

    pub(super) fn start(&mut self, target: Target) -> anyhow::Result<()> {
        if let (Some(server), Target::Broker) = (&mut self.server, target) {
            (server.starting, server.starts) = (Some(server.run("start")?), 1);
            return Ok(());
        }
        self.slots.get_mut(&target).context("a process of this name")?.start(&self.program)
    }

    /// SIGKILL; it stays away until something starts it, whatever was due.
    pub(super) fn kill(&mut self, target: Target) -> anyhow::Result<()> {
        self.due.retain(|(_, of, _)| *of != target);
        self.leaving.remove(&target);
        if target == Target::Ingest {
            self.address.send_replace(None);
        }
        if let (Some(server), Target::Broker) = (&mut self.server, target) {
            server.up = false;
            server.run("kill")?.wait().context("kill the server")?;
        } else if let Some(slot) = self.slots.get_mut(&target) {
            slot.kill();
        }
        Ok(())
    }

    pub(super) fn freeze(&mut self, target: Target) {
        if let Some(slot) = self.slots.get_mut(&target).filter(|slot| slot.is_awake()) {
            slot.freeze();
            self.mark(Lane::Process(target), Mark::Frozen);
        }
    }

    fn thaw(&mut self, target: Target) {
        if let Some(slot) = self.slots.get_mut(&target).filter(|slot| slot.is_up()) {
            slot.thaw();
            self.mark(Lane::Process(target), Mark::Thawed);
        }
    }

    /// SIGTERM: it leaves by itself.
    pub(super) fn leave(&mut self, target: Target) {
        if let Some(slot) = self.slots.get_mut(&target).filter(|slot| slot.is_up()) {
            slot.thaw();
            slot.terminate();
            self.leaving.insert(target);
            self.due.retain(|(_, of, _)| *of != target);
            self.due.push((Instant::now() + LEAVE_MAX, target, Due::Freeze));
            self.mark(Lane::Process(target), Mark::Left);
        }
    }

    pub(super) fn later(&mut self, after: Duration, target: Target, due: Due) {
        self.due.push((Instant::now() + after, target, due));
    }

    /// Does at once what was due later, except to freeze anybody.
    pub(super) fn settle(&mut self) -> anyhow::Result<()> {
        for (_, target, due) in std::mem::take(&mut self.due) {
            match due {
                Due::Start => self.start(target)?,
                Due::Thaw => self.thaw(target),
                Due::Freeze => {}
            }
        }
        Ok(())
    }

    /// Looks after the processes for a time.
    pub(super) async fn pass(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        loop {
            self.look()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
    }

    /// Looks after them until something holds; whether it did within the time. Time in which a server that is not ours
    /// is being started does not count: nobody can get on then, and its command has a bound of its own.
    pub(super) async fn until(
        &mut self,
        within: Duration,
        mut holds: impl FnMut(&mut Fleet) -> bool,
    ) -> anyhow::Result<bool> {
        let mut left = within;
        while !left.is_zero() {
            if holds(self) {
                return Ok(true);
            }
            let looked = Instant::now();
            self.pass(LOOK_EVERY).await?;
            if self.server.as_ref().is_none_or(|server| server.up) {
                left = left.saturating_sub(looked.elapsed());
            }
        }
        Ok(holds(self))
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let (ready, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.due).into_iter().partition(|due| due.0 <= now);
        self.due = later;
        for (_, target, due) in ready {
            match due {
                Due::Start => self.start(target)?,
                // It was told to leave, and did not.
                Due::Freeze if self.leaving.contains(&target) => self.kill(target)?,
                Due::Freeze => self.freeze(target),
                Due::Thaw => self.thaw(target),
            }
        }
        if let Some(server) = &mut self.server
            && let Some(starting) = &mut server.starting
            && let Some(status) = starting.try_wait().context("wait for the server")?
        {
            anyhow::ensure!(
                status.success() || server.starts < STARTS_MAX,
                "the Kafka server does not start again: {status}"
            );
            // On a busy machine it may take longer than its command waits.
            server.starting = if status.success() { None } else { Some(server.run("start")?) };
            server.starts += 1;
            server.up = status.success();
        }
        self.bury()?;
        let address = self.slots.get(&Target::Ingest).and_then(|slot| slot.said("http"));
        let address = address.and_then(|url| Some(url.strip_prefix("http://")?.to_owned()));
        self.address.send_if_modified(|known| {
            let changed = *known != address;
            known.clone_from(&address);
            changed
        });
        Ok(())
    }

    /// Notes who ended by itself, and starts it again.
    fn bury(&mut self) -> anyhow::Result<()> {
        let ended: Vec<_> = self
            .slots
            .iter_mut()
            .filter_map(|(target, slot)| Some((*target, slot.name.clone(), slot.ended()?)))
            .collect();
        for (target, name, (status, lines)) in ended {
            let left = self.leaving.remove(&target);
            self.due.retain(|(_, of, _)| *of != target);
            if !left {
                self.mark(Lane::Process(target), Mark::Ended);
                self.later(START_AGAIN, target, Due::Start);
            }
            if !left || !status.success() {
                let said = |line: &&String| line.starts_with("undertone:") || line.contains("\"ERROR\"");
                let reason = lines.iter().find(said).or(lines.first()).cloned().unwrap_or_default();
                self.ended.push(Ended { name, at: self.begun.elapsed(), status: status.to_string(), reason });
            }
        }
        Ok(())
    }

    /// Ends the embedded broker: nobody reads any more.
    pub(super) fn kill_broker_of_ours(&mut self) -> anyhow::Result<()> {
        if self.server.is_none() && self.slots.contains_key(&Target::Broker) {
            self.kill(Target::Broker)?;
        }
        Ok(())
    }

    /// Where the logs of the processes are.
    pub(super) fn logs(&self) -> PathBuf {
        self.program.folder.join("logs")
    }
}
