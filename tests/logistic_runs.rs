//! Logistic regression through the real program, on a small table of the tests' own: reference draws, training, several
//! ranks, and a comparison.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use dft::config::Scaling;
use dft::data::{Design, load_csv};
use dft::record::RunReader;
use serde_json::Value;
use support::table::{FEATURES, ROWS, write_table};
use support::{Finished, mpirun, run_within};
use tch::{Kind, Tensor};

const LIMIT: Duration = Duration::from_secs(240);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A directory with a table, in which commands run: data and references lie in it.
struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    /// With the table and the configuration that docs/logistic.md shows.
    fn new() -> Self {
        let bench = Bench { directory: tempfile::tempdir().unwrap() };
        write_table(&bench.path("patients.csv"), "outcome", ["well", "sick"]);
        let page = fs::read_to_string(root().join("docs/logistic.md")).unwrap();
        let (_, rest) = page.split_once("```toml\n").unwrap();
        fs::write(bench.path("patients.toml"), rest.split_once("```").unwrap().0).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `dft` with these words, in the directory; after `mpirun` if `ranks` is above 0.
    #[track_caller]
    fn on(&self, ranks: usize, words: &[&str], settings: &[&str]) -> Finished {
        let program = env!("CARGO_BIN_EXE_dft");
        let mut command = if ranks > 0 { mpirun(ranks) } else { Command::new(program) };
        if ranks > 0 {
            command.arg(program);
        }
        command.current_dir(self.directory.path()).args(words);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let finished = run_within(command, LIMIT);
        assert_eq!(finished.code, 0, "{}", finished.output);
        finished
    }

    #[track_caller]
    fn dft(&self, words: &[&str], settings: &[&str]) -> Finished {
        self.on(0, words, settings)
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    /// The files of reference draws, and when each was written.
    fn references(&self) -> Vec<(PathBuf, SystemTime)> {
        let entries = fs::read_dir(self.path("data/references")).unwrap();
        let mut found: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::metadata(&path).unwrap().modified().unwrap()))
            .collect();
        found.sort();
        found
    }
}

/// Rows of the training split: 240 of 300.
const TRAINING_ROWS: usize = ROWS * 4 / 5;
/// w of each feature and of the constant, and log alpha.
const UNKNOWNS: i64 = FEATURES as i64 + 2;

/// Draws `[rows, D]` of a file of draws by chain.
fn draws(path: &Path) -> Tensor {
    RunReader::open(path).unwrap().array("posterior/x").unwrap().to_kind(Kind::Double).flatten(0, 1)
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).contiguous().reshape([-1])).unwrap()
}

/// Mean and deviation of each column.
fn moments(x: &Tensor) -> Vec<(f64, f64)> {
    let mean = x.mean_dim([0i64].as_slice(), false, Kind::Double);
    let deviation = x.std_dim([0i64].as_slice(), true, false);
    numbers(&mean).into_iter().zip(numbers(&deviation)).collect()
}

