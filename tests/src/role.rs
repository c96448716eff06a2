//! The processors with toy stages as a role of its own in the test's process, and the single-threaded fold that says what
//! must come of their work.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::metrics::MeterProvider as _;
use processors::chain::{Conversation, Folded};
use processors::rebuild::{RebuildError, Rebuilt};
use processors::{Chain, Config, Limits, Options, Plan, RunError, Surroundings, TierPolicy};
use schemas::{Codec, Stamp, Tier, Turn};
use store::context::Contexts;
use store::log::Kafka;
use store::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::toy::{self, Hand};
use crate::{Log, PATIENCE};

/// Begins the names of the groups of all roles here.
pub const GROUP: &str = "test";

/// How a role is to run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// A contiguous run of [`toy::ORDER`]; none means all.
    pub stages: Vec<&'static str>,
    /// Name of the process.
    pub instance: String,
    /// The test's hand on its stages.
    pub hand: Hand,
    /// Bounds: small batches, and members that the group soon gives up.
    pub limits: Limits,
    /// The log as this role reaches it, if not directly.
    pub kafka: Option<Kafka>,
}

impl Setup {
    /// All stages, under this name.
    pub fn named(instance: &str) -> Setup {
        Setup {
            stages: Vec::new(),
            instance: instance.to_owned(),
            hand: Hand::default(),
            limits: Limits {
                batch_turns_max: 16,
                session_timeout: Duration::from_secs(2),
                work_time_max: Duration::from_secs(2),
                ..Limits::default()
            },
            kafka: None,
        }
    }

    /// What processors run by.
    pub fn config(&self) -> Config {
        config(&self.instance, &self.stages, self.limits.clone())
    }
}

/// What processors of these stages (none: all of them) run by: the fast tier, and no models.
pub fn config(instance: &str, stages: &[&str], limits: Limits) -> Config {
    Config {
        group: GROUP.to_owned(),
        instance: instance.to_owned(),
        stages: stages.iter().map(|stage| (*stage).to_owned()).collect(),
        tier: TierPolicy::Fixed(Tier::Fast),
        models: "unused".into(),
        onnxruntime: "unused".into(),
        options: Options::default(),
        dialogue: processors::model::wanted::Wanted { intents: Vec::new(), ..Default::default() },
        limits,
        loaded: Default::default(),
    }
}

/// What processors work with: this log and these contexts, and nobody who measures them.
pub fn surroundings(kafka: &Kafka, contexts: &Contexts) -> Surroundings {
    Surroundings {
        kafka: kafka.clone(),
        contexts: contexts.clone(),
        registry: Registry::embedded(),
        meter: opentelemetry::metrics::noop::NoopMeterProvider::new().meter("test"),
        spans: Default::default(),
        waiting: Arc::default(),
        shutdown: CancellationToken::new(),
    }
}

/// Processors that run.
#[derive(Debug)]
pub struct Role {
    task: JoinHandle<Result<(), RunError>>,
    shutdown: CancellationToken,
    waiting: Arc<store::Waiting>,
}

impl Role {
    /// Starts them.
    pub fn start(log: &Log, contexts: &Contexts, setup: &Setup) -> Role {
        Role::start_on(&log.kafka, contexts, setup)
    }

    /// Starts them on a log that somebody else keeps.
    pub fn start_on(kafka: &Kafka, contexts: &Contexts, setup: &Setup) -> Role {
        let around = surroundings(setup.kafka.as_ref().unwrap_or(kafka), contexts);
        let (shutdown, waiting) = (around.shutdown.clone(), Arc::clone(&around.waiting));
        let (config, hand) = (setup.config(), setup.hand.clone());
        let task = tokio::spawn(processors::run_stages(config, &toy::ORDER, move || Ok(toy::stages(&hand)), around));
        Role { task, shutdown, waiting }
    }

