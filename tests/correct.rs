//! Draws of a badly trained sampler, moved on by Markov steps on its target: `dft sample --correct` and
//! `evaluate.corrections`.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use dft::model::{Parameters, SamplerNetwork, SamplerSpec, WeightsFile};
use dft::record::RunReader;
use dft::rng::{Generator, Stream};
use serde_json::Value;
use support::table::write_table;
use support::{Finished, mpirun, run_within};
use tch::{Device, Kind, Tensor, no_grad};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(240);

/// Noise level of configs/quick.toml, and so the noise of its samples.
const SIGMA: f64 = 0.2;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn dft(directory: &Path, words: &[&str]) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dft"));
    command.current_dir(directory).args(words);
    run_within(command, LIMIT)
}

/// The run of a sampler of the Gaussian that has seen five updates; trained once.
fn run() -> &'static Path {
    static RUN: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, run) = RUN.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run");
        let mut words = vec!["train", "configs/quick.toml", "--run", run.to_str().unwrap()];
        for setting in ["train.iterations=5", "train.warmup_updates=1", "evaluate.every=0"] {
            words.extend(["--set", setting]);
        }
        let finished = dft(root(), &words);
        assert_eq!(finished.code, 0, "{}", finished.output);
        (directory, run)
    });
    run
}

/// A copy of what `dft sample` and `dft evaluate` read of that run, for tests that change it.
fn copy_of_run() -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["config.toml", "sampler.safetensors", "summary.json", "run.h5"] {
        fs::copy(run().join(name), copy.path().join(name)).unwrap();
    }
    copy
}

/// `dft sample RUN -o FILE` with these words.
fn sample(run: &Path, file: &Path, words: &[&str]) -> Finished {
    let mut all = vec!["sample", run.to_str().unwrap(), "-o", file.to_str().unwrap()];
    all.extend(words);
    dft(root(), &all)
}

/// The samples of such a command, in f64, and what it said.
#[track_caller]
fn drawn(words: &[&str]) -> (Tensor, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("x.npy");
    let finished = sample(run(), &file, words);
    assert_eq!(finished.code, 0, "{}", finished.output);
    (Tensor::read_npy(&file).unwrap().to_kind(Kind::Double), finished.output)
}

/// Largest distance of mean and covariance of `x` `[N, 2]` from those of the target, in standard errors of N independent
/// draws. Exact: mean (−1, 1) and covariance inverse of [[3, −0.5], [−0.5, 1]], (4/11 2/11; 2/11 12/11). Standard errors of a
/// Gaussian: sqrt(C_ii/N), and sqrt((C_ii C_jj + C_ij²)/N).
fn standard_errors(x: &Tensor) -> f64 {
    let n = x.size()[0] as f64;
    let (mean, exact) = ([-1.0, 1.0], [[4.0 / 11.0, 2.0 / 11.0], [2.0 / 11.0, 12.0 / 11.0f64]]);
    let centred = x - x.mean_dim([0i64].as_slice(), true, Kind::Double);
    let covariance = centred.transpose(0, 1).matmul(&centred) / (n - 1.0);
    let mut worst = 0.0f64;
    for i in 0..2 {
        let found = x.select(1, i).mean(Kind::Double).double_value(&[]);
        let i = i as usize;
        worst = worst.max((found - mean[i]).abs() / (exact[i][i] / n).sqrt());
        for j in 0..2 {
            let error = covariance.double_value(&[i as i64, j as i64]) - exact[i][j];
            worst = worst.max(error.abs() / ((exact[i][i] * exact[j][j] + exact[i][j].powi(2)) / n).sqrt());
        }
    }
    worst
}

