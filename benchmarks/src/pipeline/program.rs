//! The program as a process of its own: started on free ports and a temporary folder, its memory read from the kernel.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// A process that ends with this value.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
    /// Held open: the program may go on printing.
    _out: BufReader<ChildStdout>,
    said: BTreeMap<String, String>,
    ready_in: Duration,
}

/// How a process is to run.
#[derive(Debug, Clone, Default)]
pub(super) struct Launch<'a> {
    pub(super) arguments: &'a [&'a str],
    pub(super) variables: &'a [(&'a str, &'a str)],
    /// The one processor that it may use.
    pub(super) core: Option<usize>,
}

impl Program {
    /// Starts it and waits until it says that it is ready.
    pub(super) fn start(program: &Path, data: &Path, launch: &Launch<'_>) -> anyhow::Result<Program> {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(core) = launch.core {
            words.extend(["taskset".into(), "-c".into(), core.to_string().into()]);
        }
        words.push(program.into());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(["--data-dir".as_ref(), data.as_os_str()])
            .args(launch.arguments)
            .env("UNDERTONE__HTTP__LISTEN", "127.0.0.1:0")
            .env("UNDERTONE__BROKER__LISTEN", "127.0.0.1:0")
            .env("UNDERTONE__LOG__LEVEL", "warn")
            .envs(launch.variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn().with_context(|| format!("start {}", Path::new(&words[0]).display()))?;
        let mut out = BufReader::new(child.stdout.take().context("the output is a pipe")?);
        let mut said = BTreeMap::new();
        while !said.contains_key("roles") {
            let mut line = String::new();
            if out.read_line(&mut line).context("read what it says")? == 0 {
                let status = child.wait().context("wait for it")?;
                anyhow::bail!("it ended before it was ready ({status}): its error stream says why");
            }
            if let Some((word, rest)) = line.trim().split_once(' ') {
                said.insert(word.to_owned(), rest.trim().to_owned());
            }
        }
        Ok(Program { child, _out: out, said, ready_in: begun.elapsed() })
    }

    /// From the start of the process to its word that it is ready.
    pub(super) fn ready_in(&self) -> Duration {
        self.ready_in
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// `host:port` of its HTTP listener.
    pub(super) fn http(&self) -> &str {
        self.said.get("http").map_or("", |url| url.trim_start_matches("http://"))
    }

    /// `host:port` of its log.
    pub(super) fn kafka(&self) -> &str {
        self.said.get("kafka").map_or("", String::as_str)
    }

    /// Resident memory in MiB: now, or the most that it ever was.
    pub(super) fn memory_mb(&self, most: bool) -> anyhow::Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let name = if most { "VmHWM:" } else { "VmRSS:" };
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("the kernel says how much")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().context("read a size")?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processors that this process may use, from the kernel's list such as `0-3,8`.
pub(super) fn cores() -> anyhow::Result<Vec<usize>> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    parse_cores(list.context("the kernel says which processors are allowed")?.trim())
        .context("read a list of processors")
}

fn parse_cores(list: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cores.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_processors_is_read() {
        assert_eq!(parse_cores("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_cores("3"), Some(vec![3]));
        assert_eq!(parse_cores("x"), None);
    }
}
