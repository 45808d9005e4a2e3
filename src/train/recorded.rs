//! Work of an iteration that is recorded as a CUDA graph and replayed: on small networks a GPU waits for the calls that
//! launch its work, and a graph is one call.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use tch::{Tensor, no_grad};

use super::TrainError;
use super::reduce::Part;
use super::updates::Draw;
use crate::comm::cuda::Graph;
use crate::config::FieldKind;

/// Times that work is done call by call first: libraries choose their algorithms then, which cannot be recorded.
const WARM_UPS: u32 = 3;

/// What work depends on besides the numbers drawn for it and what training changes in place. Equal ones are recorded once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Work {
    pub(super) update: UpdateKind,
    /// Which of this rank's pieces.
    pub(super) piece: usize,
    /// The field, and the bits of the target's weight on its path, where they play a part.
    pub(super) of_target: Option<(FieldKind, u64)>,
}

/// Which networks learn from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum UpdateKind {
    Score,
    Sampler,
    Both,
}

/// What a piece adds to an update, and evaluations of the target that it took.
pub(super) type Computed = (Part, i64);

/// The graphs of one rank.
pub(super) struct Recordings {
    ordinal: usize,
    graphs: RefCell<HashMap<Work, Recording>>,
}

struct Recording {
    graph: Graph,
    warm_ups: u32,
    /// The memory that the graph reads, and that it writes, once recorded.
    of_graph: Option<(Draw, Computed)>,
}

impl Recordings {
    /// None yet, on CUDA device `ordinal`.
    pub(super) fn new(ordinal: usize) -> Self {
        Recordings { ordinal, graphs: RefCell::default() }
    }

    /// What `compute` makes of `draw`: by its calls at first, then by its graph. The tensors of the answer are written again when
    /// the same work is next asked for.
    pub(super) fn compute(
        &self,
        work: Work,
        draw: Draw,
        compute: impl Fn(&Draw) -> Computed,
    ) -> Result<Computed, TrainError> {
        let mut graphs = self.graphs.borrow_mut();
        let recording = match graphs.entry(work) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                place.insert(Recording { graph: Graph::new(self.ordinal)?, warm_ups: 0, of_graph: None })
            }
        };
        if recording.warm_ups < WARM_UPS {
            recording.warm_ups += 1;
            return Ok(recording.graph.warm_up(|| compute(&draw))?);
        }
        match &recording.of_graph {
            Some((inputs, _)) => no_grad(|| inputs.copy_from(&draw)),
            None => {
                let computed = recording.graph.record(|| compute(&draw))?;
                recording.of_graph = Some((draw, computed));
            }
        }
        recording.graph.replay()?;
        let (_, (part, evaluations)) = recording.of_graph.as_ref().expect("recorded above");
        let views = |tensors: &[Tensor]| tensors.iter().map(Tensor::shallow_clone).collect();
        let part = Part { gradients: views(&part.gradients), statistics: views(&part.statistics) };
        Ok((part, *evaluations))
    }
}
