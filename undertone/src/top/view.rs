//! What is on the screen: of each process its state, its rates since the last look, and its latencies. Plain data.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::scrape::{Figures, PartitionLag, Scrape};

/// What is counted on a turn's way, in order: what it is called here, the counter, and a label that it must have.
const STEPS: [(&str, &str, &str); 4] = [
    ("intake", "undertone_ingest_inputs_total", "outcome=\"turn\""),
    ("processors", "undertone_processors_turns_total", "outcome=\"enriched\""),
    ("history", "undertone_history_turns_total", ""),
    ("hub", "undertone_api_hub_turns_total", ""),
];

/// Latencies that are shown: what they are called here, and the histogram.
const LATENCIES: [(&str, &str); 3] = [
    ("acknowledgement", "undertone_ingest_acknowledgement_duration_seconds"),
    ("intake to commit", "undertone_processors_latency_seconds"),
    ("intake to hub", "undertone_api_journey_seconds"),
];

/// All that is looked at.
#[derive(Debug, Serialize)]
pub struct View {
    /// The processes, in the order in which they were named.
    pub processes: Vec<Process>,
}

/// A process, as it was found at the last look.
#[derive(Debug, Serialize)]
pub struct Process {
    /// Where it is asked.
    pub url: String,
    /// `ready`, `unready`, `down`, or `asking` before the first answer.
    pub state: String,
    /// What is wrong: why it is not ready, what to look at, or why there is no answer.
    pub reasons: Vec<String>,
    /// How often it was found started anew.
    pub restarts: u32,
    /// The last that was known; old where the state is `down`.
    pub known: Option<Known>,
    #[serde(skip)]
    last: Option<Scrape>,
}

/// What is known of a process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Known {
    /// Its name among those that share the work.
    pub instance: String,
    /// The roles that it plays.
    pub roles: Vec<String>,
    /// Turns a second by step since the last look; only the steps of its roles.
    pub turns_per_s: Vec<Rate>,
    /// Latencies since the last look.
    pub latencies: Vec<Latency>,
    /// How far its readers are behind.
    pub lag: Vec<RoleLag>,
    /// `full` or `fast`: what new turns get; absent without processors.
    pub tier: Option<&'static str>,
    /// Inputs at fault since its start.
    pub rejects: u64,
    /// Transactions that were aborted and run again since its start.
    pub aborts: u64,
    /// Resident memory in bytes.
    pub memory_bytes: u64,
}

/// How fast a step goes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rate {
    /// The step.
    pub step: &'static str,
    /// Turns a second.
    pub per_s: f64,
}

/// A latency in milliseconds; within the bucket that holds it, by a straight line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Latency {
    /// From where to where.
    pub what: &'static str,
    /// Half of the turns took no longer; absent if there were none.
    pub p50_ms: Option<f64>,
    /// Of a hundred turns, ninety-nine took no longer.
    pub p99_ms: Option<f64>,
}

/// How far a role is behind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoleLag {
    /// The role.
    pub role: String,
    /// By partition.
    pub partitions: Vec<Behind>,
}

/// How far it is behind on one partition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Behind {
    /// The partition.
    pub partition: i32,
    /// Records not yet read.
    pub messages: i64,
    /// Age of the oldest of them.
    pub seconds: f64,
}

impl View {
    /// Nothing known yet of processes at these addresses.
    pub fn new(urls: &[String]) -> View {
        let process = |url: &String| Process {
            url: url.clone(),
            state: "asking".to_owned(),
            reasons: Vec::new(),
            restarts: 0,
            known: None,
            last: None,
        };
        View { processes: urls.iter().map(process).collect() }
    }

    /// Takes in what each process answered, in the same order.
    pub fn apply(&mut self, answers: Vec<Result<Scrape, String>>) {
        for (process, answer) in self.processes.iter_mut().zip(answers) {
            match answer {
                Ok(scrape) => process.take(scrape),
                Err(why) => {
                    process.state = "down".to_owned();
                    process.reasons = vec![why];
                }
            }
        }
    }

    /// Whether any process answers.
    pub fn any_answers(&self) -> bool {
        self.processes.iter().any(|process| matches!(process.state.as_str(), "ready" | "unready"))
    }
}

