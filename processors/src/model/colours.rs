//! The colour of words, learned from names of colours: a small network on hashed n-grams and, in the full tier, the colours
//! of the nearest names (`models/synesthesia`).
//!
//! Promises: sums run in a fixed order, so that results are equal bit for bit; the first [`CHARACTERS_MAX`] characters of a
//! text count, so that the work is bounded; neighbours are looked for only where a text is as short as a name. Leaves out:
//! what a feeling does to a colour (`stages/synesthesia`), and training.

use palette::{FromColor as _, Lab, Oklab};
use schemas::{Embedding, Provenance, Tier};

use super::card::Family;
use super::ngram::BUCKETS;
use super::tensors::Tensors;
use super::weigher::Places;
use super::{embed, encoder};
use crate::stage::Failure;
use crate::wide::{fetch, wide};

const FILE: &str = "colours.safetensors";
/// Components of an n-gram.
const WIDTH: usize = 32;
/// Units of the hidden layer.
const HIDDEN: usize = 64;
/// Lightness, a and b of CIELAB under D65.
const AXES: usize = 3;
/// What a place among names is made of: the encoder's vector and the static one.
const VECTOR: usize = encoder::DIMENSION + embed::DIMENSION;
/// Components of a place among names.
const PLACES: usize = 64;
/// Names whose colours count.
const NEAREST: usize = 32;
/// Characters of a text that are read: names of colours are short, and the beginning of a long text stands for it.
pub const CHARACTERS_MAX: usize = 200;
/// Words up to which a text may be a name: longer than six words is one in a thousand of the list.
pub const WORDS_MAX: usize = 6;

/// The model.
#[derive(Debug)]
pub struct Colours {
    network: Network,
    names: Names,
    /// The mean colour of names, in CIELAB.
    mean: [f32; AXES],
    model: String,
    version: String,
}

#[derive(Debug)]
struct Network {
    places: Places,
    /// How rare each n-gram is.
    idf: Vec<f32>,
    /// [`WIDTH`] steps an n-gram.
    rows: Vec<i8>,
    /// Value of one step of each component.
    scale: [f32; WIDTH],
    /// [`HIDDEN`] × [`WIDTH`].
    hidden: Vec<f32>,
    hidden_bias: [f32; HIDDEN],
    /// [`AXES`] × [`HIDDEN`].
    out: Vec<f32>,
    /// [`AXES`] × [`WIDTH`]: past the hidden layer.
    skip: Vec<f32>,
    bias: [f32; AXES],
}

/// The names of training: where they stand, and their colours.
#[derive(Debug)]
struct Names {
    /// [`PLACES`] × [`VECTOR`].
    space: Vec<f32>,
    middle: Vec<f32>,
    /// [`PLACES`] steps of 1/127 a name.
    places: Vec<i8>,
    /// [`AXES`] a name, in whole units of CIELAB.
    colours: Vec<i8>,
    /// How much faster than the cosine the weight of a name falls.
    sharpness: f32,
    /// What they count beside the network.
    share: f32,
}

impl Colours {
    /// Loads the family's file.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub fn open(family: &Family) -> Result<Colours, Failure> {
        let bytes = family.read(FILE)?;
        let tensors = Tensors::open(family, FILE, &bytes)?;
        let names = tensors.rows("places")?;
        if names < NEAREST {
            return Err(family.failure(FILE, format!("holds {names} names, expected at least {NEAREST}")));
        }
        Ok(Colours {
            network: Network::open(family, &tensors)?,
            names: Names {
                space: tensors.floats("space", &[PLACES, VECTOR])?,
                middle: tensors.floats("space_middle", &[VECTOR])?,
                places: tensors.bytes("places", &[names, PLACES])?,
                colours: tensors.bytes("colours", &[names, AXES])?,
                sharpness: tensors.floats("sharpness", &[1])?[0],
                share: tensors.floats("share", &[1])?[0],
            },
            mean: tensors.labels("mean")?,
            model: family.card().model.clone(),
            version: family.card().version.clone(),
        })
    }

    /// Which model it is.
    pub fn provenance(&self, tier: Tier) -> Provenance {
        Provenance { model: self.model.clone(), version: self.version.clone(), tier }
    }

    /// The mean colour of the names of training: lightness, a and b of CIELAB.
    pub fn mean(&self) -> [f32; AXES] {
        self.mean
    }

    /// The colour of the hashed n-grams of a text's [`beginning`]: lightness, a and b of CIELAB under D65, which a screen may not
    /// be able to show.
    pub fn by_ngrams(&self, grams: &[(u32, u32)]) -> [f32; AXES] {
        self.network.run(grams)
    }

    /// What the n-grams `said`, with the names that are nearest by the vectors of the encoder and of the static table, where the
    /// text is as short as a name.
    pub fn by_names(
        &self,
        text: &str,
        said: [f32; AXES],
        encoded: &Embedding,
        fixed: &[f32; embed::DIMENSION],
    ) -> [f32; AXES] {
        if text.split_whitespace().nth(WORDS_MAX).is_some() || encoded.values.len() != encoder::DIMENSION {
            return said;
        }
        let near = self.names.near(encoded, fixed);
        std::array::from_fn(|axis| said[axis] + self.names.share * (near[axis] - said[axis]))
    }
}

/// As much of a text as is read.
pub fn beginning(text: &str) -> &str {
    &text[..text.char_indices().nth(CHARACTERS_MAX).map_or(text.len(), |(end, _)| end)]
}

