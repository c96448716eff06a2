//! A shelf in Redis: values with a time after which they are gone, for whoever asks under the same name.
//!
//! Promises: no call takes longer than the connection lets it; what is found comes with the time that it has left, by
//! Redis' own clock, so that the clocks of those who share it need not agree. Left out: what a value means.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, Value, from_redis_value_ref};
use tokio::sync::Semaphore;

use super::{KnownScript, Redis};

/// Values that are under way to Redis at a time; further ones are not put there.
const PUTS_MAX: usize = 64;

const GET: &str = "
local value = redis.call('GET', KEYS[1])
if not value then return false end
return {value, redis.call('PTTL', KEYS[1])}";
const PUT: &str = "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1";

/// Handle on it; clones share the connection.
#[derive(Debug, Clone)]
pub struct Shelf {
    redis: Redis,
    get: Arc<KnownScript>,
    put: Arc<KnownScript>,
    puts: Arc<Semaphore>,
}

/// What lies under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A value, and for how long it will be there.
    Value(Vec<u8>, Duration),
    /// No value.
    Nothing,
    /// Redis does not answer.
    Away,
}

impl Shelf {
    /// A shelf on this Redis.
    pub fn on(redis: Redis) -> Shelf {
        let (get, put) = (Arc::new(KnownScript::new(GET)), Arc::new(KnownScript::new(PUT)));
        Shelf { redis, get, put, puts: Arc::new(Semaphore::new(PUTS_MAX)) }
    }

    /// Looks.
    pub async fn get(&self, name: &str) -> Found {
        let key = self.key(name);
        let call = |command: &mut Cmd| {
            command.arg(1).arg(&key);
        };
        let answer = self.redis.run(&self.get, call).await;
        let Ok(value) = answer else { return Found::Away };
        match from_redis_value_ref::<Option<(Vec<u8>, i64)>>(&value) {
            Ok(Some((value, left @ 1..))) => Found::Value(value, Duration::from_millis(left as u64)),
            _ => Found::Nothing,
        }
    }

    /// Puts a value there, in the background; not where Redis is away, or too many are under way.
    pub fn put(&self, name: &str, value: Vec<u8>, lives: Duration) {
        let (Ok(permit), lives_ms @ 1..) = (Arc::clone(&self.puts).try_acquire_owned(), lives.as_millis() as u64)
        else {
            return;
        };
        let (shelf, key) = (self.clone(), self.key(name));
        tokio::spawn(async move {
            let call = |command: &mut Cmd| {
                command.arg(1).arg(&key).arg(&value).arg(lives_ms);
            };
            // Where it fails the connection says so, and counts it.
            let _: Result<Value, _> = shelf.redis.run(&shelf.put, call).await;
            drop(permit);
        });
    }

    fn key(&self, name: &str) -> String {
        format!("{}:shelf:{name}", self.redis.settings().prefix)
    }
}
