//! The units in which a batch is inferred, so that a shutdown does not wait for the whole of it.

/// Bytes of text in a unit, which the full tier infers in about two seconds on two slow cores. The turns of a unit share
/// the cores; their values do not depend on their neighbours.
const UNIT_BYTES_MAX: usize = 32 * 1024;

/// Cuts turns, whose texts have so many bytes, into units of at most [`UNIT_BYTES_MAX`], or of one turn that is longer.
pub(super) fn units<T>(turns: &mut [T], bytes_of: impl Fn(&T) -> usize) -> impl Iterator<Item = &mut [T]> {
    let mut bytes = turns.first().map_or(0, &bytes_of);
    turns.chunk_by_mut(move |_, next| {
        bytes += bytes_of(next);
        let fits = bytes <= UNIT_BYTES_MAX;
        if !fits {
            bytes = bytes_of(next);
        }
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_full_or_holds_one_turn() {
        const HALF: usize = UNIT_BYTES_MAX / 2;
        let cut = |bytes: &[usize]| -> Vec<usize> {
            units(&mut bytes.to_vec(), |bytes| *bytes).map(|unit| unit.len()).collect()
        };
        assert_eq!(cut(&[]), Vec::<usize>::new());
        assert_eq!(cut(&[HALF, HALF, 1, HALF, HALF]), [2, 2, 1]);
        assert_eq!(cut(&[3 * HALF, 3 * HALF, 1]), [1, 1, 1]);
        assert_eq!(cut(&[1; 512]), [512]);
    }
}
