//! What the state of a run takes on the disk and in a Redis.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;

/// Where the embedded broker keeps what it knows of topics and groups.
const METADATA: &str = "metadata.log";

/// Bytes under a data folder: of each topic's segments, and of each file of SQLite with what lies beside it.
pub(super) fn of_files(data: &Path) -> anyhow::Result<BTreeMap<String, u64>> {
    let (mut sizes, mut folders) = (BTreeMap::<String, u64>::new(), vec![data.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let (entry, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
            if entry.is_dir() {
                folders.push(entry);
                continue;
            }
            let (name, bytes) = (name.to_string_lossy().into_owned(), entry.metadata()?.len());
            let of = match name.split_once(".sqlite") {
                Some((store, _)) => store.to_owned(),
                None if name.ends_with(".log") && name != METADATA => topic(&folder),
                None => continue,
            };
            *sizes.entry(of).or_default() += bytes;
        }
    }
    Ok(sizes)
}

/// The topic whose segments lie in the folder of a partition: that lies in the topic's.
fn topic(folder: &Path) -> String {
    let topic = folder.parent().and_then(Path::file_name);
    topic.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Bytes that the keys of this prefix take in a Redis, by its own count.
pub(super) async fn of_redis(address: &str, prefix: &str) -> anyhow::Result<u64> {
    let client = redis::Client::open(format!("redis://{address}/")).context("read the address")?;
    let mut connection = client.get_multiplexed_async_connection().await.context("connect to Redis")?;
    let mut cursor = 0_u64;
    let mut bytes = 0;
    loop {
        let mut scan = redis::cmd("SCAN");
        let scan = scan.arg(cursor).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(1000);
        let (next, keys): (u64, Vec<Vec<u8>>) = scan.query_async(&mut connection).await.context("list the keys")?;
        for key in keys {
            let mut usage = redis::cmd("MEMORY");
            let usage = usage.arg("USAGE").arg(key).arg("SAMPLES").arg(0);
            bytes += usage.query_async::<Option<u64>>(&mut connection).await.context("ask for memory")?.unwrap_or(0);
        }
        cursor = next;
        if cursor == 0 {
            return Ok(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_by_topic_and_store() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [
            ("log/a.b/0-0/1.log", 3),
            ("log/a.b/0-11/1.log", 4),
            ("log/a.b/0-0/1.index", 9),
            ("log/metadata.log", 2),
            ("h.sqlite", 5),
            ("h.sqlite-wal", 1),
        ] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![0; bytes]).unwrap();
        }
        let sizes = of_files(folder.path()).unwrap();
        assert_eq!(sizes, BTreeMap::from([("a.b".to_owned(), 7), ("h".to_owned(), 6)]));
    }
}
