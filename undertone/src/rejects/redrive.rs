//! Driving rejects in again.
//!
//! Promises: each reject is driven in at most once, also by runs with other conditions, by two runs at a time, and by a
//! run that was killed anywhere: the record that comes of it and the note that it was done are written in one
//! transaction, a second run fences the first, and notes are read after that. A reject that has been tried as often as
//! allowed is refused, so nothing goes round for ever; what is rejected while a run goes on is the next run's.
//!
//! An input of intake goes through the parser of this release. A record of the log goes back to its topic as it was, with
//! a new offset: a turn in it keeps its id and its times, and is given a new position.

use std::borrow::Cow;
use std::time::Duration;

use anyhow::Context as _;
use ingest::redrive::Redriven as Read;
use ingest::websocket::frame;
use schemas::reject::ATTEMPT_HEADER;
use schemas::topic::{REDRIVES, TURNS_RECEIVED};
use schemas::{Envelope, Redrive, Turn};
use serde::Serialize;
use store::erasures::Erasures;
use store::log::{Kafka, LogError, Message, Record, TransactionalProducer};
use store::registry::Registry;

use super::{Found, Reader, Selection};

/// The name under which runs fence each other.
const TRANSACTIONAL_ID: &str = "undertone.rejects.redrive";
/// The broker aborts what a killed run left open after this time, unless another run begins earlier.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Why what was forgotten stays where it is.
const FORGOTTEN: &str = "it was forgotten (`undertone memory forget`); it stays in the log until retention takes it";
/// Refusals that are told one by one.
const REFUSALS_TOLD_MAX: usize = 20;

/// How far a run goes.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Rejects that are driven in at most.
    pub limit: usize,
    /// A reject that has been tried this often is refused.
    pub attempts_max: i32,
    /// Rejects in one transaction.
    pub batch_max: usize,
    /// Bytes of the rejects in one transaction, by which a batch ends.
    pub batch_bytes_max: usize,
    /// Longest text of a turn, in bytes, and most frames of a batch: those of intake.
    pub parser: frame::Bounds,
}

/// What became of a reject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its bytes went back to their topic; and why this release would reject them there again, if it would.
    Record(Option<String>),
    /// It was read again by intake's parser: `turn`, `feedback`, `nothing` or `rejected`, and why it still is.
    Read(&'static str, Option<String>),
    /// It stays where it is.
    Refused(String),
}

/// A reject, and what became of it.
#[derive(Debug)]
pub struct Taken {
    /// The reject.
    pub found: Found,
    /// What became of it, or would.
    pub outcome: Outcome,
}

/// How far a run has come within a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The records are with the brokers; nothing is visible.
    Written,
    /// They are visible.
    Committed,
}

/// What a run did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether it only looked.
    pub dry_run: bool,
    /// Rejects that were meant and not driven in before.
    pub selected: u64,
    /// Those that were driven in now, including what was rejected again.
    pub redriven: u64,
    /// Those of them that the parser rejects still: they stand at the end of the rejects with one attempt more.
    pub rejected_again: u64,
    /// Those that stay where they are.
    pub refused: u64,
    /// Why, for the first of them.
    pub refusals: Vec<Refusal>,
    /// Rejects that were meant and had been driven in before.
    pub redriven_before: u64,
    /// Records in the topic of rejects that are none.
    pub unreadable: u64,
    /// What was asked for and is not there: a sentence each.
    pub not_found: Vec<String>,
}

/// A reject that stays where it is, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Its partition in the topic of rejects.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// Why, with the mend.
    pub why: String,
}

/// A run.
#[derive(Debug)]
pub struct Run<'a> {
    /// The log.
    pub kafka: &'a Kafka,
    /// Reads and writes values.
    pub registry: &'a Registry,
    /// Which rejects are meant.
    pub selection: &'a Selection,
    /// How far it goes.
    pub bounds: &'a Bounds,
    /// Whether it only says what would become of them.
    pub dry_run: bool,
    /// Milliseconds since the Unix epoch.
    pub now: i64,
}

