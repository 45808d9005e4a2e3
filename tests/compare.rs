//! `dft compare` through the real program: what it writes, that it does no work twice, and several ranks.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::{Finished, mpirun, run_within};

const LIMIT: Duration = Duration::from_secs(120);

/// Two targets, two trained methods and three chains, small.
const CONFIG: &str = r#"
[run]
name = "small"
seeds = [0, 1]
budget_of = "kl"

[compute]
threads = 1

[score]
samples = 200
sets = 2

[[target]]
name = "gaussian"
config = "configs/planar/gaussian.toml"

[[target]]
name = "modes"
config = "configs/planar/mog2.toml"

[[method]]
name = "kl"
set = ["method.kind=kl", "train.batch=256", "train.iterations=30", "train.warmup_updates=5"]

[[method]]
name = "dft"
set = ["method.kind=dft", "train.batch=256", "train.iterations=20", "train.warmup_updates=5"]
targets = ["gaussian"]

[[method]]
name = "ula"
mcmc = { kind = "ula", step_size = [0.01, 0.1] }
budgets = ["evaluations"]

[[method]]
name = "svgd"
mcmc = { kind = "svgd" }
budgets = ["evaluations"]
targets = ["modes"]

[[method]]
name = "mala"
mcmc = { kind = "mala", adaptation_steps = 10 }
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("compare.toml"), config).unwrap();
        Bench { directory }
    }

    fn run(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    fn compare(&self, mut command: Command, settings: &[&str]) -> Finished {
        let config = self.directory.path().join("compare.toml");
        command.current_dir(root()).arg("compare").arg(config).arg("--run").arg(self.run());
        for setting in settings {
            command.args(["--set", setting]);
        }
        run_within(command, LIMIT)
    }

    fn alone(&self, settings: &[&str]) -> Finished {
        self.compare(Command::new(env!("CARGO_BIN_EXE_dft")), settings)
    }

    fn results(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.run().join("results.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// When each job's rows were written, by its directory.
    fn written(&self) -> Vec<(PathBuf, std::time::SystemTime)> {
        let mut found = Vec::new();
        for entry in walk(&self.run()) {
            if entry.file_name().is_some_and(|name| name == "rows.json") {
                let when = fs::metadata(&entry).unwrap().modified().unwrap();
                found.push((entry, when));
            }
        }
        found.sort();
        found
    }
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

/// What does not depend on the clock: rows that are not `same seconds`, without their seconds.
fn timeless(rows: &[Value]) -> BTreeSet<String> {
    rows.iter()
        .filter(|row| row["setting"] != "same seconds")
        .map(|row| {
            let mut row = row.clone();
            for key in ["seconds", "sampling_seconds"] {
                row.as_object_mut().unwrap().remove(key);
            }
            row.to_string()
        })
        .collect()
}

#[test]
fn every_job_has_rows_with_cost_scores_and_floors_and_a_second_command_does_nothing() {
    let bench = Bench::new(CONFIG);
    let finished = bench.alone(&[]);
    assert_eq!(finished.code, 0, "{}", finished.output);
    let rows = bench.results();
    // For each of 2 seeds: kl, ula and twice mala on both targets, dft on one and svgd on the other.
    assert_eq!(rows.len(), 2 * (2 * 4 + 2));
    let of = |target: &str, method: &str, setting: &str, seed: u64| {
        let is_it = |row: &&Value| {
            row["target"] == target
                && row["method"] == method
                && row["setting"] == setting
                && row["seed"] == seed
        };
        rows.iter().find(is_it).unwrap_or_else(|| panic!("{target} {method} {setting} {seed}"))
    };
    for row in &rows {
        assert!(row["failure"].is_null(), "{row}");
        let ksd = &row["metrics"]["ksd"];
        assert!(ksd["value"].as_f64().unwrap() > 0.0 && ksd["floor"].as_f64().unwrap() > 0.0);
        assert_eq!(ksd["samples"], 200);
    }
    // kl evaluates the target once for each of 2 × 256 rows, but not at the first iteration, where its path has
    // no part of the target; dft twice, product included.
    assert_eq!(of("modes", "kl", "trained", 1)["target_evaluations"], 29 * 512);
    assert_eq!(of("gaussian", "dft", "trained", 0)["target_evaluations"], 19 * 1024);
    assert_eq!(of("modes", "kl", "trained", 0)["sets"], 2);
    assert_eq!(of("modes", "svgd", "same evaluations", 0)["sets"], 1);
    // Chains get what kl had: whole steps of 200 chains.
    let ula = of("gaussian", "ula", "same evaluations", 0);
    assert_eq!(ula["target_evaluations"], 29 * 512 / 200 * 200);
    assert!(ula["tuning_evaluations"].as_u64().unwrap() > 0 && ula["step_size"].as_f64().unwrap() > 0.0);
    let mala = of("modes", "mala", "same evaluations", 0);
    assert!(mala["target_evaluations"].as_u64().unwrap() <= 29 * 512);
    assert!(mala["metrics"]["mode_error"]["value"].is_number());
    for file in ["results.md", "figures/samples.png", "config.toml", "modes/kl/seed-1/sampler.safetensors"] {
        assert!(fs::metadata(bench.run().join(file)).unwrap().len() > 0, "{file}");
    }
    let markdown = fs::read_to_string(bench.run().join("results.md")).unwrap();
    assert!(markdown.contains("## modes") && markdown.contains("| exact samples | floor |"), "{markdown}");

    let written = bench.written();
    assert_eq!(bench.alone(&[]).code, 0);
    assert_eq!(bench.written(), written, "nothing was missing, and something was done again");
}

#[test]
fn only_what_a_change_touches_is_done_again() {
    let bench = Bench::new(CONFIG);
    assert_eq!(bench.alone(&["run.seeds=[0]"]).code, 0);
    let before = bench.written();
    let config = fs::read_to_string(bench.directory.path().join("compare.toml")).unwrap();
    let changed = config.replace("train.iterations=20", "train.iterations=25");
    assert_ne!(config, changed);
    fs::write(bench.directory.path().join("compare.toml"), changed).unwrap();
    let finished = bench.alone(&["run.seeds=[0]"]);
    assert_eq!(finished.code, 0, "{}", finished.output);
    let again: Vec<PathBuf> = before
        .iter()
        .zip(bench.written())
        .filter(|(before, after)| **before != *after)
        .map(|(before, _)| before.0.strip_prefix(bench.run()).unwrap().to_path_buf())
        .collect();
    assert_eq!(again, [Path::new("gaussian/dft/seed-0/rows.json")]);
    assert!(finished.output.contains("another configuration"), "{}", finished.output);
}

#[test]
fn two_ranks_share_the_jobs_and_find_the_same_numbers_as_one() {
    let [alone, together] = [Bench::new(CONFIG), Bench::new(CONFIG)];
    assert_eq!(alone.alone(&[]).code, 0);
    let mut command = mpirun(2);
    command.arg(env!("CARGO_BIN_EXE_dft"));
    let finished = together.compare(command, &[]);
    assert_eq!(finished.code, 0, "{}", finished.output);
    assert_eq!(timeless(&alone.results()), timeless(&together.results()));
}

#[test]
fn wrong_comparisons_are_refused_with_what_to_choose() {
    for (from, to, words) in [
        ("budget_of = \"kl\"", "budget_of = \"mala\"", &["run.budget_of", "mala", "trained"][..]),
        ("name = \"ula\"", "name = \"mala\"", &["mala", "twice"]),
        ("name = \"ula\"", "name = \"u/la\"", &["u/la", "directories"]),
        ("targets = [\"modes\"]", "targets = [\"moons\"]", &["moons", "[[target]]"]),
        ("kind = \"svgd\"", "kind = \"svgd\", leapfrog = 2", &["leapfrog"]),
        ("step_size = [0.01, 0.1]", "step_size = -1.0", &["ula", "step_size", "above 0"]),
        ("method.kind=dft", "method.kind=drift", &["drift"]),
        ("configs/planar/mog2.toml", "configs/planar/absent.toml", &["absent.toml"]),
        ("name = \"modes\"", "name = \"claims\"", &["claims", "own files"]),
        ("sets = 2", "sets = 17", &["score.sets", "16"]),
        (
            "\"method.kind=dft\"",
            "\"method.kind=dft\", \"target.mean=[0, 0]\", \"target.covariance=[[1, 0], [0, 1]]\"",
            &["dft", "changes the target"],
        ),
        ("\"method.kind=kl\"", "\"method.kind=kl\", \"sampler.latent=1\"", &["sampler.latent"]),
        ("seeds = [0, 1]", "seeds = [1, 1]", &["run.seeds", "once"]),
        (
            "budgets = [\"evaluations\"]\n\n[[method]]\nname = \"svgd\"",
            "budgets = []\n\n[[method]]\nname = \"svgd\"",
            &["ula", "budgets"],
        ),
        // What is for posteriors of regressions, and for chains.
        (
            "mcmc = { kind = \"svgd\" }\nbudgets = [\"evaluations\"]",
            "fitted = { kind = \"laplace\" }",
            &["svgd", "posterior of a regression", "modes", "is none"],
        ),
        (
            "mcmc = { kind = \"svgd\" }\nbudgets = [\"evaluations\"]",
            "fitted = { kind = \"mean_field\", samples = 3 }",
            &["svgd", "fitted.samples = 3", "even"],
        ),
        (
            "mcmc = { kind = \"svgd\" }",
            "fitted = { kind = \"laplace\" }",
            &["svgd", "`set`", "`mcmc`", "`fitted`"],
        ),
        ("name = \"modes\"\n", "name = \"modes\"\nbest_of = 5\n", &["modes", "best_of", "regressions"]),
        ("name = \"dft\"\n", "name = \"dft\"\nchains = 10\n", &["dft", "`chains`"]),
        ("name = \"dft\"\n", "name = \"dft\"\nbest_of = 5\n", &["dft", "best_of", "images", "has none"]),
        ("name = \"ula\"\n", "name = \"ula\"\nbest_of = 5\n", &["ula", "`best_of`"]),
        ("name = \"ula\"\n", "name = \"ula\"\nchains = 0\n", &["ula", "chains = 0", "score.samples = 200"]),
        ("name = \"ula\"\n", "name = \"ula\"\nchains = 201\n", &["ula", "chains = 201", "score.samples"]),
        ("budget_of = \"kl\"", "budget_of = \"kl\"\nstatistic = \"mode\"", &["mode", "median", "mean"]),
    ] {
        let config = CONFIG.replacen(from, to, 1);
        assert_ne!(config, CONFIG, "{from}");
        let bench = Bench::new(&config);
        let finished = bench.alone(&[]);
        assert_eq!(finished.code, 2, "{to}: {}", finished.output);
        assert!(words.iter().all(|word| finished.output.contains(word)), "{to}: {}", finished.output);
        assert!(!bench.run().exists(), "{to}: work has begun");
    }
}

#[test]
fn every_comparison_in_the_repository_is_valid() {
    // Paths in configurations are relative to the repository's root, where cargo runs tests.
    let mut found = 0;
    for entry in fs::read_dir(root().join("configs/benchmarks")).unwrap() {
        let path = entry.unwrap().path();
        let file: dft::config::CompareFile = dft::config::load(&path, &[]).unwrap();
        file.check().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        found += 1;
    }
    assert!(found >= 5);
}

#[test]
fn the_example_of_the_documentation_is_valid() {
    let page = fs::read_to_string(root().join("docs/compare.md")).unwrap();
    let (_, rest) = page.split_once("```toml\n").unwrap();
    let bench = Bench::new(rest.split_once("```").unwrap().0);
    let config = bench.directory.path().join("compare.toml");
    let file: dft::config::CompareFile = dft::config::load(&config, &[]).unwrap();
    // What it calls a default is one.
    let bare = ["statistic = ", "references = ", "budgets = "];
    let text = fs::read_to_string(&config).unwrap();
    let kept: Vec<&str> = text.lines().filter(|line| !bare.iter().any(|key| line.starts_with(key))).collect();
    fs::write(&config, kept.join("\n")).unwrap();
    let shorter: dft::config::CompareFile = dft::config::load(&config, &[]).unwrap();
    assert_eq!(shorter.run, file.run);
    for (short, long) in shorter.methods.iter().zip(&file.methods) {
        assert_eq!(short.budgets(), long.budgets());
    }
    file.check().unwrap();
}

#[test]
fn a_directory_of_something_else_is_left_alone() {
    let bench = Bench::new(CONFIG);
    fs::create_dir(bench.run()).unwrap();
    let config = fs::read_to_string(root().join("configs/quick.toml")).unwrap();
    fs::write(bench.run().join("config.toml"), &config).unwrap();
    let finished = bench.alone(&[]);
    assert_eq!(finished.code, 2, "{}", finished.output);
    assert!(finished.output.contains("something other than a comparison"), "{}", finished.output);
    assert_eq!(fs::read_to_string(bench.run().join("config.toml")).unwrap(), config);
}

#[test]
fn a_method_that_diverges_is_a_row_with_its_failure_and_the_others_go_on() {
    // The path term with a large step leaves for infinity within a few hundred iterations; chains whose budget
    // it was have none.
    let config = CONFIG.replace(
        "method.kind=kl\", \"train.batch=256\", \"train.iterations=30",
        "method.kind=path\", \"train.batch=24\", \"train.sampler_lr=3.0\", \"train.iterations=400",
    );
    let bench = Bench::new(&config);
    let finished = bench.alone(&["run.seeds=[0]"]);
    assert_eq!(finished.code, 0, "{}", finished.output);
    let rows = bench.results();
    let failures: Vec<(&str, &str)> =
        rows.iter().filter_map(|row| Some((row["method"].as_str()?, row["failure"].as_str()?))).collect();
    assert!(
        failures.iter().any(|(method, failure)| *method == "kl" && failure.contains("not finite")),
        "{failures:?}"
    );
    assert!(
        failures.iter().any(|(method, failure)| *method == "mala" && failure.contains("no budget")),
        "{failures:?}"
    );
    let dft = rows.iter().find(|row| row["method"] == "dft").unwrap();
    assert!(dft["failure"].is_null() && dft["metrics"]["ksd"]["value"].is_number());
    let markdown = fs::read_to_string(bench.run().join("results.md")).unwrap();
    assert!(markdown.contains("failed"), "{markdown}");
}
