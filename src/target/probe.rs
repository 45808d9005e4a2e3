//! Checks of a density that somebody else wrote, on probe points, before any work is done with it.
//!
//! A wrong density trains to a wrong sampler without an error, or stops in a libtorch message after an hour. Each
//! check has a name; the first that fails says what was wanted, what was found and what to do.

use tch::{Device, Kind, TchError, Tensor};

use crate::rng::{Generator, Stream};

/// Probe points.
const POINTS: i64 = 64;
/// How many of them are also tried one by one.
const ALONE: i64 = 8;
/// Steps of the central differences, along directions of length 1, in units of x. Each is a quarter of the one before:
/// the finer of two then has a fifteenth of their difference for its truncation error, and is taken to have a quarter.
const STEPS: [f64; 4] = [0.2, 0.05, 0.0125, 0.003125];
/// Rounding error of a log-density in f32, relative to its size: a few units in the last place (6e-8).
const ROUNDING: f64 = 5e-7;
/// Largest relative difference of a gradient and a difference quotient that know each other better than that.
const SLACK: f64 = 0.02;
/// Points that may disagree where a density is kinked.
const DISAGREEING: f64 = 0.2;
/// Fewer points than this on which f32 resolves the difference give no verdict.
const CONCLUSIVE: usize = 8;

/// A check that failed.
#[derive(Debug)]
pub struct Failed {
    /// Name of the check.
    pub check: &'static str,
    /// What was wanted.
    pub wanted: String,
    /// What was found.
    pub found: String,
    /// What to do.
    pub remedy: &'static str,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "check `{}` failed: wanted {}, found {}; {}",
            self.check, self.wanted, self.found, self.remedy
        )
    }
}

/// A log-density under test: f32 `[B, …shape]` to `[B]`.
pub type LogDensity<'a> = dyn Fn(&Tensor) -> Result<Tensor, TchError> + 'a;

/// Makes all checks of a density of samples of `shape` on `device`.
///
/// # Errors
/// The first check that fails.
pub fn check(density: &LogDensity, shape: &[i64], device: Device) -> Result<(), Failed> {
    let x = probe_points(shape, device);
    let value = check_output(density, &x)?;
    check_finite(&x, &value)?;
    check_rows(density, &x, &value)?;
    let (x, score) = check_gradient_exists(density, &x)?;
    check_gradient(density, &x.detach(), &score.detach())?;
    check_second_derivative(&x, &score)
}

/// 64 points N(0, c² I) with c = 0.1, 1, 3 in turn: `[64, …shape]`.
fn probe_points(shape: &[i64], device: Device) -> Tensor {
    let scale: Vec<f32> = [0.1, 1.0, 3.0].into_iter().cycle().take(POINTS as usize).collect();
    let column = vec![1; shape.len()];
    let scale = Tensor::from_slice(&scale).reshape([&[POINTS], column.as_slice()].concat());
    (normal(shape, 0) * scale).to_device(device)
}

/// Unit directions `[64, …shape]`.
fn directions(shape: &[i64], number: u64, device: Device) -> Tensor {
    let v = normal(shape, number).flatten(1, -1);
    let v = &v / v.norm_scalaropt_dim(2, 1i64, true);
    v.reshape([&[POINTS], shape].concat()).to_device(device)
}

/// Standard normal `[64, …shape]`; the seed belongs to the check, not to a run.
fn normal(shape: &[i64], number: u64) -> Tensor {
    Generator::new(0, Stream::Exact, 0, number).normal(&[&[POINTS], shape].concat())
}

/// One f32 number a sample, for a batch and for a single sample.
fn check_output(density: &LogDensity, x: &Tensor) -> Result<Tensor, Failed> {
    let failed = |rows: i64, found: String| Failed {
        check: "output",
        wanted: format!("f32 [{rows}] for f32 samples {:?}", [&[rows], &x.size()[1..]].concat()),
        found,
        remedy: "return one log-density for each row, e.g. with .sum(-1), and keep the batch dimension",
    };
    let tried = |rows: i64| {
        let value = density(&x.narrow(0, 0, rows))
            .map_err(|error| failed(rows, format!("an error: {}", last_line(&error))))?;
        if value.size() == [rows] && value.kind() == Kind::Float {
            return Ok(value);
        }
        let kind = match value.kind() {
            Kind::Float => "f32".to_string(),
            Kind::Double => "f64".to_string(),
            other => format!("{other:?}"),
        };
        Err(failed(rows, format!("{kind} {:?}", value.size())))
    };
    let _single = tried(1)?;
    tried(POINTS)
}

