//! `dft compare` on images: what it refuses, and a small comparison through the real program. Needs data/mnist (`dft data mnist`),
//! which ci/test.sh brings.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use dft::config::{CompareFile, parse};
use serde_json::Value;
use support::{Finished, run_within};

const LIMIT: Duration = Duration::from_secs(120);

/// Two trained methods, chains of every kind, and corrections; `RECIPE` stands for the target's configuration.
const CONFIG: &str = r#"
[run]
name = "small"
seeds = [0]
budget_of = "dft"

[compute]
threads = 1

[score]
samples = 120
sets = 1

[[target]]
name = "digits"
config = "RECIPE"

[[method]]
name = "dft"
set = ["method.kind=dft"]

[[method]]
name = "kl"
set = ["method.kind=kl", "train.iterations=2"]

[[method]]
name = "langevin"
annealed = { steps = [1, 2], step_sizes = [0.25, 0.5], tuning_samples = 100 }

[[method]]
name = "mala"
annealed = { kernel = "mala", steps = [2], step_sizes = [0.5] }

[[method]]
name = "hmc"
annealed = { kernel = "hmc", steps = [2], step_sizes = [0.5], leapfrog_steps = 3 }

[[method]]
name = "published"
annealed = { schedule = "li2019", steps = [27], step_sizes = [0.02], sigma = [1.0, 0.1] }

[[method]]
name = "dft-mala"
corrected = { of = "dft", steps = [1, 2] }
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn dft(words: &[&str]) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dft"));
    command.current_dir(root()).args(words);
    run_within(command, LIMIT)
}

/// The recipe of configs/mnist.toml, as small as its networks can be.
fn small_recipe(energy: &Path) -> String {
    let text = fs::read_to_string(root().join("configs/mnist.toml")).unwrap();
    let energy = energy.display().to_string();
    [
        ("configs/weights/mnist-energy.safetensors", energy.as_str()),
        ("width = 24", "width = 4"),
        ("iterations = 1500", "iterations = 3"),
        ("updates = 800", "updates = 2"),
        ("batch = 48", "batch = 24"),
        ("warmup_updates = 150", "warmup_updates = 1"),
        ("pairs = 3000", "pairs = 24"),
        ("langevin_steps = 60", "langevin_steps = 1"),
    ]
    .into_iter()
    .fold(text, |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    })
}

/// Files of this name below `directory`, with the time of their last change.
fn files(directory: &Path, name: &str) -> Vec<(PathBuf, SystemTime)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, name));
        } else if path.file_name().is_some_and(|found| found == name) {
            let when = fs::metadata(&path).unwrap().modified().unwrap();
            found.push((path, when));
        }
    }
    found.sort();
    found
}

