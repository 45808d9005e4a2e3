//! One-step neural samplers of unnormalised densities by Denoising Fisher Training (arXiv 2411.01453).
//!
//! The crate is laid out in layers; a module imports only from those above it in this list, which
//! `tests/layers.rs` checks.
//!
//! Shapes in the documentation: `B` batch, `D` sample dimension (the product of a target's shape),
//! `Z` latent dimension, `C,H,W` image channels, height and width, `P` parameters of a network,
//! `F` features. Tensors are `f32` unless said otherwise; statistics accumulate in `f64`.
#![deny(missing_docs)]

pub mod config;
pub mod rng;
pub mod comm;
pub mod data;
pub mod model;
pub mod target;
pub mod method;
pub mod mcmc;
pub mod train;
pub mod metric;
pub mod record;
pub mod plot;
pub mod cli;