impl Run<'_> {
    /// Goes through the rejects, oldest first. `taken` is told what becomes of each, `at` how far a batch has come.
    ///
    /// # Errors
    /// The brokers do not answer, or another run has taken over. What was committed until then is done, and is not done
    /// again.
    pub async fn go(&self, mut taken: impl FnMut(&Taken), mut at: impl AsyncFnMut(Step)) -> anyhow::Result<Report> {
        let producer = match self.dry_run {
            true => None,
            false => Some(TransactionalProducer::connect(self.kafka, TRANSACTIONAL_ID, TRANSACTION_TIMEOUT).await?),
        };
        // Opened only now: no earlier run can write a note any more.
        let mut reader = Reader::open(self.kafka, self.registry.codec()).await?;
        let erasures = Erasures::read(self.kafka, self.registry.codec()).await.context("read what was forgotten")?;
        let mut report = Report { dry_run: self.dry_run, ..Report::default() };
        let mut batch = Batch::default();
        let mut unmet = self.selection.which.clone();
        while report.redriven < self.bounds.limit as u64 {
            let Some(found) = reader.next().await? else {
                let nowhere =
                    |which| format!("there is no reject {which}; `undertone rejects list --redriven` shows all");
                report.not_found = unmet.into_iter().map(nowhere).collect();
                report.not_found.extend(self.selection.unknown(&reader.seen));
                break;
            };
            unmet.retain(|which| !which.names(&found));
            if !self.selection.takes(&found) {
                continue;
            }
            if found.redriven.is_some() {
                report.redriven_before += 1;
                continue;
            }
            let raw = Some(found.reject.raw.as_slice());
            self.registry.know_now::<Turn>(raw).await.context("ask for what a reject is sealed by")?;
            let (outcome, mut records) = self.outcome(&found, &erasures)?;
            self.seal(&mut records).await.context("seal what was read")?;
            report.count(&found, &outcome);
            if !matches!(outcome, Outcome::Refused(_)) {
                batch.bytes += found.reject.raw.len();
                batch.rejects += 1;
                let note = self.note(&found, &outcome, &records)?;
                batch.records.extend(records);
                batch.records.push(note);
            }
            taken(&Taken { found, outcome });
            if batch.rejects >= self.bounds.batch_max || batch.bytes >= self.bounds.batch_bytes_max {
                write(producer.as_ref(), std::mem::take(&mut batch), &mut at).await?;
            }
        }
        write(producer.as_ref(), batch, &mut at).await?;
        report.unreadable = reader.unreadable;
        Ok(report)
    }

    /// What becomes of a reject, and the records to write.
    fn outcome(&self, found: &Found, erasures: &Erasures) -> anyhow::Result<(Outcome, Vec<Record>)> {
        let reject = &found.reject;
        let refused = |why: String| Ok((Outcome::Refused(why), Vec::new()));
        if reject.is_forgotten() {
            return refused(FORGOTTEN.to_owned());
        }
        if reject.attempt >= self.bounds.attempts_max {
            let why = format!(
                "tried {} times: find out why it is rejected, then raise [rejects] attempts_max or --attempts-max",
                reject.attempt
            );
            return refused(why);
        }
        match (reject.stage.as_str(), reject.topic.as_deref()) {
            ("ingest", None) => {
                match ingest::redrive::redrive(
                    self.registry.codec(),
                    reject,
                    &found.headers,
                    self.bounds.parser,
                    self.now,
                ) {
                    Ok(Read { records, .. }) if self.is_forgotten(&records, erasures) => refused(FORGOTTEN.to_owned()),
                    Ok(Read { outcome, records, detail }) => Ok((Outcome::Read(outcome, detail), records)),
                    Err(error @ ingest::redrive::RedriveError::UnknownSource(_)) => refused(error.to_string()),
                    Err(error) => Err(error).context("write what came of a reject"),
                }
            }
            (_, Some(TURNS_RECEIVED)) => match vec![self.record(found)] {
                records if self.is_forgotten(&records, erasures) => refused(FORGOTTEN.to_owned()),
                records => Ok((Outcome::Record(self.fault(found)), records)),
            },
            (stage, Some(topic)) => refused(format!(
                "{stage} rejected it from {topic}, which only the processors write: redrive what they read instead"
            )),
            (stage, None) => refused(format!("{stage} does not say where it came from")),
        }
    }

    /// Seals turns that are not, where turns are sealed: inputs at fault are kept as they came.
    async fn seal(&self, records: &mut [Record]) -> anyhow::Result<()> {
        let Some(keys) = self.registry.keys() else { return Ok(()) };
        let codec = self.registry.codec();
        for record in records.iter_mut().filter(|record| record.topic == TURNS_RECEIVED) {
            let value = record.value.as_deref().unwrap_or_default();
            if let (Cow::Borrowed(_), _) = codec.open(value)?
                && let Ok(turn) = codec.decode::<Turn>(value)
            {
                let person = turn.person().unwrap_or_default();
                let key = keys.current(&turn.conversation, &person, turn.received_at).await?;
                record.value = Some(codec.seal(&turn, &key)?);
            }
        }
        Ok(())
    }

    /// Whether a turn among what would be written was forgotten.
    fn is_forgotten(&self, records: &[Record], erasures: &Erasures) -> bool {
        let turn = |record: &Record| self.registry.codec().decode::<Turn>(record.value.as_deref()?).ok();
        records.iter().filter_map(turn).any(|turn| erasures.covers(&turn))
    }

    /// The record as it was, with the number of its try.
    fn record(&self, found: &Found) -> Record {
        let reject = &found.reject;
        let kept = reject.headers.iter().filter(|header| header.name != ATTEMPT_HEADER);
        let mut headers: Vec<_> = kept.map(|header| (header.name.clone(), header.value.clone())).collect();
        let attempt = reject.attempt.saturating_add(1).to_string();
        headers.push((ATTEMPT_HEADER.to_owned(), attempt.into_bytes()));
        Record {
            topic: TURNS_RECEIVED.to_owned(),
            // By its key, as everything else there.
            partition: None,
            key: reject.key.clone(),
            value: Some(reject.raw.clone()),
            headers,
            // It joins the log now; how far readers are behind, and what retention takes, is told by this time.
            timestamp: self.now,
        }
    }

    /// Why the processors of this release would reject a record again.
    fn fault(&self, found: &Found) -> Option<String> {
        let reject = &found.reject;
        let message = Message {
            topic: TURNS_RECEIVED.into(),
            partition: 0,
            offset: 0,
            timestamp: self.now,
            key: reject.key.clone(),
            value: Some(reject.raw.clone()),
            headers: Vec::new(),
        };
        processors::batch::admit(self.registry.codec(), true, &message).err().map(|refused| refused.detail)
    }

    fn note(&self, found: &Found, outcome: &Outcome, records: &[Record]) -> anyhow::Result<Record> {
        let Found { place, reject, .. } = found;
        let note = Redrive {
            id: reject.id,
            at: self.now,
            rejected_at: reject.at,
            partition: place.partition,
            offset: place.offset,
            attempt: reject.attempt.saturating_add(1),
            outcome: outcome.name().to_owned(),
            topic: records.first().map(|record| record.topic.clone()),
        };
        let envelope = Envelope {
            id: reject.id.to_string(),
            source: "/rejects/redrive".to_owned(),
            kind: "dev.undertone.redrive.v1".to_owned(),
            time: self.now,
            correlation_id: reject.id.to_string(),
            trace: None,
        };
        let headers = envelope.headers().into_iter();
        Ok(Record {
            topic: REDRIVES.to_owned(),
            partition: None,
            key: Some(format!("{}:{}", place.partition, place.offset).into_bytes()),
            value: Some(self.registry.codec().encode(&note).context("write the note of a redrive")?),
            headers: headers.map(|(name, value)| (name.to_owned(), value.into_bytes())).collect(),
            timestamp: self.now,
        })
    }
}

