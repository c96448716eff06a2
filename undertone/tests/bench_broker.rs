//! `undertone bench broker` with the real program, in short: that it measures, compares and says what it found. Whether
//! the aims are met is for a quiet machine and a longer run.

use std::process::{Command, Stdio};

use broker::{Broker, Config};
use serde_json::Value;

#[test]
fn the_broker_is_measured_beside_another_and_the_report_is_one_object() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let other = runtime.block_on(Broker::start(Config::new(dir.path()))).unwrap();
    let short = ["--rounds", "2", "--warm-up", "0", "--records", "2000", "--rate", "200", "--seconds", "1"];
    let output = Command::new(env!("CARGO_BIN_EXE_undertone"))
        .args(["bench", "--json", "broker", "--against", &other.bootstrap()])
        .args(short)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"));
    for key in ["produced_ratio", "consumed_ratio", "latency_p99_ratio", "rss_mb"] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {report}");
    }
    for broker in ["embedded", "apache"] {
        let (p50, p99) = (&report[broker]["latency_p50_ms"], &report[broker]["latency_p99_ms"]);
        assert!(p50["median"].as_f64() <= p99["median"].as_f64(), "{report}");
        assert!(p99["min"].as_f64() <= p99["max"].as_f64(), "{report}");
    }
    // Progress is told apart from the report, round by round.
    assert_eq!(errors.matches("embedded: produced").count(), 2, "{errors}");
    let met = report["aims_met"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(!met)), "an aim that is missed is an exit status");
}
