//! The density matrix of what was said lately, and its measures.
//!
//! A density matrix is a weighted sum of projectors, ρ = Σ wᵢ |vᵢ⟩⟨vᵢ| with Σ wᵢ = 1 and vectors of length one (von Neumann,
//! *Mathematische Grundlagen der Quantenmechanik*, 1932; Nielsen and Chuang, *Quantum Computation and Quantum Information*,
//! section 2.4); of texts, van Rijsbergen, *The Geometry of Information Retrieval*, 2004, and Sordoni, Nie and Bengio,
//! "Modeling term dependencies with quantum language models for IR", SIGIR 2013. Its eigenvalues other than 0 are those of
//! the matrix √(wᵢwⱼ)⟨vᵢ|vⱼ⟩, which has a row a turn: so it is never written out, and its rank is at most the number of turns.
//!
//! Promises: pure functions; the trace is 1. Leaves out: which turns, and what they weigh.

use schemas::Density;

/// Sweeps of the eigenvalue iteration: it converges quadratically, five or six do for ten rows.
const SWEEPS_MAX: usize = 32;

/// √(wᵢwⱼ)⟨vᵢ|vⱼ⟩ with weights that add up to 1, and ones on the diagonal of the products.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: Vec<Vec<f64>>,
}

impl Matrix {
    /// From weights, positive, and the cosine of the turns `i` and `j`, `i > j`. `None` of no turns.
    pub fn new(weights: &[f64], cosine: impl Fn(usize, usize) -> f64) -> Option<Matrix> {
        let total: f64 = weights.iter().sum();
        if total <= 0.0 {
            return None;
        }
        let mut rows = vec![vec![0.0; weights.len()]; weights.len()];
        for i in 0..weights.len() {
            rows[i][i] = weights[i] / total;
            for j in 0..i {
                let value = (weights[i] * weights[j]).sqrt() / total * cosine(i, j).clamp(-1.0, 1.0);
                (rows[i][j], rows[j][i]) = (value, value);
            }
        }
        Some(Matrix { rows })
    }

    /// Σ λ: always 1.
    pub fn trace(&self) -> f64 {
        self.rows.iter().enumerate().map(|(i, row)| row[i]).sum()
    }

    /// tr ρ² = Σ λ²: 1 of a pure state, 1/d of the most mixed one in d dimensions (Nielsen and Chuang, exercise 2.71).
    pub fn purity(&self) -> f64 {
        self.rows.iter().flatten().map(|x| x * x).sum()
    }

    /// The eigenvalues, by Jacobi's rotations in a fixed order, those under 0 by rounding as 0.
    pub fn eigenvalues(&self) -> Vec<f64> {
        let mut a = self.rows.clone();
        let n = a.len();
        for _ in 0..SWEEPS_MAX {
            let off: f64 = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j] * a[i][j]).sum();
            if off < 1e-24 {
                break;
            }
            for p in 0..n {
                for q in p + 1..n {
                    rotate(&mut a, p, q);
                }
            }
        }
        (0..n).map(|i| a[i][i].max(0.0)).collect()
    }

    /// S(ρ) = −tr ρ ln ρ = −Σ λ ln λ, in nats, with 0 ln 0 = 0 (von Neumann 1932; Nielsen and Chuang, section 11.3).
    pub fn entropy(&self) -> f64 {
        let sum: f64 = self.eigenvalues().into_iter().filter(|x| *x > 0.0).map(|x| -x * x.ln()).sum();
        sum.max(0.0)
    }

    /// All measures. The effective dimension is exp S(ρ), the effective rank of Roy and Vetterli, "The effective rank: a
    /// measure of effective dimensionality", EUSIPCO 2007, on the spectrum of ρ.
    pub fn measures(&self) -> Density {
        let entropy = self.entropy();
        Density {
            purity: self.purity() as f32,
            entropy: entropy as f32,
            effective_dimension: entropy.exp() as f32,
            turns: self.rows.len() as i32,
        }
    }
}

