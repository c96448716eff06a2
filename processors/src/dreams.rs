//! Dreams: verse from an own small decoder, in the mood of a conversation.
//!
//! Promises: the same seed and wishes give the same text; a dream is bounded in pieces, lines and characters; nothing is
//! handed out that [`blocked::BlockList`] does not admit, wherever it came from. Leaves out: what a conversation's mood,
//! colours and rooms are (the stages), and who asks (the program).

pub mod blocked;
pub mod verse;
pub mod pieces;
pub mod sampler;
pub mod decoder;
pub mod dreamer;
pub mod wishes;
