//! The model stages, the chain that runs them, and the exactly-once shell around them.
//!
//! A turn's way through here: [`batch`] admits it, [`chain`] runs the [`stages`] on it, `runner` makes it happen exactly
//! once. Leaves out: how turns got into the log, and who reads the enriched ones.

#![warn(clippy::unwrap_used)]

pub mod stage;
pub mod stages;
pub mod chain;
pub mod sequence;
pub mod batch;
pub mod plan;
pub mod standing;
mod runner;
pub mod rebuild;
pub mod replay;
mod meters;
mod spans;
pub mod model;
pub mod language;
pub mod dreams;
pub mod recall;
mod wide;
pub mod eval;

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::metrics::Meter;
use schemas::{Consent, Sender, Spans, Stamp, Tier, Turn};
use store::Waiting;
use store::context::Contexts;
use store::log::{Admin, Kafka};
use store::registry::Registry;
use tokio_util::sync::CancellationToken;

pub use batch::TierPolicy;
pub use chain::Chain;
pub use model::{Models, Options};
pub use plan::{Plan, PlanError, plan};
pub use replay::Replay;
pub use runner::{KILLS_MAX, Limits, RejectsBound, RunError};
pub use stage::{AnyStage, Failure, Stage};
pub use store::log::transact::Delivery;
use store::log::transact::{CALL_TIMEOUT, Calls};

/// What a process runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Begins the name of the consumer group; see [`group`].
    pub group: String,
    /// Stable name of this process; two that run the same stages need different ones.
    pub instance: String,
    /// A contiguous run of [`stages::ORDER`]; none means all.
    pub stages: Vec<String>,
    /// Which tier new turns get.
    pub tier: TierPolicy,
    /// The folder of the model families.
    pub models: PathBuf,
    /// The ONNX Runtime library.
    pub onnxruntime: PathBuf,
    /// How models run.
    pub options: Options,
    /// What is to be told of dialogues.
    pub dialogue: model::wanted::Wanted,
    /// Bounds of the runner.
    pub limits: Limits,
    /// Where the models are put once they are loaded, for whoever else in the process asks them.
    pub loaded: Loaded,
}

/// Models that are shared from when they are loaded.
pub type Loaded = Arc<OnceLock<Arc<Models>>>;

/// What the role works on.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The log.
    pub kafka: Kafka,
    /// The contexts.
    pub contexts: Contexts,
    /// The ids of schemas.
    pub registry: Registry,
    /// Where metrics go.
    pub meter: Meter,
    /// Where the steps of sampled turns are told.
    pub spans: Spans,
    /// Tells whether the role is ready.
    pub waiting: Arc<Waiting>,
    /// Ends the role.
    pub shutdown: CancellationToken,
}

/// Consumer group of the chain that begins with `stage`: a new cut takes over where the chain that ran this stage stood.
pub fn group(prefix: &str, stage: &str) -> String {
    format!("{prefix}.{stage}")
}

/// Runs the role until shutdown, with the stages of this crate.
///
/// # Errors
/// The role failed: the process is to end.
pub async fn run(config: Config, around: Surroundings) -> Result<(), RunError> {
    let load = shipped(&config);
    run_stages(config, stages::ORDER, load, around).await
}

/// Loads the models of a configuration and makes the stages of this crate.
fn shipped(config: &Config) -> impl FnOnce() -> Result<Vec<Box<dyn AnyStage>>, Failure> + Send + 'static {
    let (models, onnxruntime, options) = (config.models.clone(), config.onnxruntime.clone(), config.options.clone());
    let (dialogue, loaded) = (config.dialogue.clone(), Arc::clone(&config.loaded));
    move || {
        let models = Models::open(&models, &onnxruntime, &options)?;
        dialogue.follow(&models)?;
        // Those that are there already are the same.
        let _ = loaded.set(Arc::clone(&models));
        Ok(stages::all(&models))
    }
}

/// Makes all stages of an order.
pub type Load = Box<dyn FnOnce() -> Result<Vec<Box<dyn AnyStage>>, Failure> + Send>;

/// What is done with the records of one topic until they stand in another.
pub struct Way {
    /// The topics, and which of the stages run.
    pub plan: Plan,
    /// What is promised for each record.
    pub delivery: Delivery,
    /// What is done with it.
    pub work: Work,
}

