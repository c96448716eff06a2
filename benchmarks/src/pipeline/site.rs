//! Where a measurement takes place: an embedded broker on a folder of its own, or an Apache Kafka; two topics of its own;
//! and the roles and loops that run on them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use broker::Broker;
use processors::{AnyStage, Failure, Limits, Options, Plan, RunError, Surroundings, TierPolicy, Way};
use schemas::{Codec, Tier};
use store::context::Contexts;
use store::log::{Admin, Kafka, Producer, ProducerLimits, Record, TopicSpec};
use store::registry::Registry;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::Given;

/// As many as the program makes by default.
pub(super) const PARTITIONS: i32 = 8;
/// Records that are on their way at a time while a topic is filled.
const FILL_AT_ONCE: usize = 5000;
/// Time between two looks at how far a role has come.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A role that has not come further for this long will not.
const PATIENCE: Duration = Duration::from_secs(60);

/// A place to measure.
pub(super) struct Site {
    pub(super) kafka: Kafka,
    pub(super) codec: Arc<Codec>,
    pub(super) runtime: Runtime,
    pub(super) input: String,
    pub(super) output: String,
    admin: Admin,
    is_foreign: bool,
    /// Dropped last: the broker's files are in the folder.
    _broker: Option<Broker>,
    folder: TempDir,
}

