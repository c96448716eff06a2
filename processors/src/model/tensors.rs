//! Tensors of a safetensors file, by name, type and shape.
//!
//! Promises: a tensor that is returned has exactly the shape that was asked for, and all its numbers are finite. Leaves
//! out: types that no model here uses.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::card::Family;
use crate::stage::Failure;

/// A file of tensors.
pub(crate) struct Tensors<'a> {
    family: &'a Family,
    file: &'a str,
    tensors: SafeTensors<'a>,
}

impl<'a> Tensors<'a> {
    /// Reads the table of contents of `bytes`, the content of `file`.
    pub(crate) fn open(family: &'a Family, file: &'a str, bytes: &'a [u8]) -> Result<Tensors<'a>, Failure> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| family.failure(file, e))?;
        Ok(Tensors { family, file, tensors })
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    /// Rows of the tensor: its first dimension.
    pub(crate) fn rows(&self, name: &str) -> Result<usize, Failure> {
        let view = self.view(name)?;
        let rows = view.shape().first().copied();
        rows.ok_or_else(|| self.family.failure(self.file, format!("tensor {name} has no dimension")))
    }

    /// A tensor of 32-bit floats.
    pub(crate) fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Failure> {
        let bytes = self.checked(name, shape, Dtype::F32)?;
        let values: Vec<f32> =
            bytes.chunks_exact(4).map(|chunk| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]])).collect();
        if values.iter().all(|v| v.is_finite()) {
            Ok(values)
        } else {
            Err(self.family.failure(self.file, format!("tensor {name} holds a number that is not finite")))
        }
    }

    /// A tensor of signed bytes.
    pub(crate) fn bytes(&self, name: &str, shape: &[usize]) -> Result<Vec<i8>, Failure> {
        Ok(self.checked(name, shape, Dtype::I8)?.iter().map(|b| *b as i8).collect())
    }

    /// A tensor of 32-bit numbers, each from 0 and below `bound`.
    pub(crate) fn numbers(&self, name: &str, shape: &[usize], bound: usize) -> Result<Vec<u32>, Failure> {
        let bytes = self.checked(name, shape, Dtype::I32)?;
        let values: Vec<u32> =
            bytes.chunks_exact(4).map(|chunk| u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]])).collect();
        if values.iter().all(|v| (*v as usize) < bound) {
            Ok(values)
        } else {
            Err(self.family.failure(self.file, format!("tensor {name} holds a number that is not below {bound}")))
        }
    }

    /// A tensor of one float a label.
    pub(crate) fn labels<const N: usize>(&self, name: &str) -> Result<[f32; N], Failure> {
        let values = self.floats(name, &[N])?;
        Ok(values.try_into().expect("the shape was checked"))
    }

    /// A failure of this file.
    pub(crate) fn failure(&self, problem: &str) -> Failure {
        self.family.failure(self.file, problem)
    }

    fn view(&self, name: &str) -> Result<TensorView<'a>, Failure> {
        self.tensors.tensor(name).map_err(|_| self.family.failure(self.file, format!("has no tensor {name}")))
    }

    fn checked(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<&'a [u8], Failure> {
        let view = self.view(name)?;
        if view.dtype() == dtype && view.shape() == shape {
            return Ok(view.data());
        }
        let problem = format!("tensor {name} is {:?} {:?}, expected {dtype:?} {shape:?}", view.dtype(), view.shape());
        Err(self.family.failure(self.file, problem))
    }
}
