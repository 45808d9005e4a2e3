//! LeNet-5 (LeCun et al. 1998), tanh and average pooling: the classifier whose features FD-LeNet uses.
//!
//! Its features lie in [−1, 1], so the scale of the distance does not depend on how long the classifier was
//! trained, as it does with unbounded activations.

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
    /// The parameters' layout.
    pub fn layout(&self) -> &Rc<Layout> {
        &self.layout
    }

    /// Features `[B, 84]` of images `[B, 1, 28, 28]` in [0, 1]: the last hidden layer after its tanh.
    pub fn features(&self, weights: &Weights, images: &Tensor) -> Tensor {
        let h = self
            .first
            .forward(weights, images)
            .tanh()
            .avg_pool2d([2i64; 2], [2i64; 2], [0i64; 2], false, true, None);
        let h = self
            .second
            .forward(weights, &h)
            .tanh()
            .avg_pool2d([2i64; 2], [2i64; 2], [0i64; 2], false, true, None);
        let h = self.wide.forward(weights, &h.flatten(1, -1)).tanh();
        self.features.forward(weights, &h).tanh()
    }

    /// Class logits `[B, 10]` from features `[B, 84]`.
    pub fn logits(&self, weights: &Weights, features: &Tensor) -> Tensor {
        self.classes.forward(weights, features)
    }
}
