//! Wrong input: each gives exit code 2 before any work, one message that says what was wanted, what was
//! found and what to do, and leaves what was there untouched.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::{Finished, mpirun, run_within};
use tch::{CModule, Device, Kind, Tensor};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn dft(arguments: &[&str]) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dft"));
    command.current_dir(root()).args(arguments);
    run_within(command, LIMIT)
}

/// A directory for runs, and a tiny training command in it.
struct Bench {
    directory: TempDir,
}

impl Bench {
    fn new() -> Self {
        Bench { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn train(&self, config: &str, more: &[&str]) -> Finished {
        let run = self.path("run");
        let mut arguments = vec!["train", config, "--run", run.to_str().unwrap()];
        arguments.extend(["--set", "train.iterations=2", "--set", "train.warmup_updates=1"]);
        arguments.extend(more);
        dft(&arguments)
    }

    /// Training on an energy whose weights are in `file`.
    fn train_on_energy(&self, file: &Path) -> Finished {
        let setting = format!("target.file={}", file.display());
        self.train("configs/mnist.toml", &["--set", &setting, "--set", "evaluate.features=none"])
    }
}

/// A regression on `table`, whose rows stand in a file of that name unless `text` is empty.
fn regression(bench: &Bench, text: &str, settings: &[&str]) -> Finished {
    let table = bench.path("table.csv");
    if !text.is_empty() {
        fs::write(&table, text).unwrap();
    }
    let config = bench.path("regression.toml");
    let recipe = fs::read_to_string(root().join("configs/covertype.toml")).unwrap();
    let target = format!("data = \"{}\"\nlabel = \"y\"", table.display());
    fs::write(&config, recipe.replace("data = \"data/covertype\"", &target)).unwrap();
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    bench.train(config.to_str().unwrap(), &settings)
}

/// Forty rows of two classes.
fn table() -> String {
    format!("age,y\n{}", "31,0\n42,1\n53,0\n64,1\n".repeat(10))
}

/// Exit code 2, one error line with all of `words`, and no run begun.
#[track_caller]
fn refused(finished: &Finished, words: &[&str]) {
    assert_eq!(finished.code, 2, "{}", finished.output);
    assert_eq!(finished.output.matches("ERROR").count(), 1, "{}", finished.output);
    for word in words {
        assert!(finished.output.contains(word), "`{word}` is not in: {}", finished.output);
    }
}

#[test]
fn unknown_key_is_named_with_its_line() {
    let bench = Bench::new();
    let config = bench.path("misspelt.toml");
    let text = fs::read_to_string(root().join("configs/quick.toml")).unwrap();
    fs::write(&config, text.replace("score_updates", "score_update")).unwrap();
    let run = bench.path("run");
    let finished = dft(&["train", config.to_str().unwrap(), "--run", run.to_str().unwrap()]);
    refused(&finished, &["unknown field", "score_update", "score_updates", "line"]);
    assert!(!run.exists());
}

#[test]
fn unknown_key_and_wrong_type_on_the_command_line_are_refused() {
    let bench = Bench::new();
    refused(
        &bench.train("configs/quick.toml", &["--set", "train.iteratons=5"]),
        &["iteratons", "iterations"],
    );
    refused(&bench.train("configs/quick.toml", &["--set", "train.batch=many"]), &["invalid type", "many"]);
    refused(&bench.train("configs/quick.toml", &["--set", "compute.stall_seconds=-1"]), &["integer `-1`"]);
    refused(&bench.train("configs/quick.toml", &["--set", "batch=5"]), &["section.key=value"]);
    assert!(!bench.path("run").exists());
}

#[test]
fn absent_configuration_is_named() {
    refused(
        &Bench::new().train("configs/absent.toml", &[]),
        &["cannot read configuration", "configs/absent.toml"],
    );
}

#[test]
fn indivisible_batch_and_shards_are_refused_with_what_would_fit() {
    let bench = Bench::new();
    refused(&bench.train("configs/quick.toml", &["--set", "train.batch=250"]), &["250", "24 shards", "264"]);
    let mut command = mpirun(2);
    command.current_dir(root()).arg(env!("CARGO_BIN_EXE_dft")).args(["train", "configs/quick.toml", "--run"]);
    command.arg(bench.path("run")).args(["--set", "compute.shards=15"]);
    refused(&run_within(command, LIMIT), &["compute.shards = 15", "2 ranks", "16"]);
}

#[test]
fn values_out_of_range_say_what_to_choose() {
    let bench = Bench::new();
    for (setting, words) in [
        ("train.iterations=0", ["train.iterations = 0", "1 or more"]),
        ("method.sigma=-0.1", ["method.sigma", "level > 0"]),
        ("train.sampler_betas=[0.9, 1.0]", ["train.sampler_betas", "[0, 1)"]),
        ("sampler.latent=1", ["sampler.latent = 1", "dimension 2"]),
        ("evaluate.features=inception", ["inception", "\"lenet\""]),
        ("evaluate.samples=40000", ["evaluate.samples = 40000", "30000"]),
        ("sampler.kind=unet", ["sampler.kind", "\"mlp\""]),
        ("sampler.stages=2", ["sampler.stages = 2", "\"unet\""]),
        ("score.conservative=true", ["score.conservative", "score.start = \"energy\""]),
        ("target.covariance=[[1.0, 2.0], [2.0, 1.0]]", ["target.covariance", "positive definite"]),
    ] {
        refused(&bench.train("configs/quick.toml", &["--set", setting]), &words);
    }
    let joint = ["--set", "train.schedule=simultaneous", "--set", "method.variance=control_variate"];
    refused(&bench.train("configs/quick.toml", &joint), &["control_variate", "antithetic"]);
}

#[test]
fn targets_that_are_not_defined_are_refused() {
    let bench = Bench::new();
    let config = bench.path("target.toml");
    let text = fs::read_to_string(root().join("configs/quick.toml")).unwrap();
    let (start, end) = (text.find("kind = \"gaussian\"").unwrap(), text.find("[sampler]").unwrap());
    for (target, words) in [
        ("kind = \"gaussian\"\nmean = [0.0, 0.0]", ["target.covariance", "leave out both"]),
        ("kind = \"mog2\"\nweights = [0.8, 0.3]", ["target.weights", "sum to 1"]),
        ("kind = \"ring\"\nradius = -1.0", ["target.radius = -1", "a length above 0"]),
        ("kind = \"donut\"\nradius = 3.0", ["unknown field", "radius"]),
        ("kind = \"doughnut\"", ["doughnut", "donut"]),
    ] {
        fs::write(&config, format!("{}{target}\n\n{}", &text[..start], &text[end..])).unwrap();
        refused(&bench.train(config.to_str().unwrap(), &[]), &words);
    }
    assert!(!bench.path("run").exists());
}

#[test]
fn tables_that_are_not_two_classes_of_numbers_are_refused_with_file_line_and_column() {
    let bench = Bench::new();
    for (text, words) in [
        ("age,x\n31,0\n42,1\n", &["table.csv", "no column \"y\"", "age, x"][..]),
        (
            "age,y\n31,0\nold,1\n42,1\n",
            &["table.csv", "line 3", "column \"age\"", "wanted a number", "\"old\""],
        ),
        (
            "age,y\n31,1\n42,1\n53,1\n",
            &["table.csv", "column \"y\"", "two classes", "\"1\" in each of 3 rows"],
        ),
        ("age,y\n31,a\n42,b\n53,c\n", &["table.csv", "line 4", "third class \"c\""]),
        ("age,y\n31,a\n42,b\n53,a\n", &["table.csv", "column \"y\"", "\"a\" and \"b\"", "positive"]),
    ] {
        refused(&regression(&bench, text, &[]), words);
    }
    // One of the six rows is held out, and it has one label.
    let few = "age,y\n31,0\n42,1\n53,0\n64,1\n75,0\n36,1\n";
    refused(&regression(&bench, few, &[]), &["test rows of split 0", "both classes", "another split"]);
    let short = "age,y\n31,0\n42\n";
    refused(&regression(&bench, short, &[]), &["table.csv", "line 3", "2 cells", "found 1"]);
    // Two ranks read the same table and say it once.
    let mut command = mpirun(2);
    command
        .current_dir(root())
        .arg(env!("CARGO_BIN_EXE_dft"))
        .arg("train")
        .arg(bench.path("regression.toml"));
    command.arg("--run").arg(bench.path("run"));
    refused(&run_within(command, LIMIT), &["table.csv", "line 3", "2 cells"]);
    assert!(!bench.path("run").exists());
}

#[test]
fn regressions_that_are_not_defined_are_refused() {
    let bench = Bench::new();
    refused(&regression(&bench, "", &[]), &["reading", "table.csv", "No such file"]);
    for (settings, words) in [
        (&["target.data=data/covertype"][..], &["target.label = y", "nothing for Covertype"][..]),
        (&["target.batch=0"], &["target.batch = 0", "1 row or more"]),
        (&["target.test_fraction=1.0"], &["target.test_fraction = 1", "between 0 and 1"]),
        (&["target.prior_rate=0.0"], &["target.prior_rate = 0", "above 0"]),
        (&["target.scaling=robust"], &["robust", "standard"]),
        (&["target.positive=\"2\""], &["table.csv", "positive class \"2\"", "\"0\" and \"1\""]),
        (&["sampler.latent=2"], &["sampler.latent = 2", "dimension 3"]),
    ] {
        refused(&regression(&bench, &table(), settings), words);
    }
    let config = bench.path("unlabelled.toml");
    let text = fs::read_to_string(bench.path("regression.toml")).unwrap();
    fs::write(&config, text.replace("label = \"y\"\n", "")).unwrap();
    refused(
        &bench.train(config.to_str().unwrap(), &[]),
        &["target.label = nothing", "label's column", ".csv"],
    );
    // Data that nobody has fetched say how to.
    let absent = format!("target.data={}", bench.path("absent").display());
    let finished = bench.train("configs/covertype.toml", &["--set", &absent]);
    refused(&finished, &["absent", "dft data covertype"]);
    assert!(!bench.path("run").exists());
}

#[test]
fn references_are_refused_for_other_targets_and_on_several_ranks() {
    refused(&dft(&["reference", "configs/quick.toml"]), &["logistic", "exact samples"]);
    let bench = Bench::new();
    assert_eq!(regression(&bench, &table(), &["target.batch=0"]).code, 2); // which leaves a table and a configuration
    let mut command = mpirun(2);
    command.current_dir(bench.path("")).arg(env!("CARGO_BIN_EXE_dft")).args(["reference", "regression.toml"]);
    refused(&run_within(command, LIMIT), &["2 ranks", "without a launcher"]);
    assert!(!bench.path("data").exists());
}

#[test]
fn smoothing_is_refused_where_it_means_nothing() {
    let bench = Bench::new();
    for (settings, words) in [
        (&["method.kind=dft"][..], &["method.smoothing = 64", "method.kind = \"kl\""][..]),
        (&["method.phases=[{ at = 0.5, kind = \"hybrid\" }]"], &["method.smoothing", "in all phases"]),
        (&["method.anneal_until=0.5"], &["method.smoothing", "anneal_until = 0"]),
        (&["method.anneal_to=0.9"], &["method.smoothing", "anneal_to = 1"]),
        (&["score.base=target"], &["method.smoothing", "score.base = \"target\""]),
        (&["method.smoothing=1"], &["method.smoothing = 1", "2 and more"]),
    ] {
        let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        refused(&bench.train("configs/planar/gmm40.toml", &settings), words);
    }
    assert!(!bench.path("run").exists());
}

#[test]
fn settings_of_scores_of_vectors_are_refused_for_images() {
    let bench = Bench::new();
    for setting in [
        "score.frequencies=5",
        "score.noise_scaling=true",
        "score.linear_skip=true",
        "score.tail_scaling=true",
        "score.base=target",
    ] {
        let key = setting.split_once('=').unwrap().0;
        refused(&bench.train("configs/mnist.toml", &["--set", setting]), &[key, "score.kind = \"mlp\""]);
    }
    refused(
        &bench.train("configs/quick.toml", &["--set", "score.frequencies=17"]),
        &["score.frequencies = 17", "0 to 16"],
    );
    assert!(!bench.path("run").exists());
}

#[test]
fn density_that_is_not_one_is_refused_before_training() {
    // One of the checks through the program; tests/torchscript.rs has all of them.
    let bench = Bench::new();
    let file = bench.path("density.pt");
    let x = Tensor::ones([2, 2], (Kind::Float, Device::Cpu));
    let mut detached = |inputs: &[Tensor]| {
        let energy = |x: &Tensor| x.square().sum_dim_intlist(1i64, false, None) * -0.5;
        vec![energy(&inputs[0]) + energy(&inputs[0].detach())]
    };
    CModule::create_by_tracing("density", "forward", &[x], &mut detached).unwrap().save(&file).unwrap();
    let setting = format!("target.file={}", file.display());
    let finished = bench.train("configs/torchscript.toml", &["--set", &setting]);
    refused(&finished, &["target.file", "density.pt", "check `gradient`", "detach()"]);
    assert!(!bench.path("run").exists());
    let finished = bench.train("configs/torchscript.toml", &["--set", "target.file=absent.pt"]);
    refused(&finished, &["check `file`", "absent.pt", "no such file"]);
}

#[test]
fn warm_starts_and_regressions_that_do_not_fit_the_sampler_or_the_target_are_refused_before_any_work() {
    let bench = Bench::new();
    for (setting, words) in [
        ("regression.weight=0", ["regression.weight = 0", "above 0"]),
        ("regression.pairs=25", ["regression.pairs = 25", "compute.shards = 24"]),
        ("regression.batch=0", ["regression.batch = 0", "compute.shards = 24"]),
        ("regression.pool=3", ["regression.pool = 3", "28 × 28"]),
        ("regression.huber_scale=-1.0", ["regression.huber_scale = -1", "squared distance"]),
        ("regression.steps=0", ["regression.steps = 0", "1 or more"]),
        ("regression.sigma=[0.1, 3.0]", ["regression.sigma = [0.1, 3]", "high ≥ low"]),
        ("regression.langevin_step_size=2.0", ["regression.langevin_step_size = 2", "unstable"]),
        ("sampler.output=tanh", ["sampler.output", "tanh"]),
        ("train.score_final_lr_fraction=1.5", ["train.score_final_lr_fraction = 1.5", "0 to 1"]),
    ] {
        refused(&bench.train("configs/mnist.toml", &["--set", setting]), &words);
    }
    refused(
        &bench.train("configs/mnist.toml", &["--set", "target.tempered=false"]),
        &["tempered target", "target.tempered = true"],
    );
    for (section, setting) in
        [("[warm_start]", "warm_start.updates=2"), ("[regression]", "regression.weight=1.0")]
    {
        let refused = |config: &str, words: &[&str]| {
            refused(&bench.train(config, &["--set", setting]), &[&[section], words].concat());
        };
        refused("configs/quick.toml", &["tempered target"]);
        refused("configs/mnist-generator.toml", &["\"generator\"", "choose sampler.kind = \"unet\""]);
    }
    refused(
        &bench.train("configs/quick.toml", &["--set", "sampler.output=sigmoid"]),
        &["sampler.output", "\"unet\""],
    );
    assert!(!bench.path("run").exists());
}

#[test]
fn missing_weights_are_named() {
    let bench = Bench::new();
    refused(
        &bench.train_on_energy(&bench.path("absent.safetensors")),
        &["cannot read weights", "absent.safetensors"],
    );
}

#[test]
fn truncated_and_altered_weights_are_recognised() {
    let bench = Bench::new();
    let whole = fs::read(root().join("configs/weights/mnist-energy.safetensors")).unwrap();
    let file = bench.path("weights.safetensors");
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    refused(&bench.train_on_energy(&file), &["damaged", "weights.safetensors"]);
    let mut altered = whole.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 1; // one flipped bit
    fs::write(&file, &altered).unwrap();
    refused(&bench.train_on_energy(&file), &["damaged", "SHA-256 of its tensors"]);
}

#[test]
fn weights_of_another_network_are_refused() {
    let bench = Bench::new();
    let lenet = root().join("configs/weights/mnist-lenet.safetensors");
    refused(&bench.train_on_energy(&lenet), &["another network", "mnist-lenet.safetensors"]);
    let wide =
        bench.train("configs/mnist.toml", &["--set", "sampler.width=32", "--set", "evaluate.features=none"]);
    refused(&wide, &["sampler.start", "width 24"]);
}

#[test]
fn checkpoint_of_another_network_or_run_is_refused_and_kept() {
    let bench = Bench::new();
    assert_eq!(bench.train("configs/quick.toml", &[]).code, 0);
    let checkpoint = bench.path("run/checkpoints/iteration-000000002.safetensors");
    let before = fs::read(&checkpoint).unwrap();
    let summary = fs::read(bench.path("run/summary.json")).unwrap();
    let resume = |setting: &str| bench.train("configs/quick.toml", &["--resume", "--set", setting]);
    refused(&resume("sampler.width=16"), &["[sampler]", "16"]);
    refused(&resume("run.seed=7"), &["run.seed = 0", "7"]);
    refused(&resume("compute.shards=12"), &["compute.shards = 24", "12"]);
    // The same shapes and another function: the weights would fit, and mean something else.
    refused(&resume("sampler.initial_scale=3.0"), &["[sampler]", "3.0"]);
    refused(&resume("compute.precision=tf32"), &["compute.precision", "exact", "tf32"]);
    refused(&resume("method.sigma=0.3"), &["[method]", "0.3"]);
    refused(&resume("train.iterations=1"), &["2 iterations", "train.iterations = 1"]);
    assert_eq!(fs::read(&checkpoint).unwrap(), before);
    assert_eq!(fs::read(bench.path("run/summary.json")).unwrap(), summary);
    // A damaged checkpoint is no checkpoint.
    fs::write(&checkpoint, &before[..before.len() - 100]).unwrap();
    refused(&resume("run.seed=0"), &["damaged", "iteration-000000002"]);
}

#[test]
fn data_with_another_hash_are_refused() {
    let bench = Bench::new();
    let data = bench.path("mnist");
    fs::create_dir(&data).unwrap();
    // Files of the right sizes, all zero.
    for (name, bytes) in [
        ("train-images-idx3-ubyte", 47_040_016),
        ("train-labels-idx1-ubyte", 60_008),
        ("t10k-images-idx3-ubyte", 7_840_016),
        ("t10k-labels-idx1-ubyte", 10_008),
    ] {
        fs::File::create(data.join(name)).unwrap().set_len(bytes).unwrap();
    }
    let (setting, run) = (format!("train.data={}", data.display()), bench.path("run"));
    let run_name = run.to_str().unwrap();
    let finished =
        dft(&["fit-features", "configs/mnist-features.toml", "--run", run_name, "--set", &setting]);
    refused(&finished, &["SHA-256", "dft data mnist"]);
    assert!(!run.exists());
}

#[test]
fn a_flipped_bit_in_the_description_of_weights_is_recognised_too() {
    // sigma0 stands in the metadata, not in the tensors; another value would be another density.
    let bench = Bench::new();
    let whole = fs::read(root().join("configs/weights/mnist-energy.safetensors")).unwrap();
    let name = b"sigma0";
    let at = whole.windows(name.len()).position(|window| window == name).unwrap();
    let digit = at + whole[at..].iter().position(|byte| *byte == b'1').unwrap();
    let mut altered = whole.clone();
    altered[digit] = b'2';
    let file = bench.path("weights.safetensors");
    fs::write(&file, &altered).unwrap();
    refused(&bench.train_on_energy(&file), &["damaged", "SHA-256 of its metadata"]);
}

#[test]
fn existing_weights_are_not_overwritten_without_force() {
    let bench = Bench::new();
    let weights = bench.path("weights.safetensors");
    fs::write(&weights, b"somebody's").unwrap();
    let run = bench.path("run");
    let finished = dft(&[
        "fit-energy",
        "configs/mnist-energy.toml",
        "-o",
        weights.to_str().unwrap(),
        "--run",
        run.to_str().unwrap(),
        "--set",
        "train.iterations=1",
    ]);
    refused(&finished, &["exist", "--force"]);
    assert_eq!(fs::read(&weights).unwrap(), b"somebody's");
}

#[test]
fn nothing_to_draw_is_said() {
    let bench = Bench::new();
    assert_eq!(dft(&["sample", bench.path("absent").to_str().unwrap(), "-n", "0", "-o", "x.npy"]).code, 2);
    refused(&dft(&["plot", bench.path("absent").to_str().unwrap()]), &["absent"]);
}

#[test]
fn run_directory_that_holds_a_run_is_left_alone() {
    let bench = Bench::new();
    assert_eq!(bench.train("configs/quick.toml", &[]).code, 0);
    let before = fs::read(bench.path("run/run.h5")).unwrap();
    refused(&bench.train("configs/quick.toml", &[]), &["already holds a run", "--resume"]);
    assert_eq!(fs::read(bench.path("run/run.h5")).unwrap(), before);
}

#[test]
fn run_directory_that_cannot_be_made_is_refused() {
    // Below a file, no directory can be made, whoever asks (root may write anywhere else).
    let bench = Bench::new();
    fs::write(bench.path("run"), "a file").unwrap();
    let below = bench.path("run/below");
    refused(&dft(&["train", "configs/quick.toml", "--run", below.to_str().unwrap()]), &["cannot make"]);
}

#[test]
fn nothing_to_resume_is_said() {
    refused(
        &Bench::new().train("configs/quick.toml", &["--resume"]),
        &["no run to resume", "without --resume"],
    );
}

#[test]
fn cuda_that_is_absent_is_an_error_and_no_fall_back() {
    let bench = Bench::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dft"));
    command.current_dir(root()).args([
        "train",
        "configs/quick.toml",
        "--set",
        "compute.device=cuda",
        "--run",
    ]);
    // On a host with GPUs, none of them is shown.
    command.arg(bench.path("run")).env("CUDA_VISIBLE_DEVICES", "");
    let finished = run_within(command, LIMIT);
    refused(&finished, &["cuda", "cpu"]);
}

#[test]
fn launcher_without_mpi_is_an_error_and_not_two_lonely_runs() {
    let bench = Bench::new();
    let run = bench.path("run");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dft"));
    command.current_dir(root()).args(["train", "configs/quick.toml", "--run"]).arg(&run);
    // What a foreign launcher sets for a job of two ranks; this program's MPI sees one.
    command.env("PMI_RANK", "0").env("PMI_SIZE", "2");
    refused(&run_within(command, LIMIT), &["2 processes", "mpirun"]);
    assert!(!run.exists());
}

#[test]
fn usage_errors_come_from_one_rank() {
    let mut command = mpirun(2);
    command.arg(env!("CARGO_BIN_EXE_dft")).args(["train", "--colour", "blue"]);
    let finished = run_within(command, LIMIT);
    assert_eq!(finished.code, 2, "{}", finished.output);
    assert_eq!(finished.output.matches("unexpected argument").count(), 1, "{}", finished.output);
}
