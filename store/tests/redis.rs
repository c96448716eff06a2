//! Contexts behind a Redis that loses, repeats and brings back what it likes: what is loaded is always what the store
//! itself has. Run by `deploy/servers/redis with tests/redis`, and not by `make test`: it needs `UNDERTONE_TEST_REDIS`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::Registry;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use redis::aio::MultiplexedConnection;
use schemas::Stamp;
use store::context::{Batch, ContextError, Contexts, Epoch, Start, Version, Write};
use store::redis::{Kind, Redis, Settings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const STAGES: [&str; 2] = ["encode", "emotion"];
const CONVERSATIONS: i64 = 6;
const PARTITION: i32 = 0;

fn settings(prefix: &str) -> Settings {
    tests::redis(prefix).expect("UNDERTONE_TEST_REDIS is set: run this with deploy/servers/redis")
}

/// Whoever may do anything to the Redis.
struct Adversary {
    connection: MultiplexedConnection,
    prefix: String,
    /// What a replica that lags, or a backup, has.
    snapshot: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Adversary {
    async fn of(settings: &Settings) -> Adversary {
        let client = redis::Client::open(format!("redis://{}", settings.nodes[0])).unwrap();
        let connection = client.get_multiplexed_async_connection().await.unwrap();
        Adversary { connection, prefix: settings.prefix.clone(), snapshot: Vec::new() }
    }

    async fn keys(&mut self) -> Vec<Vec<u8>> {
        let pattern = format!("{}:*", self.prefix);
        redis::cmd("KEYS").arg(pattern).query_async(&mut self.connection).await.unwrap()
    }

    /// Everything is gone, as after a restart without a file; the scripts too.
    async fn flush(&mut self) {
        for key in self.keys().await {
            self.remove(&key).await;
        }
        redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut self.connection).await.unwrap();
    }

    async fn remove(&mut self, key: &[u8]) {
        redis::cmd("DEL").arg(key).exec_async(&mut self.connection).await.unwrap();
    }

    /// Any one key goes, as under `allkeys-lru`.
    async fn evict(&mut self, random: &mut StdRng) {
        let keys = self.keys().await;
        if !keys.is_empty() {
            self.remove(&keys[random.random_range(0..keys.len())]).await;
        }
    }

    async fn remember(&mut self) {
        let mut snapshot = Vec::new();
        for key in self.keys().await {
            let bytes: Option<Vec<u8>> = redis::cmd("DUMP").arg(&key).query_async(&mut self.connection).await.unwrap();
            snapshot.extend(bytes.map(|bytes| (key, bytes)));
        }
        self.snapshot = snapshot;
    }

    /// The replica takes over.
    async fn bring_back(&mut self) {
        self.flush().await;
        for (key, bytes) in self.snapshot.clone() {
            let restore = redis::cmd("RESTORE").arg(key).arg(0).arg(bytes).to_owned();
            restore.exec_async(&mut self.connection).await.unwrap();
        }
    }
}

/// A line to the Redis that holds back what clients say on connections that they have, and delivers it later, even if they
/// no longer wait for it.
struct Line {
    address: String,
    connections: Arc<AtomicUsize>,
    /// Connections of a smaller number are held.
    holds: watch::Sender<usize>,
    /// Answers to what was held.
    late: watch::Sender<usize>,
}

impl Line {
    async fn to(server: String) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (holds, connections) = (watch::Sender::new(0), Arc::new(AtomicUsize::new(0)));
        let late = watch::Sender::new(0);
        let (held, counted, answered) = (holds.clone(), Arc::clone(&connections), late.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let server = TcpStream::connect(&server).await.unwrap();
                let (mut held, (mut says, mut hears)) = (held.subscribe(), client.into_split());
                let (mut answers, mut asks) = server.into_split();
                let (was_held, late) = (Arc::new(AtomicBool::new(false)), answered.clone());
                let is_late = Arc::clone(&was_held);
                tokio::spawn(async move {
                    let mut bytes = vec![0; 65536];
                    while let Ok(count @ 1..) = answers.read(&mut bytes).await {
                        if is_late.load(Ordering::SeqCst) {
                            late.send_modify(|late| *late += 1);
                        }
                        // Nobody may be there to hear it.
                        let _ = hears.write_all(&bytes[..count]).await;
                    }
                });
                tokio::spawn(async move {
                    let mut bytes = vec![0; 65536];
                    while let Ok(count @ 1..) = says.read(&mut bytes).await {
                        was_held.fetch_or(number < *held.borrow(), Ordering::SeqCst);
                        let passes = held.wait_for(|held| number >= *held).await.is_ok();
                        if !passes || asks.write_all(&bytes[..count]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Line { address, connections, holds, late }
    }

    fn hold(&self) {
        self.holds.send_replace(self.connections.load(Ordering::SeqCst));
    }

    fn release(&self) {
        self.holds.send_replace(0);
    }
}

/// A process that has owned the partition.
struct Owner {
    contexts: Contexts,
    epoch: Epoch,
    metrics: Registry,
    /// Ends the counting when it goes.
    _provider: SdkMeterProvider,
}

impl Owner {
    async fn start(path: &Path, settings: &Settings) -> Owner {
        let metrics = Registry::new();
        let reader = opentelemetry_prometheus::exporter().with_registry(metrics.clone()).build().unwrap();
        let provider = SdkMeterProvider::builder().with_reader(reader).build();
        let meter = provider.meter("test");
        let redis = Redis::connect(settings.clone(), &meter).await.unwrap();
        let contexts = Contexts::open(path).await.unwrap().cached(redis, &meter);
        let epoch = contexts.assign("all", PARTITION).await.unwrap().epoch;
        Owner { contexts, epoch, metrics, _provider: provider }
    }

    /// How many conversations were read with this result.
    fn read(&self, result: &str) -> u64 {
        let families = self.metrics.gather();
        let reads = families.iter().find(|family| family.name() == "undertone_contexts_cache_reads_total").unwrap();
        let of = |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|label| label.value() == result);
        reads.get_metric().iter().filter(of).map(|metric| metric.get_counter().get_value() as u64).sum()
    }
}

/// What the authority holds, and the log in front of it.
struct World {
    path: std::path::PathBuf,
    /// Reads the authority, without a cache.
    plain: Contexts,
    committed: i64,
    random: StdRng,
}

impl World {
    /// The conversation of the turn at an offset.
    fn conversation(offset: i64) -> String {
        format!("c{}", (offset * 7 + offset / 5) % CONVERSATIONS)
    }

    /// The beginning of a batch of so many turns, as the owner sees it, compared with the authority.
    async fn load(&mut self, owner: &Owner, turns: i64) -> (Vec<Write>, i64) {
        let mut conversations: Vec<String> =
            (self.committed..self.committed + turns).map(World::conversation).collect();
        conversations.sort();
        conversations.dedup();
        let (epoch, below) = (owner.epoch, self.committed);
        let start = Start { partition: PARTITION, epoch, offset: below, below, conversations };
        let truth = self.plain.load("all", start.clone(), &STAGES).await.unwrap();
        let found = owner.contexts.load("all", start, &STAGES).await.unwrap();
        assert_eq!(found, truth, "at {below}");
        // Folds: each run has a salt of its own, as another tier has.
        let salt: u8 = self.random.random();
        let mut open = found;
        let mut base = open.clone();
        for offset in self.committed..self.committed + turns {
            for stage in STAGES {
                let key = (World::conversation(offset), stage.to_owned());
                let mut bytes = open.get(&key).map(|version| version.bytes.clone()).unwrap_or_default();
                bytes.truncate(16);
                bytes.insert(0, salt);
                open.insert(key, Version { stamp: Stamp { partition: PARTITION, offset }, bytes });
            }
        }
        let write = |((conversation, stage), current): ((String, String), Version)| {
            let previous = base.remove(&(conversation.clone(), stage.clone()));
            Write { conversation, stage, current, previous }
        };
        (open.into_iter().map(write).collect(), self.committed + turns)
    }
}

fn batch(epoch: Epoch, (writes, watermark): (Vec<Write>, i64)) -> Batch {
    Batch { chain: "all".to_owned(), partition: PARTITION, epoch, watermark, writes }
}

/// A batch of one conversation, as `run` folded it.
fn folded(epoch: Epoch, conversation: &str, from: i64, watermark: i64, run: u8) -> Batch {
    let version = |offset| Version { stamp: Stamp { partition: PARTITION, offset }, bytes: vec![run; 3] };
    let write = |stage: &str| Write {
        conversation: conversation.to_owned(),
        stage: stage.to_owned(),
        current: version(watermark - 1),
        previous: (from > 0).then(|| version(from - 1)),
    };
    batch(epoch, (STAGES.map(write).to_vec(), watermark))
}

/// What the owner finds of a conversation.
async fn finds(owner: &Owner, conversation: &str, below: i64) -> Option<u8> {
    let conversations = vec![conversation.to_owned()];
    let start = Start { partition: PARTITION, epoch: owner.epoch, offset: below, below, conversations };
    let found = owner.contexts.load("all", start, &STAGES).await.unwrap();
    found.get(&(conversation.to_owned(), STAGES[1].to_owned())).map(|version| version.bytes[0])
}

struct Stage {
    _folder: tempfile::TempDir,
    adversary: Adversary,
    line: Line,
    owner: Owner,
}

async fn stage() -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let direct = settings(&folder.path().display().to_string());
    let line = Line::to(direct.nodes[0].clone()).await;
    let settings = Settings { nodes: vec![line.address.clone()], rest: Duration::ZERO, ..direct.clone() };
    let owner = Owner::start(&folder.path().join("contexts.db"), &settings).await;
    Stage { adversary: Adversary::of(&direct).await, line, owner, _folder: folder }
}

#[tokio::test]
async fn what_a_batch_left_serves_the_next_one_and_the_next_owner() {
    let Stage { mut owner, .. } = stage().await;
    assert_eq!(finds(&owner, "c", 0).await, None);
    owner.contexts.save(folded(owner.epoch, "c", 0, 8, 1)).await.unwrap();
    assert_eq!(finds(&owner, "c", 8).await, Some(1));
    owner.epoch = owner.contexts.assign("all", PARTITION).await.unwrap().epoch;
    assert_eq!(finds(&owner, "c", 8).await, Some(1));
    // Nothing was folded: the mark of a batch without turns keeps what is there.
    owner.contexts.save(batch(owner.epoch, (Vec::new(), 9))).await.unwrap();
    assert_eq!(finds(&owner, "c", 9).await, Some(1));
    assert_eq!(["hit", "miss", "away"].map(|result| owner.read(result)), [3, 1, 0]);
}

/// A batch is aborted, and run again up to the same offset with another result; then a replica takes over that has seen the
/// first run only.
#[tokio::test]
async fn replica_that_remembers_an_aborted_run_is_not_believed() {
    let Stage { mut owner, mut adversary, .. } = stage().await;
    finds(&owner, "c", 0).await;
    owner.contexts.save(folded(owner.epoch, "c", 0, 8, 1)).await.unwrap();
    adversary.remember().await;
    owner.epoch = owner.contexts.assign("all", PARTITION).await.unwrap().epoch;
    assert_eq!(finds(&owner, "c", 0).await, None, "the first run was not committed");
    owner.contexts.save(folded(owner.epoch, "c", 0, 8, 2)).await.unwrap();
    adversary.bring_back().await;
    assert_eq!(finds(&owner, "c", 8).await, Some(2));
}

/// A batch's write is on its way until others have been written; none of them is of the same conversation.
#[tokio::test]
async fn write_that_comes_late_changes_nothing() {
    let Stage { owner, line, .. } = stage().await;
    finds(&owner, "c", 0).await;
    line.hold();
    owner.contexts.save(folded(owner.epoch, "c", 0, 4, 1)).await.unwrap();
    // The connection was given up; another is made when somebody asks.
    while owner.read("miss") == 1 {
        finds(&owner, "d", 4).await;
    }
    owner.contexts.save(folded(owner.epoch, "c", 4, 8, 2)).await.unwrap();
    assert_eq!(finds(&owner, "d", 8).await, None);
    let hits = owner.read("hit");
    assert_eq!(finds(&owner, "c", 8).await, Some(2));
    assert_eq!(owner.read("hit"), hits + 1);
    line.release();
    let mut late = line.late.subscribe();
    tokio::time::timeout(tests::PATIENCE, late.wait_for(|late| *late > 0)).await.unwrap().unwrap();
    owner.contexts.save(folded(owner.epoch, "d", 8, 12, 3)).await.unwrap();
    assert_eq!(finds(&owner, "c", 12).await, Some(2));
}

/// Random steps of owners, zombies, and whoever has the Redis.
async fn live(seed: u64, steps: usize) -> [u64; 3] {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("contexts.db");
    let direct = settings(&format!("{seed}:{}", folder.path().display()));
    let line = Line::to(direct.nodes[0].clone()).await;
    let settings = Settings {
        nodes: vec![line.address.clone()],
        call_timeout: Duration::from_millis(20),
        rest: Duration::ZERO,
        ..direct.clone()
    };
    let mut adversary = Adversary::of(&direct).await;
    let plain = Contexts::open(&path).await.unwrap();
    let mut world = World { path, plain, committed: 0, random: StdRng::seed_from_u64(seed) };
    let mut owner = Owner::start(&world.path, &settings).await;
    let mut zombies: Vec<(Owner, Batch)> = Vec::new();
    let mut counted = [0; 3];
    for _ in 0..steps {
        match world.random.random_range(0..100) {
            0..=1 => adversary.flush().await,
            2..=5 => adversary.evict(&mut world.random).await,
            6..=9 => adversary.remember().await,
            10..=13 => adversary.bring_back().await,
            14..=15 => line.hold(),
            16..=17 => line.release(),
            18..=20 if !zombies.is_empty() => {
                let chosen = world.random.random_range(0..zombies.len());
                let (zombie, late) = &zombies[chosen];
                let start = Start {
                    partition: PARTITION,
                    epoch: zombie.epoch,
                    offset: world.committed,
                    below: world.committed,
                    conversations: vec![World::conversation(world.committed)],
                };
                let truth = world.plain.load("all", start.clone(), &STAGES).await.unwrap();
                assert_eq!(zombie.contexts.load("all", start, &STAGES).await.unwrap(), truth);
                let fenced = zombie.contexts.save(late.clone()).await;
                assert!(matches!(fenced, Err(ContextError::Fenced { .. })), "{fenced:?}");
            }
            _ => {
                // Few sizes: so runs that are repeated end where the one before did.
                let turns = [3, 4, 8][world.random.random_range(0..3)];
                let begun = batch(owner.epoch, world.load(&owner, turns).await);
                let watermark = begun.watermark;
                let outcome = world.random.random_range(0..100);
                if outcome >= 5 {
                    owner.contexts.save(begun.clone()).await.unwrap();
                }
                if outcome >= 20 {
                    world.committed = watermark;
                }
                // The commit was aborted, or the process is suspected, or dies: a new epoch, here or elsewhere.
                if outcome < 20 || outcome >= 90 {
                    if world.random.random_bool(0.5) {
                        owner.epoch = owner.contexts.assign("all", PARTITION).await.unwrap().epoch;
                    } else {
                        let next = Owner::start(&world.path, &settings).await;
                        let zombie = std::mem::replace(&mut owner, next);
                        for (sum, result) in counted.iter_mut().zip(["hit", "miss", "away"]) {
                            *sum += zombie.read(result);
                        }
                        zombies.push((zombie, begun));
                        if zombies.len() > 3 {
                            zombies.remove(0);
                        }
                    }
                }
            }
        }
    }
    line.release();
    for (sum, result) in counted.iter_mut().zip(["hit", "miss", "away"]) {
        *sum += owner.read(result);
    }
    counted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_loaded_is_what_the_store_has_whatever_redis_does() {
    let given = std::env::var("UNDERTONE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let first: u64 = given.unwrap_or_else(rand::random);
    let seeds = if given.is_some() { 1 } else { 4 };
    let mut sums = [0; 3];
    for seed in (0..seeds).map(|number| first.wrapping_add(number)) {
        eprintln!("seed {seed}; UNDERTONE_TEST_SEED repeats it");
        let counted = live(seed, 400).await;
        sums.iter_mut().zip(counted).for_each(|(sum, count)| *sum += count);
    }
    eprintln!("conversations read: {} hit, {} missed, {} while Redis was away", sums[0], sums[1], sums[2]);
    assert!(sums.iter().all(|&sum| sum > 0), "each happened");
}

/// Instances that `deploy/servers/redis` has started for one test; they go with it.
struct Servers(Vec<String>);

impl Servers {
    fn script(arguments: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/servers/redis");
        let output = std::process::Command::new(script).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// What the script prints of an instance that is new.
    fn start(&mut self, action: &str, name: &str, further: &[&str]) -> String {
        let name = format!("test-{}-{name}", std::process::id());
        self.0.push(name.clone());
        Servers::script(&[&[action, "--name", &name], further].concat())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for name in &self.0 {
            Servers::script(&["wipe", "--name", name]);
        }
    }
}

/// Owns partitions, each with a conversation, and lets batch after batch hit them.
async fn serves_partitions(owner: &Owner, partitions: i32) {
    let mut epochs = Vec::new();
    for partition in 0..partitions {
        epochs.push(owner.contexts.assign("all", partition).await.unwrap().epoch);
    }
    for round in 0..3 {
        let starts = (0..partitions).zip(&epochs).map(|(partition, &epoch)| Start {
            partition,
            epoch,
            offset: round,
            below: round,
            conversations: vec![format!("c{partition}")],
        });
        let found = owner.contexts.load_all("all", starts.collect(), &STAGES).await.unwrap();
        assert_eq!(found.len(), if round == 0 { 0 } else { STAGES.len() * partitions as usize });
        let batches = (0..partitions).zip(&epochs).map(|(partition, &epoch)| {
            let write = |stage: &str| Write {
                conversation: format!("c{partition}"),
                stage: stage.to_owned(),
                current: Version { stamp: Stamp { partition, offset: round }, bytes: vec![round as u8] },
                previous: None,
            };
            let (chain, writes) = ("all".to_owned(), STAGES.map(write).to_vec());
            Batch { chain, partition, epoch, watermark: round + 1, writes }
        });
        owner.contexts.save_all(batches.collect()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_has_each_partition_on_one_of_its_nodes() {
    let mut servers = Servers(Vec::new());
    for node in ["three-1", "three-2", "three-3"] {
        servers.0.push(format!("test-{}-{node}", std::process::id()));
    }
    let nodes = Servers::script(&["cluster", "--name", &format!("test-{}-three", std::process::id())]);
    let settings = Settings {
        kind: Kind::Cluster,
        // One is enough to learn the others.
        nodes: vec![nodes.split(',').next().unwrap().to_owned()],
        ..patient()
    };
    let folder = tempfile::tempdir().unwrap();
    let owner = Owner::start(&folder.path().join("contexts.db"), &settings).await;
    serves_partitions(&owner, 12).await;
    assert_eq!(["hit", "miss", "away"].map(|result| owner.read(result)), [24, 12, 0]);
}

/// For two cores on which much is started at once.
fn patient() -> Settings {
    Settings { call_timeout: Duration::from_secs(2), connect_timeout: Duration::from_secs(5), ..Settings::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn master_that_is_killed_is_followed_by_the_one_that_the_sentinel_names() {
    let mut servers = Servers(Vec::new());
    let master = servers.start("start", "master", &[]);
    let port = master.rsplit_once(':').unwrap().1;
    let replica = servers.start("start", "replica", &["--set", &format!("replicaof=127.0.0.1 {port}")]);
    let sentinel = servers.start("sentinel", "sentinel", &["--of", &master]);
    let settings = Settings {
        kind: Kind::Sentinel,
        nodes: vec![sentinel],
        master: "undertone".to_owned(),
        rest: Duration::from_millis(50),
        ..patient()
    };
    let folder = tempfile::tempdir().unwrap();
    let owner = Owner::start(&folder.path().join("contexts.db"), &settings).await;
    serves_partitions(&owner, 1).await;
    assert_eq!(owner.read("hit"), 2);
    let epoch = owner.contexts.assign("all", PARTITION).await.unwrap().epoch;
    // The sentinel must have seen the replica before it can choose it.
    let mut asked = redis::Client::open(format!("redis://{}", settings.nodes[0])).unwrap();
    let seen = |client: &mut redis::Client| {
        let replicas: Vec<redis::Value> =
            redis::cmd("SENTINEL").arg("REPLICAS").arg("undertone").query(client).unwrap_or_default();
        !replicas.is_empty()
    };
    wait("the sentinel knows the replica", || seen(&mut asked)).await;
    Servers::script(&["kill", "--name", &servers.0[0]]);
    let begun = Instant::now();
    let mut offset = 3;
    // Work goes on; nothing is read that the store does not have, and after a while Redis serves again.
    while owner.read("hit") == 2 {
        assert!(begun.elapsed() < tests::PATIENCE, "the replica {replica} serves");
        let start = Start { partition: PARTITION, epoch, offset, below: offset, conversations: vec!["c0".to_owned()] };
        let found = owner.contexts.load("all", start, &STAGES).await.unwrap();
        let stamp = Stamp { partition: PARTITION, offset: offset - 1 };
        assert!(found.len() == STAGES.len() && found.values().all(|version| version.stamp == stamp), "at {offset}");
        let write = |stage: &str| Write {
            conversation: "c0".to_owned(),
            stage: stage.to_owned(),
            current: Version { stamp: Stamp { partition: PARTITION, offset }, bytes: vec![offset as u8] },
            previous: None,
        };
        let writes = STAGES.map(write).to_vec();
        offset += 1;
        owner.contexts.save(batch(epoch, (writes, offset))).await.unwrap();
    }
    assert!(owner.read("away") > 0, "it was away in between");
}

/// Looks again and again at what has no event to wait for.
async fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < tests::PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