impl Process {
    fn take(&mut self, scrape: Scrape) {
        let restarted = |last: &Scrape| last.status.started_at != scrape.status.started_at;
        // A process that came back counts from nothing: its figures are not set against those of the one before.
        let before = self.last.take().filter(|last| {
            let restarted = restarted(last);
            self.restarts += u32::from(restarted);
            !restarted
        });
        self.state = scrape.status.status.clone();
        let said = scrape.status.reasons.iter().chain(&scrape.status.warnings);
        self.reasons = said.map(|said| format!("{}: {}", said.part, said.reason)).collect();
        self.known = Some(known(&scrape, before.as_ref()));
        self.last = Some(scrape);
    }
}

fn known(scrape: &Scrape, before: Option<&Scrape>) -> Known {
    let (figures, status) = (&scrape.figures, &scrape.status);
    let nothing = Figures::default();
    let (earlier, elapsed) = match before {
        Some(before) => (&before.figures, since(before.at, scrape.at)),
        None => (&nothing, Duration::ZERO),
    };
    let turns_per_s = STEPS.into_iter().filter(|(_, counter, _)| figures.has(counter)).map(|(step, counter, label)| {
        let grown = figures.sum(counter, &[label]) - earlier.sum(counter, &[label]);
        let per_s = if elapsed.is_zero() { 0.0 } else { grown.max(0.0) / elapsed.as_secs_f64() };
        Rate { step, per_s }
    });
    let latencies = LATENCIES.into_iter().filter(|(_, histogram)| figures.has(&format!("{histogram}_bucket"))).map(
        |(what, histogram)| {
            let grown = difference(&figures.buckets(histogram), &earlier.buckets(histogram));
            let ms = |share| quantile(&grown, share).map(|seconds| seconds * 1000.0);
            Latency { what, p50_ms: ms(0.5), p99_ms: ms(0.99) }
        },
    );
    let behind = |lag: &PartitionLag| Behind { partition: lag.partition, messages: lag.messages, seconds: lag.seconds };
    let degraded = "undertone_processors_degraded";
    Known {
        instance: status.instance.clone(),
        roles: status.roles.clone(),
        turns_per_s: turns_per_s.collect(),
        latencies: latencies.collect(),
        lag: status
            .lag
            .iter()
            .map(|lag| RoleLag { role: lag.role.clone(), partitions: lag.partitions.iter().map(behind).collect() })
            .collect(),
        tier: figures.has(degraded).then(|| tier(figures, figures.sum(degraded, &[]) > 0.0)),
        rejects: figures.sum("undertone_rejects_total", &[]) as u64,
        aborts: figures.sum("undertone_processors_aborts_total", &[]) as u64,
        memory_bytes: figures.sum("process_resident_memory_bytes", &[]) as u64,
    }
}

/// Fast while it stands in, and where no turn has had another although the tier never changed: it is the one that is set.
fn tier(figures: &Figures, is_degraded: bool) -> &'static str {
    let turns = |label: &str| figures.sum("undertone_processors_turns_total", &["outcome=\"enriched\"", label]);
    let switched = figures.sum("undertone_processors_tier_switches_total", &[]) > 0.0;
    let only_fast = !switched && turns("tier=\"fast\"") > 0.0 && turns("tier=\"full\"") == 0.0;
    if is_degraded || only_fast { "fast" } else { "full" }
}

fn since(before: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(before)
}

/// What came into each bucket since the earlier look.
fn difference(now: &[(f64, f64)], earlier: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let before = |bound: f64| earlier.iter().find(|(known, _)| *known == bound).map_or(0.0, |(_, count)| *count);
    now.iter().map(|&(bound, count)| (bound, (count - before(bound)).max(0.0))).collect()
}

