//! Distance to the nearest of many images: whether a sampler hands out copies.

use tch::{Kind, Tensor};

/// Images that are compared at once: a block of distances to 100 samples is a megabyte and a half.
const BLOCK: i64 = 4096;

/// Euclidean distance of each sample `[n, …]`, clamped to [0, 1], to the nearest of `images` `[N, …]`, in units of one
/// pixel's range: f64 `[n]`.
pub fn nearest_distances(samples: &Tensor, images: &Tensor) -> Tensor {
    let x = samples.clamp(0.0, 1.0).flatten(1, -1).to_kind(Kind::Float);
    let norms = |x: &Tensor| x.square().sum_dim_intlist(1i64, false, None);
    let x_norms = norms(&x).unsqueeze(1);
    let blocks: Vec<Tensor> = images
        .flatten(1, -1)
        .split(BLOCK, 0)
        .iter()
        .map(|block| (norms(block).unsqueeze(0) - x.matmul(&block.tr()) * 2.0).amin(1i64, false))
        .collect();
    let least = Tensor::stack(&blocks, 1).amin(1i64, true) + x_norms;
    least.squeeze_dim(1).to_kind(Kind::Double).clamp_min(0.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn distances_over_several_blocks_are_those_of_cdist() {
        let mut generator = crate::rng::Generator::new(0, crate::rng::Stream::Evaluation, 0, 0);
        let images = generator.uniform(&[2 * BLOCK + 7, 1, 4, 4]);
        let samples = generator.uniform(&[5, 1, 4, 4]);
        let far = Tensor::cdist(&samples.flatten(1, -1), &images.flatten(1, -1), 2.0, None);
        let expected = far.amin(1i64, false).to_kind(Kind::Double);
        let found = nearest_distances(&samples, &images);
        assert!((found - expected).abs().max().double_value(&[]) < 1e-4);
        // A copy is at distance 0, up to rounding in the difference of squares: sqrt(16 · 2^-23) = 0.0014.
        let copy = nearest_distances(&images.narrow(0, BLOCK + 1, 1), &images);
        assert!(copy.double_value(&[0]) < 3e-3 && copy.device() == Device::Cpu);
    }
}
