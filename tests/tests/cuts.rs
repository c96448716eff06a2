//! Cut anywhere: however the order of stages is cut into chains, in batches of whatever size, on however many partitions,
//! while processes come and go, the same turns come out and the same contexts are left, to the last byte.
#![expect(clippy::print_stdout, reason = "the seed of a run that failed must be told")]

use std::time::{SystemTime, UNIX_EPOCH};

use schemas::topic::TURNS_ENRICHED;
use schemas::{Stamp, Turn};
use store::context::Contexts;
use tests::role::{Role, Setup, outcome, rebuild, reference};
use tests::toy::ORDER;
use tests::{Log, turn};

/// Turns in each of the three phases of a case.
const TURNS: usize = 24;
const CONVERSATIONS: u64 = 5;
const PARTITIONS: [i32; 3] = [1, 2, 5];
const BATCHES: [usize; 3] = [1, 3, 16];

/// SplitMix64 (Steele, Lea and Flood 2014): enough to draw cases from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}

/// Says random turns, some of them again, with inputs at fault between them.
async fn say(log: &Log, random: &mut Random, received: &mut Vec<(Stamp, Turn)>) {
    for _ in 0..TURNS {
        let said = match random.below(8) {
            0 if !received.is_empty() => received[random.below(received.len() as u64) as usize].1.clone(),
            1 => {
                log.append(b"c0", b"no turn".to_vec()).await;
                continue;
            }
            _ => {
                let conversation = format!("c{}", random.below(CONVERSATIONS));
                let n = received.len();
                turn(&conversation, &n.to_string(), &"word ".repeat(1 + n % 7))
            }
        };
        let place = log.say(&said).await;
        received.push((Stamp { partition: place.partition, offset: place.offset }, said));
    }
}

/// The chains of an order that is cut behind some of its stages: bit n of `cuts` is the cut behind stage n.
fn chains(cuts: usize) -> Vec<Vec<&'static str>> {
    let mut chains = vec![Vec::new()];
    for (n, stage) in ORDER.into_iter().enumerate() {
        chains.last_mut().expect("there is one").push(stage);
        if n + 1 < ORDER.len() && (cuts >> n) & 1 == 1 {
            chains.push(Vec::new());
        }
    }
    chains
}

/// A role for each chain.
fn start(log: &Log, contexts: &Contexts, chains: &[Vec<&'static str>], instance: &str, batch: usize) -> Vec<Role> {
    let role = |stages: &Vec<&'static str>| {
        let mut setup = Setup { stages: stages.clone(), ..Setup::named(instance) };
        setup.limits.batch_turns_max = batch;
        // Long enough for a busy machine: members here leave in good order.
        setup.limits.work_time_max = tests::PATIENCE;
        Role::start(log, contexts, &setup)
    };
    chains.iter().map(role).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cut_gives_the_same_turns_and_contexts_and_so_does_a_rebuild() {
    let given = std::env::var("UNDERTONE_TEST_SEED").ok().map(|text| text.parse().expect("a number"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_nanos() as u64;
    let mut random = Random(given.unwrap_or(now));
    println!("UNDERTONE_TEST_SEED={}", random.0);
    for cuts in 0..1 << (ORDER.len() - 1) {
        let chains = chains(cuts);
        let between: Vec<&str> = chains[..chains.len() - 1].iter().filter_map(|chain| chain.last().copied()).collect();
        let (partitions, batches) = (random.of(&PARTITIONS), [random.of(&BATCHES), random.of(&BATCHES)]);
        println!("cut behind {between:?}, {partitions} partitions, batches of {batches:?}");
        let log = Log::start(partitions, &between).await;
        let contexts = tests::contexts().await;
        let mut received = Vec::new();
        let first = start(&log, &contexts, &chains, "first", batches[0]);
        say(&log, &mut random, &mut received).await;
        let second = start(&log, &contexts, &chains, "second", batches[1]);
        say(&log, &mut random, &mut received).await;
        for role in first {
            role.stop().await.unwrap();
        }
        say(&log, &mut random, &mut received).await;

        let wanted = reference(&log.codec, received);
        let count = wanted.turns.values().map(Vec::len).sum();
        let enriched: Vec<Turn> = log.read(TURNS_ENRICHED, count).await.into_iter().map(|(_, turn)| turn).collect();
        assert_eq!(outcome(&contexts, enriched.clone()).await, wanted);
        for role in second {
            role.stop().await.unwrap();
        }
        assert_eq!(log.count(TURNS_ENRICHED).await, count, "none twice");

        let rebuilt = tests::contexts().await;
        for chain in &chains {
            rebuild(&log, &rebuilt, chain).await.unwrap();
        }
        assert_eq!(outcome(&rebuilt, enriched).await, wanted, "rebuilt");
    }
}