#[test]
fn the_example_of_the_documentation_trains_to_its_reference_and_samples_in_the_coordinates_of_the_model() {
    let bench = Bench::new();
    bench.dft(&["reference", "patients.toml"], &[]);
    bench.dft(&["train", "patients.toml"], &["train.iterations=600", "train.warmup_updates=100"]);
    let summary = bench.json("runs/patients/summary.json");
    let metrics = &summary["metrics"];
    let value = |name: &str, of: &str| {
        metrics[name][of].as_f64().unwrap_or_else(|| panic!("no {of} of {name} in {metrics}"))
    };
    for name in ["accuracy", "log_predictive", "mean_error_rms", "deviation_error_max", "sliced_w2"] {
        assert!(value(name, "value").is_finite() && value(name, "floor").is_finite(), "{name}");
        assert!(metrics[format!("{name}_clean")]["value"].is_number(), "{name}");
    }
    // In posterior deviations. The start, N(0, I) in whitened coordinates, is near the posterior already; what is left
    // is its skewness, and a half-trained network's error.
    assert!(value("mean_error_rms", "value") < 0.15, "{metrics}");
    assert!(value("deviation_error_max", "value") < 0.3, "{metrics}");
    // As the prediction of a posterior from 240 rows that is almost right.
    assert!((value("log_predictive", "value") - value("log_predictive", "floor")).abs() < 0.01, "{metrics}");

    // The draws that were scored, again: the same seed.
    bench.dft(&["sample", "runs/patients", "-n", "5000", "-o", "draws.npy"], &[]);
    let x = Tensor::read_npy(bench.path("draws.npy")).unwrap();
    assert_eq!(x.size(), [5000, UNKNOWNS]);
    let [(reference, _)] = &bench.references()[..] else { panic!("{:?}", bench.references()) };
    let exact = moments(&draws(reference));
    let of_run = moments(&draws(&bench.path("runs/patients/run.h5")));
    for (coordinate, (mean, deviation)) in exact.into_iter().enumerate() {
        for (found_mean, found_deviation) in [moments(&x)[coordinate], of_run[coordinate]] {
            let error = (found_mean - mean).abs() / deviation;
            assert!(error < 0.3, "coordinate {coordinate}: mean {found_mean} for {mean} ± {deviation}");
            let ratio = found_deviation / deviation;
            assert!((0.7..1.4).contains(&ratio), "coordinate {coordinate}: deviation {ratio} times");
        }
    }

    // What those draws predict by the definition, on the rows that the split holds out, with at most 2,000 draws.
    let table = load_csv(&bench.path("patients.csv"), "outcome", Some("sick")).unwrap();
    let design = Design::new(&table, Scaling::Standard, 0.2, 0).unwrap();
    assert_eq!(design.train_x.size(), [TRAINING_ROWS as i64, UNKNOWNS - 1]);
    let w = x.narrow(0, 0, 2000).narrow(1, 0, UNKNOWNS - 1);
    let logits = design.test_x.to_kind(Kind::Double).mm(&w.to_kind(Kind::Double).tr());
    let probability = numbers(&logits.sigmoid().mean_dim([1i64].as_slice(), false, Kind::Double));
    let (mut right, mut log_sum) = (0, 0.0);
    for (p, y) in probability.iter().zip(numbers(&design.test_y)) {
        right += usize::from((*p >= 0.5) == (y == 1.0));
        log_sum += if y == 1.0 { p.ln() } else { (1.0 - p).ln() };
    }
    let rows = probability.len() as f64;
    assert_eq!(value("accuracy", "value"), right as f64 / rows);
    assert!((value("log_predictive", "value") - log_sum / rows).abs() < 1e-5); // logits in f32
}

#[test]
fn a_run_without_a_reference_says_so_and_scores_its_predictions_alone() {
    let bench = Bench::new();
    let small = ["train.iterations=2", "train.warmup_updates=1", "evaluate.samples=50"];
    let finished = bench.dft(&["train", "patients.toml"], &small);
    assert!(finished.output.contains("dft reference"), "{}", finished.output);
    let summary = bench.json("runs/patients/summary.json");
    let metrics = summary["metrics"].as_object().unwrap();
    let names: Vec<&str> = metrics.keys().map(String::as_str).collect();
    assert_eq!(names, ["accuracy", "accuracy_clean", "log_predictive", "log_predictive_clean"]);
    assert!(metrics.values().all(|score| score["floor"].is_null()), "{metrics:?}");
}

#[test]
fn one_and_two_ranks_agree_up_to_rounding_over_all_rows_and_mini_batches() {
    let bench = Bench::new();
    let common =
        ["train.iterations=20", "train.warmup_updates=5", "evaluate.samples=50", "compute.threads=1"];
    // All rows; mini-batches beside an expansion of the rows that are not heavy; and without one.
    let forms: [(&str, &[&str]); 3] = [
        ("all", &[]),
        ("anchored", &["target.batch=32", "target.heavy_rows=40"]),
        ("plain", &["target.batch=32", "target.control_variate=false", "target.whiten=false"]),
    ];
    for (form, settings) in forms {
        let name = |ranks: usize| format!("{form}-{ranks}");
        for ranks in [1, 2] {
            let settings = [&common[..], settings].concat();
            bench.on(ranks, &["train", "patients.toml", "--run", &name(ranks)], &settings);
        }
        let series = |ranks, of: &str| {
            let run = RunReader::open(bench.path(&name(ranks)).join("run.h5")).unwrap();
            run.series("train", of).unwrap()
        };
        for of in ["score_loss", "sampler_loss", "sampler_gradient_norm"] {
            let pairs = series(1, of).into_iter().zip(series(2, of));
            for (iteration, (one, two)) in pairs.enumerate() {
                // Another order of f32 sums over rows and shards is 1e-6 at first and grows along the path.
                let error = (one - two).abs() / one.abs().max(1.0);
                assert!(error < 1e-3, "{form}: {of} at {iteration}: {two} for {one}");
            }
        }
        assert_eq!(series(1, "target_evaluations"), series(2, "target_evaluations"));
        // What leaves the program is in the coordinates of a mode that two ranks have found together.
        let [one, two] = [1, 2].map(|ranks| draws(&bench.path(&name(ranks)).join("run.h5")));
        let scale = one.std_dim([0i64].as_slice(), true, true);
        let error = ((one - two) / scale).abs().max().double_value(&[]);
        assert!(error < 1e-3, "{form}: a draw differs by {error} deviations");
    }
}

