//! The head of a turn, read along the writer's schema as far as the position and no further: the parts of the stages, which
//! are most of a turn, stand behind it.
//!
//! Knows the shapes that stand in front of it. Whatever else a schema may have there is left to the whole reader.

use apache_avro::Schema;

use crate::TurnHead;

/// The head of the turn that begins here; `None` if it is not known how to read it, or it is no turn.
pub(super) fn read(schema: &Schema, mut body: &[u8]) -> Option<TurnHead> {
    let Schema::Record(record) = schema else { return None };
    let (mut conversation, mut at, mut received_at) = (None, None, None);
    for field in &record.fields {
        match field.name.as_str() {
            "conversation" => conversation = Some(std::str::from_utf8(bytes(&mut body)?).ok()?.to_owned()),
            "at" => at = Some(long(&mut body)?),
            "received_at" => received_at = Some(long(&mut body)?),
            "position" => {
                let Schema::Union(union) = &field.schema else { return None };
                let position = match union.variants().get(usize::try_from(long(&mut body)?).ok()?)? {
                    Schema::Null => None,
                    Schema::Long => Some(long(&mut body)?),
                    _ => return None,
                };
                return Some(TurnHead { conversation: conversation?, at: at?, received_at: received_at?, position });
            }
            _ => pass(&field.schema, &mut body)?,
        }
    }
    None
}

/// Goes behind a value.
fn pass(schema: &Schema, body: &mut &[u8]) -> Option<()> {
    match schema {
        Schema::Null => {}
        Schema::Boolean => drop(take(body, 1)?),
        Schema::Int | Schema::Long | Schema::TimestampMillis | Schema::Enum(_) => drop(long(body)?),
        Schema::Float => drop(take(body, 4)?),
        Schema::Double => drop(take(body, 8)?),
        Schema::String | Schema::Bytes => drop(bytes(body)?),
        Schema::Union(union) => pass(union.variants().get(usize::try_from(long(body)?).ok()?)?, body)?,
        Schema::Record(record) => record.fields.iter().try_for_each(|field| pass(&field.schema, body))?,
        _ => return None,
    }
    Some(())
}

fn bytes<'b>(body: &mut &'b [u8]) -> Option<&'b [u8]> {
    let length = usize::try_from(long(body)?).ok()?;
    take(body, length)
}

fn take<'b>(body: &mut &'b [u8], length: usize) -> Option<&'b [u8]> {
    let (taken, rest) = body.split_at_checked(length)?;
    *body = rest;
    Some(taken)
}

/// A number, as Avro writes it: seven bits a byte, the lowest first, the sign in the lowest bit.
fn long(body: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(body, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Codec, Turn};

    #[test]
    fn a_head_is_that_of_the_whole_turn_whatever_of_it_is_cut_off() {
        let codec = Codec::embedded();
        let example: Turn = serde_json::from_str(include_str!("../../avro/examples/turn.json")).unwrap();
        let sparse = Turn { sender: None, bot: None, position: None, text: String::new(), ..example.clone() };
        let far = Turn { position: Some(i64::MAX), received_at: -1, ..example.clone() };
        for turn in [example, sparse, far] {
            let bytes = codec.encode(&turn).unwrap();
            let Turn { conversation, at, received_at, position, .. } = turn;
            assert_eq!(codec.decode_head(&bytes).unwrap(), TurnHead { conversation, at, received_at, position });
            let schema = super::super::parsed(crate::registry::latest(crate::registry::Kind::Turn).text).unwrap();
            let mut reached = false;
            for end in 5..bytes.len() {
                let read = read(schema, &bytes[5..end]);
                assert!(read.is_some() || !reached, "what has been read once is not undone by what follows");
                reached |= read.is_some();
            }
            assert!(reached, "the head ends before the turn does");
        }
    }

    #[test]
    fn every_version_in_the_history_has_a_head_that_can_be_read_alone() {
        for registered in crate::registry::REGISTERED {
            let schema = super::super::parsed(registered.text).unwrap();
            if registered.kind == crate::registry::Kind::Turn {
                // Zeroes are empty texts, absent values and the number 0, in every version.
                let empty = TurnHead { conversation: String::new(), at: 0, received_at: 0, position: None };
                assert_eq!(read(schema, &[0; 64]), Some(empty));
            }
        }
    }
}
