//! What our own kernels take on the host: sums over shards, Adam and the average, and the metrics of points and features.
//!
//! Sizes are in the names: parameters of the networks of the three experiments (two dimensions, Covertype, MNIST), or
//! points and their dimension. The kernels take the threads that `OMP_NUM_THREADS` and `RAYON_NUM_THREADS` say, all
//! cores by default.

use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use dft::comm::{World, sum_exactly};
use dft::metric::{Cloud, Moments, ksd};
use dft::model::{Init, Layout, Parameters};
use dft::rng::{Generator, Stream};
use dft::train::{Adam, Average};
use tch::{Device, Kind, Tensor};

/// Parameters of the score networks of `configs/planar`, `configs/covertype.toml` and `configs/mnist.toml`, rounded.
const PARAMETERS: [i64; 3] = [34_000, 175_000, 690_000];

/// Parts that one rank adds up: one for each of two shards, and all of a run of 24 shards.
const PARTS: [u64; 2] = [2, 24];

/// Points of the metrics, as many as the longest evaluation takes.
const POINTS: i64 = 10_000;

/// Features of an image: the last hidden layer of LeNet.
const FEATURES: i64 = 84;

/// Standard normal numbers of the given shape, other ones for each `draw`.
fn normal(shape: &[i64], draw: u64) -> Tensor {
    Generator::new(0, Stream::Data, 0, draw).normal(shape)
}

/// The gradient as each shard of a rank gives it.
fn parts(parameters: i64, count: u64) -> Vec<Vec<Tensor>> {
    (0..count).map(|part| vec![normal(&[parameters], part)]).collect()
}

fn sums(criterion: &mut Criterion) {
    let world = World::solo(Device::Cpu);
    for parameters in PARAMETERS {
        for count in PARTS {
            let parts = parts(parameters, count);
            criterion.bench_function(&format!("exact sum of {count} parts of {parameters}"), |bencher| {
                bencher.iter(|| sum_exactly(world.collective(), black_box(&parts), count as usize));
            });
            // As a fast reduction does it: one part after the other, then an all-reduce of the sum.
            criterion.bench_function(&format!("fast sum of {count} parts of {parameters}"), |bencher| {
                bencher.iter(|| {
                    let flat = black_box(&parts).iter().map(|part| Tensor::cat(part, 0));
                    let mut sum = flat.reduce(|sum, part| sum + part).expect("at least two parts");
                    world.collective().all_reduce_sum(&mut sum)
                });
            });
        }
    }
}

fn updates(criterion: &mut Criterion) {
    for parameters in PARAMETERS {
        let flat = normal(&[parameters], 0);
        let gradient = normal(&[parameters], 1);
        let mut adam = Adam::new(&flat, [0.9, 0.99]);
        criterion.bench_function(&format!("adam update of {parameters}"), |bencher| {
            bencher.iter(|| adam.update(&flat, black_box(&gradient), 1e-9));
        });
        let mut layout = Layout::default();
        layout.add("all".to_string(), &[parameters], Init::Zero);
        let latest = Parameters::from_flat(&Rc::new(layout), gradient.copy());
        let average = Average::new(&latest, 1000.0);
        criterion.bench_function(&format!("exponential moving average of {parameters}"), |bencher| {
            bencher.iter(|| average.update(black_box(&latest), 1.0, 1e6));
        });
    }
}

fn discrepancy(criterion: &mut Criterion) {
    // Exact samples of the standard normal, whose score is −x.
    let x = normal(&[POINTS, 2], 0).to_kind(Kind::Double);
    let (cloud, score) = (Cloud::new(&x), Cloud::new(&-&x));
    criterion.bench_function(&format!("ksd (V and U) of {POINTS} points in 2d"), |bencher| {
        bencher.iter(|| ksd(black_box(&cloud), &score));
    });
}

fn frechet(criterion: &mut Criterion) {
    let (features, others) = (normal(&[POINTS, FEATURES], 0), normal(&[POINTS, FEATURES], 1));
    let moments = |features: &Tensor| {
        let mut moments = Moments::new(&Tensor::zeros([FEATURES], (Kind::Double, Device::Cpu)));
        moments.add(features);
        moments
    };
    let reference = moments(&others);
    criterion.bench_function(&format!("mean and covariance of {POINTS} x {FEATURES}"), |bencher| {
        bencher.iter(|| {
            let found = moments(black_box(&features));
            (found.mean(), found.covariance())
        });
    });
    criterion.bench_function(
        &format!("frechet distance of {POINTS} x {FEATURES} to a reference"),
        |bencher| {
            bencher.iter(|| moments(black_box(&features)).distance(&reference));
        },
    );
}

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20);
    targets = sums, updates, discrepancy, frechet
}
criterion_main!(kernels);