/// Makes the element at `p`, `q` zero (Golub and Van Loan, *Matrix Computations*, section 8.5).
fn rotate(a: &mut [Vec<f64>], p: usize, q: usize) {
    if a[p][q] == 0.0 {
        return;
    }
    let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for row in a.iter_mut() {
        let (x, y) = (row[p], row[q]);
        (row[p], row[q]) = (c * x - s * y, s * x + c * y);
    }
    let (upper, lower) = a.split_at_mut(q);
    for (x, y) in upper[p].iter_mut().zip(&mut lower[0]) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn unit(random: &mut StdRng, dimension: usize) -> Vec<f64> {
        let vector: Vec<f64> = (0..dimension).map(|_| random.random_range(-1.0..1.0)).collect();
        let length = dot(&vector, &vector).sqrt();
        vector.iter().map(|x| x / length).collect()
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    fn matrix(weights: &[f64], vectors: &[Vec<f64>]) -> Matrix {
        Matrix::new(weights, |i, j| dot(&vectors[i], &vectors[j])).unwrap()
    }

    /// ρ written out, the long way.
    fn written(weights: &[f64], vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (total, d) = (weights.iter().sum::<f64>(), vectors[0].len());
        let at = |r: usize, c: usize| weights.iter().zip(vectors).map(|(w, v)| w / total * v[r] * v[c]).sum::<f64>();
        (0..d).map(|r| (0..d).map(|c| at(r, c)).collect()).collect()
    }

    #[test]
    fn laws_hold_of_any_turns() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..300 {
            let (turns, d) = (random.random_range(1..9), random.random_range(1..12));
            let vectors: Vec<_> = (0..turns).map(|_| unit(&mut random, d)).collect();
            let weights: Vec<f64> = (0..turns).map(|_| random.random_range(0.01..1.0)).collect();
            let matrix = matrix(&weights, &vectors);
            let rank = turns.min(d) as f64;
            let (purity, entropy, values) = (matrix.purity(), matrix.entropy(), matrix.eigenvalues());
            assert!((matrix.trace() - 1.0).abs() < 1e-12);
            assert!((values.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{values:?}");
            assert!((values.iter().map(|x| x * x).sum::<f64>() - purity).abs() < 1e-9);
            assert!((1.0 / rank - 1e-12..=1.0 + 1e-12).contains(&purity), "{purity}");
            assert!((0.0..=rank.ln() + 1e-9).contains(&entropy), "{entropy} of rank {rank}");
            // Rényi entropies fall with their order: −ln tr ρ² is at most S(ρ), so 1/purity is at most exp(S).
            assert!(1.0 / purity <= entropy.exp() + 1e-9);
            // The matrix that is never written out has the same purity.
            let long = written(&weights, &vectors);
            let purity_long: f64 = long.iter().flatten().map(|x| x * x).sum();
            assert!((purity_long - purity).abs() < 1e-9);
        }
    }

    #[test]
    fn one_direction_is_pure_and_directions_at_right_angles_are_mixed() {
        let same = matrix(&[0.3, 0.5, 0.2], &vec![vec![0.6, 0.8]; 3]);
        let measures = same.measures();
        assert!((measures.purity - 1.0).abs() < 1e-6 && measures.entropy.abs() < 1e-6);
        assert!((measures.effective_dimension - 1.0).abs() < 1e-6);
        let apart: Vec<Vec<f64>> = (0..4).map(|i| (0..4).map(|j| f64::from(u8::from(i == j))).collect()).collect();
        let mixed = matrix(&[1.0; 4], &apart).measures();
        assert!((mixed.purity - 0.25).abs() < 1e-6 && (mixed.entropy - 4f32.ln()).abs() < 1e-6);
        assert!((mixed.effective_dimension - 4.0).abs() < 1e-5);
        // What is said twice in the other direction is the same direction: a projector has no sign.
        let signs = matrix(&[1.0, 1.0], &[vec![0.6, 0.8], vec![-0.6, -0.8]]);
        assert!(signs.entropy() < 1e-9);
    }

    #[test]
    fn of_equal_weights_the_order_does_not_matter() {
        let mut random = StdRng::seed_from_u64(2);
        for _ in 0..50 {
            let mut vectors: Vec<_> = (0..6).map(|_| unit(&mut random, 5)).collect();
            let one = matrix(&[1.0; 6], &vectors);
            vectors.rotate_left(2);
            vectors.swap(0, 3);
            let other = matrix(&[1.0; 6], &vectors);
            assert!((one.purity() - other.purity()).abs() < 1e-12);
            assert!((one.entropy() - other.entropy()).abs() < 1e-9);
        }
    }

    #[test]
    fn nothing_said_has_no_matrix_and_two_turns_have_the_eigenvalues_of_the_book() {
        assert_eq!(Matrix::new(&[], |_, _| 0.0), None);
        // Of two states with equal weights: (1 ± |⟨a|b⟩|) / 2.
        let mut values = matrix(&[1.0, 1.0], &[vec![1.0, 0.0], vec![0.6, 0.8]]).eigenvalues();
        values.sort_by(f64::total_cmp);
        assert!((values[0] - 0.2).abs() < 1e-12 && (values[1] - 0.8).abs() < 1e-12, "{values:?}");
    }

    #[test]
    fn mixing_never_lowers_the_entropy() {
        // Concavity: S(½ρ + ½σ) is at least ½S(ρ) + ½S(σ).
        let mut random = StdRng::seed_from_u64(3);
        for _ in 0..100 {
            let vectors: Vec<_> = (0..6).map(|_| unit(&mut random, 4)).collect();
            let both = matrix(&[1.0; 6], &vectors).entropy();
            let parts = matrix(&[1.0; 3], &vectors[..3]).entropy() + matrix(&[1.0; 3], &vectors[3..]).entropy();
            assert!(both >= parts / 2.0 - 1e-9);
        }
    }
}
