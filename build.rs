//! Run paths and build facts: what lets `target/release/dft` start without any environment, and say what it is.
//!
//! Link arguments of a dependency's build script stop at that dependency, so the run path of libtorch, CUDA, NCCL
//! and MPI has to be set here. It sets nothing else about how those libraries are found: torch-sys reads `LIBTORCH`,
//! mpi-sys asks `mpicc`, and `launch/env.sh` provides both.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// Directories the loader searches anyway. On the run path they would come before libtorch's own copies.
const DEFAULT_LIBRARY_DIRECTORIES: [&str; 6] =
    ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"];

fn main() {
    // Naming any file turns off cargo's default of watching the whole package.
    println!("cargo:rerun-if-changed=build.rs");
    let libtorch = libtorch();
    let mut run_path = vec![libtorch.join("lib")];
    run_path.extend(cuda_library_directories(&libtorch));
    run_path.extend(mpi_library_directories());
    for directory in run_path {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", directory.display());
    }
    build_cuda_shim(&libtorch);
    fact("DFT_COMMIT", &commit());
    fact("DFT_BUILD_LIBTORCH", &libtorch_version(&libtorch));
}

/// The directory that torch-sys links from; ends the build with directions if nobody set it.
fn libtorch() -> PathBuf {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Some(libtorch) = env::var_os("LIBTORCH").filter(|value| !value.is_empty()).map(PathBuf::from) else {
        stop(&[
            "wanted libtorch, found no LIBTORCH in the environment",
            "run `launch/setup.sh` once (it installs libtorch and MPI into .venv and builds),",
            "then `source launch/env.sh` in each shell that calls cargo",
        ]);
    };
    if !libtorch.join("lib/libtorch_cpu.so").exists() {
        stop(&[
            &format!("wanted lib/libtorch_cpu.so under LIBTORCH, found none in {}", libtorch.display()),
            "run `launch/setup.sh`, which installs or repairs .venv, then `source launch/env.sh`",
        ]);
    }
    libtorch
}

/// Where the Python wheels put CUDA and NCCL beside libtorch. Listed whether there or not: the loader skips what is
/// missing, and a binary built before `launch/setup.sh --cuda` finds them afterwards.
fn cuda_library_directories(libtorch: &Path) -> Vec<PathBuf> {
    match libtorch.canonicalize().ok().as_deref().and_then(Path::parent) {
        Some(site) if site.ends_with("site-packages") => {
            ["nccl", "cu13", "cudnn"].iter().map(|part| site.join("nvidia").join(part).join("lib")).collect()
        }
        _ => Vec::new(),
    }
}

/// Makes of `src/comm/cuda.cpp` a library that the program carries, where the headers for it are: libtorch's, and the CUDA
/// runtime's from the Python wheels or `CUDA_HOME`. It is not linked to anything, so no GPU and no CUDA libraries are needed.
fn build_cuda_shim(libtorch: &Path) {
    println!("cargo::rustc-check-cfg=cfg(dft_cuda_shim)");
    println!("cargo:rerun-if-changed=src/comm/cuda.cpp");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let site = libtorch.canonicalize().ok().and_then(|path| path.parent().map(Path::to_path_buf));
    let wheels = site.map(|site| site.join("nvidia/cu13/include"));
    let toolkit = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("include"));
    // The wheels first: they belong to this libtorch.
    let headers = [wheels, toolkit].into_iter().flatten().filter(|folder| folder.exists()).find(|folder| {
        println!("cargo:rerun-if-changed={}", folder.display());
        ["cuda_runtime_api.h", "crt/host_defines.h"].iter().all(|name| folder.join(name).exists())
    });
    let Some(headers) = headers.filter(|_| libtorch.join("include/ATen/cuda/CUDAGraph.h").exists()) else {
        return; // compute.cuda_graphs and compute.precision then say what is missing
    };
    let output = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("libdft-cuda.so");
    let mut compiler = cc::Build::new().cpp(true).opt_level(1).get_compiler().to_command();
    compiler.args(["-std=c++20", "-shared", "-fPIC", "-fvisibility=default", "-w"]);
    for folder in [libtorch.join("include"), headers] {
        compiler.arg("-isystem").arg(folder);
    }
    let made = compiler.arg("-o").arg(&output).arg("src/comm/cuda.cpp").output();
    match made {
        Ok(made) if made.status.success() => {
            fact("DFT_CUDA_SHIM", &output.display().to_string());
            println!("cargo:rustc-cfg=dft_cuda_shim");
        }
        Ok(made) => {
            let words = String::from_utf8_lossy(&made.stderr).into_owned();
            let first = words.lines().find(|line| line.contains("error")).unwrap_or("no message").to_owned();
            println!(
                "cargo::warning=src/comm/cuda.cpp does not compile, so CUDA graphs are left out: {first}"
            );
        }
        Err(error) => println!("cargo::warning=no C++ compiler for src/comm/cuda.cpp: {error}"),
    }
}

