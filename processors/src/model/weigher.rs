//! A linear model on the hashed n-grams of a text: TF-IDF weights of length one, times int8 weights (`models/emotion/FORMAT.md`).
//!
//! Promises: sums run in a fixed order, so that results are equal bit for bit. Leaves out: what the outputs mean.

use super::ngram::BUCKETS;
use super::tensors::Tensors;
use crate::stage::Failure;
use crate::wide::{fetch, wide};

/// Counts whose logarithm is at hand.
const COUNTED: usize = 64;

/// The model, with so many outputs.
#[derive(Debug)]
pub(super) struct Weigher<const OUTPUTS: usize> {
    table: Table<OUTPUTS>,
    /// 1 + ln(count), by count.
    frequencies: [f32; COUNTED],
    weight_scale: [f32; OUTPUTS],
    bias: [f32; OUTPUTS],
}

impl<const OUTPUTS: usize> Weigher<OUTPUTS> {
    /// From the tensors `idf`, `weight`, `weight_scale` and `bias`, each with this before its name.
    pub(super) fn open(tensors: &Tensors<'_>, before: &str) -> Result<Weigher<OUTPUTS>, Failure> {
        let name = |tensor: &str| format!("{before}{tensor}");
        let idf = tensors.floats(&name("idf"), &[BUCKETS])?;
        Ok(Weigher {
            table: Table::new(&idf, &tensors.bytes(&name("weight"), &[BUCKETS, OUTPUTS])?),
            frequencies: std::array::from_fn(frequency),
            weight_scale: tensors.labels(&name("weight_scale"))?,
            bias: tensors.labels(&name("bias"))?,
        })
    }

    /// What the model says of a text of these buckets, in rising order, each with how often it was met.
    pub(super) fn sums(&self, buckets: &[(u32, u32)]) -> [f32; OUTPUTS] {
        let mut rows: Vec<(u32, u32)> = Vec::with_capacity(buckets.len());
        for (bucket, count) in buckets {
            if self.table.places.knows(*bucket) {
                let row = self.table.places.row(*bucket);
                // Rows are far apart: they come near while the others are looked up.
                fetch(&self.table.rows[row as usize]);
                rows.push((row, *count));
            }
        }
        let (sum, square) = weigh(&self.table.rows, &self.frequencies, &rows);
        let scale = if square > 0.0 { 1.0 / square.sqrt() } else { 0.0 };
        std::array::from_fn(|output| self.bias[output] + sum[output] * scale * self.weight_scale[output])
    }
}

/// What the n-grams weigh: only the buckets that training saw often enough, each in half a cache line.
#[derive(Debug)]
struct Table<const OUTPUTS: usize> {
    places: Places,
    rows: Vec<Row<OUTPUTS>>,
}

/// Which buckets have a row, and which one: rows are in the order of the buckets. A bit a bucket lies near, where a map of
/// them would not, and most buckets have no row.
#[derive(Debug)]
pub(super) struct Places {
    /// A bit a bucket: whether it has a row.
    known: Vec<u64>,
    /// Rows before each word of `known`.
    before: Vec<u32>,
}

impl Places {
    /// The buckets that have a row.
    pub(super) fn of(buckets: impl Iterator<Item = u32>) -> Places {
        let mut known = vec![0u64; BUCKETS / 64];
        buckets.for_each(|bucket| known[bucket as usize / 64] |= 1 << (bucket % 64));
        let mut rows = 0;
        let before = known.iter().map(|word| {
            rows += word.count_ones();
            rows - word.count_ones()
        });
        let before = before.collect();
        Places { known, before }
    }

    pub(super) fn knows(&self, bucket: u32) -> bool {
        self.known[bucket as usize / 64] >> (bucket % 64) & 1 == 1
    }

    /// The row of a bucket that has one.
    pub(super) fn row(&self, bucket: u32) -> u32 {
        let word = bucket as usize / 64;
        let lower = self.known[word] & ((1 << (bucket % 64)) - 1);
        self.before[word] + lower.count_ones()
    }
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
struct Row<const OUTPUTS: usize> {
    idf: f32,
    /// Steps of all outputs.
    weight: [i8; OUTPUTS],
}

impl<const OUTPUTS: usize> Table<OUTPUTS> {
    fn new(idf: &[f32], weight: &[i8]) -> Table<OUTPUTS> {
        let known = (0..).zip(idf).filter(|(_, idf)| **idf != 0.0);
        let row = |(idf, weight): (&f32, &[i8])| Row {
            idf: *idf,
            weight: weight.try_into().expect("a chunk has a weight an output"),
        };
        let rows = idf.iter().zip(weight.chunks_exact(OUTPUTS)).filter(|(idf, _)| **idf != 0.0).map(row);
        Table { places: Places::of(known.map(|(bucket, _)| bucket)), rows: rows.collect() }
    }
}

/// What a count weighs.
pub(super) fn frequency(count: usize) -> f32 {
    1.0 + (count as f32).ln()
}

wide! {
    /// The sum of rows by their weight, an output, and the square of the weights' length. `met` is in order, each with how
    /// often it was met.
    fn weigh<const OUTPUTS: usize>(rows: &[Row<OUTPUTS>], frequencies: &[f32; COUNTED], met: &[(u32, u32)]) -> ([f32; OUTPUTS], f32) {
        let (mut sum, mut square) = ([0f32; OUTPUTS], 0f32);
        let mut place = 0;
        while place < met.len() {
            let (row, count) = met[place];
            let (row, count) = (&rows[row as usize], count as usize);
            place += 1;
            let x = row.idf * if count < COUNTED { frequencies[count] } else { frequency(count) };
            square += x * x;
            let mut output = 0;
            while output < OUTPUTS {
                sum[output] += x * f32::from(row.weight[output]);
                output += 1;
            }
        }
        (sum, square)
    }
}
