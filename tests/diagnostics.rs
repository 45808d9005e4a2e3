//! Diagnostics of Markov chains equal ArviZ's, and say what they should of chains that can be reasoned about.

use std::f64::consts::PI;

use dft::metric::{Diagnostics, diagnose, ess_bulk, ess_mean, ess_tail, r_hat};
use dft::rng::{Generator, Stream};
use tch::Kind;

/// Knuth's MMIX congruential generator, the upper 53 bits: three lines in any language.
struct Uniform(u64);

impl Uniform {
    fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / 2f64.powi(53)
    }

    /// Sum of twelve uniforms less 6: about normal, and the same bits everywhere.
    fn normal(&mut self) -> f64 {
        (0..12).fold(0.0, |sum, _| sum + self.draw()) - 6.0
    }
}

/// `count` chains of `length` draws, one after the other from a generator that starts at `seed`.
fn chains(kind: &str, count: usize, length: usize, seed: u64) -> Vec<Vec<f64>> {
    let mut uniform = Uniform(seed);
    let chain = |number: usize| {
        let mut x = 0.0;
        let mut draw = || match kind {
            "cauchy" => (PI * (uniform.draw() - 0.5)).tan(),
            "rounded" => (4.0 * uniform.draw()).floor(),
            _ => {
                let memory = match kind {
                    "ar" => 0.9,
                    "anti" => -0.6,
                    "slow" => 0.995,
                    _ => 0.0,
                };
                x = memory * x + uniform.normal();
                match kind {
                    "shifted" => x + 0.3 * number as f64,
                    "wide" => x * (1.0 + number as f64),
                    _ => x,
                }
            }
        };
        (0..length).map(|_| draw()).collect()
    };
    (0..count).map(chain).collect()
}

fn all(chains: &[Vec<f64>]) -> [f64; 4] {
    [r_hat(chains), ess_bulk(chains), ess_tail(chains), ess_mean(chains)]
}

/// Chain, draws and kind as arguments of `chains`, then R-hat, bulk, tail and mean ESS.
///
/// ArviZ 0.23.4 with numpy 2.4.6 and scipy 1.17.1, of the same numbers made by the lines above in Python:
///   float(arviz.rhat(x)), *(float(arviz.ess(x, method=m)) for m in ("bulk", "tail", "mean"))
#[rustfmt::skip]
const ARVIZ: [(&str, usize, usize, u64, [f64; 4]); 10] = [
    ("independent", 4, 500, 1, [1.0002373086701517, 1883.7987886905437, 1812.8387518022398, 1888.6348766092603]),
    ("ar", 4, 500, 2, [1.0265140836050555, 109.81673151094554, 274.4473488042823, 109.58271906118455]),
    ("anti", 3, 400, 3, [1.0016707653287384, 3695.0174952571497, 1149.2036115069363, 3695.0174952571497]),
    ("shifted", 4, 251, 4, [1.0569327296028799, 55.487240920016156, 569.3050819143929, 54.795505352900435]),
    ("cauchy", 4, 333, 5, [1.0011372874174527, 1404.4608103669302, 1119.957729092553, 1351.380340909899]),
    ("wide", 3, 200, 6, [1.119760322523091, 647.3934133998766, 133.98696997286115, 659.7038683789575]),
    ("rounded", 2, 101, 7, [0.9923478290673114, 184.67108806404465, 179.62746738721302, 180.14324504240727]),
    ("slow", 8, 300, 8, [1.7249525077833872, 12.61072099360337, 22.08828285990956, 11.812923087180216]),
    ("independent", 1, 100, 9, [f64::NAN, 80.95606582464985, 101.77046754026489, 82.43452839599703]),
    ("ar", 2, 4, 10, [1.4887395373425998, 7.224719895935548, 7.224719895935548, 7.224719895935548]),
];

#[test]
fn diagnostics_equal_arvizs() {
    for (kind, count, length, seed, arviz) in ARVIZ {
        let found = all(&chains(kind, count, length, seed));
        for (found, arviz) in found.into_iter().zip(arviz) {
            // ArviZ sums autocovariances by a Fourier transform and we directly: rounding is all that differs.
            let is_equal = (found / arviz - 1.0).abs() < 1e-9 || found.is_nan() && arviz.is_nan();
            assert!(is_equal, "{kind} {count} × {length}: {found} {arviz}");
        }
    }
}

