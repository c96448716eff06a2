//! Sealed turns: words that are gone from every copy of the log, and of its backups, once a key is destroyed.
//!
//! A sealed value is a turn in the wire format like any other: what would be left of it if it were forgotten
//! ([`Turn::forgotten`]), and in its last field, `sealed`, the whole value that it stands for, encrypted. So whoever has no
//! key reads that something was said, where and when; and once the key is destroyed nobody reads more.
//!
//! AES-256-GCM (NIST SP 800-38D) with a random nonce of 96 bits a value; a key is that of one person in one conversation,
//! so it comes nowhere near the 2^32 values that the standard allows. The key's id is bound to what it sealed.
//!
//! Layout of the field: nonce (12 bytes), ciphertext with its tag (16), length of these in 4 bytes (big endian), id of the
//! key (16), and 8 bytes that say `UTsealed`. It is the last field of the last version of the schema, so it is found from the
//! end of the value.
//!
//! Left out: where keys are kept and destroyed (`store::keys`).

use aes_gcm::aead::generic_array::GenericArray;
use aes_gcm::aead::rand_core::RngCore as _;
use aes_gcm::aead::{Aead as _, OsRng, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use uuid::Uuid;

use crate::Turn;

/// Ends every sealed value.
const MAGIC: &[u8; 8] = b"UTsealed";
const NONCE_BYTES: usize = 12;
const LENGTH_BYTES: usize = 4;
const ID_BYTES: usize = 16;
const TRAILER_BYTES: usize = LENGTH_BYTES + ID_BYTES + MAGIC.len();
/// How much longer than a value what stands in the field is, in bytes; 16 are the cipher's tag.
pub const SEAL_BYTES: usize = NONCE_BYTES + 16 + TRAILER_BYTES;

/// What opens and seals values.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Its id, which travels.
    pub id: Uuid,
    /// The key itself, which does not.
    pub secret: [u8; 32],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Key {
    /// A new one, from the system's randomness.
    pub fn random() -> Key {
        let mut secret = [0; 32];
        OsRng.fill_bytes(&mut secret);
        Key { id: Uuid::new_v4(), secret }
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(GenericArray::from_slice(&self.secret))
    }

    /// What the field `sealed` holds of a value.
    pub(crate) fn seal(&self, value: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_BYTES];
        OsRng.fill_bytes(&mut nonce);
        let message = Payload { msg: value, aad: self.id.as_bytes() };
        let sealed = self.cipher().encrypt(GenericArray::from_slice(&nonce), message);
        let sealed = sealed.expect("a value is shorter than the 64 GiB that the cipher takes");
        let length = (NONCE_BYTES + sealed.len()) as u32;
        [&nonce[..], &sealed, &length.to_be_bytes(), self.id.as_bytes(), MAGIC].concat()
    }

    /// The value that was sealed; `None` if it was not by this key, or is damaged.
    fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, message) = sealed.split_at_checked(NONCE_BYTES)?;
        let message = Payload { msg: message, aad: self.id.as_bytes() };
        self.cipher().decrypt(GenericArray::from_slice(nonce), message).ok()
    }
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// The key.
    Key(Key),
    /// It was destroyed: what it sealed was forgotten.
    Destroyed,
    /// The store of keys does not have it.
    Absent,
    /// Nothing, so far: the store has not been asked.
    Unknown,
}

/// Keys at hand.
pub trait Ring: std::fmt::Debug + Send + Sync {
    /// What is known of a key.
    fn find(&self, id: Uuid) -> Held;
}

/// What a value is, as far as keys go.
#[derive(Debug)]
pub(crate) enum Opened {
    /// It can be read as it stands: it was never sealed, or never can be opened any more.
    Plain,
    /// What was sealed, and by which key.
    Value(Vec<u8>, Key),
    /// The key is not at hand.
    Locked(Uuid),
    /// The key does not open it.
    Damaged(Uuid),
}

/// The id of the key that sealed a value, if it is sealed.
pub(crate) fn key_of(value: &[u8]) -> Option<Uuid> {
    parts(value).map(|(_, id)| id)
}

/// Opens a value, if it is sealed.
pub(crate) fn open(value: &[u8], ring: Option<&dyn Ring>) -> Opened {
    let Some((sealed, id)) = parts(value) else { return Opened::Plain };
    match ring.map_or(Held::Unknown, |ring| ring.find(id)) {
        Held::Unknown | Held::Absent => Opened::Locked(id),
        Held::Destroyed => Opened::Plain,
        Held::Key(key) => match key.open(sealed) {
            Some(value) => Opened::Value(value, key),
            None => Opened::Damaged(id),
        },
    }
}

/// Nonce and ciphertext, and the id of the key.
fn parts(value: &[u8]) -> Option<(&[u8], Uuid)> {
    let rest = value.strip_suffix(MAGIC)?;
    let (rest, id) = rest.split_at_checked(rest.len().checked_sub(ID_BYTES)?)?;
    let (rest, length) = rest.split_at_checked(rest.len().checked_sub(LENGTH_BYTES)?)?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    let (_, sealed) = rest.split_at_checked(rest.len().checked_sub(length)?)?;
    Some((sealed, Uuid::from_slice(id).ok()?))
}

impl Turn {
    /// What travels in its place, with its value sealed.
    pub(crate) fn sealed(&self, value: &[u8], key: &Key) -> Turn {
        Turn { sealed: Some(key.seal(value)), ..self.forgotten() }
    }
}
