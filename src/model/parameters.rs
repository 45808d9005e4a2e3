//! Parameters of a network as named views of one flat buffer.

use std::ops::Index;
use std::rc::Rc;

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor, no_grad};

use super::layers::Init;
use super::weights_file::{COORDINATES, WeightsError, WeightsFile};
use crate::comm::memory::is_plain;
use crate::rng::{Generator, Stream};

/// Handle of one parameter, given out by [`Layout::add`].
#[derive(Debug, Clone, Copy)]
pub struct Slot(usize);

#[derive(Debug)]
struct Entry {
    name: String,
    /// Bytes of the name that say which part of the network this is; what follows is the name in a network that is that part.
    part: usize,
    shape: Vec<i64>,
    init: Init,
}

/// Names, shapes and initial distributions of a network's parameters, in registration order.
#[derive(Debug, Default)]
pub struct Layout {
    entries: Vec<Entry>,
    part: String,
}

impl Layout {
    /// Registers a parameter.
    ///
    /// # Panics
    /// If the name is taken: two layers would share weights unnoticed.
    pub fn add(&mut self, name: String, shape: &[i64], init: Init) -> Slot {
        let name = self.part.clone() + &name;
        assert!(self.entries.iter().all(|entry| entry.name != name), "duplicate parameter name {name}");
        self.entries.push(Entry { name, part: self.part.len(), shape: shape.to_vec(), init });
        Slot(self.entries.len() - 1)
    }

    /// What `register` makes of this layout, with `part` before the names of its parameters.
    pub fn part<T>(&mut self, part: &str, register: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.part.len();
        self.part.push_str(part);
        let made = register(self);
        self.part.truncate(outer);
        made
    }

    /// Number of parameters, `P`.
    pub fn len(&self) -> i64 {
        self.entries.iter().map(|entry| entry.shape.iter().product::<i64>()).sum()
    }

    /// Whether there is no parameter at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The tensors a network computes with, in the order of its layout.
#[derive(Debug)]
pub struct Weights(Vec<Tensor>);

impl Index<Slot> for Weights {
    type Output = Tensor;
    fn index(&self, slot: Slot) -> &Tensor {
        &self.0[slot.0]
    }
}

impl Weights {
    /// Whether autograd follows these weights.
    pub fn are_tracked(&self) -> bool {
        self.0.iter().any(Tensor::requires_grad)
    }

    /// Whether these are plain f32 numbers in memory of the host.
    pub fn are_on_host(&self) -> bool {
        self.0.iter().all(is_plain::<f32>)
    }

    /// Room for a gradient: a flat buffer `[P]`, not yet written, and views of it in the shapes of the weights.
    pub fn gradient_buffer(&self) -> (Tensor, Weights) {
        let count = self.0.iter().map(|tensor| tensor.numel() as i64).sum::<i64>();
        let flat = Tensor::empty([count], (self.0[0].kind(), self.0[0].device()));
        let mut start = 0;
        let view = |tensor: &Tensor| {
            let view = flat.as_strided(tensor.size(), tensor.stride(), start);
            start += tensor.numel() as i64;
            view
        };
        let views = self.0.iter().map(view).collect();
        (flat, Weights(views))
    }

    /// Gradient of the scalar `loss` with respect to all weights, flat `[P]`, and with respect to the
    /// tensors in `inputs`. The weights must be tracked ([`Parameters::tracked`]).
    pub fn gradient(&self, loss: &Tensor, inputs: &[&Tensor]) -> (Tensor, Vec<Tensor>) {
        let wanted: Vec<&Tensor> = self.0.iter().chain(inputs.iter().copied()).collect();
        let mut gradients = Tensor::run_backward(&[loss], &wanted, false, false);
        let inputs = gradients.split_off(self.0.len());
        let flat: Vec<Tensor> = gradients
            .iter()
            .zip(&self.0)
            .map(|(gradient, weight)| {
                // The loss may not depend on a weight, as a score does not on the last bias of an energy.
                let gradient =
                    if gradient.defined() { gradient.shallow_clone() } else { weight.detach().zeros_like() };
                gradient.reshape([-1])
            })
            .collect();
        (Tensor::cat(&flat, 0), inputs)
    }
}

/// The values of a network's parameters: one flat `[P]` buffer and two sets of views of it.
///
/// Writing to [`flat`](Self::flat) in place changes both sets of views.
#[derive(Debug)]
pub struct Parameters {
    layout: Rc<Layout>,
    flat: Tensor,
    tracked: Weights,
    frozen: Weights,
}

impl Parameters {
    /// Draws initial values: parameter `i` of the layout from shard `i` of the stream, so that adding a
    /// layer at the end leaves the others alone.
    pub fn initialise(layout: &Rc<Layout>, run_seed: u64, stream: Stream, device: Device) -> Self {
        let parts: Vec<Tensor> = (0u64..)
            .zip(&layout.entries)
            .map(|(index, entry)| {
                let mut generator = Generator::new(run_seed, stream, 0, index);
                entry.init.draw(&entry.shape, &mut generator).reshape([-1])
            })
            .collect();
        Self::from_flat(layout, Tensor::cat(&parts, 0).to_device(device))
    }

