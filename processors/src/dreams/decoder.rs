//! The shipped decoder: one piece a call through ONNX Runtime, with a key-value cache.
//!
//! Promises: reading a piece costs the same whatever came before but for the cache's copy, which the bounds of a dream
//! keep small. Leaves out: what is drawn from the logits (the sampler).

use ort::session::Session;
use ort::value::TensorRef;
use serde::Deserialize;

use super::pieces::PAD;
use super::sampler::Decoder;
use crate::stage::Failure;

/// Sizes of the graph, which its card gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Sizes {
    /// Layers.
    pub layers: usize,
    /// Heads of a layer.
    pub heads: usize,
    /// Components of a head.
    pub wide: usize,
    /// Buckets of pairs and of triples, as a power of two.
    pub bits: u32,
    /// Positions.
    pub positions: usize,
}

/// A session and the sizes of its graph.
#[derive(Debug)]
pub struct Cached<'a> {
    /// The session, lent for the time of a dream.
    pub session: &'a mut Session,
    /// The graph's sizes.
    pub sizes: Sizes,
}

/// What was read: keys and values of all layers, and the last two pieces.
#[derive(Debug, Clone)]
pub struct State {
    keys: Vec<f32>,
    values: Vec<f32>,
    position: usize,
    before: [u32; 2],
}

/// Buckets of a piece with its one and its two predecessors; models/train/dream_net.py has the same.
fn buckets(before: [u32; 2], piece: u32, bits: u32) -> [i64; 2] {
    let pair = u64::from(piece) + 4099 * u64::from(before[1]);
    let triple = pair + 4099 * 4099 * u64::from(before[0]);
    let mixed = |h: u64, k: u64| (h.wrapping_mul(k) >> 16) & ((1 << bits) - 1);
    [mixed(pair, 2_654_435_761).cast_signed(), mixed(triple, 2_246_822_519).cast_signed()]
}

impl Decoder for Cached<'_> {
    type State = State;

    fn begin(&self) -> State {
        State { keys: Vec::new(), values: Vec::new(), position: 0, before: [PAD; 2] }
    }

    fn read(&mut self, state: &mut State, piece: u32) -> Result<Vec<f32>, Failure> {
        let Sizes { layers, heads, wide, bits, positions } = self.sizes;
        if state.position >= positions {
            return Err(failure(&format!("a dream of more than {positions} pieces")));
        }
        let [pair, triple] = buckets(state.before, piece, bits);
        let (piece_in, pair, triple, position) = ([i64::from(piece)], [pair], [triple], [state.position as i64]);
        let number = |value| TensorRef::from_array_view(([1usize], value));
        let cache = |values| TensorRef::from_array_view(([layers, heads, state.position, wide], values));
        let inputs = ort::inputs![
            "piece" => number(&piece_in[..]).map_err(|e| failure(&e))?,
            "pair" => number(&pair[..]).map_err(|e| failure(&e))?,
            "triple" => number(&triple[..]).map_err(|e| failure(&e))?,
            "position" => number(&position[..]).map_err(|e| failure(&e))?,
            "keys" => cache(state.keys.as_slice()).map_err(|e| failure(&e))?,
            "values" => cache(state.values.as_slice()).map_err(|e| failure(&e))?,
        ];
        let outputs = self.session.run(inputs).map_err(|e| failure(&e))?;
        let of = |name: &str| {
            let output = outputs.get(name).ok_or_else(|| failure(&format!("the graph has no output named {name}")))?;
            let (_, values) = output.try_extract_tensor::<f32>().map_err(|e| failure(&e))?;
            Ok::<Vec<f32>, Failure>(values.to_vec())
        };
        let (logits, keys, values) = (of("logits")?, of("keys_out")?, of("values_out")?);
        if !logits.iter().all(|z| z.is_finite()) || keys.len() != layers * heads * (state.position + 1) * wide {
            return Err(failure(&"the graph returned no finite logits, or a cache of another size"));
        }
        drop(outputs);
        *state = State { keys, values, position: state.position + 1, before: [state.before[1], piece] };
        Ok(logits)
    }
}

fn failure(problem: &dyn std::fmt::Display) -> Failure {
    Failure::Run { stage: "dreams", problem: problem.to_string() }
}