#[test]
fn steps_of_mala_bring_draws_of_a_bad_sampler_to_the_moments_of_the_target() {
    let n = ["-n", "2000"];
    let (uncorrected, _) = drawn(&n);
    // Five updates leave the first samples, N(0, 2²): 100 standard errors from a mean of −1.
    assert!(standard_errors(&uncorrected) > 50.0);
    let (corrected, said) = drawn(&[&n[..], &["--correct", "200"]].concat());
    // Independent chains after some ten times their relaxation: five errors of six numbers, all of one seed.
    let found = standard_errors(&corrected);
    assert!(found < 5.0, "{found} standard errors\n{said}");
    assert!(
        said.contains("200 mala steps") && said.contains("201 evaluations of the target a sample"),
        "{said}"
    );
    // The acceptance that the step size is adapted to is 0.574: 100 steps leave a few hundredths.
    let rate: f64 = said.split_once("acceptance ").unwrap().1[..5].parse().unwrap();
    assert!((rate - 0.574).abs() < 0.1, "{said}");
}

#[test]
fn small_steps_of_ula_do_the_same_but_for_their_bias() {
    // With h = 0.02 a variance along an eigenvalue a of the precision is 1/(a(1 − a·h/2)), at most 3 % too wide, which 1,000
    // draws do not show: a standard error is 4.5 %. 500 steps are 9 times the relaxation 1/(0.9 h).
    let (corrected, said) =
        drawn(&["-n", "1000", "--correct", "500", "--correct-kernel", "ula", "--correct-step", "0.02"]);
    assert!(standard_errors(&corrected) < 5.0, "{said}");
    assert!(said.contains("500 ula steps of size 2.000e-2, 500 evaluations"), "{said}");
}

#[test]
fn without_steps_the_draws_have_the_bytes_that_the_sampler_gives() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = |name: &str, words: &[&str]| {
        let file = directory.path().join(name);
        let finished = sample(run(), &file, &[&["-n", "250", "--seed", "7"], words].concat());
        assert_eq!(finished.code, 0, "{}", finished.output);
        assert!(!finished.output.contains("corrected"), "{}", finished.output);
        fs::read(file).unwrap()
    };
    assert!(bytes("plain.npy", &[]) == bytes("none.npy", &["--correct", "0"]));
    // HDF5 notes the time in a file, so its bytes differ from second to second: the draws must not.
    let draws = |name: &str, words: &[&str]| {
        bytes(name, words);
        let file = hdf5::File::open(directory.path().join(name)).unwrap();
        file.dataset("posterior/x").unwrap().read_raw::<f32>().unwrap()
    };
    assert!(draws("plain.h5", &[]) == draws("none.h5", &["--correct", "0"]));
    let plain = Tensor::read_npy(directory.path().join("plain.npy")).unwrap().to_kind(Kind::Double);
    // x0 + sigma·eps by chunks of 100 from the stream of evaluation, as documented.
    let file = WeightsFile::load(&run().join("sampler.safetensors")).unwrap();
    let spec: SamplerSpec = file.described("sampler").unwrap();
    let network = SamplerNetwork::new(&spec).unwrap();
    let parameters = Parameters::from_file(network.layout(), &file, Device::Cpu).unwrap();
    let chunk = |(number, rows): (u64, i64)| {
        let mut generator = Generator::new(7, Stream::Evaluation, 0, number);
        let z = generator.normal(&network.latent_shape(rows));
        no_grad(|| network.forward(parameters.frozen(), &z)) + generator.normal(&[rows, 2]) * SIGMA
    };
    let expected = Tensor::cat(&[(0, 100), (1, 100), (2, 50)].map(chunk), 0).to_kind(Kind::Double);
    // Threads may round differently in f32.
    assert!((plain - expected).abs().max().double_value(&[]) < 1e-5);
}

#[test]
fn settings_and_acceptance_are_attributes_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.h5");
    let finished = sample(run(), &path, &["-n", "100", "--correct", "3", "--correct-step", "0.05"]);
    assert_eq!(finished.code, 0, "{}", finished.output);
    let file = hdf5::File::open(&path).unwrap();
    let group = file.group("posterior").unwrap();
    let whole = |name: &str| group.attr(name).unwrap().read_scalar::<i64>().unwrap();
    let number = |name: &str| group.attr(name).unwrap().read_scalar::<f64>().unwrap();
    assert_eq!(whole("correction_steps"), 3);
    assert_eq!(number("correction_step_size"), 0.05);
    // The start and three steps; a given step size costs nothing to find.
    assert_eq!(whole("correction_evaluations_per_sample"), 4);
    assert_eq!(whole("correction_tuning_evaluations"), 0);
    let acceptance = number("correction_acceptance");
    assert!(acceptance > 0.5 && acceptance <= 1.0, "{acceptance}");
    let kernel = group.attr("correction_kernel").unwrap().read_scalar::<hdf5::types::VarLenUnicode>();
    assert_eq!(kernel.unwrap().as_str(), "mala");
}

