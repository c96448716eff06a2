//! A role of the program as a process of its own: started, listened to, signalled, killed.
//!
//! What it writes on its error stream goes to a file under the run's folder, and its last lines stay at hand, so that
//! an end can be told with its reason. It does not outlive the tool, unless the tool itself is killed.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context as _;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

/// Lines of the error stream that are kept at hand.
const LINES_MAX: usize = 40;
/// Runs the program so that a write over a limit of the file size is an error, as on a full disk, and not a signal.
const WRAPPER: &str = r#"trap "" XFSZ; exec "$@""#;

/// The program, and what all of its processes share.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) variables: Vec<(&'static str, String)>,
}

impl Program {
    /// The program with these arguments, and with `variables` over the shared ones. Settings of the caller's
    /// environment do not count: a run must be what its report says.
    pub(super) fn command(&self, arguments: &[&str], variables: &[(&'static str, String)]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", WRAPPER, "sh"]).arg(&self.path).arg("--data-dir").arg(self.folder.join("data"));
        command.args(arguments).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("UNDERTONE__") {
                command.env_remove(name);
            }
        }
        command.envs(self.variables.iter().chain(variables).map(|(name, value)| (*name, value)));
        command
    }
}

/// A place for a process: it may be empty, and what runs there may have been started many times.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    arguments: Vec<&'static str>,
    variables: Vec<(&'static str, String)>,
    running: Option<Running>,
    starts: usize,
}

#[derive(Debug)]
struct Running {
    child: Child,
    frozen: bool,
    said: Said,
    /// Ends when all of its error stream has been read.
    listening: Option<JoinHandle<()>>,
}

/// What a process has said so far: the first word of a line of its output, and the rest; the last lines of its log.
#[derive(Debug, Clone, Default)]
struct Said {
    words: Arc<Mutex<BTreeMap<String, String>>>,
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Slot {
    pub(super) fn new(name: &str, roles: &[&'static str], variables: Vec<(&'static str, String)>) -> Slot {
        let arguments = std::iter::once("run").chain(roles.iter().copied()).collect();
        Slot { name: name.to_owned(), arguments, variables, running: None, starts: 0 }
    }

    /// Starts a process, if none runs.
    pub(super) fn start(&mut self, program: &Program) -> anyhow::Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        self.starts += 1;
        let mut command = program.command(&self.arguments, &self.variables);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {}", program.path.display()))?;
        let (said, log) = (Said::default(), program.folder.join("logs").join(format!("{}.log", self.name)));
        let mut log = File::options().create(true).append(true).open(log).context("open a log file")?;
        writeln!(log, "start {}", self.starts).context("write a log file")?;
        if let Some(out) = child.stdout.take() {
            let words = Arc::clone(&said.words);
            let _ = listen(out, move |line| {
                if let Some((word, rest)) = line.trim().split_once(' ') {
                    lock(&words).insert(word.to_owned(), rest.trim().to_owned());
                }
            })?;
        }
        let mut listening = None;
        if let Some(errors) = child.stderr.take() {
            let lines = Arc::clone(&said.lines);
            listening = Some(listen(errors, move |line| {
                // The log is for people; a full disk must not end the run.
                let _ = writeln!(log, "{line}");
                let mut lines = lock(&lines);
                lines.truncate(LINES_MAX - 1);
                lines.push_front(line);
            })?);
        }
        self.running = Some(Running { child, frozen: false, said, listening });
        Ok(())
    }

    /// Whether a process is there, frozen or not.
    pub(super) fn is_up(&self) -> bool {
        self.running.is_some()
    }

    /// Whether it is there and runs.
    pub(super) fn is_awake(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.frozen)
    }

    /// What it printed behind a word when it was ready.
    pub(super) fn said(&self, word: &str) -> Option<String> {
        let words = lock(&self.running.as_ref()?.said.words);
        words.contains_key("roles").then(|| words.get(word).cloned())?
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }

    /// SIGTERM: it is to end by itself.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGSTOP.
    pub(super) fn freeze(&mut self) {
        self.signal(Signal::STOP);
        if let Some(running) = &mut self.running {
            running.frozen = true;
        }
    }

    /// SIGCONT.
    pub(super) fn thaw(&mut self) {
        self.signal(Signal::CONT);
        if let Some(running) = &mut self.running {
            running.frozen = false;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It may have ended in the meantime; who looks after it finds that out.
            let _ = kill_process(pid, signal);
        }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> Option<Pid> {
        let running = self.running.as_ref()?;
        Pid::from_raw(i32::try_from(running.child.id()).ok()?)
    }

    /// From now on it cannot let a file grow beyond `bytes`; `None` lifts the bound.
    pub(super) fn bound_files(&self, bytes: Option<u64>) {
        let limit = Rlimit { current: bytes, maximum: None };
        if self.pid().is_some() {
            let _ = prlimit(self.pid(), Resource::Fsize, limit);
        }
    }

    /// How it ended, if it did so by itself, with the last lines of its log. The place is empty then.
    pub(super) fn ended(&mut self) -> Option<(ExitStatus, Vec<String>)> {
        let running = self.running.as_mut()?;
        let status = running.child.try_wait().ok()??;
        let mut ended = self.running.take()?;
        if let Some(listening) = ended.listening.take() {
            // Its last words may be on their way.
            let _ = listening.join();
        }
        let lines = lock(&ended.said.lines).iter().cloned().collect();
        Some((status, lines))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Calls `each` with every line of a stream, on a thread that ends with the stream.
fn listen(
    stream: impl std::io::Read + Send + 'static,
    mut each: impl FnMut(String) + Send + 'static,
) -> anyhow::Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("listen".to_owned());
    let spawned = thread.spawn(move || BufReader::new(stream).lines().map_while(Result::ok).for_each(&mut each));
    spawned.context("start a thread")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
