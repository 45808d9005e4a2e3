//! Configurations: what a user wrote (`…File`), and what can no longer be wrong (`…Plan`).
//!
//! A file is read with unknown keys denied, `--set section.key=value` is applied, and `check(world
//! size)` turns it into a plan. All paths are relative to the current directory.

mod compare;
mod fit;
mod fitted;
mod load;
mod logistic;
mod mcmc;
mod method;
mod network;
mod run;
mod train;
mod regression;
mod warm_start;

pub use compare::{
    AnnealedKernel, AnnealedSchedule, AnnealedSection, Budget, CompareFile, ComparePlan, CompareRunSection,
    CorrectedSection, CorrectionKind, MethodEntry, PointScoreSection, Statistic, TargetEntry, Work,
};
pub use fit::{
    ContrastSection, EnergyFile, EnergyPlan, EnergySection, FeaturesFile, FeaturesPlan, FitSection,
};
pub use fitted::{FittedSection, MeanFieldSettings};
pub use load::{ConfigError, load, parse};
pub use logistic::{LogisticSection, Scaling};
pub use mcmc::{
    HmcSettings, MalaSettings, McmcSection, NutsSettings, SgldSettings, StepSizes, SvgdSettings, UlaSettings,
};
pub use method::{FieldKind, MethodSection, Phase, Schedule, ScoreWeight, SigmaKnot, SigmaPath, Variance};
pub use network::{
    Deviations, EnergyKind, SamplerKind, SamplerOutput, SamplerSection, ScoreBase, ScoreKind, ScoreSection,
    Start, TargetSection,
};
pub use regression::RegressionSection;
pub use run::{ComputeSection, DeviceRequest, Identity, Precision, Reduction, RunSection};
pub use train::{CheckpointSection, EvaluateSection, Features, Plan, TrainFile, TrainSection};
pub use warm_start::WarmStartSection;