fn check_finite(x: &Tensor, value: &Tensor) -> Result<(), Failed> {
    let wrong = value.isfinite().logical_not();
    let count = wrong.sum(Kind::Int64).int64_value(&[]);
    if count == 0 {
        return Ok(());
    }
    let first = wrong.nonzero().int64_value(&[0, 0]);
    let radius = x.select(0, first).norm().double_value(&[]);
    Err(Failed {
        check: "finite",
        wanted: format!("a finite log-density at {POINTS} points of scale 0.1 to 3"),
        found: format!("{} at {count} of them, e.g. where |x| = {radius:.3}", value.double_value(&[first])),
        remedy: "write a density on all of space: transform bounded variables, and use logsumexp, softplus and \
                 log1p where exp or log overflow",
    })
}

/// A row's value is the same alone, in a smaller batch and in a larger one.
fn check_rows(density: &LogDensity, x: &Tensor, value: &Tensor) -> Result<(), Failed> {
    let failed = |found: String| Failed {
        check: "rows",
        wanted: "a value that depends on its own row of the batch only, the same in each call".into(),
        found,
        remedy: "reduce over the sample's dimensions and never over dimension 0, and use neither batch statistics nor \
                 random numbers",
    };
    let values = |x: &Tensor| density(x).map_err(|error| failed(format!("an error: {}", last_line(&error))));
    let few = values(&x.narrow(0, 0, ALONE))?;
    for row in 0..ALONE {
        let alone = values(&x.narrow(0, row, 1))?.double_value(&[0]);
        let (in_few, in_all) = (few.double_value(&[row]), value.double_value(&[row]));
        // Matrix products of other sizes round in another order; the terms of the sum may be larger than the sum.
        let tolerance = 1e-4 * (1.0 + value.abs().max().double_value(&[]));
        if (alone - in_few).abs().max((alone - in_all).abs()) > tolerance {
            return Err(failed(format!(
                "for row {row} {alone} alone, {in_few} in a batch of {ALONE} and {in_all} in one of {POINTS}"
            )));
        }
    }
    Ok(())
}

/// The score at `x`, with its graph, and the `x` that it is a function of.
fn check_gradient_exists(density: &LogDensity, x: &Tensor) -> Result<(Tensor, Tensor), Failed> {
    let failed = |found: String| Failed {
        check: "gradient",
        wanted: "a gradient of the log-density in x".into(),
        found,
        remedy: "compute the value from x by differentiable operations, without detach(), item(), numpy() or \
                 torch.no_grad()",
    };
    let x = x.detach().set_requires_grad(true);
    let total = density(&x).map_err(|error| failed(format!("an error: {}", last_line(&error))))?.sum(None);
    if !total.requires_grad() {
        return Err(failed("a value that autograd does not connect to x".into()));
    }
    let score = Tensor::f_run_backward(&[total], &[&x], true, true)
        .map_err(|error| failed(format!("an error: {}", last_line(&error))))?
        .remove(0);
    if !score.defined() || score.isfinite().all().int64_value(&[]) == 0 {
        return Err(failed("one that is not finite at the probe points".into()));
    }
    Ok((x, score))
}

