//! The protocol itself, byte by byte: one connection, one request after another, in the version that a test names. It
//! shows what clients other than rdkafka see.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{ApiVersionsRequest, MetadataRequest, RequestHeader, ResponseHeader, TopicName};
use kafka_protocol::protocol::{Decodable as _, Encodable as _, HeaderVersion as _, Request, StrBytes};
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
use uuid::Uuid;

use crate::support::{PATIENCE, an_hour_ago_ms};

/// A connection to a broker.
pub(crate) struct Wire {
    stream: TcpStream,
    correlation_id: i32,
}

impl Wire {
    pub(crate) fn connect(bootstrap: &str) -> Result<Wire> {
        let stream = TcpStream::connect(bootstrap).context("connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Wire { stream, correlation_id: 0 })
    }

    /// Sends a request and reads its answer, which must be there to its last byte and not longer.
    pub(crate) fn ask<Q: Request>(&mut self, request: &Q, version: i16) -> Result<Q::Response> {
        let mut frame = BytesMut::from(&[0_u8; 4][..]);
        self.correlation_id += 1;
        let header = RequestHeader::default()
            .with_request_api_key(Q::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation_id)
            .with_client_id(Some(StrBytes::from_static_str("wire")));
        header.encode(&mut frame, Q::header_version(version))?;
        request.encode(&mut frame, version).context("encode request")?;
        let length = (frame.len() - 4) as i32;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        self.stream.write_all(&frame)?;
        let mut length = [0_u8; 4];
        self.stream.read_exact(&mut length).context("the connection was closed in place of an answer")?;
        let mut answer = vec![0_u8; usize::try_from(i32::from_be_bytes(length))?];
        self.stream.read_exact(&mut answer)?;
        let mut answer = Bytes::from(answer);
        let header = ResponseHeader::decode(&mut answer, Q::Response::header_version(version))?;
        ensure!(header.correlation_id == self.correlation_id);
        let response = Q::Response::decode(&mut answer, version).context("decode answer")?;
        ensure!(answer.is_empty(), "{} bytes behind the answer", answer.len());
        Ok(response)
    }

    /// What the broker says it serves.
    pub(crate) fn versions(&mut self) -> Result<Vec<ApiVersion>> {
        Ok(self.ask(&ApiVersionsRequest::default(), 0)?.api_keys)
    }
}

pub(crate) fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

/// The id that a topic has now.
pub(crate) fn topic_id(wire: &mut Wire, topic: &str) -> Result<Uuid> {
    let asked = MetadataRequestTopic::default().with_name(Some(name(topic)));
    let metadata = wire.ask(&MetadataRequest::default().with_topics(Some(vec![asked])), 12)?;
    let described = metadata.topics.first().context("the topic's description")?;
    ensure!(described.error_code == 0 && !described.topic_id.is_nil(), "{described:?}");
    Ok(described.topic_id)
}

/// A batch of these values, without keys, an hour old; with a producer (id, epoch, first sequence) it is part
/// of its transaction.
pub(crate) fn batch(values: &[&str], producer: Option<(i64, i16, i32)>) -> Bytes {
    let (producer_id, producer_epoch, sequence) = producer.unwrap_or((-1, -1, -1));
    let records = values.iter().zip(0..).map(|(value, i)| Record {
        transactional: producer.is_some(),
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id,
        producer_epoch,
        timestamp_type: TimestampType::Creation,
        offset: i64::from(i),
        // The encoder counts sequence numbers also where there is no producer.
        sequence: sequence + i,
        timestamp: an_hour_ago_ms() + i64::from(i),
        key: None,
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: Default::default(),
    });
    let records: Vec<Record> = records.collect();
    let mut bytes = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut bytes, &records, &options).unwrap();
    bytes.freeze()
}