#[test]
fn exact_reduction_trains_to_the_same_bits_on_one_two_and_three_ranks() {
    let bench = Bench::new();
    let common = [
        "train.iterations=12",
        "train.warmup_updates=3",
        "evaluate.samples=50",
        "compute.shards=6",
        "compute.reduction=exact",
    ];
    // All rows; mini-batches beside an expansion of the rows that are not heavy; and without one.
    let forms: [(&str, &[&str]); 3] = [
        ("all", &[]),
        ("anchored", &["target.batch=32", "target.heavy_rows=40"]),
        ("plain", &["target.batch=32", "target.control_variate=false", "target.whiten=false"]),
    ];
    for (form, settings) in forms {
        let summaries = [1, 2, 3].map(|ranks| {
            let name = format!("{form}-{ranks}");
            let settings = [&common[..], settings].concat();
            bench.on(ranks, &["train", "patients.toml", "--run", &name], &settings);
            let summary = bench.json(&format!("{name}/summary.json"));
            (summary["parameters_sha256"].clone(), summary["metrics"].clone())
        });
        assert!(summaries[0].0.is_string(), "{summaries:?}");
        assert_eq!(summaries[1], summaries[0], "{form}");
        assert_eq!(summaries[2], summaries[0], "{form}");
    }
}

#[test]
fn a_reference_is_made_once_for_a_posterior_however_it_is_computed_and_h5py_reads_it() {
    let bench = Bench::new();
    let first = bench.dft(&["reference", "patients.toml"], &[]);
    let made = bench.references();
    assert_eq!(made.len(), 1, "{made:?}");
    let line = |finished: &Finished| {
        finished.output.lines().find(|line| line.contains("R-hat")).unwrap_or_default().to_string()
    };
    assert!(line(&first).contains("effective"), "{}", first.output);
    // The content of the table counts, not where it lies.
    fs::copy(bench.path("patients.csv"), bench.path("moved.csv")).unwrap();
    for settings in [
        &[][..],
        &["target.batch=32", "target.whiten=false", "target.heavy_rows=20"],
        &["target.data=moved.csv", "target.split=0", "train.iterations=7"],
    ] {
        let again = bench.dft(&["reference", "patients.toml"], settings);
        // Seconds and evaluations are those of the first command: nothing was run.
        assert_eq!(line(&again), line(&first), "{settings:?}");
        assert_eq!(bench.references(), made, "{settings:?}");
    }
    let script = r#"
import json, sys, h5py
f = h5py.File(sys.argv[1], "r")
assert 0.99 < f.attrs["r_hat"] < 1.01, f.attrs["r_hat"]
assert f.attrs["effective_draws"] >= 4000, f.attrs["effective_draws"]
assert 0.5 < f.attrs["acceptance"] < 1 and f.attrs["seconds"] > 0 and f.attrs["step_size"] > 0
x = f["posterior/x"]
chains, draws, unknowns = x.shape
assert (chains, draws % 150, unknowns) == (64, 0, 6), x.shape
# A gradient at each start, then 32 and a log-density in each step; 300 steps come before the draws.
assert f.attrs["evaluations"] == 64 * (1 + 32.5 * (300 + draws)), f.attrs["evaluations"]
assert [x.dims[i][0].name for i in range(2)] == ["/posterior/chain", "/posterior/draw"]
features = {feature["name"]: feature for feature in json.loads(f.attrs["features"])}
assert list(features) == ["a", "b", "c", "d"], features
# b was made with mean 50 and deviation 10: within five standard errors of 240 rows.
assert abs(features["b"]["shift"] - 50) < 3.3 and abs(features["b"]["factor"] - 0.1) < 0.025, features
posterior = json.loads(f.attrs["posterior"])
assert (posterior["split"], posterior["prior_rate"], posterior["scaling"]) == (0, 0.01, "standard"), posterior
print("h5py agrees")
"#;
    let python = std::env::var_os("DFT_PYTHON").map_or(root().join(".venv/bin/python"), PathBuf::from);
    let mut command = Command::new(python);
    command.args(["-c", script]).arg(&made[0].0);
    let finished = run_within(command, LIMIT);
    assert!(finished.output.contains("h5py agrees"), "{}", finished.output);

    // Another prior and another table are other posteriors.
    bench.dft(&["reference", "patients.toml"], &["target.prior_rate=0.1"]);
    assert_eq!(bench.references().len(), 2);
    let table = fs::read_to_string(bench.path("moved.csv")).unwrap();
    let shorter: Vec<&str> = table.lines().take(ROWS - 40).collect();
    fs::write(bench.path("moved.csv"), shorter.join("\n")).unwrap();
    bench.dft(&["reference", "patients.toml"], &["target.data=moved.csv"]);
    assert_eq!(bench.references().len(), 3);
}

