//! Contexts in Redis, in front of the store that is the authority.
//!
//! For each chain and partition a mark says what the cache holds: the owner's epoch, the generation, the name of the save
//! that left it, and its watermark. A batch's load is one script: it refuses an older epoch, and unless the mark has the
//! name and the watermark of the authority's last save, and that watermark is the offset at which the batch starts, it
//! draws a new generation. An entry counts only in the generation that stands in front of it, so nothing older is ever
//! read again. When the authority has acknowledged a batch, a second script writes its entries and moves the mark from
//! the state that the batch was loaded from to the name of its save; in any other state it writes nothing.
//!
//! So what is read is what the authority's last save left, whatever Redis lost, repeated, or brought back:
//! - the watermark alone would not do: a batch may be aborted and run again up to the same offset with other results, and a
//!   replica that lags knows the first ones. A save's name is never given twice;
//! - after an abort the last save's watermark is not the offset at which the next batch starts: a new generation;
//! - a write that comes late finds another state than the one it was folded from; a mark or an entry that was evicted is
//!   a miss; a Redis that was restored from anywhere has the name of an older save.
//!
//! An entry holds all slices of the chain, each as its newest version alone: where an older one is asked for, there is a
//! new generation. Every wait is bounded by the connection; a batch never fails because of the cache.

mod entry;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ::redis::{Cmd, Value, from_redis_value_ref};
use futures_util::future::join_all;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Meter};
use uuid::Uuid;

use super::{Assigned, Batch, Epoch, Saved, Start, Version, Write};
use crate::redis::{KnownScript, Redis};

