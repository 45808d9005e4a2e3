//! What an all-reduce takes on the ranks that it is started on, by the size of the message.
//!
//! ```sh
//! cargo build --release --example all_reduce
//! mpirun -n 2 --bind-to none target/release/examples/all_reduce
//! ```
//!
//! A row is the median over many all-reduces of the time that the slowest rank took, all having begun together. Below
//! the table stands the line latency + bytes/bandwidth that fits the medians, as `benchmarks/scaling.py` takes it.

use dft::comm::{CommError, DeviceRequest, StartOptions, World};
use tch::{Device, Kind, Tensor};

/// Sizes of a message: 1 KiB to 64 MiB, each twice the one before.
const BYTES: std::ops::RangeInclusive<u32> = 10..=26;

/// What all the repetitions of one size send together, within the limits below.
const BYTES_IN_ALL: usize = 1 << 30;

/// Fewest and most repetitions of a size.
const REPEATS: (usize, usize) = (21, 501);

/// Seconds of an all-reduce of one size.
struct Timed {
    bytes: usize,
    median: f64,
    least: f64,
}

fn main() -> Result<(), CommError> {
    let world = World::start(DeviceRequest::Auto, Some(1), StartOptions::default())?;
    for (name, kind) in [("f32", Kind::Float), ("i64", Kind::Int64)] {
        let timed = BYTES.map(|power| time(&world, kind, 1 << power)).collect::<Result<Vec<_>, _>>()?;
        if world.is_root() {
            print(&world, name, &timed);
        }
    }
    Ok(())
}

/// Times all-reduces of `bytes` bytes, which must be a multiple of the size of a number.
fn time(world: &World, kind: Kind, bytes: usize) -> Result<Timed, CommError> {
    let repeats = (BYTES_IN_ALL / bytes).clamp(REPEATS.0, REPEATS.1);
    let mut buffer = Tensor::zeros([(bytes / kind.elt_size_in_bytes()) as i64], (kind, world.device));
    for _ in 0..3 {
        world.time_all_reduce(&mut buffer)?; // the first ones set up what later ones use
    }
    let own = (0..repeats).map(|_| world.time_all_reduce(&mut buffer)).collect::<Result<Vec<_>, _>>()?;
    // Of each repetition the slowest rank's time: it is when the result is there for all.
    let mut slowest = Tensor::from_slice(&own).to_device(world.device);
    world.collective().all_reduce_max(&mut slowest)?;
    let mut seconds = Vec::<f64>::try_from(slowest.to_device(Device::Cpu)).expect("a vector of f64");
    seconds.sort_by(f64::total_cmp);
    Ok(Timed { bytes, median: seconds[repeats / 2], least: seconds[0] })
}

fn print(world: &World, kind: &str, timed: &[Timed]) {
    println!("all-reduce of {kind} over {} ranks, backend {}", world.size, world.backend);
    println!("{:>12} {:>12} {:>12} {:>10} {:>10}", "bytes", "median µs", "least µs", "GB/s", "fit µs");
    let (latency, per_byte) = fit(timed);
    for Timed { bytes, median, least } in timed {
        let rate = *bytes as f64 / median * 1e-9;
        let fitted = latency + per_byte * *bytes as f64;
        println!(
            "{bytes:>12} {:>12.1} {:>12.1} {rate:>10.2} {:>10.1}",
            median * 1e6,
            least * 1e6,
            fitted * 1e6
        );
    }
    println!("fit {kind}: latency {:.1} µs, bandwidth {:.2} GB/s\n", latency * 1e6, 1e-9 / per_byte);
}

/// Latency a in s and time b in s a byte of the line a + b · bytes through the medians, by least squares of the
/// relative errors, Σ ((a + b n − t) / t)²: a size counts as much as any other, as in a fit of logarithms, the solution is
/// in closed form, and a size during which the machine did something else adds at most 1.
fn fit(timed: &[Timed]) -> (f64, f64) {
    let sum = |term: fn(f64, f64) -> f64| -> f64 {
        timed.iter().map(|timed| term(timed.bytes as f64, timed.median) / timed.median.powi(2)).sum()
    };
    let (one, n, n2) = (sum(|_, _| 1.0), sum(|n, _| n), sum(|n, _| n * n));
    let (t, nt) = (sum(|_, t| t), sum(|n, t| n * t));
    let determinant = one * n2 - n * n;
    ((t * n2 - nt * n) / determinant, (one * nt - n * t) / determinant)
}