#[test]
fn wrong_options_and_runs_without_their_target_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("x.npy");
    #[track_caller]
    fn refused(finished: &Finished, words: &[&str]) {
        assert_eq!(finished.code, 2, "{}", finished.output);
        for word in words {
            assert!(finished.output.contains(word), "`{word}` is not in: {}", finished.output);
        }
    }
    for size in ["0", "-0.1", "nan", "inf", "wide"] {
        let finished = sample(run(), &file, &["--correct", "1", "--correct-step", size]);
        refused(&finished, &["--correct-step", size, "a number above 0"]);
    }
    refused(&sample(run(), &file, &["--correct", "-1"]), &["-1"]);
    refused(&sample(run(), &file, &["--correct-step", "0.1"]), &["--correct <STEPS>"]);
    refused(&sample(run(), &file, &["--correct-kernel", "ula"]), &["--correct <STEPS>"]);
    refused(&sample(run(), &file, &["--correct", "1", "--clean"]), &["--clean"]);
    refused(&sample(run(), &file, &["--correct", "1", "--correct-kernel", "hmc"]), &["mala", "ula"]);

    // A sampler without its configuration, with one of another target, and with one whose weights are gone.
    let copy = copy_of_run();
    let config = copy.path().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::remove_file(&config).unwrap();
    refused(&sample(copy.path(), &file, &["--correct", "1"]), &["configuration of the run", "config.toml"]);
    let (before, rest) = text.split_once("[target]").unwrap();
    let (_, after) = rest.split_once("[sampler]").unwrap();
    let with_target =
        |target: &str| fs::write(&config, format!("{before}[target]\n{target}\n[sampler]{after}"));
    with_target("kind = \"mixture\"\nmeans = [[0.0, 0.0, 0.0]]\ndeviations = [1.0]\nweights = [1.0]")
        .unwrap();
    refused(&sample(copy.path(), &file, &["--correct", "1"]), &["[2]", "[3]"]);
    with_target("kind = \"energy\"\nfile = \"absent.safetensors\"").unwrap();
    refused(&sample(copy.path(), &file, &["--correct", "1"]), &["target of the run", "absent.safetensors"]);
    assert!(!file.exists());
    // None of that is needed without corrections.
    assert_eq!(sample(copy.path(), &file, &[]).code, 0);
}

