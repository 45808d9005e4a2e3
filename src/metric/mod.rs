//! Metrics of samples, each with its floor: what the same number of perfect samples would score.

mod features;
mod frechet;
mod reference;
mod spread;

pub use features::{Extractor, FeaturesError};
pub use frechet::{Moments, frechet_distance};
pub use reference::{Reference, chunks, chunks_of_rank, exact_samples};
pub use spread::PixelSpread;
