//! Decompression with a bound: a batch that would unpack to more is not unpacked.
//!
//! Few bytes can stand for very many. Memory is taken for what really comes out, and no more than the bound.

use std::io::{self, Read};

use bytes::Bytes;

/// What a batch may unpack to, in bytes.
pub(crate) const UNPACKED_BYTES_MAX: usize = 32 << 20;

/// What snappy's Java library puts in front of a stream of blocks, each with its length.
const SNAPPY_STREAM: &[u8; 16] = b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01";

/// The bytes behind compressed ones. Larger than `most` is [`io::ErrorKind::FileTooLarge`], damage another error.
pub(super) fn unpack(codec: i16, packed: &Bytes, most: usize) -> io::Result<Bytes> {
    match codec {
        0 => Ok(packed.clone()),
        1 => read(flate2::read::MultiGzDecoder::new(&packed[..]), most),
        2 => snappy(packed, most),
        3 => read(lz4::Decoder::new(&packed[..])?, most),
        4 => read(zstd::stream::read::Decoder::new(&packed[..])?, most),
        codec => Err(super::invalid(&format!("unknown codec {codec}"))),
    }
}

fn too_large(most: usize) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("records unpack to more than {most} bytes"))
}

fn read(unpacking: impl Read, most: usize) -> io::Result<Bytes> {
    let mut unpacked = Vec::new();
    unpacking.take(most as u64 + 1).read_to_end(&mut unpacked)?;
    if unpacked.len() > most { Err(too_large(most)) } else { Ok(unpacked.into()) }
}

fn snappy(packed: &[u8], most: usize) -> io::Result<Bytes> {
    let mut unpacked = Vec::new();
    let Some(mut blocks) = packed.strip_prefix(SNAPPY_STREAM) else {
        snappy_block(packed, &mut unpacked, most)?;
        return Ok(unpacked.into());
    };
    while let Some((length, rest)) = blocks.split_first_chunk() {
        let length =
            usize::try_from(i32::from_be_bytes(*length)).map_err(|_| super::invalid("negative block length"))?;
        let (block, rest) = rest.split_at_checked(length).ok_or_else(|| super::invalid("block beyond its batch"))?;
        snappy_block(block, &mut unpacked, most)?;
        blocks = rest;
    }
    if blocks.is_empty() { Ok(unpacked.into()) } else { Err(super::invalid("half a block length")) }
}

fn snappy_block(block: &[u8], unpacked: &mut Vec<u8>, most: usize) -> io::Result<()> {
    let failed = |error: snap::Error| super::invalid(&format!("snappy: {error}"));
    // The block says its size; a block cannot hold more than this many times its own, whatever it says.
    const GROWTH_MAX: usize = 64;
    let size = snap::raw::decompress_len(block).map_err(failed)?;
    let from = unpacked.len();
    if from.saturating_add(size) > most {
        return Err(too_large(most));
    }
    if size > block.len().saturating_mul(GROWTH_MAX) {
        return Err(super::invalid("a snappy block that says more than it can hold"));
    }
    unpacked.resize(from + size, 0);
    snap::raw::Decoder::new().decompress(block, &mut unpacked[from..]).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// `plain` in every codec, snappy with and without the frame around its blocks.
    fn packed(plain: &[u8]) -> Vec<(i16, Bytes)> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(plain).unwrap();
        let block = snap::raw::Encoder::new().compress_vec(plain).unwrap();
        let framed = [&SNAPPY_STREAM[..], &(block.len() as i32).to_be_bytes(), &block].concat();
        let mut lz4 = lz4::EncoderBuilder::new().build(Vec::new()).unwrap();
        lz4.write_all(plain).unwrap();
        let (lz4, ended) = lz4.finish();
        ended.unwrap();
        let zstd = zstd::stream::encode_all(plain, 1).unwrap();
        vec![
            (0, plain.to_vec().into()),
            (1, gzip.finish().unwrap().into()),
            (2, block.into()),
            (2, framed.into()),
            (3, lz4.into()),
            (4, zstd.into()),
        ]
    }

    #[test]
    fn every_codec_is_unpacked_up_to_the_bound_and_not_beyond() {
        let plain = b"the same words, and the same words again ".repeat(500);
        for (codec, bytes) in packed(&plain) {
            assert_eq!(unpack(codec, &bytes, plain.len()).unwrap(), plain, "codec {codec}");
            if codec != 0 {
                let error = unpack(codec, &bytes, plain.len() - 1).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "codec {codec}: {error}");
            }
        }
    }

    #[test]
    fn a_bomb_takes_no_more_than_the_bound() {
        let bomb = vec![0_u8; 4 << 20];
        for (codec, bytes) in packed(&bomb).into_iter().filter(|(codec, _)| *codec != 0) {
            let error = unpack(codec, &bytes, 1 << 20).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "codec {codec}: {error}");
        }
        // A snappy block that only says that it is large.
        let lie = Bytes::from_static(&[0xff, 0xff, 0xff, 0x0f, 0x00]);
        assert!(unpack(2, &lie, UNPACKED_BYTES_MAX).is_err());
    }

    #[test]
    fn damage_never_panics_and_half_a_batch_is_never_a_whole_one() {
        let plain = b"some words that are worth packing ".repeat(50);
        for (codec, bytes) in packed(&plain).into_iter().filter(|(codec, _)| *codec != 0) {
            for at in 0..bytes.len() {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= 0x55;
                let _ = unpack(codec, &damaged.into(), 1 << 20);
            }
            // The decoder of lz4 takes a missing end for an end; the records in it then are fewer than their batch says.
            let half = unpack(codec, &bytes.slice(..bytes.len() / 2), 1 << 20);
            assert!(half.is_err() || half.is_ok_and(|half| half.len() < plain.len()), "codec {codec}, cut in half");
        }
        assert!(unpack(7, &Bytes::new(), 10).is_err());
    }
}