#[test]
fn evaluation_has_a_row_for_every_number_of_steps() {
    let copy = copy_of_run();
    let run = copy.path().to_str().unwrap();
    let words =
        |steps: &str| ["evaluate", run, "--set", &format!("evaluate.corrections={steps}")].map(String::from);
    let refused = dft(root(), &words("[0]").each_ref().map(String::as_str));
    assert_eq!(refused.code, 2, "{}", refused.output);
    assert!(refused.output.contains("evaluate.corrections = [0]"), "{}", refused.output);
    let summary_on = |ranks: usize| -> Value {
        let program = env!("CARGO_BIN_EXE_dft");
        let mut command = if ranks > 1 { mpirun(ranks) } else { Command::new(program) };
        if ranks > 1 {
            command.arg(program);
        }
        command.current_dir(root()).args(words("[1, 200]"));
        let finished = run_within(command, LIMIT);
        assert_eq!(finished.code, 0, "{}", finished.output);
        serde_json::from_str(&fs::read_to_string(copy.path().join("summary.json")).unwrap()).unwrap()
    };
    let (on_two, summary) = (summary_on(2), summary_on(1));
    let rows = summary["comparison"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["sampler"].as_str().unwrap()).collect();
    let expected = ["real images", "one step, dft", "one step + 1 MALA step", "one step + 200 MALA steps"];
    assert_eq!(names, expected);
    let evaluations: Vec<u64> =
        rows.iter().map(|row| row["target_evaluations_per_sample"].as_u64().unwrap()).collect();
    assert_eq!(evaluations, [0, 0, 2, 201]);
    assert!(rows[1]["acceptance"].is_null());
    assert!((rows[3]["acceptance"].as_f64().unwrap() - 0.574).abs() < 0.1, "{}", rows[3]);
    // The first samples, 2 wide, have a Fréchet distance above 1. Of 1,000 draws with the exact moments, a mean that is five
    // standard errors off, 5 sqrt(12/11/1000) = 0.165, would alone make 0.027.
    let distance = |row: usize| rows[row]["metrics"]["fd"]["value"].as_f64().unwrap();
    assert!(distance(1) > 1.0 && distance(2) < distance(1) && distance(3) < 0.03, "{rows:?}");
    // Two ranks draw the same chunks with the same noise; threads round differently, which may turn a rejection over.
    let acceptance_on_two = on_two["comparison"][3]["acceptance"].as_f64().unwrap();
    assert!((acceptance_on_two - rows[3]["acceptance"].as_f64().unwrap()).abs() < 0.002);
    let acceptance = RunReader::open(copy.path().join("run.h5")).unwrap().series("comparison", "acceptance");
    assert_eq!(acceptance.unwrap()[3], rows[3]["acceptance"].as_f64().unwrap());
}

#[test]
fn draws_of_a_posterior_are_corrected_where_they_were_trained_and_leave_in_its_own_coordinates() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    write_table(&here.join("patients.csv"), "outcome", ["well", "sick"]);
    let page = fs::read_to_string(root().join("docs/logistic.md")).unwrap();
    let example = page.split_once("```toml\n").unwrap().1.split_once("```").unwrap().0;
    fs::write(here.join("patients.toml"), example).unwrap();
    #[track_caller]
    fn done(finished: &Finished) {
        assert_eq!(finished.code, 0, "{}", finished.output);
    }
    done(&dft(here, &["reference", "patients.toml"]));
    let short =
        ["--set", "train.iterations=2", "--set", "train.warmup_updates=1", "--set", "evaluate.point_sets=0"];
    let biased = ["--set", "sampler.initial_offset=1.0"];
    done(&dft(here, &[&["train", "patients.toml"], &short[..], &biased[..]].concat()));
    let entries = fs::read_dir(here.join("data/references")).unwrap();
    let reference =
        entries.map(|entry| entry.unwrap().path()).find(|path| path.extension().is_some_and(|e| e == "h5"));
    // Hamiltonian chains until R-hat is below 1.01, another sampler in another part of the program.
    let reference = draws(&reference.unwrap());
    let scale = reference.std_dim([0i64].as_slice(), true, false);
    let mean = |x: &Tensor| x.mean_dim([0i64].as_slice(), false, Kind::Double);
    let apart = |x: &Tensor| ((mean(x) - mean(&reference)) / &scale).abs().max().double_value(&[]);
    let corrected = |steps: &str| {
        let words = ["sample", "runs/patients", "-n", "1000", "-o", "x.h5", "--force", "--correct", steps];
        done(&dft(here, &words));
        draws(&here.join("x.h5"))
    };
    // Starts one deviation off in whitened coordinates.
    assert!(apart(&corrected("0")) > 0.5);
    // 1,000 independent chains: a standard error of 0.032 deviations, beside 0.016 of the reference, whose effective draws are
    // 4,000 or more; bound 5 of both together.
    let found = apart(&corrected("60"));
    assert!(found < 0.18, "{found} deviations");
}

/// Draws `[rows, D]` of a file of draws by chain.
fn draws(path: &Path) -> Tensor {
    RunReader::open(path).unwrap().array("posterior/x").unwrap().to_kind(Kind::Double).flatten(0, 1)
}
