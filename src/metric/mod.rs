//! Metrics of samples, each with its floor: what the same number of perfect samples would score.

mod assignment;
mod chunks;
mod classes;
mod cloud;
mod diagnostics;
mod features;
mod frechet;
mod ksd;
mod mmd;
mod modes;
mod moments;
mod nearest;
mod points;
mod posterior;
mod reference;
mod set;
mod spread;
mod wasserstein;

pub use chunks::{chunks, chunks_of_rank, sum_over_chunks};
pub use classes::ClassCounts;
pub use cloud::Cloud;
pub use diagnostics::{Diagnostics, diagnose, ess_bulk, ess_mean, ess_tail, r_hat};
pub use features::{Extractor, FeaturesError};
pub use frechet::{Moments, frechet_distance};
pub use ksd::{Ksd, ksd, ksd_over_ranks};
pub use mmd::{MmdKernel, mmd};
pub use modes::ModeCover;
pub use moments::{coordinate_moments, rayleigh};
pub use nearest::nearest_distances;
pub use points::{Measured, PointError, PointPlan, PointReference};
pub use posterior::{CalibrationBin, PosteriorError, PosteriorReference, Prediction, predict};
pub use reference::{Reference, Seen, exact_samples};
pub use spread::PixelSpread;
pub use wasserstein::{sliced_w2, w1, w2};
