//! mcmc