/// What one transaction will hold.
#[derive(Debug, Default)]
struct Batch {
    rejects: usize,
    bytes: usize,
    records: Vec<Record>,
}

async fn write(
    producer: Option<&TransactionalProducer>,
    batch: Batch,
    at: &mut impl AsyncFnMut(Step),
) -> anyhow::Result<()> {
    let Some(producer) = producer.filter(|_| batch.rejects > 0) else { return Ok(()) };
    let told = |error: LogError| match error {
        LogError::Fenced(_) => anyhow::anyhow!("another redrive has taken over: wait for it, then start again"),
        error => anyhow::Error::from(error).context("write a batch; what was committed is done: start again"),
    };
    producer.write(&batch.records).await.map_err(told)?;
    at(Step::Written).await;
    producer.commit().await.map_err(told)?;
    at(Step::Committed).await;
    Ok(())
}

impl Outcome {
    /// A stable word.
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Record(_) => "record",
            Outcome::Read(outcome, _) => outcome,
            Outcome::Refused(_) => "refused",
        }
    }

    /// Why it stays, or is or would be rejected again.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Outcome::Record(fault) | Outcome::Read(_, fault) => fault.as_deref(),
            Outcome::Refused(why) => Some(why),
        }
    }
}

impl Report {
    fn count(&mut self, found: &Found, outcome: &Outcome) {
        self.selected += 1;
        match outcome {
            Outcome::Refused(why) => {
                self.refused += 1;
                if self.refusals.len() < REFUSALS_TOLD_MAX {
                    let (partition, offset) = (found.place.partition, found.place.offset);
                    self.refusals.push(Refusal { partition, offset, why: why.clone() });
                }
            }
            Outcome::Read("rejected", _) => {
                self.redriven += 1;
                self.rejected_again += 1;
            }
            Outcome::Record(_) | Outcome::Read(..) => self.redriven += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::Reject;

    use super::*;
    use crate::rejects::select::tests::found;

    fn outcome(change: impl FnOnce(&mut Reject)) -> (Outcome, Vec<Record>) {
        let mut found = found();
        change(&mut found.reject);
        let parser = frame::Bounds { text_bytes_max: 1000, batch_frames_max: 10 };
        let bounds = Bounds { limit: 10, attempts_max: 3, batch_max: 10, batch_bytes_max: 1000, parser };
        let (kafka, registry, selection) = (Kafka::default(), Registry::embedded(), Selection::default());
        let run = Run {
            kafka: &kafka,
            registry: &registry,
            selection: &selection,
            bounds: &bounds,
            dry_run: true,
            now: 1 << 41,
        };
        run.outcome(&found, &Erasures::default()).unwrap()
    }

    fn of_the_log(reject: &mut Reject) {
        reject.stage = "processors".to_owned();
        reject.topic = Some(TURNS_RECEIVED.to_owned());
        reject.key = Some(b"room-7".to_vec());
        reject.headers = vec![
            schemas::Header { name: "correlationid".to_owned(), value: b"walk-7".to_vec() },
            schemas::Header { name: ATTEMPT_HEADER.to_owned(), value: b"2".to_vec() },
        ];
        reject.attempt = 2;
    }

    #[test]
    fn a_record_goes_back_as_it_was_with_the_number_of_its_try() {
        let (outcome, records) = outcome(of_the_log);
        assert!(matches!(outcome, Outcome::Record(Some(_))), "an update is no turn: {outcome:?}");
        let record = &records[0];
        assert_eq!((record.topic.as_str(), record.partition, record.timestamp), (TURNS_RECEIVED, None, 1 << 41));
        assert_eq!((&record.key, &record.value), (&Some(b"room-7".to_vec()), &Some(found().reject.raw)));
        let expected = [("correlationid".to_owned(), b"walk-7".to_vec()), (ATTEMPT_HEADER.to_owned(), b"3".to_vec())];
        assert_eq!(record.headers, expected);
    }

    #[test]
    fn what_cannot_go_back_is_refused_with_the_mend() {
        let refused = |change: fn(&mut Reject), word: &str| {
            let (outcome, records) = outcome(change);
            let Outcome::Refused(why) = outcome else { panic!("{word}: {outcome:?}") };
            assert!(why.contains(word) && records.is_empty(), "{why}");
        };
        refused(|reject| reject.attempt = 3, "attempts_max");
        refused(|reject| reject.topic = Some("undertone.turns.enriched.v1".to_owned()), "only the processors write");
        refused(|reject| reject.source = Some("smoke".to_owned()), "upgrade");
        refused(|reject| reject.stage = "history".to_owned(), "does not say where");
    }
}
