//! `dft doctor`: who takes part, with which libraries, and whether they can talk.
//!
//! It starts the world exactly as training does, so what it shows is what a run would get.

use anyhow::{Context, bail};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::comm::{self, CommError, DeviceRequest, StartOptions, World};

/// The libtorch that tch 0.24 is tied to.
const TCH_WANTS: &str = "2.11.0";

/// Size of the checked all-reduce: 4 Mi elements of f32, the gradients of a mid-sized U-Net.
const ELEMENTS: i64 = 4 << 20;

/// How often it is timed; the fastest counts, since the others measure the machine's other work.
const REPEATS: usize = 5;

/// One rank's line of the table.
#[derive(Serialize, Deserialize)]
struct Row {
    rank: usize,
    host: String,
    local_rank: usize,
    device: String,
    threads: usize,
    cores: usize,
    process: u32,
}

/// Starts a world and [reports](report) on it; `share_gpus` as in [`StartOptions`].
///
/// # Errors
/// If the world cannot start (a [`comm::CommError`]), or the all-reduce gives a wrong sum.
pub fn run(request: DeviceRequest, threads: Option<usize>, share_gpus: bool) -> anyhow::Result<()> {
    let options = StartOptions { share_gpus, ..StartOptions::default() };
    report(&World::start(request, threads, options)?)
}

/// Prints, from rank 0: a row per rank, the versions of the libraries, and one checked all-reduce
/// of 16 MiB with its time and rate. All ranks must call it.
///
/// # Errors
/// If the all-reduce fails or gives a wrong sum.
pub fn report(world: &World) -> anyhow::Result<()> {
    let row = Row {
        rank: world.rank,
        host: world.host.clone(),
        local_rank: world.local_rank,
        device: device(world),
        threads: world.threads,
        cores: comm::launch::cores(),
        process: std::process::id(),
    };
    let rows = world
        .gather_strings(&serde_json::to_string(&row)?)
        .iter()
        .map(|row| serde_json::from_str(row).context("a row of another version of dft"))
        .collect::<anyhow::Result<Vec<Row>>>()?;
    if world.is_root() {
        println!("{}", table(&rows));
        for note in notes(&rows) {
            println!("note: {note}");
        }
        println!("{}", versions(world));
    }
    let seconds = timed_all_reduce(world)?;
    if world.is_root() {
        println!("all-reduce   16 MiB {}", outcome(world, seconds));
    }
    Ok(())
}

/// What the all-reduce showed; one rank sends nothing, so it has no rate.
fn outcome(world: &World, seconds: f64) -> String {
    let World { size, backend, .. } = world;
    if *size == 1 {
        return format!("over 1 rank, backend {backend}: sum is right, nothing to send");
    }
    let (milliseconds, rate) = (seconds * 1e3, (ELEMENTS * 4) as f64 / f64::from(1 << 30) / seconds);
    format!("over {size} ranks, backend {backend}: sum is right, {milliseconds:.2} ms, {rate:.2} GiB/s")
}

fn device(world: &World) -> String {
    match world.device {
        Device::Cuda(ordinal) => format!("cuda:{ordinal} {}", world.device_reason),
        _ => format!("cpu ({})", world.device_reason),
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["rank", "host", "local rank", "device", "threads", "cores", "process"]);
    for row in rows {
        table.add_row([
            row.rank.to_string(),
            row.host.clone(),
            row.local_rank.to_string(),
            row.device.clone(),
            row.threads.to_string(),
            row.cores.to_string(),
            row.process.to_string(),
        ]);
    }
    table
}

/// What is legal but slow.
fn notes(rows: &[Row]) -> Vec<String> {
    let mut notes = Vec::new();
    if rows.len() > 1 && rows.iter().all(|row| row.cores == 1) {
        notes.push(
            "each rank may run on one core only; if the hosts have more, start with mpirun --bind-to none"
                .into(),
        );
    }
    for row in rows.iter().filter(|row| row.local_rank == 0) {
        let threads: usize =
            rows.iter().filter(|other| other.host == row.host).map(|other| other.threads).sum();
        // Unbound ranks see the same cores; bound ones see a part each, and this says nothing.
        if threads > row.cores && row.cores > 1 && row.threads > 1 {
            let (host, cores) = (&row.host, row.cores);
            notes.push(format!(
                "{threads} threads for {cores} cores on {host}: that is slow; lower compute.threads or OMP_NUM_THREADS"
            ));
        }
    }
    notes
}

