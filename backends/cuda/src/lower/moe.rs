//! Lowering of `moe`.

use worker_orcd_core::{BackendError, Node};

use super::{Lowering, program_error};
use crate::kernels::Unit;

/// Emits the launches of a node.
pub(super) fn lower(_lowering: &mut Lowering<'_>, node: &Node) -> Result<(), BackendError> {
    Err(program_error(node, "no kernel".to_owned()))
}

/// The units it needs.
pub(super) const fn units() -> Vec<Unit> {
    vec![]
}