    /// Parameters that own the buffer `flat` `[P]`.
    pub fn from_flat(layout: &Rc<Layout>, flat: Tensor) -> Self {
        assert_eq!(flat.size(), [layout.len()], "flat buffer and layout must agree");
        let views = |track: bool| {
            let mut offset = 0;
            let view = |entry: &Entry| {
                let length = entry.shape.iter().product::<i64>();
                let view = flat.narrow(0, offset, length).view(entry.shape.as_slice()).detach();
                offset += length;
                view.set_requires_grad(track)
            };
            Weights(layout.entries.iter().map(view).collect())
        };
        let (tracked, frozen) = (views(true), views(false));
        Parameters { layout: Rc::clone(layout), flat, tracked, frozen }
    }

    /// A copy of the values in a buffer of its own.
    pub fn duplicate(&self) -> Self {
        Self::from_flat(&self.layout, self.flat.copy())
    }

    /// All values, `[P]`.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Weights whose gradients can be asked for.
    pub fn tracked(&self) -> &Weights {
        &self.tracked
    }

    /// The same weights as constants: autograd neither follows them nor computes their gradients.
    pub fn frozen(&self) -> &Weights {
        &self.frozen
    }

    /// Number of parameters, `P`.
    pub fn count(&self) -> i64 {
        self.layout.len()
    }

    /// Copies each parameter that `other` has under the same name and shape, in every [part](Layout::part): how a sampler
    /// starts from an energy's own network.
    pub fn copy_shared_from(&self, other: &Parameters) {
        for (entry, view) in self.layout.entries.iter().zip(&self.frozen.0) {
            let twin = other
                .layout
                .entries
                .iter()
                .position(|e| e.name == entry.name[entry.part..] && e.shape == entry.shape);
            if let Some(index) = twin {
                no_grad(|| view.shallow_clone().copy_(&other.frozen.0[index]));
            }
        }
    }

    /// The parameters by name, on the CPU, for a weights file.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        let to_pair = |(entry, view): (&Entry, &Tensor)| (entry.name.clone(), view.to_device(Device::Cpu));
        self.layout.entries.iter().zip(&self.frozen.0).map(to_pair).collect()
    }

    /// Reads every parameter of `layout` from a weights file.
    ///
    /// # Errors
    /// If the file holds another network: a name is missing, left over, or has another shape.
    pub fn from_file(layout: &Rc<Layout>, file: &WeightsFile, device: Device) -> Result<Self, WeightsError> {
        let mut parts = Vec::new();
        for entry in &layout.entries {
            parts.push(file.tensor(&entry.name, &entry.shape)?.to_kind(Kind::Float).reshape([-1]));
        }
        let is_known =
            |name: &str| COORDINATES.contains(&name) || layout.entries.iter().any(|entry| entry.name == name);
        if let Some(extra) = file.names().find(|name| !is_known(name)) {
            return Err(file.other_network(format!("it also holds `{extra}`")));
        }
        Ok(Self::from_flat(layout, Tensor::cat(&parts, 0).to_device(device)))
    }

    /// Feeds the values into `digest` as little-endian f32 in registration order.
    pub fn digest(&self, digest: &mut Sha256) {
        let values: Vec<f32> = Vec::try_from(&self.flat.to_device(Device::Cpu)).expect("a flat f32 buffer");
        for value in values {
            digest.update(value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_parameters() -> Rc<Layout> {
        let mut layout = Layout::default();
        layout.add("a".into(), &[2, 3], Init::Uniform(1.0));
        layout.add("b".into(), &[4], Init::Zero);
        Rc::new(layout)
    }

    #[test]
    fn views_follow_the_flat_buffer() {
        let parameters = Parameters::initialise(&two_parameters(), 0, Stream::Parameters, Device::Cpu);
        no_grad(|| parameters.flat().shallow_clone().copy_(&Tensor::arange(10, (Kind::Float, Device::Cpu))));
        assert_eq!(parameters.tracked().0[1], Tensor::from_slice(&[6f32, 7., 8., 9.]));
        assert_eq!(parameters.frozen().0[0].double_value(&[1, 2]), 5.0);
    }

    #[test]
    fn gradient_is_flat_and_in_registration_order() {
        let parameters = Parameters::initialise(&two_parameters(), 0, Stream::Parameters, Device::Cpu);
        let w = parameters.tracked();
        // d/da sum(2a) = 2, d/db sum(3b) = 3
        let (gradient, _) = w.gradient(&((&w.0[0] * 2).sum(None) + (&w.0[1] * 3).sum(None)), &[]);
        assert_eq!(gradient, Tensor::from_slice(&[2f32, 2., 2., 2., 2., 2., 3., 3., 3., 3.]));
    }

    #[test]
    fn weights_that_the_loss_does_not_depend_on_have_gradient_zero() {
        let parameters = Parameters::initialise(&two_parameters(), 0, Stream::Parameters, Device::Cpu);
        let w = parameters.tracked();
        let (gradient, _) = w.gradient(&(&w.0[0] * 2).sum(None), &[]);
        assert_eq!(gradient, Tensor::from_slice(&[2f32, 2., 2., 2., 2., 2., 0., 0., 0., 0.]));
    }

    #[test]
    #[should_panic(expected = "duplicate parameter name a")]
    fn duplicate_names_are_rejected() {
        let mut layout = Layout::default();
        layout.add("a".into(), &[1], Init::Zero);
        layout.add("a".into(), &[1], Init::Zero);
    }
}