/// What is done with a record.
pub enum Work {
    /// It is read as a turn and goes through the stages of the plan; they are made on the role's own thread.
    Stages(Load),
    /// As before, but it is one that was enriched before.
    Replay(Box<Replay>, Load),
    /// It goes on as it is: not parsed, not checked, without a context. What the runner costs by itself.
    Forward,
}

/// Runs the role until shutdown with other stages; `load` makes all of `order`, on the role's own thread.
///
/// # Errors
/// The role failed: the process is to end.
pub async fn run_stages(
    config: Config,
    order: &[&str],
    load: impl FnOnce() -> Result<Vec<Box<dyn AnyStage>>, Failure> + Send + 'static,
    around: Surroundings,
) -> Result<(), RunError> {
    let plan = plan(order, &config.stages)?;
    let work = Work::Stages(Box::new(load));
    run_way(config, Way { plan, delivery: Delivery::ExactlyOnce, work }, around).await
}

/// Runs a replay until shutdown, with the stages of this crate. Of `config` it uses the stages, the models and the limits;
/// its group is that of the replay, and [`Surroundings::contexts`] must be its own.
///
/// # Errors
/// The replay failed.
pub async fn run_replay(config: Config, replay: Replay, around: Surroundings) -> Result<(), RunError> {
    let load = shipped(&config);
    run_replay_stages(config, replay, stages::ORDER, load, around).await
}

/// As [`run_replay`], with other stages; `load` makes all of `order`.
///
/// # Errors
/// The replay failed.
pub async fn run_replay_stages(
    config: Config,
    replay: Replay,
    order: &[&str],
    load: impl FnOnce() -> Result<Vec<Box<dyn AnyStage>>, Failure> + Send + 'static,
    around: Surroundings,
) -> Result<(), RunError> {
    let plan = replay.plan(order, &config.stages)?;
    let config = Config { group: replay::group(&replay.name), ..config };
    let work = Work::Replay(Box::new(replay), Box::new(load));
    run_way(config, Way { plan, delivery: Delivery::ExactlyOnce, work }, around).await
}

/// Runs the role until shutdown between any two topics; of `config` the stages are not looked at.
///
/// # Errors
/// The role failed: the process is to end.
pub async fn run_way(config: Config, way: Way, around: Surroundings) -> Result<(), RunError> {
    let Way { plan, delivery, work } = way;
    let runtime = tokio::runtime::Handle::current();
    let (done, result) = tokio::sync::oneshot::channel();
    let (calls, kafka) = (Arc::new(Calls::default()), around.kafka.clone());
    let (watched, call_max) = (Arc::clone(&calls), config.limits.transaction_timeout.max(CALL_TIMEOUT) + OVERDUE);
    let work = move || {
        around.waiting.set("loading models");
        let forwards = matches!(work, Work::Forward);
        let (load, replay) = match work {
            Work::Stages(load) => (Some(load), None),
            Work::Replay(replay, load) => (Some(load), Some(*replay)),
            Work::Forward => (None, None),
        };
        let mut stages = load.map_or_else(|| Ok(Vec::new()), |load| load())?;
        let stages = stages.drain(plan.run.clone()).collect();
        let chain = Chain::new(stages, plan.first, Arc::clone(around.registry.codec()));
        let group = group(&config.group, chain.name());
        let runner = runner::Runner {
            transactional_id: format!("{group}-{}", config.instance),
            group,
            chain,
            forwards,
            delivery,
            plan,
            replay: replay.map(|replay| RefCell::new(replay::Reader::new(replay, around.kafka.clone()))),
            tier: config.tier,
            limits: config.limits,
            kafka: around.kafka,
            contexts: around.contexts,
            codec: Arc::clone(around.registry.codec()),
            registry: around.registry,
            meters: meters::Meters::new(&around.meter),
            spans: around.spans,
            recent: Default::default(),
            waiting: around.waiting,
            calls,
            marks: RefCell::default(),
            shutdown: around.shutdown,
            runtime,
        };
        runner.run()
    };
    let thread = std::thread::Builder::new().name("processors".to_owned()).spawn(move || {
        // Nobody listens only if the pipeline was dropped.
        let _ = done.send(work());
    });
    thread.map_err(RunError::Thread)?;
    tokio::select! {
        result = result => result.unwrap_or(Err(RunError::Panicked)),
        // The thread is left to the end of the process: nothing can call it back.
        () = look_after(&watched, call_max, || answers(kafka.clone())) => Err(RunError::Stuck(call_max.as_secs())),
    }
}

