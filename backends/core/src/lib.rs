//! What every backend shares: storage formats, operations, programs, the `Backend` contract and the reference interpreter.

pub mod arena;
pub mod backend;
pub mod conformance;
pub mod dtype;
pub mod footprint;
pub mod kv;
pub mod op;
pub mod program;
pub mod quant;
pub mod reference;
pub mod rng;
pub mod sampling;
pub mod step;
pub mod weight;

pub use backend::{Backend, BackendError, Bandwidth, Caps, MemoryReport, PlanId, PlanProfile, ProfileEntry};
pub use dtype::DType;
pub use footprint::{Footprint, PlainFootprint};
pub use kv::{KvElement, KvGroup, KvLayer, KvLayout};
pub use op::{Op, RopeStyle, SwiGluKind};
pub use program::{Element, Node, Program, ProgramBuilder, RowSet, Value, ValueId};
pub use reference::ReferenceBackend;
pub use step::{NO_BLOCK, NO_SLOT, NO_TOKEN, OutputValue, SampleRow, StepInputs, StepOutputs, StepShape};
pub use weight::{WeightId, WeightKind, WeightSpec};
