//! The memory of CPU tensors as slices: gradients are megabytes, and tch's safe way copies them out and back in.

use tch::{Device, Tensor, kind};

/// The elements of a contiguous CPU tensor, in place.
///
/// # Panics
/// If the tensor is of another kind, on another device, or not contiguous.
pub(crate) fn elements<T: kind::Element>(tensor: &Tensor) -> &[T] {
    let Some(data) = pointer::<T>(tensor) else { return &[] };
    // SAFETY: a contiguous CPU tensor of this kind owns `numel` elements of `T` from `data` on, numbers of which every bit
    // pattern is one. The slice borrows the tensor, which keeps the storage alive; nothing writes to it meanwhile, because
    // this rank's only thread of tensor work is the one that holds the slice.
    unsafe { std::slice::from_raw_parts(data, tensor.numel()) }
}

/// As [`elements`], to write to.
pub(crate) fn elements_mut<T: kind::Element>(tensor: &mut Tensor) -> &mut [T] {
    let Some(data) = pointer::<T>(tensor) else { return &mut [] };
    // SAFETY: as in `elements`, and callers write the memory of a new tensor before they read it; the tensor is borrowed
    // mutably, and other tensors over the same storage are not touched meanwhile, for the same reason.
    unsafe { std::slice::from_raw_parts_mut(data, tensor.numel()) }
}

/// Whether [`elements`] takes this tensor.
pub(crate) fn is_plain<T: kind::Element>(tensor: &Tensor) -> bool {
    tensor.kind() == T::KIND && tensor.device() == Device::Cpu && tensor.is_contiguous()
}

/// The checked address; libtorch may give an empty tensor none.
fn pointer<T: kind::Element>(tensor: &Tensor) -> Option<*mut T> {
    assert_eq!(tensor.kind(), T::KIND, "element type does not match the tensor");
    assert!(
        tensor.device() == Device::Cpu && tensor.is_contiguous(),
        "the tensor is no plain memory of the host"
    );
    (tensor.numel() > 0).then(|| tensor.data_ptr().cast::<T>())
}
