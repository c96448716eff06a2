//! How many partitions, processes and machines a load needs, and how much memory and disk: from the costs of one turn, one
//! conversation and one socket. Pure; every line shows its arithmetic.
//!
//! Left out: what was not measured, which `deploy/CAPACITY.md` names.

use std::fmt::Write as _;

use serde::Deserialize;

/// The inputs that are shipped, with what was measured.
pub const SHIPPED: &str = include_str!("../../deploy/capacity.toml");

const SECONDS_A_DAY: f64 = 86_400.0;
/// Ports that a Linux gives to outgoing connections, unless told otherwise: 32,768 to 60,999.
const PORTS: f64 = 28_232.0;
/// Files that a process needs beside its sockets: connections to brokers and stores, segments, listeners.
const FILES_BESIDE: f64 = 1_000.0;

/// Everything that is computed from; `deploy/capacity.toml` says what each means.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    load: Load,
    cpu_ms_a_turn: CpuMs,
    bytes_a_turn: TurnBytes,
    bytes_a_conversation: ConversationBytes,
    socket: Socket,
    database: Database,
    machines: Machines,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    conversations_a_day: f64,
    turns_a_conversation: f64,
    peak_factor: f64,
    sockets: Vec<f64>,
    readers_a_turn: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct CpuMs {
    ingest: f64,
    processors_full: f64,
    processors_fast: f64,
    history: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct TurnBytes {
    received: f64,
    enriched: f64,
    history: f64,
    frame: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConversationBytes {
    contexts: f64,
    redis: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Socket {
    kib: f64,
    open_cpu_us_a_s: f64,
    frame_cpu_us: f64,
    turn_cpu_us: f64,
    api_base_mib: f64,
    hub_mib: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Database {
    turns_per_s_a_core: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Machines {
    busy_max: f64,
    replication: f64,
    log_retention_days: f64,
    history_retention_days: f64,
    disk_full_max: f64,
    node_disk_tb: f64,
    node_cores: f64,
    cores_a_process: f64,
    partitions_a_process: f64,
    sockets_a_process: f64,
}

/// Reads inputs.
///
/// # Errors
/// They are no TOML, miss something, have something unknown, or a number that is not above 0.
pub fn read(text: &str) -> anyhow::Result<Inputs> {
    let table: toml::Table = toml::from_str(text)?;
    for (section, values) in &table {
        for (key, value) in values.as_table().into_iter().flatten() {
            let numbers = value.as_array().map_or_else(|| vec![value], |many| many.iter().collect());
            let is_sound = |value: &toml::Value| {
                let number = value.as_float().or(value.as_integer().map(|number| number as f64));
                number.is_none_or(|number| number > 0.0 && number.is_finite())
            };
            anyhow::ensure!(numbers.into_iter().all(is_sound), "[{section}] {key} must be above 0");
        }
    }
    let inputs: Inputs = table.try_into()?;
    let Machines { busy_max, disk_full_max, replication, .. } = inputs.machines;
    for (key, share) in [("busy_max", busy_max), ("disk_full_max", disk_full_max)] {
        anyhow::ensure!(share <= 1.0, "[machines] {key} is a share: at most 1");
    }
    let is_whole = replication >= 1.0 && replication.fract() == 0.0;
    anyhow::ensure!(is_whole, "[machines] replication is a number of copies: 1, 2, 3 …");
    Ok(inputs)
}

/// The tables, as Markdown.
pub fn tables(inputs: &Inputs) -> String {
    let mut sheet = Sheet::default();
    let peak = turns(inputs, &mut sheet);
    processes(inputs, peak, &mut sheet);
    log(inputs, peak, &mut sheet);
    database(inputs, peak, &mut sheet);
    for sockets in &inputs.load.sockets {
        open_sockets(inputs, peak, *sockets, &mut sheet);
    }
    sheet.text
}

/// Turns a second at the peak.
fn turns(inputs: &Inputs, sheet: &mut Sheet) -> f64 {
    let load = &inputs.load;
    sheet.begin("Turns");
    let day = load.conversations_a_day * load.turns_a_conversation;
    let shown = format!("{} conversations × {} turns", n(load.conversations_a_day), n(load.turns_a_conversation));
    sheet.row("turns a day", &shown, day, "");
    let mean = sheet.row("turns a second, mean", &format!("{} ÷ 86,400 s", n(day)), day / SECONDS_A_DAY, "");
    let shown = format!("{} × {}", n(mean), n(load.peak_factor));
    sheet.row("turns a second, peak", &shown, mean * load.peak_factor, "")
}

/// Cores, processes and partitions of the roles that turns pass through.
fn processes(inputs: &Inputs, peak: f64, sheet: &mut Sheet) {
    let (cost, machines) = (&inputs.cpu_ms_a_turn, &inputs.machines);
    sheet.begin("Intake, processors, history writers");
    let mut cores = |role: &str, cpu_ms: f64| {
        let shown = format!("{} × {} ms ÷ 1,000 ÷ {} busy", n(peak), n(cpu_ms), n(machines.busy_max));
        sheet.row(&format!("cores of {role}"), &shown, peak * cpu_ms / 1000.0 / machines.busy_max, "")
    };
    cores("ingest", cost.ingest);
    let full = cores("processors, full tier", cost.processors_full);
    cores("processors, fast tier", cost.processors_fast);
    cores("history writers", cost.history);
    let shown = format!("{} ÷ {} cores, rounded up", n(full), n(machines.cores_a_process));
    let count = sheet.row("processors, full tier", &shown, (full / machines.cores_a_process).ceil(), "processes");
    let shown = format!(
        "{} × 2 (to grow twofold) × {} a process, next power of two",
        n(count),
        n(machines.partitions_a_process)
    );
    let wanted = (count * 2.0 * machines.partitions_a_process).log2().ceil().exp2();
    sheet.row("partitions", &shown, wanted, "");
}

/// What the log carries and keeps.
fn log(inputs: &Inputs, peak: f64, sheet: &mut Sheet) {
    let (bytes, machines) = (&inputs.bytes_a_turn, &inputs.machines);
    sheet.begin("Log (Kafka)");
    let turn = bytes.received + bytes.enriched;
    let shown = format!("{} × ({} + {}) B", n(peak), n(bytes.received), n(bytes.enriched));
    let rate = sheet.row("written, peak, one copy", &shown, peak * turn / 1e6, "MB/s");
    let shown = format!("{} × {} copies", n(rate), n(machines.replication));
    sheet.row("written to disks", &shown, rate * machines.replication, "MB/s");
    let day = inputs.load.conversations_a_day * inputs.load.turns_a_conversation;
    let kept = day * turn * machines.replication * machines.log_retention_days;
    let (copies, days) = (machines.replication, machines.log_retention_days);
    let shown = format!("{} turns × {} B × {} copies × {} days", n(day), n(turn), n(copies), n(days));
    sheet.row("kept", &shown, kept / 1e12, "TB");
}

/// History, contexts, and the cache in front of them.
fn database(inputs: &Inputs, peak: f64, sheet: &mut Sheet) {
    let (load, machines) = (&inputs.load, &inputs.machines);
    let (copies, days) = (machines.replication, machines.history_retention_days);
    sheet.begin("History and contexts (ScyllaDB or Cassandra), Redis");
    let writing = inputs.database.turns_per_s_a_core;
    let shown = format!("{} × {} copies ÷ {} a core ÷ {} busy", n(peak), n(copies), n(writing), n(machines.busy_max));
    let cores = sheet.row("cores for writing", &shown, peak * copies / writing / machines.busy_max, "");
    let history = load.conversations_a_day * load.turns_a_conversation * inputs.bytes_a_turn.history * copies * days;
    let turns = n(load.conversations_a_day * load.turns_a_conversation);
    let each = n(inputs.bytes_a_turn.history);
    let shown = format!("{turns} turns × {each} B × {} copies × {} days", n(copies), n(days));
    let history = sheet.row("history", &shown, history / 1e12, "TB");
    let contexts = load.conversations_a_day * inputs.bytes_a_conversation.contexts * copies * days;
    let (conversations, each) = (n(load.conversations_a_day), n(inputs.bytes_a_conversation.contexts));
    let shown = format!("{conversations} conversations × {each} B × {} copies × {} days", n(copies), n(days));
    let contexts = sheet.row("contexts", &shown, contexts / 1e12, "TB");
    let by_disk = ((history + contexts) / machines.disk_full_max / machines.node_disk_tb).ceil();
    let disk = n(machines.node_disk_tb);
    let shown = format!("({} + {}) ÷ {} full ÷ {disk} TB, up", n(history), n(contexts), n(machines.disk_full_max));
    let by_disk = sheet.row("nodes by disk", &shown, by_disk, "");
    let shown = format!("{} ÷ {} cores, up", n(cores), n(machines.node_cores));
    let by_cores = sheet.row("nodes by cores", &shown, (cores / machines.node_cores).ceil(), "");
    let shown = format!("the most of {}, {} and {} copies", n(by_disk), n(by_cores), n(copies));
    sheet.row("nodes", &shown, by_disk.max(by_cores).max(copies), "");
    let each = n(inputs.bytes_a_conversation.redis);
    let redis = load.conversations_a_day * inputs.bytes_a_conversation.redis;
    let shown = format!("{conversations} conversations of a day × {each} B");
    sheet.row("Redis, if nothing is to be evicted", &shown, redis / 1e9, "GB");
}

/// The `api` processes for so many open sockets.
fn open_sockets(inputs: &Inputs, peak: f64, sockets: f64, sheet: &mut Sheet) {
    let (socket, machines) = (&inputs.socket, &inputs.machines);
    sheet.begin(&format!("{} sockets", n(sockets)));
    let own = machines.sockets_a_process;
    let shown = format!("{} ÷ {}, up, and one to spare", n(sockets), n(own));
    let count = sheet.row("`api` processes", &shown, (sockets / own).ceil() + 1.0, "");
    let each = sheet.row("sockets a process", &format!("{} ÷ {}", n(sockets), n(count)), (sockets / count).ceil(), "");
    let memory = socket.api_base_mib + socket.hub_mib + each * socket.kib / 1024.0;
    let shown = format!("{} + {} MiB + {} × {} KiB", n(socket.api_base_mib), n(socket.hub_mib), n(each), n(socket.kib));
    let memory = sheet.row("memory a process", &shown, memory, "MiB");
    let shown = format!("{} × {} MiB", n(count), n(memory));
    sheet.row("memory of all", &shown, count * memory / 1024.0, "GiB");
    let shown = format!("{} + {}", n(own), n(FILES_BESIDE));
    sheet.row("open files a process (`ulimit -n`)", &shown, own + FILES_BESIDE, "");
    let reading = peak * socket.turn_cpu_us / 1e6;
    let shown = format!("{} × {} µs: every process reads every turn", n(peak), n(socket.turn_cpu_us));
    let reading = sheet.row("cores a process for reading", &shown, reading, "");
    let frames = peak * inputs.load.readers_a_turn;
    let shown = format!("{} × {} readers", n(peak), n(inputs.load.readers_a_turn));
    let frames = sheet.row("frames a second, of all", &shown, frames, "");
    let sending = frames * socket.frame_cpu_us / 1e6 + sockets * socket.open_cpu_us_a_s / 1e6;
    let (frame, open) = (n(socket.frame_cpu_us), n(socket.open_cpu_us_a_s));
    let shown = format!("{} × {frame} µs + {} × {open} µs", n(frames), n(sockets));
    let sending = sheet.row("cores for frames and pings, of all", &shown, sending, "");
    let cores = (count * reading + sending) / machines.busy_max;
    let shown = format!("({} × {} + {}) ÷ {} busy", n(count), n(reading), n(sending), n(machines.busy_max));
    sheet.row("cores of all", &shown, cores, "");
    let out = peak * inputs.bytes_a_turn.enriched * count;
    let shown = format!("{} × {} B × {}", n(peak), n(inputs.bytes_a_turn.enriched), n(count));
    sheet.row("from the log to them", &shown, out / 1e6, "MB/s");
    let shown = format!("{} × {} B", n(frames), n(inputs.bytes_a_turn.frame));
    sheet.row("from them to clients", &shown, frames * inputs.bytes_a_turn.frame / 1e6, "MB/s");
    let shown = format!("{} ÷ {} ports to one process, up", n(each), n(PORTS));
    sheet.row("addresses that a proxy needs", &shown, (each / PORTS).ceil(), "");
}

/// Rows under headings.
#[derive(Debug, Default)]
struct Sheet {
    text: String,
}

impl Sheet {
    fn begin(&mut self, heading: &str) {
        let gap = if self.text.is_empty() { "" } else { "\n" };
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{gap}**{heading}**\n\n| | arithmetic | |\n|---|---|---|\n");
    }

    /// A row; its value, as it is shown, so that a reader who computes along comes to the same.
    fn row(&mut self, what: &str, arithmetic: &str, value: f64, unit: &str) -> f64 {
        let gap = if unit.is_empty() { "" } else { " " };
        let _ = writeln!(self.text, "| {what} | {arithmetic} | {}{gap}{unit} |", n(value));
        shown(value)
    }
}

/// Rounded as it is shown: three digits that count, and whole numbers whole.
fn shown(value: f64) -> f64 {
    if value >= 100.0 || value == 0.0 {
        return value.round();
    }
    let digits = 2.0 - value.abs().log10().floor();
    let factor = 10_f64.powf(digits);
    (value * factor).round() / factor
}

/// A number for people, with commas between thousands.
fn n(value: f64) -> String {
    let value = shown(value);
    if value < 100.0 {
        return format!("{value}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_with_three_digits_and_commas() {
        for (value, text) in [(0.012_345, "0.0123"), (3.0, "3"), (12.34, "12.3"), (231.48, "231"), (2e7, "20,000,000")]
        {
            assert_eq!(n(value), text);
        }
    }

    #[test]
    fn the_arithmetic_comes_out_and_goes_on_with_what_is_shown() {
        let tables = tables(&read(SHIPPED).unwrap());
        assert!(tables.contains("| turns a second, mean | 20,000,000 ÷ 86,400 s | 231 |"), "{tables}");
        assert!(tables.contains("| turns a second, peak | 231 × 4 | 924 |"), "{tables}");
        assert!(tables.contains("**1,000,000 sockets**"), "{tables}");
    }

    #[test]
    fn twice_the_conversations_need_twice_the_cores() {
        let cores = |inputs: &str| -> f64 {
            let tables = tables(&read(inputs).unwrap());
            let row = tables.lines().find(|line| line.starts_with("| cores of processors, full")).unwrap();
            row.split('|').nth(3).unwrap().trim().parse().unwrap()
        };
        let twice = SHIPPED.replace("conversations_a_day = 1000000", "conversations_a_day = 2000000");
        assert!((cores(&twice) / cores(SHIPPED) - 2.0).abs() < 0.02);
    }

    #[test]
    fn an_unknown_key_a_missing_one_and_a_nought_are_refused() {
        let known = "peak_factor = 4";
        assert!(SHIPPED.contains(known));
        for wrong in ["peak_faktor = 4", "", "peak_factor = 0", "peak_factor = 4\nother = 1"] {
            let error = read(&SHIPPED.replace(known, wrong)).unwrap_err().to_string();
            assert!(error.contains("peak_fa") || error.contains("other"), "{error}");
        }
    }

    #[test]
    fn the_page_shows_what_the_command_prints() {
        let page = include_str!("../../deploy/CAPACITY.md");
        let (_, behind) = page.split_once("<!-- undertone capacity -->\n").expect("where the tables begin");
        let (shown, _) = behind.split_once("<!-- end -->").expect("where they end");
        let tables = tables(&read(SHIPPED).unwrap());
        assert_eq!(shown.trim(), tables.trim(), "put the output of `undertone capacity` there");
    }
}