/// Takes the mark, and the keys of the entries; the epoch, the state that is expected, the offset at which the batch starts,
/// a generation to draw, and the time to live. Answers `{refused}`, `{moved}`, or `{kept, entries…}`.
const LOAD: &str = "
local mark = redis.call('HMGET', KEYS[1], 'epoch', 'generation', 'state', 'watermark')
if mark[1] and tonumber(mark[1]) > tonumber(ARGV[1]) then return {0} end
local kept = mark[2] and ARGV[2] ~= '' and mark[3] == ARGV[2] and mark[4] == ARGV[3]
if not kept then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'generation', ARGV[4], 'state', ARGV[4], 'watermark', ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  return {1}
end
if mark[1] ~= ARGV[1] then redis.call('HSET', KEYS[1], 'epoch', ARGV[1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
local generation, length, answer = mark[2], string.len(mark[2]), {2}
for i = 2, #KEYS do
  local entry = redis.call('GET', KEYS[i])
  answer[i] = entry and string.sub(entry, 1, length) == generation and string.sub(entry, length + 1)
end
return answer";

/// Takes the same keys; the epoch, the state that the batch was folded from, the one that it leaves, its watermark, the time
/// to live, and the entries. Answers refused, moved, or kept. A script that ends half-way leaves a state that nobody expects.
const SAVE: &str = "
local mark = redis.call('HMGET', KEYS[1], 'epoch', 'generation', 'state')
if mark[1] and tonumber(mark[1]) > tonumber(ARGV[1]) then return 0 end
if not mark[2] or mark[3] ~= ARGV[2] then return 1 end
redis.call('HSET', KEYS[1], 'state', '')
for i = 2, #KEYS do redis.call('SET', KEYS[i], mark[2] .. ARGV[i + 4], 'PX', ARGV[5]) end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'state', ARGV[3], 'watermark', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 2";

const REFUSED: i64 = 0;
const MOVED: i64 = 1;

/// A cache of contexts, and what this process knows of it.
#[derive(Debug)]
pub(super) struct Cache {
    redis: Redis,
    load: KnownScript,
    save: KnownScript,
    /// By chain and partition, for what was assigned here.
    owned: Mutex<HashMap<(String, i32), Owned>>,
    meters: Meters,
}

#[derive(Debug)]
struct Owned {
    epoch: Epoch,
    /// The authority's last save and its watermark; `None` while it is not known.
    saved: Option<(Saved, i64)>,
    /// The state that the mark is in, as far as is known; `None`: nothing is written before the next load.
    state: Option<State>,
}

/// What the mark calls the content of the cache: the name of a save, or of a generation that holds nothing yet.
type State = Vec<u8>;

impl Cache {
    /// Nothing is known of it yet.
    pub(super) fn new(redis: Redis, meter: &Meter) -> Cache {
        let (load, save) = (KnownScript::new(LOAD), KnownScript::new(SAVE));
        Cache { redis, load, save, owned: Mutex::default(), meters: Meters::new(meter) }
    }

    /// A partition is this process's: what the cache holds may be what the authority's last save left.
    pub(super) fn assigned(&self, chain: &str, partition: i32, assigned: &Assigned) {
        let saved = assigned.saved.zip(assigned.watermark);
        let state = saved.map(|(saved, _)| state_of(saved));
        let owned = Owned { epoch: assigned.epoch, saved, state };
        self.lock().insert((chain.to_owned(), partition), owned);
    }

    /// The authority forgets a partition.
    pub(super) fn forget(&self, chain: &str, partition: i32) {
        self.lock().remove(&(chain.to_owned(), partition));
    }

    /// The authority forgets everything.
    pub(super) fn forget_all(&self) {
        self.lock().clear();
    }

    /// What the cache has, and what is to be asked of the authority. The scripts of all partitions are under way together.
    pub(super) async fn load_all(
        &self,
        chain: &str,
        starts: Vec<Start>,
        stages: &[&str],
    ) -> (HashMap<(String, String), Version>, Vec<Start>) {
        let answers = join_all(starts.iter().map(|start| self.ask(chain, start))).await;
        let (mut found, mut missing) = (HashMap::new(), Vec::new());
        for (start, answer) in starts.into_iter().zip(answers) {
            let Some(entries) = answer else {
                missing.push(start);
                continue;
            };
            let Start { partition, epoch, offset, below, conversations } = start;
            let (all, mut unknown) = (conversations.len(), Vec::new());
            for (number, conversation) in conversations.into_iter().enumerate() {
                let bytes = entries.get(number).and_then(Option::as_deref);
                match bytes.and_then(|bytes| entry::read(bytes, partition, below, stages)) {
                    None => unknown.push(conversation),
                    Some(slices) => {
                        let of = |(stage, version)| ((conversation.clone(), stage), version);
                        found.extend(slices.into_iter().map(of));
                    }
                }
            }
            self.meters.read("hit", all - unknown.len());
            self.meters.read("miss", unknown.len());
            if !unknown.is_empty() {
                missing.push(Start { partition, epoch, offset, below, conversations: unknown });
            }
        }
        (found, missing)
    }

    /// The entries of a batch's conversations; `None` where the cache does not serve the batch.
    async fn ask(&self, chain: &str, start: &Start) -> Option<Vec<Option<Vec<u8>>>> {
        let count = start.conversations.len();
        let known = {
            let owned = self.lock();
            let owner = owned.get(&(chain.to_owned(), start.partition)).filter(|owner| owner.epoch == start.epoch);
            owner.map(|owner| owner.saved.filter(|(_, watermark)| *watermark == start.offset))
        };
        let Some(expected) = known else {
            self.meters.read("refused", count);
            return None;
        };
        let expected = expected.map(|(saved, _)| state_of(saved)).unwrap_or_default();
        let fresh = Uuid::new_v4().into_bytes().to_vec();
        let keys = self.keys(chain, start.partition, start.conversations.iter());
        let time_to_live = self.redis.settings().time_to_live.as_millis() as u64;
        let call = |command: &mut Cmd| {
            command.arg(keys.len()).arg(&keys).arg(start.epoch.0).arg(&expected).arg(start.offset);
            command.arg(&fresh).arg(time_to_live);
        };
        let answer = self.redis.run(&self.load, call).await.ok().and_then(answered);
        let (state, entries) = match answer {
            None => {
                self.meters.read("away", count);
                (None, None)
            }
            Some((REFUSED, _)) => {
                self.meters.read("refused", count);
                (None, None)
            }
            Some((MOVED, _)) => {
                self.meters.moves.add(1, &[]);
                self.meters.read("miss", count);
                (Some(fresh), None)
            }
            Some((_, entries)) => (Some(expected), Some(entries)),
        };
        self.set(chain, start.partition, start.epoch, |owner| owner.state = state);
        entries
    }

    /// Before the authority saves: until it has answered nobody knows which save is its last. Returns the states that the
    /// batches were folded from.
    pub(super) fn before(&self, batches: &[Batch]) -> Vec<Option<State>> {
        let take = |batch: &Batch| {
            let mut from = None;
            self.set(&batch.chain, batch.partition, batch.epoch, |owner| {
                owner.saved = None;
                from = owner.state.take();
            });
            from
        };
        batches.iter().map(take).collect()
    }

    /// What the authority has acknowledged.
    pub(super) async fn save_all(&self, batches: &[Batch], from: Vec<Option<State>>, saved: &[Saved]) {
        let writes = batches.iter().zip(from).zip(saved).map(|((batch, from), saved)| async move {
            let written = match from {
                Some(from) => self.write(batch, &from, *saved).await,
                None => false,
            };
            self.set(&batch.chain, batch.partition, batch.epoch, |owner| {
                owner.saved = Some((*saved, batch.watermark));
                owner.state = written.then(|| state_of(*saved));
            });
        });
        join_all(writes).await;
    }

    /// Whether the cache holds the batch now.
    async fn write(&self, batch: &Batch, from: &State, saved: Saved) -> bool {
        let mut conversations: Vec<(&String, Vec<&Write>)> = Vec::new();
        let mut places: HashMap<&String, usize> = HashMap::new();
        for write in &batch.writes {
            let place = *places.entry(&write.conversation).or_insert_with(|| {
                conversations.push((&write.conversation, Vec::new()));
                conversations.len() - 1
            });
            conversations[place].1.push(write);
        }
        let keys = self.keys(&batch.chain, batch.partition, conversations.iter().map(|(name, _)| *name));
        let entries: Vec<Vec<u8>> = conversations.iter().map(|(_, slices)| entry::write(slices)).collect();
        let time_to_live = self.redis.settings().time_to_live.as_millis() as u64;
        let call = |command: &mut Cmd| {
            command.arg(keys.len()).arg(&keys).arg(batch.epoch.0).arg(from).arg(state_of(saved));
            command.arg(batch.watermark).arg(time_to_live).arg(&entries);
        };
        let answer = self.redis.run(&self.save, call).await.ok().and_then(|value| from_redis_value_ref(&value).ok());
        let result = match answer {
            None => "away",
            Some(REFUSED) => "refused",
            Some(MOVED) => "moved",
            Some(_) => "kept",
        };
        self.meters.writes.add(1, &[KeyValue::new("result", result)]);
        result == "kept"
    }

    /// The keys of a mark and of entries; what is in braces decides about the node of a cluster that has them.
    fn keys<'a>(&self, chain: &str, partition: i32, of: impl Iterator<Item = &'a String>) -> Vec<String> {
        let place = format!("{}:contexts:{{{chain}:{partition}}}", self.redis.settings().prefix);
        let mark = format!("{place}:mark");
        std::iter::once(mark).chain(of.map(|conversation| format!("{place}:of:{conversation}"))).collect()
    }

    fn set(&self, chain: &str, partition: i32, epoch: Epoch, change: impl FnOnce(&mut Owned)) {
        let mut owned = self.lock();
        let owner = owned.get_mut(&(chain.to_owned(), partition)).filter(|owner| owner.epoch == epoch);
        if let Some(owner) = owner {
            change(owner);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, i32), Owned>> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn state_of(saved: Saved) -> State {
    saved.0.to_string().into_bytes()
}

/// What the script that loads says, and the entries that it found.
fn answered(value: Value) -> Option<(i64, Vec<Option<Vec<u8>>>)> {
    let Value::Array(values) = value else { return None };
    let mut values = values.into_iter();
    let Some(Value::Int(outcome)) = values.next() else { return None };
    let entry = |value| match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    };
    Some((outcome, values.map(entry).collect()))
}

#[derive(Debug)]
struct Meters {
    reads: Counter<u64>,
    writes: Counter<u64>,
    moves: Counter<u64>,
}

impl Meters {
    fn new(meter: &Meter) -> Meters {
        let meters = Meters {
            reads: meter.u64_counter("undertone.contexts.cache.reads").build(),
            writes: meter.u64_counter("undertone.contexts.cache.writes").build(),
            moves: meter.u64_counter("undertone.contexts.cache.moves").build(),
        };
        for result in ["hit", "miss", "refused", "away"] {
            meters.read(result, 0);
        }
        for result in ["kept", "moved", "refused", "away"] {
            meters.writes.add(0, &[KeyValue::new("result", result)]);
        }
        meters.moves.add(0, &[]);
        meters
    }

    /// Counts conversations.
    fn read(&self, result: &'static str, conversations: usize) {
        self.reads.add(conversations as u64, &[KeyValue::new("result", result)]);
    }
}