fn libtorch_version(libtorch: &Path) -> String {
    let file = libtorch.join("version.py");
    println!("cargo:rerun-if-changed={}", file.display());
    let text =
        std::fs::read_to_string(file).or_else(|_| std::fs::read_to_string(libtorch.join("build-version")));
    let text = text.unwrap_or_default();
    // version.py of the wheel says `__version__ = '2.11.0+cu130'`; build-version of the zip is the bare number.
    let version = text.lines().find_map(|line| line.strip_prefix("__version__ = ")).unwrap_or(text.trim());
    if version.is_empty() { "unknown".to_owned() } else { version.trim_matches(['\'', '"']).to_owned() }
}

/// Asks the same compiler wrapper as mpi-sys does, so that the library linked is the library found at run time.
fn mpi_library_directories() -> Vec<PathBuf> {
    for name in ["MPICC", "OPAL_PREFIX"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let mpicc = env::var("MPICC").unwrap_or_else(|_| "mpicc".to_owned());
    let shown = Command::new(&mpicc).arg("-show").output().ok().filter(|output| output.status.success());
    let Some(output) = shown else {
        stop(&[
            &format!("wanted an MPI compiler wrapper, found none that works as {mpicc}"),
            "run `launch/setup.sh`, or load your cluster's MPI module; then `source launch/env.sh`",
        ]);
    };
    let command_line = String::from_utf8_lossy(&output.stdout);
    let mut library_directories: Vec<PathBuf> = Vec::new();
    for word in command_line.split_whitespace() {
        let Some(directory) =
            word.strip_prefix("-L").map(|path| PathBuf::from(path.trim_matches(['"', '\''])))
        else {
            continue;
        };
        let is_default = DEFAULT_LIBRARY_DIRECTORIES.iter().any(|default| directory == Path::new(default));
        if !is_default && !library_directories.contains(&directory) {
            library_directories.push(directory);
        }
    }
    library_directories
}

/// Short hash of HEAD, or `unknown` outside git. Watches what a commit or a checkout touches; `--git-path` also
/// resolves in a linked worktree, where HEAD and its log are private and the references shared.
fn commit() -> String {
    let head = git(&["symbolic-ref", "-q", "HEAD"]).unwrap_or_default();
    for name in ["HEAD", "logs/HEAD", "packed-refs", &head] {
        let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|_| !name.is_empty()) else {
            continue;
        };
        // A watched file that does not exist would make cargo rebuild every time.
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=10", "HEAD"]).unwrap_or_else(|| "unknown".to_owned())
}

fn git(arguments: &[&str]) -> Option<String> {
    // CI containers often own the checkout as another user, which git refuses to read without this.
    let output = Command::new("git").args(["-c", "safe.directory=*"]).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn fact(name: &str, value: &str) {
    println!("cargo:rustc-env={name}={value}");
}

fn stop(lines: &[&str]) -> ! {
    for line in lines {
        println!("cargo::error={line}");
    }
    exit(1)
}
