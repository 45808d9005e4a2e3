//! Any density from a file: a TorchScript module that maps `[B, …shape]` to log-densities `[B]`.

use std::path::Path;

use tch::{CModule, Device, Kind, Tensor};

use super::{Target, TargetError};

/// A density written in PyTorch and saved with `torch.jit.save`.
#[derive(Debug)]
pub struct TorchScriptTarget {
    module: CModule,
    shape: Vec<i64>,
}

impl TorchScriptTarget {
    /// Loads a module and tries it on two samples.
    ///
    /// # Errors
    /// If the file is missing or no module, or the module does not return one finite f32 number a sample, or
    /// cannot be differentiated twice.
    pub fn load(path: &Path, shape: &[i64], device: Device) -> Result<Self, TargetError> {
        let invalid = |found: String| {
            TargetError::Invalid(format!(
                "target.file {} should be a TorchScript module from f32 [B, {shape:?}] to log-densities f32 [B], twice \
                 differentiable; {found}",
                path.display()
            ))
        };
        if !path.is_file() {
            return Err(invalid("there is no such file".into()));
        }
        let mut module =
            CModule::load_on_device(path, device).map_err(|error| invalid(first_line(&error)))?;
        module.set_eval();
        let target = TorchScriptTarget { module, shape: shape.to_vec() };
        let probe = Tensor::ones([&[2], shape].concat(), (Kind::Float, device)) * 0.1;
        let value = target.module.forward_ts(&[&probe]).map_err(|error| invalid(first_line(&error)))?;
        if value.size() != [2] || value.kind() != Kind::Float {
            return Err(invalid(format!("for 2 samples it returns {:?} {:?}", value.kind(), value.size())));
        }
        if value.isfinite().all().int64_value(&[]) == 0 {
            return Err(invalid("its value is not finite at x = 0.1".into()));
        }
        let x = probe.set_requires_grad(true);
        let total = target.log_density(&x).sum(None);
        let score = Tensor::f_run_backward(&[total], &[&x], true, true)
            .map_err(|error| invalid(format!("its gradient fails: {}", first_line(&error))))?
            .remove(0);
        if !score.requires_grad() {
            return Err(invalid("its score does not depend on x, so it describes no density".into()));
        }
        Tensor::f_run_backward(&[score.square().sum(None)], &[&x], false, false)
            .map_err(|error| invalid(format!("its second derivative fails: {}", first_line(&error))))?;
        Ok(target)
    }
}

fn first_line(error: &impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

impl Target for TorchScriptTarget {
    fn shape(&self) -> &[i64] {
        &self.shape
    }

    fn log_density(&self, x: &Tensor) -> Tensor {
        self.module
            .forward_ts(&[x])
            .expect("the module was tried on samples of this shape when it was loaded")
    }
}
