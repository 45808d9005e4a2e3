//! LeNet-5 (LeCun et al. 1998) with ReLU and max pooling: the classifier whose features FD-LeNet uses.

use std::rc::Rc;

use tch::Tensor;

use super::layers::{Conv, Linear};
use super::parameters::{Layout, Weights};

/// 28 × 28 grey images to 84 features to 10 classes; 61,706 parameters.
#[derive(Debug)]
pub struct LeNet {
    layout: Rc<Layout>,
    first: Conv,
    second: Conv,
    wide: Linear,
    features: Linear,
    classes: Linear,
}

impl Default for LeNet {
    fn default() -> Self {
        let mut layout = Layout::default();
        let layout_ref = &mut layout;
        let (first, second) =
            (Conv::same(layout_ref, "first", 1, 6, 5), Conv::valid(layout_ref, "second", 6, 16, 5));
        let wide = Linear::new(layout_ref, "wide", 400, 120);
        let features = Linear::new(layout_ref, "features", 120, 84);
        let classes = Linear::new(layout_ref, "classes", 84, 10);
        LeNet { layout: Rc::new(layout), first, second, wide, features, classes }
    }
}

impl LeNet {
    /// Number of features, `F`.
    pub const FEATURES: i64 = 84;

    /// The parameters' layout.
    pub fn layout(&self) -> &Rc<Layout> {
        &self.layout
    }

    /// Features `[B, 84]` of images `[B, 1, 28, 28]` in [0, 1]: the last hidden layer after its ReLU.
    pub fn features(&self, weights: &Weights, images: &Tensor) -> Tensor {
        let h = self.first.forward(weights, images).relu().max_pool2d_default(2);
        let h = self.second.forward(weights, &h).relu().max_pool2d_default(2);
        let h = self.wide.forward(weights, &h.flatten(1, -1)).relu();
        self.features.forward(weights, &h).relu()
    }

    /// Class logits `[B, 10]` from features `[B, 84]`.
    pub fn logits(&self, weights: &Weights, features: &Tensor) -> Tensor {
        self.classes.forward(weights, features)
    }
}