/// Two protocols on the table of the documentation's example, and every kind of method.
const COMPARISON: &str = r#"
[run]
name = "small"
directory = "comparison"
seeds = [0, 1]
budget_of = "kl"
statistic = "mean"

[compute]
threads = 1

[score]
samples = 100
sets = 2

[[target]]
name = "posterior"
config = "patients.toml"

[[target]]
name = "literature"
config = "literature.toml"
best_of = 3

[[method]]
name = "kl"
set = ["method.kind=kl", "train.batch=24", "train.iterations=60", "train.warmup_updates=5"]

[[method]]
name = "laplace"
fitted = { kind = "laplace" }
targets = ["posterior"]

[[method]]
name = "dsvi"
fitted = { kind = "mean_field", iterations = 40, samples = 4 }

[[method]]
name = "hmc"
mcmc = { kind = "hmc", leapfrog = 4, adaptation_steps = 4 }
chains = 16
budgets = ["evaluations"]

[[method]]
name = "sgld"
mcmc = { kind = "sgld", step_size = [0.001, 0.003] }
budgets = ["evaluations"]
targets = ["literature"]
"#;

#[test]
fn a_comparison_on_posteriors_has_what_its_documentation_says_and_a_second_command_does_nothing() {
    let bench = Bench::new();
    let recipe = fs::read_to_string(bench.path("patients.toml")).unwrap();
    let literature = recipe.replace(
        "kind = \"logistic\",",
        "kind = \"logistic\", batch = 24, control_variate = false, whiten = false,",
    );
    assert_ne!(recipe, literature);
    fs::write(bench.path("literature.toml"), literature).unwrap();
    fs::write(bench.path("compare.toml"), COMPARISON).unwrap();
    bench.dft(&["compare", "compare.toml"], &[]);

    let results = bench.json("comparison/results.json");
    let rows = results.as_array().unwrap();
    // For each of 2 seeds: kl, dsvi and hmc on both targets, laplace on one and sgld on the other.
    assert_eq!(rows.len(), 2 * (2 * 3 + 2));
    let of = |target: &str, method: &str, setting: &str, seed: u64| {
        let is_it = |row: &&Value| {
            (&row["target"], &row["method"], &row["setting"], &row["seed"])
                == (&target.into(), &method.into(), &setting.into(), &seed.into())
        };
        rows.iter().find(is_it).unwrap_or_else(|| panic!("{target} {method} {setting} {seed}: {results}"))
    };
    for row in rows {
        assert!(row["failure"].is_null(), "{row}");
        for name in ["accuracy", "log_predictive", "mean_error_rms", "deviation_error_max", "sliced_w2"] {
            let score = &row["metrics"][name];
            assert!(score["value"].is_number() && score["floor"].is_number(), "{name}: {row}");
        }
        // Every test row is in one bin of predicted probability.
        let bins = row["calibration"].as_array().unwrap();
        let counted: u64 = bins.iter().map(|bin| bin["count"].as_u64().unwrap()).sum();
        assert_eq!((bins.len(), counted), (10, (ROWS - TRAINING_ROWS) as u64));
    }
    // Newton's method on 240 rows has converged within ten steps; each goes over all rows once.
    let laplace = of("posterior", "laplace", "fitted", 0);
    assert!((1..=10).contains(&laplace["target_evaluations"].as_u64().unwrap()), "{laplace}");
    // A posterior of six unknowns from 240 rows is nearly Gaussian but for log alpha, whose four to five weights make it
    // skew: the mode is off by a part of a deviation, and 200 draws by 0.07 besides.
    let error = |row: &Value| row["metrics"]["mean_error_rms"]["value"].as_f64().unwrap();
    assert!(error(laplace) < 0.5, "{laplace}");
    // 40 updates of 4 points each, of all rows or of a tenth.
    let dsvi = |target| of(target, "dsvi", "fitted", 0)["target_evaluations"].as_u64().unwrap();
    assert_eq!((dsvi("posterior"), dsvi("literature")), (160, 16));
    for seed in [0, 1] {
        // kl evaluates 59 or 60 times for 24 rows and whatever the target's cost is: a tenth in mini-batches of 24.
        for (target, setting, cost) in [("posterior", "trained", 1.0), ("literature", "trained", 0.1)] {
            let kl = of(target, "kl", setting, seed);
            let summary = bench.json(&format!("comparison/{target}/kl/seed-{seed}/summary.json"));
            let evaluations = summary["target_evaluations"].as_u64().unwrap();
            assert!(evaluations >= 59 * 24, "{evaluations}");
            assert_eq!(kl["target_evaluations"], (evaluations as f64 * cost).round() as u64);
            // Sixteen chains over all rows cannot spend more.
            let hmc = of(target, "hmc", "same evaluations", seed)["target_evaluations"].as_u64().unwrap();
            let most = kl["target_evaluations"].as_u64().unwrap();
            assert!(hmc <= most && hmc > most - 16 * 5, "{hmc} of {most}");
        }
        let kl = of("literature", "kl", "trained", seed);
        let best = &kl["metrics"]["accuracy_best"];
        assert_eq!(best["samples"], 3);
        // The last of the looks is at the end, with other draws than those that are scored.
        let run =
            RunReader::open(bench.path(&format!("comparison/literature/kl/seed-{seed}/run.h5"))).unwrap();
        let along = run.series("evaluation", "accuracy").unwrap();
        assert_eq!(run.series("evaluation", "iteration").unwrap(), [20.0, 40.0, 60.0]);
        assert_eq!(best["value"].as_f64().unwrap(), along.into_iter().fold(0.0, f64::max));
        assert!(of("literature", "sgld", "same evaluations", seed)["metrics"]["accuracy_best"].is_object());
        assert!(of("literature", "dsvi", "fitted", seed)["metrics"]["accuracy_best"].is_null());
        assert!(of("posterior", "kl", "trained", seed)["metrics"]["accuracy_best"].is_null());
    }

    // Tables: the mean of the two seeds and its standard error, which of two is half of their distance. A seed is a
    // split, so the floors differ too.
    let cell = |of_score: &str| {
        let accuracy = |seed| {
            let row = of("posterior", "laplace", "fitted", seed);
            100.0 * row["metrics"]["accuracy"][of_score].as_f64().unwrap()
        };
        let (mean, error) = ((accuracy(0) + accuracy(1)) / 2.0, (accuracy(0) - accuracy(1)).abs() / 2.0);
        assert!(error > 0.0, "two splits of the same accuracy: this shows nothing");
        format!("| {mean:.2} % ± {error:.2} % |")
    };
    let markdown = fs::read_to_string(bench.path("comparison/results.md")).unwrap();
    let line = |begin: &str| {
        let (_, table) = markdown.split_once("## posterior").unwrap();
        table.lines().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("{begin}: {markdown}"))
    };
    assert!(line("| laplace | fitted |").contains(&cell("value")), "{markdown}");
    assert!(line("| exact samples | floor |").contains(&cell("floor")), "{markdown}");
    for words in [
        "mean ± its standard error",
        "## literature",
        "| best accuracy |",
        "| kl | trained |",
        "| dsvi | fitted |",
    ] {
        assert!(markdown.contains(words), "`{words}` is not in: {markdown}");
    }
    for target in ["posterior", "literature"] {
        let figure = bench.path(&format!("comparison/figures/calibration-{target}.png"));
        assert_eq!(&fs::read(figure).unwrap()[..8], b"\x89PNG\r\n\x1a\n");
    }

    // One posterior with two splits, whatever the protocol.
    let references = bench.references();
    assert_eq!(references.len(), 2, "{references:?}");
    let written = |target: &str, method: &str, seed: u64| {
        let home = bench.path(&format!("comparison/{target}/{method}/seed-{seed}"));
        fs::metadata(home.join("rows.json")).unwrap().modified().unwrap()
    };
    let all = || {
        let slug = |row: &Value| {
            written(
                row["target"].as_str().unwrap(),
                row["method"].as_str().unwrap(),
                row["seed"].as_u64().unwrap(),
            )
        };
        rows.iter().map(slug).collect::<Vec<_>>()
    };
    let before = all();
    bench.dft(&["compare", "compare.toml"], &[]);
    assert_eq!(all(), before, "nothing was missing, and something was done again");
    assert_eq!(bench.references(), references);
    assert_eq!(bench.json("comparison/results.json"), results);
}