#[test]
fn images_are_compared_by_their_distance_and_what_one_sample_costs() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let text = |name: &str| path(name).display().to_string();
    let mut words = vec!["fit-energy", "configs/mnist-energy.toml"];
    let (energy, energy_run, run) = (text("energy.safetensors"), text("energy"), text("run"));
    words.extend(["-o", &energy, "--run", &energy_run]);
    for setting in ["energy.width=4", "train.iterations=12", "train.batch=24"] {
        words.extend(["--set", setting]);
    }
    let fitted = dft(&words);
    assert_eq!(fitted.code, 0, "{}", fitted.output);
    fs::write(path("recipe.toml"), small_recipe(&path("energy.safetensors"))).unwrap();
    let config = CONFIG
        .replace("RECIPE", &text("recipe.toml"))
        .replace("\"train.iterations=2\"]\n", "\"train.iterations=2\"]\nbest_of = 2\n");
    assert!(config.contains("best_of"));
    let compare = |config: &str| {
        fs::write(path("compare.toml"), config).unwrap();
        dft(&["compare", &text("compare.toml"), "--run", &run])
    };

    // The LeNet has 84 features: chains that a step size is chosen with must be more, and that is seen before any work.
    let refused = compare(&config.replace("tuning_samples = 100", "tuning_samples = 84"));
    assert_eq!(refused.code, 2, "{}", refused.output);
    for words in ["langevin", "annealed.tuning_samples", "84 features"] {
        assert!(refused.output.contains(words), "`{words}` is not in: {}", refused.output);
    }
    assert!(!path("run").exists());

    let finished = compare(&config);
    assert_eq!(finished.code, 0, "{}", finished.output);
    let results = fs::read_to_string(path("run/results.json")).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&results).unwrap();
    // A Langevin chain denoises at the end; MALA and HMC evaluate their start; a correction does both.
    let expected = [
        ("dft", "trained", 0),
        ("kl", "trained", 0),
        ("kl", "best of 2 looks", 0),
        ("langevin", "1 step", 2),
        ("langevin", "2 steps", 3),
        ("mala", "2 steps", 3),
        ("hmc", "2 steps", 7),
        ("published", "27 steps", 28),
        ("dft-mala", "1 step", 3),
        ("dft-mala", "2 steps", 4),
    ];
    assert_eq!(rows.len(), expected.len());
    for (row, (method, setting, evaluations)) in rows.iter().zip(expected) {
        assert_eq!((&row["method"], &row["setting"]), (&method.into(), &setting.into()), "{row}");
        assert!(row["failure"].is_null(), "{row}");
        assert_eq!(row["evaluations_per_sample"], evaluations, "{row}");
        assert!(row["seconds_per_sample"].as_f64().unwrap() > 0.0, "{row}");
        let score = &row["metrics"]["fd_lenet"];
        assert_eq!(
            (&score["samples"], &score["floor"]),
            (&120.into(), &rows[0]["metrics"]["fd_lenet"]["floor"])
        );
        assert!(score["value"].as_f64().unwrap() > score["floor"].as_f64().unwrap(), "{row}");
        assert!(row["metrics"]["pixel_deviation"]["value"].is_number());
        let is_accepted = matches!(method, "mala" | "hmc" | "dft-mala");
        assert_eq!(row["acceptance"].is_number(), is_accepted, "{row}");
    }
    // Training: 3 iterations of 24 rows, each with a product besides, after 2 updates of the warm start, whose chains have 5
    // steps and denoise at the end, and 24 pairs of a regression, by 16 steps of the flow and one of Langevin, which both denoise.
    // Chains: all samples; two step sizes were tried.
    assert_eq!(rows[0]["target_evaluations"], 3 * 24 * 2 + 2 * 24 * 6 + 24 * (17 + 2));
    assert_eq!(rows[4]["target_evaluations"], 3 * 120);
    assert_eq!(rows[4]["tuning_evaluations"], 2 * 3 * 100);
    assert!([0.25, 0.5].contains(&rows[4]["step_size"].as_f64().unwrap()));
    assert!(rows[5]["tuning_evaluations"].is_null() && rows[5]["step_size"] == 0.5);
    // The best of the looks cost the whole training, and is scored on draws of its own: even the last sampler would not have
    // the last bits of the row above.
    assert_eq!(rows[2]["target_evaluations"], rows[1]["target_evaluations"]);
    assert_ne!(rows[2]["metrics"]["fd_lenet"]["value"], rows[1]["metrics"]["fd_lenet"]["value"]);
    assert!(path("run/digits/kl/seed-0/sampler-best.safetensors").exists());

    // Energies beside those of the longest Langevin chains other than those that end at T = 0, which with one seed have
    // nothing to be compared with themselves:
    // both from their files, in standard deviations of the chains' and as areas between sorted values.
    let energies = |place: &str| -> Vec<f64> {
        let file = path("run/digits").join(place).with_extension("npy");
        let mut energies: Vec<f64> = Vec::try_from(tch::Tensor::read_npy(file).unwrap()).unwrap();
        energies.sort_by(f64::total_cmp);
        energies
    };
    let chains = energies("langevin/seed-0/steps-2/2-steps-energies");
    let mean = chains.iter().sum::<f64>() / 120.0;
    let deviation = (chains.iter().map(|energy| (energy - mean).powi(2)).sum::<f64>() / 120.0).sqrt();
    let apart =
        |of: Vec<f64>| of.iter().zip(&chains).map(|(a, b)| (a - b).abs()).sum::<f64>() / (120.0 * deviation);
    for (number, of_row) in [(0, "dft/seed-0/trained-energies"), (9, "dft-mala/seed-0/2-steps-energies")] {
        let score = &rows[number]["metrics"]["energy_w1"];
        let expected = [apart(energies(of_row)), apart(energies("dft/seed-0/real-energies"))];
        for (found, expected) in [&score["value"], &score["floor"]].into_iter().zip(expected) {
            assert!((found.as_f64().unwrap() / expected - 1.0).abs() < 1e-9, "{score}, not {expected}");
        }
    }
    assert!(rows[4]["metrics"]["energy_w1"].is_null(), "{}", rows[4]);

    let markdown = fs::read_to_string(path("run/results.md")).unwrap();
    for words in
        ["| real images | floor |", "energy gradients a sample", "seconds for 10,000", "2 steps, h 0."]
    {
        assert!(markdown.contains(words), "`{words}` is not in: {markdown}");
    }
    let distances: Vec<f64> =
        rows.iter().map(|row| row["metrics"]["fd_lenet"]["value"].as_f64().unwrap()).collect();
    let best = (0..rows.len()).min_by(|a, b| distances[*a].total_cmp(&distances[*b])).unwrap();
    let first = markdown.lines().skip_while(|line| !line.starts_with("| real images")).nth(1).unwrap();
    assert!(first.starts_with(&format!("| {} |", expected[best].0)), "{first}");
    for figure in ["evaluations-digits.png", "grids-digits.png", "energies-digits.png"] {
        let png = fs::read(path("run/figures").join(figure)).unwrap();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n", "{figure}");
    }

    let written = files(&path("run"), "rows.json");
    assert_eq!(compare(&config).code, 0);
    assert_eq!(
        files(&path("run"), "rows.json"),
        written,
        "nothing was missing, and something was done again"
    );
    // One more length of chain is all that is missing then.
    assert_eq!(
        compare(&config.replace("steps = [1, 2], step_sizes", "steps = [1, 2, 3], step_sizes")).code,
        0
    );
    let changed: Vec<PathBuf> = files(&path("run"), "rows.json")
        .into_iter()
        .filter(|file| !written.contains(file))
        .map(|(file, _)| file.strip_prefix(path("run/digits/langevin/seed-0")).unwrap().to_path_buf())
        .collect();
    assert_eq!(changed, [Path::new("rows.json"), Path::new("steps-3/rows.json")]);
    // As many steps of the same size with the same random numbers, and another schedule.
    assert_eq!(compare(&config.replace("schedule = \"li2019\", ", "")).code, 0);
    let results = fs::read_to_string(path("run/results.json")).unwrap();
    let again: Vec<Value> = serde_json::from_str(&results).unwrap();
    assert_eq!((&again[7]["method"], &again[7]["setting"]), (&rows[7]["method"], &rows[7]["setting"]));
    assert_ne!(again[7]["metrics"]["fd_lenet"]["value"], rows[7]["metrics"]["fd_lenet"]["value"]);
}

