//! A broker in a process of its own, which can be killed and starved.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// It ends with this value.
pub(crate) struct Process {
    child: Child,
    pub(crate) bootstrap: String,
}

impl Process {
    pub(crate) fn start(dir: &Path, listen: &str) -> Result<Process> {
        Process::start_under("", dir, listen, &[])
    }

    /// Starts it from a shell that was given `limits` before, such as `ulimit -n 64`.
    pub(crate) fn start_under(limits: &str, dir: &Path, listen: &str, arguments: &[&str]) -> Result<Process> {
        let deps = std::env::current_exe()?;
        let program = deps.ancestors().nth(2).context("the build folder")?.join("examples").join("serve");
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{limits}\nexec \"$0\" \"$@\"")).arg(program).arg(dir).arg(listen);
        let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().context("start serve")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        let bootstrap = line.split(' ').next().context("its address")?.to_owned();
        ensure!(!bootstrap.is_empty(), "the broker did not start");
        Ok(Process { child, bootstrap })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// A number that Linux tells of the process, such as `Threads` or `VmRSS` in KiB.
    pub(crate) fn status(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).context("its status")?;
        Ok(line.split_whitespace().next().context("a number")?.parse()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
