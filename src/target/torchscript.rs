//! Any density from a file: a TorchScript module that maps `[B, …shape]` to log-densities `[B]`.

use std::path::Path;

use tch::{CModule, Device, Kind, Tensor};

use super::probe::{Failed, check, last_line};
use super::{Target, TargetError};

/// A density written in PyTorch and saved with `torch.jit.save`.
#[derive(Debug)]
pub struct TorchScriptTarget {
    module: CModule,
    shape: Vec<i64>,
}

impl TorchScriptTarget {
    /// Loads a module and checks on probe points that it is a density that a sampler can be trained on: see
    /// docs/torchscript.md.
    ///
    /// Its parameters are constants from here on: no gradient is computed for them.
    ///
    /// # Errors
    /// If the file is missing or no module, or a check fails: its name, what was wanted, found, and what to do.
    pub fn load(path: &Path, shape: &[i64], device: Device) -> Result<Self, TargetError> {
        let invalid =
            |failed: Failed| TargetError::Invalid(format!("target.file {}: {failed}", path.display()));
        let unreadable = |found: String| {
            invalid(Failed {
                check: "file",
                wanted: "a TorchScript module".into(),
                found,
                remedy: "write one with torch.jit.script(module).save(file), and give its path from the directory that \
                         dft runs in",
            })
        };
        if !path.is_file() {
            return Err(unreadable("no such file".into()));
        }
        let load = || {
            let mut module = CModule::load_on_device(path, device)?;
            module.f_set_eval()?;
            for (_, parameter) in module.named_parameters()? {
                let _same = parameter.f_set_requires_grad(false)?;
            }
            Ok(module)
        };
        let module = load().map_err(|error| unreadable(last_line(&error)))?;
        check(&|x| module.forward_ts(&[x]), shape, device).map_err(invalid)?;
        Ok(TorchScriptTarget { module, shape: shape.to_vec() })
    }
}

impl Target for TorchScriptTarget {
    fn shape(&self) -> &[i64] {
        &self.shape
    }

    fn log_density(&self, x: &Tensor) -> Tensor {
        // It was tried in f32, the kind that its weights have.
        self.module
            .forward_ts(&[&x.to_kind(Kind::Float)])
            .expect("the module was tried on samples of this shape when it was loaded")
            .to_kind(x.kind())
    }
}