#[test]
fn wrong_comparisons_of_images_are_refused_with_what_to_choose() {
    let config = CONFIG.replace("RECIPE", "configs/mnist.toml");
    parse::<CompareFile>(&config, "test", &[]).unwrap().check().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mnist = fs::read_to_string(root().join("configs/mnist.toml")).unwrap();
    let recipe = |name: &str, from: &str, to: &str| {
        assert!(mnist.contains(from));
        let path = directory.path().join(name);
        fs::write(&path, mnist.replace(from, to)).unwrap();
        path.display().to_string()
    };
    let untempered = recipe("untempered.toml", "tempered = true", "tempered = false");
    let featureless = recipe("featureless.toml", "features = \"lenet\"", "features = \"none\"");
    let gaussian = "configs/planar/gaussian.toml";
    let mala = "annealed = { kernel = \"mala\", steps = [2], step_sizes = [0.5] }";
    for (from, to, words) in [
        ("sets = 1", "sets = 2", &["score.sets = 2", "digits", "images", "set it to 1"][..]),
        (mala, "mcmc = { kind = \"mala\" }", &["\"mala\"", "`mcmc`", "vectors", "`annealed`"]),
        (mala, "fitted = { kind = \"laplace\" }", &["\"mala\"", "`fitted`", "posterior of a regression"]),
        ("configs/mnist.toml", gaussian, &["\"langevin\"", "tempered energy", "digits"]),
        ("configs/mnist.toml", &untempered, &["\"langevin\"", "target.tempered = true"]),
        ("configs/mnist.toml", &featureless, &["evaluate.features", "lenet"]),
        ("{ of = \"dft\"", "{ of = \"langevin\"", &["dft-mala", "corrected.of", "langevin", "trained"]),
        ("{ of = \"dft\"", "{ of = \"drift\"", &["corrected.of", "drift"]),
        ("steps = [1, 2], step_sizes", "steps = [], step_sizes", &["langevin", "annealed.steps", "[]"]),
        ("steps = [1, 2], step_sizes", "steps = [0], step_sizes", &["annealed.steps", "above 0"]),
        ("of = \"dft\", steps = [1, 2]", "of = \"dft\", steps = [1, 1]", &["corrected.steps", "each once"]),
        ("[0.25, 0.5]", "[0.25, 2.0]", &["annealed.step_sizes", "between 0 and 2"]),
        ("[0.25, 0.5]", "[]", &["annealed.step_sizes", "one number or more"]),
        ("[0.25, 0.5]", "[0.5], sigma = [0.1, 3.0]", &["annealed.sigma", "high ≥ low"]),
        ("tuning_samples = 100", "tuning_samples = 1", &["annealed.tuning_samples", "2 or more"]),
        ("leapfrog_steps = 3", "leapfrog_steps = 0", &["annealed.leapfrog_steps", "1 or more"]),
        ("leapfrog_steps = 3", "leapfrog = 3", &["leapfrog", "leapfrog_steps"]),
        ("kernel = \"hmc\"", "kernel = \"hmc\", schedule = \"li2019\"", &["annealed.schedule", "geometric"]),
        ("kernel = \"hmc\"", "kernel = \"nuts\"", &["nuts", "langevin", "mala", "hmc"]),
        (mala, &format!("{mala}\nset = [\"train.batch=24\"]"), &["mala", "one of", "`annealed`"]),
        (mala, &format!("{mala}\nbudgets = [\"seconds\"]"), &["mala", "`budgets`"]),
        (mala, &format!("{mala}\nmcmc = {{ kind = \"mala\" }}"), &["mala", "`annealed`"]),
    ] {
        let wrong = config.replacen(from, to, 1);
        assert_ne!(wrong, config, "{from}");
        let found = parse::<CompareFile>(&wrong, "test", &[]).and_then(CompareFile::check);
        let message = found.map(|_| ()).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{to}: {message}");
    }
    // Draws of a method that does not run on the target.
    let elsewhere = config
        .replace("{ of = \"dft\"", "{ of = \"kl\"")
        .replace("name = \"kl\"\n", "name = \"kl\"\ntargets = []\n");
    let message =
        parse::<CompareFile>(&elsewhere, "test", &[]).unwrap().check().map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("corrected.of") && message.contains("same targets"), "{message}");
}