    /// Waits until it has no partitions.
    pub async fn without_partitions(&mut self) {
        let waits = async {
            while self.waiting.wait().map(|wait| wait.what) != Some("waiting for partitions") {
                assert!(!self.task.is_finished(), "the role goes on: {:?}", (&mut self.task).await);
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waits).await.expect("it loses its partitions in time");
    }

    /// Waits until it says that something is away.
    pub async fn waits_for(&self, dependency: &str) {
        let waits = async {
            while !self.waiting.wait().is_some_and(|wait| wait.is_away && wait.what.contains(dependency)) {
                assert!(!self.task.is_finished(), "the role ended");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waits).await.expect("it waits in time");
    }

    /// Why it ended by itself. May be cancelled and asked again.
    pub async fn failed(&mut self) -> RunError {
        let ended = tokio::time::timeout(PATIENCE, &mut self.task).await.expect("the role ends in time");
        ended.expect("the role does not panic").expect_err("it ends with an error")
    }

    /// Ends it in an orderly way.
    ///
    /// # Errors
    /// It had failed, or failed now.
    pub async fn stop(self) -> Result<(), RunError> {
        self.shutdown.cancel();
        self.ended().await
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn ended(self) -> Result<(), RunError> {
        let ended = tokio::time::timeout(PATIENCE, self.task).await.expect("the role ends in time");
        ended.expect("the role does not panic")
    }
}

/// The chain of these stages (none: all of them), with its plan and group.
fn chain(codec: &Arc<Codec>, stages: &[&str]) -> (Chain, Plan, String) {
    let plan = processors::plan(&toy::ORDER, stages).expect("a contiguous run");
    let run = toy::stages(&Hand::default()).drain(plan.run.clone()).collect();
    let chain = Chain::new(run, plan.first, Arc::clone(codec));
    let group = processors::group(GROUP, chain.name());
    (chain, plan, group)
}

/// Rebuilds the contexts of a chain, as `undertone contexts rebuild` does.
///
/// # Errors
/// See [`RebuildError`].
pub async fn rebuild(log: &Log, contexts: &Contexts, stages: &[&str]) -> Result<Rebuilt, RebuildError> {
    let (chain, plan, group) = chain(&log.codec, stages);
    processors::rebuild::rebuild(&chain, &group, &plan, &log.kafka, contexts, &Registry::embedded()).await
}

/// Forgets the contexts of the whole chain, as `undertone contexts rebuild --forget` does.
///
/// # Errors
/// See [`RebuildError`].
pub async fn forget(log: &Log, contexts: &Contexts) -> Result<u64, RebuildError> {
    let (chain, plan, group) = chain(&log.codec, &[]);
    processors::rebuild::forget(&chain, &group, &plan, &log.kafka, contexts).await
}

/// What must come of a log, whatever interrupts the work.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    /// The enriched turns of each conversation, in order.
    pub turns: BTreeMap<String, Vec<Turn>>,
    /// Slices by conversation and stage, with the offset of the last turn folded in.
    pub slices: BTreeMap<(String, String), (i64, Vec<u8>)>,
}

/// The single-threaded fold of `turns.received` from its beginning.
pub fn reference(codec: &Arc<Codec>, received: impl IntoIterator<Item = (Stamp, Turn)>) -> Outcome {
    let chain = Chain::new(toy::stages(&Hand::default()), true, Arc::clone(codec));
    let mut open: HashMap<String, Conversation> = HashMap::new();
    let mut outcome = Outcome { turns: BTreeMap::new(), slices: BTreeMap::new() };
    for (stamp, mut turn) in received {
        turn.tier = Some(Tier::Fast);
        chain.infer(std::slice::from_mut(&mut turn)).expect("toy stages infer");
        let conversation = open
            .entry(turn.conversation.clone())
            .or_insert_with_key(|name| chain.open(name, HashMap::new()).expect("a new conversation opens"));
        if chain.fold(conversation, &mut turn, stamp).expect("toy stages fold") == Folded::Enriched {
            outcome.turns.entry(turn.conversation.clone()).or_default().push(turn);
        }
    }
    for write in open.into_values().flat_map(|conversation| chain.close(conversation).expect("slices close")) {
        let slice = (write.current.stamp.offset, write.current.bytes);
        outcome.slices.insert((write.conversation, write.stage), slice);
    }
    outcome
}

/// What came: the enriched turns as a committed reader sees them, and the contexts of their conversations.
pub async fn outcome(contexts: &Contexts, enriched: Vec<Turn>) -> Outcome {
    let mut outcome = Outcome { turns: BTreeMap::new(), slices: BTreeMap::new() };
    for turn in enriched {
        outcome.turns.entry(turn.conversation.clone()).or_default().push(turn);
    }
    for conversation in outcome.turns.keys() {
        for record in contexts.show(conversation).await.expect("contexts can be read") {
            let slice = (record.current.stamp.offset, record.current.bytes);
            outcome.slices.insert((conversation.clone(), record.stage), slice);
        }
    }
    outcome
}
