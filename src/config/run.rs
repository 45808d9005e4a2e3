//! Sections that every configuration has: the run and the machine.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::load::ConfigError;

/// Which device a run asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceRequest {
    /// CUDA where a GPU can be used, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA, or an error.
    Cuda,
}

/// How the shards of a batch are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// A rank computes its shards as one batch, and floats are summed over ranks: the same results on any number of
    /// ranks up to rounding.
    #[default]
    Fast,
    /// Every shard is computed by itself, and sums are exact: the same bits on any number of ranks.
    Exact,
}

/// How float32 is multiplied on CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// In full, as on a CPU.
    #[default]
    Exact,
    /// With factors rounded to TF32, ten bits of mantissa, which the tensor cores multiply.
    Tf32,
}

impl Precision {
    fn is_exact(&self) -> bool {
        *self == Precision::Exact
    }
}

/// `[run]`: what the run is called and where it goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// Name of the run.
    pub name: String,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// Run directory; `runs/<name>` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
}

impl RunSection {
    /// The run directory.
    pub fn directory(&self) -> PathBuf {
        self.directory.clone().unwrap_or_else(|| PathBuf::from("runs").join(&self.name))
    }
}

/// `[compute]`: the machine, and how a global batch is cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ComputeSection {
    /// Where to compute.
    pub device: DeviceRequest,
    /// Threads of a rank. If not given: 1 where the reduction is exact, since the bits of a sum depend on how many threads
    /// share it; else the variable `OMP_NUM_THREADS`, or cores over local ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// How shards are added up.
    pub reduction: Reduction,
    /// Pieces that a global batch is cut into, each with its own noise. A multiple of the world size.
    pub shards: usize,
    /// Let several ranks of one host share a GPU. NCCL then wants a distinct NCCL_HOSTID for each rank.
    pub share_gpus: bool,
    /// On CUDA, how float32 is multiplied in convolutions and matrix products.
    #[serde(skip_serializing_if = "Precision::is_exact")]
    pub precision: Precision,
    /// On CUDA, `dft train` records the work of an update as a CUDA graph and replays it. What targets that draw mini-batches,
    /// are spread over ranks or come as TorchScript take part in is computed call by call all the same, and so are warm starts,
    /// rehearsals, and updates while the target moves along its path.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cuda_graphs: bool,
    /// Seconds for which a rank waits in a collective before the job ends with a message that names who is missing.
    /// Three times that in the first 40 collectives, when ranks read data; 0 is for ever. Rank 0 alone draws and
    /// writes now and then, for which the others wait too.
    pub stall_seconds: u64,
}

impl Default for ComputeSection {
    fn default() -> Self {
        // 24 is a multiple of 1, 2, 3, 4, 6, 8 and 12 ranks.
        ComputeSection {
            device: DeviceRequest::Auto,
            threads: None,
            reduction: Reduction::Fast,
            shards: 24,
            share_gpus: false,
            precision: Precision::Exact,
            cuda_graphs: false,
            stall_seconds: 600,
        }
    }
}

/// Settings, by key, that must not change between the parts of a run: with others it would be another run under the same
/// name.
pub type Identity = Vec<(&'static str, String)>;

impl ComputeSection {
    /// Threads that a rank asks for; `None` for its share of the host's cores.
    pub fn threads(&self) -> Option<usize> {
        self.threads.or((self.reduction == Reduction::Exact).then_some(1))
    }

    /// What of this section must not change between the parts of a run.
    pub fn identity(&self) -> Identity {
        let reduction = serde_json::to_string(&self.reduction).expect("a word");
        let mut identity =
            vec![("compute.reduction", reduction), ("compute.shards", self.shards.to_string())];
        // The bits of a sum depend on how many threads share it; a fast reduction promises no bits.
        if let (Reduction::Exact, Some(threads)) = (self.reduction, self.threads()) {
            identity.push(("compute.threads", threads.to_string()));
        }
        identity.push(("compute.precision", serde_json::to_string(&self.precision).expect("a word")));
        identity
    }

    /// Checks that a global batch of `rows` can be cut into shards, and those given to `world_size` ranks.
    ///
    /// # Errors
    /// If it cannot; the message says what would fit.
    pub fn check(&self, key: &str, rows: usize, world_size: usize) -> Result<(), ConfigError> {
        let shards = self.shards;
        if shards == 0 || !shards.is_multiple_of(world_size) {
            let fitting = shards.max(1).div_ceil(world_size) * world_size;
            return Err(ConfigError::Invalid(format!(
                "compute.shards = {shards} does not divide over {world_size} ranks; choose a multiple of \
                 {world_size}, e.g. {fitting}"
            )));
        }
        if rows == 0 || !rows.is_multiple_of(shards) {
            let fitting = rows.max(1).div_ceil(shards) * shards;
            return Err(ConfigError::Invalid(format!(
                "{key} = {rows} does not divide into compute.shards = {shards} shards; choose a multiple of \
                 {shards}, e.g. {fitting}"
            )));
        }
        if self.threads == Some(0) {
            return Err(ConfigError::Invalid("compute.threads = 0; choose 1 or more".into()));
        }
        Ok(())
    }
}

/// The error of a value out of its range.
pub(super) fn out_of_range(key: &str, value: impl std::fmt::Display, wanted: &str) -> ConfigError {
    ConfigError::Invalid(format!("{key} = {value}; choose {wanted}"))
}

/// Checks the noise levels that something starts from and ends at.
pub(super) fn require_falling(key: &str, levels: [f64; 2]) -> Result<(), ConfigError> {
    let [high, low] = levels;
    let falls = high >= low && low > 0.0 && high.is_finite();
    require(&[(falls, key, &format!("[{high}, {low}]"), "[high, low] with high ≥ low > 0")])
}

/// Checks conditions in order; the first that fails is the error.
pub(super) fn require(checks: &[(bool, &str, &dyn std::fmt::Display, &str)]) -> Result<(), ConfigError> {
    match checks.iter().find(|(holds, ..)| !holds) {
        Some((_, key, value, wanted)) => Err(out_of_range(key, value, wanted)),
        None => Ok(()),
    }
}