/// Gives up calls that do not come back, so that the runner goes on with another client of the log. Ends if it does not.
async fn look_after<F: Future<Output = bool>>(calls: &Calls, call_max: Duration, answers: impl Fn() -> F) {
    while !calls.is_unnoticed() {
        stuck(calls, call_max, &answers).await;
        calls.give_up();
        tokio::time::sleep(call_max).await;
    }
}

/// A call of the log's client that has taken so much longer than its own time-out does not come back.
const OVERDUE: Duration = Duration::from_secs(2);
/// How long brokers that are there may take to answer a question.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// Time between two looks at the calls.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Waits until one call has been under way for so long while the brokers answered: librdkafka sends offsets to a transaction
/// for as long as it does not reach the group's coordinator, whatever the call's time-out. It is the looks that count: a
/// process that stood still meanwhile gives a call the rest of its time when it goes on.
async fn stuck<F: Future<Output = bool>>(calls: &Calls, call_max: Duration, answers: &impl Fn() -> F) {
    let (mut known, mut taken) = (None, Duration::ZERO);
    while taken < call_max {
        tokio::time::sleep(LOOK_EVERY).await;
        let oldest = calls.oldest();
        let goes_on = oldest.is_some() && oldest == known && answers().await;
        taken = if goes_on { taken + LOOK_EVERY } else { Duration::ZERO };
        known = oldest;
    }
}

/// Whether the brokers answer; asked only while a call is under way for longer than a moment, and by a client of its own.
async fn answers(kafka: Kafka) -> bool {
    match Admin::connect(&kafka) {
        Ok(admin) => admin.reachable(ANSWER_WITHIN).await.is_ok(),
        Err(_) => false,
    }
}

/// All parts for each text, each as the first turn of a conversation of its own. `now` in milliseconds since the Unix
/// epoch; `consent` is of whoever wrote them, to being profiled.
///
/// # Errors
/// A fault of ours.
pub fn analyze(chain: &Chain, texts: &[String], tier: Tier, now: i64, consent: bool) -> Result<Vec<Turn>, Failure> {
    let turn = |(index, text): (usize, &String)| Turn {
        tier: Some(tier),
        sender: Some(Sender { id: "writer".to_owned(), name: None, bot: false }),
        consent: consent.then(|| Consent { granted: true, text_version: "analyze".to_owned() }),
        ..Turn::message("analyze", "analyze", "", &index.to_string(), text, now)
    };
    let mut turns: Vec<Turn> = texts.iter().enumerate().map(turn).collect();
    chain.infer(&mut turns)?;
    for (offset, turn) in turns.iter_mut().enumerate() {
        let mut conversation = chain.open(&turn.conversation, std::collections::HashMap::new())?;
        chain.fold(&mut conversation, turn, Stamp { partition: 0, offset: offset as i64 })?;
    }
    Ok(turns)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL_MAX: Duration = Duration::from_secs(40);

    #[tokio::test(start_paused = true)]
    async fn a_call_that_does_not_come_back_is_found_and_others_are_not() {
        let calls = Calls::default();
        let half = async {
            loop {
                let _call = calls.begin();
                tokio::time::sleep(CALL_MAX / 2).await;
            }
        };
        tokio::select! {
            () = stuck(&calls, CALL_MAX, &|| async { true }) => panic!("each call came back after half the time"),
            () = tokio::time::sleep(CALL_MAX * 4) => {}
            () = half => {}
        }
        let (begun, _call) = (tokio::time::Instant::now(), calls.begin());
        let back = begun + CALL_MAX * 3;
        stuck(&calls, CALL_MAX, &|| async move { tokio::time::Instant::now() >= back }).await;
        let since = tokio::time::Instant::now() - back;
        assert!(
            since >= CALL_MAX - LOOK_EVERY && since < CALL_MAX + 3 * LOOK_EVERY,
            "its time begins when they answer"
        );
    }
}
