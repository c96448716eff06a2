//! The headers beside a record: CloudEvents in binary mode, a correlation id, and the W3C trace context.

use uuid::Uuid;

/// What the headers of a record say. It travels from the webhook to the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// `ce_id`: the id of what is in the value.
    pub id: String,
    /// `ce_source`: the part of Undertone that wrote the record, such as `/ingest/telegram`.
    pub source: String,
    /// `ce_type`: such as `dev.undertone.turn.received.v1`.
    pub kind: String,
    /// `ce_time`: milliseconds since the Unix epoch; RFC 3339 on the wire.
    pub time: i64,
    /// `correlationid`: the same from intake to the client.
    pub correlation_id: String,
    /// `traceparent`, where the record belongs to a trace.
    pub trace: Option<TraceParent>,
}

/// Version of the CloudEvents specification that the headers follow.
const SPEC_VERSION: &str = "1.0";

impl Envelope {
    /// The headers, ready for a record.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("ce_specversion", SPEC_VERSION.to_owned()),
            ("ce_id", self.id.clone()),
            ("ce_source", self.source.clone()),
            ("ce_type", self.kind.clone()),
            ("ce_time", rfc3339(self.time)),
            ("content-type", "application/vnd.confluent.avro".to_owned()),
            ("correlationid", self.correlation_id.clone()),
        ];
        headers.extend(self.trace.map(|trace| ("traceparent", trace.to_string())));
        headers
    }
}

/// A W3C trace context (`00-TRACE-PARENT-FLAGS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// 16 bytes, not all zero.
    pub trace_id: [u8; 16],
    /// 8 bytes, not all zero.
    pub parent_id: [u8; 8],
    /// Bit 0: sampled.
    pub flags: u8,
}

impl TraceParent {
    /// Reads a `traceparent` header; `None` if it is not one (W3C Trace Context, section 3.2). Of a version above 00
    /// the first four fields are read.
    pub fn parse(header: &str) -> Option<TraceParent> {
        let mut fields = header.trim().split('-');
        let version = hex::<1>(fields.next()?)?[0];
        let trace_id = hex::<16>(fields.next()?)?;
        let parent_id = hex::<8>(fields.next()?)?;
        let flags = hex::<1>(fields.next()?)?[0];
        let whole = version != 0 || fields.next().is_none();
        let valid = version != 0xff && trace_id != [0; 16] && parent_id != [0; 8] && whole;
        valid.then_some(TraceParent { trace_id, parent_id, flags })
    }

    /// A new trace from random bytes.
    pub fn root(random: Uuid) -> TraceParent {
        let trace_id = *random.as_bytes();
        TraceParent { trace_id, parent_id: span_of(&trace_id, random), flags: 1 }
    }

    /// The same trace with a new span.
    #[must_use]
    pub fn child(self, random: Uuid) -> TraceParent {
        TraceParent { parent_id: span_of(&self.trace_id, random), ..self }
    }

    /// Whether its steps are to be reported.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// The trace id in lower-case hexadecimal, as logs show it.
    pub fn trace_hex(&self) -> String {
        self.trace_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl std::fmt::Display for TraceParent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "00-{}-", self.trace_hex())?;
        for byte in self.parent_id {
            write!(f, "{byte:02x}")?;
        }
        write!(f, "-{:02x}", self.flags)
    }
}

/// Eight bytes that depend on the random ones and are never all zero.
fn span_of(trace_id: &[u8; 16], random: Uuid) -> [u8; 8] {
    let name = Uuid::new_v5(&Uuid::from_bytes(*trace_id), random.as_bytes());
    let mut span = [0; 8];
    span.copy_from_slice(&name.as_bytes()[..8]);
    span[7] |= 1;
    span
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Milliseconds since the Unix epoch as RFC 3339 in UTC (days to civil date: Hinnant, "chrono-compatible low-level
/// date algorithms").
pub fn rfc3339(unix_ms: i64) -> String {
    let (days, ms) = (unix_ms.div_euclid(86_400_000), unix_ms.rem_euclid(86_400_000));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z", ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_is_read_as_the_recommendation_says() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(TraceParent::parse(text).unwrap().to_string(), text);
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
        assert!(TraceParent::parse("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").is_some());
    }

    #[test]
    fn a_child_stays_in_the_trace_under_another_span() {
        let root = TraceParent::root(Uuid::from_u128(7));
        let child = root.child(Uuid::from_u128(8));
        assert_eq!(child.trace_id, root.trace_id);
        assert_ne!(child.parent_id, root.parent_id);
        assert_eq!(TraceParent::parse(&child.to_string()), Some(child));
    }

    #[test]
    fn times_are_rfc3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(rfc3339(1_700_000_000_000), "2023-11-14T22:13:20.000Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999Z");
    }
}
