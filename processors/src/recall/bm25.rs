//! BM25 over a few thousand short texts, in memory (Robertson and Zaragoza 2009), scaled so that the best text has 1.

use std::collections::BTreeMap;

/// An inverted index.
#[derive(Debug)]
pub(super) struct Bm25 {
    /// Of each term: texts, and what it scores in each.
    postings: Vec<Vec<(u32, f32)>>,
    texts: usize,
}

impl Bm25 {
    /// An index over `texts`, each with its terms at their weights. How rare a term is, `own` says: the terms of each text
    /// alone. `terms` is the size of the vocabulary.
    pub(super) fn new(
        terms: usize,
        (saturation, length): (f32, f32),
        texts: impl Iterator<Item = BTreeMap<u32, f32>>,
        own: &[Vec<u32>],
    ) -> Bm25 {
        let texts: Vec<BTreeMap<u32, f32>> = texts.collect();
        let mut frequency = vec![0u32; terms];
        for ids in own {
            let mut ids = ids.clone();
            ids.sort_unstable();
            ids.dedup();
            ids.iter().for_each(|id| frequency[*id as usize] += 1);
        }
        let lengths: Vec<f32> = texts.iter().map(|terms| terms.values().sum()).collect();
        let mean = (lengths.iter().sum::<f32>() / lengths.len().max(1) as f32).max(f32::MIN_POSITIVE);
        let count = texts.len() as f32;
        let rarity = |id: u32| {
            let n = frequency[id as usize] as f32;
            (1.0 + (count - n + 0.5) / (n + 0.5)).ln()
        };
        let mut postings: Vec<Vec<(u32, f32)>> = vec![Vec::new(); terms];
        for (place, (terms, own_length)) in texts.iter().zip(&lengths).enumerate() {
            let damp = saturation * (1.0 - length + length * own_length / mean);
            for (id, weight) in terms {
                postings[*id as usize]
                    .push((place as u32, rarity(*id) * weight * (saturation + 1.0) / (weight + damp)));
            }
        }
        Bm25 { postings, texts: texts.len() }
    }

    /// The score of each text for distinct terms, from 0 to 1 for the best.
    pub(super) fn scores(&self, terms: &[u32]) -> Vec<f32> {
        let mut scores = vec![0f32; self.texts];
        for (place, score) in terms.iter().flat_map(|term| &self.postings[*term as usize]) {
            scores[*place as usize] += score;
        }
        let best = scores.iter().copied().fold(0f32, f32::max);
        if best > 0.0 {
            scores.iter_mut().for_each(|score| *score /= best);
        }
        scores
    }
}