/// One line per library, each as that library itself says.
fn versions(world: &World) -> String {
    let mpi = mpi::environment::library_version().unwrap_or_else(|_| "not a UTF-8 string".to_string());
    let mpi = mpi.lines().next().unwrap_or_default().trim_end_matches(['\0', ' ']).to_string();
    let nccl = match (comm::nccl::version(), world.backend) {
        (Some(version), _) => version,
        (None, backend) => format!("not loaded (backend {backend})"),
    };
    let (major, minor, patch) = hdf5::library_version();
    [
        format!("dft          {}, commit {}", env!("CARGO_PKG_VERSION"), env!("DFT_COMMIT")),
        format!("libtorch     {}", libtorch()),
        format!("MPI          {mpi}"),
        format!("NCCL         {nccl}"),
        format!("HDF5         {major}.{minor}.{patch}"),
        format!(
            "CUDA graphs  {}",
            if comm::cuda::IS_BUILT_IN { "built in" } else { "left out of this build" }
        ),
    ]
    .join("\n")
}

/// The version that the loaded libtorch carries in a file beside it: the library has no call for it.
fn libtorch() -> String {
    let Some(folder) = comm::device::libtorch_directory() else {
        return format!("{TCH_WANTS} wanted, the library's place is unknown");
    };
    let root = folder.parent().unwrap_or(&folder);
    let read = |name| std::fs::read_to_string(root.join(name)).ok();
    // `build-version` in libtorch's archives, `version.py` in PyTorch's packages.
    let version = read("build-version").map(|text| text.trim().to_string()).or_else(|| {
        let text = read("version.py")?;
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(line.trim_matches(['\'', '"']).to_string())
    });
    match version {
        Some(version) if version.starts_with(TCH_WANTS) => format!("{version} in {}", folder.display()),
        Some(version) => format!("{version} in {}, but tch wants {TCH_WANTS}", folder.display()),
        None => format!("{TCH_WANTS} wanted, {} does not say what it is", folder.display()),
    }
}

/// Sums rank + 1 in 4 Mi places on the device; the seconds of the fastest of five.
fn timed_all_reduce(world: &World) -> anyhow::Result<f64> {
    let wanted = (world.size * (world.size + 1) / 2) as f64;
    let mut fastest = f64::INFINITY;
    // The first round only warms up: connections are made on first use.
    for round in 0..=REPEATS {
        let mut buffer = Tensor::full([ELEMENTS], (world.rank + 1) as f64, (Kind::Float, world.device));
        let seconds = world.time_all_reduce(&mut buffer)?;
        if round > 0 {
            fastest = fastest.min(seconds);
        }
        // Exact in f32 for any world below 5,000 ranks.
        let (least, most) = (buffer.min().double_value(&[]), buffer.max().double_value(&[]));
        let is_right = (least, most) == (wanted, wanted);
        // A wrong sum on one rank is a failure of all: a lone return would leave the others in the next
        // round.
        let checked = world.agree(if is_right {
            Ok(())
        } else {
            Err(format!(
                "the all-reduce gave {least} to {most} where every element should be {wanted}; check the network and the \
                 versions above"
            ))
        });
        if let Err(failure) = checked {
            let message = failure.to_string();
            let elsewhere = CommError::Elsewhere { rank: failure.rank, message: message.clone() };
            let backend = world.backend;
            let here = CommError::Backend { backend, message };
            bail!(if failure.is_reported_here() { here } else { elsewhere });
        }
    }
    Ok(fastest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(local_rank: usize, threads: usize, cores: usize) -> Row {
        Row {
            rank: local_rank,
            host: "a".into(),
            local_rank,
            device: "cpu".into(),
            threads,
            cores,
            process: 1,
        }
    }

    #[test]
    fn doctor_passes_on_one_rank() {
        report(&World::solo(Device::Cpu)).unwrap();
    }

    #[test]
    fn binding_and_too_many_threads_are_noted() {
        assert!(notes(&[row(0, 2, 4), row(1, 2, 4)]).is_empty());
        assert!(notes(&[row(0, 1, 1), row(1, 1, 1)])[0].contains("--bind-to none"));
        assert!(notes(&[row(0, 4, 4), row(1, 4, 4)])[0].contains("8 threads for 4 cores on a"));
    }

    #[test]
    fn libtorch_is_the_one_that_tch_wants() {
        let _ = tch::get_num_threads();
        let version = libtorch();
        assert!(version.starts_with(TCH_WANTS) && !version.contains("but tch wants"), "{version}");
    }
}
