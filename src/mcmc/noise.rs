//! Random numbers for all chains, made on the host in blocks of many steps.

use tch::{Device, Kind, Tensor};

use crate::rng::Generator;

/// Numbers that a block holds at most, so that it stays in a core's cache: 256 KiB of f32.
const BLOCK: i64 = 1 << 16;

/// Draws for `[N, D]` states. The block's length depends on that shape alone, so the numbers do not depend on
/// when a run is stopped and continued.
pub(super) struct Noise {
    generator: Generator,
    like: (Kind, Device),
    shape: [i64; 2],
    normals: Block,
    uniforms: Block,
}

/// Numbers for several steps, `[steps, …]`.
struct Block {
    steps: i64,
    used: i64,
    values: Option<Tensor>,
}

impl Block {
    fn new(numbers_per_step: i64) -> Self {
        let steps = (BLOCK / numbers_per_step).clamp(1, 64);
        Block { steps, used: steps, values: None }
    }

    /// The numbers of the next step; `fill` makes those of a given count of steps.
    fn next(&mut self, fill: impl FnOnce(i64) -> Tensor) -> Tensor {
        if self.used == self.steps || self.values.is_none() {
            self.values = Some(fill(self.steps));
            self.used = 0;
        }
        let values = self.values.as_ref().expect("it was filled above");
        self.used += 1;
        values.select(0, self.used - 1)
    }
}

impl Noise {
    /// For states shaped, typed and placed as `x` `[N, D]`.
    pub(super) fn new(generator: Generator, x: &Tensor) -> Self {
        let (rows, columns) = x.size2().expect("states are rows of numbers");
        Noise {
            generator,
            like: (x.kind(), x.device()),
            shape: [rows, columns],
            normals: Block::new(rows * columns),
            uniforms: Block::new(rows),
        }
    }

    /// Standard normal `[N, D]`.
    pub(super) fn normal(&mut self) -> Tensor {
        let (generator, (kind, device), [rows, columns]) = (&mut self.generator, self.like, self.shape);
        self.normals.next(|steps| generator.normal(&[steps, rows, columns]).to_device(device).to_kind(kind))
    }

    /// Uniform in [0, 1), `[N]`.
    pub(super) fn uniform(&mut self) -> Tensor {
        let (generator, (kind, device), rows) = (&mut self.generator, self.like, self.shape[0]);
        self.uniforms.next(|steps| generator.uniform(&[steps, rows]).to_device(device).to_kind(kind))
    }

    /// A whole number for another generator's seed.
    pub(super) fn seed(&mut self) -> u64 {
        self.generator.indices(1, i64::MAX)[0] as u64
    }
}
