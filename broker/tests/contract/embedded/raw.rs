//! Requests byte by byte, for what no client would send.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, FetchRequest, ProduceRequest, ProduceResponse, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};

use crate::support::PATIENCE;

pub(crate) const PRODUCE: (ApiKey, i16) = (ApiKey::Produce, 9);
pub(crate) const FETCH: (ApiKey, i16) = (ApiKey::Fetch, 11);

pub(crate) fn connect(bootstrap: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(bootstrap)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A request with its length in front.
pub(crate) fn framed(api: (ApiKey, i16), request: &impl Encodable) -> Result<Bytes> {
    let (key, version) = api;
    let mut bytes = BytesMut::new();
    let header = RequestHeader::default().with_request_api_key(key as i16).with_request_api_version(version);
    header.encode(&mut bytes, key.request_header_version(version))?;
    request.encode(&mut bytes, version)?;
    let length = (bytes.len() as i32).to_be_bytes();
    Ok([&length[..], &bytes].concat().into())
}

/// The answer to the oldest request that was not answered.
pub(crate) fn answer<T: Decodable + HeaderVersion>(stream: &mut TcpStream, version: i16) -> Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut bytes)?;
    let mut bytes = Bytes::from(bytes);
    ResponseHeader::decode(&mut bytes, T::header_version(version))?;
    T::decode(&mut bytes, version)
}

/// Whether the broker closed the connection.
pub(crate) fn is_closed(stream: &mut TcpStream) -> Result<bool> {
    match stream.read(&mut [0]) {
        Ok(read) => Ok(read == 0),
        Err(error) => Ok(error.kind() == std::io::ErrorKind::ConnectionReset),
    }
}

/// Whether the broker took all bytes that were sent to it out of its socket, as `/proc/net/tcp` tells it.
pub(crate) fn was_read(stream: &TcpStream) -> Result<bool> {
    let (client, broker) = (stream.local_addr()?.port(), stream.peer_addr()?.port());
    let sockets = std::fs::read_to_string("/proc/net/tcp")?;
    Ok(sockets.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.len() > 4
            && fields[1].ends_with(&format!(":{broker:04X}"))
            && fields[2].ends_with(&format!(":{client:04X}"))
            && fields[4].ends_with(":00000000")
    }))
}

/// A batch of one record for each value, with the same time.
pub(crate) fn batch(values: &[Bytes], timestamp_ms: i64, compression: Compression) -> Result<Bytes> {
    let record = |(i, value): (usize, &Bytes)| Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset: i as i64,
        sequence: -1,
        timestamp: timestamp_ms,
        key: Some(Bytes::from_static(b"key")),
        value: Some(value.clone()),
        headers: Default::default(),
    };
    let records: Vec<Record> = values.iter().enumerate().map(record).collect();
    let mut bytes = BytesMut::new();
    RecordBatchEncoder::encode(&mut bytes, &records, &RecordEncodeOptions { version: 2, compression })?;
    Ok(bytes.freeze())
}

/// Produces a batch to partition 0; the error code.
pub(crate) fn produce(stream: &mut TcpStream, topic: &str, batch: Bytes) -> Result<i16> {
    let data = PartitionProduceData::default().with_index(0).with_records(Some(batch));
    let topic = TopicProduceData::default().with_name(name(topic)).with_partition_data(vec![data]);
    let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(30_000).with_topic_data(vec![topic]);
    stream.write_all(&framed(PRODUCE, &request)?)?;
    let response: ProduceResponse = answer(stream, PRODUCE.1)?;
    let partition = response.responses.first().and_then(|topic| topic.partition_responses.first());
    Ok(partition.context("an answer for the partition")?.error_code)
}

/// A fetch from partition 0.
pub(crate) fn fetch_request(topic: &str, offset: i64, bytes_max: i32, wait_ms: i32) -> FetchRequest {
    let partition = FetchPartition::default().with_fetch_offset(offset).with_partition_max_bytes(bytes_max);
    let topic = FetchTopic::default().with_topic(name(topic)).with_partitions(vec![partition]);
    FetchRequest::default()
        .with_max_wait_ms(wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(bytes_max)
        .with_topics(vec![topic])
}

/// Fetches from partition 0: the error code, and the records.
pub(crate) fn fetch(stream: &mut TcpStream, topic: &str, offset: i64) -> Result<(i16, Bytes)> {
    stream.write_all(&framed(FETCH, &fetch_request(topic, offset, 1 << 20, 0))?)?;
    let response: kafka_protocol::messages::FetchResponse = answer(stream, FETCH.1)?;
    ensure!(response.error_code == 0, "error {}", response.error_code);
    let partition = response.responses.into_iter().next().and_then(|topic| topic.partitions.into_iter().next());
    let partition = partition.context("an answer for the partition")?;
    Ok((partition.error_code, partition.records.unwrap_or_default()))
}

fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}
