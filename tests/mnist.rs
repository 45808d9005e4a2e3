//! The main job in miniature, on real data: fit an energy and features, train on them, evaluate beside
//! Langevin, sample and plot. Needs data/mnist (`dft data mnist`), which ci/test.sh brings.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dft::model::WeightsFile;
use dft::record::RunReader;
use serde_json::Value;
use support::table::write_table;
use support::{Finished, mpirun, run_within};

const LIMIT: Duration = Duration::from_secs(240);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn on_two_ranks(arguments: &[&str]) -> Finished {
    on_ranks(2, arguments)
}

/// `dft` on so many ranks, one thread each, from the project's root.
#[track_caller]
fn on_ranks(ranks: usize, arguments: &[&str]) -> Finished {
    let mut command = mpirun(ranks);
    command.current_dir(root()).arg(env!("CARGO_BIN_EXE_dft")).args(arguments);
    let finished = run_within(command, LIMIT);
    assert_eq!(finished.code, 0, "{}", finished.output);
    finished
}

#[test]
fn the_whole_path_from_data_to_pictures_runs_on_two_ranks() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let [energy, lenet, run, samples] =
        ["energy.safetensors", "lenet.safetensors", "run", "samples.h5"].map(path);

    on_two_ranks(&[
        "fit-energy",
        "configs/mnist-energy.toml",
        "-o",
        &energy,
        "--run",
        &path("energy"),
        "--set",
        "energy.width=8",
        "--set",
        "train.iterations=12",
        "--set",
        "train.batch=24",
    ]);
    let loss =
        RunReader::open(directory.path().join("energy/run.h5")).unwrap().series("train", "loss").unwrap();
    assert!(loss.len() == 12 && loss.iter().all(|value| value.is_finite()), "{loss:?}");
    on_two_ranks(&[
        "fit-features",
        "configs/mnist-features.toml",
        "-o",
        &lenet,
        "--run",
        &path("lenet"),
        "--set",
        "train.iterations=300",
    ]);

    let (energy, lenet) = (format!("target.file={energy}"), format!("evaluate.features_file={lenet}"));
    let train = |more: &[&str]| {
        let mut arguments = vec!["train", "configs/mnist.toml", "--run", &run];
        let settings = [
            energy.as_str(),
            &lenet,
            "sampler.width=8",
            "score.width=8",
            "warm_start.updates=2",
            "regression.pairs=24",
            "regression.langevin_steps=1",
            "train.warmup_updates=2",
            "evaluate.samples=150",
            "evaluate.every=2",
            "checkpoint.every=2",
        ];
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        arguments.extend(more);
        on_two_ranks(&arguments);
        // The best of all evaluations so far is kept beside the last sampler, with its distance.
        let best = WeightsFile::load(&Path::new(&run).join("sampler-best.safetensors")).unwrap();
        let best: Value = best.described("frechet_distance").unwrap();
        let record = RunReader::open(Path::new(&run).join("run.h5")).unwrap();
        let distances = record.series("evaluation", "fd_lenet").unwrap();
        let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
        assert_eq!(
            (best["distance"].as_f64().unwrap(), &best["on"][1]),
            (least, &150.into()),
            "{distances:?}"
        );
        distances.len()
    };
    assert_eq!(train(&["--set", "train.iterations=4"]), 2);
    assert_eq!(train(&["--set", "train.iterations=8", "--resume"]), 4);
    let finished = on_two_ranks(&["evaluate", &run, "--langevin", "2,3"]);
    for words in ["real images", "one step", "Langevin, 2 steps", "Langevin, 3 steps", "FD-LeNet", "pixel sd"]
    {
        assert!(finished.output.contains(words), "`{words}` is not in: {}", finished.output);
    }
    let summary: Value =
        serde_json::from_str(&fs::read_to_string(Path::new(&run).join("summary.json")).unwrap()).unwrap();
    let rows = summary["comparison"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        // The same count and floor stand in every row.
        let score = &row["metrics"]["fd_lenet"];
        assert_eq!(
            (&score["samples"], &score["floor"]),
            (&150.into(), &rows[0]["metrics"]["fd_lenet"]["value"])
        );
    }
    assert_eq!(rows[3]["target_evaluations_per_sample"], 4); // three steps and one to denoise
    // The longest chains are what energies are compared with.
    let energy = |row: usize| rows[row]["metrics"]["energy_w1"]["value"].as_f64();
    assert!((0..3).all(|row| energy(row).is_some_and(|distance| distance > 0.0)) && energy(3).is_none());
    // One rank reads the same energies as two.
    on_ranks(1, &["evaluate", &run, "--langevin", "2,3"]);
    let alone: Value =
        serde_json::from_str(&fs::read_to_string(Path::new(&run).join("summary.json")).unwrap()).unwrap();
    for row in 0..3 {
        let on_one = alone["comparison"][row]["metrics"]["energy_w1"]["value"].as_f64().unwrap();
        assert!((on_one / energy(row).unwrap() - 1.0).abs() < 1e-3, "row {row}: {on_one} on one rank");
    }
    best_look_is_scored_on_draws_of_its_own(Path::new(&run));
    on_two_ranks(&["evaluate", &run, "--langevin", "2,3"]);
    // The same table is in the run file, beside the hash of what it was measured on.
    let record = RunReader::open(Path::new(&run).join("run.h5")).unwrap();
    assert_eq!(record.series("comparison", "target_evaluations_per_sample").unwrap(), [0.0, 0.0, 3.0, 4.0]);
    assert!(record.series("comparison", "energy_w1").unwrap()[3].is_nan());
    assert_eq!(summary["extractor"]["name"], "LeNet-5, 84 features");

    on_two_ranks(&["sample", &run, "-n", "20", "-o", &samples]);
    on_two_ranks(&["plot", &run]);
    for figure in ["samples.png", "losses.png", "evaluation.png", "comparison.png", "energies.png"] {
        let png = fs::read(Path::new(&run).join("figures").join(figure)).unwrap();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n", "{figure}");
    }
}

