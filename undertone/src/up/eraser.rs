//! Goes over the log for what was forgotten, where the broker is this process's own: of Apache Kafka only retention takes it.
//!
//! Reads the list of erasures as a consumer group, and takes the words out of the records that they cover: of a turn its id, its
//! place and its times are left, so that positions and offsets are as they were. Promises: what the group has committed was
//! gone over, in every record that was in the log then; nothing is committed before that is on the disk. It reads whole topics,
//! once for all erasures that wait. Leaves out: inputs at fault that do not tell whose they are.

use std::sync::Arc;
use std::time::Duration;

use broker::{Replace, Rewriter};
use schemas::{Codec, Erasure, Feedback, Reject, Reply, Turn, topic};
use store::erasures::Erasures;
use store::log::{Admin, GroupReader, Kafka, LogError};
use tokio_util::sync::CancellationToken;

/// The consumer group: an erasure that it has committed was gone over.
pub(crate) const GROUP: &str = "undertone-log-eraser";
/// Erasures that are gone over for together.
const TOGETHER_MAX: usize = 1000;
/// How long it waits for one, and until it tries again what failed.
const WAIT: Duration = Duration::from_secs(1);

/// Whether records of a topic are gone over.
pub(crate) fn goes_over(name: &str) -> bool {
    name.starts_with("undertone.turns.") || [topic::REPLIES, topic::FEEDBACK, topic::REJECTS].contains(&name)
}

/// Runs until it is told to end.
///
/// # Errors
/// The list cannot be read any more.
pub(super) async fn run(
    kafka: Kafka,
    codec: Arc<Codec>,
    rewriter: Rewriter,
    shutdown: CancellationToken,
) -> Result<(), LogError> {
    let mut reader = GroupReader::join(&kafka, GROUP, topic::ERASURES)?;
    let mut waiting: Vec<Erasure> = Vec::new();
    let ended = shutdown.run_until_cancelled(async {
        loop {
            match reader.batch(TOGETHER_MAX, WAIT).await {
                Ok(batch) => {
                    let values = batch.iter().map(|message| message.value.as_deref().unwrap_or_default());
                    // Whoever consults the list tells of records that are no erasure.
                    waiting.extend(values.filter_map(|value| codec.decode(value).ok()));
                }
                Err(error) if error.is_transient() => tokio::time::sleep(WAIT).await,
                Err(error) => return Err(error),
            }
            let done = match waiting.is_empty() {
                true => reader.commit().await,
                false => match go_over(&kafka, &codec, &rewriter, &waiting).await {
                    Ok(records) => {
                        tracing::info!(
                            erasures = waiting.len(),
                            records,
                            "words that were forgotten are out of the log"
                        );
                        waiting.clear();
                        reader.commit().await
                    }
                    Err(error) => {
                        tracing::error!(%error, "go over the log for what was forgotten; it is tried again");
                        continue;
                    }
                },
            };
            if let Err(error) = done
                && !error.is_transient()
            {
                return Err(error);
            }
        }
    });
    let ended = ended.await.unwrap_or(Ok(()));
    reader.close().await;
    ended
}

/// Takes the words of all that these cover out of every topic; returns how many records had some.
async fn go_over(kafka: &Kafka, codec: &Arc<Codec>, rewriter: &Rewriter, waiting: &[Erasure]) -> anyhow::Result<u64> {
    let mut erasures = Erasures::default();
    waiting.iter().for_each(|erasure| erasures.add(erasure.clone()));
    let erasures = Arc::new(erasures);
    let mut records = 0;
    for known in Admin::connect(kafka)?.topics().await? {
        if goes_over(&known.name) {
            let without = without(&known.name, Arc::clone(codec), Arc::clone(&erasures));
            records += rewriter.replace(&known.name, without).await?;
        }
    }
    Ok(records)
}

/// What a value of a topic becomes, if it was forgotten and has words still.
fn without(topic: &str, codec: Arc<Codec>, erasures: Arc<Erasures>) -> Arc<Replace> {
    const FITS: &str = "what was read can be written: it is smaller than it was";
    match topic {
        topic::REPLIES => Arc::new(move |_, value| {
            let reply = codec.decode::<Reply>(value).ok()?;
            let has_words = erasures.covers_reply(&reply) && !reply.text.is_empty();
            has_words.then(|| codec.encode(&Reply { text: String::new(), ..reply }).expect(FITS))
        }),
        topic::REJECTS => Arc::new(move |_, value| {
            let reject = codec.decode::<Reject>(value).ok()?;
            let has_words = erasures.covers_reject(&codec, &reject);
            has_words.then(|| codec.encode(&reject.forgotten()).expect(FITS))
        }),
        topic::FEEDBACK => Arc::new(move |_, value| {
            let feedback = codec.decode::<Feedback>(value).ok()?;
            let tells = erasures.covers_feedback(&feedback) && feedback.sender.is_some();
            tells.then(|| codec.encode(&Feedback { sender: None, reactions: Vec::new(), ..feedback }).expect(FITS))
        }),
        _ => Arc::new(move |key, value| match codec.read::<Turn>(value) {
            Ok(turn) => erasures.has_words(&turn).then(|| codec.encode(&turn.forgotten()).expect(FITS)),
            // What is no turn was rejected; the reject has it, as long as that is not forgotten either.
            Err(_) => (erasures.has_key(key) && !value.is_empty()).then(Vec::new),
        }),
    }
}
