//! Resume tokens: where a reader of a stream stands, in a form that it keeps for us.
//!
//! A token is opaque to clients: base64url over a version byte, a kind byte and numbers as LEB128. It holds the last
//! position of every followed conversation, or the next offset of every partition for the firehose. Conversations are
//! named by a 64-bit FNV-1a hash, because the request that carries the token names them in full and a token travels
//! with every turn: eleven bytes a conversation. Tokens hold no secret and grant nothing, so they are not signed: a
//! forged one reads from another place what its holder could read anyway.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

const VERSION: u8 = 1;
const POSITIONS: u8 = b'p';
const OFFSETS: u8 = b'o';
/// Longest token that is read, in characters: 4,096 entries of the longest kind fit.
const TOKEN_CHARS_MAX: usize = 128 * 1024;

/// Where a reader stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// By [`key`] of the conversation, the position of the last turn that was delivered; 0 before the first.
    Positions(BTreeMap<u64, i64>),
    /// By partition of the enriched turns, the next offset to deliver.
    Offsets(BTreeMap<i32, i64>),
}

/// The text is no token of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the resume token is damaged: send it exactly as it came with the last turn, or leave it out to start from now"
)]
pub(crate) struct Damaged;

impl Token {
    /// The token as clients see it.
    pub(crate) fn encode(&self) -> String {
        let mut bytes = vec![VERSION];
        match self {
            Token::Positions(positions) => {
                bytes.push(POSITIONS);
                for (key, position) in positions {
                    bytes.extend_from_slice(&key.to_le_bytes());
                    push(&mut bytes, *position as u64);
                }
            }
            Token::Offsets(offsets) => {
                bytes.push(OFFSETS);
                for (partition, offset) in offsets {
                    push(&mut bytes, *partition as u64);
                    push(&mut bytes, *offset as u64);
                }
            }
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a token.
    pub(crate) fn decode(text: &str) -> Result<Token, Damaged> {
        if text.len() > TOKEN_CHARS_MAX {
            return Err(Damaged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Damaged)?;
        let Some(([VERSION, kind], mut rest)) = bytes.split_first_chunk::<2>().map(|(head, rest)| (*head, rest)) else {
            return Err(Damaged);
        };
        match kind {
            POSITIONS => {
                let mut positions = BTreeMap::new();
                while let Some((key, after)) = rest.split_first_chunk::<8>() {
                    rest = after;
                    positions.insert(u64::from_le_bytes(*key), pop(&mut rest)?);
                }
                if rest.is_empty() { Ok(Token::Positions(positions)) } else { Err(Damaged) }
            }
            OFFSETS => {
                let mut offsets = BTreeMap::new();
                while !rest.is_empty() {
                    let partition = i32::try_from(pop(&mut rest)?).map_err(|_| Damaged)?;
                    offsets.insert(partition, pop(&mut rest)?);
                }
                Ok(Token::Offsets(offsets))
            }
            _ => Err(Damaged),
        }
    }

    /// The position that the token holds for a conversation.
    pub(crate) fn position(&self, conversation: &str) -> Option<i64> {
        match self {
            Token::Positions(positions) => positions.get(&key(conversation)).copied(),
            Token::Offsets(_) => None,
        }
    }
}

/// How a token names a conversation: FNV-1a, 64 bits.
pub(crate) fn key(conversation: &str) -> u64 {
    conversation
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn push(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn pop(bytes: &mut &[u8]) -> Result<i64, Damaged> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(Damaged)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return i64::try_from(value).map_err(|_| Damaged);
        }
    }
    Err(Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_went() {
        let rooms = ["room-7", "telegram:helper:-100123", "größer", ""];
        let positions = rooms.iter().zip([0, 1, 127, i64::MAX]).map(|(room, p)| (key(room), p)).collect();
        let token = Token::Positions(positions);
        assert_eq!(Token::decode(&token.encode()), Ok(token.clone()));
        assert_eq!(token.position("größer"), Some(127));
        assert_eq!(token.position("other"), None);
        let token = Token::Offsets([(0, 0), (1, 128), (15, 1 << 40)].into());
        assert_eq!(Token::decode(&token.encode()), Ok(token));
    }

    #[test]
    fn anything_else_is_damaged_and_never_panics() {
        let whole = Token::Positions([(key("room-7"), 300)].into()).encode();
        for cut in 0..whole.len() {
            // A cut in front of the first entry leaves a token without entries, which is one.
            if let Ok(token) = Token::decode(&whole[..cut]) {
                assert_eq!(token, Token::Positions(BTreeMap::new()));
            }
        }
        let negative = URL_SAFE_NO_PAD.encode([1, b'o', 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
        for text in ["", "AA", "AXA=", "no token at all", "////", negative.as_str()] {
            assert_eq!(Token::decode(text), Err(Damaged), "{text}");
        }
    }
}