/// `--best` reads the best look's weights and no others, draws what the looks did not, and records the look's iteration.
fn best_look_is_scored_on_draws_of_its_own(run: &Path) {
    let [best, last] = ["sampler-best.safetensors", "sampler.safetensors"].map(|name| run.join(name));
    let arguments = ["evaluate", run.to_str().unwrap(), "--set", "evaluate.langevin_steps=[]", "--best"];
    let one_step = |arguments: &[&str]| {
        on_ranks(1, arguments);
        let text = fs::read_to_string(run.join("summary.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["comparison"][1].clone()
    };
    let kept = fs::read(&last).unwrap();
    fs::remove_file(&last).unwrap();
    let of_best = one_step(&arguments);
    assert!(of_best["sampler"].as_str().unwrap().ends_with("best look"), "{of_best}");
    let iteration = WeightsFile::load(&best).unwrap().described::<f64>("iteration").unwrap();
    let record = RunReader::open(run.join("run.h5")).unwrap();
    assert_eq!(record.series("comparison", "iteration").unwrap(), [iteration; 2]);
    // The same weights in the place of the last are scored on the draws that chose them, and score what they were chosen for.
    fs::rename(&best, &last).unwrap();
    let distance = |row: &Value| row["metrics"]["fd_lenet"]["value"].as_f64().unwrap();
    let chosen: Value = WeightsFile::load(&last).unwrap().described("frechet_distance").unwrap();
    let chosen = chosen["distance"].as_f64().unwrap();
    let from_chosen = |row: Value| (distance(&row) / chosen - 1.0).abs();
    assert!(from_chosen(one_step(&arguments[..4])) < 1e-3);
    assert!(from_chosen(of_best) > 1e-3);
    let mut command = Command::new(env!("CARGO_BIN_EXE_dft"));
    command.current_dir(root()).args(arguments);
    let refused = run_within(command, LIMIT);
    assert_eq!(refused.code, 2, "{}", refused.output);
    for words in ["--best", "evaluate.every", "sampler-best.safetensors"] {
        assert!(refused.output.contains(words), "`{words}` is not in: {}", refused.output);
    }
    fs::rename(&last, &best).unwrap();
    fs::write(&last, kept).unwrap();
}

#[test]
fn committed_features_are_what_their_metadata_say() {
    // The test accuracy that stands in the committed weights, measured again from the weights and the test
    // split.
    let file = WeightsFile::load(&root().join("configs/weights/mnist-lenet.safetensors")).unwrap();
    let recorded: f64 = file.metadata("test_accuracy").unwrap().parse().unwrap();
    assert!(recorded > 0.985);
    let network = dft::model::LeNet::default();
    let parameters = dft::model::Parameters::from_file(network.layout(), &file, tch::Device::Cpu).unwrap();
    let mnist = dft::data::Mnist::load(&root().join("data/mnist")).unwrap();
    let (x, y) = (mnist.images(dft::data::Split::Test), mnist.labels(dft::data::Split::Test));
    let found = dft::train::accuracy(&network, parameters.frozen(), &x, &y);
    assert!((found - recorded).abs() < 1e-4, "{found} for {recorded}");
}

#[test]
fn every_training_configuration_in_the_repository_takes_a_step() {
    // Small in the two dimensions that cost time; everything else as a user runs it, but that regressions get a table
    // of the test's own, whatever data/covertype holds. Their heavy rows are then all rows.
    let directory = tempfile::tempdir().unwrap();
    let table = directory.path().join("table.csv");
    write_table(&table, "y", ["0", "1"]);
    let data = format!("target.data={}", table.display());
    let small = ["train.batch=24", "train.iterations=1", "evaluate.samples=100", "train.warmup_updates=1"];
    // One trains on an energy that another makes: a small one.
    let energy = directory.path().join("energy");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dft"));
    command
        .current_dir(root())
        .args(["fit-energy", "configs/mnist-energy-resnet.toml", "--run"])
        .arg(&energy);
    command.args(["--set", "energy.width=4", "--set", "train.iterations=1", "--set", "train.batch=24"]);
    let finished = run_within(command, LIMIT);
    assert_eq!(finished.code, 0, "{}", finished.output);
    let energy = format!("target.file={}", energy.join("weights.safetensors").display());
    let directories = ["configs", "configs/planar", "configs/speed"]
        .map(|directory| fs::read_dir(root().join(directory)).unwrap());
    let small_sets = [&small[..], &["evaluate.point_sets=1"]].concat();
    let (mut found, mut regressions) = (0, 0);
    for entry in directories.into_iter().flatten() {
        let config = entry.unwrap().path();
        let name = config.file_name().unwrap().to_str().unwrap().to_string();
        let Some(kind) = name.strip_suffix(".toml") else { continue };
        let (verb, settings): (&str, &[&str]) = match kind {
            // Fashion-MNIST has the format of MNIST, which is there.
            "mnist-features" | "fashion-features" => {
                ("fit-features", &["train.iterations=1", "train.data=data/mnist"])
            }
            "mnist-energy" | "fashion-energy" => {
                ("fit-energy", &["train.iterations=1", "train.batch=24", "train.data=data/mnist"])
            }
            "mnist-energy-resnet" => {
                ("fit-energy", &["train.iterations=1", "train.batch=24", "energy.width=8"])
            }
            _ if config.parent().is_some_and(|parent| parent.ends_with("planar")) => ("train", &small_sets),
            _ => ("train", &small),
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_dft"));
        command.current_dir(root()).arg(verb).arg(&config);
        // Two directories may have a configuration of the same name.
        command.arg("--run").arg(directory.path().join(format!("{kind}-{found}")));
        for setting in settings {
            command.args(["--set", setting]);
        }
        let text = fs::read_to_string(&config).unwrap();
        if text.contains("kind = \"logistic\"") {
            command.args(["--set", &data, "--set", "target.label=y"]);
            regressions += 1;
        }
        if text.contains("[warm_start]") {
            command.args(["--set", "warm_start.updates=1"]);
        }
        if text.contains("[regression]") {
            command.args(["--set", "regression.pairs=24", "--set", "regression.langevin_steps=1"]);
        }
        if kind == "mnist-resnet" {
            command.args(["--set", &energy, "--set", "sampler.width=8", "--set", "score.width=8"]);
            command.args(["--set", "regression.batch=24"]);
        }
        if kind == "fashion" {
            command.args(["--set", "evaluate.data=data/mnist"]);
        }
        let finished = run_within(command, LIMIT);
        assert_eq!(finished.code, 0, "{name}: {}", finished.output);
        found += 1;
    }
    assert!(found >= 26 && regressions >= 3, "only {found} configurations, {regressions} of regressions");
}