/// A colour of CIELAB in OKLab.
pub fn oklab([l, a, b]: [f32; AXES]) -> Oklab {
    Oklab::from_color(Lab::new(l, a, b))
}

impl Network {
    fn open(family: &Family, tensors: &Tensors<'_>) -> Result<Network, Failure> {
        let count = tensors.rows("bucket")?;
        let buckets = tensors.numbers("bucket", &[count], BUCKETS)?;
        if !buckets.is_sorted_by(|a, b| a < b) {
            return Err(family.failure(FILE, "its buckets are not in rising order"));
        }
        Ok(Network {
            places: Places::of(buckets.into_iter()),
            idf: tensors.floats("idf", &[count])?,
            rows: tensors.bytes("rows", &[count, WIDTH])?,
            scale: tensors.labels("scale")?,
            hidden: tensors.floats("hidden", &[HIDDEN, WIDTH])?,
            hidden_bias: tensors.labels("hidden_bias")?,
            out: tensors.floats("out", &[AXES, HIDDEN])?,
            skip: tensors.floats("skip", &[AXES, WIDTH])?,
            bias: tensors.labels("bias")?,
        })
    }

    fn run(&self, grams: &[(u32, u32)]) -> [f32; AXES] {
        let buckets = grams.iter().map(|(bucket, _)| *bucket).filter(|bucket| self.places.knows(*bucket));
        let rows: Vec<u32> = buckets.map(|bucket| self.places.row(bucket)).collect();
        // Rows are far apart: all of them come near before the first is read.
        rows.iter().for_each(|row| fetch(&self.rows[*row as usize * WIDTH]));
        let sums = summed(&self.rows, &self.idf, &rows);
        let square: f32 = rows.iter().map(|row| self.idf[*row as usize].powi(2)).sum();
        let length = if square > 0.0 { 1.0 / square.sqrt() } else { 0.0 };
        let input: [f32; WIDTH] = std::array::from_fn(|component| sums[component] * self.scale[component] * length);
        let mut units = self.hidden_bias;
        for (unit, weights) in units.iter_mut().zip(self.hidden.chunks_exact(WIDTH)) {
            *unit = (*unit + dot(weights, &input)).max(0.0);
        }
        std::array::from_fn(|axis| {
            let (out, skip) = (&self.out[axis * HIDDEN..][..HIDDEN], &self.skip[axis * WIDTH..][..WIDTH]);
            self.bias[axis] + dot(out, &units) + dot(skip, &input)
        })
    }
}

impl Names {
    /// The colours of the nearest names, weighted by their nearness.
    fn near(&self, encoded: &Embedding, fixed: &[f32; embed::DIMENSION]) -> [f32; AXES] {
        let mut vector: Vec<f32> = encoded.components().collect();
        scale_to_one(&mut vector);
        vector.extend(fixed);
        vector.iter_mut().zip(&self.middle).for_each(|(x, middle)| *x -= middle);
        let mut place: Vec<f32> = self.space.chunks_exact(VECTOR).map(|row| dot(row, &vector)).collect();
        scale_to_one(&mut place);
        let place = Embedding::quantise(&place);
        let alike = products(&self.places, &place.values);
        let mut order: Vec<u32> = (0..alike.len() as u32).collect();
        // By the place in the list where two are equally near, so that the same ones are always taken.
        let nearer = |a: &u32, b: &u32| alike[*b as usize].cmp(&alike[*a as usize]).then(a.cmp(b));
        order.select_nth_unstable_by(NEAREST - 1, nearer);
        order.truncate(NEAREST);
        order.sort_unstable();
        let (mut sums, mut all) = ([0f32; AXES], 0f32);
        for name in order {
            let cosine = alike[name as usize] as f32 * (place.scale / 127.0);
            let weight = ((cosine - 1.0) * self.sharpness).exp();
            let colour = &self.colours[name as usize * AXES..][..AXES];
            sums.iter_mut().zip(colour).for_each(|(sum, axis)| *sum += weight * f32::from(*axis));
            all += weight;
        }
        sums.map(|sum| sum / all)
    }
}

/// Makes a vector as long as one; a zero stays zero.
fn scale_to_one(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-9);
    vector.iter_mut().for_each(|x| *x /= length);
}

/// Products that are summed up beside each other.
const LANES: usize = 8;

/// The sum of products, in lanes.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum()
}

wide! {
    /// The sum of rows, each by its weight.
    fn summed(steps: &[i8], idf: &[f32], rows: &[u32]) -> [f32; WIDTH] {
        let mut sums = [0f32; WIDTH];
        for row in rows {
            let weight = idf[*row as usize];
            let steps = &steps[*row as usize * WIDTH..][..WIDTH];
            let mut component = 0;
            while component < WIDTH {
                sums[component] += weight * f32::from(steps[component]);
                component += 1;
            }
        }
        sums
    }

    /// The product of a place, in steps, with that of each name.
    fn products(places: &[i8], place: &[u8]) -> Vec<i32> {
        let place = &place[..PLACES];
        let count = places.len() / PLACES;
        let mut products = vec![0; count];
        let mut name = 0;
        while name < count {
            let steps = &places[name * PLACES..][..PLACES];
            let (mut sum, mut i) = (0, 0);
            while i < PLACES {
                sum += i32::from(steps[i]) * i32::from(place[i] as i8);
                i += 1;
            }
            products[name] = sum;
            name += 1;
        }
        products
    }
}
