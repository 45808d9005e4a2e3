//! Rows of the design matrix that one rank holds, and the sums over them.
//!
//! A row keeps its label in its sign, z = (1 − 2y) x, so that both classes have one log-likelihood,
//! −log(1 + exp(z·w)), and one derivative. A moved origin w0 is kept as a last column with the logits z·w0: the
//! parameters are then w − w0, whose digits a posterior far from zero would otherwise lose in f32.

use tch::{Device, Kind, Tensor};

use super::expansion::{Asked, Expansion, halves};

/// Numbers of a chunk of rows and of its logits, on a CPU. Measured with one thread, 465,000 rows of 55 features and 256
/// vectors: a score takes 0.27 s with 2¹⁶ to 2²⁰, and 0.40 s with 2²², which the second-level cache no longer holds.
/// Threads meet after every operation, so of the good sizes a large one is best.
const CPU_CHUNK: i64 = 1 << 19;
/// The same on a GPU, where it only bounds the memory: 0.5 GB in f32 for the two buffers of a product.
const CUDA_CHUNK: i64 = 1 << 26;

/// Rows z `[N, d]`, or `[N, d + 1]` where the origin is not zero.
#[derive(Debug)]
pub(super) struct Rows {
    z: Tensor,
    features: i64,
}

impl Rows {
    /// From a design matrix `x` `[N, d]` and labels `y` `[N]`, 0 or 1, in the kind and on the device of `x`.
    pub(super) fn new(x: &Tensor, y: &Tensor) -> Self {
        let sign = (y.to_kind(x.kind()).to_device(x.device()) * -2.0 + 1.0).unsqueeze(1);
        Rows { z: x * sign, features: x.size()[1] }
    }

    pub(super) fn count(&self) -> i64 {
        self.z.size()[0]
    }

    /// The rows `indices` `[n]`, in their order.
    pub(super) fn select(&self, indices: &Tensor) -> Self {
        Rows { z: self.z.index_select(0, indices), features: self.features }
    }

    /// A copy of `length` rows from `start` on. Its address does not depend on what lies around it: a product of
    /// matrices may round by the alignment of its terms.
    pub(super) fn range(&self, start: i64, length: i64) -> Self {
        Rows { z: self.z.narrow(0, start, length).copy(), features: self.features }
    }

    /// What the log-likelihood of these rows answers to queries; see [`Asked`].
    pub(super) fn answer(&self, asked: Asked, queries: &Tensor) -> Tensor {
        match asked {
            Asked::Value => self.log_likelihood(queries).unsqueeze(1),
            Asked::Score => self.score(queries),
            Asked::ValueAndScore => self.log_likelihood_and_score(queries),
            Asked::Product => {
                let (p, v) = halves(queries);
                self.product(&p, &v)
            }
        }
    }

    /// The same rows with parameters that count from `origin` `[d]` (f64), measured from zero.
    pub(super) fn with_origin(&self, origin: &Tensor) -> Self {
        let column = origin.unsqueeze(1);
        let z = self.plain();
        let parts: Vec<Tensor> = self
            .chunks(1)
            .map(|range| {
                let z = z.narrow(0, range.0, range.1);
                let logits = z.to_kind(Kind::Double).matmul(&column).to_kind(z.kind());
                Tensor::cat(&[z, logits], 1)
            })
            .collect();
        let z = if parts.is_empty() {
            Tensor::zeros([0, self.features + 1], (z.kind(), z.device()))
        } else {
            Tensor::cat(&parts, 0)
        };
        Rows { z, features: self.features }
    }

    /// z·C z of each row `[N]` in f64, for C = `factor` `factor`ᵀ `[d, d]`: the variance of its logit if C is the
    /// covariance of the weights.
    pub(super) fn variances(&self, factor: &Tensor) -> Tensor {
        let z = self.plain();
        let total = Tensor::zeros([self.count()], (Kind::Double, z.device()));
        for (start, length) in self.chunks(self.features) {
            let scaled = z.narrow(0, start, length).to_kind(Kind::Double).matmul(factor);
            total.narrow(0, start, length).copy_(&scaled.square().sum_dim_intlist(1i64, false, None));
        }
        total
    }

    /// Σ −log(1 + exp(z·p)) for each of the parameters `p` `[B, d]`, in f64 `[B]`; autograd follows it.
    fn log_likelihood(&self, p: &Tensor) -> Tensor {
        let against = -self.columns(p);
        let mut total = self.zeros(&[p.size()[0]]);
        for (start, length) in self.chunks(p.size()[0]) {
            total += log_likelihoods(&self.z.narrow(0, start, length).matmul(&against));
        }
        total
    }