/// A quantile of cumulative buckets, as Prometheus' `histogram_quantile` reckons it: a straight line within the bucket,
/// the last finite bound beyond it.
fn quantile(buckets: &[(f64, f64)], share: f64) -> Option<f64> {
    let total = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let rank = share * total;
    let at = buckets.iter().position(|(_, count)| *count >= rank)?;
    let (low, below) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
    let (high, count) = buckets[at];
    if high.is_infinite() {
        return Some(low);
    }
    Some(low + (high - low) * (rank - below) / (count - below).max(f64::MIN_POSITIVE))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::top::scrape::Status;

    /// A process that has enriched so many turns.
    pub(in crate::top) fn scrape(at: Instant, started_at: i64, turns: u32) -> Scrape {
        let status = serde_json::json!({
            "status": "ready", "instance": "0", "started_at": started_at, "roles": ["processors", "history"],
            "lag": [{ "role": "processors", "partitions": [
                { "partition": 0, "messages": 0, "seconds": 0.0 }, { "partition": 1, "messages": 12, "seconds": 3.5 },
            ] }],
        });
        let text = format!(
            "undertone_processors_turns_total{{outcome=\"enriched\",tier=\"full\"}} {turns}\n\
             undertone_processors_latency_seconds_bucket{{le=\"0.01\"}} {turns}\n\
             undertone_processors_latency_seconds_bucket{{le=\"+Inf\"}} {turns}\n\
             undertone_processors_degraded 1\nundertone_rejects_total{{role=\"ingest\"}} 2\n\
             process_resident_memory_bytes 104857600\n"
        );
        let status: Status = serde_json::from_value(status).unwrap();
        Scrape { at, status, figures: Figures::parse(&text) }
    }

    #[test]
    fn rates_and_latencies_are_those_since_the_last_look() {
        let mut view = View::new(&["one".to_owned()]);
        let begun = Instant::now();
        view.apply(vec![Ok(scrape(begun, 1, 100))]);
        assert_eq!(view.processes[0].known.as_ref().unwrap().turns_per_s[0].per_s, 0.0, "one look knows no rate");
        view.apply(vec![Ok(scrape(begun + Duration::from_secs(2), 1, 300))]);
        let known = view.processes[0].known.clone().unwrap();
        assert_eq!(known.turns_per_s, [Rate { step: "processors", per_s: 100.0 }]);
        assert_eq!(known.latencies[0].p50_ms, Some(5.0));
        assert_eq!((known.tier, known.rejects, known.memory_bytes), (Some("fast"), 2, 100 << 20));
        assert_eq!(known.lag[0].partitions[1], Behind { partition: 1, messages: 12, seconds: 3.5 });
        view.apply(vec![Ok(scrape(begun + Duration::from_secs(3), 1, 300))]);
        assert_eq!(view.processes[0].known.clone().unwrap().latencies[0].p50_ms, None, "no turn, no latency");
    }

    #[test]
    fn process_that_dies_is_shown_and_one_that_comes_back_counts_anew() {
        let mut view = View::new(&["one".to_owned(), "other".to_owned()]);
        let begun = Instant::now();
        let gone = || Err("connection refused".to_owned());
        view.apply(vec![Ok(scrape(begun, 1, 100)), gone()]);
        assert!(view.any_answers());
        view.apply(vec![gone(), gone()]);
        assert!(!view.any_answers());
        let process = &view.processes[0];
        assert_eq!((process.state.as_str(), process.reasons[0].as_str()), ("down", "connection refused"));
        assert!(process.known.is_some(), "what was known stays");
        view.apply(vec![Ok(scrape(begun + Duration::from_secs(9), 2, 7)), gone()]);
        let process = &view.processes[0];
        assert_eq!((process.state.as_str(), process.restarts), ("ready", 1));
        assert_eq!(process.known.as_ref().unwrap().turns_per_s[0].per_s, 0.0);
    }

    #[test]
    fn tier_that_is_set_is_told_from_the_one_that_stands_in() {
        let of = |tier_of_turns: &str, is_degraded| {
            let text =
                format!("undertone_processors_turns_total{{outcome=\"enriched\",tier=\"{tier_of_turns}\"}} 36\n");
            tier(&Figures::parse(&text), is_degraded)
        };
        assert_eq!([of("fast", false), of("full", true), of("full", false)], ["fast", "fast", "full"]);
    }

    #[test]
    fn quantiles_lie_on_a_line_within_their_bucket() {
        let buckets = [(1.0, 0.0), (2.0, 50.0), (4.0, 100.0), (f64::INFINITY, 100.0)];
        assert_eq!(quantile(&buckets, 0.5), Some(2.0));
        assert_eq!(quantile(&buckets, 0.75), Some(3.0));
        assert_eq!(quantile(&[(1.0, 0.0), (f64::INFINITY, 5.0)], 0.5), Some(1.0), "beyond the last bound");
        assert_eq!(quantile(&[(1.0, 0.0)], 0.5), None);
    }
}