impl Site {
    /// A fresh one: on the Apache Kafka at `bootstrap`, or on an embedded broker with its default promise.
    pub(super) fn open(bootstrap: Option<&str>) -> anyhow::Result<Site> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("start threads")?;
        let folder = tempfile::tempdir().context("make a temporary folder")?;
        let broker = match bootstrap {
            Some(_) => None,
            None => Some(runtime.block_on(Broker::start(broker::Config::new(folder.path().join("broker"))))?),
        };
        let bootstrap = bootstrap.map_or_else(|| broker.as_ref().map(Broker::bootstrap), |b| Some(b.to_owned()));
        let kafka = Kafka {
            bootstrap: bootstrap.unwrap_or_default(),
            client_id: "undertone-bench".to_owned(),
            ..Kafka::default()
        };
        let admin = Admin::connect(&kafka).context("connect to the log")?;
        let name = format!("undertone-bench-{}", uuid::Uuid::new_v4().simple());
        let site = Site {
            kafka,
            codec: Arc::new(Codec::embedded()),
            runtime,
            input: format!("{name}-in"),
            output: format!("{name}-out"),
            admin,
            is_foreign: broker.is_none(),
            _broker: broker,
            folder,
        };
        let topic = |name: &str| TopicSpec {
            name: name.to_owned(),
            partitions: PARTITIONS,
            replication: 1,
            config: BTreeMap::new(),
        };
        let topics = [topic(&site.input), topic(&site.output)];
        site.runtime.block_on(site.admin.create(&topics)).context("create the topics of the measurement")?;
        Ok(site)
    }

    /// Another empty topic for what comes out, so that one filled topic serves several runs.
    pub(super) fn next_output(&mut self) -> anyhow::Result<()> {
        self.output = format!("{}-out-{}", self.input, uuid::Uuid::new_v4().simple());
        let topic =
            TopicSpec { name: self.output.clone(), partitions: PARTITIONS, replication: 1, config: BTreeMap::new() };
        self.runtime.block_on(self.admin.create(&[topic])).context("create a topic")?;
        Ok(())
    }

    /// Appends records and waits until all are acknowledged.
    pub(super) fn fill(&self, records: Vec<Record>) -> anyhow::Result<()> {
        let producer = Producer::connect(&self.kafka, &ProducerLimits::default()).context("connect")?;
        let mut records = records.into_iter();
        loop {
            let some: Vec<Record> = records.by_ref().take(FILL_AT_ONCE).collect();
            if some.is_empty() {
                return Ok(());
            }
            for result in self.runtime.block_on(producer.append_all(some)) {
                result.context("fill the topic")?;
            }
        }
    }

    /// Records and marks of transactions in the output.
    fn offsets(&self) -> anyhow::Result<i64> {
        let offsets = self.runtime.block_on(self.admin.offsets(&self.output)).context("ask how far it has come")?;
        Ok(offsets.values().map(|(_, high)| high).sum())
    }

    /// Records a second in the middle of the work on a filled topic of `records`: start and end, when not everything
    /// runs yet or any more, are left out. Call it when the work begins.
    pub(super) fn rate(&self, records: usize) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let (mut seen, mut last, mut moved) = (Vec::new(), 0, begun);
        loop {
            let now = self.offsets()?;
            seen.push((begun.elapsed().as_secs_f64(), now as f64));
            if now != last {
                (last, moved) = (now, Instant::now());
            }
            if now >= records as i64 && moved.elapsed() > LOOK_EVERY * 10 {
                break;
            }
            anyhow::ensure!(moved.elapsed() < PATIENCE, "{now} of {records} records came, and then no more");
            std::thread::sleep(LOOK_EVERY);
        }
        let at = |share: f64| seen.iter().find(|(_, offsets)| *offsets >= share * last as f64);
        let (Some((t0, n0)), Some((t1, n1))) = (at(0.1), at(0.95)) else { anyhow::bail!("nothing was written") };
        anyhow::ensure!(t1 > t0, "too few records to see how fast they pass");
        // Marks of transactions take up offsets too; they are spread evenly.
        Ok((n1 - n0) / (t1 - t0) * records as f64 / last as f64)
    }

    /// Where contexts of a run are kept: a file of its own.
    pub(super) fn contexts(&self) -> anyhow::Result<Contexts> {
        let path = self.folder.path().join(format!("contexts-{}.sqlite", uuid::Uuid::new_v4().simple()));
        self.runtime.block_on(Contexts::open(&path)).context("open contexts")
    }

    /// Starts a role from the input to the output.
    pub(super) fn role(&self, given: &Given<'_>, tier: Tier, way: Way) -> anyhow::Result<Role> {
        let config = processors::Config {
            group: format!("bench-{}", uuid::Uuid::new_v4().simple()),
            instance: "0".to_owned(),
            stages: Vec::new(),
            tier: TierPolicy::Fixed(tier),
            models: given.undertone.models.clone(),
            onnxruntime: given.undertone.onnxruntime.clone(),
            options: Options::default(),
            dialogue: processors::model::wanted::Wanted::default(),
            limits: Limits::default(),
            loaded: Default::default(),
        };
        let (shutdown, waiting) = (CancellationToken::new(), Arc::<store::Waiting>::default());
        let around = Surroundings {
            kafka: self.kafka.clone(),
            contexts: self.contexts()?,
            registry: Registry::embedded(),
            meter: super::meter(),
            spans: Default::default(),
            waiting: Arc::clone(&waiting),
            shutdown: shutdown.clone(),
        };
        let task = self.runtime.spawn(processors::run_way(config, way, around));
        Ok(Role { task, shutdown, waiting })
    }

    /// The plan from the input to the output, for `stages` stages.
    pub(super) fn plan(&self, stages: usize) -> Plan {
        Plan { run: 0..stages, first: true, input: self.input.clone(), output: self.output.clone() }
    }

    /// Removes what was made on an Apache Kafka.
    pub(super) fn close(self) -> anyhow::Result<()> {
        if self.is_foreign {
            super::bare::remove_topics(&self.runtime, &self.kafka.bootstrap, &[&self.input, &self.output])?;
        }
        Ok(())
    }
}

/// The stages of the program.
pub(super) type Load = Box<dyn FnOnce() -> Result<Vec<Box<dyn AnyStage>>, Failure> + Send>;

/// A role that runs.
pub(super) struct Role {
    task: tokio::task::JoinHandle<Result<(), RunError>>,
    shutdown: CancellationToken,
    waiting: Arc<store::Waiting>,
}

impl Role {
    /// Waits until its models are loaded and it has its partitions.
    pub(super) fn ready(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while let Some(wait) = self.waiting.wait() {
            anyhow::ensure!(
                begun.elapsed() < PATIENCE && !self.task.is_finished(),
                "the role does not start: {}",
                wait.what
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends it.
    pub(super) fn stop(self, site: &Site) -> anyhow::Result<()> {
        self.shutdown.cancel();
        site.runtime.block_on(self.task).context("the role panicked")?.context("the role failed")
    }
}