    /// Gradient of the [`log_likelihood`](Self::log_likelihood), −Σ sigmoid(z·p) z, in f64 `[B, d]`.
    fn score(&self, p: &Tensor) -> Tensor {
        let columns = self.columns(p);
        let mut total = self.zeros(&p.size());
        for (start, length) in self.chunks(p.size()[0]) {
            let z = self.z.narrow(0, start, length);
            total -= self.weighted(&z.matmul(&columns).sigmoid_(), &z);
        }
        total
    }

    /// Log-likelihood and score of one pass, `[B, 1 + d]`.
    fn log_likelihood_and_score(&self, p: &Tensor) -> Tensor {
        let columns = self.columns(p);
        let (mut value, mut score) = (self.zeros(&[p.size()[0]]), self.zeros(&p.size()));
        for (start, length) in self.chunks(p.size()[0]) {
            let z = self.z.narrow(0, start, length);
            let mut logits = z.matmul(&columns);
            value += log_likelihoods(&logits.neg());
            score -= self.weighted(&logits.sigmoid_(), &z);
        }
        Tensor::cat(&[value.unsqueeze(1), score], 1)
    }

    /// Products of the Hessian of the log-likelihood at `p` with `v`, both `[B, d]`:
    /// −Σ sigmoid'(z·p) (z·v) z, in f64.
    fn product(&self, p: &Tensor, v: &Tensor) -> Tensor {
        let (columns, along) = (self.columns(p), v.to_kind(self.z.kind()).transpose(0, 1));
        let mut total = self.zeros(&p.size());
        for (start, length) in self.chunks(p.size()[0]) {
            let z = self.z.narrow(0, start, length);
            let sigmoid = z.matmul(&columns).sigmoid_();
            let slopes = z.narrow(1, 0, self.features).matmul(&along);
            // libtorch's name for slopes · sigmoid · (1 − sigmoid), in one pass.
            total -= self.weighted(&Tensor::sigmoid_backward(&slopes, &sigmoid), &z);
        }
        total
    }

    /// Value, gradient and Hessian of the log-likelihood at one vector of parameters `at` `[d]`, in f64 throughout.
    pub(super) fn expansion(&self, at: &Tensor) -> Expansion {
        let d = self.features;
        let column = self.columns_in(&at.unsqueeze(0), Kind::Double);
        let mut sum = Expansion::zero(d, self.z.device());
        // Twice as wide, and two copies of a chunk are held.
        for (start, length) in self.chunks(3 * d) {
            let z = self.z.narrow(0, start, length).to_kind(Kind::Double);
            let logits = z.matmul(&column);
            let z = z.narrow(1, 0, d);
            let sigmoid = logits.sigmoid();
            let weights: Tensor = &sigmoid * (1.0 - &sigmoid);
            sum.value += logits.neg().log_sigmoid().sum(None);
            sum.gradient -= (&z * &sigmoid).sum_dim_intlist(0i64, false, None);
            sum.curvature += (&z * weights).transpose(0, 1).matmul(&z);
        }
        sum
    }

    /// Σ over the rows of a chunk of weight times row: `weights` `[r, B]`, `z` `[r, …]`, to f64 `[B, d]`. Chunks are
    /// added in f64, so the rounding of f32 does not grow with their number.
    fn weighted(&self, weights: &Tensor, z: &Tensor) -> Tensor {
        weights.transpose(0, 1).matmul(&z.narrow(1, 0, self.features)).to_kind(Kind::Double)
    }

    /// Parameters `[B, d]` as the columns that rows are multiplied with.
    fn columns(&self, p: &Tensor) -> Tensor {
        self.columns_in(p, self.z.kind())
    }

    fn columns_in(&self, p: &Tensor, kind: Kind) -> Tensor {
        let p = p.to_kind(kind);
        if self.z.size()[1] == self.features {
            return p.transpose(0, 1);
        }
        let ones = Tensor::ones([p.size()[0], 1], (p.kind(), p.device()));
        Tensor::cat(&[p, ones], 1).transpose(0, 1)
    }

    /// Rows without the logits of the origin.
    fn plain(&self) -> Tensor {
        self.z.narrow(1, 0, self.features)
    }

    fn zeros(&self, shape: &[i64]) -> Tensor {
        Tensor::zeros(shape, (Kind::Double, self.z.device()))
    }

    /// Start and length of each chunk of rows, for `width` logits a row.
    fn chunks(&self, width: i64) -> impl Iterator<Item = (i64, i64)> + use<> {
        let numbers = if self.z.device() == Device::Cpu { CPU_CHUNK } else { CUDA_CHUNK };
        let length = (numbers / (self.z.size()[1] + width)).max(64);
        let count = self.count();
        (0..count).step_by(length as usize).map(move |start| (start, length.min(count - start)))
    }
}

/// Σ log sigmoid over the rows of negated logits `[r, B]`, in f64 `[B]`.
fn log_likelihoods(negated: &Tensor) -> Tensor {
    negated.log_sigmoid().sum_dim_intlist(0i64, false, Kind::Double)
}