/// Autograd's slope along a random direction at each point against central differences.
///
/// f32 resolves a difference only between truncation at large steps and rounding at small ones, and where that lies
/// depends on the density. So each point takes the step whose own error estimate is smallest, points where even that
/// is large are left out, and a fifth of the rest may disagree (kinks).
fn check_gradient(density: &LogDensity, x: &Tensor, score: &Tensor) -> Result<(), Failed> {
    let along = directions(&x.size()[1..], 1, x.device());
    let to_host = |t: &Tensor| -> Vec<f64> {
        Vec::try_from(t.to_kind(Kind::Double).to_device(Device::Cpu)).expect("a vector of f64")
    };
    let slope = to_host(&(score * &along).flatten(1, -1).sum_dim_intlist(1i64, false, None));
    // Per step: the difference quotient of each point and its rounding error.
    let quotients: Vec<(Vec<f64>, Vec<f64>)> = STEPS
        .iter()
        .map(|step| {
            let shift = &along * *step;
            let end =
                |x: Tensor| density(&x).expect("the density was tried on this shape").to_kind(Kind::Double);
            let (above, below) = (end(x + &shift), end(x - &shift));
            let size = above.abs().maximum(&below.abs());
            (to_host(&((above - below) / (2.0 * step))), to_host(&(size * (ROUNDING / step))))
        })
        .collect();
    let (mut conclusive, mut disagreeing, mut worst) = (0, 0, (0.0, 0.0, 0.0));
    for (point, &found) in slope.iter().enumerate() {
        let estimates = quotients.windows(2).map(|pair| {
            let (coarse, fine) = (pair[0].0[point], pair[1].0[point]);
            (fine, (coarse - fine).abs() / 4.0 + pair[1].1[point])
        });
        let best = estimates.filter(|(_, error)| error.is_finite()).min_by(|a, b| a.1.total_cmp(&b.1));
        let Some((expected, error)) = best else { continue };
        let (size, gap) = (found.abs() + expected.abs(), (found - expected).abs());
        if error > 0.1 * size {
            continue;
        }
        conclusive += 1;
        if gap > 3.0 * error + SLACK * size {
            disagreeing += 1;
            if gap / size > worst.0 {
                worst = (gap / size, found, expected);
            }
        }
    }
    if conclusive < CONCLUSIVE || f64::from(disagreeing) <= DISAGREEING * conclusive as f64 {
        return Ok(());
    }
    let (_, found, expected) = worst;
    Err(Failed {
        check: "gradient",
        wanted: "the slopes that differences of the log-density have".into(),
        found: format!(
            "others at {disagreeing} of {conclusive} points, e.g. {found:.4} where the differences give {expected:.4}"
        ),
        remedy: "compute every term of the value from x by differentiable operations: look for detach(), .data, \
                 rounding, or a custom backward",
    })
}

/// H·v exists, is finite, and is not 0 everywhere.
fn check_second_derivative(x: &Tensor, score: &Tensor) -> Result<(), Failed> {
    let failed = |found: String, remedy: &'static str| Failed {
        check: "second derivative",
        wanted: "a score that depends smoothly on x (training differentiates the score)".into(),
        found,
        remedy,
    };
    const SMOOTH: &str = "replace ReLU-like and other piecewise linear operations by SiLU or softplus";
    // logaddexp divides infinity by infinity in its second derivative where its arguments are far apart.
    const STABLE: &str = "write logaddexp(a, b) as torch.stack([a, b]).logsumexp(0), and norm() as the root of a sum \
                          of squares plus a small number";
    if !score.requires_grad() {
        return Err(failed("a score that does not depend on x".into(), SMOOTH));
    }
    let v = directions(&x.size()[1..], 2, x.device());
    let product = Tensor::f_run_backward(&[(score * v).sum(None)], &[x], false, false)
        .map_err(|error| failed(format!("an error: {}", last_line(&error)), SMOOTH))?
        .remove(0);
    if !product.defined() || product.count_nonzero(None::<i64>).int64_value(&[]) == 0 {
        return Err(failed(format!("a second derivative of 0 at all {POINTS} points"), SMOOTH));
    }
    if product.isfinite().all().int64_value(&[]) == 0 {
        return Err(failed("a second derivative that is not finite at the probe points".into(), STABLE));
    }
    Ok(())
}

/// What a libtorch error says: the last line of a TorchScript traceback, otherwise the first.
pub fn last_line(error: &TchError) -> String {
    let text = error.to_string();
    let is_traceback = text.contains("Traceback of TorchScript");
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = if is_traceback {
        lines.rfind(|line| line.contains("Error")).or_else(|| text.lines().next())
    } else {
        lines.next()
    };
    line.unwrap_or_default().to_string()
}
