//! MCMC baselines: many chains at once, on the target a sampler is trained for.

mod annealed;

pub use annealed::AnnealedLangevin;
