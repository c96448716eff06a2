//! The short form of `undertone bench faults`: a few kills and what stands among them, counted as in the long one.
//!
//! The plan of the faults comes from a seed that is printed; `UNDERTONE_TEST_SEED` repeats it.
#![expect(clippy::print_stdout, reason = "the seed and the course of a run that failed must be told")]

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// Longer than the tool itself waits for anything, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);
const KILLS: u64 = 6;

fn seed() -> u64 {
    let given = std::env::var("UNDERTONE_TEST_SEED").ok().map(|text| text.parse().expect("a number"));
    let seed = given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into());
    println!("UNDERTONE_TEST_SEED={seed}");
    seed
}

#[test]
fn a_few_faults_at_random_moments_lose_nothing_and_double_nothing() {
    let (kills, seed) = (KILLS.to_string(), seed().to_string());
    let mut child = Command::new(env!("CARGO_BIN_EXE_undertone"))
        .args(["bench", "faults", "--json", "--kills", &kills, "--seed", &seed])
        .args(["--rate", "40", "--conversations", "9", "--session-seconds", "2"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let (told, report) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = out.read_to_string(&mut text);
        told.send(read.map(|_| text)).unwrap();
    });
    let report = report.recv_timeout(PATIENCE);
    if report.is_err() {
        let _ = child.kill();
    }
    let report = report.expect("the run ends in time").unwrap();
    let status = child.wait().unwrap();
    println!("{report}");
    let report: Value = serde_json::from_str(&report).expect("a report, or the reason stands above");
    for key in ["lost", "doubled", "out_of_order", "contexts_differing", "turns_differing", "accepted_too_old"] {
        assert_eq!(report[key], 0, "{key}: {}", report["differences"]);
    }
    assert!(report["kills"].as_u64() >= Some(KILLS), "{report}");
    assert!(report["sent"].as_u64() > Some(0), "{report}");
    assert!(status.success());
}