#[test]
fn tensor_of_chains_has_the_diagnostics_of_each_coordinate() {
    let draws = Generator::new(0, Stream::Chains, 1, 0).normal(&[3, 50, 2]).to_kind(Kind::Double);
    let found = diagnose(&draws);
    for coordinate in 0..2 {
        let chain = |number| Vec::try_from(draws.get(number).select(1, coordinate).contiguous()).unwrap();
        let chains: Vec<Vec<f64>> = (0..3).map(chain).collect();
        let [ratio, bulk, tail, _] = all(&chains);
        let i = coordinate as usize;
        assert_eq!([found.r_hat[i], found.ess_bulk[i], found.ess_tail[i]], [ratio, bulk, tail]);
    }
    let (a, b) = (found.r_hat[0], found.r_hat[1]);
    assert_eq!(found.worst_r_hat(), if a > b { a } else { b });
    let (a, b) = (found.ess_tail[0], found.ess_tail[1]);
    assert_eq!(found.least_ess_tail(), if a < b { a } else { b });
}

/// An AR(1) chain with memory a has (1 − a)/(1 + a) effective draws of each (sum of a geometric series).
#[test]
fn effective_size_of_an_autoregression_is_that_of_its_geometric_series() {
    let (memory, rows) = (0.8, 20_000i64);
    let chain = |number| {
        let noise: Vec<f32> =
            Vec::try_from(Generator::new(0, Stream::Chains, 2, number).normal(&[rows])).unwrap();
        let mut x = 0.0;
        noise
            .into_iter()
            .map(|noise| {
                x = memory * x + f64::from(noise);
                x
            })
            .collect()
    };
    let found = ess_mean(&(0..4).map(chain).collect::<Vec<_>>());
    let expected = 4.0 * rows as f64 * (1.0 - memory) / (1.0 + memory);
    // The standard error of the truncated sum over 80,000 draws is some per cent.
    assert!((found / expected - 1.0).abs() < 0.1, "{found} {expected}");
}

/// Ranks and their distances from the median do not change under an increasing odd map.
#[test]
fn bulk_and_tail_do_not_depend_on_the_scale_of_draws() {
    let x = chains("ar", 4, 200, 11);
    let cubed: Vec<Vec<f64>> =
        x.iter().map(|chain| chain.iter().map(|value| value.powi(3)).collect()).collect();
    assert_eq!(ess_bulk(&x), ess_bulk(&cubed));
    assert_eq!(ess_tail(&x), ess_tail(&cubed));
    assert!(ess_mean(&x) != ess_mean(&cubed));
}

/// ArviZ: R-hat of draws that are all the same is 0/0 and their effective sizes are their count; a NaN makes all
/// NaN, and so does, other than in ArviZ, an infinity.
#[test]
fn draws_without_spread_or_value_have_no_r_hat() {
    let [ratio, sizes @ ..] = all(&vec![vec![2.5; 100]; 4]);
    assert!(ratio.is_nan());
    assert_eq!(sizes, [400.0; 3]);
    for bad in [f64::NAN, f64::INFINITY] {
        let mut x = chains("independent", 4, 100, 1);
        x[2][7] = bad;
        assert!(all(&x).into_iter().all(f64::is_nan));
    }
    assert!(all(&chains("independent", 4, 3, 1)).into_iter().all(f64::is_nan));
    // Stuck at different places: nothing within chains, all between them. ArviZ has 3e16, rounding for infinity.
    let stuck: Vec<Vec<f64>> = (0..4).map(|number| vec![f64::from(number); 100]).collect();
    assert!(r_hat(&stuck) > 1e6);
}

#[test]
fn coordinate_without_a_number_is_the_worst() {
    let diagnostics =
        Diagnostics { r_hat: vec![1.0, f64::NAN], ess_bulk: vec![f64::NAN, 3.0], ess_tail: vec![5.0, 4.0] };
    assert!(diagnostics.worst_r_hat().is_nan() && diagnostics.least_ess_bulk().is_nan());
    assert_eq!(diagnostics.least_ess_tail(), 4.0);
}
