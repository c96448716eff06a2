//! The Redis under a test: the one that `UNDERTONE_TEST_REDIS` names, where it names one. `deploy/servers/redis with COMMAND`
//! gives a command a fresh one and sets the variable.

use store::context::Contexts;
use store::redis::{Redis, Settings};

/// The address of the Redis that contexts are cached in; not set, they are not.
const ADDRESS: &str = "UNDERTONE_TEST_REDIS";

/// How to reach it, with keys of the caller's own; `None` where there is none.
pub fn redis(prefix: &str) -> Option<Settings> {
    let address = std::env::var(ADDRESS).ok().filter(|address| !address.is_empty())?;
    Some(Settings { nodes: vec![address], prefix: prefix.to_owned(), ..Settings::default() })
}

/// The contexts behind the Redis, where there is one. Handles on the same contexts give the same prefix.
pub async fn cached(contexts: Contexts, prefix: &str) -> Contexts {
    let Some(settings) = redis(prefix) else { return contexts };
    let meter = opentelemetry::global::meter("tests");
    let redis = Redis::connect(settings, &meter).await.expect("its address is one");
    contexts.cached(redis, &meter)
}
