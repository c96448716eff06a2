//! Task `color`: the colour that a name stands for.
//!
//! CIEDE2000 (Luo, Cui and Rigg 2001; Sharma, Wu and Dalal 2005) under D65 between the colour that the stage gives the name, as
//! it travels, and the true one: `median_de00` and `p90_de00`. The baseline says the mean colour of the names of training to
//! every name. A name that the stage skips gets the baseline's colour.

use std::sync::Arc;
use std::time::Instant;

use palette::color_difference::Ciede2000 as _;
use palette::{FromColor as _, Lab, Srgb};
use schemas::Turn;
use serde::Deserialize;

use super::{Baseline, Case, EvalError, Report, Task, bootstrap, lines, turn};
use crate::stage::Stage;
use crate::stages::{Encode, Synesthesias, srgb};

const FORMAT: &str = "a line is a JSON object with `name` and `hex`, such as \"#1a2b3c\"";
/// Turns that are inferred together, so that memory is bounded.
const BATCH_TURNS: usize = 256;
const NAMES: [&str; 2] = ["median_de00", "p90_de00"];
const SHARES: [f64; NAMES.len()] = [0.5, 0.9];

/// The task.
pub(super) struct ColorTask;

#[derive(Deserialize)]
struct Line {
    name: String,
    hex: String,
}

impl Task for ColorTask {
    fn name(&self) -> &'static str {
        "color"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[(NAMES[0], "median CIEDE2000      ↓"), (NAMES[1], "  of one in ten above ↓")]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let rows = lines(case.data, FORMAT, |line: Line| {
            let colour = srgb(&line.hex).ok_or_else(|| format!("`{}` is no colour", line.hex))?;
            Ok((line.name, lab(colour)))
        })?;
        let (encode, stage) = (Encode::new(Arc::clone(case.models)), Synesthesias::new(Arc::clone(case.models)));
        let [l, a, b] = case.models.colours().mean();
        let mean = lab(Srgb::from_color(Lab::new(l, a, b)));
        let start = Instant::now();
        let mut said: Vec<Lab> = Vec::with_capacity(rows.len());
        for batch in rows.chunks(BATCH_TURNS) {
            let mut turns: Vec<Turn> = batch.iter().map(|(name, _)| turn(name, case.tier)).collect();
            encode.infer(&mut turns)?;
            stage.infer(&mut turns)?;
            let colour = |turn: &Turn| turn.synesthesia.as_ref().and_then(|part| srgb(&part.colour)).map_or(mean, lab);
            said.extend(turns.iter().map(colour));
        }
        let time = start.elapsed();
        let metrics = |said: &[Lab]| {
            let away: Vec<f64> =
                said.iter().zip(&rows).map(|(said, (_, truth))| f64::from(said.difference(*truth))).collect();
            let mut order: Vec<usize> = (0..away.len()).collect();
            order.sort_by(|a, b| away[*a].total_cmp(&away[*b]));
            bootstrap::figures(&NAMES, away.len(), |times| SHARES.map(|share| quantile(&away, &order, times, share)))
        };
        let baseline =
            Baseline { name: "the mean colour of names".to_owned(), metrics: metrics(&vec![mean; rows.len()]) };
        let provenance = case.models.colours().provenance(case.tier);
        Ok(case.report(self, rows.len(), &provenance, metrics(&said), baseline, time))
    }
}

fn lab(colour: Srgb) -> Lab {
    Lab::from_color(colour)
}

/// The quantile of values, each as often as it counts, with linear interpolation between neighbours. `order` sorts them.
fn quantile(values: &[f64], order: &[usize], times: &[u32], share: f64) -> f64 {
    let n: u32 = times.iter().sum();
    let place = share * f64::from(n.saturating_sub(1));
    let (mut passed, mut below) = (0.0, None);
    for index in order {
        passed += f64::from(times[*index]);
        if below.is_none() && passed > place.floor() {
            below = Some(values[*index]);
        }
        if passed > place.ceil() {
            let below = below.unwrap_or(values[*index]);
            return below + (values[*index] - below) * place.fract();
        }
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_repeated_values() {
        let (values, order) = ([5.0, 1.0, 3.0], [1, 2, 0]);
        let of = |times: [u32; 3], share| quantile(&values, &order, &times, share);
        assert_eq!([of([1; 3], 0.0), of([1; 3], 0.5), of([1; 3], 1.0)], [1.0, 3.0, 5.0]);
        assert!((of([1; 3], 0.9) - 4.6).abs() < 1e-12, "numpy interpolates so");
        assert_eq!(of([0, 2, 2], 0.5), 2.0);
        assert_eq!(of([3, 0, 0], 0.9), 5.0);
    }

    #[test]
    fn differences_are_those_that_sharma_published() {
        // Pairs 1, 7, 14, 20 and 25 of Sharma, Wu and Dalal (2005).
        for (a, b, expected) in [
            ([50.0, 2.6772, -79.7751], [50.0, 0.0, -82.7485], 2.0425),
            ([50.0, 0.0, 0.0], [50.0, -1.0, 2.0], 2.3669),
            ([50.0, -0.001, 2.49], [50.0, 0.0011, -2.49], 4.7461),
            ([50.0, 2.5, 0.0], [58.0, 24.0, 15.0], 19.4535),
            ([60.2574, -34.0099, 36.2677], [60.4626, -34.1751, 39.4387], 1.2644),
        ] {
            let of = |[l, a, b]: [f64; 3]| Lab::<palette::white_point::D65, f64>::new(l, a, b);
            let found = of(a).difference(of(b));
            assert!((found - expected).abs() < 1e-4, "{found} for {expected}: {a:?} and {b:?}");
        }
    }
}
