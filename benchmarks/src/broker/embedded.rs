//! The embedded broker as a process of its own: `undertone run broker`, on a free port and an empty folder.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, bail};

/// A running process, which ends with this value.
pub(super) struct Embedded {
    child: Child,
    /// Held open: the process may go on printing.
    _out: BufReader<ChildStdout>,
    pub(super) bootstrap: String,
}

impl Embedded {
    /// Starts this very program again, and waits until it is ready. Variables for `[broker]` hold for it as well.
    pub(super) fn start(dir: &Path) -> anyhow::Result<Embedded> {
        let program = std::env::current_exe().context("find this program's file")?;
        let mut command = Command::new(program);
        command.args(["run", "broker", "--data-dir"]).arg(dir).stdin(Stdio::null()).stdout(Stdio::piped());
        for (name, value) in
            [("HTTP__LISTEN", "127.0.0.1:0"), ("BROKER__LISTEN", "127.0.0.1:0"), ("LOG__LEVEL", "warn")]
        {
            command.env(format!("UNDERTONE__{name}"), value);
        }
        for name in ["KAFKA__BOOTSTRAP", "BROKER__DIR", "BROKER__ADVERTISED_HOST"] {
            command.env_remove(format!("UNDERTONE__{name}"));
        }
        let mut child = command.spawn().context("start the embedded broker")?;
        let out = child.stdout.take().context("its output is piped")?;
        let mut started = Embedded { child, _out: BufReader::new(out), bootstrap: String::new() };
        loop {
            let mut line = String::new();
            if started._out.read_line(&mut line).context("read what the embedded broker says")? == 0 {
                bail!("the embedded broker ended before it was ready; its error stream says why");
            }
            if let Some(("kafka", address)) = line.trim().split_once(' ') {
                started.bootstrap = address.trim().to_owned();
            }
            // The last line of what it says when it is ready.
            if line.trim_start().starts_with("roles ") {
                break;
            }
        }
        anyhow::ensure!(!started.bootstrap.is_empty(), "the embedded broker did not say its address");
        Ok(started)
    }

    /// The most memory that the process has had at a time, as Linux counts it; `None` elsewhere.
    pub(super) fn peak_memory_bytes(&self) -> anyhow::Result<Option<u64>> {
        if !cfg!(target_os = "linux") {
            return Ok(None);
        }
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("find the peak of its memory")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("read the peak of its memory")?;
        Ok(Some(kib * 1024))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
